"""`FaultyLog`: a log that keeps its promises and no more, for tests of what stands on it.

It wraps a log, in memory or real, and does what brokers, networks and other clients do within the rules of
`modelcast.log`: `faults.py` says what each fault is. Each share is a probability from 0 to 1. With the same seed and
the same calls in the same order, the same happens.

    log = FaultyLog(MemoryGroupLog(), Faults(reorder=0.2, duplicate=0.2, delay=0.5), seed=7)
    with log.away():
        log.topics()  # raises BrokerError
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self, cast

from modelcast.errors import BrokerError
from modelcast.group import GroupLog
from modelcast.log import (
    Log,
    LogReader,
    LogRecord,
    LogWriter,
    OnAck,
    TopicDescription,
    TopicSpec,
    TransactionalWriter,
)

from .faults import NONE, WINDOW_RECORDS, Doubt, Faults, Troubled
from .faulty_group import FaultyBatchProducer, FaultyGroupConsumer, FaultyGroupProgress, FaultyTransactionalProducer


class FaultyLog(Troubled):
    """A `modelcast.group.GroupLog` with faults. Thread-safe; its clients as far as those of the wrapped log are.

    Args:
        log: The log that holds everything; one without groups does for whoever needs none.
        faults: How often what happens; may be changed at any time by setting `faults`.
        seed: Of the faults' dice.
    """

    def __init__(self, log: Log, faults: Faults = NONE, *, seed: int = 0) -> None:
        super().__init__(faults, seed)
        self._log = log

    def topics(self) -> Mapping[str, int]:
        """As the wrapped log's, if somebody answers."""
        return self.ask("list the topics", self._log.topics)

    def describe(self, topic: str, *, writing: bool = False) -> TopicDescription:
        """As the wrapped log's, if somebody answers."""
        return self.ask(f"describe topic {topic!r}", lambda: self._log.describe(topic, writing=writing))

    def create(self, spec: TopicSpec) -> bool:
        """As the wrapped log's, if somebody answers."""
        return self.ask(f"create topic {spec.name!r}", lambda: self._log.create(spec))

    def begin_offsets(self, topic: str) -> Mapping[int, int]:
        """As the wrapped log's, if somebody answers."""
        return self.ask(f"read the offsets of topic {topic!r}", lambda: self._log.begin_offsets(topic))

    def end_offsets(self, topic: str, *, committed: bool) -> Mapping[int, int]:
        """As the wrapped log's, if somebody answers."""
        return self.ask(
            f"read the offsets of topic {topic!r}", lambda: self._log.end_offsets(topic, committed=committed)
        )

    def reader(self, topic: str, start: Mapping[int, int], *, committed: bool = True) -> FaultyReader:
        """A reader with reorder (between partitions) and delay."""
        read = self.ask(f"read topic {topic!r}", lambda: self._log.reader(topic, start, committed=committed))
        return FaultyReader(self, read, start)

    def writer(self) -> FaultyWriter:
        """A writer with reorder, duplicate and cut."""
        return FaultyWriter(self, self.ask("connect", self._log.writer))

    def transactional_writer(self, transactional_id: str, *, timeout_ms: int) -> FaultyTransactionalWriter:
        """A writer whose commits may be cut; what it writes is neither reordered nor doubled, nor is it by Kafka."""
        writer = self.ask(
            f"take transactional id {transactional_id!r}",
            lambda: self._log.transactional_writer(transactional_id, timeout_ms=timeout_ms),
        )
        return FaultyTransactionalWriter(self, writer)

    def group_consumer(
        self, group: str, *, instance: str | None = None, session_timeout_ms: int, committed: bool = True
    ) -> FaultyGroupConsumer:
        """A member of a consumer group, with delay."""
        log = cast("GroupLog", self._log)
        made = self.ask(
            f"join group {group!r}",
            lambda: log.group_consumer(
                group, instance=instance, session_timeout_ms=session_timeout_ms, committed=committed
            ),
        )
        return FaultyGroupConsumer(self, made)

    def group_progress(self, group: str) -> FaultyGroupProgress:
        """The offsets of a group that nobody joins, if somebody answers."""
        log = cast("GroupLog", self._log)
        return FaultyGroupProgress(self, self.ask(f"ask for group {group!r}", lambda: log.group_progress(group)))

    def batch_producer(self) -> FaultyBatchProducer:
        """A producer for the data plane whose flushes may be cut."""
        return FaultyBatchProducer(self, self.ask("connect", cast("GroupLog", self._log).batch_producer))

    def transactional_batch_producer(self, transactional_id: str, *, timeout_ms: int) -> FaultyTransactionalProducer:
        """A producer for the data plane whose commits may be cut."""
        log = cast("GroupLog", self._log)
        made = self.ask(
            f"take transactional id {transactional_id!r}",
            lambda: log.transactional_batch_producer(transactional_id, timeout_ms=timeout_ms),
        )
        return FaultyTransactionalProducer(self, made)

    def close(self) -> None:
        """Closes the wrapped log."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FaultyLog({self._log!r}, {self.faults}, seed={self.seed})"


class FaultyReader:
    """A `modelcast.log.LogReader` with faults."""

    def __init__(self, log: Troubled, reader: LogReader, start: Mapping[int, int]) -> None:
        self._log = log
        self._reader = reader
        self._kept: dict[int, list[LogRecord]] = {partition: [] for partition in start}

    def poll(self, timeout_s: float) -> Sequence[LogRecord]:
        """As the wrapped reader's: each partition in its order, if not all at once. Waits while nobody answers."""
        if not self._log.wait_present(timeout_s):
            return []
        if not any(self._kept.values()):
            for record in self._reader.poll(timeout_s):
                self._kept[record.partition].append(record)
        faults = self._log.faults
        waiting = self._interleaved() if self._log.happens(faults.reorder) else self._in_turn()
        if waiting and self._log.happens(faults.delay):
            waiting = waiting[: self._log.draw(len(waiting))]
        for record in waiting:
            self._kept[record.partition].remove(record)
        return waiting

    def position(self, partition: int) -> int:
        """The next offset that `poll` will look at."""
        kept = self._kept[partition]
        return kept[0].offset if kept else self._reader.position(partition)

    def seek(self, partition: int, offset: int) -> None:
        """Goes to `offset` (or `BEGINNING`) of a partition."""
        self._kept[partition].clear()
        self._reader.seek(partition, offset)

    def close(self) -> None:
        """Closes the wrapped reader."""
        self._reader.close()

    def _in_turn(self) -> list[LogRecord]:
        return [record for kept in self._kept.values() for record in kept]

    def _interleaved(self) -> list[LogRecord]:
        left = [list(reversed(kept)) for kept in self._kept.values() if kept]
        found: list[LogRecord] = []
        while left:
            place = self._log.draw(len(left))
            found.append(left[place].pop())
            if not left[place]:
                del left[place]
        return found


