"""Readers of Avro's types, down a column each: what plans (`avro`) are made of.

- Each reads its type of every row of a cursor and moves every row on; what breaks the specification marks its row.
- A record gives a column for each field that is wanted below it; unions are read branch by branch, each on the rows
  that took it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from .arrays import Reader
from .columns import Choice, Column, Flags, Numbers, Opaque, Raw, Symbols, Text, changed, inside
from .cursor import Cursor, Rows
from .logical import decimals
from .walk import Walk
from .wanted import Wanted

_INT_MIN, _INT_MAX = -(2**31), 2**31 - 1


class Step(Protocol):
    """Reads a part of a record: one column or several, by the names of the fields they are."""

    def fields(self, cursor: Cursor) -> dict[str, Column]: ...


@dataclass(frozen=True, slots=True)
class RecordReader:
    """A record: steps in the order of its fields."""

    steps: tuple[Step, ...]

    def fields(self, cursor: Cursor) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        for step in self.steps:
            columns.update(step.fields(cursor))
        return columns

    def read(self, cursor: Cursor) -> Column:
        self.fields(cursor)
        return Opaque("a record", len(cursor))


@dataclass(frozen=True)
class Run:
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
class Field:
    """One field, as what the wanted one of this name takes."""

    name: str | None  # None: not wanted
    reader: Reader

    def fields(self, cursor: Cursor) -> dict[str, Column]:
        column = self.reader.read(cursor)
        return {} if self.name is None else {self.name: column}


@dataclass(frozen=True, slots=True)
class Several:
    """One field read more than once, for several wanted ones: each way but the last on a cursor of its own."""

    ways: tuple[Step, ...]

    def fields(self, cursor: Cursor) -> dict[str, Column]:
        columns: dict[str, Column] = {}
        every = np.arange(len(cursor))
        for way in self.ways[:-1]:
            columns.update(way.fields(cursor.rows(every)))
        columns.update(self.ways[-1].fields(cursor))
        return columns


@dataclass(frozen=True, slots=True)
class Absent:
    """A wanted field that the writer lacks from this level of its path on: it takes no bytes."""

    wanted: Wanted
    level: int

    def fields(self, cursor: Cursor) -> dict[str, Column]:
        return {self.wanted.name: self.wanted.absent(self.level, len(cursor))}


@dataclass(frozen=True, slots=True)
class Within:
    """A field that is no record, where fields of one are wanted."""

    names: tuple[str, ...]
    reader: Reader

    def fields(self, cursor: Cursor) -> dict[str, Column]:
        held = self.reader.read(cursor).kind
        column = Opaque(held if held == "null" else inside(held), len(cursor))
        return dict.fromkeys(self.names, column)


@dataclass(frozen=True, slots=True)
class Branches:
    """A union where fields of one of its records are wanted."""

    names: tuple[str, ...]
    branches: tuple[Step, ...]

    def fields(self, cursor: Cursor) -> dict[str, Column]:
        chosen = _index(cursor, len(self.branches))
        if len(chosen) and (chosen == chosen[0]).all():
            return self.branches[int(chosen[0])].fields(cursor)
        parts: dict[str, list[tuple[Rows, Column]]] = {name: [] for name in self.names}
        for number, branch in enumerate(self.branches):
            rows = np.flatnonzero(chosen == number)
            if rows.size:
                taken = cursor.rows(rows)
                for name, column in branch.fields(taken).items():
                    parts[name].append((rows, column))
                cursor.merge(rows, taken)
        return {name: Choice(tuple(found), len(cursor)) for name, found in parts.items()}


@dataclass(frozen=True, slots=True)
class Null:
    def read(self, cursor: Cursor) -> Column:
        return Opaque("null", len(cursor))


@dataclass(frozen=True, slots=True)
class Fixed:
    width: int

    def read(self, cursor: Cursor) -> Column:
        starts = cursor.position
        cursor.skip(self.width)
        return Raw("fixed bytes", cursor.buffer, starts, cursor.position)


@dataclass(frozen=True, slots=True)
class Real:
    code: str
    width: int

    def read(self, cursor: Cursor) -> Column:
        return Numbers(cursor.window(self.width).view(self.code))


@dataclass(frozen=True, slots=True)
class Integer:
    narrow: bool  # an int rather than a long

    def read(self, cursor: Cursor) -> Column:
        values = cursor.varint()
        if self.narrow:
            cursor.break_rows((values < _INT_MIN) | (values > _INT_MAX))
        return Numbers(values)


@dataclass(frozen=True, slots=True)
class Boolean:
    def read(self, cursor: Cursor) -> Column:
        octets = cursor.byte()
        cursor.break_rows(octets > 1)
        return Flags(octets == 1)


@dataclass(frozen=True, slots=True)
class Bytes:
    text: bool

    def read(self, cursor: Cursor) -> Column:
        lengths = cursor.length()
        starts = cursor.position
        cursor.skip(lengths)
        ends = starts + lengths
        return Text(cursor.buffer.data, starts, ends) if self.text else Raw("bytes", cursor.buffer, starts, ends)


@dataclass(frozen=True, slots=True)
class Enum:
    symbols: tuple[str, ...]

    def read(self, cursor: Cursor) -> Column:
        return Symbols(_index(cursor, len(self.symbols)), self.symbols)


@dataclass(frozen=True, slots=True)
class Union:
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
class Changed:
    """Numbers that are others to a model than they were written as."""

    reader: Reader
    change: Callable[[Numbers], Numbers]

    def read(self, cursor: Cursor) -> Column:
        return changed(self.reader.read(cursor), self.change)


@dataclass(frozen=True, slots=True)
class Decimal:
    """The numbers that bytes or fixed stand for."""

    reader: Bytes | Fixed
    scale: int

    def read(self, cursor: Cursor) -> Column:
        raw = self.reader.read(cursor)
        assert isinstance(raw, Raw)  # noqa: S101  narrows for the type checker: neither reads text here
        return decimals(raw, self.scale)


@dataclass(frozen=True, slots=True)
class KnownSymbols:
    """An enum, read as the event schema's: `symbols` holds None where that has neither the symbol nor a default."""

    symbols: tuple[str | None, ...]

    def read(self, cursor: Cursor) -> Column:
        indices = _index(cursor, len(self.symbols))
        texts = tuple(symbol or "" for symbol in self.symbols)
        strange = np.isin(indices, [place for place, symbol in enumerate(self.symbols) if symbol is None])
        if not strange.any():
            return Symbols(indices, texts)
        known = np.flatnonzero(~strange)
        unknown = np.flatnonzero(strange)
        told = Opaque("a symbol the event schema does not have", len(unknown))
        return Choice(((known, Symbols(indices[known], texts)), (unknown, told)), len(indices))


@dataclass(frozen=True, slots=True)
class Mismatched:
    """A type that the event schema's can't be read from."""

    reader: Reader
    writer_kind: str
    reader_kind: str

    def read(self, cursor: Cursor) -> Column:
        self.reader.read(cursor)
        return Opaque(f"of type {self.writer_kind}, and {self.reader_kind} in the event schema", len(cursor))


@dataclass(frozen=True, slots=True)
class Walked:
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


PRIMITIVES: Mapping[str, Reader] = {
    "null": Null(),
    "boolean": Boolean(),
    "int": Integer(narrow=True),
    "long": Integer(narrow=False),
    "float": Real("<f4", 4),
    "double": Real("<f8", 8),
    "string": Bytes(text=True),
    "bytes": Bytes(text=False),
}
