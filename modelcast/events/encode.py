"""Rows of a table to the bytes of records: values (Avro or JSON), keys, timestamps. Pure; whole frames at a time.

- Avro values are single-object encoded. Flat schemas (numbers, texts, booleans, bytes, each perhaps nullable) are
  encoded column by column, every distinct value once, and joined row by row: several times faster than row by row, and
  the very same bytes. Any other schema goes through fastavro.
- A value fits its field or the frame is refused: integers fit integers in range and floats, text fits text; nothing is
  rounded, parsed or cut. The error names the row (from 1, over all frames of a file) and the field.
- A field that the table has no column for takes its default, or null where it may; a column that the schema has no
  field for is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import repeat
from typing import Any

import numpy as np
import polars as pl

from modelcast.avro import Schema
from modelcast.errors import ModelcastError, UsageError, WireError

_INT_BITS = {"int": 32, "long": 64}
_FLOAT_LAYOUT = {"float": ("<f4", "V4"), "double": ("<f8", "V8")}


def encode_avro(frame: pl.DataFrame, schema: Schema, *, first_row: int = 1) -> list[bytes]:
    """One single-object record per row.

    Raises:
        UsageError: The schema is not a record, or a row does not fit it.
    """
    fields = record_fields(schema)
    kinds = {field["name"]: _simple(field["type"]) for field in fields}
    texts = [name for name, kind in kinds.items() if kind is not None and kind[0] == "string"]
    frame = frame.select(
        _as_text(column) if column.name in texts else column for column in frame.iter_columns() if column.name in kinds
    )
    parts: list[list[bytes]] = []
    for field in fields:
        kind = kinds[field["name"]]
        if kind is None:
            return _encode_rows(frame, schema, first_row)
        parts.append(_encode_column(frame, field, kind, first_row))
    return list(map(b"".join, zip(repeat(schema.frame, frame.height), *parts, strict=True)))


def encode_json(frame: pl.DataFrame, *, first_row: int = 1) -> list[bytes]:
    """One JSON object (UTF-8) per row; dates and times as ISO 8601 text, bytes as base64.

    Raises:
        UsageError: A value has no JSON: NaN, an infinity.
    """
    for column in frame.iter_columns():
        if column.dtype.is_float():
            _refuse(column, ~column.is_finite(), first_row, lambda value: f"{value} has no JSON")
        elif isinstance(column.dtype, pl.Object):
            raise UsageError(f"column {column.name!r} holds Python objects, which have no JSON", hint="Leave it out.")
    plain = frame.select(
        column.bin.encode("base64") if isinstance(column.dtype, pl.Binary) else _as_text(column)
        for column in frame.iter_columns()
    )
    return plain.write_ndjson().encode().split(b"\n")[: frame.height]


def encode_keys(frame: pl.DataFrame, field: str) -> list[bytes | None]:
    """A column's values as UTF-8 text; null is no key. Raises UsageError: no such column, or none that has a text."""
    column = _as_text(_column(frame, field, "--key"))
    if column.dtype.is_nested() or isinstance(column.dtype, (pl.Binary, pl.Object)):
        raise UsageError(f"field {field!r} is of type {column.dtype}: it can't be a key", hint="Name another --key.")
    return [None if value is None else value.encode() for value in column.cast(pl.String).to_list()]


def timestamps_ms(frame: pl.DataFrame, field: str, *, first_row: int = 1) -> list[int]:
    """A column's values as epoch milliseconds.

    Integers are epoch milliseconds already; texts are ISO 8601; a time without a zone is UTC.

    Raises:
        UsageError: No such column, or a value is no time after 1970; names the row.
    """
    column = times = _column(frame, field, "--timestamp")
    _refuse(column, column.is_null(), first_row, lambda _: "there is no time")
    if isinstance(column.dtype, (pl.Datetime, pl.Date)):
        times = column.cast(pl.Datetime("ms")).dt.timestamp("ms")
    elif isinstance(column.dtype, pl.String):
        texts = column.to_list()
        known = {text: _epoch_ms(text) for text in set(texts)}
        times = pl.Series(field, [known[text] for text in texts], dtype=pl.Int64)
        _refuse(column, times.is_null(), first_row, lambda text: f"{text!r} is not an ISO 8601 time")
    elif not column.dtype.is_integer():
        raise UsageError(
            f"field {field!r} is of type {column.dtype}: it can't be a timestamp",
            hint="Give epoch milliseconds or ISO 8601 texts.",
        )
    _refuse(column, times < 0, first_row, lambda value: f"{value} lies before 1970")
    return times.to_list()


def record_fields(schema: Schema) -> Sequence[Mapping[str, Any]]:
    """The fields of a record schema. Raises UsageError if it is none."""
    if not isinstance(schema.definition, dict) or schema.definition.get("type") != "record":
        raise UsageError("the schema of events must be a record", hint='Give one with "type": "record".')
    fields: Sequence[Mapping[str, Any]] = schema.definition["fields"]
    return fields


def text_fields(schema: Schema) -> frozenset[str]:
    """The fields that are text, so that a CSV's digits under them stay text."""
    return frozenset(
        field["name"] for field in record_fields(schema) if (_simple(field["type"]) or ("", None))[0] == "string"
    )


_Simple = tuple[str, int | None]  # a primitive type, and which branch of its union is null


