"""A loaded version: a session on a device, fed from event fields.

- `run` may be called from several threads. Large batches are run in parts, so that a model's activations stay bounded.
- Every output has one row per event; a model that gives another number is refused for that batch.
- `close` drops the session and the private folder its files were mapped from. Who calls it decides when: destroying a
  large session takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from modelcast.errors import LoadError
from modelcast.names import ModelVersion
from modelcast.records import EXAMPLES_PATH, DType, Manifest
from modelcast.runtime import Array, Session

from .binding import Binding
from .probe import memory_allowed

# Rows of one run: past some thousand rows throughput no longer grows, while the memory for activations does.
MAX_RUN_ROWS = 16_384
# … and values of all inputs together: a convolution turns each into dozens, 128 MiB of float32 with 32 channels.
MAX_RUN_VALUES = 1 << 20


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


class Servable:
    """One version, ready to score.

    Attributes:
        memory_bytes: What it takes, as far as its manifest says (`memory_need`): what a memory budget counts.

    Args:
        release: Called once by `close`, when the session is gone.
    """

    def __init__(
        self,
        manifest: Manifest,
        binding: Binding,
        session: Session,
        *,
        report: LoadReport | None = None,
        release: Callable[[], None] = lambda: None,
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
        values = sum(array.size for array in feeds.values()) // rows
        most = max(1, min(MAX_RUN_ROWS, MAX_RUN_VALUES // max(1, values)))
        if rows <= most:
            return self._run_part(session, feeds, rows)
        parts = []
        for start in range(0, rows, most):
            part = {name: array[start : start + most] for name, array in feeds.items()}
            parts.append(self._run_part(session, part, min(most, rows - start)))
        return {name: np.concatenate([part[name] for part in parts]) for name in self._names}

    def close(self) -> None:
        """Drops the session; a second call does nothing."""
        if self._session is not None:
            self._session = None
            self._release()

    def _run_part(self, session: Session, feeds: Mapping[str, Array], rows: int) -> dict[str, Array]:
        outputs = dict(zip(self._names, session.run(feeds, self._names), strict=True))
        for name, array in outputs.items():
            if array.ndim == 0 or len(array) != rows:
                raise LoadError(
                    f"output {name!r} of {self.id} has shape {list(array.shape)} for {rows} rows",
                    hint="The first dimension of every output must be the batch.",
                )
        return outputs


def _empty(dtype: DType, shape: tuple[int | None, ...]) -> Array:
    return np.empty((0, *(size or 0 for size in shape[1:])), object if dtype is DType.STRING else dtype.value)
