"""Loading a graph onto a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelcast.errors import LoadError

from .device import Device, check_device, resolve
from .iobinding import BoundSession
from .library import fault_of, onnxruntime, quiet_options
from .providers import CPU, CUDA, TENSORRT, CudaOptions, provider_names, providers
from .tensors import Array, Session, TensorInfo


def open_session(
    path: Path,
    *,
    device: str = "auto",
    threads: int = 1,
    prepacking: bool = True,
    cuda: CudaOptions = CudaOptions(),  # noqa: B008  # a frozen value
) -> Session:
    """Loads a graph with its external data from `path`.

    Args:
        path: The `.onnx` file; its external files lie beside it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: Threads one run may use on the CPU; 0 lets the runtime choose.
        prepacking: Whether weights are repacked at load: faster runs on the CPU, but pages are no longer shared between
            versions.
        cuda: What else is asked for if it is a CUDA device.

    Raises:
        MissingExtraError: No runtime is installed, or one without the device's kind.
        UsageError: `device` is not one of the above, or does not work.
        LoadError: The runtime can't build a session.
        OutOfMemoryError: The device has not enough free memory.
    """
    ort = onnxruntime()
    check_device(device, tensorrt=cuda.tensorrt is not None)
    place = resolve(device)
    options = quiet_options(ort)
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    if not prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    wanted = [CPU] if place.cuda is None else providers(place.cuda, cuda)
    fault: LoadError | None = None
    try:
        # Without its own fallback, by which the runtime runs on the CPU what failed elsewhere, now and at each run.
        native = ort.InferenceSession(str(path), options, providers=wanted, enable_fallback=0)
    except Exception as error:  # the runtime raises its own classes, which share no base but Exception
        fault = fault_of(error, f"ONNX Runtime can't load {path.name}", str(place))
    if fault is not None:
        raise fault
    if place.cuda is None:
        return PlainSession(native, place)
    for name in (CUDA, *([TENSORRT] if cuda.tensorrt is not None else [])):
        if name not in provider_names(native):
            raise LoadError(
                f"ONNX Runtime left out {name} on {place}",
                hint="Check the libraries it needs: docs/GPU.md says which, and how to see what is missing.",
            )
    return BoundSession(ort, PlainSession(native, place), native, place)


class PlainSession:
    """Arrays are handed to the runtime as they are, and what it makes of them is handed back."""

    buckets: tuple[int, ...] = ()

    def __init__(self, native: Any, device: Device) -> None:
        self._native = native
        self.device = str(device)
        self.inputs = tuple(TensorInfo.of(entry) for entry in native.get_inputs())
        self.outputs = tuple(TensorInfo.of(entry) for entry in native.get_outputs())
        self._output_names = [entry.name for entry in self.outputs]

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """As `Session.run`."""
        fault: LoadError | None = None
        try:
            results = self._native.run(self._output_names if outputs is None else outputs, feeds)
        except Exception as error:  # as in open_session
            fault = fault_of(error, "the model failed on its input", self.device)
        if fault is not None:
            raise fault
        return [np.asarray(result) for result in results]
