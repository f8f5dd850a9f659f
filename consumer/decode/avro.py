"""Avro events to columns, a whole batch at a time, by a plan made once per writer schema.

- The plan steps over the writer's fields in their order: runs of fixed-width fields as one window, everything else as
  one read down the column. Unions are read branch by branch, each on the rows that took it.
- Maps, records that contain themselves, and arrays no tensor is made from are stepped over row by row (`walk`). Arrays
  a tensor is made from are read by `arrays`.
- The specification is kept to where common readers are lax, so that an event's fate does not depend on the reader:
  a boolean is 0 or 1, an int fits 32 bits, an index names a symbol or branch, a varint fits 64 bits. Varints may be
  padded: the predictions of modelcast are.
- Logical types are not looked at: a timestamp is its number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from modelcast.avro import Schema
from modelcast.tensors import FieldSpec

from .arrays import Arrays, Reader
from .columns import Choice, Column, Flags, Numbers, Opaque, Raw, Symbols, Text
from .cursor import MAX_WINDOW_BYTES, Cursor, Rows
from .walk import Names, Walk, named, type_name, walker

# Types read as part of a window: numpy's code and the width.
_NUMBERS = {"float": ("<f4", 4), "double": ("<f8", 8)}
_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1


@dataclass(frozen=True, slots=True)
class AvroPlan:
    """How events of one writer schema become columns."""

    root: RecordReader

    @classmethod
    def of(cls, schema: Schema, wanted: Sequence[FieldSpec]) -> AvroPlan:
        """Plans for the `wanted` top-level fields. A schema that is no record has none."""
        compiler = _Compiler()
        return cls(compiler.record(schema.parsed, {spec.name: spec for spec in wanted}))

    def read(self, cursor: Cursor) -> Mapping[str, Column]:
        """Columns of the wanted fields the writer has. Afterwards rows short of their end have bytes left over."""
        return self.root.fields(cursor)


@dataclass(frozen=True, slots=True)
class RecordReader:
    """A record: steps in the order of its fields."""

    steps: tuple[_Run | _Field, ...]

    def fields(self, cursor: Cursor) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for step in self.steps:
            columns.update(step.fields(cursor))
        return columns

    def read(self, cursor: Cursor) -> Column:
        self.fields(cursor)
        return Opaque("a record", len(cursor))


@dataclass(frozen=True)
class _Run:
    """Neighbouring numbers of fixed width, read as one window; `wanted` maps a name to its offset and type."""

    width: int
    wanted: Mapping[str, tuple[int, str]]

    @cached_property
    def layout(self) -> Any:
        offsets, formats = zip(*self.wanted.values(), strict=True)
        return np.dtype({"names": list(self.wanted), "formats": formats, "offsets": offsets, "itemsize": self.width})

    def fields(self, cursor: Cursor) -> dict[str, Column]:
        if not self.wanted:
            cursor.skip(self.width)
            return {}
        items = cursor.window(self.width).view(self.layout)
        return {name: Numbers(items[name]) for name in self.wanted}


@dataclass(frozen=True, slots=True)
class _Field:
    name: str | None  # None: not wanted
    reader: Reader

    def fields(self, cursor: Cursor) -> dict[str, Column]:
        column = self.reader.read(cursor)
        return {} if self.name is None else {self.name: column}


@dataclass(frozen=True, slots=True)
class _Null:
    def read(self, cursor: Cursor) -> Column:
        return Opaque("null", len(cursor))


@dataclass(frozen=True, slots=True)
class _Fixed:
    width: int

    def read(self, cursor: Cursor) -> Column:
        starts = cursor.position
        cursor.skip(self.width)
        return Raw("fixed bytes", cursor.buffer, starts, cursor.position)


@dataclass(frozen=True, slots=True)
class _Real:
    code: str
    width: int

    def read(self, cursor: Cursor) -> Column:
        return Numbers(cursor.window(self.width).view(self.code))


@dataclass(frozen=True, slots=True)
class _Integer:
    narrow: bool  # an int rather than a long

    def read(self, cursor: Cursor) -> Column:
        values = cursor.varint()
        if self.narrow:
            cursor.break_rows((values < _INT_MIN) | (values > _INT_MAX))
        return Numbers(values)


@dataclass(frozen=True, slots=True)
class _Boolean:
    def read(self, cursor: Cursor) -> Column:
        octets = cursor.byte()
        cursor.break_rows(octets > 1)
        return Flags(octets == 1)


@dataclass(frozen=True, slots=True)
class _Bytes:
    text: bool

    def read(self, cursor: Cursor) -> Column:
        lengths = cursor.length()
        starts = cursor.position
        cursor.skip(lengths)
        ends = starts + lengths
        return Text(cursor.buffer.data, starts, ends) if self.text else Raw("bytes", cursor.buffer, starts, ends)


@dataclass(frozen=True, slots=True)
class _Enum:
    symbols: tuple[str, ...]

    def read(self, cursor: Cursor) -> Column:
        return Symbols(_index(cursor, len(self.symbols)), self.symbols)


@dataclass(frozen=True, slots=True)
class _Union:
    branches: tuple[Reader, ...]

    def read(self, cursor: Cursor) -> Column:
        chosen = _index(cursor, len(self.branches))
        if len(chosen) and (chosen == chosen[0]).all():
            return self.branches[int(chosen[0])].read(cursor)
        parts = []
        for number, branch in enumerate(self.branches):
            rows = np.flatnonzero(chosen == number)
            if rows.size:
                taken = cursor.rows(rows)
                parts.append((rows, branch.read(taken)))
                cursor.merge(rows, taken)
        return Choice(tuple(parts), len(cursor))


@dataclass(frozen=True, slots=True)
class _Walked:
    """A type stepped over row by row."""

    kind: str
    walk: Walk

    def read(self, cursor: Cursor) -> Column:
        data = cursor.buffer.data
        for row, (start, end) in enumerate(zip(cursor.position.tolist(), cursor.end.tolist(), strict=True)):
            stop = self.walk(data, start, end)
            cursor.position[row] = end if stop is None else stop
            cursor.broken[row] |= stop is None
        return Opaque(self.kind, len(cursor))


def _index(cursor: Cursor, count: int) -> Rows:
    """A varint that must be below `count`; 0 for rows broken by it."""
    index = cursor.varint()
    bad = (index < 0) | (index >= count)
    if bad.any():
        cursor.break_rows(bad)
        index[bad] = 0
    return index


_PRIMITIVES: Mapping[str, Reader] = {
    "null": _Null(),
    "boolean": _Boolean(),
    "int": _Integer(narrow=True),
    "long": _Integer(narrow=False),
    "float": _Real("<f4", 4),
    "double": _Real("<f8", 8),
    "string": _Bytes(text=True),
    "bytes": _Bytes(text=False),
}


class _Compiler:
    """Turns a parsed schema (full names, as fastavro gives it) into readers."""

    def __init__(self) -> None:
        self._names: Names = {}
        self._open: set[str] = set()  # records being compiled: a reference to one is recursion

    def record(self, schema: Any, wanted: Mapping[str, FieldSpec]) -> RecordReader:
        if type_name(schema) != "record":
            return RecordReader((_Field(None, self.reader(schema)),))
        self._names.update(named(schema))
        self._open.add(schema["name"])
        steps = tuple(self._steps(schema["fields"], wanted))
        self._open.discard(schema["name"])
        return RecordReader(steps)

    def _steps(self, fields: list[dict[str, Any]], wanted: Mapping[str, FieldSpec]) -> Iterator[_Run | _Field]:
        width, numbers = 0, dict[str, tuple[int, str]]()
        for field in fields:
            name = field["name"]
            code, step = _NUMBERS.get(type_name(field["type"]), ("", 0))
            if width and (not step or width + step > MAX_WINDOW_BYTES):
                yield _Run(width, numbers)
                width, numbers = 0, {}
            if not step:
                yield _Field(name if name in wanted else None, self.reader(field["type"], wanted.get(name)))
            elif name in wanted:
                numbers[name] = (width, code)
            width += step
        if width:
            yield _Run(width, numbers)

    def reader(self, schema: Any, spec: FieldSpec | None = None) -> Reader:
        """For what `schema` describes, read for `spec`; None where no model takes it."""
        schema = self._resolve(schema)
        kind = type_name(schema)
        match kind:
            case "enum":
                reader: Reader = _Enum(tuple(schema["symbols"]))
            case "fixed":
                reader = _Fixed(schema["size"])
            case "union":
                reader = _Union(tuple(self.reader(branch, spec) for branch in schema))
            case "record" if schema["name"] not in self._open:
                reader = self.record(schema, {})
            case "array" if spec is not None and spec.shape is not None:
                items = self._resolve(schema["items"])
                reader = Arrays.of(items, self.reader(items), self._names, spec.row_values)
            case _:
                reader = _PRIMITIVES.get(kind) or _Walked(f"of type {kind}", walker(schema, self._names))
        return reader

    def _resolve(self, schema: Any) -> Any:
        self._names.update(named(schema))
        return self._names.get(schema, schema) if isinstance(schema, str) else schema
