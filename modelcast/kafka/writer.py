"""`KafkaWriter` and `KafkaTransactionalWriter`: the control plane's records, one by one.

- A topic is checked before its first record: a producer of librdkafka would create a missing one with the broker's
  defaults, and a registry that expires is worse than an error.
- The queue is bounded; `send` waits while it is full. Acknowledgements are served by `send` and `flush`, on the thread
  that calls them: after each record that asked for one, else every few milliseconds, since asking costs as much as
  queueing a small record.
- `close` does not wait: what was not flushed may be lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Message

from modelcast.errors import BrokerError, RecordTooLargeError
from modelcast.log import OnAck

from .connection import close_producer, leaderless, make_producer, serve
from .deliveries import Deliveries
from .faults import NO_LEADER_HINT, Faults, error_of, writing
from .settings import transactional_settings, writer_settings
from .transaction import State, Transactions

# librdkafka's word for "the partitioner decides".
_ANY_PARTITION: Final = -1
_FULL_QUEUE_WAIT_S: Final = 0.05
# Of the client, where nobody says otherwise.
_MESSAGE_MAX_BYTES: Final = 1_000_000
# Told on top of a record's own bytes when its limits are to be raised: what frames it.
_FRAMING_BYTES: Final = 1_024
# Thousands of small records at full rate, each one of a slow sender; the queue's own limit is far above it.
_SERVE_EVERY_S: Final = 0.01
_SILENCE: Final = frozenset({KafkaError._TIMED_OUT, KafkaError._MSG_TIMED_OUT})


class KafkaWriter:
    """A `modelcast.log.LogWriter`; made by `KafkaLog.writer`. Thread-safe."""

    def __init__(self, settings: Mapping[str, str], faults: Faults, check_topic: Callable[[str], None]) -> None:
        self._faults = faults
        self._check_topic = check_topic
        self._checked: set[str] = set()
        self._deliveries = Deliveries(faults)
        self._serve_at = 0.0
        merged = self._client_settings(settings)
        self._producer = make_producer({**merged, "on_delivery": self._deliveries.told}, faults)
        self._message_bytes = int(str(merged.get("message.max.bytes", _MESSAGE_MAX_BYTES)))
        self._queue_bytes = int(str(merged["queue.buffering.max.kbytes"])) * 1024

    def _client_settings(self, settings: Mapping[str, str]) -> Mapping[str, object]:
        return writer_settings(settings)

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
            TopicNotFoundError: There is no such topic.
            RecordTooLargeError: The client may not send it, or its queue can't hold it, however long it waits.
            BrokerError: The writer is broken.
            FencedError: Another writer took the transactional id.
        """
        if topic not in self._checked:
            self._check_topic(topic)
            self._checked.add(topic)

        size = len(key or b"") + len(value or b"")
        if size > min(self._message_bytes, self._queue_bytes):
            raise self._too_large(topic, size)
        extra: dict[str, Any] = {}
        if timestamp_ms is not None:
            extra["timestamp"] = timestamp_ms
        if headers:
            extra["headers"] = list(headers)
        if on_ack is not None:
            extra["on_delivery"] = self._telling(on_ack)
        while True:
            try:
                self._producer.produce(
                    topic,
                    value=value,
                    key=key,
                    partition=_ANY_PARTITION if partition is None else partition,
                    **extra,
                )
            except BufferError:
                error = None
            except KafkaException as exception:
                error = error_of(exception)
            else:
                break
            if error is not None:
                raise self._explain(error, f"can't send to topic {topic!r}", topic)
            serve(self._producer, self._faults, _FULL_QUEUE_WAIT_S)
        now = time.monotonic()
        if on_ack is not None or now >= self._serve_at:
            self._serve_at = now + _SERVE_EVERY_S
            serve(self._producer, self._faults)

    def flush(self, timeout_s: float) -> None:
        """Waits until every queued record is acknowledged.

        Raises:
            BrokerError: A record since the last flush failed, or the time is up.
            TopicNotFoundError: A record's topic was deleted.
        """
        self._deliveries.flush(self._producer, timeout_s, self._explain_unacknowledged)

    def close(self) -> None:
        """Frees the connection at once; what was not flushed may be lost."""
        close_producer(self._producer, self._faults)

    def _too_large(self, topic: str, size: int) -> RecordTooLargeError:
        needed = size + _FRAMING_BYTES
        raised = {"message.max.bytes": needed} if needed > self._message_bytes else {}
        if needed > self._queue_bytes:
            raised["queue.buffering.max.kbytes"] = 2 * needed // 1024
        options = " ".join(f"-X {name}={value}" for name, value in raised.items())
        return RecordTooLargeError(
            f"can't send to topic {topic!r}: a record of {size:,} bytes is too large for the client",
            hint=f"Raise its properties ({options}) and the topic's max.message.bytes to {needed}, or send less.",
        )

    def _telling(self, on_ack: OnAck) -> Callable[[KafkaError | None, Message], None]:
        def delivered(error: KafkaError | None, message: Message) -> None:
            place, offset = message.partition(), message.offset()
            if error is None and place is not None and offset is not None:
                on_ack(place, offset)
            else:
                self._deliveries.told(error, message)

        return delivered

    def _explain(self, error: KafkaError, doing: str, topic: str | None = None) -> Exception:
        return self._faults.explain(error, doing, writing(topic))

    def _explain_unacknowledged(self, error: KafkaError, doing: str, topic: str | None = None) -> Exception:
        explained = self._explain(error, doing, topic)
        # A client waits for a leader without a word: only the topic's metadata tell that there is none.
        if error.code() in _SILENCE and (without := leaderless(self._producer, self._checked)):
            more = f" (nor have {len(without) - 1} more)" if len(without) > 1 else ""
            return BrokerError(f"{doing}: {without[0]} has no leader{more}", hint=NO_LEADER_HINT)
        return explained


