"""JSON events: read together or one by one, they come to the same, bit for bit."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcast.avro import Schema
from modelcast.consumer.decode import json_lines
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.records import DType
from modelcast.tensors import FieldSpec

from .decode_checks import Schemas, check, damaged, specs_of

# The first text ever drawn waits for tables of Unicode: seconds on a busy machine.
SLOW_START = [HealthCheck.too_slow]

NONE = Schemas()
LARGE = json_lines.MIN_ROWS * 3

FIELDS = ["f0", "f1", "f2", "fä"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(['{"f0":1}', "a:b", "NaN", "null", "1", "\\", "\u2028", "}{"])
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner)
)
KINDS = [
    st.booleans(),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(-(2**63), 2**64),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.text(max_size=10),
    ANYTHING,
]
# Bytes that mean something in JSON, so that damage is not always obvious.
TELLING = st.sampled_from(b' \n\r\t"\\{}[],:0123456789.eE+-truefalsnI\x00\x7f\x80\xc3\xff\x0b')


@st.composite
def streams(draw: st.DrawFn) -> list[bytes | None]:
    """Events of one producer, or two, some of them damaged."""
    keys = draw(st.lists(st.sampled_from([*FIELDS, "x", "y"]), min_size=1, max_size=5, unique=True))
    kinds = {key: draw(st.sampled_from(KINDS)) for key in keys}
    style = draw(st.sampled_from([{}, {"separators": (",", ":")}, {"ensure_ascii": False}, {"indent": 1}]))
    events: list[bytes | None] = []
    for _ in range(draw(st.integers(2, 10))):
        # Mostly as the others; now and then a value of another kind, a key less, another order.
        event = {key: draw(kinds[key] if draw(st.integers(0, 9)) else ANYTHING) for key in keys}
        order = draw(st.sampled_from([keys, keys, keys, keys[1:], keys[::-1]]))
        value = json.dumps({key: event[key] for key in order}, **style).encode(errors="replace")
        events.append(value if draw(st.integers(0, 3)) else draw(damaged(value, TELLING)))
    return events


@pytest.fixture(scope="module", autouse=True)
def read_few_together() -> Any:
    """Small batches take the path of large ones: they find the same, sooner."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "MIN_ROWS", 2)
        patch.setattr(json_lines, "BLOCK_ROWS", 3)
        yield


@settings(max_examples=300, suppress_health_check=SLOW_START)
@given(values=streams(), specs=specs_of(FIELDS))
def test_a_batch_comes_to_what_each_of_its_events_comes_to(values: list[bytes | None], specs: list[FieldSpec]) -> None:
    check(values, specs, NONE)


@settings(max_examples=200, suppress_health_check=SLOW_START)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=50), st.sampled_from(DType))
def test_numbers_are_the_nearest_floats(numbers: list[float], dtype: DType) -> None:
    specs = [FieldSpec("f0", dtype)]
    for write in (repr, "{:.25e}".format, "{:.40f}".format, "{:.3g}".format):
        check([b'{"f0":%s}' % write(number).encode() for number in numbers], specs, NONE)


FLOAT, LONG = FieldSpec("a", DType.FLOAT64), FieldSpec("a", DType.INT64)
TEXT, FLAG = FieldSpec("a", DType.STRING), FieldSpec("a", DType.BOOL)


