"""Which format each event has: every frame, in the value and in a header, under every `--event-format`."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcast.avro import Schema
from modelcast.consumer.decode.batch import BatchDecoder, DecodedBatch
from modelcast.consumer.decode.formats import EventFormat, Formats
from modelcast.errors import SourceError, UsageError
from modelcast.events.frames import SCHEMA_HEADER, describe_frame, unknown_message
from modelcast.events.writers import AvroWriter, JsonWriter, UnusableWriter, WriterSchema
from modelcast.records import DType
from modelcast.tensors import FieldSpec

AMOUNT = FieldSpec("amount", DType.FLOAT64)
SCHEMA = Schema.parse({"type": "record", "name": "T", "fields": [{"name": "amount", "type": "double"}]})
OTHER = Schema.parse(
    {"type": "record", "name": "T", "fields": [{"name": "id", "type": "string"}, {"name": "amount", "type": "long"}]}
)
GUID = uuid.uuid5(uuid.NAMESPACE_URL, "schema").bytes
BY_ID, BY_GUID, JSON_ID = b"\x00\x00\x00\x00\x01", b"\x01" + GUID, b"\x00\x00\x00\x00\x02"
OTHER_ID, BROKEN_ID, UNKNOWN_ID = b"\x00\x00\x00\x00\x03", b"\x00\x00\x00\x00\x04", b"\x00\x00\x00\x00\x63"
HEADER = [(SCHEMA_HEADER, BY_GUID)]


class Known:
    """What the schemas topic and a registry know, together."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.writers: dict[bytes, WriterSchema] = {
            SCHEMA.frame: AvroWriter(SCHEMA),
            BY_ID: AvroWriter(SCHEMA),
            BY_GUID: AvroWriter(SCHEMA),
            JSON_ID: JsonWriter(),
            OTHER_ID: AvroWriter(OTHER),
            BROKEN_ID: UnusableWriter("it is broken"),
        }

    def find(self, frame: bytes) -> WriterSchema | None:
        self.asked.append(frame)
        return self.writers.get(frame)


def formats(event_format: EventFormat, **given: Any) -> Formats:
    return Formats(event_format, **given)


AUTO = formats(EventFormat.AUTO)
REGISTRY = formats(EventFormat.AUTO, registry=True)
CONFLUENT = formats(EventFormat.CONFLUENT, registry=True)


def datum(amount: float) -> bytes:
    return struct.pack("<d", amount)


def decode(values: Sequence[bytes | None], chosen: Formats, headers: Sequence[Any] | None = None) -> DecodedBatch:
    given = [None] * len(values) if headers is None else headers
    return BatchDecoder([AMOUNT], Known(), chosen).decode(values, given if chosen.needs_headers else None)


def fate(value: bytes | None, chosen: Formats, headers: Any = None) -> Any:
    """The amount, the word of its fault, or the frame nobody knows."""
    batch = decode([value], chosen, [headers])
    if batch.unknown:
        return batch.unknown[0]
    return batch.poison[0].error if batch.poison else batch.columns["amount"].tolist()[0]


FRAMED = {
    "single-object": (SCHEMA.frame + datum(1.5), None),
    "by id": (BY_ID + datum(2.5), None),
    "by GUID": (BY_GUID + datum(3.5), None),
    "by header": (datum(4.5), HEADER),
    "by an id in the header": (datum(4.5), [(SCHEMA_HEADER, BY_ID)]),
    "JSON by id": (JSON_ID + b'{"amount": 5.5}', None),
    "JSON": (b'{"amount": 6.5}', None),
    "Avro alone": (datum(7.5), None),
}


