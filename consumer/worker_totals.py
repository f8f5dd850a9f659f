"""What several workers' figures come to together: pure.

- Counts of a worker that was killed stay, as it last told them; what it committed after that is in no count.
- Rate and lag are those of workers that run.
- A release swaps in every worker: swaps are those of the worker that saw most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

_SUMMED = ("events", "predictions", "dead_letters", "recoveries")
_SUMMED_BY_MODEL = ("predictions", "dead_letters")


class WorkerTotals:
    """The sums of `progress` and `stopped` lines, by worker.

    Attributes:
        left: Offsets before the end that nobody passed, as whoever stopped last said; None if nobody could.
    """

    def __init__(self) -> None:
        self.left: int | None = None
        self._before: Counter[tuple[str, ...]] = Counter()
        self._now: dict[int, Mapping[str, Any]] = {}
        self._swaps: dict[int, int] = {}
        self._swaps_before: dict[int, int] = {}
        self._live: int | None = None
        self._live_models: dict[str, int | None] = {}

    def tell(self, worker: int, line: Mapping[str, Any]) -> None:
        """Takes the latest figures of a worker."""
        self._now[worker] = line
        self._swaps[worker] = self._swaps_before.get(worker, 0) + int(line["swaps"])
        if line["live"] is not None:
            self._live = line["live"]
        for model, figures in line.get("models", {}).items():
            if figures["live"] is not None or model not in self._live_models:
                self._live_models[model] = figures["live"]
        if "left" in line:  # what the whole group has left: whoever stopped last knows best
            self.left = line["left"]

    def end(self, worker: int) -> None:
        """The worker's process is gone; the next one counts from nothing."""
        line = self._now.pop(worker, None)
        if line is not None:
            self._before.update(_counts(line))
        self._swaps_before[worker] = self._swaps.get(worker, 0)

    def counts(self) -> dict[str, Any]:
        """What was done since the start, and what was live last; of several models also each one's."""
        summed = Counter(self._before)
        for line in self._now.values():
            summed.update(_counts(line))
        figures: dict[str, Any] = {name: summed[name,] for name in _SUMMED}
        figures |= {"swaps": max(self._swaps.values(), default=0), "live": self._live}
        if self._live_models:
            figures["models"] = {
                model: {"live": live, **{name: summed[model, name] for name in _SUMMED_BY_MODEL}}
                for model, live in self._live_models.items()
            }
        return figures

    def figures(self) -> dict[str, Any]:
        """`counts`, and how those who run now fare."""
        lags = [line["lag"] for line in self._now.values() if line["lag"] is not None]
        rate = sum(float(line["events_per_s"]) for line in self._now.values())
        return {**self.counts(), "events_per_s": round(rate, 1), "lag": sum(lags) if lags else None}


def _counts(line: Mapping[str, Any]) -> Mapping[tuple[str, ...], int]:
    """What is summed of a line: `(name,)`, and `(model, name)` where there are several models."""
    models = line.get("models", {})
    return {
        **{(name,): int(line[name]) for name in _SUMMED},
        **{(model, name): int(figures[name]) for model, figures in models.items() for name in _SUMMED_BY_MODEL},
    }
