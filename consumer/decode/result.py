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
    """Collects the groups of a batch at the places of their rows.

    What is wrong with a field is kept with the field: an event that one model can't take may be good for another, which
    takes other fields of it.

    Attributes:
        unknown: As of `DecodedBatch`.
    """

    def __init__(self, specs: Sequence[FieldSpec], size: int, value_bytes: int) -> None:
        self._specs = specs
        self._size = size
        self._readable: Mask = np.zeros(size, np.bool_)
        self._columns: dict[str, Array] = {}
        self._tensors = {spec.name: _Tensor(spec, size, value_bytes) for spec in specs if spec.shape is not None}
        self._faults: dict[str, list[Spoiled]] = {}
        self._broken: list[PoisonEvent] = []
        # As a set that keeps its order. Their rows stay out: nobody can say yet what they hold.
        self.unknown: dict[bytes, None] = {}

    @property
    def broken(self) -> Sequence[PoisonEvent]:
        """Events that are poison whatever is asked of them, in no order."""
        return self._broken

    def spoil(self, row: int, fault: Fault, message: str) -> None:
        """Notes an event that can't be read at all."""
        self._broken.append(PoisonEvent(row, fault.value, message))

    def take(self, rows: Rows, columns: Mapping[str, Column], spoiled: Sequence[Spoiled]) -> None:
        """Adds a group: columns over `rows`, and rows (counted within the group) whose structure is broken."""
        good: Mask = np.ones(len(rows), np.bool_)
        for entry in spoiled:
            for row in entry.rows[good[entry.rows]].tolist():
                self.spoil(int(rows[row]), entry.fault, entry.message)
            good[entry.rows] = False
        self._readable[rows] = good
        whole = len(rows) == self._size
        for spec in self._specs:
            column = columns.get(spec.name)
            array, faults = convert(Opaque("missing", len(rows)) if column is None else column, spec)
            if faults:
                known = self._faults.setdefault(spec.name, [])
                known += [Spoiled(rows[entry.rows], entry.fault, entry.message) for entry in faults]
            if spec.shape is not None:
                self._tensors[spec.name].add(*_fit(rows, array, good, faults))
            elif whole:
                self._columns[spec.name] = array
            else:
                self._place(spec, rows, array)

    def _place(self, spec: FieldSpec, rows: Rows, array: Array) -> None:
        column = self._columns.get(spec.name)
        if column is None:
            column = self._columns[spec.name] = blank(spec, self._size)
        column[rows] = array

    def batch(self) -> DecodedBatch:
        """What the batch comes to for whoever takes all of its fields."""
        whole = self.part(self._specs)
        poison = sorted([*self._broken, *whole.poison], key=lambda event: event.index)
        return DecodedBatch(whole.columns, whole.rows, tuple(poison), whole.unknown)

    def part(self, specs: Sequence[FieldSpec], *, among: Mask | None = None) -> DecodedBatch:
        """What it comes to for whoever takes these fields; events that are poison for everybody (`broken`) left out.

        Args:
            specs: Some of those decoded.
            among: Which of the batch's events are looked at; all of them by default.
        """
        poison: list[PoisonEvent] = []
        good = self._readable.copy() if among is None else self._readable & among
        for spec in specs if self._faults else ():
            for entry in self._faults.get(spec.name, ()):
                spoiled = entry.rows[good[entry.rows]]
                poison += [PoisonEvent(row, entry.fault.value, entry.message) for row in spoiled.tolist()]
                good[spoiled] = False
        rows = np.flatnonzero(good)
        columns = {spec.name: self._column(spec, rows) for spec in specs}
        poison.sort(key=lambda event: event.index)
        return DecodedBatch(columns, rows, tuple(poison), tuple(self.unknown))

    def undecided(self) -> Rows:
        """Events of an unknown schema: neither read nor poison."""
        left = ~self._readable
        left[[event.index for event in self._broken]] = False
        return np.flatnonzero(left)

    def _column(self, spec: FieldSpec, rows: Rows) -> Array:
        if spec.shape is not None:
            return self._tensors[spec.name].of(rows)
        array = self._columns.get(spec.name)
        if array is None:
            return blank(spec, len(rows))
        return array if rows.size == self._size else array[rows]


def _fit(rows: Rows, array: Array, good: Mask, faults: Sequence[Spoiled]) -> tuple[Rows, Array]:
    """The rows of a tensor that hold one."""
    if faults:
        good = good.copy()
        for entry in faults:
            good[entry.rows] = False
    return (rows, array) if good.all() else (rows[good], array[good])


class _Tensor:
    """The rows of one tensor, filled block after block; only events in which it is valid have one.

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

    def of(self, rows: Rows) -> Array:
        """Of these events, ascending, which all have one."""
        if self._whole is None:
            return blank(self._spec, 0)
        filled = self._whole[: self._filled]
        held = np.concatenate(self._rows) if self._rows else np.arange(self._filled)
        if (np.diff(held) > 0).all():
            return filled if len(held) == len(rows) else filled[np.searchsorted(held, rows)]
        order = np.argsort(held)
        return filled[order[np.searchsorted(held, rows, sorter=order)]]