@dataclass(frozen=True, slots=True)
class _Pending:
    """A record on its way."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None
    timestamp_ms: int | None
    headers: Sequence[tuple[str, bytes | None]]
    on_ack: OnAck | None


class FaultyWriter:
    """A `modelcast.log.LogWriter` with faults. Thread-safe as far as the wrapped one, one thread at a time here."""

    def __init__(self, log: Troubled, writer: LogWriter) -> None:
        self._log = log
        self._writer = writer
        self._pending: list[_Pending] = []
        self._known: set[str] = set()

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
        """As the wrapped writer's. The first record of a topic goes at once, and says if there is no such topic."""
        pending = _Pending(topic, key, value, partition, timestamp_ms, headers, on_ack)
        if topic not in self._known:
            if self._log.is_away:
                raise self._log.gone(f"send to topic {topic!r}")
            self._write(pending)
            self._known.add(topic)
            return
        self._pending.append(pending)
        faults = self._log.faults
        window = WINDOW_RECORDS if faults.reorder or faults.cut or self._log.is_away else 0
        while len(self._pending) > window and not self._log.is_away:
            self._write(self._next())

    def flush(self, timeout_s: float) -> None:
        """Writes what is on its way.

        Raises:
            BrokerError: Nobody answers (all of it stays on its way), or the connection was cut (a part is lost).
        """
        if not self._log.wait_present(timeout_s):
            raise self._log.gone("deliver what was sent")
        cut = self._log.happens(self._log.faults.cut)
        left = self._log.draw(len(self._pending) + 1) if cut else 0
        while len(self._pending) > left:
            self._write(self._next())
        self._pending.clear()
        self._writer.flush(timeout_s)
        if cut:
            raise BrokerError(f"{left} records were not delivered: the connection was cut", hint="Send them again.")

    def close(self) -> None:
        """Ends at once: what was not flushed is lost."""
        self._pending.clear()
        self._writer.close()

    def _next(self) -> _Pending:
        early = len(self._pending) > 1 and self._log.happens(self._log.faults.reorder)
        return self._pending.pop(self._log.draw(len(self._pending)) if early else 0)

    def _write(self, record: _Pending) -> None:
        for again in range(1 + self._log.happens(self._log.faults.duplicate)):
            self._writer.send(
                record.topic,
                key=record.key,
                value=record.value,
                partition=record.partition,
                timestamp_ms=record.timestamp_ms,
                headers=record.headers,
                on_ack=None if again else record.on_ack,
            )


class FaultyTransactionalWriter:
    """A `modelcast.log.TransactionalWriter` whose connection may be cut."""

    def __init__(self, log: Troubled, writer: TransactionalWriter) -> None:
        self._log = log
        self._writer = writer
        self._doubt = Doubt(log)

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
        """As the wrapped writer's."""
        self._writer.send(
            topic,
            key=key,
            value=value,
            partition=partition,
            timestamp_ms=timestamp_ms,
            headers=headers,
            on_ack=on_ack,
        )

    def flush(self, timeout_s: float) -> None:
        """As the wrapped writer's, if somebody answers."""
        self._log.ask("deliver what was sent", lambda: self._writer.flush(timeout_s))

    def begin(self) -> None:
        """Opens a transaction, which asks nobody."""
        self._doubt.check()
        self._writer.begin()

    def commit(self) -> None:
        """As the wrapped writer's. Raises OutcomeUnknownError, from then on too, where the answer was lost."""
        self._doubt.commit(self._writer.commit)

    def abort(self) -> None:
        """Drops everything since `begin`; what nobody hears of stays open until the id is taken anew."""
        if not self._doubt.broken and not self._log.is_away:
            self._writer.abort()

    def close(self) -> None:
        """Ends the wrapped writer, which aborts; where nobody hears of it, what is open stays open."""
        if not self._doubt.broken and not self._log.is_away:
            self._writer.close()
