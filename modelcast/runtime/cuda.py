"""NVIDIA's driver, asked directly: whether devices answer, and how much of their memory is free.

The driver library is the one part of CUDA that is there with every working device, whatever else is installed. Calls
and types: CUDA Driver API (`cuInit`, `cuDeviceGetCount`, `cuMemGetInfo`, …).
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache

from modelcast.errors import UsageError

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of one device, in bytes, over all processes that use it."""

    free: int
    total: int


def driver_fault(number: int) -> str | None:
    """Why CUDA device `number` can't be used, as far as the driver knows; None if it answers."""
    try:
        driver = _driver()
    except OSError:
        return f"the NVIDIA driver is not installed ({_LIBRARY} was not found)"
    fault = _fault(driver, driver.cuInit(0))
    if fault is not None:
        return f"the NVIDIA driver answers: {fault}"
    count = ctypes.c_int()
    fault = _fault(driver, driver.cuDeviceGetCount(ctypes.byref(count)))
    if fault is not None:
        return f"the NVIDIA driver answers: {fault}"
    if number >= count.value:
        return f"there is no CUDA device {number}; {count.value} answer"
    return None


def device_memory(number: int) -> DeviceMemory:
    """Memory of CUDA device `number`.

    Raises:
        UsageError: It does not answer.
    """
    fault = driver_fault(number)
    if fault is not None:
        raise UsageError(f"cuda:{number} does not say how much memory it has: {fault}")
    driver = _driver()
    device, context = ctypes.c_int(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    _check(driver, driver.cuDeviceGet(ctypes.byref(device), number))
    _check(driver, driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device))
    try:
        _check(driver, driver.cuCtxPushCurrent_v2(context))
        try:
            _check(driver, driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)))
        finally:
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        driver.cuDevicePrimaryCtxRelease_v2(device)
    return DeviceMemory(free.value, total.value)


@cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL(_LIBRARY)


def _fault(driver: ctypes.CDLL, code: int) -> str | None:
    if code == 0:
        return None
    text = ctypes.c_char_p()
    driver.cuGetErrorString(code, ctypes.byref(text))
    return f"error {code}" + ("" if text.value is None else f", {text.value.decode(errors='replace')}")


def _check(driver: ctypes.CDLL, code: int) -> None:
    fault = _fault(driver, code)
    if fault is not None:
        raise UsageError(f"the NVIDIA driver answers: {fault}")
