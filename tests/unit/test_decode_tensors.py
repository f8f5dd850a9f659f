"""Whole rows in one field: raw bytes, base64 and arrays come to what each event alone comes to, in every format."""

from __future__ import annotations

import base64
import json
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcast.avro import Schema
from modelcast.consumer.decode import json_lines
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.consumer.decode.rules import Fault
from modelcast.records import DType
from modelcast.tensors import LAYOUTS, FieldSpec

from .decode_checks import SHAPES, Schemas, check, damaged

# The first text ever drawn waits for tables of Unicode: seconds on a busy machine.
SLOW_START = [HealthCheck.too_slow]

IMAGE = FieldSpec("image", DType.UINT8, (2, 2))
SPECS = st.builds(FieldSpec, st.just("image"), st.sampled_from(list(LAYOUTS)), st.sampled_from(SHAPES))

INTS = st.integers(-3, 300) | st.integers(-(2**31), 2**31 - 1)
LONGS = INTS | st.integers(-(2**63), 2**63 - 1)
ITEMS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "int": ("int", INTS),
    "long": ("long", LONGS),
    "float": ("float", st.floats(width=32)),
    "double": ("double", st.floats()),
    "maybe long": (["null", "long"], LONGS | st.sampled_from([None, 5, 6])),
    "float or null": (["float", "null"], st.floats(width=32) | st.just(1.5) | st.none()),
    "several": (["null", "long", "double", "string"], LONGS | st.floats() | st.just("x")),
    "string": ("string", st.text(max_size=3)),
    "null": ("null", st.none()),
    "nested": ({"type": "array", "items": "int"}, st.lists(INTS, max_size=2)),
}


@st.composite
def avro_events(draw: st.DrawFn, spec: FieldSpec) -> tuple[Schema, list[bytes]]:
    """Events of one schema whose field mostly has the right length."""
    count, size = spec.row_values, LAYOUTS[spec.dtype].itemsize
    lengths = st.sampled_from([count] * 4 + [count - 1, count + 1, 0])
    raw = lengths.flatmap(lambda n: st.binary(min_size=n * size, max_size=n * size)) | st.binary(max_size=9)
    item, data = ITEMS[draw(st.sampled_from(list(ITEMS)))]
    arrays = lengths.flatmap(lambda n: st.lists(data, min_size=max(n, 0), max_size=max(n, 0)))
    kinds: list[tuple[Any, st.SearchStrategy[Any]]] = [
        ("bytes", raw),
        (["null", "bytes"], st.none() | raw),
        ({"type": "fixed", "name": "F", "size": count * size}, st.binary(min_size=count * size, max_size=count * size)),
        ("string", raw.map(lambda octets: base64.b64encode(octets).decode()) | st.text(max_size=8)),
        ({"type": "array", "items": item}, arrays),
        (["null", {"type": "array", "items": item}], st.none() | arrays),
        (["null", "bytes", {"type": "array", "items": item}], st.none() | raw | arrays),
        ({"type": "map", "values": "int"}, st.dictionaries(st.text(max_size=2), INTS, max_size=4)),
    ]
    kind, values = draw(st.sampled_from(kinds))
    fields = [{"name": "id", "type": "long"}, {"name": "image", "type": kind}, {"name": "end", "type": "string"}]
    schema = Schema.parse({"type": "record", "name": "Event", "fields": fields})
    rows = draw(st.lists(st.tuples(LONGS, values, st.text(max_size=3)), min_size=1, max_size=8))
    return schema, [schema.encode_single_object({"id": one, "image": row, "end": end}) for one, row, end in rows]


@settings(max_examples=200, suppress_health_check=SLOW_START)
@given(st.data())
def test_avro_rows_come_to_what_each_event_alone_comes_to(data: st.DataObject) -> None:
    spec = data.draw(SPECS)
    schema, events = data.draw(avro_events(spec))
    values = [data.draw(damaged(value)) if data.draw(st.integers(0, 3)) == 0 else value for value in events]
    schemas = Schemas(schema)
    specs = [spec, FieldSpec("id", DType.INT64)]
    together = check(values, specs, schemas)
    good = [values[row] for row in together.rows.tolist()]
    alone = BatchDecoder(specs, schemas).decode(good)
    assert alone.columns["image"].tobytes() == together.columns["image"].tobytes()


