"""Many JSON events of one shape, read together by Polars where that is proven to give what reading each alone gives.

Polars reads lines of JSON strictly but for three things, and each is settled before or after:

- A key that stands twice goes unnoticed. So events are grouped by their *shape*, what is left of one without everything
  but quotes, brackets, commas and colons, and every key of every event is compared with those of one event of the shape
  that was parsed strictly. In events of one shape without escapes, strings begin and end at the same quotes.
- Anything becomes a string where one is asked for. Whether a value is a string is part of the shape.
- A value of another kind, null or missing reads as null, and so does an item of an array: such events are decoded one
  by one, to learn which it was. That an array is flat, and how long it is, is part of the shape.

A line break inside an event would shift its neighbours: such events are decoded one by one, and so are escapes. One
event that is no JSON fails the whole read, which is then repeated in blocks without the events that look like it.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from polars.exceptions import PanicException, PolarsError

from modelcast.records import DType
from modelcast.tensors import FieldSpec

from .columns import Column, Flags, Items, Numbers, Strings
from .cursor import MAX_WINDOW_BYTES, Buffer, Mask, Rows
from .json import parse

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


@dataclass(frozen=True, slots=True)
class _Key:
    """A key at the top of an event: its bytes with quotes, the ordinal of its first quote, the shape behind it."""

    token: bytes
    quote: int
    follows: bytes

    @property
    def holds_string(self) -> bool:
        return self.follows.startswith(b'"')

    def holds_items(self, count: int) -> bool:
        """Whether a flat array of so many numbers (or none, for one) follows."""
        return self.follows.startswith(b"[%s]" % (b"," * (count - 1)))


def decode_together(buffer: Buffer, specs: Sequence[FieldSpec]) -> Iterator[Lines]:
    """Decodes the events that can be read together; the rows of no group are left to be decoded one by one."""
    if len(buffer) < MIN_ROWS:
        return
    shapes = buffer.text().translate(None, _EVERYTHING_ELSE).split(b"\n")
    whole = _are_lines(buffer, several=len(shapes) > len(buffer))
    if not whole.all():
        rows = np.flatnonzero(whole)
        for lines in decode_together(Buffer([buffer.value(row) for row in rows.tolist()]), specs):
            yield Lines(rows[lines.rows], lines.columns)
        return
    quotes = np.flatnonzero(buffer.octets == ord('"'))
    first_quotes = np.searchsorted(quotes, buffer.starts)
    for shape, members in _by_shape(shapes):
        for group, keys in _by_keys(buffer, members, shape, (quotes, first_quotes)):
            if readable := _readable(keys, specs):
                yield from _read(buffer, group, readable)


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
    buffer: Buffer, rows: Rows, shape: bytes, quotes: tuple[Rows, Rows]
) -> Iterator[tuple[Rows, tuple[_Key, ...]]]:
    """Groups the events of one shape by their keys; `quotes` are all quotes, and the first of each event."""
    if b"\\" in shape:
        return
    for _ in range(_MAX_TEMPLATES):
        if len(rows) < MIN_ROWS:
            return
        keys = _keys(buffer.value(rows[0]), shape)
        same = _have_keys(buffer, rows, keys, quotes) if keys else np.zeros(len(rows), np.bool_)
        if same.any():
            yield rows[same], keys
        same[0] = True  # valid and dealt with, or not valid: no template again
        rows = rows[~same]


def _keys(value: bytes, shape: bytes) -> tuple[_Key, ...]:
    """The keys of an event without escapes, in order; none if it is no valid event."""
    try:
        names = list(parse(value))
    except ValueError:
        return ()
    keys, depth, quote, quoted = [], 0, -1, False
    for place, octet in enumerate(shape):
        if octet == ord('"'):
            quoted, quote = not quoted, quote + 1
            if quoted and depth == 1 and shape[place - 1] in b"{,":
                keys.append((quote, place))
        elif not quoted:
            depth += (octet in b"{[") - (octet in b"}]")
    return tuple(
        _Key(b'"%s"' % name.encode(), quote, _behind_colon(shape, place))
        for name, (quote, place) in zip(names, keys, strict=True)
    )


def _behind_colon(shape: bytes, place: int) -> bytes:
    """What stands behind the key whose first quote is at `place`; nothing if no colon does."""
    colon = shape.index(b'"', place + 1) + 1
    return shape[colon + 1 :] if shape[colon : colon + 1] == b":" else b""


def _have_keys(buffer: Buffer, rows: Rows, keys: Sequence[_Key], quotes: tuple[Rows, Rows]) -> Mask:
    """Which of the events, all of one shape, have just these keys in this order."""
    places, first = quotes[0], quotes[1][rows]
    same = np.ones(len(rows), np.bool_)
    for key in keys:
        if len(key.token) > MAX_WINDOW_BYTES:
            return np.zeros(len(rows), np.bool_)
        same &= buffer.window(places[first + key.quote], len(key.token)) == np.void(key.token)
    return same


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A field to read, and as what."""

    name: str
    dtype: pl.DataType
    items: int  # the length of an array; 0 for any other value


