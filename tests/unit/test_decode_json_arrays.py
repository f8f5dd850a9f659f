"""Long arrays are cut out of JSON events: what an event comes to stays what it is when read alone."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcast.consumer.decode import json_arrays, json_lines
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.consumer.decode.cursor import Buffer
from modelcast.consumer.decode.json_arrays import Skeletons
from modelcast.consumer.decode.wanted import wanted_of
from modelcast.records import DType
from modelcast.tensors import FieldSpec

from .decode_checks import Schemas, check, damaged

NONE = Schemas()
ITEMS = 3
FLOATS, LONGS = FieldSpec("a", DType.FLOAT32, (ITEMS,)), FieldSpec("a", DType.INT64, (ITEMS,))
OTHER, DEEP = FieldSpec("b", DType.FLOAT32, (ITEMS,)), FieldSpec("b.a", DType.FLOAT32, (ITEMS,))
TEXT = FieldSpec("b", DType.STRING)

NUMBERS = st.integers(-(2**65), 2**65) | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9)
ARRAYS = st.lists(NUMBERS, min_size=ITEMS, max_size=ITEMS)
VALUES = (
    ARRAYS
    | ARRAYS
    | st.lists(NUMBERS | st.none() | st.booleans() | ARRAYS, max_size=ITEMS + 1)
    | st.sampled_from(["", "[1,2,3]", "x[1,2,3]", "[", "]", '"[1,2,3]', "[]", None, 1.5])
    | st.dictionaries(st.sampled_from(["a", "[1,2,3]"]), ARRAYS, max_size=2)
)
KEYS = st.lists(st.sampled_from(["a", "b", "c", "[1,2,3]", "[]"]), min_size=1, max_size=4, unique=True)
TELLING = st.sampled_from(b' \n"\\{}[],:0129.eE+-n')


@pytest.fixture(scope="module", autouse=True)
def cut_short_arrays() -> Any:
    """Short arrays in small batches take the path of long ones in large batches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "MIN_ROWS", 2)
        patch.setattr(json_lines, "BLOCK_ROWS", 3)
        patch.setattr(json_arrays, "MIN_ITEMS", 2)
        yield


@st.composite
def streams(draw: st.DrawFn) -> list[bytes | None]:
    keys = draw(KEYS)
    style = draw(st.sampled_from([{}, {"separators": (",", ":")}, {"indent": 1}]))
    events: list[bytes | None] = []
    for _ in range(draw(st.integers(2, 8))):
        value = json.dumps({key: draw(VALUES) for key in keys}, **style).encode()
        events.append(value if draw(st.integers(0, 3)) else draw(damaged(value, TELLING)))
    return events


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(streams(), st.sampled_from([[FLOATS], [LONGS], [FLOATS, OTHER], [FLOATS, TEXT], [FLOATS, DEEP], [LONGS, OTHER]]))
def test_a_batch_comes_to_what_each_of_its_events_comes_to(values: list[bytes | None], specs: list[FieldSpec]) -> None:
    check(values, specs, NONE)


def cut(values: list[bytes], specs: list[FieldSpec]) -> Skeletons:
    return Skeletons.of(Buffer(values), wanted_of(specs))


def test_only_flat_arrays_of_numbers_that_are_long_enough_are_cut_out() -> None:
    skeletons = cut(
        [b'{"b":[1],"a":[1,2.5,-3e1]}', b'{"a":[[1,2,3]]}', b'{"a":[1,null,3]}', b'{"a":[1,2,03]}', b'{"a":[1,2]}'],
        [FLOATS],
    )
    left = [skeletons.buffer.value(row) for row in range(5)]
    assert left == [
        b'{"b":[1],"a":[]}', b'{"a":[[]]}', b'{"a":[1,null,3]}', b'{"a":[1,2,03]}', b'{"a":[1,2]}',
    ]  # fmt: skip
    assert [{place: array.tolist() for place, array in cuts.items()} for cuts in skeletons.cuts] == [
        {1: [1.0, 2.5, -30.0]}, {1: [1.0, 2.0, 3.0]}, {}, {}, {},
    ]  # fmt: skip


def test_an_array_in_a_string_is_no_array() -> None:
    values = [b'{"b":"[1,2,3]","a":[4,5,%d]}' % number for number in range(9)]
    batch = check(values, [FLOATS, TEXT], NONE)
    assert batch.columns["b"].tolist() == ["[1,2,3]"] * 9
    assert batch.columns["a"][8].tolist() == [4, 5, 8]


def test_integers_stay_whole() -> None:
    values = [b'{"a":[%d,-1,0]}' % (2**63 - number) for number in range(3)]
    batch = check(values, [LONGS], NONE)
    assert batch.columns["a"][:, 0].tolist() == [2**63 - 1, 2**63 - 2]


def test_an_event_of_brackets_is_given_up_soon() -> None:
    value = b'{"a":' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    assert cut([value] * 2, [FLOATS]).cuts == ()


def test_without_the_parser_events_read_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    source = np.random.default_rng(0).random((200, ITEMS), np.float32)
    values = [json.dumps({"a": row}).encode() for row in source.astype(float).tolist()]
    with_it = BatchDecoder([FLOATS], NONE).decode(values)
    monkeypatch.setattr(json_arrays, "simdjson", None)
    without = BatchDecoder([FLOATS], NONE).decode(values)
    assert cut(values, [FLOATS]).cuts == ()
    assert np.array_equal(with_it.columns["a"], source)
    assert np.array_equal(without.columns["a"], source)
