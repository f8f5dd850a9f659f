"""Which device a session runs on: `auto`, `cpu`, `cuda` or `cuda:N`, and whether it answers.

- `cpu` asks nobody. `cuda` and `cuda:N` run there or fail: never on the CPU instead.
- `auto` is the first CUDA device where the installed runtime has CUDA and that device works, else the CPU; with CUDA in
  the runtime and none that works, one warning says why.
- A device works if its driver answers, and a graph of one addition gives on it what it should: libraries that are
  missing or of another release, and kernels that are not for this device, show there and nowhere before.
- It is tried once a process.
"""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Final

import numpy as np

from modelcast.errors import MissingExtraError, OutOfMemoryError, UsageError

from .cuda import driver_fault
from .library import OLD_IR, OLD_OPSET, fault_of, onnxruntime, quiet_options
from .providers import CUDA, TENSORRT, CudaOptions, provider_names, providers

LOGGER: Final = logging.getLogger("modelcast.runtime")

_DEVICE = re.compile(r"auto|cpu|cuda(:\d+)?")
# By device number, why it can't be used; None if it can.
_TRIED: dict[int, str | None] = {}
_TRIED_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Device:
    """The CPU, or a CUDA device by its number."""

    cuda: int | None = None

    @property
    def kind(self) -> str:
        """The runtime's word for it."""
        return "cpu" if self.cuda is None else "cuda"

    @property
    def number(self) -> int:
        return self.cuda or 0

    def __str__(self) -> str:
        return "cpu" if self.cuda is None else f"cuda:{self.cuda}"


def check_device(device: str, *, tensorrt: bool = False) -> None:
    """Whether models could run on `device` at all: what never will is said at once, not per model.

    Raises:
        MissingExtraError: No runtime is installed, or one without CUDA, or without TensorRT where that is asked for.
        UsageError: `device` is not one of `auto`, `cpu`, `cuda` and `cuda:N`, or does not work, or TensorRT on it.
    """
    _parse(onnxruntime(), device, tensorrt=tensorrt)
    if not device.startswith("cuda") and not tensorrt:
        return
    place = resolve(device)
    fault = _tensorrt_fault(place.cuda) if tensorrt and place.cuda is not None else None
    if fault is not None:
        raise UsageError(
            f"TensorRT is asked for, and can't be used on {place}: {fault}",
            hint="Install the TensorRT this ONNX Runtime was built with (docs/GPU.md), or unset MODELCAST_TENSORRT.",
        )


def resolve(device: str) -> Device:
    """The device that `device` means here and now.

    Raises:
        MissingExtraError, UsageError: As `check_device`.
    """
    ort = onnxruntime()
    number = _parse(ort, device)
    if device == "cpu" or CUDA not in ort.get_available_providers():
        return Device()
    with _TRIED_LOCK:
        if number not in _TRIED:
            _TRIED[number] = driver_fault(number) or _trial_fault(ort, number)
            if _TRIED[number] is not None and device == "auto":
                LOGGER.warning("models run on the CPU, though this ONNX Runtime has CUDA: %s", _TRIED[number])
        fault = _TRIED[number]
    if fault is None:
        return Device(number)
    if device == "auto":
        return Device()
    raise UsageError(
        f"device {device!r} is asked for, and can't be used: {fault}",
        hint="Mend the driver or the CUDA libraries (docs/GPU.md says which), or use --device cpu.",
    )


def _parse(ort: ModuleType, device: str, *, tensorrt: bool = False) -> int:
    """The CUDA device's number, 0 where none is named."""
    if not _DEVICE.fullmatch(device):
        raise UsageError(f"device {device!r} is not known", hint="Use auto, cpu, cuda or cuda:N.")
    available = ort.get_available_providers()
    if device.startswith("cuda") and CUDA not in available:
        raise MissingExtraError(
            f"device {device!r} is asked for, and the installed ONNX Runtime has no CUDA",
            hint="Install the GPU build: pip uninstall onnxruntime && pip install 'modelcast[gpu]'.",
        )
    if tensorrt and device != "cpu" and TENSORRT not in available:
        raise MissingExtraError(
            "TensorRT is asked for, and the installed ONNX Runtime has none",
            hint="Install the GPU build and TensorRT (docs/GPU.md says how), or unset MODELCAST_TENSORRT.",
        )
    return int(device.partition(":")[2] or 0)


def _trial_fault(ort: ModuleType, number: int) -> str | None:
    """Why one addition can't be run on a device whose driver answers; None if it can."""
    said = io.StringIO()
    try:
        with _said_by_this_thread(said):
            if hasattr(ort, "preload_dlls"):
                ort.preload_dlls()
            session = _trial_session(ort, providers(number, CudaOptions()))
        if CUDA not in provider_names(session):
            last = said.getvalue().strip().splitlines()[-1:]
            return "its CUDA or cuDNN libraries can't be loaded" + "".join(f": {line}" for line in last)
        result = session.run(None, {"x": np.array([1, 2], np.float32)})[0]
    except Exception as error:  # the runtime raises its own classes, which share no base but Exception
        fault = fault_of(error, "an addition failed", f"cuda:{number}")
        # A device that is full now works: whoever loads a model there is told then.
        return None if isinstance(fault, OutOfMemoryError) else fault.message
    return None if result.tolist() == [2.0, 4.0] else f"1 + 1 and 2 + 2 gave {result.tolist()} there"


@cache
def _tensorrt_fault(number: int) -> str | None:
    """Why TensorRT can't be used on a device that works; None if it can. No engine is built to find out."""
    try:
        session = _trial_session(
            onnxruntime(), [(TENSORRT, {"device_id": str(number)}), *providers(number, CudaOptions())]
        )
    except Exception as error:  # as above
        fault = fault_of(error, "it does not start", f"cuda:{number}")
        return None if isinstance(fault, OutOfMemoryError) else fault.message
    return None if TENSORRT in provider_names(session) else "its libraries can't be loaded"


def _trial_session(ort: ModuleType, wanted: list[Any]) -> Any:
    """A session that doubles what it is given."""
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "trial", tensors[:1], tensors[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OLD_OPSET)], ir_version=OLD_IR)
    return ort.InferenceSession(model.SerializeToString(), quiet_options(ort), providers=wanted, enable_fallback=0)


@contextmanager
def _said_by_this_thread(into: io.StringIO) -> Iterator[None]:
    """What this thread prints goes into `into`: the runtime prints what it lacks, and programs write JSON there."""
    with redirect_stdout(_Splitter(into)):
        yield


class _Splitter(io.TextIOBase):
    """Standard output, but for one thread."""

    def __init__(self, into: io.StringIO) -> None:
        self._into = into
        self._thread = threading.get_ident()
        self._others = sys.stdout

    def write(self, text: str) -> int:
        return (self._into if threading.get_ident() == self._thread else self._others).write(text)

    def flush(self) -> None:
        self._others.flush()