def _readable(keys: Sequence[_Key], specs: Sequence[FieldSpec]) -> tuple[_Wanted, ...]:
    """The fields to read; none where one is of a kind that Polars would make into the one that is asked for."""
    by_token = {key.token: key for key in keys}
    wanted = []
    for spec in specs:
        key = by_token.get(b'"%s"' % spec.name.encode())
        if key is None:
            continue
        number = _POLARS_TYPES[spec.dtype]()
        if spec.shape is not None and key.holds_items(spec.row_values):
            wanted.append(_Wanted(spec.name, pl.List(number), spec.row_values))
        elif spec.shape is not None or spec.dtype is DType.STRING:
            if not key.holds_string:
                return ()
            wanted.append(_Wanted(spec.name, pl.String(), 0))
        else:
            wanted.append(_Wanted(spec.name, number, 0))
    return tuple(wanted)


def _read(buffer: Buffer, rows: Rows, specs: Sequence[_Wanted]) -> Iterator[Lines]:
    """Reads events of one shape and the same keys; those of blocks that can't be read are left out."""
    lines = _attempt(buffer, rows, specs)
    if lines is not None:
        yield lines
        return
    rows = rows[np.fromiter((_looks_valid(buffer.value(row)) for row in rows.tolist()), np.bool_, len(rows))]
    for start in range(0, len(rows), BLOCK_ROWS):
        lines = _attempt(buffer, rows[start : start + BLOCK_ROWS], specs)
        if lines is not None:
            yield lines


def _attempt(buffer: Buffer, rows: Rows, specs: Sequence[_Wanted]) -> Lines | None:
    text = buffer.text() if len(rows) == len(buffer) else b"\n".join([buffer.value(row) for row in rows.tolist()])
    frame = _frame(text, specs)
    return None if frame is None or frame.height != len(rows) else _lines(frame, rows, specs)


def _frame(text: bytes, specs: Sequence[_Wanted]) -> pl.DataFrame | None:
    schema = {spec.name: spec.dtype for spec in specs}
    try:
        return pl.read_ndjson(io.BytesIO(text), schema=schema, ignore_errors=True)
    except (PolarsError, PanicException):  # some event is no JSON; which one, Polars does not say
        return None


def _lines(frame: pl.DataFrame, rows: Rows, specs: Sequence[_Wanted]) -> Lines:
    whole: Mask = np.ones(len(rows), np.bool_)
    for spec, column in zip(specs, frame.get_columns(), strict=True):
        if column.null_count():
            whole &= column.is_not_null().to_numpy()
        if spec.items:
            whole &= _are_whole(column, spec.items)
    if not whole.all():
        frame, rows = frame.filter(whole), rows[whole]
    return Lines(rows, {spec.name: _column(column) for spec, column in zip(specs, frame.get_columns(), strict=True)})


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
