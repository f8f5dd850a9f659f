"""The fields a model takes, as paths into events, with what the schema the reader knows adds to them.

- A field `a.b` is the field `b` of the record `a`. In JSON a key `a.b` at the top of the event goes before it.
- The *event schema*, if one is given, is Avro's reader's schema: each level of a path has the aliases it names there,
  its type, and the default that stands for the whole field where events lack it from that level on. A field that it
  does not name is taken as the events have it.
- Defaults are made into columns once, here: one that does not fit its type refuses the schema, not every event.

    (wanted,) = wanted_of([FieldSpec("card.country", DType.STRING)], event_schema)
    wanted.steps[1].names                 # ("country", "land"): the second is an alias
    wanted.absent(1, size)                # the default of `country` for so many events, or that it is missing
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from modelcast.avro import Schema
from modelcast.errors import SourceError
from modelcast.records import DType
from modelcast.tensors import FieldSpec

from .columns import Choice, Column, Constant, Flags, Items, Numbers, Opaque, Raw, Strings, Symbols, inside
from .cursor import Buffer
from .logical import decimal_of, decimal_scale, per_ms
from .walk import Names, named, type_name

SEPARATOR = "."
_NOTHING = object()  # no default
_INTEGER_BITS = {"int": 32, "long": 64}


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One level of a path.

    Attributes:
        names: What the field may be called at this level, the first that is there counts.
        type: The type the event schema gives it; None where that does not name it.
        default: What stands for the whole path where events lack it from this level on: a column of one row; or None.
    """

    names: tuple[str, ...]
    type: Any = None
    default: Column | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Lacking:
    """Stands for a field in an event that lacks it from this level of its path on."""

    default: Column | None

    def column(self, size: int) -> Column:
        """The field in so many such events."""
        return Opaque("missing", size) if self.default is None else Constant(self.default, size)


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A field to be found in events: what the model takes, and the way there.

    Attributes:
        steps: The levels of the path.
        lacking: What stands for the field in events that lack it, by the level.
        types: The types that the event schema's may name.
    """

    spec: FieldSpec
    steps: tuple[Step, ...]
    lacking: tuple[Lacking, ...]
    types: Names

    @property
    def name(self) -> str:
        return self.spec.name

    def absent(self, level: int, size: int) -> Column:
        """What stands for the field in `size` events that lack it from that level on."""
        return self.lacking[level].column(size)

    @property
    def is_plain(self) -> bool:
        """Whether it is a field at the top, of one name."""
        return len(self.steps) == 1 and len(self.steps[0].names) == 1


def wanted_of(specs: Sequence[FieldSpec], event_schema: Schema | None = None) -> tuple[Wanted, ...]:
    """The fields of `specs`, with what the event schema says of them.

    Raises:
        SourceError: A default of the event schema does not fit its type.
    """
    types = {} if event_schema is None else named(event_schema.parsed)
    root = None if event_schema is None else event_schema.parsed
    return tuple(_wanted(spec, tuple(_steps(spec, root, types)), types) for spec in specs)


def _wanted(spec: FieldSpec, steps: tuple[Step, ...], types: Names) -> Wanted:
    return Wanted(spec, steps, tuple(Lacking(step.default) for step in steps), types)


def record_in(schema: Any, types: Mapping[str, Any]) -> Any:
    """The record that `schema` is, or has as a branch; None if there is none."""
    for branch in schema if isinstance(schema, list) else [schema]:
        resolved = types.get(branch, branch) if isinstance(branch, str) else branch
        if type_name(resolved) == "record":
            return resolved
    return None


def _steps(spec: FieldSpec, schema: Any, types: Names) -> Iterator[Step]:
    path = spec.name.split(SEPARATOR)
    for level, name in enumerate(path):
        record = None if schema is None else record_in(schema, types)
        field = next((entry for entry in record["fields"] if entry["name"] == name), None) if record else None
        if field is None:
            schema = None
            yield Step((name,))
            continue
        schema = field["type"]
        names = (name, *(alias for alias in field.get("aliases", ()) if alias != name))
        yield Step(names, schema, _default(field, path[level + 1 :], spec, types))


def _default(field: Mapping[str, Any], path: Sequence[str], spec: FieldSpec, types: Names) -> Column | None:
    """What the default of `field` says of the value at `path` within it."""
    value, schema = field.get("default", _NOTHING), field["type"]
    for name in path:
        if value is _NOTHING:
            return None
        record = record_in(schema, types)
        if not isinstance(value, dict) or record is None:
            return Opaque("null" if value is None else inside("a default"), 1)
        inner = next((entry for entry in record["fields"] if entry["name"] == name), None)
        if inner is None:
            return None
        value, schema = value.get(name, inner.get("default", _NOTHING)), inner["type"]
    if value is _NOTHING:
        return None
    try:
        return _column(value, schema, spec, types)
    except (ValueError, TypeError, OverflowError, AttributeError) as error:
        raise SourceError(
            f"the default {value!r:.60} of field {field['name']!r} does not fit its type in the event schema",
            hint="Give a default of the type of the field; for a union, of one of its branches.",
        ) from error


def _column(value: Any, schema: Any, spec: FieldSpec, types: Names) -> Column:
    """One value of a schema's default (JSON, Avro specification 1.12, "Complex Types") as a column of one row."""
    schema = types.get(schema, schema) if isinstance(schema, str) else schema
    kind = type_name(schema)
    if kind == "union":
        return _of_union(value, schema, spec, types)
    if kind in _INTEGER_BITS:
        return _integer(value, schema, _INTEGER_BITS[kind])
    if kind in ("bytes", "fixed"):
        return _raw(cast("str", value).encode("latin-1"), schema, spec)
    if kind == "array" and isinstance(value, list):
        return _array(value, schema, spec, types)
    column: Column | None = None
    match kind, value:
        case "null", None:
            column = Opaque("null", 1)
        case (("float" | "double"), (int() | float())) if not isinstance(value, bool):
            column = Numbers(np.array([value], "<f4" if kind == "float" else "<f8"))
        case "boolean", bool():
            column = Flags(np.array([value]))
        case "string", str():
            column = Strings(np.array([value], np.object_))
        case "enum", str() if value in schema["symbols"]:
            column = Symbols(np.array([0]), (value,))
        case (("record" | "map"), dict()):
            column = Opaque("a record" if kind == "record" else "of type map", 1)
    if column is None:
        raise TypeError
    return column