def varint(number: int, padding: int = 0) -> bytes:
    raw = (number << 1) ^ (number >> 63)
    octets = []
    while raw > 127 or padding > 0:
        padding -= raw <= 127
        octets.append(raw & 127 | 128)
        raw >>= 7
    return bytes([*octets, raw])


@st.composite
def blocks(draw: st.DrawFn, items: list[bytes]) -> bytes:
    """One array as writers may cut it: blocks, some with their size before them, padded numbers."""
    body = b""
    while items:
        count = draw(st.integers(1, len(items)))
        block, items = b"".join(items[:count]), items[count:]
        sized = draw(st.booleans())
        body += varint(-count) + varint(len(block)) + block if sized else varint(count, draw(st.integers(0, 2))) + block
    return body + b"\x00"


@settings(max_examples=100, suppress_health_check=SLOW_START)
@given(st.data(), st.sampled_from(list(LAYOUTS)), st.sampled_from(["int", ["null", "int"], "double"]))
def test_an_array_is_the_same_however_its_writer_cuts_it(data: st.DataObject, dtype: DType, item: Any) -> None:
    spec = FieldSpec("image", dtype, (2, 2))
    schema = Schema.parse(
        {"type": "record", "name": "E", "fields": [{"name": "image", "type": {"type": "array", "items": item}}]}
    )
    values = []
    for _ in range(data.draw(st.integers(1, 5))):
        numbers = data.draw(st.lists(st.integers(0, 255), min_size=3, max_size=5) | st.just([1, 2, 3, 4]))
        lead = b"\x02" if isinstance(item, list) else b""
        items = [lead + (struct.pack("<d", one) if item == "double" else varint(one)) for one in numbers]
        values.append(schema.frame + data.draw(blocks(items)))
    check(values, [spec], Schemas(schema))


