"""Examples come in many forms, bind to inputs by one rule, and convert without loss of meaning or not at all."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from modelcast.errors import BindingError, SourceError, StructureError, UsageError
from modelcast.publisher.examples import Rows, bind, feeds, read
from modelcast.records import DType
from modelcast.runtime import TensorInfo

AMOUNT = TensorInfo("amount", "float32", (None, 1))
CITY = TensorInfo("city", "string", (None, 1))
MATRIX = TensorInfo("X", "float32", (None, 2))
TABLE = {"amount": [1.5, 2.0], "city": ["Rome", "Oslo"], "count": [1, 2], "ok": [True, False]}


def forms(folder: Path) -> dict[str, Any]:
    frame = pl.DataFrame(TABLE)
    frame.write_csv(folder / "e.csv")
    frame.write_ndjson(folder / "e.jsonl")
    frame.write_parquet(folder / "e.parquet")
    np.savez(folder / "e.npz", **{name: np.array(values) for name, values in TABLE.items()})
    return {
        "csv": folder / "e.csv",
        "csv as text": str(folder / "e.csv"),
        "jsonl": folder / "e.jsonl",
        "parquet": folder / "e.parquet",
        "npz": folder / "e.npz",
        "polars": frame,
        "pandas": pd.DataFrame(TABLE),
        "pandas categories": pd.DataFrame(TABLE).astype({"city": "category", "count": "Int64"}),
        "columns": TABLE,
        "arrays": {name: np.array(values) for name, values in TABLE.items()},
        "objects": {name: np.array(values, dtype=object) for name, values in TABLE.items()},
        "dicts": frame.to_dicts(),
    }


def test_every_form_gives_the_same_rows(tmp_path: Path) -> None:
    for form, source in forms(tmp_path).items():
        rows = read(source)
        assert rows.count == 2, form
        assert rows.column("amount").tolist() == [1.5, 2.0], form
        assert rows.column("city").tolist() == ["Rome", "Oslo"], form
        assert rows.column("count").dtype == np.int64, form
        assert rows.column("ok").dtype == np.bool_, form


def test_columns_nobody_asks_for_may_hold_anything() -> None:
    rows = read(pl.DataFrame({"amount": [1.0], "took": [timedelta(seconds=1)], "tags": [["a"]]}))
    assert feeds(bind([AMOUNT], rows, None), rows)["amount"].tolist() == [[1.0]]
    with pytest.raises(BindingError, match="'took' of the examples holds Duration"):
        rows.column("took")


def test_no_examples_is_a_usage_error_that_says_what_to_give() -> None:
    with pytest.raises(UsageError, match=r"no examples.*\.csv"):
        read(None)


@pytest.mark.parametrize("source", [[], {}, pl.DataFrame({"a": []}), {"a": []}, pd.DataFrame({"a": []})])
def test_examples_without_rows_are_refused(source: Any) -> None:
    with pytest.raises(SourceError, match="no rows"):
        read(source)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    np.save(tmp_path / "plain.npy", np.zeros(2))
    (tmp_path / "plain.npy").rename(tmp_path / "plain.npz")
    for name in ("bad.npz", "objects.npz", "plain.npz", "nowhere.npz", "nowhere.csv"):
        with pytest.raises(SourceError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("source", [3, "nowhere.xls", [1, 2], {"a": 1.0}])
def test_what_are_no_examples_is_refused(source: Any) -> None:
    with pytest.raises(SourceError):
        read(source)


def test_rows_of_different_kinds_are_refused_where_they_are_asked_for() -> None:
    rows = read([{"a": 1, "b": 1, "c": 2}, {"a": "x", "b": 2.5}])
    assert rows.column("b").tolist() == [1.0, 2.5]
    assert np.isnan(rows.column("c")[1])
    with pytest.raises(BindingError, match="'a' of the examples holds Object"):
        rows.column("a")


def test_arrays_of_different_lengths_are_told() -> None:
    with pytest.raises(SourceError, match="a: 2, b: 3"):
        read({"a": np.zeros(2), "b": np.zeros(3)})


def test_inputs_take_the_field_of_their_name() -> None:
    rows = read(TABLE)
    bindings = bind([AMOUNT, CITY, TensorInfo("ok", "bool", (None,))], rows, None)
    assert [(b.name, b.dtype, b.shape, b.fields) for b in bindings] == [
        ("amount", DType.FLOAT32, (None, 1), ("amount",)),
        ("city", DType.STRING, (None, 1), ("city",)),
        ("ok", DType.BOOL, (None,), ("ok",)),
    ]
    fed = feeds(bindings, rows)
    assert fed["amount"].dtype == np.float32
    assert fed["amount"].shape == (2, 1)
    assert fed["city"].tolist() == [["Rome"], ["Oslo"]]
    assert fed["ok"].tolist() == [True, False]


def test_fields_name_the_columns_of_a_matrix_in_order() -> None:
    rows = read(TABLE)
    (binding,) = bind([MATRIX], rows, ["count", "amount"])
    assert binding.fields == ("count", "amount")
    assert feeds([binding], rows)["X"].tolist() == [[1.0, 1.5], [2.0, 2.0]]


def test_a_matrix_of_any_width_takes_as_many_columns_as_are_named() -> None:
    (binding,) = bind([TensorInfo("X", "float64", (None, None))], read(TABLE), ["amount", "count"])
    assert binding.shape == (None, 2)


def test_a_matrix_takes_a_table_of_exactly_its_columns_in_order() -> None:
    (binding,) = bind([MATRIX], read({"b": [1.0], "a": [2]}), None)
    assert binding.fields == ("b", "a")


def test_a_matrix_given_as_an_array_still_needs_its_fields_named() -> None:
    rows = read({"X": np.arange(6.0).reshape(3, 2)})
    with pytest.raises(UsageError, match=r"its 2 columns.*--fields a,b,c"):
        bind([MATRIX], rows, None)
    fed = feeds(bind([MATRIX], rows, ["a", "b"]), rows)
    assert fed["X"].tolist() == [[0, 1], [2, 3], [4, 5]]


def test_one_field_may_be_named_for_a_single_column() -> None:
    rows = read({"speed": [1.0, 2.0]})
    (binding,) = bind([TensorInfo("input_1", "float32", (None, 1))], rows, ["speed"])
    assert binding.fields == ("speed",)
    assert feeds([binding], rows)["input_1"].tolist() == [[1.0], [2.0]]


@pytest.mark.parametrize(
    ("inputs", "fields", "said"),
    [
        ([MATRIX], ["a"], "names 1 field, and matrix input 'X' takes 2"),
        ([MATRIX], ["amount", "amount"], "'amount' twice"),
        ([MATRIX], ["amount", ""], "empty"),
        ([AMOUNT, CITY], ["amount"], "single matrix input"),
        ([AMOUNT], ["amount", "count"], "names 2 fields, and the model takes 1"),
    ],
)
def test_fields_that_do_not_fit_are_a_usage_error(inputs: list[TensorInfo], fields: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        bind(inputs, read(TABLE), fields)


@pytest.mark.parametrize(
    ("info", "error", "said"),
    [
        (TensorInfo("x", "float16", (None, 1)), StructureError, "float16"),
        (TensorInfo("x", "float32", ()), StructureError, "no batch dimension"),
        (TensorInfo("x", "float32", (1, 4)), StructureError, "exactly 1 row.*dynamic"),
        (TensorInfo("x", "string", (None, 3, 8)), StructureError, r"\[N, 3, 8\] of string"),
        (TensorInfo("x", "float32", (None, 3, 8)), BindingError, r"input 'x' \(float32, \[N, 3, 8\]\)"),
        (TensorInfo("x", "float32", (None, 1)), BindingError, "input 'x'.*'amount', 'city'"),
    ],
)
def test_inputs_that_cannot_be_fed_are_refused(info: TensorInfo, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        bind([info], read(TABLE), None)


def test_two_matrices_cannot_be_bound() -> None:
    with pytest.raises(BindingError, match="2 matrix inputs, 'X', 'Y'"):
        bind([MATRIX, TensorInfo("Y", "float32", (None, 3))], read(TABLE), ["amount", "count"])


@pytest.mark.parametrize(
    ("values", "dtype", "want"),
    [
        ([1, 2], "float32", [1.0, 2.0]),
        ([1.5, 2.5], "float64", [1.5, 2.5]),
        ([1, 2], "int32", [1, 2]),
        ([True, False], "bool", [True, False]),
        (["a", ""], "string", ["a", ""]),
    ],
)
def test_values_convert_without_loss(values: list[Any], dtype: str, want: list[Any]) -> None:
    rows = read({"v": values})
    fed = feeds(bind([TensorInfo("v", dtype, (None,))], rows, None), rows)["v"]
    assert fed.tolist() == want
    assert fed.dtype == (object if dtype == "string" else np.dtype(dtype))


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([1.0, 2.0], "int64"),
        ([True, False], "float32"),
        (["1", "2"], "float32"),
        ([1, 2], "string"),
        ([1, 2], "bool"),
        ([2**31, 1], "int32"),
        (["a", None], "string"),
        ([True, None], "bool"),
        ([1, None], "int64"),
    ],
)
def test_values_that_would_lose_their_meaning_name_the_field(values: list[Any], dtype: str) -> None:
    rows = read({"v": values})
    with pytest.raises(BindingError, match="'v'"):
        feeds(bind([TensorInfo("v", dtype, (None,))], rows, None), rows)


def test_a_missing_number_is_nan_for_a_float_input(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("a,b\n1,2.5\n,\n")
    rows = read(tmp_path / "e.csv")
    bindings = bind([TensorInfo(name, "float32", (None,)) for name in "ab"], rows, None)
    fed = feeds(bindings, rows)
    assert np.isnan([fed["a"][1], fed["b"][1]]).all()


def test_a_missing_text_names_its_row() -> None:
    rows = read({"city": ["Rome", None]})
    with pytest.raises(BindingError, match="misses a text in row 1"):
        feeds(bind([CITY], rows, None), rows)


def test_head_keeps_the_first_rows() -> None:
    rows = read(pl.DataFrame({"a": list(range(10))})).head(3)
    assert isinstance(rows, Rows)
    assert (rows.count, rows.column("a").tolist()) == (3, [0, 1, 2])
