"""`MemoryGroupLog`: a `MemoryLog` with consumer groups and the data plane's producers, and with faults on demand.

What it has of Kafka: eager rebalances (nobody is assigned before everybody gave up), generations that refuse offsets of
an older one, static instances that fence each other, read_committed consumption whose positions pass markers, offsets
that become visible with their transaction, and commits whose reply is lost.
What it has not: session timeouts (`lose` stands in for one), the incremental protocols, queues that fill up.

    log = MemoryGroupLog()
    log.next_commits.append(CommitFault.REPLY_LOST_COMMITTED)
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, cast

from modelcast.errors import BrokerError, FencedError, OutcomeUnknownError
from modelcast.group import COMMITTED_TIMEOUT_S, GroupMetadata, OnPartitions, Progress
from modelcast.log import LogRecord
from modelcast.testing.memory import MemoryLog, MemoryTransactionalWriter, MemoryWriter


class CommitFault(Enum):
    """What becomes of a commit."""

    NONE = auto()
    ABORTED = auto()
    REPLY_LOST_COMMITTED = auto()
    REPLY_LOST_ABORTED = auto()
    FENCED = auto()


@dataclass(frozen=True, slots=True)
class MemoryMessage:
    """A `modelcast.group.Message`."""

    record: LogRecord

    def key(self) -> bytes | None:
        return self.record.key

    def value(self) -> bytes | None:
        return self.record.value

    def partition(self) -> int:
        return self.record.partition

    def offset(self) -> int:
        return self.record.offset

    def timestamp(self) -> tuple[int, int]:
        return 1, self.record.timestamp_ms

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        return list(self.record.headers) or None

    def set_headers(self, headers: list[Any], /) -> None:
        """Nothing: these can always be read."""


@dataclass(slots=True, eq=False)
class _Group:
    members: list[MemoryGroupConsumer] = field(default_factory=list)
    generation: int = 0
    committed: dict[tuple[str, int], int] = field(default_factory=dict)
    notes: dict[tuple[str, int], str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Metadata:
    group: str
    member: MemoryGroupConsumer | None  # None: of a group that nobody joins
    generation: int


class MemoryGroupLog(MemoryLog):
    """A `modelcast.group.GroupLog` in memory. Thread-safe, its clients as far as the real ones are.

    Attributes:
        next_commits: What becomes of the next commits, one each; none is left, all go well.
        commits: Offsets of every transaction committed, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self._groups: dict[str, _Group] = {}
        self.next_commits: deque[CommitFault] = deque()
        self.commits: list[Mapping[int, int]] = []

    def group_consumer(
        self,
        group: str,
        *,
        instance: str | None = None,
        session_timeout_ms: int,  # noqa: ARG002 - time ends no session here
        committed: bool = True,
    ) -> MemoryGroupConsumer:
        """A member of a consumer group; it joins with its first `consume`."""
        with self._changed:
            self._groups.setdefault(group, _Group())
        return MemoryGroupConsumer(self, group, instance, committed=committed)

    def group_progress(self, group: str) -> MemoryGroupProgress:
        """The offsets of a group that nobody joins."""
        with self._changed:
            self._groups.setdefault(group, _Group())
        return MemoryGroupProgress(self, group)

    def batch_producer(self) -> MemoryBatchProducer:
        """A producer for the data plane."""
        return MemoryBatchProducer(self.writer())

    def transactional_batch_producer(self, transactional_id: str, *, timeout_ms: int) -> MemoryTransactionalProducer:
        """Takes a transactional id for the data plane, fencing its holder."""
        return MemoryTransactionalProducer(self, self.transactional_writer(transactional_id, timeout_ms=timeout_ms))

    def committed_offsets(self, group: str, topic: str) -> Mapping[int, int]:
        """The group's committed offsets, by partition."""
        with self._changed:
            found = self._groups[group].committed
            return {partition: offset for (name, partition), offset in found.items() if name == topic}

    def lose(self, consumer: MemoryGroupConsumer) -> None:
        """The broker thinks this member dead: the others get its partitions."""
        with self._changed:
            group = self._groups[consumer.group]
            group.members.remove(consumer)
            group.generation += 1
            consumer.joined = False
            consumer.lost = True

    def take_offsets(
        self, metadata: _Metadata, topic: str, offsets: Mapping[int, int], notes: Mapping[int, str] | None = None
    ) -> None:
        """Makes offsets the group's; the caller has checked the generation."""
        group = self._groups[metadata.group]
        for partition, offset in offsets.items():
            group.committed[topic, partition] = offset
            group.notes[topic, partition] = (notes or {}).get(partition, "")

    def check_generation(self, metadata: _Metadata) -> None:
        """Raises BrokerError if the member's generation is over, FencedError if its instance is another's now."""
        with self._changed:
            group = self._groups[metadata.group]
            if metadata.member is None:
                return
            if metadata.member.fenced:
                raise FencedError(f"another process runs as instance {metadata.member.instance!r}")
            if metadata.member not in group.members or metadata.generation != group.generation:
                raise BrokerError("the group was rebalanced meanwhile; the transaction was aborted")