def _of_union(value: Any, branches: Sequence[Any], spec: FieldSpec, types: Names) -> Column:
    for branch in branches:
        try:
            return _column(value, branch, spec, types)
        except (ValueError, TypeError, OverflowError, AttributeError):
            continue
    raise TypeError


def _integer(value: Any, schema: Any, bits: int) -> Column:
    if not isinstance(value, int) or isinstance(value, bool) or not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        raise TypeError
    return Numbers(np.array([value], np.int64), per=per_ms(schema) or 1)


def _raw(value: bytes, schema: Any, spec: FieldSpec) -> Column:
    fixed = type_name(schema) == "fixed"
    if fixed and len(value) != schema["size"]:
        raise ValueError
    scale = decimal_scale(schema)
    if scale is not None and spec.shape is None and spec.dtype is not DType.STRING:
        return Numbers(np.array([decimal_of(value, scale)]), finite=True)
    buffer = Buffer([value])
    return Raw("fixed bytes" if fixed else "bytes", buffer, buffer.starts, buffer.ends)


def _array(values: Sequence[Any], schema: Any, spec: FieldSpec, types: Names) -> Column:
    if spec.shape is None:
        return Opaque("of type array", 1)
    one = FieldSpec(spec.name, spec.dtype)
    items = [_column(value, schema["items"], one, types) for value in values]
    rows = np.flatnonzero([len(items) == spec.row_values])
    parts = tuple((np.array([place]), item) for place, item in enumerate(items)) if rows.size else ()
    return Items(np.array([len(items)]), rows, Choice(parts, len(items) if rows.size else 0))
