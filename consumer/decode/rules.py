"""What makes an event valid, for every format, and the words for what doesn't.

- A value is there, and not empty; every byte of it belongs to the one datum it holds.
- Every field the model needs is there, is not null, and is of a kind that converts without loss of meaning:
  float ← any number · int ← an integer in range · string ← string or enum · bool ← boolean.
- A number too large for a 32-bit float is out of range; NaN and the infinities pass where the format has them
  (Avro), and are not JSON.
- Fields the model does not need are stepped over: their structure must hold, their meaning is not looked at.
- No JSON object of an event names a key twice.
- A broken structure outweighs what is wrong with a field; of several fields the first the model names is reported.

An event's fate follows from its own bytes: never from those beside it in a batch.

Conversions work on whole columns; a column of one row is judged by the same code as a column of fifty thousand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from modelcast.consumer.binding import FieldSpec
from modelcast.records import DType

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NUMPY_TYPES: dict[DType, Any] = {
    DType.FLOAT32: np.float32,
    DType.FLOAT64: np.float64,
    DType.INT32: np.int32,
    DType.INT64: np.int64,
    DType.BOOL: np.bool_,
    DType.STRING: np.object_,
}


class Fault(StrEnum):
    """Why an event is poison: stable words, for dead-letter headers, metrics and tests."""

    TOMBSTONE = "Tombstone"  # a null value
    EMPTY_VALUE = "EmptyValue"
    INVALID_AVRO = "InvalidAvro"
    INVALID_JSON = "InvalidJson"
    TRAILING_BYTES = "TrailingBytes"
    MISSING_FIELD = "MissingField"
    NULL_FIELD = "NullField"
    WRONG_TYPE = "WrongType"
    OUT_OF_RANGE = "OutOfRange"
    UNKNOWN_SCHEMA = "UnknownSchema"  # for the caller, once it gives up on a fingerprint


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


@dataclass(frozen=True, slots=True)
class Numbers:
    """Integers (int64) or floats of one column.

    Attributes:
        whole: The floats stand for integers that 64 bits can't hold.
        finite: The format has no infinities: one here was a number too large.
    """

    values: Array
    whole: bool = False
    finite: bool = False

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


Column = Numbers | Flags | Text | Strings | Symbols | Opaque | Choice


Converted = tuple[Array, tuple[Spoiled, ...]]


def convert(column: Column, spec: FieldSpec) -> Converted:
    """A column as the array a model wants, and the rows it can't be made from (whose values mean nothing)."""
    if isinstance(column, Choice):
        return _to_one(column, spec)
    return _CONVERSIONS[spec.dtype](column, spec) or _refuse(column, spec)


def _to_float(column: Column, spec: FieldSpec) -> Converted | None:
    if not isinstance(column, Numbers):
        return None
    # Integers by way of float64, as readers of JSON take them: rounding twice can differ from rounding once.
    values = column.values if column.values.dtype.kind == "f" else column.values.astype(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):  # signalling NaNs are NaNs
        # Contiguous even where the type is right already: a column may be a view into wider rows.
        converted = values.astype(NUMPY_TYPES[spec.dtype], order="C")
    if converted.itemsize >= values.itemsize and not column.finite:
        return converted, ()
    beyond = np.isinf(converted) & (np.isfinite(values) | column.finite)
    return converted, _spoiled(beyond, Fault.OUT_OF_RANGE, f"field {spec.name!r} is too large for {spec.dtype}")


def _to_integer(column: Column, spec: FieldSpec) -> Converted | None:
    if not isinstance(column, Numbers) or not (column.whole or column.values.dtype.kind == "i"):
        return None
    values, limits = column.values, np.iinfo(NUMPY_TYPES[spec.dtype])
    beyond = np.ones(len(values), np.bool_) if column.whole else (values < limits.min) | (values > limits.max)
    converted = np.zeros(len(values), limits.dtype) if column.whole else values.astype(limits.dtype, copy=False)
    return converted, _spoiled(beyond, Fault.OUT_OF_RANGE, f"field {spec.name!r} does not fit {spec.dtype}")


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
    DType.BOOL: _to_boolean,
    DType.STRING: _to_strings,
}


def _decoded(text: Text, spec: FieldSpec) -> Converted:
    data = text.data
    pieces = [data[start:end] for start, end in zip(text.starts.tolist(), text.ends.tolist(), strict=True)]
    strings = np.empty(len(pieces), dtype=np.object_)
    try:
        strings[:] = [piece.decode() for piece in pieces]
    except UnicodeDecodeError:
        strings[:] = [piece.decode(errors="replace") for piece in pieces]
        broken = np.fromiter((not _is_utf8(piece) for piece in pieces), np.bool_, len(pieces))
        return strings, _spoiled(broken, Fault.WRONG_TYPE, f"field {spec.name!r} is not UTF-8")
    return strings, ()


def _is_utf8(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _to_one(choice: Choice, spec: FieldSpec) -> Converted:
    merged = np.zeros(len(choice), dtype=NUMPY_TYPES[spec.dtype])
    spoiled: list[Spoiled] = []
    for rows, part in choice.parts:
        values, bad = convert(part, spec)
        merged[rows] = values
        spoiled += [Spoiled(rows[entry.rows], entry.fault, entry.message) for entry in bad]
    return merged, tuple(spoiled)


def _refuse(column: Column, spec: FieldSpec) -> Converted:
    match column.kind:
        case "missing":
            fault, message = Fault.MISSING_FIELD, f"field {spec.name!r} is not there"
        case "null":
            fault, message = Fault.NULL_FIELD, f"field {spec.name!r} is null"
        case kind:
            fault, message = Fault.WRONG_TYPE, f"field {spec.name!r} is {kind}, the model takes {spec.dtype}"
    return np.zeros(len(column), NUMPY_TYPES[spec.dtype]), _spoiled(np.ones(len(column), np.bool_), fault, message)


def _spoiled(mask: Mask, fault: Fault, message: str) -> tuple[Spoiled, ...]:
    rows = np.flatnonzero(mask)
    return (Spoiled(rows, fault, message),) if rows.size else ()
