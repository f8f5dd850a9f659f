"""Requirements a version has to meet before it is published. Pure: text and numbers in, a report or an error out.

- `METRIC OP LIMIT`; OP is one of `>=`, `>`, `<=`, `<`, `==`; LIMIT is a number, or follows the live version:
  `champion`, `champion+NUMBER`, `champion-NUMBER`, `champion*FACTOR`.
- A metric is what the publisher stated, what an evaluation measured, or what the smoke run did: `load_ms`, `run_ms`,
  `peak_bytes`, `size_bytes`. One that nobody stated or measured can't be judged, which is an error, not a failure.
- With no champion there is nothing to fall behind: what is relative to it is met, and the report says so.
- Every requirement is judged, also after the first that is not met.

    >>> judge([parse("auc>=0.8")], {"auc": 0.913}, NO_CHAMPION)
    ('auc 0.913 >= 0.8',)
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Final

from modelcast.errors import GateError, UsageError
from modelcast.names import ModelVersion
from modelcast.records import LoadProbe

CHAMPION: Final = "champion"
# What `probe_metrics` gives.
PROBED: Final = frozenset({"load_ms", "run_ms", "peak_bytes", "size_bytes"})

_OPERATORS: Final[Mapping[str, Callable[[float, float], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_CHANGES: Final[Mapping[str, Callable[[Decimal, Decimal], Decimal]]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
_NUMBER = r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?|[0-9]+\."
_REQUIREMENT = re.compile(r"\s*([^\s<>=!~*]+)\s*([<>=!~]+)\s*(.*?)\s*", re.DOTALL)
_CHAMPION_LIMIT = re.compile(rf"{CHAMPION}(?:\s*([+*-])\s*({_NUMBER}))?")
_PLAIN_LIMIT = re.compile(rf"[+-]?(?:{_NUMBER})")
_EXAMPLES = "Write e.g. 'auc>=0.8', 'auc>=champion-0.01' or 'load_ms<champion*1.2', in quotes: a shell takes > and <."
# Six digits tell a metric; more are shown where a value and its limit would look alike.
_DIGITS = 6
_ALL_DIGITS = 17


@dataclass(frozen=True, slots=True)
class Requirement:
    """`metric operator limit`.

    Attributes:
        limit: The limit itself, or what is done to the champion's value: added, subtracted or its factor.
        change: `+`, `-` or `*` if the limit follows the champion, else "".
        text: As it is written in a report, e.g. `champion-0.01`; of a number, the number.
    """

    metric: str
    operator: str
    limit: float
    change: str
    text: str

    @property
    def is_relative(self) -> bool:
        """Whether the limit follows the champion."""
        return bool(self.change)

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.text}"


@dataclass(frozen=True, slots=True)
class Champion:
    """What requirements may be relative to.

    Attributes:
        id: The live version; None if there is none.
        metrics: Its values by name.
        missing: Why a metric has no value, by name, as a hint.
    """

    id: ModelVersion | None
    metrics: Mapping[str, float] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


NO_CHAMPION: Final = Champion(None)


@dataclass(frozen=True, slots=True)
class GateReport:
    """What a gate lets through.

    Attributes:
        metrics: What was measured for it, by name.
        passed: The requirements it met with what was measured, e.g. `auc 0.913 >= 0.8`.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    passed: tuple[str, ...] = ()


def parse(text: str) -> Requirement:
    """Reads one requirement. Raises UsageError with examples."""
    found = _REQUIREMENT.fullmatch(text)
    if not found:
        raise UsageError(f"requirement {text!r} is not METRIC OP LIMIT", hint=_EXAMPLES)
    metric, sign, limit = found.groups()
    if sign not in _OPERATORS:
        raise UsageError(
            f"requirement {text!r} compares by {sign!r}, which is none of {', '.join(_OPERATORS)}", hint=_EXAMPLES
        )
    if relative := _CHAMPION_LIMIT.fullmatch(limit):
        change, by = relative.groups()
        value = _finite(text, by) if by else 0.0
        return Requirement(metric, sign, value, change or "+", f"{CHAMPION}{change}{by}" if by else CHAMPION)
    if not _PLAIN_LIMIT.fullmatch(limit):
        raise UsageError(
            f"requirement {text!r} has the limit {limit!r}, which is neither a number nor follows the champion",
            hint=_EXAMPLES,
        )
    return Requirement(metric, sign, _finite(text, limit), "", limit)


