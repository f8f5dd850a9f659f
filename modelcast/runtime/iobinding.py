"""Running a graph on a device through buffers that stay there.

- A batch is padded to a *bucket*, a power of two, by repeating its last row, so that the device sees few shapes: each
  has its kernels chosen, its buffers reserved and its binding made once. A large batch that would be padded by much is
  run in two parts or more instead.
- Each bucket has its own input buffers on the device, written in place, and, where an output's shape is known beside
  the batch, output buffers too. Nothing is allocated per run but the arrays handed back.
- Buffers belong to a *lane*; a run takes a lane, so threads never share one. There are few: a third thread waits.
- What can't be bound (strings, inputs of several lengths, types the graph does not declare) is run plainly.
- A row's output must not depend on the rows beside it, or padding would change it: publishing checks that.
- It works alike on the CPU, where it is tested against plain runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from queue import SimpleQueue
from types import ModuleType
from typing import Any, Final

import numpy as np

from modelcast.errors import LoadError

from .device import Device
from .library import fault_of
from .tensors import Array, Session, TensorInfo

# Rows of the largest bucket: past some thousand rows throughput no longer grows, while the memory for buffers does.
MAX_BUCKET_ROWS: Final = 16_384
BUCKETS: Final = tuple(1 << power for power in range(MAX_BUCKET_ROWS.bit_length()))
# A run of so few rows takes as long as one of a row: another launch costs more than any padding.
SMALL_ROWS: Final = 256
# Of a larger bucket, at most this part is padding; else the batch is run in parts.
MAX_PADDING: Final = 1 / 8
# Runs at a time. One computes while the other copies; more would only multiply the buffers.
LANES: Final = 2

_BINDABLE = frozenset(
    {"float16", "float32", "float64", "bool"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)  # fmt: skip


@lru_cache(maxsize=1024)
def parts(rows: int) -> tuple[tuple[int, int], ...]:
    """How a batch is run: rows of each part, and the bucket it is padded to.

    >>> parts(3), parts(1337)
    (((3, 4),), ((1024, 1024), (256, 256), (57, 64)))
    """
    found = []
    left = rows
    while left > 0:
        bucket = min(MAX_BUCKET_ROWS, 1 << (left - 1).bit_length())
        if bucket > SMALL_ROWS and bucket - left > bucket * MAX_PADDING:
            bucket //= 2
        count = min(left, bucket)
        found.append((count, bucket))
        left -= count
    return tuple(found)


class BoundSession:
    """A session on a device, fed through its own buffers; see the module.

    Args:
        plain: The same session without bindings, for what can't be bound.
        native: The runtime's session.
    """

    def __init__(self, ort: ModuleType, plain: Session, native: Any, device: Device) -> None:
        self._ort = ort
        self._plain = plain
        self._native = native
        self._place = device
        self.device = plain.device
        self.inputs = plain.inputs
        self.outputs = plain.outputs
        self._output_names = [entry.name for entry in self.outputs]
        self._bindable = all(entry.dtype in _BINDABLE for entry in (*self.inputs, *self.outputs))
        self._dtypes = {entry.name: np.dtype(entry.dtype) for entry in self.inputs} if self._bindable else {}
        self._lanes: SimpleQueue[dict[int, _Bucket]] = SimpleQueue()
        for _ in range(LANES):
            self._lanes.put({})

    @property
    def buckets(self) -> tuple[int, ...]:
        """As `Session.buckets`."""
        return BUCKETS if self._bindable else ()

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """As `Session.run`."""
        rows = self._bound_rows(feeds)
        if rows == 0:
            return self._plain.run(feeds, outputs)
        fault: LoadError | None = None
        lane = self._lanes.get()
        try:
            whole = self._run(lane, feeds, rows)
        except LoadError:
            raise
        except Exception as error:  # the runtime raises its own classes, which share no base but Exception
            fault = fault_of(error, "the model failed on its input", self.device)
            lane = {}  # what it held may be half written, or take memory that is short
        finally:
            self._lanes.put(lane)
        if fault is not None:
            raise fault
        if outputs is None or list(outputs) == self._output_names:
            return whole
        by_name = dict(zip(self._output_names, whole, strict=True))
        return [by_name[name] for name in outputs]

    def _bound_rows(self, feeds: Mapping[str, Array]) -> int:
        """Rows of a batch that can be bound; 0 if it can't."""
        if not self._bindable or len(feeds) != len(self._dtypes):
            return 0
        rows = 0
        for name, dtype in self._dtypes.items():
            array = feeds.get(name)
            if not isinstance(array, np.ndarray) or array.dtype != dtype or array.size == 0 or array.ndim == 0:
                return 0
            if rows not in (0, len(array)):
                return 0
            rows = len(array)
        return rows

    def _run(self, lane: dict[int, _Bucket], feeds: Mapping[str, Array], rows: int) -> list[Array]:
        plan = parts(rows)
        if len(plan) == 1:
            return self._bucket(lane, plan[0][1], feeds).run(feeds, 0, rows)
        results, start = [], 0
        for count, bucket in plan:
            results.append(self._bucket(lane, bucket, feeds).run(feeds, start, count))
            start += count
        return [np.concatenate(arrays) for arrays in zip(*results, strict=True)]

    def _bucket(self, lane: dict[int, _Bucket], rows: int, feeds: Mapping[str, Array]) -> _Bucket:
        found = lane.get(rows)
        if found is None or not found.takes(feeds):
            lane.pop(rows, None)  # before another is made: both would take memory
            found = lane[rows] = _Bucket(self._ort, self._native, self._place, rows, feeds, self.outputs)
        return found


