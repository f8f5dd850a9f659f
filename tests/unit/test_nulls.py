"""What null counts as, from the publisher's word or examples to the manifest, and in what applications predict on."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from modelcast.consumer.rows import columns_of
from modelcast.errors import BindingError, UsageError
from modelcast.publisher.examples import bind, feeds, read
from modelcast.publisher.nulls import as_texts, rules_of
from modelcast.records import DType, InputBinding, NullRule
from modelcast.runtime import TensorInfo
from modelcast.tensors import FieldSpec

INPUTS = [
    TensorInfo("amount", "float32", (None, 1)),
    TensorInfo("card.limit", "int64", (None, 1)),
    TensorInfo("card.country", "string", (None, 1)),
]
ROWS: list[dict[str, Any]] = [
    {"amount": 1.5, "card": {"limit": 3, "country": "DE"}},
    {"amount": None, "card": None},
    {"amount": 2.5, "card": {"limit": None, "country": "FR"}},
]
RULES = {"card.limit": "-1", "card.country": ""}


def forms(folder: Path) -> Mapping[str, Any]:
    """The same examples in every form that has records."""
    frame = pl.DataFrame(ROWS)
    frame.write_parquet(folder / "rows.parquet")
    frame.write_ndjson(folder / "rows.jsonl")
    flat = {"amount": [1.5, None, 2.5], "card.limit": [3, None, None], "card.country": ["DE", None, "FR"]}
    return {
        "dicts": ROWS,
        "polars": frame,
        "pandas": pd.DataFrame(ROWS),
        "parquet": folder / "rows.parquet",
        "json lines": folder / "rows.jsonl",
        "columns by path": flat,
        "pandas by path": pd.DataFrame(flat),
        "objects by path": {name: np.array(values, object) for name, values in flat.items()},
    }


def test_records_of_examples_are_fields_by_path_and_gaps_are_filled(tmp_path: Path) -> None:
    for form, source in forms(tmp_path).items():
        rows = read(source).filled(RULES)
        bindings = bind(INPUTS, rows, None)
        fed = feeds(bindings, rows)
        assert fed["card.limit"].tolist() == [[3], [-1], [-1]], form
        assert fed["card.country"].tolist() == [["DE"], [""], ["FR"]], form
        assert np.isnan(fed["amount"]).tolist() == [[False], [True], [False]], form
        assert rules_of(bindings, fed, RULES) == (
            NullRule("amount", "nan"), NullRule("card.limit", "-1"), NullRule("card.country", ""),
        ), form  # fmt: skip


def test_a_column_that_is_called_like_a_path_goes_before_it() -> None:
    rows = read({"a": [{"b": 1}], "a.b": [2]})
    assert rows.column("a.b").tolist() == [2]


def test_a_float_field_without_gaps_and_a_whole_row_with_some_get_no_rule() -> None:
    bindings = (
        InputBinding("x", DType.FLOAT32, (None, 2), ("a", "b")),
        InputBinding("row", DType.FLOAT32, (None, 3), ("row",)),
    )
    fed = {"x": np.float32([[1, np.nan], [2, 3]]), "row": np.full((2, 3), np.nan, np.float32)}
    assert rules_of(bindings, fed, {}) == (NullRule("b", "nan"),)
    assert rules_of(bindings, fed, {"b": "0.5"}) == (NullRule("b", "0.5"),)


@pytest.mark.parametrize(
    ("nulls", "said"),
    [
        ({"nobody": "0"}, "does not take it"),
        ({"row": "0"}, "whole row"),
        ({"n": "nan"}, "int64"),
        ({"a": "many"}, "float32"),
    ],
)
def test_a_rule_that_can_not_hold_is_refused(nulls: dict[str, str], said: str) -> None:
    bindings = (
        InputBinding("a", DType.FLOAT32, (None,), ("a",)),
        InputBinding("n", DType.INT64, (None,), ("n",)),
        InputBinding("row", DType.UINT8, (None, 3), ("row",)),
    )
    fed = {"a": np.zeros(1, np.float32), "n": np.zeros(1, np.int64), "row": np.zeros((1, 3), np.uint8)}
    with pytest.raises(UsageError, match=said):
        rules_of(bindings, fed, nulls)


def test_examples_that_can_not_hold_it_are_refused() -> None:
    with pytest.raises(UsageError, match="true and false"):
        read({"flag": [True, None]}).filled({"flag": "maybe"})
    assert read({"flag": [True, None]}).filled({"flag": "false"}).column("flag").tolist() == [True, False]


def test_whole_floats_stay_floats_as_those_of_events_will_be_though_nulls_count_as_a_whole_number() -> None:
    """Else a converted model takes integers, and is refused by the very events that its examples came from."""
    for form, source in {
        "a frame without gaps": pl.DataFrame({"limit": [100.0, 200.0]}),
        "a frame with some": pl.DataFrame({"limit": [100.0, None]}),
        "dicts": [{"limit": 100.0}, {"limit": None}],
        "pandas without gaps": pd.DataFrame({"limit": [100.0, 200.0]}),
        "objects": {"limit": np.array([100.0, None], object)},
    }.items():
        assert read(source).filled({"limit": "0"}).column("limit").dtype.kind == "f", form
    for widened in (pd.DataFrame({"limit": [100, None]}), {"limit": np.array([100.0, math.nan])}):
        assert read(widened).filled({"limit": "0"}).column("limit").dtype.kind == "i"


def test_values_are_kept_as_text() -> None:
    values = {"a": math.nan, "b": 1, "c": True, "d": "", "e": 0.1, "f": np.float32(2), "g": np.int64(-3)}
    assert as_texts(values) == {"a": "nan", "b": "1", "c": "true", "d": "", "e": "0.1", "f": "2.0", "g": "-3"}
    with pytest.raises(UsageError, match="'a'"):
        as_texts({"a": None})


EARLY = datetime.datetime(1969, 12, 31, 23, 59, 59, 999_500)


def test_times_and_dates_of_examples_are_what_they_are_in_events() -> None:
    days = [datetime.date(1970, 1, 3), None]
    for times in (pl.Series([EARLY, None]), pd.Series([EARLY, None]), np.array([EARLY, "NaT"], "M8[us]")):
        rows = read({"at": times}).filled({"at": "0"})
        assert rows.column("at").tolist() == [-1, 0]
    assert read({"day": days}).filled({"day": "-7"}).column("day").tolist() == [2, -7]


AMOUNT = FieldSpec("amount", DType.FLOAT32, null="nan")
LIMIT = FieldSpec("card.limit", DType.INT64, null="-1")
COUNTRY = FieldSpec("card.country", DType.STRING, null="")


def test_an_application_predicts_on_the_same_records_and_gaps(tmp_path: Path) -> None:
    for form, source in forms(tmp_path).items():
        if isinstance(source, Path):
            continue
        columns = columns_of(source, [AMOUNT, LIMIT, COUNTRY])
        assert columns["card.country"].tolist() == ["DE", "", "FR"], form
        np.testing.assert_array_equal(columns["amount"], [1.5, np.nan, 2.5], form)
        if form != "pandas by path":  # there a gap has made floats of the integers
            assert columns["card.limit"].tolist() == [3, -1, -1], form


def test_what_is_not_there_at_all_counts_as_null_where_the_model_says_so() -> None:
    assert columns_of({"amount": [1.0, 2.0]}, [AMOUNT, COUNTRY])["card.country"].tolist() == ["", ""]
    assert columns_of([{"amount": 1.0}, {}], [AMOUNT])["amount"][1] != 1.0
    with pytest.raises(BindingError, match=r"'card\.country' is missing"):
        columns_of([{"card": {}}], [FieldSpec("card.country", DType.STRING)])
    with pytest.raises(BindingError, match=r"'card\.country' is null"):
        columns_of([{"card": None}], [FieldSpec("card.country", DType.STRING)])


@pytest.mark.parametrize("times", [pl.Series([EARLY]), pd.Series([EARLY]), np.array([EARLY], "M8[ns]")])
def test_an_application_gives_times_as_times(times: Any) -> None:
    assert columns_of({"at": times}, [FieldSpec("at", DType.INT64)])["at"].tolist() == [-1]
