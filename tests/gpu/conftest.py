"""Tests on a CUDA device: no broker, no Avro; numpy, onnx, onnxruntime-gpu, filelock and pytest are enough.

Where no device works they are skipped and say why; with MODELCAST_REQUIRE_GPU=1 they fail instead.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.gpu_models import TOPICS, Shelf
from modelcast import runtime
from modelcast.consumer.loader import Loader
from modelcast.errors import ModelcastError

REQUIRE_VARIABLE = "MODELCAST_REQUIRE_GPU"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


class Gpu:
    """A CUDA device that works.

    Attributes:
        name: What users call it.
    """

    def __init__(self, device: runtime.Device) -> None:
        self.name = str(device)
        self._number = device.number

    @property
    def taken_bytes(self) -> int:
        """Memory in use, by everybody."""
        memory = runtime.device_memory(self._number)
        return memory.total - memory.free

    @property
    def total_bytes(self) -> int:
        return runtime.device_memory(self._number).total

    @contextmanager
    def filled(self, leave_bytes: int) -> Iterator[None]:
        """Somebody else takes all but `leave_bytes` of the device's memory."""
        driver = ctypes.CDLL("libcuda.so.1")
        device, context, held = ctypes.c_int(), ctypes.c_void_p(), []
        assert driver.cuDeviceGet(ctypes.byref(device), self._number) == 0
        assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
        assert driver.cuCtxPushCurrent_v2(context) == 0
        try:
            step = 1 << 30
            while step >= 1 << 20:
                pointer = ctypes.c_uint64()
                room = runtime.device_memory(self._number).free - leave_bytes
                if room >= step and driver.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(step)) == 0:
                    held.append(pointer)
                else:
                    step //= 2
            yield
        finally:
            for pointer in held:
                driver.cuMemFree_v2(pointer)
            driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
            driver.cuDevicePrimaryCtxRelease_v2(device)


@pytest.fixture(scope="session")
def gpu() -> Gpu:
    """The first CUDA device."""
    try:
        return Gpu(runtime.resolve("cuda"))
    except ModelcastError as error:
        if os.environ.get(REQUIRE_VARIABLE) == "1":
            pytest.fail(f"{REQUIRE_VARIABLE}=1: {error}")
        pytest.skip(str(error))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    """A log in memory, to put versions on."""
    return Shelf(tmp_path / "sources")


@pytest.fixture
def loader(gpu: Gpu, shelf: Shelf, tmp_path: Path) -> Iterator[Loader]:
    """Loads the shelf's versions onto the device."""
    with Loader(
        shelf.log, TOPICS, cache_dir=tmp_path / "cache", state_dir=tmp_path / "state", device=gpu.name, probe=False
    ) as loader:
        yield loader
