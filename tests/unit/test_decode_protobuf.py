"""Protobuf events to columns: every kind of field, what is absent, which message, and what is no message."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcast.consumer.decode.batch import BatchDecoder, DecodedBatch
from modelcast.consumer.decode.formats import EventFormat, Formats
from modelcast.consumer.event_fields import protobuf_said
from modelcast.errors import SourceError, WireError
from modelcast.events.frames import SCHEMA_HEADER
from modelcast.events.writers import ProtobufWriter, WriterSchema
from modelcast.protobuf import ProtobufSchema, read_indexes
from modelcast.records import DType
from modelcast.tensors import FieldSpec

from .protobuf_schemas import class_of, transactions

FILE = transactions()
Transaction = class_of(FILE, "Transaction")
FRAME = b"\x00\x00\x00\x00\x07"
GUID_FRAME = b"\x01" + bytes(range(16))
INDEXES = b"\x02\x02"  # one index, which is 1: zig-zag of both
CONFLUENT = Formats(EventFormat.CONFLUENT, registry=True)


class One:
    """A registry of one schema."""

    def __init__(self, file: Any = FILE) -> None:
        self.writer = ProtobufWriter(ProtobufSchema.parse(file.SerializeToString(), {}))

    def find(self, frame: bytes) -> WriterSchema:
        return self.writer


def event(**fields: Any) -> bytes:
    return FRAME + INDEXES + Transaction(**fields).SerializeToString()


def decode(values: Sequence[bytes | None], *specs: FieldSpec, file: Any = FILE, headers: Any = None) -> DecodedBatch:
    return BatchDecoder(specs, One(file), CONFLUENT).decode(values, headers)


def faults(batch: DecodedBatch) -> list[tuple[int, str]]:
    return [(event.index, event.error) for event in batch.poison]


@pytest.mark.parametrize(
    ("name", "dtype", "value", "want"),
    [
        ("amount", DType.FLOAT64, 1.5, 1.5),
        ("amount", DType.FLOAT32, 0.1, np.float32(0.1)),
        ("ratio", DType.FLOAT64, 0.1, float(np.float32(0.1))),
        ("count", DType.INT32, -5, -5),
        ("count", DType.FLOAT32, 3, 3.0),
        ("large", DType.INT64, 2**63 - 1, 2**63 - 1),
        ("large", DType.FLOAT64, 2**64 - 1, float(2**64 - 1)),
        ("flag", DType.BOOL, True, True),
        ("id", DType.STRING, "ä", "ä"),
        ("kind", DType.STRING, 1, "CASH"),
        ("card.country", DType.STRING, {"country": "DE"}, "DE"),
        ("card.limit", DType.INT64, {"country": "DE"}, 0),
        ("maybe", DType.FLOAT64, 0.0, 0.0),
        ("wrapped", DType.FLOAT64, {"value": 0.0}, 0.0),
    ],
)
def test_each_kind_of_field_is_read_as_what_it_is(name: str, dtype: DType, value: Any, want: Any) -> None:
    batch = decode([event(**{name.split(".", maxsplit=1)[0]: value})] * 3, FieldSpec(name, dtype))
    assert batch.columns[name].tolist() == [want] * 3


@pytest.mark.parametrize(
    ("name", "dtype", "outcome"),
    [
        ("amount", DType.FLOAT64, 0.0),
        ("id", DType.STRING, ""),
        ("kind", DType.STRING, "CARD"),
        ("maybe", DType.FLOAT64, "NullField"),
        ("wrapped", DType.FLOAT64, "NullField"),
        ("card.country", DType.STRING, "NullField"),
        ("at", DType.INT64, "NullField"),
        ("nobody's", DType.FLOAT64, "MissingField"),
        ("card.nothing", DType.FLOAT64, "MissingField"),
        ("amount.x", DType.FLOAT64, "MissingField"),
        ("card", DType.FLOAT64, "NullField"),
        ("tags", DType.STRING, "WrongType"),
    ],
)
def test_a_field_not_in_the_message_has_its_default_unless_it_may_be_absent(
    name: str, dtype: DType, outcome: Any
) -> None:
    batch = decode([event()], FieldSpec(name, dtype))
    if isinstance(outcome, str) and outcome.endswith(("Field", "Type")):
        assert faults(batch) == [(0, outcome)]
    else:
        assert batch.columns[name].tolist() == [outcome]


@pytest.mark.parametrize(
    ("fields", "name", "dtype", "word"),
    [
        ({"large": 2**63}, "large", DType.INT64, "OutOfRange"),
        ({"kind": 7}, "kind", DType.STRING, "WrongType"),
        ({"amount": 1e300}, "amount", DType.FLOAT32, "OutOfRange"),
        ({"at": {"seconds": 2**62}}, "at", DType.INT64, "WrongType"),
    ],
)
def test_what_does_not_fit_costs_its_event_only(fields: Any, name: str, dtype: DType, word: str) -> None:
    good = event(at={"seconds": 1})
    batch = decode([good, event(**fields), good], FieldSpec(name, dtype))
    assert faults(batch) == [(1, word)]
    assert batch.rows.tolist() == [0, 2]


def test_tensors_come_as_repeated_numbers_and_as_bytes() -> None:
    vector, raw = FieldSpec("vector", DType.FLOAT32, (3,)), FieldSpec("raw", DType.FLOAT32, (3,))
    octets = struct.pack("<3f", 1, 2, 3)
    batch = decode([event(vector=[1, 2, 3], raw=octets), event(vector=[1], raw=octets)], vector, raw)
    assert faults(batch) == [(1, "WrongLength")]
    assert batch.columns["vector"].tolist() == batch.columns["raw"].tolist() == [[1, 2, 3]]


def test_repeated_numbers_of_a_message_that_may_be_absent() -> None:
    limits = FieldSpec("card.limits", DType.FLOAT64, (2,))
    batch = decode([event(card={"limits": [1, 2]}), event(), event(card={"limits": [3, 4]})], limits)
    assert faults(batch) == [(1, "NullField")]
    assert batch.columns["card.limits"].tolist() == [[1, 2], [3, 4]]


def test_a_timestamp_is_milliseconds_as_in_any_format() -> None:
    batch = decode([event(at={"seconds": 1_700_000_000, "nanos": 123_999_999})], FieldSpec("at", DType.INT64))
    assert batch.columns["at"].tolist() == [1_700_000_000_123]
    batch = decode([event(at={"seconds": -1, "nanos": 500_000_000})], FieldSpec("at", DType.FLOAT64))
    assert batch.columns["at"].tolist() == [-500.0]


@settings(deadline=None)  # what an event comes to is asked, not how soon
@given(
    garbage=st.lists(st.binary(max_size=40), max_size=6),
    places=st.lists(st.integers(0, 5), max_size=6),
)
def test_no_garbage_moves_its_neighbours(garbage: list[bytes], places: list[int]) -> None:
    values = [event(amount=float(number), id=str(number)) for number in range(6)]
    spec = FieldSpec("amount", DType.FLOAT64)
    marked: list[bytes] = list(values)
    for place, octets in zip(places, garbage, strict=False):
        marked[place] = FRAME + octets
    batch = decode(marked, spec)
    untouched = [row for row in range(6) if marked[row] == values[row]]
    found = dict(zip(batch.rows.tolist(), batch.columns["amount"].tolist(), strict=True))
    assert all(found[row] == float(row) for row in untouched)
    assert len(found) + len(batch.poison) == 6


def test_a_cut_message_and_one_of_another_type_are_poison() -> None:
    good = event(amount=1.5)
    batch = decode([good, good[:-1], FRAME + b"\x02\x10", FRAME, good], FieldSpec("amount", DType.FLOAT64))
    assert faults(batch) == [(1, "InvalidProtobuf"), (2, "InvalidProtobuf"), (3, "InvalidProtobuf")]
    assert batch.rows.tolist() == [0, 4]


def test_f33_a_field_named_as_a_method_of_messages_is_a_field() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="hostile", syntax="proto2")
    kind = file.message_type.add(name="M")
    for number, name in enumerate(("amount", "HasField", "FromString", "DESCRIPTOR"), 1):
        kind.field.add(name=name, number=number, type=1, label=1)  # optional doubles
    amount = b"\x09" + struct.pack("<d", 2.5)
    batch = decode([FRAME + b"\x00" + amount, FRAME + b"\x00"], FieldSpec("amount", DType.FLOAT64), file=file)
    assert batch.columns["amount"].tolist() == [2.5]
    assert faults(batch) == [(1, "NullField")]


def test_the_indexes_say_which_message_it_is() -> None:
    nested = FRAME + b"\x04\x02\x00" + Transaction.Card(country="FR").SerializeToString()
    batch = decode([nested], FieldSpec("country", DType.STRING))
    assert batch.columns["country"].tolist() == ["FR"]
    assert faults(decode([FRAME + b"\x00"], FieldSpec("amount", DType.FLOAT64))) == [(0, "MissingField")]


def test_in_a_header_the_indexes_follow_the_frame_and_the_value_may_be_empty() -> None:
    header = [(SCHEMA_HEADER, GUID_FRAME + INDEXES)]
    batch = decode(
        [Transaction(amount=2.5).SerializeToString(), b"", None],
        FieldSpec("amount", DType.FLOAT64),
        headers=[header, header, header],
    )
    assert batch.columns["amount"].tolist() == [2.5, 0.0]
    assert faults(batch) == [(2, "Tombstone")]


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x01", b"\x02", b"\xff" * 11, b"\xfe\xff\xff\x01"])
def test_indexes_that_are_none_are_told(data: bytes) -> None:
    with pytest.raises(WireError):
        read_indexes(data)


def test_a_schema_that_imports_what_is_not_there_is_refused_by_its_name() -> None:
    file = transactions(change=lambda file: file.dependency.append("other.proto"))
    with pytest.raises(SourceError, match=r"other\.proto"):
        ProtobufSchema.parse(file.SerializeToString(), {})
    with pytest.raises(SourceError, match="not a Protobuf schema"):
        ProtobufSchema.parse(b"syntax", {})


def test_the_fields_of_a_message_are_known_from_its_type() -> None:
    said = protobuf_said(ProtobufSchema.parse(FILE.SerializeToString(), {}).message((1,)))
    kinds = ("double", "long", "string", "array of float", "string", "double", "long", "other")
    names = ("amount", "large", "id", "vector", "card.country", "wrapped", "at", "tags")
    assert {name: said.kinds[name] for name in names} == dict(zip(names, kinds, strict=True))
