"""Avro events: a batch comes to what each event alone comes to, whatever stands beside it, bit for bit."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcast.avro import Schema
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.consumer.decode.rules import Fault
from modelcast.errors import WireError
from modelcast.events.writers import AvroWriter
from modelcast.records import DType
from modelcast.tensors import FieldSpec

from .decode_checks import Schemas, check, damaged, specs_of

AMOUNT = FieldSpec("amount", DType.FLOAT32)
# The first text ever drawn waits for tables of Unicode: seconds on a busy machine.
SLOW_START = [HealthCheck.too_slow]

Case = tuple[Any, st.SearchStrategy[Any]]

_SYMBOLS = ["A", "B", "long_symbol"]
_KINDS = ["primitive"] * 5 + ["enum", "fixed", "optional"]

_PRIMITIVES: list[Case] = [
    ("null", st.none()),
    ("boolean", st.booleans()),
    ("int", st.integers(-(2**31), 2**31 - 1)),
    ("long", st.integers(-(2**63), 2**63 - 1)),
    ("float", st.floats(width=32)),
    ("double", st.floats()),
    ("string", st.text(max_size=80)),
    ("bytes", st.binary(max_size=80)),
]


@st.composite
def cases(draw: st.DrawFn, name: str, depth: int = 2) -> Case:
    """A schema, and data that fits it."""
    kind = draw(st.sampled_from(_KINDS + ["null", "union", "array", "map", "record"] * (depth > 0)))
    size = draw(st.integers(0, 20))
    inner, data = draw(cases(f"{name}_inner", depth - 1)) if depth and kind in {"array", "map"} else _PRIMITIVES[2]
    chosen = draw(st.lists(st.sampled_from(_PRIMITIVES[1:]), min_size=1, max_size=5, unique_by=lambda case: case[0]))
    made: dict[str, Case] = {
        "null": ("null", st.none()),
        "primitive": chosen[0],
        "enum": ({"type": "enum", "name": name, "symbols": _SYMBOLS}, st.sampled_from(_SYMBOLS)),
        "fixed": ({"type": "fixed", "name": name, "size": size}, st.binary(min_size=size, max_size=size)),
        "optional": (draw(st.permutations(["null", chosen[0][0]])), st.none() | chosen[0][1]),
        "union": ([branch for branch, _ in chosen], st.one_of([datum for _, datum in chosen])),
        "array": ({"type": "array", "items": inner}, st.lists(data, max_size=5)),
        "map": ({"type": "map", "values": inner}, st.dictionaries(st.text(max_size=5), data, max_size=5)),
    }
    return made[kind] if kind in made else draw(records(name, depth - 1))


@st.composite
def records(draw: st.DrawFn, name: str, depth: int = 2) -> Case:
    parts = {f"f{number}": draw(cases(f"{name}_{number}", depth)) for number in range(draw(st.integers(1, 5)))}
    fields = [{"name": field, "type": inner} for field, (inner, _) in parts.items()]
    return (
        {"type": "record", "name": name, "fields": fields},
        st.fixed_dictionaries({field: data for field, (_, data) in parts.items()}),
    )


@settings(max_examples=150, suppress_health_check=SLOW_START)
@given(st.data())
def test_a_batch_comes_to_what_each_of_its_events_comes_to(data: st.DataObject) -> None:
    writers = []
    for name in ["First", "Second"][: data.draw(st.integers(1, 2))]:
        definition, datum = data.draw(records(name))
        writers.append((Schema.parse(definition), datum))
    unknown = Schema.parse({"type": "record", "name": "Unknown", "fields": []})
    schemas = Schemas(*(schema for schema, _ in writers))
    events: list[bytes | None] = []
    for _ in range(data.draw(st.integers(1, 12))):
        schema, datum = data.draw(st.sampled_from(writers))
        events.append(schema.encode_single_object(data.draw(datum)))
    values = [data.draw(damaged(value)) if data.draw(st.booleans()) else value for value in events]
    values.insert(data.draw(st.integers(0, len(values))), data.draw(st.sampled_from([None, b"{}", unknown.frame])))
    specs = data.draw(specs_of([f"f{number}" for number in range(4)]))
    together = check(values, specs, schemas)
    good = [values[row] for row in together.rows.tolist()]
    clean = BatchDecoder(specs, schemas).decode(good)
    for spec in specs:
        assert clean.columns[spec.name].tobytes() == together.columns[spec.name].tobytes() or spec.dtype is DType.STRING


@settings(max_examples=150, suppress_health_check=SLOW_START)
@given(st.data())
def test_what_is_accepted_is_what_another_reader_reads(data: st.DataObject) -> None:
    schema = Schema.parse(
        {
            "type": "record",
            "name": "Event",
            "fields": [
                {"name": "amount", "type": ["null", "double"]},
                {"name": "count", "type": "int"},
                {"name": "id", "type": "string"},
                {"name": "flag", "type": "boolean"},
            ],
        }
    )
    event = {"amount": data.draw(st.floats(allow_nan=False)), "count": data.draw(st.integers(-9, 2**31 - 1))}
    value = data.draw(damaged(schema.encode_single_object({**event, "id": data.draw(st.text()), "flag": True})))
    specs = [
        FieldSpec("amount", DType.FLOAT64),
        FieldSpec("count", DType.INT32),
        FieldSpec("id", DType.STRING),
        FieldSpec("flag", DType.BOOL),
    ]
    batch = BatchDecoder(specs, Schemas(schema)).decode([value])
    if batch.rows.size:
        assert value is not None
        other = schema.decode(value, start=10)
        got = {
            name: column[0] if column.dtype == object else column[0].item() for name, column in batch.columns.items()
        }
        assert got == other or other["amount"] != other["amount"]
    elif value and value[:10] == schema.frame and batch.poison[0].error == "TrailingBytes":
        with pytest.raises(WireError):
            schema.decode(value, start=10)


def transaction() -> Schema:
    fields: list[dict[str, Any]] = [{"name": "id", "type": "string"}, {"name": "amount", "type": "float"}]
    return Schema.parse({"type": "record", "name": "Transaction", "fields": fields})


def body_of(*types: Any) -> Callable[[bytes], tuple[Schema, bytes]]:
    fields = [{"name": f"f{place}", "type": one} for place, one in enumerate(types)]
    schema = Schema.parse({"type": "record", "name": "Event", "fields": fields})
    return lambda body: (schema, schema.frame + body)


LONG, INT, BOOL, FLOAT = DType.INT64, DType.INT32, DType.BOOL, DType.FLOAT32
ENUM = {"type": "enum", "name": "E", "symbols": ["A", "B"]}


@pytest.mark.parametrize(
    ("kind", "body", "dtype", "outcome"),
    [
        ("int", b"\x0a", INT, 5),
        ("int", b"\x8a\x80\x00", INT, 5),  # padded, as modelcast's own predictions are
        ("int", b"\x8a" + b"\x80" * 8 + b"\x00", INT, 5),
        ("int", b"\x80" * 10 + b"\x00", INT, "InvalidAvro"),  # eleven bytes
        ("int", b"\xff\xff\xff\xff\x0f", INT, -(2**31)),
        ("int", b"\x80\x80\x80\x80\x10", INT, "InvalidAvro"),  # 2^31: no int
        ("int", b"\x80\x80\x80\x80\x10", LONG, "InvalidAvro"),
        ("long", b"\x80\x80\x80\x80\x10", INT, "OutOfRange"),  # 2^31: a long, but not for this model
        ("long", b"\xff" * 9 + b"\x01", LONG, -(2**63)),
        ("long", b"\xff" * 9 + b"\x02", LONG, "InvalidAvro"),  # 65 bits
        ("long", b"\x80", LONG, "InvalidAvro"),  # goes on behind the end
        ("long", b"\xff\xff", LONG, "InvalidAvro"),
        ("long", b"\x02", FLOAT, 1.0),
        ("long", b"\x02", BOOL, "WrongType"),
        ("boolean", b"\x01", BOOL, True),
        ("boolean", b"\x07", BOOL, "InvalidAvro"),
        ("boolean", b"\x01", FLOAT, "WrongType"),
        ("double", struct.pack("<d", 1e39), FLOAT, "OutOfRange"),
        ("double", struct.pack("<d", float("-inf")), FLOAT, float("-inf")),
        ("double", struct.pack("<d", 2.0), LONG, "WrongType"),
        ("string", b"\x06abc", DType.STRING, "abc"),
        ("string", b"\x04\xff\xfe", DType.STRING, "WrongType"),  # not UTF-8
        ("string", b"\x05abc", DType.STRING, "InvalidAvro"),  # -3 bytes
        ("string", b"\x80\x80\x80\x80\x80\x80\x80\x80\x20abc", DType.STRING, "InvalidAvro"),  # 2^60 bytes
        ("string", b"\x06ab", DType.STRING, "InvalidAvro"),
        ("bytes", b"\x06abc", DType.STRING, "WrongType"),
        (ENUM, b"\x02", DType.STRING, "B"),
        (ENUM, b"\x04", DType.STRING, "InvalidAvro"),
        (ENUM, b"\x01", DType.STRING, "InvalidAvro"),
        (["null", "long"], b"\x00", LONG, "NullField"),
        (["null", "long"], b"\x02\x0a", LONG, 5),
        (["null", "long"], b"\x0e\x0a", LONG, "InvalidAvro"),  # branch 7
        (["long", "null"], b"\x01", LONG, "InvalidAvro"),  # branch -1
        (["string", "long"], b"\x00\x02a", LONG, "WrongType"),
        ("null", b"", LONG, "NullField"),
        ("long", b"", LONG, "InvalidAvro"),
        ("long", b"\x0a\x00", LONG, "TrailingBytes"),
        ({"type": "long", "logicalType": "timestamp-millis"}, b"\x0a", LONG, 5),
        (
            {"type": "array", "items": "null"},
            b"\x80\x80\x80\x80\x80\x80\x80\x80\x20\x00",
            LONG,
            "WrongType",
        ),  # 2^59 nulls
        ({"type": "array", "items": "long"}, b"\x80\x80\x80\x80\x80\x80\x80\x80\x20\x00", LONG, "InvalidAvro"),
        ({"type": "array", "items": "long"}, b"\x03\x06\x02\x04\x00", LONG, "InvalidAvro"),  # a block of another size
        ({"type": "map", "values": "long"}, b"\x02\x02k\x0a\x00", LONG, "WrongType"),
    ],
)
@pytest.mark.parametrize("beside", [0, 1, 200])
def test_the_edges_where_readers_differ(kind: Any, body: bytes, dtype: DType, outcome: object, beside: int) -> None:
    schema, value = body_of(kind)(body)
    batch = check([value] * (beside + 1), [FieldSpec("f0", dtype)], Schemas(schema))
    if outcome in list(Fault):
        assert [event.error for event in batch.poison] == [outcome] * (beside + 1)
    else:
        assert batch.columns["f0"].tolist() == [outcome] * (beside + 1)


def test_a_broken_field_the_model_does_not_need_is_still_broken() -> None:
    schema, value = body_of("long", "boolean")(b"\x0a\x07")
    (poison,) = check([value], [FieldSpec("f0", LONG)], Schemas(schema)).poison
    assert poison.error == "InvalidAvro"


def test_what_breaks_within_a_branch_is_broken_where_branches_differ() -> None:
    make = body_of(["null", "long", "string"])
    bodies = [b"\x00", b"\x02\x0a", b"\x02\x80", b"\x04\x02a", b"\x04\x04a", b"\x02\x0a\x00"]
    schema, _ = make(b"")
    batch = check([make(body)[1] for body in bodies], [FieldSpec("f0", LONG)], Schemas(schema))
    assert batch.columns["f0"].tolist() == [5]
    assert [event.error for event in batch.poison] == [
        "NullField", "InvalidAvro", "WrongType", "InvalidAvro", "TrailingBytes",
    ]  # fmt: skip


def test_an_event_that_swallows_its_neighbour_costs_only_itself() -> None:
    schema = transaction()
    good = [schema.encode_single_object({"id": f"t{number}", "amount": number}) for number in range(100)]
    values = list(good)
    values[50] = schema.frame + b"\x40" + good[50][11:]  # an id that would reach into event 51
    batch = check(values, [AMOUNT], Schemas(schema))
    assert [event.index for event in batch.poison] == [50]
    assert batch.columns["amount"].tolist() == [number for number in range(100) if number != 50]


def test_large_batches_are_decoded_in_blocks_nobody_sees() -> None:
    schema, stranger = transaction(), Schema.parse({"type": "record", "name": "Stranger", "fields": []})
    values = [schema.encode_single_object({"id": str(number), "amount": number}) for number in range(9000)]
    for row in (0, 4095, 4096, 8999):
        values[row] = values[row][:-1]
    values[1] = values[5000] = stranger.frame
    batch = check(values, [FieldSpec("id", DType.STRING), AMOUNT], Schemas(schema))
    assert batch.columns["amount"].tolist() == batch.rows.tolist()
    assert batch.unknown == (stranger.frame,)


def test_deep_recursion_is_poison_not_an_error() -> None:
    node = {"type": "record", "name": "Node", "fields": [{"name": "next", "type": ["null", "Node"]}]}
    schema = Schema.parse(
        {"type": "record", "name": "List", "fields": [{"name": "x", "type": "long"}, {"name": "head", "type": node}]}
    )
    shallow, deep = (schema.frame + b"\x0a" + b"\x02" * depth + b"\x00" for depth in (20, 100_000))
    batch = BatchDecoder([FieldSpec("x", LONG)], Schemas(schema)).decode([shallow, deep, shallow])
    assert batch.rows.tolist() == [0, 2]
    assert [event.error for event in batch.poison] == ["InvalidAvro"]


def test_wide_events_are_read_in_several_windows() -> None:
    schema, value = body_of(*["double"] * 1500)(struct.pack("<1500d", *range(1500)))
    specs = [FieldSpec(f"f{place}", DType.FLOAT64) for place in (0, 511, 512, 513, 1499)]
    batch = check([value, value[:-1], value], specs, Schemas(schema))
    assert [batch.columns[spec.name][0] for spec in specs] == [0, 511, 512, 513, 1499]


def test_a_schema_is_looked_up_once_and_again_while_it_is_not_known() -> None:
    schema = transaction()
    schemas = Schemas()
    decoder = BatchDecoder([AMOUNT], schemas)
    value = schema.encode_single_object({"id": "a", "amount": 1.5})
    first = decoder.decode([value, value])
    assert first.unknown == (schema.frame,)
    assert (first.rows.size, first.poison) == (0, ())
    schemas.by_fingerprint[schema.fingerprint] = schema
    for _ in range(3):
        assert decoder.decode([value]).columns["amount"].tolist() == [1.5]
    assert schemas.lookups == 2


@pytest.mark.parametrize("definition", ["string", ["null", "long"], {"type": "array", "items": "long"}])
def test_a_writer_whose_schema_is_no_record_has_no_fields(definition: Any) -> None:
    class NoRecord:
        parsed = definition

    frame = b"\xc3\x01" + bytes(8)
    decoder = BatchDecoder([AMOUNT], _Always(NoRecord()))  # type: ignore[arg-type]
    batch = decoder.decode([frame + b"\x00"])
    assert [event.error for event in batch.poison] == ["MissingField"]


class _Always:
    def __init__(self, schema: Any) -> None:
        self.schema = schema

    def find(self, frame: bytes) -> AvroWriter:
        return AvroWriter(self.schema)


def test_columns_own_their_memory_and_are_contiguous() -> None:
    schema = transaction()
    batch = BatchDecoder([AMOUNT], Schemas(schema)).decode([schema.encode_single_object({"id": "a", "amount": 1})] * 3)
    assert batch.columns["amount"].flags.c_contiguous
    assert batch.columns["amount"].flags.aligned
    assert batch.columns["amount"].dtype == np.float32
