"""Examples whose one field holds the whole row of an input `[N, d1, …, dk]`: an image, a spectrum, an embedding.

They come as arrays `[N, d1, …, dk]`, or as columns of raw bytes (Parquet), of base64 text or of lists (JSON lines,
Parquet). `modelcast.tensors` says what a row may look like.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from modelcast.errors import BindingError, StructureError
from modelcast.records import DType
from modelcast.runtime import TensorInfo
from modelcast.tensors import LAYOUTS, FieldSpec, shaped, stack

Array = npt.NDArray[Any]

# Kinds of numpy's that hold numbers.
NUMBERS = "fiu"


def are_rows(values: Any) -> bool:
    """Whether each of the values can only be a whole row: bytes, or a list."""
    if isinstance(values, pl.Series):
        if values.dtype == pl.Object:
            return _are_rows(values.to_list())
        return values.dtype == pl.Binary or isinstance(values.dtype, (pl.List, pl.Array))
    if getattr(values, "dtype", None) == np.dtype(object) and getattr(values, "ndim", 1) == 1:
        return _are_rows(_listed(values))
    return False


def are_arrays(values: Any) -> bool:
    """Whether the values are numbers, several for each row."""
    return isinstance(values, np.ndarray) and values.ndim > 1 and values.dtype.kind in NUMBERS


def as_octets(values: Any) -> bool:
    """Whether the rows are given as single bytes, so that events will hold them as such."""
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        return values.dtype == np.uint8 and values.ndim > 1
    return are_rows(values) and all(isinstance(row, bytes) for row in _listed(values))


def as_matrix(values: Any) -> Array | None:
    """Whole rows of numbers or single bytes as `[N, F]`; None if they are no rows of one length."""
    if are_arrays(values):
        return np.asarray(values.reshape(len(values), -1))
    if not are_rows(values):
        return None
    rows = [np.frombuffer(row, np.uint8) if isinstance(row, bytes) else row for row in _listed(values)]
    try:
        matrix = np.array([np.asarray(row).reshape(-1) for row in rows])
    except ValueError:
        return None
    return matrix if matrix.ndim == 2 and matrix.dtype.kind in NUMBERS else None


def stacked(name: str, values: Any, spec: FieldSpec) -> Array:
    """Whole rows as `[N, d1, …, dk]` of numbers; raises BindingError as `modelcast.tensors.stack`."""
    told = FieldSpec(name, spec.dtype, spec.shape)
    return shaped(values, told) if are_arrays(values) else stack(_listed(values), told)


def sizes(info: TensorInfo, values: Any) -> tuple[int, ...]:
    """The sizes of a row of an input: the graph's, or, where it leaves them open, those of the examples.

    Raises:
        StructureError: Neither says.
        BindingError: The examples are of other sizes than the graph.
    """
    graph = info.shape[1:]
    if None not in graph:
        return tuple(size for size in graph if size is not None)
    found = values.shape[1:] if are_arrays(values) else _sizes_of(_listed(values)[0], info)
    if len(found) != len(graph) and graph.count(None) == 1 and len(found) == 1:
        known = int(np.prod([size for size in graph if size is not None]))
        found = tuple(found[0] // known if size is None else size for size in graph)
    if len(found) != len(graph):
        raise StructureError(
            f"input {info.name!r} leaves open how large a row is",
            hint="Export it with fixed sizes but for the batch, or give examples as arrays of the sizes events have.",
        )
    if any(size not in (None, have) for size, have in zip(graph, found, strict=True)):
        raise BindingError(
            f"the examples give input {info.name!r} rows of shape {list(found)}, it takes "
            f"[{', '.join('any' if size is None else str(size) for size in graph)}]"
        )
    return tuple(map(int, found))


def _sizes_of(row: Any, info: TensorInfo) -> tuple[int, ...]:
    if isinstance(row, bytes):
        layout = LAYOUTS.get(DType(info.dtype))
        return (len(row) // layout.itemsize,) if layout is not None else ()
    try:
        return np.shape(row)
    except ValueError:
        return ()


def _are_rows(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(row, (bytes, list, tuple, np.ndarray)) for row in values)


def _listed(values: Any) -> list[Any]:
    if isinstance(values, np.ndarray):
        return list(values)
    return list(values.to_list() if hasattr(values, "to_list") else values)
