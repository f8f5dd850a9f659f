"""Long arrays of numbers, cut out of JSON events before these are read and parsed by simdjson.

An event with a row of hundreds of numbers is nearly all array. What is left without the items, its *skeleton*
(`{"id":"x","row":[]}`), is read like any short event; the items go straight into a numpy array. Measured for 784 floats
of 9 KB, on one core: 17 µs for parsing them here, against 62 µs by Polars and 9 µs for the shape of the whole event.

simdjson takes an array only if it is JSON (RFC 8259) and all its items are numbers that fit: what it refuses stays
where it is, and is judged with the whole event. It is cut without knowing where it stands, perhaps in the middle of a
string; so each cut is known by which bracket of its event it is, and `json_lines` asks for the one behind a key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelcast.records import DType

from .columns import Items, Numbers
from .cursor import Array, Buffer, Mask, Rows
from .wanted import Wanted

try:
    import simdjson
except ImportError:  # no wheel for this Python: arrays stay where they are, and everything reads the same
    simdjson = None  # type: ignore[assignment]

# Fewer items cost more to cut than they take to read (measured: 2 µs a cut, 70 ns an item).
MIN_ITEMS = 48
# Brackets looked at in one event: each may take a search through all of it.
_MAX_BRACKETS = 16

_KINDS: Mapping[DType, str] = {
    DType.FLOAT32: "d",
    DType.FLOAT64: "d",
    DType.INT32: "i",
    DType.INT64: "i",
    DType.UINT8: "i",
}
_DTYPES = {"d": np.dtype(np.float64), "i": np.dtype(np.int64)}

# The arrays cut out of one event, by the ordinals of their opening brackets.
Cuts = Mapping[int, Array]
_NO_CUTS: Cuts = {}


@dataclass(frozen=True, slots=True)
class Skeletons:
    """Events without their long arrays.

    Attributes:
        buffer: What is left of each.
        cuts: What was cut out of each; empty if nothing was cut out of any.
    """

    buffer: Buffer
    cuts: Sequence[Cuts]

    @classmethod
    def of(cls, buffer: Buffer, wanted: Sequence[Wanted]) -> Skeletons:
        """Cuts the arrays out of events if a field wants one, and all that do want numbers of one kind."""
        shaped = [one.spec for one in wanted if one.spec.shape is not None]
        items = min((spec.row_values for spec in shaped if spec.row_values >= MIN_ITEMS), default=0)
        kinds = {_KINDS.get(spec.dtype) for spec in shaped}
        kind = kinds.pop() if len(kinds) == 1 else None
        if simdjson is None or kind is None or not items:
            return cls(buffer, ())
        cutter = _Cutter(kind, items)
        parts = [cutter.cut(buffer.value(row)) for row in range(len(buffer))]
        cuts = [part[1] for part in parts]
        return cls(Buffer([part[0] for part in parts]), cuts) if any(cuts) else cls(buffer, ())

    def rows(self, index: Rows) -> Skeletons:
        """Some of the events."""
        values = Buffer([self.buffer.value(row) for row in index.tolist()])
        return Skeletons(values, [self.cuts[row] for row in index.tolist()] if self.cuts else ())

    def sound(self, rows: Rows, shape: bytes) -> Mask:
        """Which of the events, whose skeletons are of one shape without escapes, have no cut within a string."""
        ordinals = {ordinal for row in rows.tolist() for ordinal in self.cuts[row]} if self.cuts else set()
        quoted = [ordinal for ordinal in ordinals if _is_quoted(shape, ordinal)]
        whole: Mask = np.ones(len(rows), np.bool_)
        if quoted:
            whole[:] = [self.cuts[row].keys().isdisjoint(quoted) for row in rows.tolist()]
        return whole

    def have(self, rows: Rows, ordinal: int, count: int) -> Mask:
        """Which of the events had so many items cut out there."""
        if not self.cuts:
            return np.zeros(len(rows), np.bool_)
        lengths = (len(self.cuts[row].get(ordinal, ())) for row in rows.tolist())
        there: Mask = np.fromiter(lengths, np.int64, len(rows)) == count
        return there

    def column(self, rows: Rows, ordinal: int, count: int) -> Items:
        """What was cut out there of events that have it, as many items of each."""
        values = np.concatenate([self.cuts[row][ordinal] for row in rows.tolist()]) if rows.size else np.empty(0)
        return Items(np.full(len(rows), count), np.arange(len(rows)), Numbers(values, finite=True))


class _Cutter:
    """Cuts arrays of `kind`, of as many bytes as `items` items have at least, out of one event after the other."""

    def __init__(self, kind: str, items: int) -> None:
        self._parser: Any = simdjson.Parser()
        self._kind = kind
        self._least_bytes = 2 * items + 1

    def cut(self, value: bytes) -> tuple[bytes, Cuts]:
        """The skeleton, and what was cut out."""
        cuts: dict[int, Array] = {}
        pieces: list[bytes] = []
        done, place = 0, value.find(b"[")
        for ordinal in range(_MAX_BRACKETS):
            end = value.find(b"]", place + self._least_bytes - 1) if place >= 0 else -1
            if end < 0:
                break
            array = self._parsed(value[place : end + 1])
            if array is not None:
                cuts[ordinal] = array
                pieces.append(value[done : place + 1])
                done = place = end
            place = value.find(b"[", place + 1)
        return (b"".join((*pieces, value[done:])), cuts) if cuts else (value, _NO_CUTS)

    def _parsed(self, text: bytes) -> Array | None:
        """The items of a flat array; None for any other text."""
        # A bracket within: simdjson would flatten the arrays it finds.
        if text.find(b"[", 1) >= 0:
            return None
        try:
            items = self._parser.parse(text).as_buffer(of_type=self._kind)
        except (ValueError, TypeError, RuntimeError):
            return None
        return np.frombuffer(items, _DTYPES[self._kind])


def _is_quoted(shape: bytes, ordinal: int) -> bool:
    """Whether the bracket of that ordinal stands within a string."""
    place = -1
    for _ in range(ordinal + 1):
        place = shape.index(b"[", place + 1)
    return shape.count(b'"', 0, place) % 2 == 1
