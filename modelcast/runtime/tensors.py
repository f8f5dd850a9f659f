"""What goes into a session and comes out of it, and what a session is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

Array = npt.NDArray[Any]

_TENSOR = re.compile(r"tensor\((\w+)\)")
# ONNX's element type names where they are not numpy's.
_NUMPY_NAMES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Name, element type (numpy's name, or "string") and shape of a graph input or output; None is any size."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    @classmethod
    def of(cls, entry: Any) -> TensorInfo:
        """From the runtime's description; what is no tensor keeps the runtime's word for its type."""
        match = _TENSOR.fullmatch(entry.type)
        dtype = _NUMPY_NAMES.get(match[1], match[1]) if match else entry.type
        return cls(entry.name, dtype, tuple(size if isinstance(size, int) else None for size in entry.shape))


class Session(Protocol):
    """A loaded graph; `run` may be called from several threads."""

    @property
    def inputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def outputs(self) -> tuple[TensorInfo, ...]: ...

    @property
    def device(self) -> str:
        """`cpu` or `cuda:N`."""

    @property
    def buckets(self) -> tuple[int, ...]:
        """Batch sizes that take preparation of their own before they are fast, ascending; empty if none does."""

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        """Arrays of the named outputs (all, in graph order, if None).

        Raises:
            LoadError: The graph fails on them.
            OutOfMemoryError: There is not enough memory for so many rows.
        """
