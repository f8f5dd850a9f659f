"""A position in each of many events at once: Avro's primitive types read down a whole column.

All events of a batch lie in one buffer. A cursor holds where each row stands and where it must stop; reading
a value reads it of every row and moves every row on. A row that breaks a rule is marked and parked at its own end; it
may be read on (what comes out means nothing) but it never moves another row. So there is no resynchronisation to do,
and no event can shift its neighbours.

    cursor = Cursor(buffer, starts, ends)
    lengths = cursor.varint()         # int64 per row
    cursor.skip(lengths)
    floats = cursor.window(120)       # 120 bytes per row
    cursor.broken                     # rows that were cut short or out of the specification
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

# Bytes behind the last event, so that a window read at any row's end stays inside the buffer. A window is at most this
# wide: 512 doubles in a row, far beyond the events models take; longer runs are read as several windows.
MAX_WINDOW_BYTES = 4096

_CONTINUES = 0x80  # a varint byte with another behind it
_PAYLOAD = 0x7F
_LAST_SHIFT = 63  # the tenth byte of a varint: one bit of a 64-bit number is left


class Buffer:
    """The values of a batch one behind the other, a line break between them, and room for a window at the end.

    Attributes:
        data: All of it. The line breaks make it text of one JSON event a line; Avro events end where `ends` says.
        octets: The same as numbers.
        starts: Where each value begins.
        ends: One past the last byte of each value.
    """

    def __init__(self, values: Sequence[bytes]) -> None:
        lengths = np.fromiter(map(len, values), np.int64, len(values))
        self.data = b"\n".join((*values, bytes(MAX_WINDOW_BYTES)))
        self.octets: npt.NDArray[np.uint8] = np.frombuffer(self.data, np.uint8)
        self.ends = np.cumsum(lengths) + np.arange(len(values))
        self.starts = self.ends - lengths

    def __len__(self) -> int:
        return len(self.ends)

    @cached_property
    def varint_ends(self) -> Rows:
        """Where bytes stand that would end a varint."""
        return np.flatnonzero(self.octets < _CONTINUES)

    def value(self, row: int) -> bytes:
        """One value as it was given."""
        return self.data[self.starts[row] : self.ends[row]]

    def text(self) -> bytes:
        """All values, a line break between them."""
        return self.data[: self.ends[-1]] if len(self) else b""

    def window(self, positions: Rows, width: int) -> Array:
        """`width` bytes from each position, as one void scalar a row; may be wider than the buffer if there is none."""
        if not positions.size:
            return np.empty(0, f"V{width}")
        # Every position of the buffer seen as the start of a `width`-byte item: taking items copies whole runs at once.
        items = np.ndarray((len(self.data) - width + 1,), f"V{width}", self.data, 0, (1,))
        return items[positions]


class Cursor:
    """Where each row stands; see the module.

    Attributes:
        position: Next byte of each row, never beyond its end.
        end: One past the last byte of each row.
        broken: Rows whose bytes are not what was read.
    """

    __slots__ = ("broken", "buffer", "end", "position")

    def __init__(self, buffer: Buffer, position: Rows, end: Rows) -> None:
        self.buffer = buffer
        self.position = position
        self.end = end
        self.broken: Mask = np.zeros(len(position), np.bool_)

    def __len__(self) -> int:
        return len(self.position)

    def rows(self, index: Rows) -> Cursor:
        """A cursor of its own on some of the rows; give it back to `merge`."""
        return Cursor(self.buffer, self.position[index], self.end[index])

    def merge(self, index: Rows, other: Cursor) -> None:
        """Takes over where `other`, from `rows(index)`, has come to."""
        self.position[index] = other.position
        self.broken[index] |= other.broken

    def break_rows(self, mask: Mask) -> None:
        """Marks rows as broken and parks them at their end."""
        if mask.any():
            self.broken |= mask
            self.position[mask] = self.end[mask]

    def skip(self, width: int | Rows) -> None:
        """Moves on by `width` bytes (not negative; per row or for all); rows with fewer left are broken."""
        self.break_rows(self.end - self.position < width)
        self.position = np.minimum(self.position + width, self.end)

    def window(self, width: int) -> Array:
        """The next `width` bytes of every row, as one void scalar a row."""
        items = self.buffer.window(self.position, width)
        self.skip(width)
        return items

    def byte(self) -> npt.NDArray[np.uint8]:
        """The next byte of every row."""
        octets = self.buffer.octets[self.position]
        self.skip(1)
        return octets

    def varint(self) -> Rows:
        """The next zig-zag varint of every row: any padding, but no more than 64 bits in ten bytes."""
        first = self.byte()
        number = (first & _PAYLOAD).astype(np.uint64)
        rows = np.flatnonzero(first & _CONTINUES)
        shift = 7
        while rows.size:
            octets = self.buffer.octets[self.position[rows]]
            # Past its end a row would read its neighbour: stop it there, and at a tenth byte of more than one bit.
            bad = self.position[rows] >= self.end[rows]
            if shift == _LAST_SHIFT:
                bad |= octets > 1
            number[rows] |= (octets & _PAYLOAD).astype(np.uint64) << np.uint64(shift)
            self.position[rows] += 1
            self._break_at(rows[bad])
            rows = rows[~bad & (octets >= _CONTINUES)]
            shift += 7
        return (number >> np.uint64(1)).view(np.int64) ^ -(number & np.uint64(1)).view(np.int64)

    def length(self) -> Rows:
        """A varint that counts bytes of the same row which must still be there; 0 for rows broken by it."""
        lengths = self.varint()
        bad = (lengths < 0) | (lengths > self.end - self.position)
        if bad.any():
            self.break_rows(bad)
            lengths[bad] = 0
        return lengths

    def _break_at(self, rows: Rows) -> None:
        self.broken[rows] = True
        self.position[rows] = self.end[rows]
