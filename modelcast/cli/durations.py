"""Times as people write them on a command line (`90s`, `30m`, `24h`, `7d`), and as they read them (`3 min`)."""

from __future__ import annotations

import re

from modelcast.errors import UsageError

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_WORDS_S = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])")


def seconds(text: str, option: str) -> float:
    """Seconds of a time given to `option`; raises UsageError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"{option} {text!r} is not a time", hint=f"Write a number with s, m, h or d, e.g. {option} 24h"
        )
    return float(found[1]) * _UNITS_S[found[2]]


def age(ms: float) -> str:
    """How long that is, in one unit: `12 s`, `3 min`, `5 d`; less than nothing is nothing."""
    whole_s = max(0, int(ms // 1000))
    size, unit = next((entry for entry in _WORDS_S if whole_s >= entry[0]), _WORDS_S[-1])
    return f"{whole_s // size} {unit}"
