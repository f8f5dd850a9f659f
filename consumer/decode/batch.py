"""Events of one batch, in whatever formats they come, to columns.

- The format is found per event: `C3 01` begins an Avro single-object record, whose writer's schema is looked up by its
  fingerprint; everything else is JSON.
- Rows of one format and schema are decoded together and put back at their places.
- Nothing here raises for what an event holds: it is poison, and the events beside it are decoded as if it were not
  there (`rules`). Events of a fingerprint no schema is known for (yet) are neither good nor poison.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, cast

import numpy as np

from modelcast.avro import FRAME_BYTES, SINGLE_OBJECT_MARKER, Schema
from modelcast.tensors import FieldSpec

from .avro import AvroPlan
from .cursor import Buffer, Cursor, Mask, Rows
from .json import decode_each
from .json_lines import decode_together
from .result import DecodedBatch, Result
from .rules import Fault, PoisonEvent, Spoiled

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
        result = Result(self._specs, len(values), value_bytes)
        for start in range(0, len(values), self._block_rows):
            self._decode_block(values[start : start + self._block_rows], start, result)
        return result.batch()

    def _decode_block(self, values: Sequence[bytes | None], start: int, result: Result) -> None:
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

    def _decode_avro(self, buffer: Buffer, rows: Rows, start: int, result: Result) -> None:
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

    def _decode_json(self, buffer: Buffer, rows: Rows, start: int, result: Result) -> None:
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
