"""Showing a topic: what each value becomes, where the reading ends, and that nothing a record holds ends it."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.avro import SINGLE_OBJECT_MARKER, Schema
from modelcast.cli.output import to_json
from modelcast.errors import BrokerError, TopicNotFoundError
from modelcast.events.schemas import SchemaTopic
from modelcast.events.tail import Event, ValueDecoder, tail
from modelcast.events.writers import AvroWriter, JsonWriter, ProtobufWriter, UnusableWriter, WriterSchema
from modelcast.log import TopicSpec
from modelcast.protobuf import ProtobufSchema
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

from .protobuf_schemas import class_of, transactions

TOPICS = Topics("p")
SCHEMA = Schema.parse(
    {
        "type": "record",
        "name": "r",
        "fields": [
            {"name": "raw", "type": "bytes"},
            {"name": "x", "type": "double"},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
            {"name": "many", "type": {"type": "array", "items": ["null", "long"]}},
        ],
    }
)
DATUM = {
    "raw": b"\xff", "x": math.nan, "price": Decimal("1.50"), "at": datetime(2013, 1, 2, tzinfo=UTC), "many": [1, None]
}  # fmt: skip


@pytest.fixture
def log() -> MemoryLog:
    return made_log()


def made_log() -> MemoryLog:
    made = MemoryLog()
    for spec in TOPICS.specs(blob_partitions=1, replication_factor=1):
        made.create(spec)
    made.create(TopicSpec("t", 2))
    return made


def put(log: MemoryLog, *values: bytes | None, partition: int = 0) -> None:
    for value in values:
        log.writer().send("t", key=None, value=value, partition=partition)


def all_of(log: MemoryLog, **options: Any) -> list[Event]:
    return list(tail(log, TOPICS, "t", from_beginning=True, until_end=True, **options))


def values(events: Iterable[Event]) -> list[Any]:
    return [event.value for event in events]


def b64(data: bytes) -> dict[str, str]:
    return {"base64": base64.b64encode(data).decode()}


def test_an_event_says_where_it_stands(log: MemoryLog) -> None:
    log.writer().send("t", key="ä".encode(), value=b"1", partition=1, timestamp_ms=5, headers=[("why", b"\xff")])
    (event,) = all_of(log)
    assert event.describe() == {
        "key": "ä", "partition": 1, "offset": 0, "timestamp": 5, "value": 1, "headers": {"why": b64(b"\xff")},
    }  # fmt: skip


def test_a_key_that_is_no_text_is_base64(log: MemoryLog) -> None:
    log.writer().send("t", key=b"\xff", value=None, partition=0)
    (event,) = all_of(log)
    assert list(event.describe()) == ["key", "partition", "offset", "timestamp", "value"]
    assert (event.key, event.value) == (b64(b"\xff"), None)


def test_avro_is_decoded_by_the_schemas_topic_into_json(log: MemoryLog) -> None:
    SchemaTopic(log, TOPICS).register(SCHEMA)
    put(log, SCHEMA.encode_single_object(DATUM))
    (event,) = all_of(log)
    assert json.loads(to_json(event.value)) == {
        "raw": b64(b"\xff"), "x": None, "price": "1.50", "at": "2013-01-02T00:00:00+00:00", "many": [1, None],
    }  # fmt: skip


@pytest.mark.parametrize("data", [b'{"a": [1.5, null, "x"]}', b"5", b'"x"', b"null", b"true"])
def test_json_is_shown_as_it_is(log: MemoryLog, data: bytes) -> None:
    put(log, data)
    assert values(all_of(log)) == [json.loads(data)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"text",
        b'{"a": NaN}',
        b"[" * 100_000,
        SCHEMA.frame + b"\x01",
        SCHEMA.encode_single_object(DATUM) + b"x",
        SINGLE_OBJECT_MARKER + b"unknown!" + b"\x00",
        SINGLE_OBJECT_MARKER,
    ],
)
def test_anything_else_is_base64(log: MemoryLog, data: bytes) -> None:
    SchemaTopic(log, TOPICS).register(SCHEMA)
    put(log, data, b"1")
    assert values(all_of(log)) == [b64(data), 1]


@given(st.lists(st.none() | st.binary(max_size=40) | st.binary(max_size=20).map(SCHEMA.frame.__add__), max_size=10))
def test_whatever_a_topic_holds_is_shown_as_valid_json(data: list[bytes | None]) -> None:
    log = made_log()
    SchemaTopic(log, TOPICS).register(SCHEMA)
    put(log, *data)
    events = all_of(log)
    assert len(events) == len(data)
    for event in events:
        json.loads(to_json(event.describe()), parse_constant=pytest.fail)


def test_a_schema_that_comes_right_behind_the_last_look_is_waited_for(log: MemoryLog) -> None:
    schemas = SchemaTopic(log, TOPICS, clock=lambda: clock[0])
    clock = [0.0]
    assert schemas.find(b"unknown!") is None

    def sleep(seconds: float) -> None:
        SchemaTopic(log, TOPICS).register(SCHEMA)
        clock[0] += seconds

    assert ValueDecoder(schemas, sleep=sleep).value(SCHEMA.encode_single_object(DATUM))["price"] == "1.50"


def test_garbage_fingerprints_are_not_waited_for_for_ever(log: MemoryLog) -> None:
    slept: list[float] = []
    decoder = ValueDecoder(SchemaTopic(log, TOPICS), sleep=slept.append)
    for number in range(100):
        decoder.value(SINGLE_OBJECT_MARKER + number.to_bytes(8, "big"))
        decoder.value(SINGLE_OBJECT_MARKER + bytes(8))
    assert len(slept) == 16


def test_the_end_is_the_end_at_the_start(log: MemoryLog) -> None:
    put(log, b"1", b"2")
    put(log, b"3", partition=1)
    events = tail(log, TOPICS, "t", from_beginning=True, until_end=True)
    first = next(events)
    put(log, b"4", b"5")
    assert sorted([first.value, *values(events)]) == [1, 2, 3]


def test_an_empty_topic_ends_at_once(log: MemoryLog) -> None:
    assert all_of(log) == []


def test_a_limit_ends_the_reading(log: MemoryLog) -> None:
    put(log, b"1", b"2", b"3")
    assert values(tail(log, TOPICS, "t", from_beginning=True, limit=2)) == [1, 2]


def test_without_from_beginning_only_what_comes_next_is_shown(log: MemoryLog) -> None:
    put(log, b"1")
    assert list(tail(log, TOPICS, "t", until_end=True)) == []

    class PutsWhenRead(MemoryLog):
        def reader(self, *args: Any, **kwargs: Any) -> Any:
            made = log.reader(*args, **kwargs)
            put(log, b"2")
            return made

    watched = PutsWhenRead()
    watched.__dict__.update(log.__dict__)
    assert values(tail(watched, TOPICS, "t", limit=1)) == [2]


def test_aborted_records_are_not_shown_and_markers_do_not_keep_from_the_end(log: MemoryLog) -> None:
    writer = log.transactional_writer("w", timeout_ms=1000)
    for value, end in ((b"1", writer.commit), (b"2", writer.abort)):
        writer.begin()
        writer.send("t", key=None, value=value, partition=0)
        end()
    assert values(all_of(log)) == [1]


def test_behind_an_open_transaction_the_end_is_not_claimed(log: MemoryLog) -> None:
    put(log, b"1")
    writer = log.transactional_writer("w", timeout_ms=1000)
    writer.begin()
    writer.send("t", key=None, value=b"2", partition=0)
    events = tail(log, TOPICS, "t", from_beginning=True, until_end=True, wait_s=0.2)
    assert next(events).value == 1
    with pytest.raises(BrokerError, match=r"partition 0 \(at 1 of 2\) was not reached in 0.2 s: a transaction"):
        next(events)


def test_a_transaction_that_commits_while_the_end_is_waited_for_is_shown(log: MemoryLog) -> None:
    writer = log.transactional_writer("w", timeout_ms=1000)
    writer.begin()
    writer.send("t", key=None, value=b"2", partition=0)
    told: list[str] = []

    def commit(text: str) -> None:
        told.append(text)
        writer.commit()

    assert values(all_of(log, on_wait=commit)) == [2]
    assert told == ["waiting for an open transaction on partition 0 (at 0 of 1)"]


def test_a_missing_topic_is_not_found(log: MemoryLog) -> None:
    with pytest.raises(TopicNotFoundError, match="absent"):
        list(tail(log, TOPICS, "absent"))


def test_without_a_repository_json_is_shown_all_the_same() -> None:
    log = MemoryLog()
    log.create(TopicSpec("t", 1))
    put(log, b"1", SCHEMA.frame)
    assert values(all_of(log)) == [1, b64(SCHEMA.frame)]


def test_events_framed_for_a_registry_are_shown_where_there_is_one(log: MemoryLog) -> None:
    file = transactions()
    message = class_of(file, "Transaction")(amount=1.5, id="t").SerializeToString()
    guid = b"\x01" + bytes(16)
    by_id = {
        b"\x00\x00\x00\x00\x01": AvroWriter(Schema.parse('"long"')),
        b"\x00\x00\x00\x00\x02": JsonWriter(),
        guid: ProtobufWriter(ProtobufSchema.parse(file.SerializeToString(), {})),
        b"\x00\x00\x00\x00\x04": UnusableWriter("broken"),
    }

    class Registry:
        def find(self, frame: bytes) -> WriterSchema | None:
            return by_id.get(frame)

    framed = [b"\x00\x00\x00\x00\x01\x54", b'\x00\x00\x00\x00\x02{"a":1}', guid + b"\x02\x02" + message]
    broken = [b"\x00\x00\x00\x00\x04x", b"\x00\x00\x00\x00\x09x", guid + b"\x00x", guid + b"\x02\x08"]
    put(log, *framed)
    log.writer().send("t", key=None, value=message, partition=0, headers=[("__value_schema_id", guid + b"\x02\x02")])
    put(log, *broken)
    shown = values(all_of(log, registry=Registry()))
    assert shown[:4] == [42, {"a": 1}, {"amount": 1.5, "id": "t"}, {"amount": 1.5, "id": "t"}]
    assert shown[4:] == [b64(value) for value in broken]
    assert values(all_of(log))[:3] == [b64(value) for value in framed]
