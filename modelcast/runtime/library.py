"""The installed library: finding it, what it reads, and what its errors mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from modelcast.errors import LoadError, MissingExtraError, OutOfMemoryError

# What every runtime this package allows reads (onnxruntime 1.22: IR 10, operator set 22, ai.onnx.ml 5): where the
# search for the newest begins, and how far it goes at most.
OLD_IR, OLD_OPSET, _OLD_ML_OPSET = 8, 17, 3
_NEWER_VERSIONS = 100

# How the runtime, CUDA and the C++ library say that memory is short; the runtime has no class for it.
_MEMORY_WORDS = (
    "out of memory",
    "out_of_memory",
    "failed to allocate memory",
    "smaller than requested bytes",  # the arena reached its limit
    "alloc_failed",  # cuBLAS, cuDNN
    "allocation_failed",
    "status_not_initialized",  # what both say where there is no room for a handle; the device itself was tried before
    "cudaerrormemoryallocation",
    "bad_alloc",
    "bad allocation",
    "memoryerror",
)


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


def onnxruntime() -> ModuleType:
    """The library itself. Raises MissingExtraError."""
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingExtraError(
            "no ONNX Runtime is installed",
            hint="Install one: pip install 'modelcast[cpu]' or, for NVIDIA GPUs, pip install 'modelcast[gpu]'.",
        ) from error
    if hasattr(ort, "disable_telemetry_events"):
        ort.disable_telemetry_events()  # a scorer tells nobody but Kafka what it does
    return ort  # type: ignore[no-any-return]


@cache
def limits() -> RuntimeLimits:
    """Found by trying, once: the runtime says what it supports only by refusing the rest. Raises MissingExtraError."""
    ort = onnxruntime()
    ir_version = _newest(ort, OLD_IR, lambda version: (version, {"": OLD_OPSET}))
    opsets = {
        "": _newest(ort, OLD_OPSET, lambda version: (OLD_IR, {"": version})),
        "ai.onnx.ml": _newest(ort, _OLD_ML_OPSET, lambda version: (OLD_IR, {"": OLD_OPSET, "ai.onnx.ml": version})),
    }
    schemas: list[Any] = getattr(ort.capi._pybind_state, "get_all_operator_schema", list)()
    return RuntimeLimits(ir_version, opsets, frozenset(s.name for s in schemas if s.domain == "com.microsoft"))


def versions() -> Mapping[str, str]:
    """Name and version of the installed runtime, for status records. Raises MissingExtraError."""
    ort = onnxruntime()
    return {"onnxruntime": str(ort.__version__), "build": str(ort.get_build_info())[:200]}


def quiet_options(ort: ModuleType) -> Any:
    """Session options that keep the runtime's own lines off the user's terminal: faults are raised."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options


def fault_of(error: Exception, what: str, device: str) -> LoadError:
    """What an error of the runtime means; `what` failed on `device`.

    To be raised *after* the handler was left: the runtime's own error holds, by its traceback, the session it was about
    and with it the memory of a device.
    """
    said = first_line(error)
    if isinstance(error, MemoryError) or any(word in str(error).casefold() for word in _MEMORY_WORDS):
        return OutOfMemoryError(
            f"{what}: there is not enough memory on {device}: {said}",
            hint="It is tried again: memory is free once other models, or other programs, let go of some.",
        )
    return LoadError(f"{what}: {said}")


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its class."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _newest(ort: ModuleType, start: int, header: Callable[[int], tuple[int, Mapping[str, int]]]) -> int:
    from onnx import TensorProto, helper

    options = quiet_options(ort)
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
    for version in range(start + 1, start + _NEWER_VERSIONS):
        ir_version, opsets = header(version)
        imports = [helper.make_opsetid(domain, opset) for domain, opset in opsets.items()]
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir_version)
        try:
            ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception:  # the runtime raises its own classes, which share no base but Exception
            return version - 1
    return start + _NEWER_VERSIONS - 1
