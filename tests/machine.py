"""Times judged where the machine was ours: on one that others use too, a figure says nothing of the code."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

PRESSURE = Path("/proc/pressure")
# Where the kernel does not say who waited for what, others may have taken most of the time.
UNKNOWN_SHARE = 10.0


class Stopwatch:
    """Measures from when it is made, and beside it how long tasks of this machine waited for a processor or a disk."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._robbed_s = _robbed_s()

    @property
    def took_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._began_s

    def allows(self, took_s: float, limit_s: float) -> bool:
        """Whether a time measured meanwhile keeps its limit, but for what others may have taken of it."""
        if self._robbed_s is None:
            return took_s <= limit_s * UNKNOWN_SHARE
        return took_s <= limit_s + (_robbed_s() or 0.0) - self._robbed_s


def _robbed_s() -> float | None:
    """Seconds since its start that the machine made tasks wait, or was itself made to; None where it is not told."""
    try:
        waited = [re.search(r"some .* total=(\d+)", (PRESSURE / what).read_text()) for what in ("cpu", "io")]
        stolen = Path("/proc/stat").read_text().split(maxsplit=9)[8]
    except OSError:
        return None
    told_s = sum(int(found[1]) for found in waited if found) / 1e6
    return told_s + int(stolen) / os.sysconf("SC_CLK_TCK")