def probe_metrics(probe: LoadProbe | None, size_bytes: int) -> dict[str, float]:
    """What is known of every version by name: `size_bytes`, and of one that was probed `load_ms`, `run_ms` and
    `peak_bytes`."""
    measured = {"size_bytes": float(size_bytes)}
    if probe is not None:
        measured |= {"load_ms": probe.load_ms, "run_ms": probe.run_ms, "peak_bytes": float(probe.peak_bytes)}
    return measured


def judge(
    requirements: Sequence[Requirement],
    metrics: Mapping[str, float],
    champion: Champion,
    *,
    missing: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Compares a candidate's metrics with what is required.

    Args:
        metrics: The candidate's, stated and measured.
        missing: Why a metric could not be measured, by name.

    Returns:
        Every requirement with its value.

    Raises:
        UsageError: A requirement is on a metric that the candidate, or the champion, has no value of.
        GateError: At least one is not met; the message lists all of them.
    """
    for requirement in requirements:
        check_known(requirement, metrics, missing)
        _check_champion(requirement, champion)
    judged = [_judge(requirement, metrics[requirement.metric], champion) for requirement in requirements]
    failed = sum(not met for met, _ in judged)
    if failed:
        lines = "\n".join(f"  {'met    ' if met else 'NOT MET'}  {text}" for met, text in judged)
        verb = "is" if failed == 1 else "are"
        raise GateError(
            f"{failed} of {len(judged)} requirement{'s' if len(judged) > 1 else ''} {verb} not met, "
            f"nothing was published\n{lines}",
            hint="Publish a better model, or change what is required.",
            details={"requirements": [{"met": met, "text": text} for met, text in judged], "metrics": dict(metrics)},
        )
    return tuple(text for _, text in judged)


def check_known(
    requirement: Requirement, metrics: Mapping[str, float], missing: Mapping[str, str] | None = None
) -> None:
    """Raises UsageError if a requirement is on none of these metrics; `missing` as for `judge`."""
    name = requirement.metric
    if name in metrics:
        return
    because = (missing or {}).get(name)
    raise UsageError(
        f"requirement '{requirement}' is on {name!r}, which was neither stated nor measured"
        + (f": {because}" if because else ""),
        hint=f"State it with --metric {name}=VALUE, or measure it with --evaluate DATA --label COLUMN; "
        f"known are {', '.join(sorted(metrics))}.",
    )


def _check_champion(requirement: Requirement, champion: Champion) -> None:
    name = requirement.metric
    if not requirement.is_relative or champion.id is None or name in champion.metrics:
        return
    because = champion.missing.get(name)
    raise UsageError(
        f"requirement '{requirement}' needs {name!r} of the champion, and {champion.id} has none"
        + (f": {because}" if because else " in its manifest"),
        hint="Compare with a number instead: that version was not probed."
        if name in PROBED
        else "Measure both on the same rows with --evaluate DATA --label COLUMN.",
    )


def _judge(requirement: Requirement, value: float, champion: Champion) -> tuple[bool, str]:
    name, sign = requirement.metric, requirement.operator
    if not requirement.is_relative:
        met = _OPERATORS[sign](value, requirement.limit)
        return met, f"{name} {_shown(value, requirement.limit)} {sign} {requirement.text}"
    if champion.id is None:
        return True, f"{name} {_shown(value)} {sign} {requirement.text} (no champion yet)"
    base = champion.metrics[name]
    # In decimal, as people reckon: 0.9 - 0.01 is 0.89, which as floats it is not.
    limit = float(_CHANGES[requirement.change](Decimal(repr(base)), Decimal(repr(requirement.limit))))
    told = f"{name} {_shown(value, limit)} {sign} {_shown(limit, value)}"
    return _OPERATORS[sign](value, limit), f"{told} ({requirement.text}, {champion.id} has {_shown(base)})"


def _shown(value: float, beside: float | None = None) -> str:
    """As few digits as tell it from what it is compared with."""
    if value.is_integer() and abs(value) < 1 / math.ulp(1.0):
        return str(int(value))
    digits = _DIGITS
    while (
        digits < _ALL_DIGITS
        and beside is not None
        and value != beside
        and f"{value:.{digits}g}" == f"{beside:.{digits}g}"
    ):
        digits += 1
    return f"{value:.{digits}g}"


def _finite(requirement: str, number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise UsageError(f"requirement {requirement!r} has a limit beyond any number", hint=_EXAMPLES)
    return value
