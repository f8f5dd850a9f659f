"""The log, as both sides see it: a small typed seam with two implementations.

`modelcast.kafka` is the real one (confluent-kafka); `modelcast.testing.memory` is an in-memory log for tests.

Rules every implementation obeys (`tests/log_contract.py` runs them on both):
- A reader yields the records of each partition in offset order, with no consumer group. With `committed=True` it yields
  nothing of an open or aborted transaction and nothing behind an open one.
- `end_offsets(committed=False)` is the true end of the log. It is the only end that proves "everything was read": with
  another transaction open, the committed end (the last stable offset) is earlier.
- A reader's `position` passes transaction markers: `position >= end` is reached even if the last entries are markers.
- `commit` and `abort` return when the outcome is decided. Markers follow within milliseconds: until then the committed
  end stays behind the true one, so a reader that reads up to the true end does see what was committed before.
- Deliveries are idempotent and acknowledged by all replicas. `flush` raises if any record since the last flush failed.
- Taking a transactional id fences its earlier holder and ends what it left open. A fenced writer raises FencedError
  from then on, and nothing it wrote in its open transaction becomes visible.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

# What a reader's start may say instead of offsets.
BEGINNING = -2


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One record as it stands in a partition; a `value` of None is a tombstone."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic to be created. `replication_factor=-1` is the broker's default."""

    name: str
    partitions: int
    replication_factor: int = -1
    configs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TopicDescription:
    """A topic that exists, with its effective configuration."""

    name: str
    partitions: int
    configs: Mapping[str, str]


# Called with (partition, offset) once a record is acknowledged.
OnAck = Callable[[int, int], None]


class LogReader(Protocol):
    """Reads given partitions of one topic from given offsets; not thread-safe."""

    def poll(self, timeout_s: float) -> Sequence[LogRecord]:
        """Whatever has arrived; waits at most `timeout_s`, less when the position moved without a record.

        Raises:
            OffsetOutOfRangeError: A partition's offset is before its first or past its end.
            BrokerError: The broker refuses; one that is only away is waited for.
        """

    def position(self, partition: int) -> int:
        """The next offset this reader will look at: everything before it was yielded, is a marker, or was aborted."""

    def seek(self, partition: int, offset: int) -> None:
        """Goes to `offset` (or `BEGINNING`) of a partition."""

    def close(self) -> None: ...


class LogWriter(Protocol):
    """Appends records; thread-safe."""

    def send(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        partition: int | None = None,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
        on_ack: OnAck | None = None,
    ) -> None:
        """Queues one record, waiting while the queue is full.

        Raises:
            TopicNotFoundError: There is no such topic; it is never created by sending.
            BrokerError: The record can never be delivered (too large), or the writer is broken.
            FencedError: Another writer took the transactional id.
        """

    def flush(self, timeout_s: float) -> None:
        """Waits until every queued record is acknowledged; raises BrokerError if one failed or the time is up."""

    def close(self) -> None:
        """Ends at once; what was not flushed may be lost."""


class TransactionalWriter(LogWriter, Protocol):
    """A writer whose records become visible together at `commit`."""

    def begin(self) -> None:
        """Opens a transaction; raises FencedError if the id was taken over."""

    def commit(self) -> None:
        """Makes everything since `begin` visible.

        Raises:
            FencedError: Another writer took the id: start over from a new writer and read what is there.
            OutcomeUnknownError: The answer never came: take a new writer with the same id and read what is there.
            BrokerError: The transaction was aborted; nothing is visible. Where a record was refused, the next
                transaction may be refused once too: the lost record leaves a gap in the broker's sequence.
        """

    def abort(self) -> None:
        """Drops everything since `begin`; allowed in every state, never raises."""


class Log(Protocol):
    """A connection to a log; thread-safe. Use as a context manager."""

    def topics(self) -> Mapping[str, int]:
        """Names of all topics with their partition counts. Raises BrokerError when no broker answers."""

    def describe(self, topic: str, *, writing: bool = False) -> TopicDescription:
        """Raises TopicNotFoundError, BrokerError; `writing` says what for, to whom may not even see the topic."""

    def create(self, spec: TopicSpec) -> bool:
        """Creates a topic; False if it was there already. Waits until it can be written."""

    def begin_offsets(self, topic: str) -> Mapping[int, int]:
        """The first offset of each partition."""

    def end_offsets(self, topic: str, *, committed: bool) -> Mapping[int, int]:
        """One past the last offset of each partition: the last stable offset if `committed`, else the true end."""

    def reader(self, topic: str, start: Mapping[int, int], *, committed: bool = True) -> LogReader:
        """A reader of the partitions that are keys of `start`, from those offsets (`BEGINNING` allowed)."""

    def writer(self) -> LogWriter:
        """An idempotent writer, acks=all."""

    def transactional_writer(self, transactional_id: str, *, timeout_ms: int) -> TransactionalWriter:
        """Takes a transactional id (`init_transactions`), fencing its holder."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