@pytest.mark.parametrize(
    ("value", "spec", "outcome"),
    [
        (b'{"a":1}', FLOAT, 1.0),
        (b' \t\r\n{ "a" : 1 } \n', FLOAT, 1.0),
        (b'{"b":{"a":2},"a":1}', FLOAT, 1.0),
        (b'{"b":"\\"a\\":2","a":1}', FLOAT, 1.0),
        (b'{"\\u0061":1}', FLOAT, 1.0),
        (b'{"a":1e400}', FLOAT, "OutOfRange"),
        (b'{"b":1e400,"a":1}', FLOAT, 1.0),
        (b'{"a":1e39}', FieldSpec("a", DType.FLOAT32), "OutOfRange"),
        (b'{"a":"1"}', FLOAT, "WrongType"),
        (b'{"a":true}', FLOAT, "WrongType"),
        (b'{"a":1.0}', LONG, "WrongType"),
        (b'{"a":1e2}', LONG, "WrongType"),
        (b'{"a":-0}', LONG, 0),
        (b'{"a":9223372036854775807}', LONG, 2**63 - 1),
        (b'{"a":9223372036854775808}', LONG, "OutOfRange"),
        (b'{"a":-9223372036854775809}', LONG, "OutOfRange"),
        (b'{"a":1' + b"0" * 400 + b"}", LONG, "OutOfRange"),
        (b'{"a":1' + b"0" * 400 + b"}", FLOAT, "OutOfRange"),
        (b'{"a":9007199254740993}', FLOAT, 9007199254740992.0),
        (b'{"a":1}', TEXT, "WrongType"),
        (b'{"a":true}', TEXT, "WrongType"),
        (b'{"a":{"a":"b"}}', TEXT, "WrongType"),
        (b'{"a":"\\ud83d\\ude00"}', TEXT, "\N{GRINNING FACE}"),
        (b'{"a":"\\ud83d"}', TEXT, "WrongType"),  # half a surrogate pair
        (b'{"a":1}', FLAG, "WrongType"),
        (b'{"a":false}', FLAG, False),
        (b'{"a":null}', FLOAT, "NullField"),
        (b'{"b":1}', FLOAT, "MissingField"),
        (b"{}", FLOAT, "MissingField"),
        (b'{"a":1,"a":1}', FLOAT, "InvalidJson"),
        (b'{"a":1,"\\u0061":1}', FLOAT, "InvalidJson"),
        (b'{"b":1,"a":1,"b":1}', FLOAT, "InvalidJson"),
        (b'{"a":1},"x":{"a":3}', FLOAT, "InvalidJson"),
        (b'{"a":1}{"a":2}', FLOAT, "InvalidJson"),
        (b'{"a":1}\n{"a":2}', FLOAT, "InvalidJson"),
        (b'{"a":1}x', FLOAT, "InvalidJson"),
        (b'{"a":NaN}', FLOAT, "InvalidJson"),
        (b'{"a":-Infinity}', FLOAT, "InvalidJson"),
        (b'{"a":01}', FLOAT, "InvalidJson"),
        (b'{"a":.5}', FLOAT, "InvalidJson"),
        (b'{"a":1.}', FLOAT, "InvalidJson"),
        (b'{"a":+1}', FLOAT, "InvalidJson"),
        (b'{"a":"\xff"}', TEXT, "InvalidJson"),
        (b'{"a":"\x01"}', TEXT, "InvalidJson"),
        (b'{"a":"\n"}', TEXT, "InvalidJson"),
        (b'{"a":1,}', FLOAT, "InvalidJson"),
        (b"[1]", FLOAT, "InvalidJson"),
        (b"1", FLOAT, "InvalidJson"),
        (b"   ", FLOAT, "InvalidJson"),
        (b'\xef\xbb\xbf{"a":1}', FLOAT, "InvalidJson"),  # a byte order mark
        (b"\x00\x00\x00\x00\x01\x02", FLOAT, "InvalidJson"),
    ],
)
@pytest.mark.parametrize("good", [0, LARGE])
@pytest.mark.parametrize("such", [1, LARGE])
def test_the_edges_where_readers_differ(value: bytes, spec: FieldSpec, outcome: object, good: int, such: int) -> None:
    fine = {FLOAT.dtype: b'{"a":0.5}', LONG.dtype: b'{"a":5}', TEXT.dtype: b'{"a":"x"}', FLAG.dtype: b'{"a":true}'}
    values = [value] * such + [fine.get(spec.dtype, b'{"a":0.5}')] * good
    batch = check(values, [spec], NONE)
    if isinstance(outcome, str) and outcome[0].isupper():
        assert [event.error for event in batch.poison] == [outcome] * such
    else:
        assert batch.columns["a"][:such].tolist() == [outcome] * such


