"""Times as people write them on a command line: `90s`, `30m`, `24h`, `7d`."""

from __future__ import annotations

import re

from modelcast.errors import UsageError

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd])")


def seconds(text: str, option: str) -> float:
    """Seconds of a time given to `option`; raises UsageError."""
    found = _DURATION.fullmatch(text.strip())
    if found is None:
        raise UsageError(
            f"{option} {text!r} is not a time", hint=f"Write a number with s, m, h or d, e.g. {option} 24h"
        )
    return float(found[1]) * _UNITS_S[found[2]]
