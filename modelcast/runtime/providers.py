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


@dataclass(frozen=True, slots=True)
class CudaOptions:
    """How a session uses a CUDA device; nothing of it matters on the CPU.

    Attributes:
        memory_limit_bytes: What the session's arena may grow to; None for all there is.
        tf32: Whether matrix products of float32 may keep 10 bits of their factors: faster since Ampere, and further
            from what the publisher computed than golden examples allow by default.
        tensorrt: A folder for the engines TensorRT is to build; None runs CUDA's kernels. Private, and of this content
            alone: the runtime names engines by a graph's structure, so two versions would share one, weights and all.
    """

    memory_limit_bytes: int | None = None
    tf32: bool = False
    tensorrt: Path | None = None


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


def _tensorrt(number: int, engines: Path) -> Mapping[str, str]:
    # No ranges of shapes are said beforehand: they would be needed for every tensor between what TensorRT takes and
    # what it leaves to CUDA. An engine grows to the smallest and largest batch met, which warming sees to.
    return {
        "device_id": str(number),
        "trt_engine_cache_enable": "1",  # an engine takes minutes to build
        "trt_engine_cache_path": str(engines),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(engines),
    }


def provider_names(session: Any) -> frozenset[str]:
    """Those a session really has; one that can't start is left out by the runtime without an error."""
    return frozenset(session.get_providers())
