"""`KafkaBatchProducer` and `KafkaTransactionalBatchProducer`: whole batches to one partition in one call.

- librdkafka's batch call takes one partition for the whole batch, and neither headers nor timestamps (its per-record
  `partition` is ignored, a `timestamp` refused): hence the interface. `produce` takes all of them, one by one.
- No Python runs for a delivered record. Failed ones are counted by a callback that runs for failures only; inside a
  transaction they spoil the commit as well.
- When the queue is full, the client refuses the rest of the batch, never one from its middle, so that sending the rest
  again keeps the order.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final, cast

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from modelcast.bounded import BoundedCalls
from modelcast.errors import ConfigError, ModelcastError
from modelcast.group import GroupMetadata

from .connection import close_producer, make_producer, serve
from .deliveries import Deliveries, await_acknowledged
from .faults import Faults, error_of, reading, writing
from .pacing import Pacing
from .settings import batch_settings, transactional_batch_settings
from .transaction import OFFSETS_TIMEOUT_S, State, Transactions

_FULL_QUEUE_WAIT_S: Final = 0.01
_NOW: Final = 0
# Whatever takes longer is the commit's to wait for, or to give up.
_ACKNOWLEDGED_WAIT_S: Final = 1.0
# What the client's own timeout is given to take effect before the call is taken for lost.
_OFFSETS_GRACE_S: Final = 1.0


class KafkaBatchProducer:
    """A `modelcast.group.BatchProducer`; made by `KafkaLog.batch_producer`. Used by one thread at a time."""

    def __init__(self, settings: Mapping[str, str], faults: Faults) -> None:
        self._faults = faults
        self._deliveries = Deliveries(faults)
        self._producer = make_producer(
            {**self._client_settings(settings), "on_delivery": self._deliveries.told}, faults
        )

    def _client_settings(self, settings: Mapping[str, str]) -> Mapping[str, object]:
        return batch_settings(settings)

    def produce_batch(self, topic: str, partition: int, records: list[dict[str, Any]]) -> None:
        """Queues `records` (dicts with `key` and `value`, bytes or None) in order; waits while the queue is full.

        Raises:
            BrokerError: A record can never be delivered (too large).
            ConfigError: A record is larger than the queue.
        """
        left, empty = records, False
        while left:
            try:
                queued, error = self._producer.produce_batch(topic, left, partition=partition), None
            except KafkaException as exception:
                error = error_of(exception)
            if error is not None:
                raise self._explain(error, f"can't send to topic {topic!r}", topic)
            serve(self._producer, self._faults)
            if queued == len(left):
                return
            left = self._refused(topic, left)
            empty = self._wait_for_room(left[0], empty=empty and queued == 0)

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
        """Queues one record, waiting while the queue is full; raises as `produce_batch`."""
        empty = False
        while True:
            try:
                self._producer.produce(
                    topic,
                    value=value,
                    key=key,
                    partition=partition,
                    timestamp=_NOW if timestamp_ms is None else timestamp_ms,
                    headers=list(headers) or None,
                )
            except BufferError:
                error = None
            except KafkaException as exception:
                error = error_of(exception)
            else:
                return
            if error is not None:
                raise self._explain(error, f"can't send to topic {topic!r}", topic)
            empty = self._wait_for_room({"key": key, "value": value}, empty=empty)

    def _wait_for_room(self, record: Mapping[str, Any], *, empty: bool) -> bool:
        """Waits a little while the queue is full; whether it is `empty` then.

        Raises ConfigError for a record that even an empty queue had no room for.
        """
        if empty:
            size = len(record["key"] or b"") + len(record["value"] or b"")
            raise ConfigError(
                f"a record of {size:,} bytes does not fit what the producer may hold",
                hint="Raise --max-memory, or the property queue.buffering.max.kbytes.",
            )
        serve(self._producer, self._faults, _FULL_QUEUE_WAIT_S)
        return not len(self._producer)

    def settle(self, timeout_s: float) -> bool:
        """Whether all is acknowledged within the time; raises BrokerError if anything failed since it last was."""
        return self._deliveries.settle(self._producer, timeout_s, self._explain)

    def flush(self, timeout_s: float) -> None:
        """Waits until all is acknowledged; raises BrokerError if anything failed since the last flush."""
        self._deliveries.flush(self._producer, timeout_s, self._explain)

    def close(self) -> None:
        """Frees the connection at once; what was not flushed may be lost."""
        close_producer(self._producer, self._faults)

    def _refused(self, topic: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The records the full queue did not take; the client marks each with its error."""
        refused = []
        for record in records:
            error = record.pop("_error", None)
            if error is None:
                continue
            if error.code() != KafkaError._QUEUE_FULL:
                raise self._explain(error, f"can't send to topic {topic!r}", topic)
            refused.append(record)
        return refused

    def _explain(self, error: KafkaError, doing: str, topic: str | None = None) -> ModelcastError:
        return self._faults.explain(error, doing, writing(topic))


