"""Every figure of the demonstration, computed from what was read from the topics at the end. Pure.

- An event is known by the partition and offset it stands at. Each must have exactly one outcome: a prediction or a dead
  letter. Without one it is *lost*; every further one is *duplicated*; one of no known event is *stray*.
- Times are the records' own timestamps and the scorer's report lines, in epoch milliseconds.
- A gap is the time between two consecutive predictions while the feeder was sending. The start of a stretch of sending
  counts as a prediction, so that waiting for the first one is a gap as well.

    >>> outcomes = account(Positions.of([0, 0, 0], [0, 1, 2]), Positions.of([0, 0], [0, 1]), Positions.of([0], [2]))
    >>> outcomes.lost, outcomes.duplicated
    (0, 0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import numpy.typing as npt

from modelcast.demo.training import area_under_curve

Int64s = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# A swap is looked at from this long before it to this long after: longer than a batch and its commit take.
AROUND_SWAP_MS: Final = 1_000
# Partition and offset in one number; no partition holds 2^48 records.
_OFFSET_BITS: Final = 48


@dataclass(frozen=True)
class Positions:
    """Where records stand: partition and offset of each, `[N]`."""

    partitions: Int64s
    offsets: Int64s

    @classmethod
    def of(cls, partitions: Sequence[int], offsets: Sequence[int]) -> Self:
        return cls(np.asarray(partitions, dtype=np.int64), np.asarray(offsets, dtype=np.int64))

    @property
    def keys(self) -> Int64s:
        """One number for each position."""
        return (self.partitions << _OFFSET_BITS) | self.offsets

    def __len__(self) -> int:
        return len(self.offsets)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What became of the events."""

    events: int
    predictions: int
    dead_letters: int
    lost: int
    duplicated: int
    stray: int


@dataclass(frozen=True, slots=True)
class Flow:
    """A stretch of time in which the feeder was sending."""

    start_ms: int
    end_ms: int


@dataclass(frozen=True, slots=True)
class MonthAuc:
    """Area under the ROC curve of one month, of the first model and of what was live.

    Attributes:
        flights: Flights of the month whose arrival delay is known.
    """

    month: int
    frozen: float
    live: float
    flights: int


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and greatest of some times; None of none."""

    median: float | None
    max: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(np.median(values)), float(max(values))) if values else cls(None, None)


def account(events: Positions, predicted: Positions, dead: Positions) -> Outcomes:
    """Counts outcomes against events.

    Args:
        events: Every record of the events topic.
        predicted: The source of every prediction.
        dead: The source of every dead letter.
    """
    known = events.keys
    outcomes, counts = np.unique(np.concatenate([predicted.keys, dead.keys]), return_counts=True)
    of_an_event = np.isin(outcomes, known)
    return Outcomes(
        events=len(events),
        predictions=len(predicted),
        dead_letters=len(dead),
        lost=len(events) - int(of_an_event.sum()),
        duplicated=int((counts[of_an_event] - 1).sum()),
        stray=int(counts[~of_an_event].sum()),
    )


def flight_of_each(predicted: Positions, events: Positions, flight_ids: Int64s) -> Int64s:
    """The flight each prediction is about; -1 for none.

    Args:
        predicted: The source of each prediction, `[N]`.
        events: The events, `[M]`.
        flight_ids: The flight of each event, `[M]`; -1 where the event is not a flight.
    """
    if not len(events):
        return np.full(len(predicted), -1, dtype=np.int64)
    order = np.argsort(events.keys)
    sorted_keys = events.keys[order]
    place = np.minimum(np.searchsorted(sorted_keys, predicted.keys), len(sorted_keys) - 1)
    return np.where(sorted_keys[place] == predicted.keys, flight_ids[order][place], -1)


def live_scores(flights: Int64s, scores: Floats, count: int) -> Floats:
    """The score each flight got in the stream, by flight id, `[count]`; NaN for a flight without one."""
    by_flight = np.full(count, np.nan)
    about_one = flights >= 0
    by_flight[flights[about_one]] = scores[about_one]
    return by_flight


def auc_by_month(
    periods: Int64s, late: npt.NDArray[np.bool_], counted: npt.NDArray[np.bool_], *, frozen: Floats, live: Floats
) -> tuple[MonthAuc, ...]:
    """Compares two sets of scores month by month, on the same flights.

    The first month is left out: the first model was trained on it. So are flights without a score, and months in which
    all flights or none were late.

    Args:
        periods: Month of each flight, `[N]`.
        late: Whether it was late, `[N]`.
        counted: Whether that is known, `[N]`.
        frozen: Scores of the first model, `[N]`.
        live: Scores of whatever was live, `[N]`.
    """
    months = []
    for month in np.unique(periods)[1:].tolist():
        rows = (periods == month) & counted & ~np.isnan(live)
        truth = late[rows]
        if truth.any() and not truth.all():
            months.append(
                MonthAuc(
                    month,
                    frozen=area_under_curve(truth, frozen[rows]),
                    live=area_under_curve(truth, live[rows]),
                    flights=int(rows.sum()),
                )
            )
    return tuple(months)


def longest_gap_ms(times_ms: Int64s, at_ms: int, flows: Sequence[Flow]) -> float | None:
    """The longest gap between consecutive predictions around a moment; None if nothing was being sent then.

    Args:
        times_ms: Timestamps of all predictions, ascending.
        at_ms: The moment.
        flows: When the feeder was sending.
    """
    longest: float | None = None
    for flow in flows:
        start, end = max(flow.start_ms, at_ms - AROUND_SWAP_MS), min(flow.end_ms, at_ms + AROUND_SWAP_MS)
        if start >= end:
            continue
        # A gap that began before the window counts whole, but not from before the sending.
        first = int(np.searchsorted(times_ms, start, side="right"))
        if first and times_ms[first - 1] >= flow.start_ms:
            start = int(times_ms[first - 1])
        last = int(np.searchsorted(times_ms, end, side="right"))
        edges = np.concatenate([[start], times_ms[first:last], [max(end, start)]])
        if last < len(times_ms) and times_ms[last] <= flow.end_ms:
            edges[-1] = times_ms[last]
        gap = float(np.diff(edges).max())
        longest = gap if longest is None else max(longest, gap)
    return longest


def throughput(times_ms: Int64s, *, origin_ms: int, bucket_ms: int) -> tuple[Floats, Floats]:
    """Predictions a second over time.

    Args:
        times_ms: Their timestamps.
        origin_ms: Where time begins.
        bucket_ms: Over how long each figure is counted.

    Returns:
        Middle of each bucket in seconds since the origin, and its predictions a second, both `[B]`.
    """
    if not len(times_ms):
        return np.empty(0), np.empty(0)
    buckets = np.bincount(np.maximum(times_ms - origin_ms, 0) // bucket_ms)
    middles = (np.arange(len(buckets)) + 0.5) * bucket_ms / 1000
    return middles, np.asarray(buckets * (1000 / bucket_ms), dtype=np.float64)
