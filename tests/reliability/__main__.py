"""`python -m tests.reliability`: writes docs/RELIABILITY.md from what was noted when the tests last ran.

    python -m tests.reliability               write the page
    python -m tests.reliability check         say whether it is in step, and change nothing
    python -m tests.reliability run           run every row's tests, note what they tell, write the page
    python -m tests.reliability run 27 28     of these rows
    python -m tests.reliability note FILE     the same of a JUnit report of pytest (junit_family=xunit1)

Exit status: pytest's for `run`; 1 where `check` finds the page out of step; 2 for a row that is none; else 0.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from . import page, results
from .promises import ROOT, promises
from .proofs import Proof, of_rows, proofs

# Tests wait for Kafka more than they compute, and each lot has a broker of its own.
WORKERS = os.environ.get("WORKERS", "2")
# What makes a test larger than it is by default; a figure says which command it came of.
SCALES = ("MODELCAST_REGISTRY_MODELS", "MODELCAST_SWAPS")


def main(arguments: list[str]) -> int:
    match arguments:
        case []:
            page.write(rendered())
        case ["check"]:
            if not page.PAGE.exists() or page.PAGE.read_text(encoding="utf-8") != rendered():
                print("docs/RELIABILITY.md is out of step: run `python -m tests.reliability`", file=sys.stderr)
                return 1
        case ["run", *rows]:
            return run(rows)
        case ["note", report]:
            note(Path(report), " ".join([*_scales(), "make reliability"]))
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


def rendered() -> str:
    """The page as it must be now."""
    return page.render(promises(), of_rows(proofs()), results.load())


def run(rows: list[str]) -> int:
    """Runs the tests of these rows, or of all; notes what they tell, also where some fail."""
    by_row = of_rows(proofs())
    if unknown := [row for row in rows if not row.isdecimal() or int(row) not in by_row]:
        print(f"no test has the number {', '.join(unknown)}; rows are {min(by_row)} to {max(by_row)}", file=sys.stderr)
        return 2
    wanted: dict[str, Proof] = {
        proof.id: proof for row, found in by_row.items() if not rows or str(row) in rows for proof in found
    }
    command = " ".join([*_scales(), "make reliability", *([f'ROWS="{" ".join(rows)}"'] if rows else [])])
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-o", "junit_family=xunit1", "-o", "junit_logging=system-out", f"--junitxml={report}"]
        line = [sys.executable, "-m", "pytest", "-n", WORKERS, "--dist", "loadfile", *options, *wanted]
        status = subprocess.run(line, cwd=ROOT, check=False).returncode
        if report.exists():
            note(report, command)
    return status


def note(report: Path, command: str) -> None:
    """Adds a report's results to what is known of the tests that prove rows, and writes the page."""
    date = datetime.now(UTC).date().isoformat()
    now = results.results_of(results.read_report(report), date=date, command=command)
    results.save(results.merged(results.load(), now, (proof.id for proof in proofs())))
    page.write(rendered())


def _scales() -> list[str]:
    return [f"{name}={os.environ[name]}" for name in SCALES if name in os.environ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
