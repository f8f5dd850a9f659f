"""Model outputs and where each event came from, as Avro single-object records: a batch at a time.

- A prediction is `model`, `version`, `source {topic, partition, offset, timestamp}`, then each output under its Avro
  name: a scalar for `[N]` and `[N, 1]`, an array of K values for `[N, K]`.
- The schema depends on the model's name and its outputs only, so versions of one signature share a fingerprint.
- Every varint that differs between rows is padded to the width of its type's largest number. That is valid Avro, and
  makes rows equally wide: a batch is one matrix of bytes, filled column by column. Nothing can fail to fit, and an
  event's prediction has the same bytes in whatever batch it is made.
- Strings break the matrix into several; their rows are joined.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modelcast.avro import Schema
from modelcast.errors import LoadError
from modelcast.names import avro_name
from modelcast.records import DType, Manifest, OutputSpec

Array = npt.NDArray[Any]
Octets = npt.NDArray[np.uint8]

NAMESPACE = "modelcast.predictions"

# Bytes of the widest varint of a 32- and a 64-bit number: 7 bits a byte.
INT_BYTES = 5
LONG_BYTES = 10

_AVRO_TYPES = {
    DType.FLOAT32: "float",
    DType.FLOAT64: "double",
    DType.INT32: "int",
    DType.INT64: "long",
    DType.BOOL: "boolean",
    DType.STRING: "string",
}
_END_OF_ARRAY = b"\0"
_SHIFTS = np.arange(LONG_BYTES, dtype=np.uint64) * np.uint64(7)
# Below this many numbers one operation over all bytes of all of them is faster than one a byte (measured: 5 µs against
# 12 for one number), above it slower.
_FEW = 512


class PredictionEncoder:
    """Encodes the predictions of one version for events of one topic.

    Attributes:
        schema: The schema of its records; register it before the first of them is sent.
    """

    def __init__(self, manifest: Manifest, topic: str) -> None:
        self._outputs = manifest.signature.outputs
        self.schema = Schema.parse(_definition(manifest.model, self._outputs))
        self._prefix = b"".join((self.schema.frame, _string(manifest.model), _varint(manifest.version), _string(topic)))

    def longest_bytes(self, records: Sequence[bytes]) -> int:
        """No one of these records of its own has more bytes; they differ by the strings in them only."""
        if any(spec.dtype is DType.STRING for spec in self._outputs):
            return max(map(len, records), default=0)
        return len(records[0]) if records else 0

    def encode(
        self,
        outputs: Mapping[str, Array],
        partitions: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        timestamps: npt.NDArray[np.int64],
    ) -> list[bytes]:
        """Encodes one record per event.

        Args:
            outputs: The model's outputs by ONNX name, N rows each.
            partitions: Of the N events.
            offsets: Of the N events.
            timestamps: Of the N events, epoch milliseconds.

        Raises:
            LoadError: The model gave another number of rows than there are events.
        """
        count = len(offsets)
        if not count:
            return []
        row = _Rows(count)
        row.constant(self._prefix)
        row.add(_padded(partitions, INT_BYTES))
        row.add(_padded(offsets, LONG_BYTES))
        row.add(_padded(timestamps, LONG_BYTES))
        for spec in self._outputs:
            array = outputs[spec.name]
            if len(array) != count:
                raise LoadError(f"output {spec.name!r} has {len(array)} rows for {count} events")
            row.output(spec, array)
        return row.joined()


class _Rows:
    """Rows in the making: matrices of bytes side by side, and strings between them."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._open: list[Octets] = []  # [N, width], or [width] of what is the same in every row
        self._done: list[Iterable[bytes]] = []

    def constant(self, octets: bytes) -> None:
        self._open.append(np.frombuffer(octets, np.uint8))

    def add(self, matrix: Octets) -> None:
        self._open.append(matrix)

    def output(self, spec: OutputSpec, array: Array) -> None:
        values = array.reshape(self._count, -1)
        width = values.shape[1]
        if not spec.is_scalar and width:
            self.constant(_varint(width))
        if spec.dtype is DType.STRING:
            self._strings(values)
        else:
            self.add(_octets(values, spec.dtype))
        if not spec.is_scalar:
            self.constant(_END_OF_ARRAY)

    def _strings(self, values: Array) -> None:
        self._close()
        # Labels are few: each is encoded once a batch.
        table = {value: _string(value) for value in set(values.reshape(-1).tolist())}
        for column in values.T:
            self._done.append(map(table.__getitem__, column.tolist()))

    def _close(self) -> None:
        if self._open:
            matrix = np.empty((self._count, sum(part.shape[-1] for part in self._open)), np.uint8)
            end = 0
            for part in self._open:
                start, end = end, end + part.shape[-1]
                matrix[:, start:end] = part
            self._open = []
            self._done.append(_sliced(matrix))

    def joined(self) -> list[bytes]:
        self._close()
        if len(self._done) == 1:
            return list(self._done[0])
        return list(map(b"".join, zip(*self._done, strict=True)))


