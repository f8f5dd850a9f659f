"""Many JSON events of one shape, read together by Polars where that is proven to give what reading each alone gives.

Polars reads lines of JSON strictly but for four things, and each is settled before or after:

- A key that stands twice goes unnoticed. So events are grouped by their *shape*, what is left of one without everything
  but quotes, brackets, commas and colons. Every key at the top, and in objects on the way to a field, is compared with
  those of one event of the shape that was parsed strictly. In events of one shape without escapes, strings begin and
  end at the same quotes.
- Anything becomes a string where one is asked for. Whether a value is a string is part of the shape.
- A value of another kind, null or missing reads as null, and so does an item of an array: such events are decoded one
  by one, to learn which it was. That an array is flat, and how long it is, is part of the shape. Of a field whose null
  counts as something, the bytes behind its key say whether it is null.
- Inside an object, a number becomes a boolean where one is asked for: they are read as text there, and compared.

Long arrays of numbers are cut out first (`json_arrays`).

A line break inside an event would shift its neighbours: such events are decoded one by one, and so are escapes. One
event that is no JSON fails the whole read, which is then repeated in blocks without the events that look like it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from modelcast.records import DType

from .columns import Choice, Column, Flags, Items, Numbers, Opaque, Strings
from .cursor import MAX_WINDOW_BYTES, Buffer, Mask, Rows
from .json import parse
from .json_arrays import Skeletons
from .wanted import Wanted

# Below this, reading one by one is faster than setting up a read together (measured: 1 ms against 15 µs an event).
MIN_ROWS = 64
# Rows of a repeated read: many against its set-up, few against a batch.
BLOCK_ROWS = 256
# Orders of keys, and events that turn out to be no JSON, tried per shape before the rest is read one by one.
_MAX_TEMPLATES = 4

_STRUCTURE = b'"\\{}[],:\n'
_EVERYTHING_ELSE = bytes(set(range(256)) - set(_STRUCTURE))
# Literals some writers take for JSON: they leave no trace in the shape.
_NOT_JSON = (b"NaN", b"Infinity")

# Null behind a key, with and without the space that writers like.
_NULLS = (b":null", b": null")

_POLARS_TYPES: Mapping[DType, type[pl.DataType]] = {
    # Wide, and narrowed by the one rule for all formats.
    DType.FLOAT32: pl.Float64,
    DType.FLOAT64: pl.Float64,
    DType.INT32: pl.Int64,
    DType.INT64: pl.Int64,
    DType.UINT8: pl.Int64,
    DType.BOOL: pl.Boolean,
    DType.STRING: pl.String,
}


@dataclass(frozen=True, slots=True)
class Lines:
    """Events decoded together: the rows they are, and a column per field the events have."""

    rows: Rows
    columns: Mapping[str, Column]


Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Key:
    """A key of an event: where it stands, its bytes with quotes, the ordinal of its first quote, the shape behind."""

    path: Path
    token: bytes
    quote: int
    follows: bytes

    @property
    def holds_string(self) -> bool:
        return self.follows.startswith(b'"')

    @property
    def holds_object(self) -> bool:
        return self.follows.startswith(b"{")

    @property
    def is_bare(self) -> bool:
        """Whether a number or one of true, false and null follows."""
        return self.follows[:1] in (b",", b"}")

    def holds_items(self, count: int) -> bool:
        """Whether a flat array of so many numbers (or none, for one) follows."""
        return self.follows.startswith(b"[%s]" % (b"," * (count - 1)))

    @property
    def holds_cut(self) -> bool:
        """Whether an empty array follows, or what is left of one that was cut out."""
        return self.follows.startswith(b"[]")


@dataclass(frozen=True, slots=True)
class _Quotes:
    """The places of all quotes of a buffer, and which is the first of each event."""

    places: Rows
    first: Rows

    def of(self, key: _Key, rows: Rows) -> Rows:
        """Where the key begins in each of the events."""
        return self.places[self.first[rows] + key.quote]


def decode_together(buffer: Buffer, wanted: Sequence[Wanted]) -> Iterator[Lines]:
    """Decodes the events that can be read together; the rows of no group are left to be decoded one by one."""
    if len(buffer) >= MIN_ROWS:
        yield from _decode(Skeletons.of(buffer, wanted), wanted)


def _decode(events: Skeletons, wanted: Sequence[Wanted]) -> Iterator[Lines]:
    buffer = events.buffer
    shapes = buffer.text().translate(None, _EVERYTHING_ELSE).split(b"\n")
    whole = _are_lines(buffer, several=len(shapes) > len(buffer))
    if not whole.all():
        rows = np.flatnonzero(whole)
        for lines in _decode(events.rows(rows), wanted) if len(rows) >= MIN_ROWS else ():
            yield Lines(rows[lines.rows], lines.columns)
        return
    places = np.flatnonzero(buffer.octets == ord('"'))
    quotes = _Quotes(places, np.searchsorted(places, buffer.starts))
    objects = frozenset(prefix for one in wanted for prefix in _prefixes(one))
    for shape, members in _by_shape(shapes):
        for group, keys in _by_keys(buffer, members, shape, quotes, objects):
            if readable := _readable(keys, wanted, shape.count(b"[")):
                yield from _Group(events, quotes, readable).read(group[events.sound(group, shape)])


def _prefixes(wanted: Wanted) -> Iterator[Path]:
    """The objects on the way to a field, under all their names."""
    for level in range(1, len(wanted.steps)):
        yield from product(*(step.names for step in wanted.steps[:level]))


def _are_lines(buffer: Buffer, several: bool) -> Mask:
    """Events that go from brace to brace on one line; `several`: there are more lines than events."""
    last = np.maximum(buffer.ends - 1, buffer.starts)
    lines: Mask = (buffer.octets[buffer.starts] == ord("{")) & (buffer.octets[last] == ord("}"))
    if several:
        lines &= np.fromiter((b"\n" not in buffer.value(row) for row in range(len(buffer))), np.bool_, len(buffer))
    return lines


def _looks_valid(value: bytes) -> bool:
    return not any(literal in value for literal in _NOT_JSON) and _is_utf8(value)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _by_shape(shapes: Sequence[bytes]) -> Iterator[tuple[bytes, Rows]]:
    if shapes.count(shapes[0]) == len(shapes):
        yield shapes[0], np.arange(len(shapes))
        return
    groups: dict[bytes, list[int]] = {}
    for row, shape in enumerate(shapes):
        groups.setdefault(shape, []).append(row)
    for shape, members in groups.items():
        yield shape, np.array(members)


def _by_keys(
    buffer: Buffer, rows: Rows, shape: bytes, quotes: _Quotes, objects: frozenset[Path]
) -> Iterator[tuple[Rows, tuple[_Key, ...]]]:
    """Groups the events of one shape by their keys, at the top and in those objects."""
    if b"\\" in shape:
        return
    for _ in range(_MAX_TEMPLATES):
        if len(rows) < MIN_ROWS:
            return
        keys = _keys(buffer.value(rows[0]), shape, objects)
        same = _have_keys(buffer, rows, keys, quotes) if keys else np.zeros(len(rows), np.bool_)
        if same.any():
            yield rows[same], keys
        same[0] = True  # valid and dealt with, or not valid: no template again
        rows = rows[~same]


def _keys(value: bytes, shape: bytes, objects: frozenset[Path]) -> tuple[_Key, ...]:
    """The keys of an event without escapes, in order; none if it is no valid event."""
    try:
        return tuple(_Outline(shape, objects).keys(tuple(parse(value).items()), ()))
    except ValueError:
        return ()


class _Outline:
    """Goes along the shape of one event beside what was parsed of it."""

    def __init__(self, shape: bytes, objects: frozenset[Path]) -> None:
        self._shape = shape
        self._objects = objects
        self._place = 0
        self._quote = 0

    def keys(self, pairs: Sequence[tuple[str, Any]], path: Path) -> Iterator[_Key]:
        """The keys of the object that begins here; raises ValueError where one of them stands twice."""
        if len({name for name, _ in pairs}) < len(pairs):
            raise ValueError(path)
        self._place += 1
        for name, held in pairs:
            quote, inner = self._quote, (*path, name)
            self._pass_string()
            self._place += 1  # the colon
            yield _Key(inner, b'"%s"' % name.encode(), quote, self._shape[self._place :])
            if isinstance(held, tuple) and inner in self._objects:
                yield from self.keys(held, inner)
            elif isinstance(held, str):
                self._pass_string()
            elif isinstance(held, (tuple, list)):
                self._pass_brackets()
            self._place += 1  # a comma, or the brace behind the last
        self._place += not pairs

    def _pass_string(self) -> None:
        self._place = self._shape.index(b'"', self._place + 1) + 1
        self._quote += 2

    def _pass_brackets(self) -> None:
        depth = 0
        while True:
            octet = self._shape[self._place]
            if octet == ord('"'):
                self._pass_string()
                continue
            depth += (octet in b"{[") - (octet in b"]}")
            self._place += 1
            if not depth:
                return


def _have_keys(buffer: Buffer, rows: Rows, keys: Sequence[_Key], quotes: _Quotes) -> Mask:
    """Which of the events, all of one shape, have just these keys in this order."""
    same = np.ones(len(rows), np.bool_)
    for key in keys:
        if len(key.token) > MAX_WINDOW_BYTES:
            return np.zeros(len(rows), np.bool_)
        same &= buffer.window(quotes.of(key, rows), len(key.token)) == np.void(key.token)
    return same


@dataclass(frozen=True, slots=True)
class _Read:
    """How one field comes of the events of a group.

    Attributes:
        path: The keys to what Polars reads; empty where it reads nothing for this field.
        dtype: As what.
        items: The length of an array; 0 for any other value.
        bracket: Which of an event's opening brackets the array's was that was cut out; None if none was.
        flags: It is read as text, and true or false.
        nullable: The key whose null counts for the field, if null counts as something.
        absent: The level of the path from which on events lack it; None if they don't.
    """

    wanted: Wanted
    path: Path = ()
    dtype: pl.DataType | None = None
    items: int = 0
    bracket: int | None = None
    flags: bool = False
    nullable: _Key | None = None
    absent: int | None = None

    @property
    def name(self) -> str:
        return self.wanted.name


def _readable(keys: Sequence[_Key], wanted: Sequence[Wanted], brackets: int) -> tuple[_Read, ...]:
    """The fields to read, of events with so many brackets; none where Polars would make one into another kind."""
    by_path = {key.path: key for key in keys}
    reads: list[_Read] = []
    types: dict[Path, pl.DataType] = {}
    for one in wanted:
        read = _readable_one(by_path, one, brackets)
        if read is None:
            return ()
        if read.dtype is not None and types.setdefault(read.path, read.dtype) != read.dtype:
            return ()
        reads.append(read)
    return tuple(reads) if types else ()


def _readable_one(keys: Mapping[Path, _Key], wanted: Wanted, brackets: int) -> _Read | None:
    key = keys.get((wanted.name,))
    for level, step in enumerate(wanted.steps if key is None or len(wanted.steps) == 1 else ()):
        above = () if key is None or not level else key.path
        key = next((keys[(*above, name)] for name in step.names if (*above, name) in keys), None)
        if key is None:
            return _Read(wanted, absent=level)
        if level < len(wanted.steps) - 1 and not key.holds_object:
            return _nothing_but_null(key, wanted)
    return None if key is None or key.holds_object else _read_as(key, wanted, brackets)


def _read_as(key: _Key, wanted: Wanted, brackets: int) -> _Read | None:
    spec = wanted.spec
    number, nullable = _POLARS_TYPES[spec.dtype](), None if spec.null is None else key
    if spec.shape is not None and key.holds_items(spec.row_values):
        return _Read(wanted, key.path, pl.List(number), spec.row_values)
    if spec.shape is not None and key.holds_cut:
        return _Read(wanted, key.path, pl.List(number), spec.row_values, brackets - key.follows.count(b"["))
    if spec.shape is not None or spec.dtype is DType.STRING:
        return _Read(wanted, key.path, pl.String()) if key.holds_string else _nothing_but_null(key, wanted)
    if spec.dtype is DType.BOOL and len(key.path) > 1:
        return _Read(wanted, key.path, pl.String(), flags=True, nullable=nullable) if key.is_bare else None
    return _Read(wanted, key.path, number, nullable=nullable)


def _nothing_but_null(key: _Key, wanted: Wanted) -> _Read | None:
    """Where only null can count for the field: if null counts, the events that have it are read."""
    return _Read(wanted, nullable=key) if key.is_bare and wanted.spec.null is not None else None


@dataclass(frozen=True, slots=True)
class _Group:
    """Events of one shape and the same keys, and what is read of them."""

    events: Skeletons
    quotes: _Quotes
    reads: tuple[_Read, ...]

    def read(self, rows: Rows) -> Iterator[Lines]:
        """Reads events of the group; those of blocks that can't be read are left out."""
        for read in self.reads:
            if read.nullable is not None and read.dtype is None:
                rows = rows[self._are_null(read.nullable, rows)]
        if not rows.size:
            return
        lines = self._attempt(rows)
        if lines is not None:
            yield lines
            return
        valid = (_looks_valid(self.events.buffer.value(row)) for row in rows.tolist())
        rows = rows[np.fromiter(valid, np.bool_, len(rows))]
        for start in range(0, len(rows), BLOCK_ROWS):
            lines = self._attempt(rows[start : start + BLOCK_ROWS])
            if lines is not None:
                yield lines

    def _are_null(self, key: _Key, rows: Rows) -> Mask:
        """Which of the events have null behind the key, written as writers do; no other value begins like that."""
        behind = self.quotes.of(key, rows) + len(key.token)
        nulls: Mask = np.zeros(len(rows), np.bool_)
        for text in _NULLS:
            nulls |= self.events.buffer.window(behind, len(text)) == np.void(text)
        return nulls

    def _attempt(self, rows: Rows) -> Lines | None:
        buffer = self.events.buffer
        whole = len(rows) == len(buffer)
        text = buffer.text() if whole else b"\n".join([buffer.value(row) for row in rows.tolist()])
        frame = _frame(text, self.reads)
        return None if frame is None or frame.height != len(rows) else self._lines(frame, rows)

    def _lines(self, frame: pl.DataFrame, rows: Rows) -> Lines:
        series = {read.name: _series(frame, read) for read in self.reads if read.dtype is not None}
        nulls: dict[str, Mask] = {}
        whole: Mask = np.ones(len(rows), np.bool_)
        for read in self.reads:
            column = series.get(read.name)
            if column is None:
                continue
            if column.null_count():
                there = column.is_not_null().to_numpy()
                if read.nullable is not None:
                    nulls[read.name] = ~there & self._are_null(read.nullable, rows)
                    there = there | nulls[read.name]
                whole &= there
            if read.bracket is not None:
                whole &= self.events.have(rows, read.bracket, read.items)
            elif read.items:
                whole &= _are_whole(column, read.items)
        if not whole.all():
            rows = rows[whole]
            series = {name: column.filter(whole) for name, column in series.items()}
            nulls = {name: mask[whole] for name, mask in nulls.items()}
        made = (self._made(read, rows, series.get(read.name), nulls.get(read.name)) for read in self.reads)
        return Lines(rows, {read.name: column for read, column in zip(self.reads, made, strict=True)})

    def _made(self, read: _Read, rows: Rows, series: pl.Series | None, nulls: Mask | None) -> Column:
        """The column of a field; `nulls`: which rows hold a null that counts."""
        if read.absent is not None:
            return read.wanted.absent(read.absent, len(rows))
        if series is None:
            return Opaque("null", len(rows))
        if read.bracket is not None:
            return self.events.column(rows, read.bracket, read.items)
        if nulls is None or not nulls.any():
            return _column(series)
        there, absent = np.flatnonzero(~nulls), np.flatnonzero(nulls)
        return Choice(((there, _column(series.filter(~nulls))), (absent, Opaque("null", len(absent)))), len(rows))


