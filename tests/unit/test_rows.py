"""What `consumer/rows.py` promises: rows of every usual shape give the same columns, or a clear error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl
import pytest

from modelcast.consumer.binding import Binding
from modelcast.consumer.rows import check_feeds, columns_of, count_of
from modelcast.errors import BindingError
from modelcast.records import DType, InputBinding, Signature
from modelcast.tensors import FieldSpec

AMOUNT = FieldSpec("amount", DType.FLOAT32)
COUNT = FieldSpec("count", DType.INT64)
COUNTRY = FieldSpec("country", DType.STRING)
NIGHT = FieldSpec("night", DType.BOOL)
SPECS = (AMOUNT, COUNT, COUNTRY, NIGHT)

TABLE = {"amount": [1.5, 2.0], "count": [1, 2], "country": ["de", "fr"], "night": [True, False]}
RECORDS = [
    {"amount": 1.5, "count": 1, "country": "de", "night": True},
    {"amount": 2.0, "count": 2, "country": "fr", "night": False, "unused": None},
]


class Stream:
    """What any library of Arrow tables offers, and nothing else of it."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._frame.__arrow_c_stream__(requested_schema)


class Column:
    """An Arrow array, by what numpy and a check for nulls need of it."""

    def __init__(self, values: list[Any]) -> None:
        self.null_count = values.count(None)
        self._values = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self._values, dtype)


SHAPES: dict[str, Callable[[], Any]] = {
    "lists": lambda: TABLE,
    "tuples": lambda: {name: tuple(values) for name, values in TABLE.items()},
    "arrays": lambda: {name: np.array(values) for name, values in TABLE.items()},
    "arrays of objects": lambda: {name: np.array(values, dtype=object) for name, values in TABLE.items()},
    "series": lambda: {name: pl.Series(values) for name, values in TABLE.items()},
    "records": lambda: RECORDS,
    "a tuple of records": lambda: tuple(RECORDS),
    "a Polars frame": lambda: pl.DataFrame(TABLE),
    "a pandas frame": lambda: pytest.importorskip("pandas").DataFrame(TABLE),
    "a pandas frame of nullable types": lambda: pytest.importorskip("pandas").DataFrame(TABLE).convert_dtypes(),
    "an Arrow stream": lambda: Stream(pl.DataFrame(TABLE)),
    "an Arrow stream of categories": lambda: Stream(pl.DataFrame(TABLE, schema_overrides={"country": pl.Categorical})),
    "Arrow columns": lambda: {name: Column(values) for name, values in TABLE.items()},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_of_the_same_rows_gives_the_same_columns(shape: str) -> None:
    columns = columns_of(SHAPES[shape](), SPECS)
    assert {name: column.tolist() for name, column in columns.items()} == TABLE
    assert columns["country"].dtype == object
    assert columns["night"].dtype == bool


def test_arrays_of_the_types_the_model_takes_are_not_copied() -> None:
    rows = {"amount": np.ones(2, np.float32), "count": np.ones(2, np.int64), "night": np.ones(2, bool)}
    columns = columns_of(rows, (AMOUNT, COUNT, NIGHT))
    assert all(columns[name] is array for name, array in rows.items())


@pytest.mark.parametrize("values", [np.array([1, 2]), np.array([1.0], dtype=object), np.float32(1.0), np.array(1.0)])
def test_arrays_of_other_types_give_what_lists_of_them_give(values: Any) -> None:
    as_lists = columns_of({"amount": np.asarray(values).tolist()}, (AMOUNT,))["amount"]
    assert np.array_equal(columns_of({"amount": values}, (AMOUNT,))["amount"], as_lists)


def test_a_column_of_rows_of_one_length_is_one_array() -> None:
    images = FieldSpec("image", DType.UINT8, (2, 2))
    frame = pl.DataFrame({"image": [[1, 2, 3, 4], [5, 6, 7, 8]]}, schema={"image": pl.Array(pl.UInt8, 4)})
    for rows in (frame, Stream(frame), frame.to_dict(as_series=False)):
        assert columns_of(rows, (images,))["image"].tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8]]]


def test_scalars_are_one_row() -> None:
    columns = columns_of({"amount": 1.5, "count": 1, "country": "de", "night": np.bool_(True)}, SPECS)
    assert {name: column.tolist() for name, column in columns.items()} == {
        "amount": [1.5], "count": [1], "country": ["de"], "night": [True],
    }  # fmt: skip


def test_a_scalar_counts_for_every_row() -> None:
    columns = columns_of({"amount": [1.0, 2.0, 3.0], "country": "de", "count": np.array(7)}, (AMOUNT, COUNTRY, COUNT))
    assert columns["country"].tolist() == ["de"] * 3
    assert columns["count"].tolist() == [7] * 3


def test_fields_the_model_does_not_take_are_ignored() -> None:
    assert list(columns_of({"amount": [1.0], "other": [object()]}, (AMOUNT,))) == ["amount"]


@pytest.mark.parametrize("rows", [{"amount": []}, {"amount": np.empty(0)}, pl.DataFrame({"amount": []})])
def test_no_rows_are_no_rows(rows: Any) -> None:
    assert len(columns_of(rows, (AMOUNT,))["amount"]) == 0


def test_a_float_that_is_not_a_number_is_a_value() -> None:
    assert np.isnan(columns_of({"amount": [float("nan")]}, (AMOUNT,))["amount"]).all()