def _simple(avro_type: Any) -> _Simple | None:
    match avro_type:
        case [first, second] if "null" in avro_type:
            null_branch = 0 if first == "null" else 1
            inner = _simple(second if null_branch == 0 else first)
            return None if inner is None or inner[1] is not None else (inner[0], null_branch)
        case {"type": inner_type} if set(avro_type) == {"type"}:
            return _simple(inner_type)
        case "int" | "long" | "float" | "double" | "string" | "boolean" | "bytes":
            return avro_type, None
    return None


def _encode_column(frame: pl.DataFrame, field: Mapping[str, Any], kind: _Simple, first_row: int) -> list[bytes]:
    name = field["name"]
    if name not in frame.columns:
        return [_absent(field)] * frame.height
    column = frame[name]
    primitive, null_branch = kind
    if null_branch is None:
        _refuse(column, column.is_null(), first_row, lambda _: f"null is not a {primitive}")
    _check_fits(column, primitive, first_row)
    prefix = b"" if null_branch is None else _long(1 - null_branch)
    null = b"" if null_branch is None else _long(null_branch)
    if primitive in _FLOAT_LAYOUT:
        layout, opaque = _FLOAT_LAYOUT[primitive]
        numbers = column.cast(pl.Float64).fill_null(0.0).to_numpy()
        encoded: list[bytes] = np.ascontiguousarray(numbers, dtype=layout).view(opaque).tolist()
        if null_branch is None:
            return encoded
        absent = column.is_null().to_list()
        return [null if gone else prefix + one for gone, one in zip(absent, encoded, strict=True)]
    encode = _ENCODERS[primitive]
    values = column.to_list()
    table = {value: null if value is None else prefix + encode(value) for value in set(values)}
    return list(map(table.__getitem__, values))


def _check_fits(column: pl.Series, primitive: str, first_row: int) -> None:
    dtype = column.dtype
    fits = (
        isinstance(dtype, pl.Null)
        or (primitive in _INT_BITS and dtype.is_integer())
        or (primitive in _FLOAT_LAYOUT and dtype.is_numeric())
        or (primitive == "boolean" and isinstance(dtype, pl.Boolean))
        or (primitive == "string" and isinstance(dtype, pl.String))
        or (primitive == "bytes" and isinstance(dtype, pl.Binary))
    )
    if not fits:
        _refuse(column, column.is_not_null(), first_row, lambda value: f"{value!r} is not a {primitive}")
    elif primitive in _INT_BITS and dtype.is_integer():
        limit = 1 << (_INT_BITS[primitive] - 1)
        wide = column.cast(pl.Int128)
        _refuse(column, (wide < -limit) | (wide >= limit), first_row, lambda v: f"{v} is too large for {primitive}")


def _absent(field: Mapping[str, Any]) -> bytes:
    try:
        return Schema.parse({"type": "record", "name": "absent", "fields": [dict(field)]}).encode({})
    except ModelcastError as error:
        raise UsageError(
            f"the schema has a field {field['name']!r}, but the data has no such column",
            hint="Give the field a default in the schema, or the data the column.",
        ) from error


def _encode_rows(frame: pl.DataFrame, schema: Schema, first_row: int) -> list[bytes]:
    records: list[bytes] = []
    for number, row in enumerate(frame.iter_rows(named=True), start=first_row):
        try:
            records.append(schema.encode_single_object(row))
        except WireError as error:
            raise UsageError(
                f"row {number} {error.message}", hint="Mend the row, or give the schema of the data."
            ) from error
    return records


def _refuse(column: pl.Series, bad: pl.Series, first_row: int, say: Callable[[Any], str]) -> None:
    index = bad.arg_max() if bad.any() else None
    if index is not None:
        raise UsageError(
            f"row {first_row + index}, field {column.name!r}: {say(column[index])}",
            hint="Mend the row, or give the schema of the data.",
        )


def _column(frame: pl.DataFrame, field: str, option: str) -> pl.Series:
    if field not in frame.columns:
        raise UsageError(
            f"the data has no field {field!r} for {option}", hint=f"It has: {', '.join(map(str, frame.columns))}."
        )
    return frame[field]


def _as_text(column: pl.Series) -> pl.Series:
    """Dates, times and categories as text; any other column as it is."""
    match column.dtype:
        case pl.Datetime(time_zone=zone):
            if zone is not None:
                column = column.dt.convert_time_zone("UTC")
            return column.dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ")
        case pl.Date():
            return column.dt.strftime("%Y-%m-%d")
        case pl.Time():
            return column.dt.strftime("%H:%M:%S%.f")
        case pl.Categorical() | pl.Enum():
            return column.cast(pl.String)
    return column


def _epoch_ms(text: str | None) -> int | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    # Through integers: a float of seconds can't hold every millisecond.
    since = moment - datetime.fromtimestamp(0, tz=UTC)
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def _long(value: int) -> bytes:
    """Avro's zigzag variable-length integer of at most 64 bits."""
    rest = (value << 1) ^ (value >> 63)
    encoded = bytearray()
    while rest > 0x7F:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded)


def _bytes(value: bytes) -> bytes:
    return _long(len(value)) + value


_ENCODERS: Mapping[str, Callable[[Any], bytes]] = {
    "int": _long,
    "long": _long,
    "boolean": lambda value: b"\x01" if value else b"\x00",
    "string": lambda value: _bytes(value.encode()),
    "bytes": _bytes,
}
