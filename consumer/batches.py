"""Batches of events: what one holds, and how large the next one may be.

The client library gives one Python object an event; everything else here works on whole batches (`map` over a method of
the library's own class runs no Python code per event).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from modelcast.group import Message

Int64s = npt.NDArray[np.int64]

# Larger batches gain nothing (measured), and make the work that a kill repeats larger.
EVENTS_MAX = 20_000
# Beside the queue of two batches and what the client prefetches, this bounds the memory of large events.
BYTES_MAX = 32 << 20
# How long one batch may take. Far below any max.poll.interval.ms, and short enough to stop or swap within it.
DURATION_S = 0.5
# The first batch of a version whose speed nobody knows.
FIRST_EVENTS = 64
# From 64 events to 20,000 in five batches, without one that takes ten times the bound.
_GROWTH = 4
# Sizes are guessed from this many events of a batch.
_SIZED_EVENTS = 32


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Events as consumed, in order within each partition.

    Attributes:
        timestamps: Epoch milliseconds; -1 where there is none.
        messages: As the client holds them, for what only few events are asked for; empty where nobody holds any.
    """

    keys: list[bytes | None]
    values: list[bytes | None]
    partitions: Int64s
    offsets: Int64s
    timestamps: Int64s
    messages: Sequence[Message] = ()

    @classmethod
    def of(cls, messages: Sequence[Message]) -> EventBatch:
        """Messages of one class, at least one."""
        kind: Any = type(messages[0])
        count = len(messages)
        stamps = np.fromiter(chain.from_iterable(map(kind.timestamp, messages)), np.int64, 2 * count).reshape(count, 2)
        return cls(
            keys=list(map(kind.key, messages)),
            values=list(map(kind.value, messages)),
            partitions=np.fromiter(map(kind.partition, messages), np.int64, count),
            offsets=np.fromiter(map(kind.offset, messages), np.int64, count),
            timestamps=np.where(stamps[:, 0] == 0, -1, stamps[:, 1]),
            messages=messages,
        )

    def __len__(self) -> int:
        return len(self.values)

    def headers_of(self, row: int) -> tuple[tuple[str, bytes | None], ...]:
        """One event's headers, in their order; none of an event whose headers have names that are no text."""
        if not self.messages:
            return ()
        (headers,) = _headers([self.messages[row]])
        return tuple(headers or ())

    def headers(self) -> list[Sequence[tuple[str, bytes | None]] | None]:
        """Every event's headers; costs a call of the client an event."""
        if not self.messages:
            return [None] * len(self)
        return _headers(self.messages)

    def next_offsets(self) -> dict[int, int]:
        """One past the last event, by partition."""
        return self._by_partition(np.max, 1)

    def first_offsets(self) -> dict[int, int]:
        """The first event, by partition."""
        return self._by_partition(np.min, 0)

    def mean_bytes(self) -> float:
        """Guess of an event's size, from some of them."""
        some = self.values[:: max(1, len(self.values) // _SIZED_EVENTS)]
        return sum(len(value or b"") for value in some) / len(some)

    def _by_partition(self, pick: Callable[[Int64s], Any], add: int) -> dict[int, int]:
        return {
            int(partition): int(pick(self.offsets[self.partitions == partition])) + add
            for partition in np.unique(self.partitions)
        }


def _headers(messages: Sequence[Message]) -> list[Sequence[tuple[str, bytes | None]] | None]:
    """Each message's headers; none of one whose headers have names that are no text.

    Of those the client returns a list with an exception, and at the next look the list alone. Whoever goes through it
    ends the process: it has places without an object. So it is taken away at the first look; and that is one by `map`,
    which finds the exception, as the loop of a hot function does not.
    """
    kind: Any = type(messages[0])
    asked = map(kind.headers, messages)
    found: list[Sequence[tuple[str, bytes | None]] | None] = []
    while len(found) < len(messages):
        try:
            found.extend(asked)  # up to the exception
        except (UnicodeDecodeError, SystemError):
            messages[len(found)].set_headers([])
            found.append(None)
    return found


def records_by_partition(
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None],
    partitions: Int64s,
    headers: Sequence[Sequence[tuple[str, bytes | None]]] | None = None,
) -> Mapping[int, list[dict[str, Any]]]:
    """Records as the producer takes them, in order within each partition; with `headers` where any are given."""
    if not len(partitions):
        return {}
    records: list[dict[str, Any]]
    records = [{"key": key, "value": value} for key, value in zip(keys, values, strict=True)]
    if headers is not None:
        for record, own in zip(records, headers, strict=True):
            record["headers"] = own
    # Events come in runs of one partition: runs are copied, not events.
    starts = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist()]
    if len(starts) == 1:
        return {int(partitions[0]): records}
    grouped: dict[int, list[dict[str, Any]]] = {}
    for start, end in zip(starts, [*starts[1:], len(records)], strict=True):
        grouped.setdefault(int(partitions[start]), []).extend(records[start:end])
    return grouped


class BatchSizer:
    """How many events the next batch may have: bounded by count, by bytes and by the time the last ones took.

    Not thread-safe.
    """

    def __init__(self, *, events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX) -> None:
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._version: object = None
        self._limit = min(FIRST_EVENTS, events_max)
        self._seconds_per_event: float | None = None

    @property
    def limit(self) -> int:
        return self._limit

    def expected_s(self, events: int, version: object) -> float | None:
        """How long a batch will take; None for a version whose speed is not known."""
        if version != self._version or self._seconds_per_event is None:
            return None
        return self._seconds_per_event * events

    def record(self, events: int, mean_bytes: float, seconds: float, version: object) -> None:
        """Learns from a batch that `version` scored."""
        if version != self._version:
            # A batch of the old version's size may take the new one minutes.
            self._version, self._seconds_per_event = version, None
            self._limit = min(FIRST_EVENTS, self._events_max)
        per_event = seconds / events
        known = self._seconds_per_event
        # Small batches are all overhead; the mean forgets them within a few large ones.
        self._seconds_per_event = per_event if known is None else (known + per_event) / 2
        by_time = DURATION_S / max(self._seconds_per_event, 1e-9)
        by_bytes = self._bytes_max / max(mean_bytes, 1.0)
        self._limit = max(1, int(min(self._limit * _GROWTH, self._events_max, by_time, by_bytes)))
