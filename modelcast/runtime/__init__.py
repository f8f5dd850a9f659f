"""ONNX Runtime behind a small typed seam; the only package that imports onnxruntime.

    open_session(path, device="auto")   a graph, loaded, on the CPU or on a CUDA device
    check_device("cuda:1")              said at the start what could never work
    limits(), versions()                what the installed runtime reads, and which it is

- A session is loaded by *path*: from bytes the runtime copies the model twice, holds the GIL meanwhile, and resolves
  external data against the working directory.
- On a CUDA device arrays go through buffers that stay there (`iobinding`); on the CPU they are passed on as they are.
- Strings go in and come out as numpy object arrays.
"""

from __future__ import annotations

from .cuda import DeviceMemory, device_memory
from .device import Device, check_device, resolve
from .library import RuntimeLimits, limits, versions
from .providers import CudaOptions
from .session import open_session
from .tensors import Array, Session, TensorInfo

__all__ = [
    "Array",
    "CudaOptions",
    "Device",
    "DeviceMemory",
    "RuntimeLimits",
    "Session",
    "TensorInfo",
    "check_device",
    "device_memory",
    "limits",
    "open_session",
    "resolve",
    "versions",
]
