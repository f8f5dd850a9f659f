"""Records of a topic, decoded for people and programs.

- Committed records only; in offset order within a partition, as they arrive between partitions.
- A value is decoded by what it is: framed (single-object Avro, and where a Schema Registry is given Avro, JSON or
  Protobuf) by the schema its frame names, else JSON, else shown as `{"base64": …}`. Nothing a record holds can end the
  reading.
- As JSON: bytes are `{"base64": …}`, decimals and UUIDs text, dates and times ISO 8601 text; a NaN or an infinity is
  null, for it has no JSON. Keys and headers are UTF-8 text, else `{"base64": …}`; of several
  headers of one name the last is shown.
- The end is the end the topic has at the start, read uncommitted: with a transaction open the committed end is earlier,
  and what is about to be committed would be missed. How long an open transaction is waited for is bounded.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import date, datetime
from datetime import time as time_of_day
from itertools import islice
from typing import Any

from modelcast.errors import BrokerError, TopicNotFoundError, WireError
from modelcast.events.frames import Framed, Headers, framed
from modelcast.events.schemas import REREAD_INTERVAL_S, SchemaTopic
from modelcast.events.writers import AvroWriter, JsonWriter, ProtobufWriter, SchemaSource, WriterSchema, WriterSchemas
from modelcast.log import BEGINNING, Log, LogReader, LogRecord
from modelcast.protobuf import read_indexes
from modelcast.topics import Topics

# Kafka's default transaction timeout (60 s) and the broker's sweep for dead transactions (10 s), with a margin.
OPEN_TRANSACTION_WAIT_S = 75.0

_STEP_S = 0.1  # how long one read may wait, so that the deadline and Ctrl-C are looked at
# Silence before somebody watching is told what is waited for.
_TELL_AFTER_S = 3.0
# How many unknown frames are given a second chance: garbage has a new one in every record.
_MAX_SECOND_CHANCES = 16


@dataclass(frozen=True, slots=True)
class Event:
    """One record as it is shown; `key`, `value` and the values of `headers` are JSON data."""

    key: Any
    partition: int
    offset: int
    timestamp_ms: int | None
    value: Any
    headers: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """As JSON data; `headers` only where there are any."""
        described = {
            "key": self.key,
            "partition": self.partition,
            "offset": self.offset,
            "timestamp": self.timestamp_ms,
            "value": self.value,
        }
        return {**described, "headers": dict(self.headers)} if self.headers else described


def tail(
    log: Log,
    topics: Topics,
    topic: str,
    *,
    from_beginning: bool = False,
    until_end: bool = False,
    limit: int | None = None,
    registry: SchemaSource | None = None,
    wait_s: float = OPEN_TRANSACTION_WAIT_S,
    on_wait: Callable[[str], None] = lambda _: None,
) -> Generator[Event, None, None]:
    """Yields the records of a topic, from now on or from its beginning.

    Args:
        log: The connection.
        topics: The repository whose schemas topic describes the records.
        topic: What to read.
        from_beginning: Start with the oldest record instead of the next new one.
        until_end: Stop at the end the topic has now, instead of following it for ever.
        limit: Stop after so many records.
        registry: A Schema Registry that knows schemas by id and GUID.
        wait_s: How long to wait for the end behind an open transaction.
        on_wait: Told, once, what is waited for.

    Raises:
        TopicNotFoundError: There is no such topic.
        BrokerError: The topic could not be read, or to its end; or the registry could not be asked.
    """
    try:
        ends = log.end_offsets(topic, committed=False)
    except TopicNotFoundError as error:
        raise TopicNotFoundError(error.message, hint="Check the name, and the brokers given with -b.") from error
    start = dict.fromkeys(ends, BEGINNING) if from_beginning else ends
    unread = {number: end for number, end in ends.items() if end > log.begin_offsets(topic)[number]}
    with (
        closing(log.reader(topic, start, committed=True)) as reader,
        closing(SchemaTopic(log, topics)) as schemas,
    ):
        decoder = ValueDecoder(schemas, registry)
        records = _until(reader, unread, wait_s, on_wait) if until_end else _forever(reader)
        yield from islice(map(decoder.event, records), limit)


def _forever(reader: LogReader) -> Iterator[LogRecord]:
    while True:
        yield from reader.poll(_STEP_S)


def _until(
    reader: LogReader, ends: Mapping[int, int], wait_s: float, on_wait: Callable[[str], None]
) -> Iterator[LogRecord]:
    """What stands before `ends`; ends when every position has passed its end (markers move it too)."""
    told = False
    positions: dict[int, int] = {}
    moved_at = time.monotonic()
    while True:
        now = {number: reader.position(number) for number in ends}
        behind = [number for number, end in ends.items() if now[number] < end]
        if not behind:
            return
        if now != positions:
            positions, moved_at = now, time.monotonic()
        silent_s = time.monotonic() - moved_at
        where = ", ".join(f"{number} (at {max(0, now[number])} of {ends[number]})" for number in behind)
        if silent_s >= wait_s:
            raise BrokerError(
                f"the end of partition {where} was not reached in {wait_s:g} s: a transaction may be open there",
                hint="Try again when its writer has committed or its transaction timeout is over.",
            )
        if silent_s >= _TELL_AFTER_S and not told:
            told = True
            on_wait(f"waiting for an open transaction on partition {where}")
        for record in reader.poll(_STEP_S):
            if record.offset < ends.get(record.partition, 0):
                yield record


class ValueDecoder:
    """Bytes of records to JSON data; not thread-safe.

    Args:
        schemas: Where fingerprints are looked up.
        registry: Where ids and GUIDs are looked up, if there is one.
        sleep: Waits for seconds.
    """

    def __init__(
        self,
        schemas: SchemaTopic,
        registry: SchemaSource | None = None,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._schemas = WriterSchemas(schemas, registry)
        self._has_registry = registry is not None
        self._sleep = sleep
        self._given_up: set[bytes] = set()

    def event(self, record: LogRecord) -> Event:
        """A record as it is shown."""
        return Event(
            key=_text_or_base64(record.key),
            partition=record.partition,
            offset=record.offset,
            timestamp_ms=record.timestamp_ms if record.timestamp_ms >= 0 else None,
            value=self.value(record.value, record.headers),
            headers={name: _text_or_base64(value) for name, value in record.headers},
        )

    def value(self, data: bytes | None, headers: Headers = ()) -> Any:
        """JSON data for a value; None for a tombstone.

        Raises:
            BrokerError: Its schema can't be looked up.
        """
        if data is None:
            return None
        found = framed(data, headers, registry=self._has_registry)
        writer = None if found is None else self._find(found.frame)
        try:
            return _json(data) if found is None or writer is None else _framed(data, found, writer)
        except (WireError, ValueError, RecursionError):
            return _base64(data)

    def _find(self, frame: bytes) -> WriterSchema | None:
        writer = self._schemas.find(frame)
        if writer is None and frame not in self._given_up and len(self._given_up) < _MAX_SECOND_CHANCES:
            # The topic was perhaps looked at so lately that it was not looked at again.
            self._sleep(REREAD_INTERVAL_S)
            writer = self._schemas.find(frame)
            if writer is None:
                self._given_up.add(frame)
        return writer


def _framed(data: bytes, found: Framed, writer: WriterSchema) -> Any:
    """What a framed value holds. Raises WireError, ValueError."""
    match writer:
        case AvroWriter(schema):
            return _plain(schema.decode(data, start=found.skip))
        case JsonWriter():
            return _json(data[found.skip :])
        case ProtobufWriter(schema):
            payload = data[found.skip :]
            indexes, start = read_indexes(payload if found.behind is None else found.behind or b"\0")
            return schema.message(indexes).as_json(payload[start:] if found.behind is None else payload)
        case _:
            raise WireError(writer.reason)


def _json(data: bytes) -> Any:
    return json.loads(data.decode(), parse_constant=_refuse_constant)


def _plain(value: Any) -> Any:
    """What fastavro gives, as JSON data (but for NaN and infinities, which `modelcast.cli.output` makes null)."""
    match value:
        case None | bool() | int() | float() | str():
            return value
        case bytes():
            return _base64(value)
        case dict():
            return {str(name): _plain(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case datetime() | date() | time_of_day():
            return value.isoformat()
    return str(value)  # Decimal, UUID


def _text_or_base64(data: bytes | None) -> Any:
    if data is None:
        return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return _base64(data)


def _base64(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
