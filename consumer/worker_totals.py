"""What several workers' figures come to together: pure.

- Counts of a worker that was killed stay, as it last told them; what it committed after that is in no count.
- Rate and lag are those of workers that run.
- A release swaps in every worker: swaps are those of the worker that saw most.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_SUMMED = ("events", "predictions", "dead_letters", "recoveries")


class WorkerTotals:
    """The sums of `progress` and `stopped` lines, by worker."""

    def __init__(self) -> None:
        self._before: dict[str, int] = dict.fromkeys(_SUMMED, 0)
        self._now: dict[int, Mapping[str, Any]] = {}
        self._swaps: dict[int, int] = {}
        self._swaps_before: dict[int, int] = {}
        self._live: int | None = None
        self._left: int | None = None

    def tell(self, worker: int, line: Mapping[str, Any]) -> None:
        """Takes the latest figures of a worker."""
        self._now[worker] = line
        self._swaps[worker] = self._swaps_before.get(worker, 0) + int(line.get("swaps") or 0)
        if line.get("live") is not None:
            self._live = line["live"]
        if "left" in line:  # what the whole group has left: whoever stopped last knows best
            self._left = line["left"]

    def end(self, worker: int) -> None:
        """The worker's process is gone; the next one counts from nothing."""
        line = self._now.pop(worker, {})
        for name in _SUMMED:
            self._before[name] += int(line.get(name) or 0)
        self._swaps_before[worker] = self._swaps.get(worker, 0)

    def counts(self) -> dict[str, Any]:
        """What was done since the start, and the version that was live last."""
        return {
            **{name: self._sum(name) for name in _SUMMED},
            "swaps": max(self._swaps.values(), default=0),
            "live": self._live,
        }

    def figures(self) -> dict[str, Any]:
        """`counts`, and how those who run now fare."""
        lags = [line["lag"] for line in self._now.values() if line.get("lag") is not None]
        rate = sum(float(line.get("events_per_s") or 0) for line in self._now.values())
        return {**self.counts(), "events_per_s": round(rate, 1), "lag": sum(lags) if lags else None}

    @property
    def left(self) -> int | None:
        """Offsets before the end that nobody passed, as whoever stopped last said; None if nobody could."""
        return self._left

    def _sum(self, name: str) -> int:
        return self._before[name] + sum(int(line.get(name) or 0) for line in self._now.values())
