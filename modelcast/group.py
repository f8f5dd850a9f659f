"""The data plane's seam: a member of a consumer group, and the producer that commits its work.

Kept apart from `modelcast.log` because the hot path passes the client library's own messages through untouched: one
Python object an event is all there is time for. `modelcast.kafka` implements it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NewType, Protocol

from modelcast.log import Log

# Offsets stay unstable while a dead holder's transaction is open: its timeout plus the broker's sweep of 10 s.
COMMITTED_TIMEOUT_S: Final = 60.0

# Opaque; taken with a batch and handed back with its commit, so that a commit of a lost generation is refused.
GroupMetadata = NewType("GroupMetadata", object)

# Called inside `consume` with the partitions concerned.
OnPartitions = Callable[[Sequence[int]], None]


class Message(Protocol):
    """One event as the client library holds it."""

    def key(self) -> bytes | None: ...

    def value(self) -> bytes | None: ...

    def partition(self) -> int: ...

    def offset(self) -> int: ...

    def timestamp(self) -> tuple[int, int]:
        """(kind, epoch milliseconds); kind 0 means there is none."""

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        """In their order; None where there are none. Costs what it makes: asked of few events only."""

    def set_headers(self, headers: list[Any], /) -> None:
        """What `headers` returns from now on."""


class GroupConsumer(Protocol):
    """A member of a consumer group on one topic; single-threaded except where said."""

    def subscribe(
        self, topic: str, *, on_assign: OnPartitions, on_revoke: OnPartitions, on_lost: OnPartitions
    ) -> None: ...

    def consume(self, max_messages: int, timeout_s: float) -> Sequence[Message]:
        """At most `max_messages`; waits for all of them or the timeout (0: whatever is there).

        Raises:
            OffsetOutOfRangeError: What the group has not read is gone.
            FencedError: Another process runs as this static instance.
            BrokerError: The broker refuses.
        """

    def group_metadata(self) -> GroupMetadata: ...

    def assignment(self) -> Sequence[int]: ...

    def positions(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Next offsets to be consumed; partitions without one yet are left out."""

    def committed(self, partitions: Sequence[int], timeout_s: float = COMMITTED_TIMEOUT_S) -> Mapping[int, int]:
        """The group's committed offsets (next to be consumed); partitions without one are left out.

        Raises:
            BrokerError: No answer within `timeout_s`, or a transaction holds them open for longer; retriable. Refused.
        """

    def seek(self, offsets: Mapping[int, int]) -> None: ...

    def pause(self, partitions: Sequence[int]) -> None:
        """Hands out nothing of these partitions until `resume`, or until they are given up."""

    def resume(self, partitions: Sequence[int]) -> None: ...

    def commit(self, offsets: Mapping[int, int]) -> None:
        """At-least-once: commits next offsets, waiting for the answer."""

    def close(self) -> None: ...


class BatchProducer(Protocol):
    """Sends whole batches; used by one thread at a time. `flush` says what never arrived."""

    def produce_batch(self, topic: str, partition: int, records: list[dict[str, Any]]) -> None:
        """Records of one partition, in order: dicts with `key` and `value` only. Waits while the queue is full.

        The client library's batch call takes neither headers nor timestamps, and one partition a call.
        """

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
        """One record, with all a record may have."""

    def settle(self, timeout_s: float) -> bool:
        """Whether all is acknowledged within the time; raises BrokerError if anything failed since it last was."""

    def flush(self, timeout_s: float) -> None:
        """Waits until all is acknowledged; raises BrokerError if anything failed since the last flush."""

    def close(self) -> None:
        """Ends at once; what was not flushed may be lost."""


class TransactionalBatchProducer(BatchProducer, Protocol):
    """Sends batches inside transactions that also commit the consumed offsets."""

    def begin(self) -> None: ...

    def send_offsets(
        self, topic: str, offsets: Mapping[int, int], metadata: GroupMetadata, notes: Mapping[int, str] | None = None
    ) -> None:
        """Adds consumed offsets (next to be consumed). `metadata` is that of the batch, never a fresh one.

        `notes` are kept beside the offsets of their partitions (`Progress`), at most 4,096 bytes each.

        Raises BrokerError if refused, as after a rebalance (the transaction was aborted: rewind), FencedError.
        """

    def commit(self) -> None:
        """Raises FencedError, OutcomeUnknownError (drop this producer), BrokerError (aborted; rewind)."""

    def abort(self) -> None:
        """Drops everything since `begin`; allowed in every state, never raises."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What a group has committed for one partition: the next offset, and a note beside it."""

    offset: int
    note: str = ""


class GroupProgress(Protocol):
    """The offsets of a group that nobody joins: they are committed by whoever holds a transactional id."""

    def committed(self, topic: str, partitions: Sequence[int]) -> Mapping[int, Progress]:
        """What the group has committed; partitions without anything are left out."""

    def metadata(self) -> GroupMetadata:
        """For `TransactionalBatchProducer.send_offsets`."""

    def close(self) -> None: ...


class GroupLog(Log, Protocol):
    """A log whose data plane can be used too; what a scorer asks for."""

    def group_consumer(
        self, group: str, *, instance: str | None = None, session_timeout_ms: int, committed: bool = True
    ) -> GroupConsumer:
        """A member of a consumer group; `instance` makes it a static one, whose restart does not rebalance."""

    def group_progress(self, group: str) -> GroupProgress:
        """The offsets of a group that nobody joins."""

    def batch_producer(self) -> BatchProducer:
        """An idempotent producer, acks=all."""

    def transactional_batch_producer(self, transactional_id: str, *, timeout_ms: int) -> TransactionalBatchProducer:
        """Takes a transactional id, fencing its holder."""
