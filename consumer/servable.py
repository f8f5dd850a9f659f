"""A loaded version: a session on a device, fed from event fields.

- `run` may be called from several threads. Large batches are run in parts, so that a model's activations stay bounded;
  where memory is short for a part, in smaller ones for a while.
- Every output has one row per event; a model that gives another number is refused for that batch.
- `close` drops the session and the private folder its files were mapped from. Who calls it decides when: destroying a
  large session takes milliseconds.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from modelcast.errors import LoadError, OutOfMemoryError
from modelcast.names import ModelVersion
from modelcast.records import EXAMPLES_PATH, DType, Manifest, Signature
from modelcast.runtime import Array, Session

from .binding import Binding
from .probe import memory_allowed

LOGGER: Final = logging.getLogger("modelcast.servable")

# Rows of one run: past some thousand rows throughput no longer grows, while the memory for activations does.
MAX_RUN_ROWS = 16_384
# … and values of all inputs together: a convolution turns each into dozens, 128 MiB of float32 with 32 channels.
MAX_RUN_VALUES = 1 << 20
# How long runs stay small after memory was short: what took it (another model's load, most often) is over by then.
SHORT_S = 60.0


def row_values(signature: Signature) -> int:
    """Values of all inputs for one row."""
    return sum(math.prod(size or 1 for size in entry.shape[1:]) for entry in signature.inputs)


def most_rows(values: int) -> int:
    """Rows of the largest run of a model whose inputs take `values` values a row."""
    return max(1, min(MAX_RUN_ROWS, MAX_RUN_VALUES // max(1, values)))


# What Python and the runtime took in the process that measured a version (60 MB here): no part of what it needs.
_MEASURED_WITH_BYTES = 56 << 20
# Where nobody measured: files stay mapped, and the runtime repacks each for the processor.
_UNMEASURED_FACTOR = 2
# The runtime's own for any session, however small its graph: arena, kernels, thread.
_SESSION_BYTES = 1 << 20


def memory_need(manifest: Manifest) -> int:
    """Bytes of memory one loaded version is expected to take, from its manifest alone.

    What its publisher measured when it loaded the version and ran it on its examples; never less than its files, nor
    more than a trial of it may take (manifests may be unsigned). Without a measurement, a multiple of its files.
    """
    files = sum(entry.size for entry in manifest.files if entry.path != EXAMPLES_PATH)
    if manifest.probe is None:
        return _SESSION_BYTES + _UNMEASURED_FACTOR * files
    measured = max(files, manifest.probe.peak_bytes - _MEASURED_WITH_BYTES)
    return _SESSION_BYTES + min(measured, memory_allowed(manifest.size_bytes))


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What each step of loading took, in milliseconds.

    Attributes:
        fetch_ms: Missing files from the log, digests of all.
        check_ms: Structure gate, signature, binding.
        probe_ms: Trial in a limited child process; 0 if there was none.
        session_ms: The runtime's session.
        warm_ms: One run for each batch bucket.
        golden_ms: Golden examples run and compared.
        total_ms: All of it.
    """

    fetch_ms: float
    check_ms: float
    probe_ms: float
    session_ms: float
    warm_ms: float
    golden_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class _Short:
    """That memory was short: rows of a run until then."""

    rows: int
    until_s: float


class Servable:
    """One version, ready to score.

    Attributes:
        memory_bytes: What it takes, as far as its manifest says (`memory_need`): what a memory budget counts.

    Args:
        release: Called once by `close`, when the session is gone.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        manifest: Manifest,
        binding: Binding,
        session: Session,
        *,
        report: LoadReport | None = None,
        release: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id: ModelVersion = manifest.id
        self.manifest = manifest
        self.binding = binding
        self.device = session.device
        self.memory_bytes = memory_need(manifest)
        self.report = report
        self._names = [output.name for output in manifest.signature.outputs]
        self._session: Session | None = session
        self._release = release
        self._clock = clock
        self._short: _Short | None = None

    def run(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Scores events.

        Args:
            columns: By event field, arrays `[N]` (see `Binding.feeds`).

        Returns:
            By ONNX output, arrays of N rows.

        Raises:
            BindingError: The columns can't feed the model.
            LoadError: The model failed on them.
        """
        return self.run_feeds(self.binding.feeds(columns))

    def run_feeds(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """As `run`, from the graph's own inputs, batch first."""
        session = self._session
        if session is None:
            raise RuntimeError(f"{self.id} was closed")
        rows = len(next(iter(feeds.values()), ()))
        if rows == 0:
            return {output.name: _empty(output.dtype, output.shape) for output in self.manifest.signature.outputs}
        most = self._most_rows(feeds, rows)
        if rows <= most:
            try:
                return self._run_part(session, feeds, rows)
            except OutOfMemoryError as error:
                most = self._halve(rows, error)
        parts: list[dict[str, Array]] = []
        start = 0
        while start < rows:
            count = min(most, rows - start)
            part = {name: array[start : start + count] for name, array in feeds.items()}
            try:
                parts.append(self._run_part(session, part, count))
            except OutOfMemoryError as error:
                most = self._halve(count, error)
            else:
                start += count
        return {name: np.concatenate([part[name] for part in parts]) for name in self._names}

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes worth a run before the first event, ascending; empty if the session has none of its own."""
        if self._session is None:
            return ()
        most = most_rows(row_values(self.manifest.signature))
        return tuple(bucket for bucket in self._session.buckets if bucket <= most)

    def close(self) -> None:
        """Drops the session; a second call does nothing."""
        if self._session is not None:
            self._session = None
            self._release()

    def _most_rows(self, feeds: Mapping[str, Array], rows: int) -> int:
        values = 0
        for array in feeds.values():
            values += array.size
        short = self._short
        if short is None and rows <= MAX_RUN_ROWS and values <= MAX_RUN_VALUES:
            return rows
        most = most_rows(values // rows)
        if short is None:
            return most
        if self._clock() >= short.until_s:
            self._short = None
            return most
        return min(most, short.rows)

    def _halve(self, rows: int, error: OutOfMemoryError) -> int:
        """Rows of a run after one of `rows` found no memory; raises `error` if it was one row."""
        if rows == 1:
            raise error
        if self._short is None:
            LOGGER.warning("%s runs in smaller parts for %g s: %s", self.id, SHORT_S, error.message)
        self._short = _Short(rows // 2, self._clock() + SHORT_S)
        return rows // 2

    def _run_part(self, session: Session, feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
        outputs = {}
        for name, array in zip(self._names, session.run(feeds, self._names), strict=True):
            if array.ndim == 0 or len(array) != rows:
                raise LoadError(
                    f"output {name!r} of {self.id} has shape {list(array.shape)} for {rows} rows",
                    hint="The first dimension of every output must be the batch.",
                )
            outputs[name] = array
        return outputs


def _empty(dtype: DType, shape: tuple[int | None, ...]) -> Array:
    return np.empty((0, *(size or 0 for size in shape[1:])), object if dtype is DType.STRING else dtype.value)