@pytest.mark.parametrize(
    ("chosen", "fates"),
    [
        (AUTO, [1.5, "InvalidJson", "InvalidJson", "InvalidJson", "InvalidJson", "InvalidJson", 6.5, "InvalidJson"]),
        (REGISTRY, [1.5, 2.5, 3.5, 4.5, 4.5, 5.5, 6.5, "frame"]),
        (CONFLUENT, ["InvalidFrame", 2.5, 3.5, 4.5, 4.5, 5.5, "InvalidFrame", "frame"]),
        (formats(EventFormat.SINGLE_OBJECT), [1.5, *["InvalidFrame"] * 7]),
        (formats(EventFormat.JSON), [*["InvalidJson"] * 6, 6.5, "InvalidJson"]),
        (
            formats(EventFormat.AVRO, event_schema=SCHEMA),
            ["TrailingBytes", "TrailingBytes", "TrailingBytes", 4.5, 4.5, "TrailingBytes", "TrailingBytes", 7.5],
        ),
        (
            formats(EventFormat.AUTO, event_schema=SCHEMA),
            [1.5, "TrailingBytes", "TrailingBytes", 4.5, 4.5, "TrailingBytes", "TrailingBytes", 7.5],
        ),
    ],
    ids=["auto", "auto with a registry", "confluent", "single-object", "json", "avro", "auto with a schema"],
)
def test_every_form_under_every_format(chosen: Formats, fates: list[Any]) -> None:
    got = [fate(value, chosen, headers) for value, headers in FRAMED.values()]
    # The double 7.5 begins with five zeros: to a reader of frames it names schema 0, which nobody knows.
    assert got == [bytes(5) if one == "frame" else one for one in fates]


def test_all_forms_may_be_mixed_in_one_batch_and_keep_their_places() -> None:
    forms = list(FRAMED.values())[:7]
    values = [value for value, _ in forms] * 700
    batch = decode(values, REGISTRY, [headers for _, headers in forms] * 700)
    assert batch.rows.tolist() == list(range(4900))
    assert batch.columns["amount"].tolist() == [1.5, 2.5, 3.5, 4.5, 4.5, 5.5, 6.5] * 700


def test_a_stream_may_go_over_to_another_schema() -> None:
    other = OTHER_ID + OTHER.encode({"id": "x", "amount": 9})
    batch = decode([BY_ID + datum(1.0), other, BY_ID + datum(2.0), other], CONFLUENT)
    assert batch.columns["amount"].tolist() == [1.0, 9.0, 2.0, 9.0]


@pytest.mark.parametrize(
    ("value", "headers", "outcome"),
    [
        (None, HEADER, "Tombstone"),
        (b"", None, "EmptyValue"),
        (b"", HEADER, "InvalidAvro"),
        (b"\x00\x00\x00", None, "InvalidFrame"),
        (b"\x01" + GUID[:15], None, "InvalidFrame"),
        (BY_ID, None, "InvalidAvro"),
        (BY_ID + datum(1)[:-1], None, "InvalidAvro"),
        (BY_ID + datum(1) + b"x", None, "TrailingBytes"),
        (JSON_ID, None, "InvalidJson"),
        (JSON_ID + b"{", None, "InvalidJson"),
        (BROKEN_ID + b"x", None, "UnusableSchema"),
        (UNKNOWN_ID + b"x", None, UNKNOWN_ID),
        (datum(1), [(SCHEMA_HEADER, None)], "InvalidFrame"),
        (datum(1), [(SCHEMA_HEADER, b"\x02abc")], "InvalidFrame"),
        (datum(1.5), [("trace", b"x"), (SCHEMA_HEADER, BY_GUID), (SCHEMA_HEADER, b"second")], 1.5),
        (BY_ID + datum(1), [("trace", b"x")], 1.0),
    ],
)
def test_what_a_frame_may_look_like(value: bytes | None, headers: Any, outcome: Any) -> None:
    assert fate(value, CONFLUENT, headers) == outcome


def test_a_plan_is_made_once_and_what_is_unknown_or_of_no_use_is_asked_for_again() -> None:
    known = Known()
    decoder = BatchDecoder([AMOUNT], known, CONFLUENT)
    for _ in range(3):
        decoder.decode([BY_ID + datum(1), UNKNOWN_ID, BROKEN_ID], [None] * 3)
    assert (known.asked.count(BY_ID), known.asked.count(UNKNOWN_ID), known.asked.count(BROKEN_ID)) == (1, 3, 3)


