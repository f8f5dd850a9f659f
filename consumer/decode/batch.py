"""Events of one batch, in whatever formats they come, to columns.

- The format is found per event: `C3 01` begins an Avro single-object record, whose writer's schema is looked up by its
  fingerprint; everything else is JSON.
- Rows of one format and schema are decoded together and put back at their places.
- Nothing here raises for what an event holds: it is poison, and the events beside it are decoded as if it were not
  there (`rules`). Events of a fingerprint no schema is known for (yet) are neither good nor poison.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np

from modelcast.avro import FRAME_BYTES, SINGLE_OBJECT_MARKER, Schema
from modelcast.tensors import FieldSpec, numpy_dtype

from .avro import AvroPlan
from .columns import Column, Opaque
from .cursor import Array, Buffer, Cursor, Mask, Rows
from .json import decode_each
from .json_lines import decode_together
from .rules import Fault, PoisonEvent, Spoiled, blank, convert

__all__ = ["BatchDecoder", "DecodedBatch", "PoisonEvent", "SchemaSource"]

# The marker's two bytes as one number, as numpy reads them from the buffer.
_MARKER = np.frombuffer(SINGLE_OBJECT_MARKER, "<u2")[0]

# Events at once: about a megabyte, so that several passes over their bytes find them in the processor's cache.
_BLOCK_ROWS = 4096
# … and of tensors no more than this, each value counted as 64 bits: arrays are read by way of as many.
_BLOCK_TENSOR_BYTES = 8 << 20


class SchemaSource(Protocol):
    """Where writers' schemas are found."""

    def find(self, fingerprint: bytes) -> Schema | None:
        """The schema of that CRC-64-AVRO fingerprint (8 bytes, little-endian), or None if there is none yet."""


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


class BatchDecoder:
    """Decodes batches for one set of fields; keeps a plan per writer schema it has met. Not thread-safe.

    Example:
        decoder = BatchDecoder([FieldSpec("amount", DType.FLOAT32)], schemas)
        batch = decoder.decode([message.value() for message in messages])
        batch.columns["amount"]      # float32, one value for each of batch.rows
    """

    def __init__(self, specs: Sequence[FieldSpec], schemas: SchemaSource) -> None:
        self._specs = tuple(specs)
        self._schemas = schemas
        self._avro: dict[bytes, AvroPlan] = {}
        values = sum(spec.row_values for spec in self._specs if spec.shape is not None)
        self._takes_tensors = values > 0
        self._block_rows = max(1, min(_BLOCK_ROWS, _BLOCK_TENSOR_BYTES // (8 * max(1, values))))

    def decode(self, values: Sequence[bytes | None]) -> DecodedBatch:
        """Decodes events; raises nothing for what they hold."""
        value_bytes = sum(len(value) for value in values if value) if self._takes_tensors else 0
        result = _Result(self._specs, len(values), value_bytes)
        for start in range(0, len(values), self._block_rows):
            self._decode_block(values[start : start + self._block_rows], start, result)
        return result.batch()

    def _decode_block(self, values: Sequence[bytes | None], start: int, result: _Result) -> None:
        """Decodes events whose first is `start` of the batch."""
        buffer = Buffer(_without_none(values))
        lengths = buffer.ends - buffer.starts
        for row in np.flatnonzero(lengths == 0).tolist():
            if values[row] is None:
                result.spoil(start + row, Fault.TOMBSTONE, "the value is null")
            else:
                result.spoil(start + row, Fault.EMPTY_VALUE, "the value is empty")
        # Windows reach into the next value where one is short: two bytes of a marker must be its own.
        framed = (lengths >= len(SINGLE_OBJECT_MARKER)) & (buffer.window(buffer.starts, 2).view("<u2") == _MARKER)
        self._decode_avro(buffer, np.flatnonzero(framed), start, result)
        self._decode_json(buffer, np.flatnonzero(~framed & (lengths > 0)), start, result)

    def _decode_avro(self, buffer: Buffer, rows: Rows, start: int, result: _Result) -> None:
        cut = buffer.ends[rows] - buffer.starts[rows] < FRAME_BYTES
        for row in rows[cut].tolist():
            result.spoil(start + row, Fault.INVALID_AVRO, f"cut short within the {FRAME_BYTES} bytes of its frame")
        for fingerprint, group in _by_fingerprint(buffer, rows[~cut]):
            plan = self._avro_plan(fingerprint)
            if plan is None:
                result.unknown[fingerprint] = None
                continue
            cursor = Cursor(buffer, buffer.starts[group] + FRAME_BYTES, buffer.ends[group])
            columns = plan.read(cursor)
            result.take(start + group, columns, _structural(cursor))

    def _decode_json(self, buffer: Buffer, rows: Rows, start: int, result: _Result) -> None:
        if len(rows) < len(buffer):
            buffer = Buffer([buffer.value(row) for row in rows.tolist()])
        left: Mask = np.ones(len(rows), np.bool_)
        for lines in decode_together(buffer, self._specs):
            left[lines.rows] = False
            result.take(start + rows[lines.rows], lines.columns, ())
        alone = np.flatnonzero(left)
        if alone.size:
            columns, spoiled = decode_each([buffer.value(row) for row in alone.tolist()], self._specs)
            result.take(start + rows[alone], columns, spoiled)

    def _avro_plan(self, fingerprint: bytes) -> AvroPlan | None:
        plan = self._avro.get(fingerprint)
        if plan is None and (schema := self._schemas.find(fingerprint)) is not None:
            plan = self._avro[fingerprint] = AvroPlan.of(schema, self._specs)
        return plan


def _without_none(values: Sequence[bytes | None]) -> Sequence[bytes]:
    if None in values:
        return [value or b"" for value in values]
    return cast("Sequence[bytes]", values)


def _by_fingerprint(buffer: Buffer, rows: Rows) -> Iterator[tuple[bytes, Rows]]:
    if not rows.size:
        return
    prints = buffer.window(buffer.starts[rows] + len(SINGLE_OBJECT_MARKER), 8).view("<u8")
    if (prints == prints[0]).all():
        yield prints[0].tobytes(), rows
        return
    for one in np.unique(prints):
        yield one.tobytes(), rows[prints == one]


def _structural(cursor: Cursor) -> tuple[Spoiled, ...]:
    broken = np.flatnonzero(cursor.broken)
    left = cursor.end - cursor.position
    trailing = np.flatnonzero(~cursor.broken & (left > 0))
    faults = []
    if broken.size:
        faults.append(Spoiled(broken, Fault.INVALID_AVRO, "not a datum of its writer's schema"))
    if trailing.size:
        faults.append(Spoiled(trailing, Fault.TRAILING_BYTES, "bytes stand behind the datum"))
    return tuple(faults)


class _Result:
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
