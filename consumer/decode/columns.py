"""One field of many events, as a format gives it: before it is held to what a model wants (`rules`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from .cursor import Array, Buffer, Mask, Rows


@dataclass(slots=True)  # not frozen, which takes four times as long: one is made for each number of an event
class Numbers:
    """Integers (int64) or floats of one column.

    Attributes:
        whole: The floats stand for integers that 64 bits can't hold.
        finite: The format has no infinities: one here was a number too large.
        per: So many of an integer here are one for a model: a time in a finer unit than models see (`logical`).
    """

    values: Array
    whole: bool = False
    finite: bool = False
    per: int = 1

    @property
    def kind(self) -> str:
        return "an integer" if self.whole or self.values.dtype.kind == "i" else "a float"

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Flags:
    """Booleans of one column."""

    values: Mask

    @property
    def kind(self) -> str:
        return "a boolean"

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Text:
    """UTF-8 slices of a buffer."""

    data: bytes
    starts: Rows
    ends: Rows

    @property
    def kind(self) -> str:
        return "a string"

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Strings:
    """Strings as Python holds them, in an object array."""

    values: Array

    @property
    def kind(self) -> str:
        return "a string"

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, slots=True)
class Symbols:
    """An enum's column: indices into its symbols."""

    indices: Rows
    symbols: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "an enum"

    def __len__(self) -> int:
        return len(self.indices)


@dataclass(frozen=True, slots=True)
class Raw:
    """Slices of a buffer that are bytes; `kind` says what the format calls them."""

    kind: str
    buffer: Buffer
    starts: Rows
    ends: Rows

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class Items:
    """Arrays of one column.

    Attributes:
        lengths: How many items each row has.
        rows: The rows whose items are in `values`, ascending: those of the length that was asked for.
        values: Their items, row by row.
    """

    lengths: Rows
    rows: Rows
    values: Column

    @property
    def kind(self) -> str:
        return "an array"

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True)
class Opaque:
    """A column no field of a model can be made from; `kind` says what it holds.

    "null" and "missing" have faults of their own; anything else reads as in "the field is an array".
    """

    kind: str
    size: int

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True, slots=True)
class Choice:
    """A column of several kinds: for each, the rows it holds and their values in that order."""

    parts: tuple[tuple[Rows, Column], ...]
    size: int

    @property
    def kind(self) -> str:
        return "of several kinds"

    def __len__(self) -> int:
        return self.size


@dataclass(frozen=True, slots=True)
class Constant:
    """One value for every row; `value` is a column of it alone."""

    value: Column
    size: int

    @property
    def kind(self) -> str:
        return self.value.kind

    def __len__(self) -> int:
        return self.size


Column = Numbers | Flags | Text | Strings | Symbols | Raw | Items | Opaque | Choice | Constant


def changed(column: Column, change: Callable[[Numbers], Numbers]) -> Column:
    """A column with its numbers changed, wherever in it they are."""
    match column:
        case Numbers():
            return change(column)
        case Choice(parts, size):
            return Choice(tuple((rows, changed(part, change)) for rows, part in parts), size)
        case Items():
            return replace(column, values=changed(column.values, change))
        case _:
            return column


def inside(kind: str) -> str:
    """What is said of a field where its record should be and something of that kind is."""
    return f"inside {kind}, which has no fields"