class _Bucket:
    """Buffers and bindings for batches of up to `rows` rows; for one thread at a time."""

    def __init__(
        self,
        ort: ModuleType,
        native: Any,
        device: Device,
        rows: int,
        feeds: Mapping[str, Array],
        outputs: Sequence[TensorInfo],
    ) -> None:
        self._native = native
        self._rows = rows
        self._outputs = outputs
        self._shapes = {name: array.shape[1:] for name, array in feeds.items()}
        self._binding = native.io_binding()
        self._buffers: dict[str, Any] = {}
        self._padded: dict[str, Array] = {}
        for name, array in feeds.items():
            buffer = ort.OrtValue.ortvalue_from_shape_and_type(
                [rows, *array.shape[1:]], array.dtype.type, device.kind, device.number
            )
            self._binding.bind_ortvalue_input(name, buffer)
            self._buffers[name] = buffer
        for output in outputs:
            self._binding.bind_output(output.name, device.kind, device.number)
        # Output buffers are those of the first run; the runtime knows their shapes, and the graph may not.
        self._keeps_outputs = all(None not in output.shape[1:] for output in outputs)
        self._has_outputs = False

    def takes(self, feeds: Mapping[str, Array]) -> bool:
        """Whether rows of these arrays have the shapes the buffers were made for."""
        for name, shape in self._shapes.items():  # noqa: SIM110  # a generator would cost more than it checks
            if feeds[name].shape[1:] != shape:
                return False
        return True

    def run(self, feeds: Mapping[str, Array], start: int, count: int) -> list[Array]:
        """Runs rows `start` to `start + count`; arrays of all outputs."""
        for name, buffer in self._buffers.items():
            buffer.update_inplace(self._part(name, feeds[name], start, count))
        self._native.run_with_iobinding(self._binding)
        arrays: list[Array] = self._binding.copy_outputs_to_cpu()
        if self._keeps_outputs and not self._has_outputs:
            for output, value in zip(self._outputs, self._binding.get_outputs(), strict=True):
                self._binding.bind_ortvalue_output(output.name, value)
            self._has_outputs = True
        self._check(arrays)
        return arrays if count == self._rows else [array[:count].copy() for array in arrays]

    def _part(self, name: str, array: Array, start: int, count: int) -> Array:
        part = array if count == len(array) else array[start : start + count]
        if count == self._rows:
            return part if part.flags.c_contiguous else np.ascontiguousarray(part)
        padded = self._padded.get(name)
        if padded is None:
            padded = self._padded[name] = np.empty((self._rows, *array.shape[1:]), array.dtype)
        padded[:count] = part
        padded[count:] = part[-1]
        return padded

    def _check(self, arrays: Sequence[Array]) -> None:
        for output, array in zip(self._outputs, arrays, strict=True):
            if array.ndim == 0 or len(array) != self._rows:
                raise LoadError(
                    f"output {output.name!r} has shape {list(array.shape)} for {self._rows} rows",
                    hint="The first dimension of every output must be the batch.",
                )
