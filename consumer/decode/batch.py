"""Events of one batch, in whatever formats they come, to columns.

- `formats` splits a batch by the frames of its events; the writer of each frame is looked up once (`SchemaSource`).
- Rows of one format and schema are decoded together and put back at their places.
- Nothing here raises for what an event holds: it is poison, and the events beside it are decoded as if it were not
  there (`rules`). Events of a frame no schema is known for (yet) are neither good nor poison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np

from modelcast.errors import SourceError
from modelcast.events.frames import Headers
from modelcast.events.writers import (
    AvroWriter,
    JsonWriter,
    ProtobufWriter,
    SchemaSource,
    UnusableWriter,
    WriterSchema,
)
from modelcast.tensors import FieldSpec

from .avro import AvroPlan
from .cursor import Buffer, Cursor, Mask, Rows
from .formats import Formats, FrameGroup, Split
from .json import decode_each
from .json_lines import decode_together
from .protobuf import ProtobufPlan
from .result import DecodedBatch, Result
from .rules import Fault, PoisonEvent, Spoiled
from .wanted import wanted_of

__all__ = ["BatchDecoder", "DecodedBatch", "PoisonEvent", "SchemaSource"]

# Events at once: about a megabyte, so that several passes over their bytes find them in the processor's cache.
_BLOCK_ROWS = 4096
# … and of tensors no more than this, each value counted as 64 bits: arrays are read by way of as many.
_BLOCK_TENSOR_BYTES = 8 << 20

# Why an event without a frame may be no JSON: the one mistake that is made with every event of a topic.
_NOT_NAMED = (
    "it begins with 00, as events framed for a Schema Registry do, and none is named: give --schema-registry, or "
    "--event-format if these are something else"
)

_Plan = AvroPlan | ProtobufPlan | JsonWriter


class BatchDecoder:
    """Decodes batches for one set of fields; keeps a plan per writer schema it has met. Not thread-safe.

    Args:
        specs: The fields.
        schemas: Where writers' schemas are found.
        formats: What the events are.

    Example:
        decoder = BatchDecoder([FieldSpec("amount", DType.FLOAT32)], schemas)
        batch = decoder.decode([message.value() for message in messages])
        batch.columns["amount"]      # float32, one value for each of batch.rows
    """

    def __init__(self, specs: Sequence[FieldSpec], schemas: SchemaSource, formats: Formats | None = None) -> None:
        self._specs = tuple(specs)
        self._schemas = schemas
        self._formats = Formats() if formats is None else formats
        self._plans: dict[bytes, _Plan | UnusableWriter] = {}
        given = self._formats.event_schema
        self._wanted = wanted_of(self._specs, given)
        self._unframed = None if given is None else AvroPlan.to(given, self._wanted)
        values = sum(spec.row_values for spec in self._specs if spec.shape is not None)
        self._takes_tensors = values > 0
        self._block_rows = max(1, min(_BLOCK_ROWS, _BLOCK_TENSOR_BYTES // (8 * max(1, values))))

    def decode(self, values: Sequence[bytes | None], headers: Sequence[Headers | None] | None = None) -> DecodedBatch:
        """Decodes events; raises nothing for what they hold.

        Args:
            values: One an event.
            headers: Each event's, where the formats need them (`Formats.needs_headers`).

        Raises:
            BrokerError: A schema can't be looked up now.
        """
        return self.collect(values, headers).batch()

    def collect(self, values: Sequence[bytes | None], headers: Sequence[Headers | None] | None = None) -> Result:
        """As `decode`, for several who take some of the fields each."""
        value_bytes = sum(len(value) for value in values if value) if self._takes_tensors else 0
        result = Result(self._specs, len(values), value_bytes)
        for start in range(0, len(values), self._block_rows):
            stop = start + self._block_rows
            self._decode_block(values[start:stop], None if headers is None else headers[start:stop], start, result)
        return result

    def _decode_block(
        self, values: Sequence[bytes | None], headers: Sequence[Headers | None] | None, start: int, result: Result
    ) -> None:
        """Decodes events whose first is `start` of the batch."""
        if headers is not None and None in values:  # a tombstone is one, whatever its headers say
            headers = [None if value is None else own for value, own in zip(values, headers, strict=True)]
        buffer = Buffer(_without_none(values))
        split = self._formats.split(buffer, headers)
        empty = buffer.ends == buffer.starts
        if empty.any():
            _spoil_empty(values, empty, split, start, result)
        for entry in split.spoiled:
            for row in entry.rows.tolist():
                result.spoil(start + row, entry.fault, entry.message)
        for group in split.groups:
            self._decode_framed(buffer, group, start, result)
        if split.avro.size and self._unframed is not None:
            _read_avro(self._unframed, buffer, split.avro, 0, start, result)
        if split.json.size:
            self._decode_json(buffer, split.json, 0, start, result)

    def _decode_framed(self, buffer: Buffer, group: FrameGroup, start: int, result: Result) -> None:
        framed, rows = group.framed, group.rows
        plan = self._plans.get(framed.frame) or self._make_plan(framed.frame)
        match plan:
            case None:
                result.unknown[framed.frame] = None
            case UnusableWriter():
                for row in rows.tolist():
                    result.spoil(start + row, Fault.UNUSABLE_SCHEMA, plan.reason)
            case AvroPlan():
                _read_avro(plan, buffer, rows, framed.skip, start, result)
            case ProtobufPlan():
                payloads = [buffer.value(row)[framed.skip :] for row in rows.tolist()]
                for found in plan.read(payloads, framed.behind):
                    result.take(start + rows[found.rows], found.columns, found.spoiled)
            case JsonWriter():
                there = buffer.ends[rows] - buffer.starts[rows] > framed.skip
                for row in rows[~there].tolist():
                    result.spoil(start + row, Fault.INVALID_JSON, "nothing stands behind its frame")
                if there.any():
                    self._decode_json(buffer, rows[there], framed.skip, start, result)

    def _make_plan(self, frame: bytes) -> _Plan | UnusableWriter | None:
        writer = self._schemas.find(frame)
        try:
            plan = self._plan_for(writer)
        except SourceError as error:  # for good, and perhaps after a while
            refused = self._plans[frame] = UnusableWriter(f"its schema can't be read by: {error.message}")
            return refused
        except Exception as error:  # no schema that somebody wrote ends a scorer: not for its depth, nor for its types
            return UnusableWriter(f"its schema can't be read by: {type(error).__name__}: {error}")
        if isinstance(plan, UnusableWriter) or plan is None:  # not kept: either may be mended
            return plan
        self._plans[frame] = plan
        return plan

    def _plan_for(self, writer: WriterSchema | None) -> _Plan | UnusableWriter | None:
        match writer:
            case AvroWriter():
                return AvroPlan.to(writer.schema, self._wanted)
            case ProtobufWriter():
                return ProtobufPlan(writer.schema, self._specs)
            case _:
                return writer

    def _decode_json(self, buffer: Buffer, rows: Rows, skip: int, start: int, result: Result) -> None:
        if skip or len(rows) < len(buffer):
            buffer = Buffer([buffer.value(row)[skip:] for row in rows.tolist()])
        left: Mask = np.ones(len(rows), np.bool_)
        for lines in decode_together(buffer, self._wanted):
            left[lines.rows] = False
            result.take(start + rows[lines.rows], lines.columns, ())
        alone = np.flatnonzero(left)
        if alone.size:
            columns, spoiled = decode_each([buffer.value(row) for row in alone.tolist()], self._wanted)
            if not self._formats.registry:
                spoiled = tuple(_told(entry, buffer, alone) for entry in spoiled)
            result.take(start + rows[alone], columns, spoiled)


def _without_none(values: Sequence[bytes | None]) -> Sequence[bytes]:
    if None in values:
        return [value or b"" for value in values]
    return cast("Sequence[bytes]", values)


def _spoil_empty(values: Sequence[bytes | None], empty: Mask, split: Split, start: int, result: Result) -> None:
    """Spoils values that are null, or empty and named by no header."""
    for rows in (*(group.rows for group in split.groups), *(entry.rows for entry in split.spoiled)):
        empty[rows] = False
    for row in np.flatnonzero(empty).tolist():
        if values[row] is None:
            result.spoil(start + row, Fault.TOMBSTONE, "the value is null")
        else:
            result.spoil(start + row, Fault.EMPTY_VALUE, "the value is empty")


def _told(entry: Spoiled, buffer: Buffer, alone: Rows) -> Spoiled:
    """What is wrong with JSON that begins like another format."""
    if len(entry.rows) == 1 and buffer.octets[buffer.starts[alone[entry.rows[0]]]] == 0:
        return Spoiled(entry.rows, entry.fault, _NOT_NAMED)
    return entry


def _read_avro(plan: AvroPlan, buffer: Buffer, rows: Rows, skip: int, start: int, result: Result) -> None:
    cursor = Cursor(buffer, buffer.starts[rows] + skip, buffer.ends[rows])
    columns = plan.read(cursor)
    result.take(start + rows, columns, _structural(cursor))


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
