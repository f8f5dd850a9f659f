"""Which tests prove which rows: found by their names in the tests' sources, without importing any."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .promises import ROOT

FOLDERS: Final = ("unit", "broker", "faults", "large", "gpu")
# Where tests have a real broker (tests/conftest.py), unless their file never names one.
_BROKER_FOLDERS: Final = frozenset({"broker", "faults", "large"})

_NUMBERED = re.compile(r"test_((?:f\d\d_)+)")
_SIGNALS = re.compile(r"\b(?:kill|SIGKILL|SIGSTOP|SIGTERM|crashing_scorer)\b")
_BROKER = re.compile(r"\bbroker: [A-Z]|\bbroker\(|\bLocalBroker\b|\bStage\b|[Ss]ecured")


@dataclass(frozen=True, slots=True)
class Proof:
    """One test of one or several rows.

    Attributes:
        path: Of its file, from the root of the repository.
        name: As pytest's node ids have it after the file, without parameters: `TestFrozen::test_f12_…`.
        kinds: What it contains, of `promises.PROOFS`.
    """

    path: str
    name: str
    rows: tuple[int, ...]
    kinds: frozenset[str]

    @property
    def id(self) -> str:
        return f"{self.path}::{self.name}"


def proofs(root: Path = ROOT) -> tuple[Proof, ...]:
    """All tests that are named by a row's number, ordered by file and place."""
    found: list[Proof] = []
    for folder in FOLDERS:
        for file in sorted((root / "tests" / folder).rglob("test_*.py")):
            path = file.relative_to(root).as_posix()
            found.extend(read_proofs(path, file.read_text(encoding="utf-8")))
    return tuple(found)


def read_proofs(path: str, source: str) -> Iterator[Proof]:
    """The proofs of one test file."""
    if "test_f" not in source:
        return
    folder = path.split("/")[1]
    for name, test in _tests(ast.parse(source)):
        numbers = _NUMBERED.match(test.name)
        if numbers is None:
            continue
        rows = tuple(int(number) for number in re.findall(r"\d\d", numbers[1]))
        yield Proof(
            path, name, rows, frozenset(_kinds(folder, source, ast.get_source_segment(source, test) or "", test))
        )


def of_rows(found: tuple[Proof, ...]) -> dict[int, tuple[Proof, ...]]:
    """Row number → its tests: with a real broker first, then as they were found."""
    rows = sorted({row for proof in found for row in proof.rows})
    by_row = {row: [proof for proof in found if row in proof.rows] for row in rows}
    return {row: tuple(sorted(tests, key=lambda proof: "broker" not in proof.kinds)) for row, tests in by_row.items()}


def _tests(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from ((f"{node.name}::{each.name}", each) for each in node.body if isinstance(each, ast.FunctionDef))


def _kinds(folder: str, module: str, own: str, test: ast.FunctionDef) -> Iterator[str]:
    if folder in _BROKER_FOLDERS and _BROKER.search(module):
        yield "broker"
        if _SIGNALS.search(module):
            yield "signals"
    if "tests.fault_proxy" in module and "proxy" in own:
        yield "proxy"
    if any(ast.unparse(decorator).startswith("given(") for decorator in test.decorator_list):
        yield "property"
    if folder == "gpu":
        yield "gpu"