@pytest.fixture
def read_few_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches take the path of large ones: they find the same, sooner."""
    monkeypatch.setattr(json_lines, "MIN_ROWS", 2)
    monkeypatch.setattr(json_lines, "BLOCK_ROWS", 3)


JSON_ITEMS = (
    st.integers(0, 255)
    | st.integers()
    | st.integers(-(10**400), 10**400)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([None, True, "1", [1], {}, 1.0])
)


@settings(max_examples=200, suppress_health_check=[*SLOW_START, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_json_rows_come_to_what_each_event_alone_comes_to(data: st.DataObject, read_few_together: None) -> None:
    spec = data.draw(SPECS)
    count, size = spec.row_values, LAYOUTS[spec.dtype].itemsize
    items = data.draw(st.sampled_from([st.integers(0, 255), st.floats(-1, 1), JSON_ITEMS]))
    lengths = st.sampled_from([count] * 4 + [count - 1, count + 1, 0])
    arrays: st.SearchStrategy[Any] = lengths.flatmap(lambda n: st.lists(items, min_size=n, max_size=n))
    raw = lengths.flatmap(lambda n: st.binary(min_size=n * size, max_size=n * size))
    texts = raw.map(lambda octets: base64.b64encode(octets).decode())
    forms = data.draw(st.sampled_from([arrays, texts, arrays | texts | st.text(max_size=8) | JSON_ITEMS]))
    values: list[bytes | None] = []
    for row in data.draw(st.lists(forms, min_size=1, max_size=10)):
        value = json.dumps({"id": 1, "image": row}).encode()
        values.append(data.draw(damaged(value)) if data.draw(st.integers(0, 5)) == 0 else value)
    check(values, [FieldSpec("id", DType.INT64), spec], Schemas())


@pytest.mark.parametrize(
    ("kind", "datum", "spec", "outcome"),
    [
        ("bytes", b"abcd", IMAGE, [[97, 98], [99, 100]]),
        ("bytes", b"abc", IMAGE, "WrongLength"),
        ("bytes", b"abcde", IMAGE, "WrongLength"),
        ("bytes", b"", IMAGE, "WrongLength"),
        ("bytes", b"\x00\x00\x80\x3f", FieldSpec("image", DType.FLOAT32, (1, 1)), [[1.0]]),
        ("bytes", b"\x00\x00\xc0\x7f", FieldSpec("image", DType.FLOAT32, (1, 1)), "nan"),
        ("bytes", struct.pack("<2q", -1, 2**62), FieldSpec("image", DType.INT64, (2,)), [-1, 2**62]),
        ("bytes", struct.pack("<2i", -1, 7), FieldSpec("image", DType.INT32, (2, 1)), [[-1], [7]]),
        ("string", "YWJjZA==", IMAGE, [[97, 98], [99, 100]]),
        ("string", "YWJjZA", IMAGE, "WrongType"),  # no padding
        ("string", "YWJj ZA==", IMAGE, "WrongType"),
        ("string", "YWJjZGU=", IMAGE, "WrongLength"),
        ("string", "abc\N{LATIN SMALL LETTER E WITH ACUTE}", IMAGE, "WrongType"),
        ({"type": "array", "items": "int"}, [1, 2, 3, 255], IMAGE, [[1, 2], [3, 255]]),
        ({"type": "array", "items": "int"}, [1, 2, 3, 256], IMAGE, "OutOfRange"),
        ({"type": "array", "items": "int"}, [1, 2, -1], IMAGE, "WrongLength"),
        ({"type": "array", "items": "int"}, [], IMAGE, "WrongLength"),
        ({"type": "array", "items": "double"}, [1.0] * 4, IMAGE, "WrongType"),
        ({"type": "array", "items": ["null", "int"]}, [1, None, 300, 1], IMAGE, "NullField"),
        ({"type": "array", "items": ["null", "int"]}, [300, None, 1, 1], IMAGE, "OutOfRange"),
        ({"type": "array", "items": "null"}, [None] * 4, IMAGE, "NullField"),
        ({"type": "array", "items": "null"}, [None] * 5, IMAGE, "WrongLength"),
        ({"type": "array", "items": "long"}, [2**63 - 1, -(2**63)], FieldSpec("image", DType.INT64, (2,)), None),
        ("int", 5, IMAGE, "WrongType"),
        (["null", "bytes"], None, IMAGE, "NullField"),
    ],
)
@pytest.mark.parametrize("beside", [0, 3])
def test_what_a_row_may_be(kind: Any, datum: Any, spec: FieldSpec, outcome: Any, beside: int) -> None:
    schema = Schema.parse({"type": "record", "name": "E", "fields": [{"name": "image", "type": kind}]})
    value = schema.encode_single_object({"image": datum})
    batch = check([value] * (beside + 1), [spec], Schemas(schema))
    if outcome in list(Fault):
        assert [event.error for event in batch.poison] == [outcome] * (beside + 1)
    elif outcome == "nan":
        assert np.isnan(batch.columns["image"]).all()
    else:
        assert batch.columns["image"].tolist() == [datum if outcome is None else outcome] * (beside + 1)


def test_a_message_says_what_the_model_takes_and_which_item_is_wrong() -> None:
    values = [b'{"image":[1,2,3]}', b'{"image":[1,2,3,"4"]}', b'{"image":"????"}', b'{"image":{}}']
    said = [event.message for event in BatchDecoder([IMAGE], Schemas()).decode(values).poison]
    assert said == [
        "field 'image' has too many or too few items, the model takes uint8[2, 2] (4 bytes, or 4 numbers)",
        "an item of field 'image' is a string, the model takes uint8",
        "field 'image' is a string that is no base64",
        "field 'image' is an object, the model takes uint8[2, 2] (4 bytes, or 4 numbers)",
    ]


def photos(count: int) -> tuple[FieldSpec, Schema, list[bytes], np.ndarray]:
    """Events of 28 by 28 bytes behind an id."""
    fields = [{"name": "id", "type": "string"}, {"name": "image", "type": "bytes"}, {"name": "at", "type": "long"}]
    schema = Schema.parse({"type": "record", "name": "Photo", "fields": fields})
    images = np.random.default_rng(1).integers(0, 256, (count, 28, 28), np.uint8)
    events = [
        schema.encode_single_object({"id": f"p{n}", "image": image.tobytes(), "at": n})
        for n, image in enumerate(images)
    ]
    return FieldSpec("image", DType.UINT8, (28, 28)), schema, events, images


def test_poison_among_thousands_of_rows_leaves_its_neighbours_as_they_are() -> None:
    spec, schema, events, images = photos(5000)
    other = Schema.parse(
        {"type": "record", "name": "Other", "fields": [{"name": "image", "type": ["null", "bytes", "long"]}]}
    )
    short, long, null, wrong = (
        other.encode_single_object({"image": image}) for image in (bytes(783), bytes(785), None, 784)
    )
    values: list[bytes | None] = list(events)
    bad = {0: short, 1400: long, 1401: null, 2600: wrong, 2601: None, 4998: events[7][:-3], 4999: b"{}"}
    for row, value in bad.items():
        values[row] = value
    values[2602] = json.dumps({"image": base64.b64encode(images[2602].tobytes()).decode()}).encode()
    values[2603] = json.dumps({"image": images[2603].reshape(-1).tolist()}).encode()
    batch = BatchDecoder([spec], Schemas(schema, other)).decode(values)
    assert [(event.index, event.error) for event in batch.poison] == list(
        zip(
            bad,
            ["WrongLength", "WrongLength", "NullField", "WrongType", "Tombstone", "InvalidAvro", "MissingField"],
            strict=True,
        )
    )
    assert batch.columns["image"].tobytes() == images[batch.rows].tobytes()


@pytest.mark.parametrize("item", ["int", "long", "float", ["null", "long"], ["double", "null"]])
def test_long_arrays_of_many_events_are_read_together(item: Any) -> None:
    schema = Schema.parse(
        {"type": "record", "name": "E", "fields": [{"name": "image", "type": {"type": "array", "items": item}}]}
    )
    images = np.random.default_rng(2).integers(0, 256, (300, 784))
    real = item == "float" or "double" in item
    spec = FieldSpec("image", DType.FLOAT32 if real else DType.UINT8, (28, 28))
    values = [
        schema.encode_single_object({"image": [float(v) for v in row] if real else row.tolist()}) for row in images
    ]
    values[100] = values[100][:-1]
    values[299] = values[299][:-2]  # nothing behind the last event may stand for what it lacks
    values[200] = schema.encode_single_object({"image": [1, 2]})
    batch = BatchDecoder([spec], Schemas(schema)).decode(values)
    assert [(event.index, event.error) for event in batch.poison] == [
        (100, "InvalidAvro"), (200, "WrongLength"), (299, "InvalidAvro"),
    ]  # fmt: skip
    np.testing.assert_array_equal(batch.columns["image"], images[batch.rows].reshape(-1, 28, 28))


def array_body(items: Any, body: bytes) -> tuple[Schema, bytes]:
    fields = [{"name": "image", "type": {"type": "array", "items": items}}, {"name": "end", "type": "string"}]
    schema = Schema.parse({"type": "record", "name": "E", "fields": fields})
    return schema, schema.frame + body


@pytest.mark.parametrize(
    ("items", "body", "dtype", "outcome"),
    [
        ("float", b"\x02\x00\x00\x80\x3f\x00\x00", DType.FLOAT32, [[1.0]]),
        ("float", b"\x02\x00\x00\x80", DType.FLOAT32, "InvalidAvro"),  # what lies behind must not complete it
        ("float", b"\x02\x00\x00\x80\x3f", DType.FLOAT32, "InvalidAvro"),
        ("int", b"\x02\x80", DType.INT32, "InvalidAvro"),
        ("int", b"\x02" + varint(2**31 - 1) + b"\x00\x00", DType.INT32, [[2**31 - 1]]),
        ("int", b"\x02" + varint(2**31) + b"\x00\x00", DType.INT64, "InvalidAvro"),  # no int
        ("long", b"\x02" + varint(2**31) + b"\x00\x00", DType.INT64, [[2**31]]),
        ("long", b"\x02" + varint(-(2**63)) + b"\x00\x00", DType.INT64, [[-(2**63)]]),
        ("long", b"\x02" + b"\xff" * 9 + b"\x02\x00\x00", DType.INT64, "InvalidAvro"),  # 65 bits
        # A null whose neighbours look like a float with what closes the array behind it.
        (["null", "float"], b"\x02\x00\x00\x06ab\x00", DType.FLOAT32, "NullField"),
        (["null", "long"], b"\x02\x00\x00\x00", DType.INT64, "NullField"),
        (["null", "long"], b"\x02\x82\x00\x0a\x00\x00", DType.INT64, [[5]]),  # a padded mark
    ],
)
@pytest.mark.parametrize("beside", [0, 2])
def test_the_edges_of_arrays(items: Any, body: bytes, dtype: DType, outcome: Any, beside: int) -> None:
    schema, value = array_body(items, body)
    batch = check([value] * (beside + 1), [FieldSpec("image", dtype, (1, 1))], Schemas(schema))
    if isinstance(outcome, str):
        assert [event.error for event in batch.poison] == [outcome] * (beside + 1)
    else:
        assert batch.columns["image"].tolist() == [outcome] * (beside + 1)


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.FLOAT32])
@pytest.mark.parametrize(
    "row",
    [b"[1,null,2,3]", b"[1,true,2,3]", b"[1,1.5,2,3]", b"[1,256,2,3]", b"[1,1e39,2,3]", b"[1,2,3]", b"[[1,2],[3,4]]",
     b"[1,[2],3,4]", b"[1,2,3,4,5]", b"[]", b"[ ]", b"1", b'"AQIDBA"', b'"AQIDBA=="', b'[1,"2",3,4]', b"{}",
     b"[1,NaN,2,3]", b"[1,2,3,1" + b"0" * 400 + b"]"],
)  # fmt: skip
def test_json_rows_read_together_are_what_each_is_alone(row: bytes, dtype: DType) -> None:
    good = [b'{"image":[%d,2,3,4]}' % (number % 256) for number in range(100)]
    bad = [b'{"image":%s}' % row] * 100
    check([*good, *bad, *good], [FieldSpec("image", dtype, (2, 2))], Schemas())


def test_poison_takes_no_memory_of_a_row() -> None:
    large = FieldSpec("image", DType.FLOAT32, (512, 512))
    values = [b"{}"] * 2000
    decoder = BatchDecoder([large], Schemas())
    decoder.decode(values[:10])
    tracemalloc.start()
    batch = decoder.decode(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(batch.poison) == 2000
    assert batch.columns["image"].shape == (0, 512, 512)
    assert peak < 64 << 20  # of 2 GB that as many rows would take


def test_a_hostile_count_costs_no_more_than_its_bytes() -> None:
    schema = Schema.parse(
        {"type": "record", "name": "E", "fields": [{"name": "image", "type": {"type": "array", "items": "null"}}]}
    )
    huge = [schema.frame + varint(count) + b"\x00" for count in (2**62, 2**63 - 1, 5)]
    batch = check([*huge, schema.frame + varint(-(2**63)) + b"\x00\x00"], [IMAGE], Schemas(schema))
    assert {event.error for event in batch.poison} == {"WrongLength"}


@pytest.mark.parametrize("item", ["float", "double", ["null", "float"], "int", ["long", "null"]])
@pytest.mark.parametrize("given", ["few", "cut"])
def test_a_row_far_wider_than_all_that_came_is_poison_like_any_other(item: Any, given: str) -> None:
    schema, start = array_body(item, varint(5000) + b"\x02\x02\x02")
    value = start if given == "cut" else schema.encode_single_object({"image": [1] * 3, "end": ""})
    dtype = DType.FLOAT64 if "float" in item or item == "double" else DType.INT64
    batch = check([value], [FieldSpec("image", dtype, (5000,))], Schemas(schema))
    assert [event.error for event in batch.poison] == ["InvalidAvro" if given == "cut" else "WrongLength"]


def test_an_empty_batch_has_an_empty_tensor() -> None:
    column = BatchDecoder([IMAGE], Schemas()).decode([]).columns["image"]
    assert (column.shape, column.dtype) == ((0, 2, 2), np.dtype(np.uint8))
