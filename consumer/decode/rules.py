"""What makes an event valid, for every format, and the words for what doesn't.

- A value is there, and not empty; every byte of it belongs to the one datum it holds.
- Every field the model needs is there, is not null, and is of a kind that converts without loss of meaning:
  float ← any number · int ← an integer in range · string ← string or enum · bool ← boolean.
- Times, decimals and dates are numbers, as `logical` says; `a.b` is the field `b` of the record `a` (`wanted`).
- Where the model says what counts as null (`FieldSpec.null`), a field that is null or not there counts as that; so it
  does where a record on the way to it is null or not there. An item of an array never does.
- A number too large for a 32-bit float is out of range; NaN and the infinities pass where the format has them
  (Avro), and are not JSON.
- A field for an input `[N, d1, …, dk]` holds the whole row, V = d1·…·dk values, last dimension fastest, in one of two
  forms, and of the right length in either:
  raw: exactly the V values' bytes, little-endian, of the input's own type (uint8, int32, int64, float32, float64):
  Avro bytes or fixed; a string, of Avro or JSON, that is base64 of them (RFC 4648, section 4: padded, no line breaks);
  numbers: an array of exactly V numbers, not nested, each valid as a field of one value would be. The length is looked
  at first, then the items in order: the first that is not valid says what is wrong.
- Fields the model does not need are stepped over: their structure must hold, their meaning is not looked at.
- No key stands twice at the top of a JSON event. What is inside an object that has one twice is of the wrong kind.
- A broken structure outweighs what is wrong with a field; of several fields the first the model names is reported.

An event's fate follows from its own bytes: never from those beside it in a batch.

Conversions work on whole columns; a column of one row is judged by the same code as a column of fifty thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

import numpy as np

from modelcast.records import DType
from modelcast.tensors import LAYOUTS, FieldSpec, from_base64, from_bytes, numpy_dtype

from .columns import Choice, Column, Constant, Flags, Items, Numbers, Raw, Strings, Symbols, Text
from .cursor import Array, Mask, Rows

# Columns that hold no value, by their kind.
_ABSENT = frozenset({"null", "missing"})


class Fault(StrEnum):
    """Why an event is poison: stable words, for dead-letter headers, metrics and tests."""

    TOMBSTONE = "Tombstone"  # a null value
    EMPTY_VALUE = "EmptyValue"
    INVALID_AVRO = "InvalidAvro"
    INVALID_JSON = "InvalidJson"
    INVALID_PROTOBUF = "InvalidProtobuf"
    INVALID_FRAME = "InvalidFrame"  # not framed as its format asks for
    TRAILING_BYTES = "TrailingBytes"
    MISSING_FIELD = "MissingField"
    NULL_FIELD = "NullField"
    WRONG_TYPE = "WrongType"
    OUT_OF_RANGE = "OutOfRange"
    WRONG_LENGTH = "WrongLength"  # a tensor of too many or too few values
    UNKNOWN_SCHEMA = "UnknownSchema"  # for the caller, once it gives up on a frame
    UNUSABLE_SCHEMA = "UnusableSchema"  # there, but nothing can be read by it


@dataclass(frozen=True, slots=True)
class PoisonEvent:
    """One event that can't be scored.

    Attributes:
        index: Its place in the values given.
        error: A word of `Fault`.
        message: What is wrong, with which field.
    """

    index: int
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Spoiled:
    """Rows of a column that broke one rule."""

    rows: Rows
    fault: Fault
    message: str


Converted = tuple[Array, tuple[Spoiled, ...]]


def convert(column: Column, spec: FieldSpec) -> Converted:
    """A column as the array a model wants, and the rows it can't be made from (whose values mean nothing).

    The array is `[N]`, or `[N, d1, …, dk]` for a tensor.
    """
    if isinstance(column, Choice):
        return _to_one(column, spec)
    if isinstance(column, Constant):
        return _repeated(column, spec)
    if spec.null is not None and column.kind in _ABSENT:
        return np.full(len(column), spec.null_value, numpy_dtype(spec.dtype)), ()
    made = _CONVERSIONS[spec.dtype](column, spec) if spec.shape is None else _to_tensor(column, spec)
    return made or _refuse(column, spec)


def blank(spec: FieldSpec, count: int) -> Array:
    """What stands where there is no value."""
    return np.zeros((count, *spec.dims), numpy_dtype(spec.dtype))


def _to_float(column: Column, spec: FieldSpec) -> Converted | None:
    if not isinstance(column, Numbers):
        return None
    values = column.values if column.values.dtype.kind == "f" else _as_reals(column)
    if values.dtype == numpy_dtype(spec.dtype) and not column.finite:
        # Contiguous even where the type is right already: a column may be a view into wider rows.
        return np.ascontiguousarray(values), ()
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs are NaNs
        converted = values.astype(numpy_dtype(spec.dtype), order="C")
    if converted.itemsize >= values.itemsize and not column.finite:
        return converted, ()
    beyond = np.isinf(converted) & (np.isfinite(values) | column.finite)
    return converted, spoiled(beyond, Fault.OUT_OF_RANGE, f"field {spec.name!r} is too large for {spec.dtype}")


def _as_reals(column: Numbers) -> Array:
    """Integers by way of float64, as readers of JSON take them: rounding twice can differ from rounding once."""
    if column.per == 1:
        return column.values.astype(np.float64)
    whole, rest = np.divmod(column.values, column.per)
    reals: Array = whole.astype(np.float64) + rest / column.per
    return reals


def _to_integer(column: Column, spec: FieldSpec) -> Converted | None:
    if not isinstance(column, Numbers) or not (column.whole or column.values.dtype.kind == "i"):
        return None
    values, limits = column.values, np.iinfo(spec.dtype.value)
    if column.per != 1:
        values = values // column.per
    beyond = np.ones(len(values), np.bool_) if column.whole else (values < limits.min) | (values > limits.max)
    converted = np.zeros(len(values), limits.dtype) if column.whole else values.astype(limits.dtype, copy=False)
    return converted, spoiled(beyond, Fault.OUT_OF_RANGE, f"field {spec.name!r} does not fit {spec.dtype}")


def _to_boolean(column: Column, spec: FieldSpec) -> Converted | None:  # noqa: ARG001  (one shape for all conversions)
    return (column.values, ()) if isinstance(column, Flags) else None


def _to_strings(column: Column, spec: FieldSpec) -> Converted | None:
    match column:
        case Strings(values):
            return values, ()
        case Symbols(indices, symbols):
            return np.array(symbols, dtype=np.object_)[indices], ()
        case Text():
            return _decoded(column, spec)
        case _:
            return None


_CONVERSIONS: Mapping[DType, Callable[[Column, FieldSpec], Converted | None]] = {
    DType.FLOAT32: _to_float,
    DType.FLOAT64: _to_float,
    DType.INT32: _to_integer,
    DType.INT64: _to_integer,
    DType.UINT8: _to_integer,
    DType.BOOL: _to_boolean,
    DType.STRING: _to_strings,
}


def _to_tensor(column: Column, spec: FieldSpec) -> Converted | None:
    match column:
        case Raw():
            return _of_raw(column, spec)
        case Items():
            return _of_items(column, spec)
        case Text(data, starts, ends):
            return _of_base64(
                [data[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)], spec
            )
        case Strings(values):
            return _of_base64(values.tolist(), spec)
        case _:
            return None


def _of_raw(raw: Raw, spec: FieldSpec) -> Converted:
    wrong = raw.ends - raw.starts != spec.row_bytes
    if not wrong.any():
        return _gathered(raw, raw.starts, spec), ()
    tensor = blank(spec, len(raw))
    right = np.flatnonzero(~wrong)
    if right.size:
        tensor[right] = _gathered(raw, raw.starts[right], spec)
    return tensor, _of_wrong_length(wrong, "bytes", spec)


def _gathered(raw: Raw, starts: Rows, spec: FieldSpec) -> Array:
    """Rows of the right length, so that each ends within the buffer."""
    items: Array = raw.buffer.window(starts, spec.row_bytes).view(LAYOUTS[spec.dtype])
    tensor: Array = items.reshape(len(starts), *spec.dims).astype(numpy_dtype(spec.dtype), copy=False)
    return tensor


def _of_base64(texts: Sequence[str | bytes], spec: FieldSpec) -> Converted:
    pieces = list(map(from_base64, texts))
    if all(piece is not None and len(piece) == spec.row_bytes for piece in pieces):
        return from_bytes(b"".join(cast("list[bytes]", pieces)), spec), ()
    nothing = bytes(spec.row_bytes)
    whole = (piece if piece is not None and len(piece) == spec.row_bytes else nothing for piece in pieces)
    broken = np.fromiter((piece is None for piece in pieces), np.bool_, len(pieces))
    wrong = np.fromiter((len(piece or b"") != spec.row_bytes for piece in pieces), np.bool_, len(pieces))
    return from_bytes(b"".join(whole), spec), (
        *spoiled(broken, Fault.WRONG_TYPE, f"field {spec.name!r} is a string that is no base64"),
        *_of_wrong_length(wrong & ~broken, "bytes", spec),
    )


def _of_items(items: Items, spec: FieldSpec) -> Converted:
    one = FieldSpec(spec.name, spec.dtype)
    values, faults = convert(items.values, one)
    found = _first_of_each_row(faults, items.rows, spec.row_values)
    wrong = items.lengths != spec.row_values
    if not wrong.any():
        return values.reshape(len(items), *spec.dims), found
    tensor = blank(spec, len(items))
    tensor[items.rows] = values.reshape(len(items.rows), *spec.dims)
    return tensor, (*_of_wrong_length(wrong, "items", spec), *found)


def _first_of_each_row(faults: Sequence[Spoiled], rows: Rows, width: int) -> tuple[Spoiled, ...]:
    """What is wrong with items, as what is wrong with their rows: with the first such item of each."""
    if not faults:
        return ()
    places = np.concatenate([entry.rows for entry in faults])
    kinds = np.repeat(np.arange(len(faults)), [len(entry.rows) for entry in faults])
    order = np.argsort(places, kind="stable")
    owners, first = np.unique(places[order] // width, return_index=True)
    kinds = kinds[order][first]
    return tuple(
        Spoiled(rows[owners[kinds == kind]], entry.fault, f"an item of {entry.message}")
        for kind, entry in enumerate(faults)
        if (kinds == kind).any()
    )


def _of_wrong_length(mask: Mask, what: str, spec: FieldSpec) -> tuple[Spoiled, ...]:
    return spoiled(
        mask, Fault.WRONG_LENGTH, f"field {spec.name!r} has too many or too few {what}, the model takes {spec.wanted}"
    )


def _decoded(text: Text, spec: FieldSpec) -> Converted:
    data = text.data
    pieces = [data[start:end] for start, end in zip(text.starts.tolist(), text.ends.tolist(), strict=True)]
    strings = np.empty(len(pieces), dtype=np.object_)
    try:
        strings[:] = [piece.decode() for piece in pieces]
    except UnicodeDecodeError:
        strings[:] = [piece.decode(errors="replace") for piece in pieces]
        broken = np.fromiter((not _is_utf8(piece) for piece in pieces), np.bool_, len(pieces))
        return strings, spoiled(broken, Fault.WRONG_TYPE, f"field {spec.name!r} is not UTF-8")
    return strings, ()


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _to_one(choice: Choice, spec: FieldSpec) -> Converted:
    merged = blank(spec, len(choice))
    found: list[Spoiled] = []
    for rows, part in choice.parts:
        values, bad = convert(part, spec)
        merged[rows] = values
        found += [Spoiled(rows[entry.rows], entry.fault, entry.message) for entry in bad]
    return merged, tuple(found)


def _repeated(constant: Constant, spec: FieldSpec) -> Converted:
    values, bad = convert(constant.value, spec)
    every = np.arange(len(constant))
    return np.repeat(values, len(constant), axis=0), tuple(Spoiled(every, one.fault, one.message) for one in bad)


def _refuse(column: Column, spec: FieldSpec) -> Converted:
    match column.kind:
        case "missing":
            fault, message = Fault.MISSING_FIELD, f"field {spec.name!r} is not there"
        case "null":
            fault, message = Fault.NULL_FIELD, f"field {spec.name!r} is null"
        case kind:
            fault, message = Fault.WRONG_TYPE, f"field {spec.name!r} is {kind}, the model takes {spec.wanted}"
    return blank(spec, len(column)), spoiled(np.ones(len(column), np.bool_), fault, message)


def spoiled(mask: Mask, fault: Fault, message: str) -> tuple[Spoiled, ...]:
    """The rows of a mask, if any, with what is wrong with them."""
    rows = np.flatnonzero(mask)
    return (Spoiled(rows, fault, message),) if rows.size else ()
