"""Event fields feed graph inputs or are refused by name, with what the model needs and what the event has."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.consumer.binding import Binding, EventFields
from modelcast.errors import BindingError
from modelcast.records import DType, InputBinding, NullRule, Signature
from modelcast.tensors import FieldSpec


def binding(*inputs: InputBinding) -> Binding:
    return Binding(Signature(inputs, ()))


def one(dtype: DType, *fields: str, shape: tuple[int | None, ...] | None = None) -> InputBinding:
    return InputBinding("x", dtype, shape or (None, len(fields)), fields)


def events(**kinds: str) -> EventFields:
    return EventFields(kinds, "the schema of topic transactions")


ALLOWED = {
    DType.FLOAT32: {"int", "long", "float", "double"},
    DType.FLOAT64: {"int", "long", "float", "double"},
    DType.INT32: {"int", "long"},
    DType.INT64: {"int", "long"},
    DType.UINT8: {"int", "long"},
    DType.STRING: {"string", "enum"},
    DType.BOOL: {"boolean"},
}
KINDS = ["int", "long", "float", "double", "string", "enum", "boolean", "bytes", "array", "record", "null", "union"]


@given(st.sampled_from(DType), st.sampled_from(KINDS))
def test_f22_only_kinds_that_keep_their_meaning_bind(dtype: DType, kind: str) -> None:
    bound = binding(one(dtype, "amount"))
    if kind in ALLOWED[dtype]:
        bound.check(events(amount=kind))
    else:
        with pytest.raises(BindingError, match=f"field 'amount' is {kind}, the model needs {dtype}"):
            bound.check(events(amount=kind))


def test_f22_a_missing_field_is_named_with_its_likely_meaning_and_what_the_events_have() -> None:
    with pytest.raises(BindingError) as caught:
        binding(one(DType.FLOAT32, "amount", "age")).check(events(Amount="double", country="string"))
    text = str(caught.value)
    assert "the schema of topic transactions" in text
    assert "field 'amount' (float32) is missing (did you mean 'Amount'?)" in text
    assert "field 'age' (float32) is missing" in text
    assert "The events have: Amount, country" in text


def test_f22_a_field_no_event_has_is_missing_also_where_null_is_nan_but_not_where_it_is_a_value() -> None:
    inputs = (one(DType.FLOAT32, "amount"),)
    with pytest.raises(BindingError, match=r"field 'amount' \(float32\) is missing"):
        Binding(Signature(inputs, (), (NullRule("amount", "nan"),))).check(events(age="int"))
    Binding(Signature(inputs, (), (NullRule("amount", "0"),))).check(events(age="int"))
    Binding(Signature(inputs, (), (NullRule("amount", "nan"),))).check(events(amount="double"))


def test_fields_are_asked_for_once_in_order_of_first_use() -> None:
    bound = binding(one(DType.FLOAT32, "b", "a"), InputBinding("s", DType.STRING, (None,), ("c",)))
    assert bound.specs == (
        FieldSpec("b", DType.FLOAT32),
        FieldSpec("a", DType.FLOAT32),
        FieldSpec("c", DType.STRING),
    )


@pytest.mark.parametrize(
    ("dtypes", "asked"),
    [
        ((DType.FLOAT32, DType.FLOAT64), DType.FLOAT64),
        ((DType.INT64, DType.FLOAT32), DType.INT64),
        ((DType.INT32, DType.INT64), DType.INT32),
        ((DType.FLOAT64, DType.INT32, DType.FLOAT32), DType.INT32),
    ],
)
def test_a_field_of_several_inputs_is_asked_for_as_the_strictest(dtypes: tuple[DType, ...], asked: DType) -> None:
    inputs = [InputBinding(f"x{i}", dtype, (None,), ("a",)) for i, dtype in enumerate(dtypes)]
    bound = binding(*inputs)
    assert bound.specs == (FieldSpec("a", asked),)
    feeds = bound.feeds({"a": np.ones(3, np.dtype(asked.value))})
    assert [feeds[entry.name].dtype for entry in inputs] == [np.dtype(dtype.value) for dtype in dtypes]


def test_a_field_that_is_text_and_number_at_once_is_refused() -> None:
    with pytest.raises(BindingError, match="field 'a' feeds both an input of float32 and one of string"):
        binding(one(DType.FLOAT32, "a"), InputBinding("s", DType.STRING, (None,), ("a",)))


@pytest.mark.parametrize(
    ("fields", "shape"), [((), (None, 0)), (("a", "b"), (None, 3)), (("a",), (None, None, 1)), (("a",), (1,))]
)
def test_an_input_whose_shape_is_not_its_fields_is_refused(
    fields: tuple[str, ...], shape: tuple[int | None, ...]
) -> None:
    with pytest.raises(BindingError, match="input 'x'"):
        binding(one(DType.FLOAT32, *fields, shape=shape))


def test_a_matrix_holds_its_fields_in_order() -> None:
    feeds = binding(one(DType.FLOAT32, "b", "a")).feeds({"a": np.float32([1, 2]), "b": np.float32([3, 4])})
    np.testing.assert_array_equal(feeds["x"], np.float32([[3, 1], [4, 2]]))
    assert feeds["x"].flags.c_contiguous


def test_of_many_numbers_the_one_too_large_is_named_and_nan_and_infinity_are_what_they_are() -> None:
    columns = {"a": np.array([1.5, np.nan]), "b": np.array([np.inf, 2.0]), "c": np.float32([1, np.inf])}
    feeds = binding(one(DType.FLOAT32, "a", "b", "c")).feeds(columns)
    np.testing.assert_array_equal(feeds["x"], np.float32([[1.5, np.inf, 1], [np.nan, 2, np.inf]]))
    with pytest.raises(BindingError, match="field 'b' holds numbers too large for float32"):
        binding(one(DType.FLOAT32, "a", "b", "c")).feeds(columns | {"b": np.array([1.0, 1e300])})


def test_a_single_column_is_not_copied() -> None:
    column = np.arange(4, dtype=np.float32)
    feeds = binding(one(DType.FLOAT32, "a"), InputBinding("v", DType.FLOAT32, (None,), ("a",))).feeds({"a": column})
    assert feeds["x"].shape == (4, 1)
    assert feeds["v"].shape == (4,)
    assert np.shares_memory(feeds["x"], column)
    assert np.shares_memory(feeds["v"], column)


def test_strings_become_objects() -> None:
    feeds = binding(one(DType.STRING, "a")).feeds({"a": np.array(["x", "yy"])})
    assert feeds["x"].dtype == object
    assert feeds["x"].tolist() == [["x"], ["yy"]]


@pytest.mark.parametrize(
    ("dtype", "column"),
    [
        (DType.FLOAT32, np.array(["1"])),
        (DType.FLOAT32, np.array([True])),
        (DType.INT64, np.array([1.5])),
        (DType.INT32, np.array([1 << 40])),
        (DType.INT64, np.array([1 << 63], np.uint64)),
        (DType.BOOL, np.array([1])),
        (DType.STRING, np.array([1])),
        (DType.FLOAT32, np.array([1e300])),
    ],
)
def test_values_that_would_change_their_meaning_are_refused(dtype: DType, column: np.ndarray) -> None:
    with pytest.raises(BindingError, match="field 'a'"):
        binding(one(dtype, "a")).feeds({"a": column})


def test_columns_missing_or_of_odd_shape_are_refused() -> None:
    bound = binding(one(DType.FLOAT32, "a", "b"))
    with pytest.raises(BindingError, match=r"field 'b' is missing; the model needs it as float32 \(did you mean 'B'"):
        bound.feeds({"a": np.zeros(2, np.float32), "B": np.zeros(2, np.float32)})
    with pytest.raises(BindingError, match=r"field 'b' has shape \[3\]; every field needs one value per row, 2 here"):
        bound.feeds({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
    with pytest.raises(BindingError, match=r"field 'a' has shape \[2, 1\]"):
        bound.feeds({"a": np.zeros((2, 1), np.float32), "b": np.zeros(2, np.float32)})


def test_no_rows_make_empty_inputs() -> None:
    assert binding(one(DType.FLOAT32, "a", "b")).feeds({"a": np.zeros(0, "f4"), "b": np.zeros(0, "f4")})["x"].shape == (
        0,
        2,
    )
