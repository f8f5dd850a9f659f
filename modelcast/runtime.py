"""ONNX Runtime behind a small typed seam; the only module that imports onnxruntime.

- A session is loaded by *path*: from bytes the runtime copies the model twice, holds the GIL meanwhile, and resolves
  external data against the working directory.
- `device="auto"` takes CUDA where the runtime has it and a device answers, else the CPU; `cuda` and `cuda:N` fail
  rather than fall back.
- Strings go in and come out as numpy object arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from modelcast.errors import LoadError, MissingExtraError, UsageError

Array = npt.NDArray[Any]

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
_TENSOR = re.compile(r"tensor\((\w+)\)")
# ONNX's element type names where they are not numpy's.
_NUMPY_NAMES = {"float": "float32", "double": "float64"}

# What every runtime this package allows reads (onnxruntime 1.22: IR 10, operator set 22, ai.onnx.ml 5): where the
# search for the newest begins, and how far it goes at most.
_OLD_IR, _OLD_OPSET, _OLD_ML_OPSET = 8, 17, 3
_NEWER_VERSIONS = 100


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, element type (numpy's name, or "string") and shape of a graph input or output; None is any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


class Session(Protocol):
    """A loaded graph; `run` may be called from several threads."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Arrays of the named outputs (all, in graph order, if None). Raises LoadError if the graph fails."""


def open_session(path: Path, *, device: str = "auto", threads: int = 1, prepacking: bool = True) -> Session:
    """Loads a graph with its external data from `path`.

    Args:
        path: The `.onnx` file; its external files lie beside it.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: Threads one run may use; 0 lets the runtime choose.
        prepacking: Whether weights are repacked at load: faster runs, but pages are no longer shared between versions.

    Raises:
        MissingExtraError: No runtime is installed, or one without the device's kind.
        UsageError: `device` is not one of the above.
        LoadError: The runtime can't build a session, or the device is not there.
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4  # faults are raised; the runtime's own lines would go to the user's terminal
    if not prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    providers, resolved = _providers(ort, device)
    try:
        native = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # the runtime raises its own classes, which share no base but Exception
        raise LoadError(f"ONNX Runtime can't load {path.name}: {_first_line(error)}") from error
    if resolved != "cpu" and "CUDAExecutionProvider" not in native.get_providers():
        raise LoadError(
            f"no CUDA device answers for device={device!r}",
            hint="Check the driver and CUDA libraries, or use --device cpu.",
        )
    return _OrtSession(native, resolved)


@dataclass(frozen=True, slots=True)
class RuntimeLimits:
    """What the installed runtime can read at all.

    Attributes:
        ir_version: The newest model format.
        opsets: The newest operator set by domain; "" is ONNX's own.
        contrib: Names of the runtime's own operators (domain `com.microsoft`); empty if it does not say.
    """

    ir_version: int
    opsets: Mapping[str, int]
    contrib: frozenset[str]


@cache
def limits() -> RuntimeLimits:
    """Found by trying, once: the runtime says what it supports only by refusing the rest. Raises MissingExtraError."""
    ort = _onnxruntime()
    ir_version = _newest(ort, _OLD_IR, lambda version: (version, {"": _OLD_OPSET}))
    opsets = {
        "": _newest(ort, _OLD_OPSET, lambda version: (_OLD_IR, {"": version})),
        "ai.onnx.ml": _newest(ort, _OLD_ML_OPSET, lambda version: (_OLD_IR, {"": _OLD_OPSET, "ai.onnx.ml": version})),
    }
    schemas: list[Any] = getattr(ort.capi._pybind_state, "get_all_operator_schema", list)()
    return RuntimeLimits(ir_version, opsets, frozenset(s.name for s in schemas if s.domain == "com.microsoft"))


def versions() -> Mapping[str, str]:
    """Name and version of the installed runtime, for status records. Raises MissingExtraError."""
    ort = _onnxruntime()
    return {"onnxruntime": str(ort.__version__), "build": str(ort.get_build_info())[:200]}


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError(
            "no ONNX Runtime is installed",
            hint="Install one: pip install 'modelcast[cpu]' or, for NVIDIA GPUs, pip install 'modelcast[gpu]'.",
        ) from error
    if hasattr(onnxruntime, "disable_telemetry_events"):
        onnxruntime.disable_telemetry_events()  # a scorer tells nobody but Kafka what it does
    return onnxruntime  # type: ignore[no-any-return]


def _newest(ort: ModuleType, start: int, header: Callable[[int], tuple[int, Mapping[str, int]]]) -> int:
    from onnx import TensorProto, helper

    options = ort.SessionOptions()
    options.log_severity_level = 4
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    for version in range(start + 1, start + _NEWER_VERSIONS):
        ir_version, opsets = header(version)
        imports = [helper.make_opsetid(domain, opset) for domain, opset in opsets.items()]
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # as in open_session
            return version - 1
    return start + _NEWER_VERSIONS - 1


def check_device(device: str) -> None:
    """Whether the installed runtime could run on `device` at all: what never will is said at once, not per model.

    Raises:
        MissingExtraError: No runtime is installed, or one without CUDA.
        UsageError: `device` is not one of `open_session`'s.
    """
    ort = _onnxruntime()
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"device {device!r} is not known", hint="Use auto, cpu, cuda or cuda:N.")
    if device.startswith("cuda") and "CUDAExecutionProvider" not in ort.get_available_providers():
        raise MissingExtraError(
            f"device {device!r} is asked for, and the installed ONNX Runtime has no CUDA",
            hint="Install the GPU build: pip uninstall onnxruntime && pip install 'modelcast[gpu]'.",
        )


def _providers(ort: ModuleType, device: str) -> tuple[list[Any], str]:
    check_device(device)
    available = "CUDAExecutionProvider" in ort.get_available_providers()
    if device == "cpu" or (device == "auto" and not available):
        return ["CPUExecutionProvider"], "cpu"
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    number = int(device.partition(":")[2] or 0)
    options = {
        "device_id": number,
        # The default doubles the arena at each growth; a swap needs the new model's memory and no more.
        "arena_extend_strategy": "kSameAsRequested",
        # EXHAUSTIVE, the default, benchmarks every convolution at each new batch shape.
        "cudnn_conv_algo_search": "HEURISTIC",
    }
    return [("CUDAExecutionProvider", options), "CPUExecutionProvider"], f"cuda:{number}"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class _OrtSession:
    def __init__(self, native: Any, device: str) -> None:
        self._native = native
        self._device = device
        self._inputs = tuple(_tensor_info(entry) for entry in native.get_inputs())
        self._outputs = tuple(_tensor_info(entry) for entry in native.get_outputs())
        self._output_names = [entry.name for entry in self._outputs]

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return self._outputs

    @property
    def device(self) -> str:
        return self._device

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        try:
            results = self._native.run(self._output_names if outputs is None else outputs, feeds)
        except Exception as error:  # as in open_session
            raise LoadError(f"the model failed on its input: {_first_line(error)}") from error
        return [np.asarray(result) for result in results]


def _tensor_info(entry: Any) -> TensorInfo:
    match = _TENSOR.fullmatch(entry.type)
    dtype = _NUMPY_NAMES.get(match[1], match[1]) if match else entry.type
    return TensorInfo(entry.name, dtype, tuple(size if isinstance(size, int) else None for size in entry.shape))
