"""`KafkaReader`: given partitions of one topic in offset order, without a consumer group.

The position passes what is never yielded. librdkafka's own position passes transaction markers once they were polled;
the end of a partition (an event of its own) also passes records that compaction or an abort took away. After a seek
librdkafka knows no position until something arrived, so the larger of its word and ours holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, cast

from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition

from modelcast.errors import BrokerError
from modelcast.log import BEGINNING, LogRecord

from .connection import make_consumer
from .faults import PASSING, Faults, error_of, reading
from .settings import LOGGER, reader_settings

# One call's worth of records: enough to amortise the call, little enough to react between them.
_MAX_RECORDS: Final = 1_000
# And at most about so many bytes: chunks of models, copied by the dozen, stay in the processor's caches and in bounds.
_BATCH_BYTES: Final = 2 << 20
# Kafka answers this only where a group is named; this reader names one because the client insists, and never joins it.
_OF_THE_GROUP: Final = frozenset({KafkaError.GROUP_AUTHORIZATION_FAILED})


class KafkaReader:
    """A `modelcast.log.LogReader`; made by `KafkaLog.reader`."""

    def __init__(
        self, settings: Mapping[str, str], faults: Faults, topic: str, start: Mapping[int, int], *, committed: bool
    ) -> None:
        self._topic = topic
        self._faults = faults
        self._positions = dict(start)
        self._batch = 8  # records a call takes beside its first, until their size is known
        self._consumer = make_consumer(reader_settings(settings, committed=committed), faults)
        self._assign()

    def poll(self, timeout_s: float) -> Sequence[LogRecord]:
        """Whatever has arrived; waits at most `timeout_s`, less when a position moved without a record.

        Raises:
            OffsetOutOfRangeError: A partition's start is gone, or beyond its end.
            BrokerError: The broker refuses. A broker that is away is waited for: ask the log if it matters.
        """
        first = self._consumer.poll(timeout_s)
        if first is None:
            return []
        records: list[LogRecord] = []
        for message in (first, *self._consumer.consume(self._batch, 0)):
            error = message.error()
            if error is not None:
                self._take_error(message, error)
                continue
            record = _record(message)
            self._positions[record.partition] = record.offset + 1
            records.append(record)
        if records:
            mean_bytes = sum(len(record.value or b"") for record in records) // len(records) + 1
            self._batch = max(1, min(_MAX_RECORDS - 1, _BATCH_BYTES // mean_bytes))
        return records

    def position(self, partition: int) -> int:
        """The next offset this reader will look at; `BEGINNING` until that is known."""
        ours = self._positions[partition]
        theirs = self._consumer.position([TopicPartition(self._topic, partition)])[0].offset
        return max(ours, theirs) if theirs >= 0 else ours

    def seek(self, partition: int, offset: int) -> None:
        """Goes to `offset` (or `BEGINNING`) of a partition."""
        for other in self._positions:
            self._positions[other] = self.position(other)
        self._positions[partition] = offset
        try:
            self._consumer.seek(TopicPartition(self._topic, partition, _offset(offset)))
        except KafkaException:
            # A partition that met an error (an offset out of range) can't be sought, only assigned anew.
            self._assign()

    def close(self) -> None:
        """Frees the connection and what was fetched ahead."""
        self._consumer.close()

    def _assign(self) -> None:
        try:
            self._consumer.assign(
                [TopicPartition(self._topic, number, _offset(offset)) for number, offset in self._positions.items()]
            )
        except KafkaException as error:
            raise self._faults.explain(
                error_of(error), f"can't read topic {self._topic!r}", reading(self._topic)
            ) from error

    def _take_error(self, message: Message, error: KafkaError) -> None:
        if error.code() == KafkaError._PARTITION_EOF:
            partition, offset = message.partition(), message.offset()
            if partition is not None and offset is not None:
                self._positions[partition] = max(self._positions[partition], offset)
            return
        if error.code() in _OF_THE_GROUP or (error.code() in PASSING and not error.fatal()):
            LOGGER.debug("reading topic %s: %s", self._topic, error)
            return
        where = f"can't read topic {self._topic!r}"
        if message.partition() is not None and message.partition() != -1:
            where += f", partition {message.partition()} from offset {message.offset()}"
        raise self._faults.explain(error, where, reading(self._topic))


def _record(message: Message) -> LogRecord:
    partition, offset = message.partition(), message.offset()
    topic = message.topic()
    if topic is None or partition is None or offset is None:
        raise BrokerError(f"the client library returned a record without a place: {message!r}")
    return LogRecord(
        topic, partition, offset, message.timestamp()[1], message.key(), message.value(), _headers(message)
    )


def _headers(message: Message) -> tuple[tuple[str, bytes | None], ...]:
    """None where one has a name that is no text: anyone who may write a record may write that."""
    try:
        # The client returns an exception along with a result. A call by `map` finds it; the loop of a hot function does
        # not, and whatever is called next fails. (A second look would end the process: `consumer.batches`.)
        (headers,) = map(Message.headers, (message,))
    except (UnicodeDecodeError, SystemError):
        return ()
    return tuple(cast("list[tuple[str, bytes | None]]", headers or ()))


def _offset(offset: int) -> int:
    return OFFSET_BEGINNING if offset == BEGINNING else offset
