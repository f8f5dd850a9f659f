"""What the groups of a batch come to: columns at the places of their rows, and which events are poison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from modelcast.tensors import FieldSpec, numpy_dtype

from .columns import Column, Opaque
from .cursor import Array, Mask, Rows
from .rules import Fault, PoisonEvent, Spoiled, blank, convert


@dataclass(frozen=True, slots=True)
class DecodedBatch:
    """What became of a batch.

    Attributes:
        columns: For each field asked for, one array of its type over the good events; strings as an object array.
        rows: Which events those are: indices into the values given, ascending.
        poison: The events that can't be scored, ascending.
        unknown: Fingerprints no schema was found for, once each. Their events are in neither of the above: retry, or
            give them up.
    """

    columns: Mapping[str, Array]
    rows: Rows
    poison: tuple[PoisonEvent, ...]
    unknown: tuple[bytes, ...]


class Result:
    """Collects the groups of a batch at the places of their rows."""

    def __init__(self, specs: Sequence[FieldSpec], size: int, value_bytes: int) -> None:
        self._specs = specs
        self._size = size
        self._good: Mask = np.zeros(size, np.bool_)
        self._columns: dict[str, Array] = {}
        self._tensors = {spec.name: _Tensor(spec, size, value_bytes) for spec in specs if spec.shape is not None}
        self._poison: list[PoisonEvent] = []
        # As a set that keeps its order. Their rows stay out: nobody can say yet what they hold.
        self.unknown: dict[bytes, None] = {}

    def spoil(self, row: int, fault: Fault, message: str) -> None:
        self._poison.append(PoisonEvent(row, fault.value, message))

    def take(self, rows: Rows, columns: Mapping[str, Column], spoiled: Sequence[Spoiled]) -> None:
        """Adds a group: columns over `rows`, and rows (counted within the group) whose structure is broken."""
        good: Mask = np.ones(len(rows), np.bool_)
        self._mark(rows, good, spoiled)
        tensors = {}
        for spec in self._specs:
            array, faults = convert(columns.get(spec.name, Opaque("missing", len(rows))), spec)
            self._mark(rows, good, faults)
            if spec.shape is None:
                self._place(spec, rows, array)
            else:
                tensors[spec.name] = array
        self._good[rows] = good
        whole = bool(good.all())
        for name, array in tensors.items():
            self._tensors[name].add(*((rows, array) if whole else (rows[good], array[good])))

    def _mark(self, rows: Rows, good: Mask, spoiled: Sequence[Spoiled]) -> None:
        for entry in spoiled:
            for row in entry.rows[good[entry.rows]].tolist():
                self.spoil(int(rows[row]), entry.fault, entry.message)
            good[entry.rows] = False

    def _place(self, spec: FieldSpec, rows: Rows, array: Array) -> None:
        if len(rows) == self._size:
            self._columns[spec.name] = array
            return
        whole = self._columns.get(spec.name)
        if whole is None:
            whole = self._columns[spec.name] = blank(spec, self._size)
        whole[rows] = array

    def batch(self) -> DecodedBatch:
        rows = np.flatnonzero(self._good)
        whole = rows.size == self._size
        columns = {}
        for spec in self._specs:
            if spec.shape is not None:
                columns[spec.name] = self._tensors[spec.name].ordered()
                continue
            array = self._columns.get(spec.name)
            if array is None:
                array = blank(spec, self._size)
            columns[spec.name] = array if whole else array[rows]
        poison = tuple(sorted(self._poison, key=lambda event: event.index))
        return DecodedBatch(columns, rows, poison, tuple(self.unknown))


class _Tensor:
    """The rows of one tensor, filled block after block; only good events have one.

    So it takes memory for the bytes that came, however many of the events are poison.
    """

    def __init__(self, spec: FieldSpec, events: int, value_bytes: int) -> None:
        self._spec = spec
        # A value takes a byte of its event in the tersest of all forms, so there can't be more rows than this.
        self._capacity = min(events, value_bytes // spec.row_values)
        self._events = events
        self._whole: Array | None = None
        self._rows: list[Rows] = []
        self._filled = 0

    def add(self, rows: Rows, array: Array) -> None:
        """Adds the rows of some events."""
        if len(rows) == self._events:
            self._whole, self._filled = array, self._events
            return
        if self._whole is None:
            self._whole = np.empty((self._capacity, *self._spec.dims), numpy_dtype(self._spec.dtype))
        self._whole[self._filled : self._filled + len(rows)] = array
        self._filled += len(rows)
        self._rows.append(rows)

    def ordered(self) -> Array:
        """All rows in the order of their events."""
        if self._whole is None:
            return blank(self._spec, 0)
        filled = self._whole[: self._filled]
        if len(self._rows) < 2:
            return filled
        order = np.concatenate(self._rows)
        return filled if (np.diff(order) > 0).all() else filled[np.argsort(order)]
