"""Which device a session runs on, what it is told about it, and what the runtime's errors mean."""

from __future__ import annotations

import ctypes
import io
import logging
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from modelcast import runtime
from modelcast.errors import LoadError, MissingExtraError, OutOfMemoryError, UsageError
from modelcast.runtime import CudaOptions, cuda, device
from modelcast.runtime.library import fault_of
from modelcast.runtime.providers import CUDA, TENSORRT, providers

CUDA_BUILD = [TENSORRT, CUDA, "CPUExecutionProvider"]


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_TRIED", {})


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that says it has CUDA, on a host without a driver."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: CUDA_BUILD)
    monkeypatch.setattr(device, "driver_fault", lambda number: "the NVIDIA driver is not installed")


@pytest.fixture
def doubling(tmp_path: Path) -> Path:
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "g", tensors[:1], tensors[1:])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_auto_is_the_cpu_where_the_runtime_has_no_cuda(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, doubling: Path
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    session = runtime.open_session(doubling)
    assert session.device == "cpu"
    assert session.run({"x": np.float32([1, 2])})[0].tolist() == [2, 4]
    assert not caplog.records


@pytest.mark.usefixtures("cuda_build")
def test_auto_without_a_driver_is_the_cpu_with_one_warning(caplog: pytest.LogCaptureFixture, doubling: Path) -> None:
    with caplog.at_level(logging.WARNING):
        assert [runtime.open_session(doubling).device for _ in range(3)] == ["cpu"] * 3
    (warning,) = caplog.records
    assert "models run on the CPU" in warning.message
    assert "the NVIDIA driver is not installed" in warning.message


@pytest.mark.usefixtures("cuda_build")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_cuda_never_falls_back(name: str, doubling: Path) -> None:
    for _ in range(2):
        with pytest.raises(UsageError, match=f"device '{name}' is asked for, and can't be used: the NVIDIA driver"):
            runtime.open_session(doubling, device=name)
        with pytest.raises(UsageError, match="driver is not installed"):
            runtime.check_device(name)


@pytest.mark.usefixtures("cuda_build")
def test_a_device_whose_libraries_can_not_be_loaded_is_told_by_a_trial(
    monkeypatch: pytest.MonkeyPatch, doubling: Path
) -> None:
    monkeypatch.setattr(device, "driver_fault", lambda number: None)
    with pytest.raises(UsageError, match="can't be used"):
        runtime.open_session(doubling, device="cuda")
    assert runtime.open_session(doubling, device="auto").device == "cpu"


def test_a_runtime_without_cuda_or_tensorrt_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MissingExtraError, match=r"has no CUDA.*modelcast\[gpu\]"):
        runtime.check_device("cuda:1")
    with pytest.raises(MissingExtraError, match="TensorRT is asked for"):
        runtime.check_device("auto", tensorrt=True)
    runtime.check_device("cpu", tensorrt=True)
    runtime.check_device("auto")


@pytest.mark.usefixtures("cuda_build")
def test_tensorrt_that_does_not_start_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_TRIED", {0: None})
    with pytest.raises(UsageError, match="TensorRT is asked for, and can't be used on cuda:0"):
        runtime.check_device("auto", tensorrt=True)
    runtime.check_device("cuda")
    device._tensorrt_fault.cache_clear()


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "CPU", "cuda:-1"])
def test_other_devices_are_not_known(name: str) -> None:
    with pytest.raises(UsageError, match="is not known. Use auto, cpu, cuda or cuda:N"):
        runtime.check_device(name)


class Driver:
    """NVIDIA's driver library, as far as it is asked."""

    def __init__(self, *, init: int = 0, devices: int = 1) -> None:
        self._init, self._devices = init, devices

    def cuInit(self, flags: int) -> int:
        return self._init

    def cuDeviceGetCount(self, count: object) -> int:
        ctypes.cast(count, ctypes.POINTER(ctypes.c_int))[0] = self._devices
        return 0

    def cuGetErrorString(self, code: int, text: object) -> int:
        ctypes.cast(text, ctypes.POINTER(ctypes.c_char_p))[0] = b"no CUDA-capable device is detected"
        return 0


