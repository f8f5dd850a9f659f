"""Rows to events: `EventSender` sends frames, `send_table` a file of any size at a given rate.

Nothing is on any topic before the first frame is encoded whole; then, in this order: the schema is described and
acknowledged, the events topic is created if it is missing, the records are sent. A later frame that does not fit ends
the sending with an error that says how many events went before it.

Example:
    with EventSender(log, topics, "flights", schema=infer_schema_of("flights", january)) as sender:
        sender.send(january)
        sender.flush()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import polars as pl

from modelcast.avro import Schema
from modelcast.errors import RecordTooLargeError, TopicConfigError, TopicNotFoundError, UsageError
from modelcast.events.encode import encode_avro, encode_json, encode_keys, timestamps_ms
from modelcast.events.schemas import SchemaTopic
from modelcast.log import Log, LogWriter, TopicSpec
from modelcast.tables import Table
from modelcast.topics import KEEP_FOR_EVER, Topics

DEFAULT_PARTITIONS = 4

# Rows encoded at once: few enough to hold in memory twice, enough that the work for a whole column pays.
_BATCH_ROWS = 20_000
# How finely a rate is kept: this many slices a second, each sent at once.
_SLICES_PER_S = 20
# Without a rate the slices only move the progress bar.
_UNHURRIED_PER_S = 100_000
# librdkafka gives up on a record after five minutes by itself; waiting as long tells its reason instead of ours.
_FLUSH_TIMEOUT_S = 310.0
# The broker's default for how far ahead of its clock a record's timestamp may be.
_AHEAD_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent and acknowledged; `schema` is the digest of the Avro schema, None for JSON."""

    topic: str
    events: int
    bytes: int
    schema: str | None
    seconds: float

    def describe(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "topic": self.topic,
            "events": self.events,
            "bytes": self.bytes,
            "schema": self.schema,
            "seconds": round(self.seconds, 3),
            "events_per_s": round(self.events / self.seconds, 1) if self.seconds > 0 else None,
        }


@dataclass(frozen=True, slots=True)
class _Largest:
    """The largest event so far, key and value."""

    row: int = 0
    bytes: int = 0


