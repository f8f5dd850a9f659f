"""Avro arrays, as many items long as a tensor has values, read down a whole batch.

- Writers give an array as one block of all its items, and numbers, nullable or not, that are all there: such rows are
  read together, with no work per value outside of numpy.
- Every other row is walked item by item, which says whether it holds an array at all and where its items begin; the
  items of those rows are then read like a column. The quick way judges nothing: what it does not take is walked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .columns import Choice, Column, Items, Numbers
from .cursor import Array, Buffer, Cursor, Mask, Rows
from .walk import ArrayWalk, array_walker, type_name

_REALS = {"float": "<f4", "double": "<f8"}
_INTEGER_BITS = {"int": 32, "long": 64}
# A tenth byte of a varint may hold one bit only; numbers that need it are walked.
_MAX_QUICK_BYTES = 9
# Varints read at once: several arrays of as many 64-bit numbers stay in the cache (measured: half again as fast
# as whole blocks).
_CHUNK_ITEMS = 1 << 15


class Reader(Protocol):
    """Reads one type down a column."""

    def read(self, cursor: Cursor) -> Column: ...


class _Quick(Protocol):
    def read(self, buffer: Buffer, starts: Rows, ends: Rows) -> tuple[Mask, Array, Rows]:
        """Reads `count` items of each row from `starts` on.

        Returns:
            Which rows hold them before `ends`; the items of those rows, flat; the places behind them.
        """


@dataclass(frozen=True, slots=True)
class Arrays:
    """Reads a field of arrays.

    Attributes:
        item: Reads the items as a column.
        quick: Reads rows as writers usually give them; None if the items are no numbers.
        walk: Walks any row.
        count: How many items a row needs.
        change: What `item` makes of the numbers it reads, for those that are read together.
    """

    item: Reader
    quick: _Quick | None
    walk: ArrayWalk
    count: int
    change: Callable[[Numbers], Numbers] | None = None

    @classmethod
    def of(
        cls,
        items: Any,
        item: Reader,
        names: Mapping[str, Any],
        count: int,
        change: Callable[[Numbers], Numbers] | None = None,
        *,
        quick: bool = True,
    ) -> Arrays:
        """For items of the parsed schema `items`, which `item` reads; not `quick`: `item` refuses some."""
        return cls(item, _quick(items, count) if quick else None, array_walker(items, names), count, change)

    def read(self, cursor: Cursor) -> Column:
        lengths = np.zeros(len(cursor), np.int64)
        parts: list[tuple[Rows, Column]] = []
        rest = np.arange(len(cursor))
        if self.quick is not None:
            whole, numbers = self._together(self.quick, cursor)
            column = Numbers(numbers) if self.change is None else self.change(Numbers(numbers))
            if whole.all():
                return Items(np.full(len(cursor), self.count), rest, column)
            rows, rest = rest[whole], rest[~whole]
            lengths[rows] = self.count
            parts.append((rows, column))
        parts.append(self._one_by_one(cursor, rest, lengths))
        rows = np.flatnonzero(lengths == self.count)
        # Each part's items at their places among those of all rows of the right length.
        places = [np.searchsorted(rows, part) * self.count for part, _ in parts]
        spread = np.arange(self.count)
        choices = tuple(
            ((place[:, None] + spread).reshape(-1), items) for place, (_, items) in zip(places, parts, strict=True)
        )
        return Items(lengths, rows, Choice(choices, len(rows) * self.count))

    def _together(self, quick: _Quick, cursor: Cursor) -> tuple[Mask, Array]:
        """The rows that are as writers usually give them, moved on, and their items."""
        head = cursor.rows(np.arange(len(cursor)))
        whole = (head.varint() == self.count) & ~head.broken
        rows = np.flatnonzero(whole)
        held, numbers, stops = quick.read(cursor.buffer, head.position[rows], head.end[rows])
        closed = cursor.buffer.octets[stops] == 0  # the block of no items, which ends every array
        whole[rows] = held
        whole[rows[held][~closed]] = False
        cursor.position[whole] = stops[closed] + 1
        return whole, numbers if closed.all() else numbers.reshape(-1, self.count)[closed].reshape(-1)

    def _one_by_one(self, cursor: Cursor, rows: Rows, lengths: Rows) -> tuple[Rows, Column]:
        """Walks rows, sets their lengths, and reads the items of those of the right length."""
        starts: list[int] = []
        right: list[int] = []
        for row in rows.tolist():
            end = int(cursor.end[row])
            walked = self.walk(cursor.buffer.data, int(cursor.position[row]), end, self.count)
            cursor.position[row] = end if walked is None else walked.stop
            cursor.broken[row] |= walked is None
            lengths[row] = 0 if walked is None else walked.length
            if walked is not None and walked.length == self.count:
                right.append(row)
                starts += walked.starts
        taken = np.array(right, np.int64)
        items = Cursor(cursor.buffer, np.array(starts, np.int64), np.repeat(cursor.end[taken], self.count))
        return taken, self.item.read(items)


def _quick(items: Any, count: int) -> _Quick | None:
    branch = None
    if isinstance(items, list) and len(items) == 2 and "null" in items:
        branch = 1 - items.index("null")
        items = items[branch]
    kind = type_name(items)
    # The index of a union's branch as its varint, one byte.
    mark = None if branch is None else 2 * branch
    if kind in _REALS:
        return _Reals(_REALS[kind], mark, count)
    return _Integers(_INTEGER_BITS[kind], mark, count) if kind in _INTEGER_BITS else None


@dataclass(frozen=True, slots=True)
class _Reals:
    """Floats, each perhaps behind the mark of its branch: items of one width."""

    code: str
    mark: int | None
    count: int

    def read(self, buffer: Buffer, starts: Rows, ends: Rows) -> tuple[Mask, Array, Rows]:
        lead = 0 if self.mark is None else 1
        layout = np.dtype(
            {
                "names": ["mark", "value"] if lead else ["value"],
                "formats": ["u1", self.code] if lead else [self.code],
                "offsets": [0, 1] if lead else [0],
                "itemsize": lead + np.dtype(self.code).itemsize,
            }
        )
        width = self.count * layout.itemsize
        held = starts + width < ends  # one byte more: what closes the array
        items = buffer.window(starts[held], width).view(layout).reshape(-1, self.count)
        if lead:
            present = (items["mark"] == self.mark).all(axis=1)
            held[held] = present
            items = items[present]
        return held, items["value"].reshape(-1), starts[held] + width


@dataclass(frozen=True, slots=True)
class _Integers:
    """Varints, each perhaps behind the mark of its branch."""

    bits: int
    mark: int | None
    count: int

    def read(self, buffer: Buffer, starts: Rows, ends: Rows) -> tuple[Mask, Array, Rows]:
        step = max(1, _CHUNK_ITEMS // self.count)
        cuts = range(0, max(1, len(starts)), step)
        parts = [self._read_some(buffer, starts[cut : cut + step], ends[cut : cut + step]) for cut in cuts]
        held, numbers, stops = map(np.concatenate, zip(*parts, strict=True))
        return held, numbers, stops

    def _read_some(self, buffer: Buffer, starts: Rows, ends: Rows) -> tuple[Mask, Array, Rows]:
        each = 1 if self.mark is None else 2
        final = buffer.varint_ends
        first = np.searchsorted(final, starts)
        # A row's last varint ends before its end, and the buffer's padding ends more than any row can want of it.
        last = first + each * self.count - 1
        held = last < len(final)
        held[held] = final[last[held]] + 1 < ends[held]
        stops = final[first[held, None] + np.arange(each * self.count)]
        begins = np.concatenate([starts[held, None], stops[:, :-1] + 1], axis=1)
        lengths = stops - begins + 1
        good = lengths.max(axis=1) <= _MAX_QUICK_BYTES
        if self.mark is not None:
            good &= ((buffer.octets[begins[:, ::2]] == self.mark) & (lengths[:, ::2] == 1)).all(axis=1)
            begins, lengths = begins[:, 1::2], lengths[:, 1::2]
        raw = (buffer.octets[begins] & 0x7F).astype(np.uint64)
        for place in range(1, int(min(lengths.max(initial=0), _MAX_QUICK_BYTES))):
            octets = np.where(lengths > place, buffer.octets[begins + place] & 0x7F, 0)
            raw |= octets.astype(np.uint64) << np.uint64(7 * place)
        if self.bits < 64:
            good &= (raw >> np.uint64(self.bits) == 0).all(axis=1)
        held[held] = good
        raw = raw[good]
        numbers = (raw >> np.uint64(1)).view(np.int64) ^ -(raw & np.uint64(1)).view(np.int64)
        return held, numbers.reshape(-1), stops[good, -1] + 1