@pytest.mark.parametrize("depth", [50, 99, 100, 101, 5000, 200_000])
@pytest.mark.parametrize("beside", [0, LARGE])
def test_depth_has_one_limit_whoever_asks(depth: int, beside: int) -> None:
    value = b'{"b":"]","c":"\\"[","x":' + b"[" * depth + b"]" * depth + b',"a":1}'
    batch = BatchDecoder([FLOAT], NONE).decode([value] * (beside + 1))
    assert batch.rows.size == (beside + 1 if depth < 100 else 0)
    assert {event.error for event in batch.poison} <= {"InvalidJson"}


def events(count: int) -> list[bytes]:
    source = random.Random(7)
    return [
        json.dumps({"id": f"t-{number}", **{f"v{place}": source.random() for place in range(5)}}).encode()
        for number in range(count)
    ]


SPECS = [FieldSpec("id", DType.STRING), *(FieldSpec(f"v{place}", DType.FLOAT32) for place in range(5))]


def test_one_bad_event_costs_only_itself() -> None:
    good = events(5000)
    clean = BatchDecoder(SPECS, NONE).decode(good)
    assert clean.rows.size == 5000
    for bad in (b'{"id":"x","v0":NaN,"v1":1,"v2":1,"v3":1,"v4":1}', good[0].replace(b"0.", b"00."), b"\xff", None):
        values: list[bytes | None] = [*good[:2500], bad, *good[2500:]]
        batch = BatchDecoder(SPECS, NONE).decode(values)
        assert [event.index for event in batch.poison] == [2500]
        for spec in SPECS:
            assert batch.columns[spec.name].tolist() == clean.columns[spec.name].tolist()


def test_producers_with_other_orders_of_keys_are_told_apart() -> None:
    first = [b'{"id":"%d","v0":%d,"v1":-1}' % (number, number) for number in range(200)]
    second = [b'{"id":"%d","v1":-1,"v0":%d}' % (number, number) for number in range(200, 400)]
    values = [value for pair in zip(first, second, strict=True) for value in pair]
    batch = check(values, SPECS[:3], NONE)
    assert sorted(batch.columns["v0"].tolist()) == list(range(400))
    assert batch.columns["v1"].tolist() == [-1] * 400


def test_a_key_that_stands_twice_is_found_among_events_of_the_same_shape() -> None:
    good = [b'{"a":%d,"b":2,"c":3}' % number for number in range(LARGE)]
    bad = [b'{"a":1,"a":2,"c":3}', b'{"a":1,"c":2,"c":3}', b'{"c":1,"b":2,"c":3}']
    batch = check([*good, *bad, *good], [LONG], NONE)
    assert [event.error for event in batch.poison] == ["InvalidJson"] * 3


def test_formats_mix_in_one_batch() -> None:
    schema = Schema.parse({"type": "record", "name": "T", "fields": [{"name": "a", "type": "long"}]})
    avro = [schema.encode_single_object({"a": number}) for number in range(100)]
    plain = [b'{"a":%d}' % number for number in range(100)]
    values: list[bytes | None] = [*avro, None, *plain, b"", b"\xc3", b"\xc3\x01", avro[0] + b"\n"]
    random.Random(3).shuffle(values)
    batch = check(values, [LONG, FieldSpec("b", DType.STRING)][:1], Schemas(schema))
    assert batch.columns["a"].dtype == np.int64
    assert sorted(event.error for event in batch.poison) == [
        "EmptyValue", "InvalidAvro", "InvalidJson", "Tombstone", "TrailingBytes",
    ]  # fmt: skip


def test_an_empty_batch_has_empty_columns() -> None:
    batch = BatchDecoder(SPECS, NONE).decode([])
    assert {name: (len(column), column.dtype) for name, column in batch.columns.items()} == {
        "id": (0, np.dtype(object)),
        **{f"v{place}": (0, np.dtype(np.float32)) for place in range(5)},
    }