def _definition(model: str, outputs: Sequence[OutputSpec]) -> dict[str, Any]:
    source = [
        {"name": "topic", "type": "string"},
        {"name": "partition", "type": "int"},
        {"name": "offset", "type": "long"},
        # Plain milliseconds, as Kafka gives them: a reader that turns them into a date can't show -1, which is "none".
        {"name": "timestamp", "type": "long", "doc": "The event's time, epoch milliseconds; -1 if it has none."},
    ]
    fields: list[dict[str, Any]] = [
        {"name": "model", "type": "string"},
        {"name": "version", "type": "int"},
        {"name": "source", "type": {"type": "record", "name": "Source", "fields": source}},
    ]
    for spec in outputs:
        item = _AVRO_TYPES[spec.dtype]
        fields.append({"name": spec.field, "type": item if spec.is_scalar else {"type": "array", "items": item}})
    return {"type": "record", "name": avro_name(model), "namespace": NAMESPACE, "fields": fields}


def _octets(values: Array, dtype: DType) -> Octets:
    """Values of shape [N, K] as N rows of their Avro bytes."""
    match dtype:
        case DType.INT32 | DType.INT64:
            return _padded(values, INT_BYTES if dtype is DType.INT32 else LONG_BYTES)
        case DType.BOOL:
            return np.ascontiguousarray(values, np.bool_).view(np.uint8)
        case _:
            little = "<f4" if dtype is DType.FLOAT32 else "<f8"
            return np.ascontiguousarray(values, little).view(np.uint8)


def _padded(values: Array, width: int) -> Octets:
    """Integers of shape [N] or [N, K] as zig-zag varints of `width` bytes each, side by side in N rows."""
    signed = values.astype(np.int64, copy=False)
    zigzag = ((signed << 1) ^ (signed >> 63)).view(np.uint64)
    # The cast keeps the low byte; its top bit is then set to say that more follows, or cleared at the end.
    if zigzag.size <= _FEW:
        octets = (zigzag[..., None] >> _SHIFTS[:width]).astype(np.uint8)
    else:
        octets = np.empty((*signed.shape, width), np.uint8)
        for place in range(width):
            octets[..., place] = zigzag >> _SHIFTS[place]
    octets[..., :-1] |= 0x80
    octets[..., -1] &= 0x7F
    return octets.reshape(len(values), -1)


def _sliced(matrix: Octets) -> list[bytes]:
    rows: list[bytes] = matrix.view(f"V{matrix.shape[1]}")[:, 0].tolist()
    return rows


def _varint(number: int) -> bytes:
    """One zig-zag varint, as short as it can be."""
    zigzag, octets = (number << 1) ^ (number >> 63), bytearray()
    while zigzag > 0x7F:
        octets.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    octets.append(zigzag)
    return bytes(octets)


def _string(text: str) -> bytes:
    octets = text.encode()
    return _varint(len(octets)) + octets
