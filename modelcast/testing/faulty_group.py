"""The data plane of a `FaultyLog`: a group member and its producers. `faults.py` says what each fault is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelcast.group import (
    COMMITTED_TIMEOUT_S,
    BatchProducer,
    GroupConsumer,
    GroupMetadata,
    GroupProgress,
    Message,
    OnPartitions,
    Progress,
    TransactionalBatchProducer,
)

from .faults import Doubt, Troubled


class FaultyGroupConsumer:
    """A `modelcast.group.GroupConsumer` with delay, which waits while nobody answers."""

    def __init__(self, log: Troubled, consumer: GroupConsumer) -> None:
        self._log = log
        self._consumer = consumer

    def subscribe(self, topic: str, *, on_assign: OnPartitions, on_revoke: OnPartitions, on_lost: OnPartitions) -> None:
        """As the wrapped consumer's."""
        self._consumer.subscribe(topic, on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost)

    def consume(self, max_messages: int, timeout_s: float) -> Sequence[Message]:
        """As the wrapped consumer's, at times fewer or none. Waits while nobody answers."""
        if not self._log.wait_present(timeout_s):
            return []
        if self._log.happens(self._log.faults.delay):
            # Asked for all the same: a member that is late is not one that left its group.
            return self._consumer.consume(self._log.draw(max_messages), 0)
        return self._consumer.consume(max_messages, timeout_s)

    def group_metadata(self) -> GroupMetadata:
        """As the wrapped consumer's: what the client knows, without asking."""
        return self._consumer.group_metadata()

    def assignment(self) -> Sequence[int]:
        """As the wrapped consumer's: what the client knows, without asking."""
        return self._consumer.assignment()

    def positions(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """As the wrapped consumer's: what the client knows, without asking."""
        return self._consumer.positions(partitions)

    def committed(self, partitions: Sequence[int], timeout_s: float = COMMITTED_TIMEOUT_S) -> Mapping[int, int]:
        """As the wrapped consumer's, if somebody answers."""
        return self._log.ask("read committed offsets", lambda: self._consumer.committed(partitions, timeout_s))

    def seek(self, offsets: Mapping[int, int]) -> None:
        """As the wrapped consumer's."""
        self._consumer.seek(offsets)

    def pause(self, partitions: Sequence[int]) -> None:
        """As the wrapped consumer's."""
        self._consumer.pause(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        """As the wrapped consumer's."""
        self._consumer.resume(partitions)

    def commit(self, offsets: Mapping[int, int]) -> None:
        """As the wrapped consumer's, if somebody answers."""
        self._log.ask("commit offsets", lambda: self._consumer.commit(offsets))

    def close(self) -> None:
        """Ends the wrapped consumer."""
        self._consumer.close()


class FaultyGroupProgress:
    """A `modelcast.group.GroupProgress` that hears nothing while nobody answers."""

    def __init__(self, log: Troubled, progress: GroupProgress) -> None:
        self._log = log
        self._progress = progress

    def committed(self, topic: str, partitions: Sequence[int]) -> Mapping[int, Progress]:
        """As the wrapped one's, if somebody answers."""
        return self._log.ask("read committed offsets", lambda: self._progress.committed(topic, partitions))

    def metadata(self) -> GroupMetadata:
        """As the wrapped one's: what the client knows, without asking."""
        return self._progress.metadata()

    def close(self) -> None:
        """Ends the wrapped one."""
        self._progress.close()


class FaultyBatchProducer:
    """A `modelcast.group.BatchProducer` whose flushes may be cut: some of what was sent since the last is in doubt."""

    def __init__(self, log: Troubled, producer: BatchProducer) -> None:
        self._log = log
        self._producer = producer

    def produce_batch(self, topic: str, partition: int, records: list[dict[str, Any]]) -> None:
        """As the wrapped producer's."""
        self._producer.produce_batch(topic, partition, records)

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
        """As the wrapped producer's."""
        self._producer.produce(
            topic, key=key, value=value, partition=partition, timestamp_ms=timestamp_ms, headers=headers
        )

    def settle(self, timeout_s: float) -> bool:
        """As the wrapped producer's, if somebody answers."""
        return self._log.ask("deliver what was sent", lambda: self._producer.settle(timeout_s))

    def flush(self, timeout_s: float) -> None:
        """As the wrapped producer's, if somebody answers."""
        self._log.ask("deliver what was sent", lambda: self._producer.flush(timeout_s))

    def close(self) -> None:
        """Ends the wrapped producer."""
        self._producer.close()


class FaultyTransactionalProducer(FaultyBatchProducer):
    """A `modelcast.group.TransactionalBatchProducer` whose commits may be cut."""

    def __init__(self, log: Troubled, producer: TransactionalBatchProducer) -> None:
        super().__init__(log, producer)
        self._transaction = producer
        self._doubt = Doubt(log)

    def begin(self) -> None:
        """Opens a transaction, which asks nobody."""
        self._doubt.check()
        self._transaction.begin()

    def send_offsets(
        self, topic: str, offsets: Mapping[int, int], metadata: GroupMetadata, notes: Mapping[int, str] | None = None
    ) -> None:
        """As the wrapped producer's."""
        self._transaction.send_offsets(topic, offsets, metadata, notes)

    def commit(self) -> None:
        """As the wrapped producer's. Raises OutcomeUnknownError, from then on too, where the answer was lost."""
        self._doubt.commit(self._transaction.commit)

    def abort(self) -> None:
        """Drops everything since `begin`; what nobody hears of stays open until the id is taken anew."""
        if not self._doubt.broken and not self._log.is_away:
            self._transaction.abort()

    def close(self) -> None:
        """Ends the wrapped producer, which aborts; where nobody hears of it, what is open stays open."""
        if not self._doubt.broken and not self._log.is_away:
            super().close()
