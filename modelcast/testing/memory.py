"""`MemoryLog`: a log in memory that keeps the rules of `modelcast.log`, for tests that need no broker.

What it has of Kafka: offsets per partition, transactions whose markers occupy offsets, the last stable offset, both
isolation levels, fencing, acknowledgements served by `send` and `flush`, the size limits of clients and topics.
What it has not: compaction, retention, transaction timeouts, groups.

    log = MemoryLog()
    log.create(TopicSpec("t", partitions=1))
    writer = log.writer()
    writer.send("t", key=b"k", value=b"v")
    assert log.reader("t", {0: BEGINNING}).poll(1.0)[0].value == b"v"

One lock (a condition) guards everything; a reader that waits is woken by every append and every end of a transaction.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from threading import Condition
from types import TracebackType
from typing import Final, Self

from modelcast.errors import (
    BrokerError,
    FencedError,
    ModelcastError,
    OffsetOutOfRangeError,
    RecordTooLargeError,
    TopicNotFoundError,
    UsageError,
)
from modelcast.log import BEGINNING, LogRecord, OnAck, TopicDescription, TopicSpec

# librdkafka's default `message.max.bytes`, over key and value.
CLIENT_MAX_RECORD_BYTES: Final = 1_000_000
# What a batch adds around a single record; the broker's limit is on the batch.
_BATCH_OVERHEAD_BYTES: Final = 70
# A reader hands out at most this many records a poll, as the real one does.
_MAX_RECORDS: Final = 1_000

# A broker's defaults for what a topic does not set.
DEFAULT_CONFIGS: Final[Mapping[str, str]] = {
    "cleanup.policy": "delete",
    "compression.type": "producer",
    "delete.retention.ms": "86400000",
    "max.message.bytes": "1048588",
    "message.timestamp.type": "CreateTime",
    "min.insync.replicas": "1",
    "retention.bytes": "-1",
    "retention.ms": "604800000",
    "segment.ms": "604800000",
}


class _Outcome(Enum):
    OPEN = auto()
    COMMITTED = auto()
    ABORTED = auto()


@dataclass(slots=True, eq=False)
class _Transaction:
    outcome: _Outcome = _Outcome.OPEN
    first_offsets: dict[tuple[str, int], int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Entry:
    """One offset: a record, or a transaction marker where `record` is None."""

    record: LogRecord | None
    transaction: _Transaction | None = None

    def is_visible(self, *, committed: bool) -> bool:
        if self.record is None:
            return False
        return not committed or self.transaction is None or self.transaction.outcome is _Outcome.COMMITTED


@dataclass(slots=True, eq=False)
class _Topic:
    description: TopicDescription
    partitions: list[list[_Entry]]


@dataclass(slots=True, eq=False)
class _Holder:
    """Who has a transactional id: the epoch grows with each new holder, and older ones are fenced."""

    epoch: int = 0
    open: _Transaction | None = None


class MemoryLog:
    """A `modelcast.log.Log` in memory. Thread-safe.

    Args:
        clock: Epoch seconds, for records without a timestamp.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._changed = Condition()
        self._topics: dict[str, _Topic] = {}
        self._holders: dict[str, _Holder] = {}

    def topics(self) -> Mapping[str, int]:
        """Names of all topics with their partition counts."""
        with self._changed:
            return {name: len(topic.partitions) for name, topic in self._topics.items()}

    def describe(self, topic: str, *, writing: bool = False) -> TopicDescription:  # noqa: ARG002
        """Partition count and effective settings. Raises TopicNotFoundError."""
        with self._changed:
            return self._topic(topic).description

    def create(self, spec: TopicSpec) -> bool:
        """Creates a topic; False if it was there already."""
        with self._changed:
            if spec.name in self._topics:
                return False
            description = TopicDescription(spec.name, spec.partitions, {**DEFAULT_CONFIGS, **spec.configs})
            self._topics[spec.name] = _Topic(description, [[] for _ in range(spec.partitions)])
            return True

    def begin_offsets(self, topic: str) -> Mapping[int, int]:
        """The first offset of each partition: always 0, nothing is ever deleted."""
        with self._changed:
            return dict.fromkeys(range(len(self._topic(topic).partitions)), 0)

    def end_offsets(self, topic: str, *, committed: bool) -> Mapping[int, int]:
        """One past the last offset of each partition: the last stable offset if `committed`, else the true end."""
        with self._changed:
            partitions = range(len(self._topic(topic).partitions))
            return {partition: self._end(topic, partition, committed=committed) for partition in partitions}

    def reader(self, topic: str, start: Mapping[int, int], *, committed: bool = True) -> MemoryReader:
        """A reader of the partitions that are keys of `start`, from those offsets (`BEGINNING` allowed)."""
        with self._changed:
            for partition in start:
                self._entries(topic, partition)
        return MemoryReader(self, topic, start, committed=committed)

    def writer(self) -> MemoryWriter:
        """A writer."""
        return MemoryWriter(self)

    def transactional_writer(self, transactional_id: str, *, timeout_ms: int) -> MemoryTransactionalWriter:  # noqa: ARG002 - time does not end transactions here
        """Takes a transactional id, fencing its holder and aborting what that left open."""
        with self._changed:
            holder = self._holders.setdefault(transactional_id, _Holder())
            holder.epoch += 1
            if holder.open is not None:
                self._end_transaction(holder, _Outcome.ABORTED)
            return MemoryTransactionalWriter(self, transactional_id, holder.epoch)

    def close(self) -> None:
        """Does nothing: the log lives as long as its object."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _topic(self, name: str) -> _Topic:
        if name not in self._topics:
            raise TopicNotFoundError(f"there is no topic {name!r}")
        return self._topics[name]

    def _entries(self, topic: str, partition: int) -> list[_Entry]:
        partitions = self._topic(topic).partitions
        if not 0 <= partition < len(partitions):
            raise TopicNotFoundError(f"topic {topic!r} has no partition {partition}: it has {len(partitions)}")
        return partitions[partition]

    def _end(self, topic: str, partition: int, *, committed: bool) -> int:
        """The true end, or the last stable offset: where the earliest open transaction began."""
        end = len(self._entries(topic, partition))
        if not committed:
            return end
        opened = (holder.open.first_offsets for holder in self._holders.values() if holder.open is not None)
        return min((firsts.get((topic, partition), end) for firsts in opened), default=end)

    def _append(self, record: LogRecord, transaction: _Transaction | None) -> int:
        """Puts one record at the end of its partition; returns its offset. The caller holds the lock."""
        entries = self._entries(record.topic, record.partition)
        placed = LogRecord(
            record.topic,
            record.partition,
            len(entries),
            record.timestamp_ms,
            record.key,
            record.value,
            record.headers,
        )
        entries.append(_Entry(placed, transaction))
        if transaction is not None:
            transaction.first_offsets.setdefault((record.topic, record.partition), placed.offset)
        self._changed.notify_all()
        return placed.offset

    def _end_transaction(self, holder: _Holder, outcome: _Outcome) -> None:
        """Decides the open transaction and writes its markers. The caller holds the lock."""
        if holder.open is not None:
            holder.open.outcome = outcome
            for topic, partition in sorted(holder.open.first_offsets):
                self._entries(topic, partition).append(_Entry(None))
            holder.open = None
            self._changed.notify_all()


class MemoryReader:
    """A `modelcast.log.LogReader` of a MemoryLog; not thread-safe."""

    def __init__(self, log: MemoryLog, topic: str, start: Mapping[int, int], *, committed: bool) -> None:
        self._log = log
        self._topic = topic
        self._committed = committed
        self._positions = dict(start)

    def poll(self, timeout_s: float) -> Sequence[LogRecord]:
        """Whatever there is; waits at most `timeout_s`, less when a position moved without a record.

        Raises:
            OffsetOutOfRangeError: A partition's offset is past its end.
        """
        deadline = time.monotonic() + timeout_s
        with self._log._changed:
            while True:
                before = dict(self._positions)
                records = self._take()
                left_s = deadline - time.monotonic()
                if records or self._positions != before or left_s <= 0:
                    return records
                self._log._changed.wait(left_s)

    def position(self, partition: int) -> int:
        """The next offset this reader will look at; `BEGINNING` until its first poll."""
        return self._positions[partition]

    def seek(self, partition: int, offset: int) -> None:
        """Goes to `offset` (or `BEGINNING`) of a partition."""
        self._positions[partition] = offset

    def close(self) -> None:
        """Does nothing: a reader holds no resources."""

    def _take(self) -> list[LogRecord]:
        records: list[LogRecord] = []
        for partition, position in self._positions.items():
            entries = self._log._entries(self._topic, partition)
            offset = 0 if position == BEGINNING else position
            if offset > len(entries):
                raise OffsetOutOfRangeError(
                    f"can't read topic {self._topic!r}, partition {partition} from offset {offset}: "
                    f"it ends at {len(entries)}"
                )
            end = self._log._end(self._topic, partition, committed=self._committed)
            while offset < end and len(records) < _MAX_RECORDS:
                entry = entries[offset]
                if entry.record is not None and entry.is_visible(committed=self._committed):
                    records.append(entry.record)
                offset += 1
            self._positions[partition] = offset
        return records


class MemoryWriter:
    """A `modelcast.log.LogWriter` of a MemoryLog. Thread-safe."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._acks: list[tuple[OnAck, int, int]] = []
        self._failures: list[ModelcastError] = []
        self._sent = 0

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
        """Appends one record; its acknowledgement is served by the next `send` or `flush`.

        Raises:
            TopicNotFoundError: There is no such topic or partition.
            RecordTooLargeError: The record is larger than a client may send.
        """
        size = len(key or b"") + len(value or b"")
        if size > CLIENT_MAX_RECORD_BYTES:
            raise RecordTooLargeError(f"can't send to topic {topic!r}: a record of {size} bytes is too large")
        self._serve_acks()
        with self._log._changed:
            found = self._log._topic(topic)
            place = self._place(key, len(found.partitions)) if partition is None else partition
            limit = int(found.description.configs["max.message.bytes"])
            if size + _BATCH_OVERHEAD_BYTES > limit:
                self._failures.append(RecordTooLargeError(f"can't deliver to topic {topic!r}: over {limit} bytes"))
                return
            now_ms = int(self._log._clock() * 1000) if timestamp_ms is None else timestamp_ms
            offset = self._log._append(
                LogRecord(topic, place, -1, now_ms, key, value, tuple(headers)), self._transaction()
            )
            if on_ack is not None:
                self._acks.append((on_ack, place, offset))

    def flush(self, timeout_s: float) -> None:  # noqa: ARG002 - nothing here takes time
        """Serves acknowledgements; raises the first failure since the last flush."""
        self._serve_acks()
        with self._log._changed:
            failures, self._failures = self._failures, []
        if failures:
            raise failures[0]

    def close(self) -> None:
        """Ends the writer."""

    def _transaction(self) -> _Transaction | None:
        """What a record belongs to; raises if none may be added."""
        return None

    def _serve_acks(self) -> None:
        with self._log._changed:
            acks, self._acks = self._acks, []
        for on_ack, partition, offset in acks:  # outside the lock: a callback may use the log
            on_ack(partition, offset)

    def _place(self, key: bytes | None, partitions: int) -> int:
        if key is not None:
            return zlib.crc32(key) % partitions
        self._sent += 1
        return self._sent % partitions


