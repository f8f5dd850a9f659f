"""What a broker's log says."""

from __future__ import annotations

import os
from pathlib import Path

TAIL_LINES = 15  # in an error message: what fits a terminal


def size_bytes(path: Path) -> int:
    """Returns how much was logged so far; 0 without a log."""
    return path.stat().st_size if path.exists() else 0


def read_from(path: Path, offset_bytes: int) -> str:
    """Returns what was logged behind the first `offset_bytes`; everything, if the log was rolled meanwhile."""
    try:
        with path.open("rb") as file:
            if file.seek(0, os.SEEK_END) >= offset_bytes:
                file.seek(offset_bytes)
            else:
                file.seek(0)
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def relevant_lines(log: str) -> str:
    """Returns the lines of a log that say what went wrong: its errors if it has any, else its end; no stack frames."""
    lines = [line for line in log.splitlines() if line.strip() and not line.lstrip().startswith(("at ", "... "))]
    errors = [line for line in lines if " ERROR " in line or " FATAL " in line or "Exception" in line]
    return "\n".join(f"  {line}" for line in (errors or lines)[-TAIL_LINES:])
