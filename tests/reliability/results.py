"""What the tests told when they last ran: from pytest's report to a committed file, tests/reliability/results.json.

Nothing in that file is typed by hand: `python -m tests.reliability run` writes what a run of the tests reported. A run
of a few rows changes these rows only. A test that was skipped, for want of a device, keeps what it told where it ran.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree

from .figures import COUNTED, FIGURE
from .promises import ROOT

RESULTS: Final = ROOT / "tests" / "reliability" / "results.json"
PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """One test when it last ran, over all its parameters.

    Attributes:
        outcome: `passed` where no case failed and one passed.
        cases: How many ran.
        seconds: What all of them took.
        date: Of the run, ISO 8601, UTC.
        command: What repeats it.
        figures: Findings in words, each once, in order.
        counts: Findings that may be summed over tests.
        reason: Why it was skipped or failed; else empty.
    """

    outcome: str
    cases: int
    seconds: float
    date: str
    command: str
    figures: tuple[str, ...] = ()
    counts: Mapping[str, int] | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Case:
    """One case of a test, as pytest reports it."""

    id: str
    outcome: str
    seconds: float
    said: str
    reason: str


def read_report(report: Path) -> tuple[Case, ...]:
    """The cases of a JUnit report that pytest wrote with `junit_family=xunit1` and `junit_logging=system-out`."""
    return tuple(_case(element) for element in ElementTree.parse(report).iter("testcase"))


def results_of(cases: Iterable[Case], *, date: str, command: str) -> dict[str, Result]:
    """Test id → what its cases told together."""
    by_test: dict[str, list[Case]] = {}
    for case in cases:
        by_test.setdefault(case.id, []).append(case)
    return {test: _together(told, date, command) for test, told in by_test.items()}


def merged(earlier: Mapping[str, Result], now: Mapping[str, Result], known: Iterable[str]) -> dict[str, Result]:
    """What is known after a run: of tests that still exist; a skipped test keeps what it told where it ran."""
    kept: dict[str, Result] = {}
    for test in sorted(known):
        before, after = earlier.get(test), now.get(test)
        if after is not None and (after.outcome != SKIPPED or before is None or before.outcome == SKIPPED):
            kept[test] = after
        elif before is not None:
            kept[test] = before
    return kept


def load(path: Path = RESULTS) -> dict[str, Result]:
    """What was recorded; empty where nothing was."""
    if not path.exists():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return {test: Result(**{**told, "figures": tuple(told.get("figures", ()))}) for test, told in found.items()}


def save(results: Mapping[str, Result], path: Path = RESULTS) -> None:
    """Writes them, one test after another by its id, so that a run's changes can be read."""
    content = {test: _written(told) for test, told in results.items()}
    path.write_text(json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def _written(told: Result) -> dict[str, Any]:
    unsaid = {name for name in ("figures", "counts", "reason") if not getattr(told, name)}
    return {name: value for name, value in asdict(told).items() if name not in unsaid}


def _case(element: ElementTree.Element) -> Case:
    # `tests.unit.test_freshness.TestFrozen` in tests/unit/test_freshness.py: the class is what the file does not say.
    path = element.get("file", "")
    module = path.removesuffix(".py").replace("/", ".")
    inner = element.get("classname", "").removeprefix(module).removeprefix(".")
    name = element.get("name", "").partition("[")[0]
    outcome, reason = PASSED, ""
    for child in element:
        if child.tag in ("failure", "error"):
            outcome, reason = FAILED, child.get("message", "")
        elif child.tag == "skipped" and outcome == PASSED:
            outcome, reason = SKIPPED, child.get("message", "")
    return Case(
        id="::".join(part for part in (path, inner.replace(".", "::"), name) if part),
        outcome=outcome,
        seconds=float(element.get("time", "0")),
        said=element.findtext("system-out", ""),
        reason=" ".join(reason.split())[:200],
    )


def _together(cases: Sequence[Case], date: str, command: str) -> Result:
    outcomes = [case.outcome for case in cases]
    outcome = FAILED if FAILED in outcomes else PASSED if PASSED in outcomes else SKIPPED
    counts: dict[str, int] = {}
    figures: dict[str, None] = {}
    for line in (line for case in cases for line in case.said.splitlines()):
        if line.startswith(FIGURE):
            figures[line.removeprefix(FIGURE)] = None
        elif line.startswith(COUNTED):
            for name, _, count in (part.partition("=") for part in line.removeprefix(COUNTED).split()):
                counts[name] = counts.get(name, 0) + int(count)
    return Result(
        outcome=outcome,
        cases=sum(each != SKIPPED for each in outcomes),
        seconds=round(sum(case.seconds for case in cases), 1),
        date=date,
        command=command,
        figures=tuple(figures),
        counts=counts or None,
        reason=next((case.reason for case in cases if case.outcome == outcome and case.reason), ""),
    )