class MemoryTransactionalWriter(MemoryWriter):
    """A `modelcast.log.TransactionalWriter` of a MemoryLog."""

    def __init__(self, log: MemoryLog, transactional_id: str, epoch: int) -> None:
        super().__init__(log)
        self._id = transactional_id
        self._epoch = epoch

    def begin(self) -> None:
        """Opens a transaction; raises FencedError if the id was taken over."""
        with self._log._changed:
            holder = self._holder()
            if holder.open is not None:
                raise UsageError(f"a transaction of {self._id!r} is open already", hint="Commit or abort it first.")
            holder.open = _Transaction()

    def commit(self) -> None:
        """Makes everything since `begin` visible.

        Raises:
            FencedError: Another writer took the id.
            BrokerError: A record could not be delivered; the transaction was aborted.
        """
        self._serve_acks()
        with self._log._changed:
            self._transaction()
            failures, self._failures = self._failures, []
            outcome = _Outcome.ABORTED if failures else _Outcome.COMMITTED
            self._log._end_transaction(self._holder(), outcome)
        if failures:
            raise BrokerError(f"{failures[0].message}; the transaction was aborted")

    def abort(self) -> None:
        """Drops everything since `begin`; allowed in every state, never raises."""
        with self._log._changed:
            self._failures = []
            holder = self._log._holders[self._id]
            if holder.epoch == self._epoch:
                self._log._end_transaction(holder, _Outcome.ABORTED)

    def close(self) -> None:
        """Aborts what is open."""
        self.abort()

    def _transaction(self) -> _Transaction:
        holder = self._holder()
        if holder.open is None:
            raise UsageError(f"no transaction of {self._id!r} is open", hint="Call begin() first.")
        return holder.open

    def _holder(self) -> _Holder:
        holder = self._log._holders[self._id]
        if holder.epoch != self._epoch:
            raise FencedError(f"transactional id {self._id!r} was taken by another writer")
        return holder