def test_the_driver_is_asked_whether_the_device_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault(driver: Driver, number: int) -> str | None:
        monkeypatch.setattr(cuda, "_driver", lambda: driver)
        return cuda.driver_fault(number)

    assert fault(Driver(), 0) is None
    assert fault(Driver(devices=2), 2) == "there is no CUDA device 2; 2 answer"
    assert fault(Driver(init=100), 0) == "the NVIDIA driver answers: error 100, no CUDA-capable device is detected"
    monkeypatch.setattr(cuda, "_LIBRARY", "libno-such-driver.so")
    monkeypatch.setattr(cuda, "_driver", lambda: ctypes.CDLL(cuda._LIBRARY))
    assert "libno-such-driver.so was not found" in str(cuda.driver_fault(0))
    with pytest.raises(UsageError, match="cuda:0 does not say how much memory"):
        runtime.device_memory(0)


def test_a_cuda_device_is_used_with_a_bounded_arena_and_exact_floats() -> None:
    (name, options), cpu = providers(2, CudaOptions(memory_limit_bytes=123))
    assert (name, cpu) == (CUDA, "CPUExecutionProvider")
    assert options == {
        "device_id": "2",
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": "0",
        "gpu_mem_limit": "123",
    }
    assert dict(providers(0, CudaOptions(tf32=True))[0][1])["use_tf32"] == "1"


def test_tensorrt_comes_first_and_keeps_engines_where_it_is_told(tmp_path: Path) -> None:
    (name, options), *others = providers(1, CudaOptions(tensorrt=tmp_path))
    assert (name, others[0][0], others[1]) == (TENSORRT, CUDA, "CPUExecutionProvider")
    assert (options["device_id"], options["trt_engine_cache_enable"]) == ("1", "1")
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        "CUDA failure 2: out of memory ; GPU=0",
        "Failed to allocate memory for requested buffer of size 4096",
        "BFCArena::AllocateRawInternal Available memory of 0 is smaller than requested bytes of 1024",
        "CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
    ],
)
def test_an_error_for_want_of_memory_is_one_that_may_pass(said: str) -> None:
    fault = fault_of(RuntimeError(f"[ONNXRuntimeError] : {said}"), "loading fraud@3", "cuda:0")
    assert isinstance(fault, OutOfMemoryError)
    assert (fault.reason, fault.retriable) == ("out-of-memory", True)
    assert "loading fraud@3: there is not enough memory on cuda:0" in str(fault)


def test_other_errors_are_the_models() -> None:
    fault = fault_of(RuntimeError("Invalid rank for input: x\nGot: 1"), "the model failed", "cpu")
    assert (type(fault), fault.retriable) == (LoadError, False)
    assert fault.message == "the model failed: Invalid rank for input: x"
    assert isinstance(fault_of(MemoryError(), "loading", "cpu"), OutOfMemoryError)


def test_an_error_holds_nothing_of_the_session_that_failed(doubling: Path) -> None:
    session = runtime.open_session(doubling, device="cpu")
    doubling.write_bytes(b"no graph")
    for fails in (lambda: runtime.open_session(doubling, device="cpu"), lambda: session.run({"x": np.float64([1])})):
        with pytest.raises(LoadError) as caught:
            fails()
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


def test_what_the_runtime_prints_does_not_reach_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    said = io.StringIO()
    with device._said_by_this_thread(said):
        print("Failed to load libcublasLt.so.13")
        other = threading.Thread(target=print, args=['{"json": 1}'])
        other.start()
        other.join()
    assert said.getvalue() == "Failed to load libcublasLt.so.13\n"
    assert capsys.readouterr().out == '{"json": 1}\n'
