"""Rows to bytes: the column-wise encoder writes what fastavro writes, and says which row does not fit."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.avro import FRAME_BYTES, Schema
from modelcast.errors import UsageError
from modelcast.events.encode import encode_avro, encode_json, encode_keys, text_fields, timestamps_ms
from modelcast.events.infer import infer_schema_of, record_name

LONGS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "l": LONGS,
            "nl": st.none() | LONGS,
            "i": st.integers(-(2**31), 2**31 - 1),
            "d": st.floats(),
            "nd": st.none() | st.floats(),
            "f": st.floats(width=32),
            "s": TEXTS,
            "ns": st.none() | TEXTS,
            "b": st.booleans(),
            "nb": st.none() | st.booleans(),
            "raw": st.binary(max_size=20),
        }
    ),
    min_size=1,
    max_size=30,
)
TYPES: dict[str, tuple[Any, Any]] = {
    "l": ("long", pl.Int64), "nl": (["null", "long"], pl.Int64), "i": ("int", pl.Int32), "d": ("double", pl.Float64),
    "nd": (["double", "null"], pl.Float64), "f": ("float", pl.Float32), "s": ({"type": "string"}, pl.String),
    "ns": (["string", "null"], pl.String), "b": ("boolean", pl.Boolean), "nb": (["null", "boolean"], pl.Boolean),
    "raw": ("bytes", pl.Binary),
}  # fmt: skip


def record(*fields: dict[str, Any]) -> Schema:
    return Schema.parse({"type": "record", "name": "event", "fields": list(fields)})


@given(ROWS)
def test_columns_give_the_same_bytes_as_fastavro(rows: list[dict[str, Any]]) -> None:
    schema = record(*({"name": name, "type": avro} for name, (avro, _) in TYPES.items()))
    frame = pl.DataFrame(rows, schema={name: dtype for name, (_, dtype) in TYPES.items()})
    assert encode_avro(frame, schema) == [schema.encode_single_object(row) for row in frame.to_dicts()]


@given(ROWS)
def test_an_inferred_schema_carries_every_row_back(rows: list[dict[str, Any]]) -> None:
    frame = pl.DataFrame(rows, schema={name: dtype for name, (_, dtype) in TYPES.items()})
    schema = infer_schema_of("event", frame)
    decoded = [schema.decode(data, start=FRAME_BYTES) for data in encode_avro(frame, schema)]
    assert pl.DataFrame(decoded, schema=frame.schema).equals(frame)


def test_inferred_types() -> None:
    frame = pl.DataFrame(
        {
            "n": pl.Series([1], dtype=pl.UInt8), "x": [0.5], "y": pl.Series([0.5], dtype=pl.Float32),
            "s": ["a"], "b": [True], "gone": [None], "price": [Decimal("1.5")],
            "at": [datetime(2013, 1, 2, 3, 4, 5, tzinfo=UTC)], "on": [date(2013, 1, 2)],
            "many": [[1, 2]], "inner": [{"a": 1}],
        }
    )  # fmt: skip
    schema = infer_schema_of("my-topic.v1", frame)
    types = {field["name"]: field["type"] for field in schema.definition["fields"]}
    assert schema.definition["name"] == "my_topic_v1"
    assert types["many"] == {"type": "array", "items": ["null", "long"]}
    assert types["inner"]["fields"] == [{"name": "a", "type": ["null", "long"]}]
    del types["many"], types["inner"]
    assert types == {
        "n": "long", "x": "double", "y": "float", "s": "string", "b": "boolean", "gone": ["null", "string"],
        "price": "double", "at": "string", "on": "string",
    }  # fmt: skip


def test_nested_columns_go_the_whole_way() -> None:
    frame = pl.DataFrame(
        {"many": [[1, None], []], "inner": [{"a": 1, "b": "x"}, {"a": None, "b": None}], "at": [date(2013, 1, 2)] * 2}
    )
    schema = infer_schema_of("event", frame)
    decoded = [schema.decode(data, start=FRAME_BYTES) for data in encode_avro(frame, schema)]
    assert decoded == [
        {"many": [1, None], "inner": {"a": 1, "b": "x"}, "at": "2013-01-02"},
        {"many": [], "inner": {"a": None, "b": None}, "at": "2013-01-02"},
    ]


def test_logical_types_of_a_given_schema_are_kept() -> None:
    schema = record({"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}})
    moment = datetime(2013, 1, 2, tzinfo=UTC)
    (data,) = encode_avro(pl.DataFrame({"at": [moment]}), schema)
    assert schema.decode(data, start=FRAME_BYTES) == {"at": moment}


@pytest.mark.parametrize("name", ["dep delay", "1st", "", "größe"])
def test_a_column_name_that_avro_does_not_allow_is_refused_by_name(name: str) -> None:
    with pytest.raises(UsageError, match="can't be the name of an Avro field") as caught:
        infer_schema_of("event", pl.DataFrame({name: [1]}))
    assert repr(name) in caught.value.message


def test_a_column_type_that_avro_has_no_like_of_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match="column 'took' is of type Duration"):
        infer_schema_of("event", pl.DataFrame({"took": [1]}).cast(pl.Duration))


@pytest.mark.parametrize(("topic", "name"), [("flights", "flights"), ("a-b.c", "a_b_c"), ("2013", "_2013")])
def test_record_names_are_made_legal(topic: str, name: str) -> None:
    assert record_name(topic) == name


@pytest.mark.parametrize(
    ("avro", "values", "message"),
    [
        ("long", [1, None], "row 12, field 'a': null is not a long"),
        ("long", ["x", "y"], "row 11, field 'a': 'x' is not a long"),
        ("long", [1.0, 2.0], "row 11, field 'a': 1.0 is not a long"),
        ("int", [1, 2**31], "row 12, field 'a': 2147483648 is too large for int"),
        ("string", [1, 2], "row 11, field 'a': 1 is not a string"),
        ("boolean", [1, 0], "row 11, field 'a': 1 is not a boolean"),
        ("double", [True, False], "row 11, field 'a': True is not a double"),
        (["null", "double"], [None, "x"], "row 12, field 'a': 'x' is not a double"),
        ({"type": "enum", "name": "e", "symbols": ["x"]}, ["x", "y"], "row 12 does not fit the Avro schema"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_row_and_field(avro: Any, values: list[Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        encode_avro(pl.DataFrame({"a": values}), record({"name": "a", "type": avro}), first_row=11)
    assert message in caught.value.message
    assert caught.value.hint


def test_an_integer_beyond_64_bits_is_refused() -> None:
    frame = pl.DataFrame({"a": pl.Series([1, 2**63], dtype=pl.UInt64)})
    with pytest.raises(UsageError, match="row 2, field 'a': 9223372036854775808 is too large for long"):
        encode_avro(frame, infer_schema_of("event", frame))


def test_a_field_without_a_column_takes_its_default_or_null() -> None:
    schema = record(
        {"name": "a", "type": "long"},
        {"name": "n", "type": ["null", "string"]},
        {"name": "d", "type": "string", "default": "x"},
    )
    (data,) = encode_avro(pl.DataFrame({"a": [1], "extra": [2]}), schema)
    assert schema.decode(data, start=FRAME_BYTES) == {"a": 1, "n": None, "d": "x"}


def test_a_field_without_a_column_or_default_is_named() -> None:
    with pytest.raises(UsageError, match="a field 'b', but the data has no such column"):
        encode_avro(pl.DataFrame({"a": [1]}), record({"name": "b", "type": "long"}))


def test_a_schema_that_is_no_record_is_refused() -> None:
    with pytest.raises(UsageError, match="must be a record"):
        encode_avro(pl.DataFrame({"a": [1]}), Schema.parse({"type": "array", "items": "long"}))


def test_text_fields_are_those_whose_digits_stay_text() -> None:
    schema = record(
        {"name": "zip", "type": ["null", "string"]}, {"name": "n", "type": "long"}, {"name": "s", "type": "string"}
    )
    assert text_fields(schema) == {"zip", "s"}


@given(
    st.lists(st.fixed_dictionaries({"s": st.none() | TEXTS, "n": st.none() | LONGS, "b": st.booleans()}), min_size=1)
)
def test_json_gives_the_rows_back(rows: list[dict[str, Any]]) -> None:
    frame = pl.DataFrame(rows, schema={"s": pl.String, "n": pl.Int64, "b": pl.Boolean})
    assert [json.loads(data) for data in encode_json(frame)] == rows


def test_json_times_are_iso_texts() -> None:
    frame = pl.DataFrame({"at": [datetime(2013, 1, 2, 3, 4, 5, 250_000, tzinfo=UTC)], "on": [date(2013, 1, 2)]})
    assert json.loads(encode_json(frame)[0]) == {"at": "2013-01-02T03:04:05.250Z", "on": "2013-01-02"}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_has_no_json_is_refused_by_row(value: float) -> None:
    with pytest.raises(UsageError, match="row 2, field 'a': .* has no JSON"):
        encode_json(pl.DataFrame({"a": [1.0, value]}))


def test_keys_are_text() -> None:
    frame = pl.DataFrame({"s": ["ä", None], "n": [1, -2], "b": [True, False]})
    assert encode_keys(frame, "s") == ["ä".encode(), None]
    assert encode_keys(frame, "n") == [b"1", b"-2"]
    assert encode_keys(frame, "b") == [b"true", b"false"]


def test_a_key_or_timestamp_that_is_no_field_is_named_with_those_there_are() -> None:
    frame = pl.DataFrame({"a": [1], "b": [2]})
    with pytest.raises(UsageError, match="no field 'c' for --key") as caught:
        encode_keys(frame, "c")
    assert caught.value.hint == "It has: a, b."
    with pytest.raises(UsageError, match="no field 'c' for --timestamp"):
        timestamps_ms(frame, "c")
    with pytest.raises(UsageError, match="it can't be a key"):
        encode_keys(pl.DataFrame({"a": [[1]]}), "a")


@pytest.mark.parametrize(
    "column",
    [
        [1357005600123],
        ["2013-01-01T02:00:00.123Z"],
        ["2013-01-01T02:00:00.123"],
        ["2013-01-01 04:00:00.123+02:00"],
        [datetime(2013, 1, 1, 2, 0, 0, 123_000, tzinfo=UTC)],
        [datetime(2013, 1, 1, 2, 0, 0, 123_000)],
    ],
)
def test_timestamps_are_epoch_milliseconds_or_iso_8601(column: list[Any]) -> None:
    assert timestamps_ms(pl.DataFrame({"t": column}), "t") == [1357005600123]


def test_a_date_is_its_midnight() -> None:
    assert timestamps_ms(pl.DataFrame({"t": [date(2013, 1, 1)]}), "t") == [1356998400000]
    assert timestamps_ms(pl.DataFrame({"t": ["2013-01-01"]}), "t") == [1356998400000]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["2013-01-01", "yesterday"], "row 6, field 't': 'yesterday' is not an ISO 8601 time"),
        ([1, None], "row 6, field 't': there is no time"),
        ([1, -1], "row 6, field 't': -1 lies before 1970"),
        (["2013-01-01", "1969-12-31"], "row 6, field 't': 1969-12-31 lies before 1970"),
        ([1.5, 2.5], "field 't' is of type Float64: it can't be a timestamp"),
    ],
)
def test_a_bad_timestamp_is_named_by_row(values: list[Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        timestamps_ms(pl.DataFrame({"t": values}), "t", first_row=5)
    assert message in caught.value.message