class KafkaTransactionalWriter(KafkaWriter):
    """A `modelcast.log.TransactionalWriter`; made by `KafkaLog.transactional_writer`."""

    def __init__(
        self,
        settings: Mapping[str, str],
        faults: Faults,
        check_topic: Callable[[str], None],
        transactional_id: str,
        *,
        timeout_ms: int,
    ) -> None:
        self._id = transactional_id
        self._timeout_ms = timeout_ms
        super().__init__(settings, faults, check_topic)
        self._transactions = Transactions(self._producer, faults, transactional_id)
        # A client in the middle of this can't be closed without a warning: it is left to its last reference.
        self._transactions.take_id()

    def _client_settings(self, settings: Mapping[str, str]) -> Mapping[str, object]:
        return transactional_settings(settings, transactional_id=self._id, timeout_ms=self._timeout_ms)

    def begin(self) -> None:
        """Opens a transaction; raises FencedError if the id was taken over."""
        serve(self._producer, self._faults)
        self._deliveries.forget()  # failures of a transaction that ended were told by its end
        self._transactions.begin()

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
        """As `KafkaWriter.send`, inside the open transaction."""
        self._transactions.check_open()
        self._transactions.writes(topic)
        super().send(
            topic,
            key=key,
            value=value,
            partition=partition,
            timestamp_ms=timestamp_ms,
            headers=headers,
            on_ack=on_ack,
        )

    def commit(self) -> None:
        """Makes everything since `begin` visible; see `TransactionalWriter.commit` for what is raised otherwise."""
        self._transactions.commit()
        serve(self._producer, self._faults)  # whoever asked for it is told where each record is

    def abort(self) -> None:
        """Drops everything since `begin`; allowed in every state, never raises."""
        self._transactions.abort()

    def close(self) -> None:
        """Aborts what is open and frees the connection."""
        self.abort()
        if self._transactions.state is not State.BROKEN:
            super().close()

    def _explain(self, error: KafkaError, doing: str, topic: str | None = None) -> Exception:
        return self._transactions.failed(error, doing, writing(topic))
