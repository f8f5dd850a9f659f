"""The rows of tests/matrix.toml, as values."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
MATRIX: Final = ROOT / "tests" / "matrix.toml"
# What a row may ask its tests to contain; tests/matrix.toml says what each means.
PROOFS: Final = frozenset({"broker", "signals", "proxy", "property", "gpu"})


@dataclass(frozen=True, slots=True)
class Promise:
    """What must come of one fault.

    Attributes:
        number: For good; in the name of its tests.
        part: Which part of the product it is about; a heading.
        proof: What its tests must contain at least, of `PROOFS`.
        without: What of it no test here can show, and why; empty where all of it is shown.
    """

    number: int
    part: str
    fault: str
    promise: str
    proof: frozenset[str]
    without: str = ""


def promises(matrix: Path = MATRIX) -> tuple[Promise, ...]:
    """The rows in the order of their numbers.

    Raises:
        ValueError: A row asks for a proof nobody knows, or a number stands twice.
    """
    rows = [
        Promise(**{**row, "proof": frozenset(row["proof"])})
        for row in tomllib.loads(matrix.read_text(encoding="utf-8"))["row"]
    ]
    for row in rows:
        if unknown := row.proof - PROOFS:
            raise ValueError(f"row {row.number} asks for {sorted(unknown)}; known are {sorted(PROOFS)}")
    numbers = [row.number for row in rows]
    if len(numbers) != len(set(numbers)):
        raise ValueError(f"a number stands twice: {sorted(numbers)}")
    return tuple(sorted(rows, key=lambda row: row.number))