@pytest.mark.parametrize(
    ("spec", "values", "message"),
    [
        (AMOUNT, [1.0, None], "'amount' is null in row 1"),
        (AMOUNT, None, "'amount' is null in row 0"),
        (AMOUNT, [1.0, "2"], "'amount' is '2' in row 1"),
        (AMOUNT, "12.5", "'amount' is '12.5' in row 0"),
        (AMOUNT, [1.0, True], "'amount' is True in row 1"),
        (AMOUNT, np.array([True]), "'amount' is bool"),
        (AMOUNT, pl.Series([1.0, None]), "'amount' is null in 1 rows"),
        (COUNTRY, ["de", 1], "'country' is 1 in row 1"),
        (COUNTRY, np.array(["de", float("nan")], dtype=object), "'country' is nan in row 1"),
        (COUNTRY, pl.Series(["de", None]), "'country' is null in 1 rows"),
        (COUNTRY, b"de", "'country' is b'de' in row 0"),
        (NIGHT, [1, 0], "'night' is 1 in row 0"),
        (COUNT, [1, False], "'count' is False in row 1"),
        (COUNT, [1, {}], "'count' is {} in row 1"),
        (AMOUNT, Column([1.0, None]), "'amount' is null in 1 rows"),
    ],
)
def test_a_value_of_another_kind_is_named_with_its_row(spec: FieldSpec, values: Any, message: str) -> None:
    with pytest.raises(BindingError, match=message):
        columns_of({spec.name: values}, (spec,))


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "object"])
def test_what_pandas_holds_as_missing_is_null_and_no_number(dtype: str) -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(BindingError, match="null in 1 rows|<NA> in row 1"):
        columns_of(pandas.DataFrame({"amount": pandas.Series([1, pandas.NA], dtype=dtype)}), (AMOUNT,))


def test_a_stream_that_ends_in_an_error_is_named() -> None:
    class Broken:
        def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
            raise ValueError("the connection was lost")

    with pytest.raises(BindingError, match="a Broken can't be read as an Arrow table: the connection was lost"):
        columns_of(Broken(), (AMOUNT,))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"amount": 1.0}, {}], "'amount' is missing in row 1"),
        ([{"amount": 1.0}, 7], "row 1 is a int"),
        ("amount", "a str can't"),
        (7, "a int can't"),
    ],
)
def test_rows_that_are_none_are_named(rows: Any, message: str) -> None:
    with pytest.raises(BindingError, match=message):
        columns_of(rows, (AMOUNT,))


@pytest.mark.parametrize(
    "rows",
    [
        {"amuont": [1.0]},
        {"amuont": 1.0, 7: 2.0},
        [{"amuont": 1.0}],
        pl.DataFrame({"amuont": [1.0]}),
    ],
)
def test_a_misspelt_field_is_named_with_what_was_meant(rows: Any) -> None:
    with pytest.raises(BindingError, match=r"field 'amount' is missing; .* \(did you mean 'amuont'\?\)"):
        columns_of(rows, (AMOUNT,))


def test_what_is_missing_or_uneven_is_named() -> None:
    inputs = tuple(InputBinding(spec.name, spec.dtype, (None,), (spec.name,)) for spec in (AMOUNT, COUNT))
    binding = Binding(Signature(inputs, ()))
    with pytest.raises(BindingError, match="field 'count' is missing"):
        binding.feeds(columns_of({"amount": [1.0]}, binding.specs))
    with pytest.raises(BindingError, match="one value per row"):
        binding.feeds(columns_of({"amount": [1.0, 2.0], "count": [1, 2, 3]}, binding.specs))


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ({}, 1),
        ({"amount": 1.0, "country": "de"}, 1),
        ({"country": "de", "night": np.array(True), "amount": np.ones(7)}, 7),
        (RECORDS, 2),
        (pl.DataFrame(TABLE), 2),
        (Stream(pl.DataFrame(TABLE)), None),
    ],
)
def test_how_many_rows_there_are_is_told_without_a_look_at_them(rows: Any, count: int | None) -> None:
    assert count_of(rows) == count


FEEDS = {"x": np.ones((3, 2), np.float32), "text": np.array(["a", "b", "c"], dtype=object)}
INPUTS = Signature(
    (
        InputBinding("x", DType.FLOAT32, (None, 2), ("amount", "age")),
        InputBinding("text", DType.STRING, (None,), ("text",)),
    ),
    (),
)


def test_the_graphs_own_inputs_are_taken() -> None:
    check_feeds(FEEDS, INPUTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": None}, "input 'x' is a NoneType, the model needs an array of float32"),
        ({"x": [[1.0, 2.0]]}, "input 'x' is a list"),
        ({"y": np.ones(1)}, "the model has no input 'y'. Its inputs are: x, text"),
        ({"x": np.ones((3, 2))}, "input 'x' is an array of float64, the model needs an array of float32"),
        ({"x": np.ones((3, 3), np.float32)}, r"input 'x' has shape \[3, 3\], the model needs \[N, 2\]"),
        ({"x": np.ones(2, np.float32)}, r"shape \[2\], the model needs \[N, 2\]"),
        ({"text": np.array(["a"] * 3)}, "input 'text' is an array of <U1, the model needs an array of object"),
        ({"text": np.array(["a"], dtype=object)}, r"input 'text' has shape \[1\], the model needs \[N\], N is 3 here"),
    ],
)
def test_inputs_that_are_not_the_graphs_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BindingError, match=message):
        check_feeds(FEEDS | change, INPUTS)


def test_an_input_that_is_missing_is_named() -> None:
    with pytest.raises(BindingError, match="input 'text' is missing"):
        check_feeds({"x": FEEDS["x"]}, INPUTS)