class EventSender:
    """Sends rows as events to one topic, in order; not thread-safe.

    Args:
        log: The connection; stays the caller's.
        topics: The repository on whose schemas topic the schema is described.
        topic: Where to; created when it is missing, keeping events for ever.
        schema: What the events are encoded with (single-object Avro); None sends JSON.
        key: The field that becomes the record's key, as UTF-8 text.
        timestamp: The field that becomes the record's timestamp.
        partitions: How many a topic that is created gets.
        say: Told what was created.
        warn: Told of settings that would lose events.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        topic: str,
        *,
        schema: Schema | None,
        key: str | None = None,
        timestamp: str | None = None,
        partitions: int = DEFAULT_PARTITIONS,
        say: Callable[[str], None] = lambda _: None,
        warn: Callable[[str], None] = lambda _: None,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        topics.refuse_own(topic)
        self._log = log
        self._topics = topics
        self._topic = topic
        self._schema = schema
        self._key = key
        self._timestamp = timestamp
        self._partitions = partitions
        self._say = say
        self._warn = warn
        self._now_ms = now_ms
        self._writer: LogWriter | None = None
        self._configs: Mapping[str, str] | None = None
        self._warned = False
        self._largest = _Largest()
        self.events = 0
        self.bytes = 0

    def send(
        self,
        frame: pl.DataFrame,
        *,
        slice_rows: int | None = None,
        before_slice: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Encodes all rows of `frame`, then queues them; if one of them can't be encoded, none is queued.

        Args:
            frame: The rows.
            slice_rows: How many to queue between two calls of `before_slice`; None is all.
            before_slice: Called with the number of events queued so far, e.g. to wait until the next are due.

        Raises:
            UsageError: A row does not fit the schema, or has no usable key or timestamp; names row and field.
            TopicConfigError: The topic is compacted, and the events have no key.
            RepositoryNotFoundError: There is no schemas topic to describe the schema on.
            RecordTooLargeError: An event is larger than the client may send; names its row.
            BrokerError: The broker refuses.
        """
        try:
            records = self._encode(frame)
        except UsageError as error:
            if self.events == 0:
                raise
            self.flush()
            raise UsageError(
                f"{error.message} ({self.events} events before it were sent to {self._topic!r})", hint=error.hint
            ) from error
        self._check_policy()
        writer = self._opened()
        for start in range(0, len(records), slice_rows or max(1, len(records))):
            before_slice(self.events)
            for key, value, time_ms in records[start : start + slice_rows if slice_rows else None]:
                size = len(value) + (len(key) if key else 0)
                if size > self._largest.bytes:
                    self._largest = _Largest(self.events + 1, size)
                try:
                    writer.send(self._topic, key=key, value=value, timestamp_ms=time_ms)
                except RecordTooLargeError as error:
                    raise RecordTooLargeError(f"row {self.events + 1}: {error.message}", hint=error.hint) from error
                self.events += 1
                self.bytes += size

    def flush(self) -> None:
        """Waits until every event is acknowledged.

        Raises:
            RecordTooLargeError: The topic does not take one of them.
            BrokerError: One was not acknowledged.
        """
        if self._writer is None:
            return
        try:
            self._writer.flush(_FLUSH_TIMEOUT_S)
        except RecordTooLargeError as error:
            row, size = self._largest.row, self._largest.bytes
            raise RecordTooLargeError(
                f"{error.message} (the largest, row {row}, has {size:,} bytes)", hint=error.hint
            ) from error

    def close(self) -> None:
        """Frees the connection; what was not flushed may be lost."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _encode(self, frame: pl.DataFrame) -> list[tuple[bytes | None, bytes, int | None]]:
        """Key, value and timestamp (None: now) of each row."""
        first_row = self.events + 1
        if self._schema is None:
            values = encode_json(frame, first_row=first_row)
        else:
            values = encode_avro(frame, self._schema, first_row=first_row)
        nothing = [None] * frame.height
        keys = encode_keys(frame, self._key) if self._key else nothing
        if self._timestamp is None:
            return list(zip(keys, values, nothing, strict=True))
        times = timestamps_ms(frame, self._timestamp, first_row=first_row)
        if times:
            self._check_times(times, first_row)
        return list(zip(keys, values, times, strict=True))

    def _configs_now(self) -> Mapping[str, str]:
        """The settings of the events topic as it stands, or as it would be created."""
        if self._configs is None:
            try:
                self._configs = self._log.describe(self._topic, writing=True).configs
            except TopicNotFoundError:
                self._configs = KEEP_FOR_EVER
        return self._configs

    def _opened(self) -> LogWriter:
        if self._writer is None:
            if self._schema is not None:
                with closing(SchemaTopic(self._log, self._topics)) as schemas:
                    schemas.register(self._schema)
            spec = TopicSpec(self._topic, self._partitions, configs=KEEP_FOR_EVER)
            if self._topic not in self._log.topics() and self._log.create(spec):
                self._say(f"created topic {self._topic!r} with {self._partitions} partitions, keeping events for ever")
            self._writer = self._log.writer()
        return self._writer

    def _check_policy(self) -> None:
        policy = self._configs_now().get("cleanup.policy", "delete")
        if "compact" in policy and self._key is None:
            raise TopicConfigError(
                f"topic {self._topic!r} has cleanup.policy={policy}: it takes no events without a key",
                hint="Name the field that is the key: --key FIELD; or another topic (this one keeps one event a key).",
            )

    def _check_times(self, times: list[int], first_row: int) -> None:
        """Refuses what the broker would refuse record by record, and warns of what it would delete."""
        configs = self._configs_now()
        if configs.get("message.timestamp.type", "CreateTime") != "CreateTime":
            return
        now = self._now_ms()
        latest = max(times)
        if latest > now + int(configs.get("message.timestamp.after.max.ms", _AHEAD_MS)):
            raise UsageError(
                f"row {first_row + times.index(latest)}, field {self._timestamp!r}: {latest} lies further ahead than "
                f"topic {self._topic!r} takes (message.timestamp.after.max.ms)",
                hint="Timestamps are epoch milliseconds; mend the row, or leave --timestamp out.",
            )
        retention_ms = int(configs.get("retention.ms", -1))
        deletes = "delete" in configs.get("cleanup.policy", "delete")
        if deletes and 0 <= retention_ms < now - min(times) and not self._warned:
            self._warned = True
            self._warn(
                f"topic {self._topic!r} deletes events {retention_ms / 86_400_000:g} days after their timestamp "
                f"(retention.ms={retention_ms}): older ones of these may be gone before they are read. Keep them with: "
                f"kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name {self._topic} "
                f"--add-config retention.ms=-1"
            )


def send_table(
    sender: EventSender,
    table: Table,
    *,
    rate_per_s: float | None = None,
    on_progress: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Sends all rows of a file in order, at most `rate_per_s` of them a second, and waits for their acknowledgement.

    Args:
        sender: Where to and how.
        table: The file.
        rate_per_s: Events a second; None is as fast as they go.
        on_progress: Called with the number of events sent so far.
        clock: Monotonic seconds.
        sleep: Waits for seconds.

    Raises:
        SourceError: The file can't be read on.
        UsageError, BrokerError: As `EventSender.send`.
    """
    started = clock()

    def before_slice(sent: int) -> None:
        on_progress(sent)
        if rate_per_s is not None:
            sleep(max(0.0, started + sent / rate_per_s - clock()))

    slice_rows = max(1, round((rate_per_s or _UNHURRIED_PER_S) / _SLICES_PER_S))
    for batch in table.batches(_BATCH_ROWS):
        sender.send(batch, slice_rows=slice_rows, before_slice=before_slice)
    sender.flush()
    on_progress(sender.events)