class KafkaTransactionalBatchProducer(KafkaBatchProducer):
    """A `modelcast.group.TransactionalBatchProducer`; made by `KafkaLog.transactional_batch_producer`."""

    def __init__(self, settings: Mapping[str, str], faults: Faults, transactional_id: str, *, timeout_ms: int) -> None:
        self._id = transactional_id
        self._timeout_ms = timeout_ms
        super().__init__(settings, faults)
        self._transactions = Transactions(self._producer, faults, transactional_id)
        # A client in the middle of this can't be closed without a warning: it is left to its last reference.
        self._transactions.take_id()
        self._bounded = BoundedCalls(f"modelcast-offsets-{transactional_id}")
        self._pacing = Pacing()
        self._records = 0  # of the transaction, handed over in batches
        self._handed_over_s = 0.0

    def _client_settings(self, settings: Mapping[str, str]) -> Mapping[str, object]:
        return transactional_batch_settings(settings, transactional_id=self._id, timeout_ms=self._timeout_ms)

    def begin(self) -> None:
        """Opens a transaction, a moment after the last one ended; raises FencedError if the id was taken over."""
        time.sleep(self._pacing.left_s(time.monotonic()))
        serve(self._producer, self._faults)
        self._deliveries.forget()  # failures of a transaction that ended were told by its end
        self._transactions.begin()
        self._records = 0

    def produce_batch(self, topic: str, partition: int, records: list[dict[str, Any]]) -> None:
        """As without a transaction."""
        self._records += len(records)
        self._transactions.writes(topic)
        super().produce_batch(topic, partition, records)

    def send_offsets(
        self, topic: str, offsets: Mapping[int, int], metadata: GroupMetadata, notes: Mapping[int, str] | None = None
    ) -> None:
        """Adds consumed offsets (next to be consumed); `metadata` is that of the batch, never a fresh one.

        Raises:
            BrokerError: Refused, as after a rebalance; the transaction was aborted: rewind.
            FencedError: Another producer took the id, or another process runs as this instance.
            OutcomeUnknownError: No answer, past the end of the transaction: drop this producer.
        """
        kept = notes or {}
        positions = [TopicPartition(topic, number, offset, kept.get(number, "")) for number, offset in offsets.items()]

        def add(timeout_s: float) -> None:
            call = partial(self._producer.send_offsets_to_transaction, positions, cast("Any", metadata), timeout_s)
            self._bounded.run(call, timeout_s + _OFFSETS_GRACE_S)

        self._handed_over_s = time.monotonic()
        doing = f"can't commit offsets of topic {topic!r}"
        # By then the broker has aborted the transaction: a later answer would be no use.
        limit_s = min(OFFSETS_TIMEOUT_S, self._timeout_ms / 1000)
        try:
            self._transactions.run(add, limit_s, doing, reading(topic))
        except TimeoutError as error:
            raise self._transactions.unanswered(doing) from error

    def commit(self) -> None:
        """Commits records and offsets together.

        Raises:
            FencedError: Another producer took the id.
            OutcomeUnknownError: Drop this producer; a new one with the same id finds out.
            BrokerError: The transaction was aborted: rewind.
        """
        # The client waits for acknowledgements as part of the commit, but looks for them seldom.
        await_acknowledged(self._producer, self._faults, _ACKNOWLEDGED_WAIT_S)
        self._transactions.commit()
        now_s = time.monotonic()
        self._pacing.ended(now_s, now_s - self._handed_over_s, self._records)

    def abort(self) -> None:
        """Drops everything since `begin`; allowed in every state, never raises."""
        self._transactions.abort()

    def close(self) -> None:
        """Aborts what is open and frees the connection."""
        self._bounded.close()
        self.abort()
        if self._transactions.state is not State.BROKEN:
            super().close()

    def _explain(self, error: KafkaError, doing: str, topic: str | None = None) -> ModelcastError:
        return self._transactions.failed(error, doing, writing(topic))