def test_a_schema_nothing_can_be_read_by_costs_its_own_events_only() -> None:
    # Not parsed before: as one that a parser takes and a reader does not.
    odd = Schema(definition={"type": "record", "name": "T", "fields": [{"name": "amount"}]}, text="")
    known = Known()
    known.writers[UNKNOWN_ID] = AvroWriter(odd)
    values = [BY_ID + datum(1), UNKNOWN_ID, BY_ID + datum(2)]
    batch = BatchDecoder([AMOUNT], known, CONFLUENT).decode(values, [None] * 3)
    assert batch.columns["amount"].tolist() == [1.0, 2.0]
    assert [(event.index, event.error) for event in batch.poison] == [(1, "UnusableSchema")]


def test_events_framed_for_a_registry_nobody_named_say_so() -> None:
    assert "--schema-registry" in decode([BY_ID + datum(1)], AUTO).poison[0].message


_PAYLOADS = st.binary(max_size=20)
_EVENTS = st.one_of(
    st.sampled_from([None, b"", *(value for value, _ in FRAMED.values())]),
    _PAYLOADS,
    st.builds(
        bytes.__add__, st.sampled_from([SCHEMA.frame, BY_ID, BY_GUID, JSON_ID, UNKNOWN_ID, BROKEN_ID]), _PAYLOADS
    ),
)
_HEADERS = st.sampled_from([None, HEADER, [(SCHEMA_HEADER, b"")], [(SCHEMA_HEADER, BY_ID)], [("other", b"")]])


@settings(deadline=None)  # what an event comes to is asked, not how soon
@given(
    events=st.lists(st.tuples(_EVENTS, _HEADERS), max_size=12),
    chosen=st.sampled_from(
        [AUTO, REGISTRY, CONFLUENT, *(formats(one, event_schema=SCHEMA) for one in EventFormat if one != "confluent")]
    ),
)
def test_no_event_moves_another(events: list[tuple[bytes | None, Any]], chosen: Formats) -> None:
    batch = decode([value for value, _ in events], chosen, [headers for _, headers in events])
    good = dict(zip(batch.rows.tolist(), batch.columns["amount"].tolist(), strict=True))
    poison = {event.index: event.error for event in batch.poison}
    assert len(poison) == len(batch.poison)
    for row, (value, headers) in enumerate(events):
        alone = fate(value, chosen, headers)
        # By their text: a NaN is one of the amounts, and differs from itself.
        assert str(good.get(row, poison.get(row, alone))) == str(alone)
        assert (row in good, row in poison) == (isinstance(alone, float), isinstance(alone, str))


@pytest.mark.parametrize(
    ("asked", "schema", "registry", "words"),
    [
        ("xml", None, True, "no event format 'xml'"),
        ("avro", None, True, "--event-schema"),
        ("confluent", SCHEMA, False, "--schema-registry"),
    ],
)
def test_a_format_without_what_it_needs_is_refused_at_once(
    asked: str, schema: Schema | None, registry: bool, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        Formats.of(asked, schema, registry=registry)


def test_a_schema_is_read_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "t.avsc"
    with pytest.raises(SourceError, match=r"t\.avsc"):
        Formats.of("avro", path, registry=False)
    path.write_text(SCHEMA.text)
    assert Formats.of("avro", path, registry=False).event_schema == SCHEMA


def test_frames_are_described_as_people_know_them() -> None:
    assert describe_frame(UNKNOWN_ID) == "id 99"
    assert describe_frame(BY_GUID) == f"GUID {uuid.UUID(bytes=GUID)}"
    assert describe_frame(SCHEMA.frame) == f"fingerprint {SCHEMA.fingerprint.hex()}"
    assert unknown_message(UNKNOWN_ID) == "the Schema Registry has no schema with id 99"
    assert "schemas topic" in unknown_message(SCHEMA.frame)