def _series(frame: pl.DataFrame, read: _Read) -> pl.Series:
    series = frame[read.path[0]]
    for name in read.path[1:]:
        series = series.struct.field(name)
    if not read.flags:
        return series
    # Null where it is neither: a number.
    return series.replace_strict({"true": True, "false": False}, default=None, return_dtype=pl.Boolean)


def _frame(text: bytes, reads: Sequence[_Read]) -> pl.DataFrame | None:
    try:
        return pl.read_ndjson(io.BytesIO(text), schema=_schema(reads), ignore_errors=True)
    except (PolarsError, PanicException):  # some event is no JSON; which one, Polars does not say
        return None


def _schema(reads: Sequence[_Read]) -> dict[str, pl.DataType]:
    """The types of what is read, those inside an object as a structure."""
    tree: dict[str, Any] = {}
    for read in reads:
        if read.dtype is None:
            continue
        place = tree
        for name in read.path[:-1]:
            place = place.setdefault(name, {})
        place[read.path[-1]] = read.dtype
    return {name: _type(held) for name, held in tree.items()}


def _type(held: Any) -> pl.DataType:
    return pl.Struct({name: _type(inner) for name, inner in held.items()}) if isinstance(held, dict) else held


def _are_whole(arrays: pl.Series, count: int) -> Mask:
    """Which rows are arrays of so many items without a null among them."""
    whole: Mask = (arrays.list.len() == count).fill_null(value=False).to_numpy().astype(np.bool_)
    items = arrays.filter(whole).explode()
    if items.null_count():
        whole[whole] = items.is_not_null().to_numpy().reshape(-1, count).all(axis=1)
    return whole


def _column(series: pl.Series) -> Column:
    match series.dtype:
        case pl.List():
            lengths = series.list.len().to_numpy().astype(np.int64)
            return Items(lengths, np.arange(len(series)), _column(series.explode()))
        case pl.String:
            return Strings(series.to_numpy())
        case pl.Boolean:
            return Flags(series.to_numpy())
        case _:
            return Numbers(series.to_numpy(), finite=True)