class MemoryGroupConsumer:
    """A `modelcast.group.GroupConsumer` of a MemoryGroupLog."""

    def __init__(self, log: MemoryGroupLog, group: str, instance: str | None, *, committed: bool) -> None:
        self._log = log
        self.group = group
        self.instance = instance
        self._isolated = committed
        self.joined = self.lost = self.fenced = False
        self._topic = ""
        self._generation = -1
        self._assigned: list[int] = []
        self._positions: dict[int, int] = {}
        self._paused: set[int] = set()

    def subscribe(self, topic: str, *, on_assign: OnPartitions, on_revoke: OnPartitions, on_lost: OnPartitions) -> None:
        """Joins with the next `consume`."""
        self._topic = topic
        self._on_assign, self._on_revoke, self._on_lost = on_assign, on_revoke, on_lost

    def consume(self, max_messages: int, timeout_s: float) -> Sequence[MemoryMessage]:
        """At most `max_messages`; waits for all of them or the timeout. Raises FencedError."""
        deadline = time.monotonic() + timeout_s
        taken: list[MemoryMessage] = []
        while True:
            self._keep_membership()
            with self._log._changed:
                taken += self._take(max_messages - len(taken))
                left_s = deadline - time.monotonic()
                if len(taken) >= max_messages or left_s <= 0:
                    return taken
                self._log._changed.wait(min(left_s, 0.01))

    def group_metadata(self) -> GroupMetadata:
        """The member's generation now."""
        return GroupMetadata(_Metadata(self.group, self, self._generation))

    def assignment(self) -> Sequence[int]:
        return sorted(self._assigned)

    def positions(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Next offsets to be consumed, past markers."""
        return {partition: self._positions[partition] for partition in partitions if partition in self._positions}

    def committed(
        self,
        partitions: Sequence[int],
        timeout_s: float = COMMITTED_TIMEOUT_S,  # noqa: ARG002 - the Protocol's signature
    ) -> Mapping[int, int]:
        """The group's committed offsets."""
        found = self._log.committed_offsets(self.group, self._topic)
        return {partition: found[partition] for partition in partitions if partition in found}

    def seek(self, offsets: Mapping[int, int]) -> None:
        self._positions.update(offsets)

    def pause(self, partitions: Sequence[int]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        self._paused.difference_update(partitions)

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Raises BrokerError if the group was rebalanced meanwhile."""
        metadata = cast("_Metadata", self.group_metadata())
        self._log.check_generation(metadata)
        with self._log._changed:
            self._log.take_offsets(metadata, self._topic, offsets)

    def close(self) -> None:
        """Gives up the assignment; a static member only goes silent."""
        if self._assigned:
            self._on_revoke(self.assignment())
            self._unassign()
        with self._log._changed:
            if self.joined and self.instance is None:
                self._log._groups[self.group].members.remove(self)
                self._log._groups[self.group].generation += 1
            self.joined = False

    def _keep_membership(self) -> None:
        if self.fenced:
            raise FencedError(f"another process runs as instance {self.instance!r}")
        if self.lost:
            self.lost = False
            self._on_lost(self.assignment())
            self._unassign()
        group = self._log._groups[self.group]
        if not self.joined:
            self._join(group)
        if self._generation == group.generation:
            return
        if self._assigned:
            self._on_revoke(self.assignment())
            self._unassign()
        with self._log._changed:
            if any(member._assigned and member._generation != group.generation for member in group.members):
                return  # somebody has not given up yet
            self._generation = group.generation
            count = len(self._log._topic(self._topic).partitions)
            place = group.members.index(self)
            self._assigned = list(range(count))[place :: len(group.members)]
            committed = self.committed(self._assigned)
            self._positions = {partition: committed.get(partition, 0) for partition in self._assigned}
        self._on_assign(self.assignment())

    def _join(self, group: _Group) -> None:
        with self._log._changed:
            self.joined = True
            for place, member in enumerate(group.members):
                if self.instance is not None and member.instance == self.instance:
                    member.fenced = True
                    group.members[place] = self
                    group.generation += 1
                    return
            group.members.append(self)
            group.generation += 1

    def _unassign(self) -> None:
        self._assigned = []
        self._positions = {}
        self._paused = set()

    def _take(self, limit: int) -> list[MemoryMessage]:
        taken: list[MemoryMessage] = []
        for partition in self._assigned:
            if partition in self._paused:
                continue
            entries = self._log._entries(self._topic, partition)
            end = self._log._end(self._topic, partition, committed=self._isolated)
            while self._positions[partition] < end and len(taken) < limit:
                entry = entries[self._positions[partition]]
                self._positions[partition] += 1
                if entry.record is not None and entry.is_visible(committed=self._isolated):
                    taken.append(MemoryMessage(entry.record))
        return taken


class MemoryGroupProgress:
    """A `modelcast.group.GroupProgress` of a MemoryGroupLog."""

    def __init__(self, log: MemoryGroupLog, group: str) -> None:
        self._log = log
        self._group = group

    def committed(self, topic: str, partitions: Sequence[int]) -> Mapping[int, Progress]:
        """What the group has committed."""
        with self._log._changed:
            group = self._log._groups[self._group]
            return {
                partition: Progress(group.committed[topic, partition], group.notes[topic, partition])
                for partition in partitions
                if (topic, partition) in group.committed
            }

    def metadata(self) -> GroupMetadata:
        """Of no member."""
        return GroupMetadata(_Metadata(self._group, None, -1))

    def close(self) -> None: ...


class MemoryBatchProducer:
    """A `modelcast.group.BatchProducer` of a MemoryGroupLog."""

    def __init__(self, writer: MemoryWriter) -> None:
        self._writer = writer

    def produce_batch(self, topic: str, partition: int, records: list[dict[str, Any]]) -> None:
        """Appends records of one partition in order."""
        for record in records:
            self._writer.send(topic, key=record["key"], value=record["value"], partition=partition)

    def produce(
        self,
        topic: str,
        *,
        key: bytes | None,
        value: bytes | None,
        partition: int,
        timestamp_ms: int | None = None,
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> None:
        """Appends one record."""
        self._writer.send(topic, key=key, value=value, partition=partition, timestamp_ms=timestamp_ms, headers=headers)

    def settle(self, timeout_s: float) -> bool:
        """Raises what failed since the last time."""
        self._writer.flush(timeout_s)
        return True

    def flush(self, timeout_s: float) -> None:
        """Raises what failed since the last flush."""
        self._writer.flush(timeout_s)

    def close(self) -> None:
        self._writer.close()


class MemoryTransactionalProducer(MemoryBatchProducer):
    """A `modelcast.group.TransactionalBatchProducer` of a MemoryGroupLog."""

    def __init__(self, log: MemoryGroupLog, writer: MemoryTransactionalWriter) -> None:
        super().__init__(writer)
        self._log = log
        self._transaction = writer
        self._pending: tuple[str, Mapping[int, int], _Metadata, Mapping[int, str]] | None = None
        self._broken = False

    def begin(self) -> None:
        if self._broken:
            raise OutcomeUnknownError("this producer is in doubt: take a new one")
        self._pending = None
        self._transaction.begin()

    def send_offsets(
        self, topic: str, offsets: Mapping[int, int], metadata: GroupMetadata, notes: Mapping[int, str] | None = None
    ) -> None:
        """Raises BrokerError if the generation is over; the transaction was aborted."""
        known = cast("_Metadata", metadata)
        try:
            self._log.check_generation(known)
        except BrokerError:
            self._transaction.abort()
            raise
        self._pending = (topic, dict(offsets), known, dict(notes or {}))

    def commit(self) -> None:
        """Commits, or fails as `MemoryGroupLog.next_commits` says."""
        fault = self._log.next_commits.popleft() if self._log.next_commits else CommitFault.NONE
        match fault:
            case CommitFault.ABORTED:
                self._transaction.abort()
                raise BrokerError("a record could not be delivered; the transaction was aborted")
            case CommitFault.FENCED:
                self._transaction.abort()
                self._broken = True
                raise FencedError("the transaction timed out, and the coordinator fenced its producer")
            case CommitFault.REPLY_LOST_ABORTED:
                self._broken = True  # stays open until the next holder of the id ends it
                raise OutcomeUnknownError("no answer to the commit")
            case _:
                pass
        with self._log._changed:
            self._transaction.commit()
            if self._pending is not None:
                topic, offsets, metadata, notes = self._pending
                self._log.take_offsets(metadata, topic, offsets, notes)
                self._log.commits.append(offsets)
        if fault is CommitFault.REPLY_LOST_COMMITTED:
            self._broken = True
            raise OutcomeUnknownError("no answer to the commit")

    def abort(self) -> None:
        """Drops everything since `begin`; what is in doubt stays open, as on a broker that does not answer."""
        if not self._broken:
            self._transaction.abort()

    def close(self) -> None:
        self.abort()
