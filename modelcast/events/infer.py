"""The Avro schema of a table, for who has none.

- integers → `long`, floats → `double` (32-bit ones `float`), text → `string`, booleans → `boolean`, bytes → `bytes`,
  lists → arrays, structs → records.
- Dates and times → ISO 8601 text in UTC, as CSV and JSON have them: the same event comes of the same row whatever file
  it stands in. Who wants logical types gives a schema.
- A column in which a null occurs is `["null", T]`, and so is everything inside lists and structs.
- A column keeps its name. One that Avro does not allow is refused rather than renamed: a model asks for its fields by
  the names of its examples.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import polars as pl

from modelcast.avro import Schema
from modelcast.errors import UsageError

_AVRO_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ILLEGAL = re.compile(r"[^A-Za-z0-9_]")


def infer_schema(name: str, columns: Mapping[str, pl.DataType], nullable: Collection[str]) -> Schema:
    """The schema of rows with these columns.

    Args:
        name: What the record is called after; usually the topic. Characters that Avro does not allow become `_`.
        columns: Column name -> Polars type.
        nullable: The columns in which nulls occur.

    Raises:
        UsageError: A column has a name or a type that Avro has no like of; the message names it.
    """
    fields = [
        {"name": _checked(column), "type": _field_type(column, column, dtype, nullable=column in nullable)}
        for column, dtype in columns.items()
    ]
    return Schema.parse({"type": "record", "name": record_name(name), "fields": fields})


def infer_schema_of(name: str, frame: pl.DataFrame) -> Schema:
    """The schema of a table in memory; raises as `infer_schema`."""
    return infer_schema(name, frame.schema, [column for column in frame.columns if frame[column].null_count()])


def record_name(name: str) -> str:
    """`name` as Avro allows it for a record."""
    legal = _ILLEGAL.sub("_", name) or "_"
    return f"_{legal}" if legal[0].isdigit() else legal


def _checked(column: str) -> str:
    if not _AVRO_NAME.fullmatch(column):
        raise UsageError(
            f"column {column!r} can't be the name of an Avro field",
            hint="Rename it (letters, digits and '_', not starting with a digit), or send with --format json.",
        )
    return column


def _field_type(path: str, name: str, dtype: pl.DataType, *, nullable: bool) -> Any:
    plain = _type(path, name, dtype)
    return ["null", plain] if nullable else plain


def _type(path: str, name: str, dtype: pl.DataType) -> Any:
    """`path` names the record types within, which must differ."""
    if dtype.is_integer():
        return "long"
    if isinstance(dtype, pl.Float32):
        return "float"
    if dtype.is_float() or dtype.is_decimal():
        return "double"
    for kind, avro in _PLAIN.items():
        if isinstance(dtype, kind):
            return avro
    if isinstance(dtype, (pl.List, pl.Array)):
        inner = dtype.inner
        return {"type": "array", "items": _field_type(f"{path}_item", name, _instance(inner), nullable=True)}
    if isinstance(dtype, pl.Struct):
        fields = [
            {
                "name": _checked(field.name),
                "type": _field_type(f"{path}_{field.name}", name, _instance(field.dtype), nullable=True),
            }
            for field in dtype.fields
        ]
        return {"type": "record", "name": f"{path}_record", "fields": fields}
    raise UsageError(
        f"column {name!r} is of type {dtype}, which Avro has no like of", hint="Leave it out, or write it as text."
    )


# A column of nulls only could be anything; text is what holds most.
_PLAIN: Mapping[type[pl.DataType], str] = {
    pl.String: "string", pl.Categorical: "string", pl.Enum: "string", pl.Boolean: "boolean", pl.Binary: "bytes",
    pl.Date: "string", pl.Datetime: "string", pl.Time: "string", pl.Null: "string",
}  # fmt: skip


def _instance(dtype: Any) -> pl.DataType:
    """Polars lets a nested type be a class or an instance of it."""
    found = dtype() if isinstance(dtype, type) else dtype
    assert isinstance(found, pl.DataType)  # noqa: S101  narrows Polars' own union for the type checker
    return found
