"""What Avro's logical types mean to a model (Avro specification 1.12, "Logical Types").

- A time (`timestamp-millis`, `-micros`, `-nanos`, their `local-` forms, `time-millis`, `time-micros`) is a number of
  milliseconds, whatever unit it was written in: an integer is rounded down, a float keeps the fraction. So a stream
  that goes over to another unit changes nothing.
- A `decimal` is the nearest 64-bit float to the number it stands for.
- A `date` is its days since 1970, a `uuid` in a string its text.
- Any other logical type, and one that its type can't have, is what it is written in; so is a field that the event
  schema gives the plain type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .columns import Column, Numbers, Raw
from .cursor import Array

# How many of a unit make a millisecond.
_PER_MS: Mapping[tuple[str, str], int] = {
    ("long", "timestamp-millis"): 1,
    ("long", "timestamp-micros"): 10**3,
    ("long", "timestamp-nanos"): 10**6,
    ("long", "local-timestamp-millis"): 1,
    ("long", "local-timestamp-micros"): 10**3,
    ("long", "local-timestamp-nanos"): 10**6,
    ("int", "time-millis"): 1,
    ("long", "time-micros"): 10**3,
}
# Unscaled numbers and powers of ten up to these are floats without rounding, so their quotient is rounded once.
_EXACT = 2**53
_EXACT_SCALE = 22
_WORD_BYTES = 8
# Databases stop here (PostgreSQL: 1,000). Ten to a scale of a billion would take the scorer that met its schema minutes
# and gigabytes, with the interpreter held.
MAX_SCALE = 1_000


def logical_type(schema: Any) -> str | None:
    """The logical type a parsed schema is annotated with."""
    return schema.get("logicalType") if isinstance(schema, dict) else None


def per_ms(schema: Any) -> int | None:
    """How many of a parsed schema's integers make a millisecond; None where they are no times."""
    kind = logical_type(schema)
    return None if kind is None else _PER_MS.get((schema["type"], kind))


def decimal_scale(schema: Any) -> int | None:
    """The scale of a decimal; None for any other type, and for a scale beyond `MAX_SCALE`."""
    if logical_type(schema) != "decimal" or schema["type"] not in ("bytes", "fixed"):
        return None
    precision, scale = schema.get("precision"), schema.get("scale", 0)
    valid = isinstance(precision, int) and isinstance(scale, int) and 0 <= scale <= min(precision, MAX_SCALE)
    return scale if valid else None


def decimal_of(data: bytes, scale: int) -> float:
    """The nearest float to a decimal; infinite where that is too large. No bytes are a zero."""
    try:
        # Of integers, Python's division is rounded once.
        quotient: float = int.from_bytes(data, "big", signed=True) / 10**scale
    except OverflowError:
        return float("inf")
    return quotient


def decimals(raw: Raw, scale: int) -> Column:
    """Decimals, big-endian two's complement, as numbers."""
    lengths = raw.ends - raw.starts
    # What follows a shorter one in its window is pushed out behind, and its sign comes in before.
    shifts = (_WORD_BYTES - np.clip(lengths, 0, _WORD_BYTES)) * 8
    words = raw.buffer.window(raw.starts, _WORD_BYTES).view(">i8").astype(np.int64)
    unscaled = np.where(lengths > 0, words >> np.minimum(shifts, 63), 0)
    values: Array = unscaled / np.float64(10.0 ** min(scale, _EXACT_SCALE))
    quick = (lengths <= _WORD_BYTES) & (np.abs(unscaled) <= _EXACT) & (unscaled != np.iinfo(np.int64).min)
    quick &= scale <= _EXACT_SCALE
    data = raw.buffer.data
    for row in np.flatnonzero(~quick).tolist():
        values[row] = decimal_of(data[raw.starts[row] : raw.ends[row]], scale)
    return Numbers(values, finite=True)
