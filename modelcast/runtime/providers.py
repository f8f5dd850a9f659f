"""How the runtime is told to use a CUDA device: execution providers and their options.

Names and meanings: ONNX Runtime, "CUDA Execution Provider" and "TensorRT Execution Provider".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"

# The batch size TensorRT's kernels are chosen for; others within the range run too.
_TUNED_ROWS = 1024


@dataclass(frozen=True, slots=True)
class TensorRT:
    """That TensorRT builds an engine for the graph, and how.

    Attributes:
        engines: A private folder for the engines of this graph alone: the runtime names them by the graph's structure,
            so two versions that share a folder would share an engine, weights and all.
        row_shapes: By graph input, its shape without the batch; where one is not known whole, the ranges are left out
            and engines are built anew for each range of shapes met.
        max_rows: Rows of the largest run.
    """

    engines: Path
    row_shapes: Mapping[str, tuple[int | None, ...]]
    max_rows: int


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """How a session uses a CUDA device; nothing of it matters on the CPU.

    Attributes:
        memory_limit_bytes: What the session's arena may grow to; None for all there is.
        tf32: Whether matrix products of float32 may keep 10 bits of their factors: faster since Ampere, and further
            from what the publisher computed than golden examples allow by default.
        tensorrt: Given if TensorRT is to build engines; None runs CUDA's kernels.
    """

    memory_limit_bytes: int | None = None
    tf32: bool = False
    tensorrt: TensorRT | None = None


def providers(number: int, options: CudaOptions) -> list[tuple[str, Mapping[str, str]] | str]:
    """What `InferenceSession` takes for CUDA device `number`, the preferred first."""
    found: list[tuple[str, Mapping[str, str]] | str] = [(CUDA, _cuda(number, options)), CPU]
    return found if options.tensorrt is None else [(TENSORRT, _tensorrt(number, options.tensorrt)), *found]


def _cuda(number: int, options: CudaOptions) -> Mapping[str, str]:
    chosen = {
        "device_id": str(number),
        # The default doubles the arena at each growth; a swap needs the new model's memory and no more.
        "arena_extend_strategy": "kSameAsRequested",
        # EXHAUSTIVE, the default, benchmarks every convolution at each new batch shape.
        "cudnn_conv_algo_search": "HEURISTIC",
        "use_tf32": str(int(options.tf32)),
    }
    if options.memory_limit_bytes is not None:
        chosen["gpu_mem_limit"] = str(options.memory_limit_bytes)
    return chosen


def _tensorrt(number: int, tensorrt: TensorRT) -> Mapping[str, str]:
    chosen = {
        "device_id": str(number),
        "trt_engine_cache_enable": "1",  # an engine takes minutes to build
        "trt_engine_cache_path": str(tensorrt.engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(tensorrt.engines),
    }
    shapes = tensorrt.row_shapes
    if all(size is not None for shape in shapes.values() for size in shape):
        # One engine for all batch sizes: without ranges, a larger batch than any before builds it anew.
        for which, rows in (("min", 1), ("opt", min(_TUNED_ROWS, tensorrt.max_rows)), ("max", tensorrt.max_rows)):
            chosen[f"trt_profile_{which}_shapes"] = ",".join(
                f"{name}:{'x'.join(map(str, (rows, *shape)))}" for name, shape in shapes.items()
            )
    return chosen


def provider_names(session: Any) -> frozenset[str]:
    """Those a session really has; one that can't start is left out by the runtime without an error."""
    return frozenset(session.get_providers())
