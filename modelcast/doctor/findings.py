"""What an examination says: findings, each with its level and, where something is wrong, the line that mends it.

>>> Finding("clock", Level.OK, "the broker's clock is ours").is_wrong
False
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from modelcast.errors import ExitCode

# What has to work before anything else can be looked at.
CONNECTION_CHECKS = frozenset({"broker", "tls", "certificate", "login", "properties"})


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    UNKNOWN = "unknown"  # it could not be looked at; says why
    WARNING = "warning"  # works now, and may not later, or not for everybody
    FAULT = "fault"  # something does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: A stable word: what was looked at.
        message: What was found, and of which thing.
        mend: What to do about it: a command line, a setting, or a sentence; always there for faults and warnings.

    Raises:
        ValueError: Something is wrong and nothing says what to do.
    """

    check: str
    level: Level
    message: str
    mend: str | None = None

    def __post_init__(self) -> None:
        if self.is_wrong and not self.mend:
            raise ValueError(f"{self.check}: {self.message}: nothing says what to do")

    @property
    def is_wrong(self) -> bool:
        return self.level in (Level.WARNING, Level.FAULT)


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, message)


def unknown(check: str, message: str, mend: str | None = None) -> Finding:
    """Could not be looked at."""
    return Finding(check, Level.UNKNOWN, message, mend)


def warning(check: str, message: str, mend: str) -> Finding:
    """Works now, and may not later, or not for everybody."""
    return Finding(check, Level.WARNING, message, mend)


def fault(check: str, message: str, mend: str) -> Finding:
    """Does not work."""
    return Finding(check, Level.FAULT, message, mend)


def exit_code(findings: Iterable[Finding], *, strict: bool = False) -> ExitCode:
    """What an examination ends with: 0 nothing is wrong, 3 the cluster can't be used at all, 6 something else is.

    Args:
        strict: Warnings count, too.
    """
    wrong = [found for found in findings if found.level is Level.FAULT or (strict and found.is_wrong)]
    if any(found.check in CONNECTION_CHECKS and found.level is Level.FAULT for found in wrong):
        return ExitCode.BROKER
    return ExitCode.GATE if wrong else ExitCode.DONE


def count(findings: Sequence[Finding], level: Level) -> int:
    """How many are of a level."""
    return sum(found.level is level for found in findings)
