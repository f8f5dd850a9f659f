"""A converted model whose rows are given as single bytes takes them as such: images, mostly.

An estimator is trained on a matrix of numbers; where the examples hold each row as raw bytes, or as an array of uint8,
events will too. So the graph gets an input of bytes `[N, d1, …, dk]`, and makes the matrix of it itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from . import rewrite, whole_rows
from .candidate import Candidate
from .examples import Rows
from .parity import Expected

Array = npt.NDArray[Any]


def taken(candidate: Candidate, rows: Rows, fields: Sequence[str] | None) -> Candidate:
    """The candidate, taking bytes if that is how the examples hold the rows of its only input.

    Args:
        candidate: A converted model.
        rows: The examples.
        fields: As the caller gave them: one field holds whole rows, several are columns.
    """
    original, graph = candidate.original, candidate.model.graph
    if original is None or len(graph.input) != 1 or (fields is not None and len(fields) != 1):
        return candidate
    name = graph.input[0].name
    width = _float_width(graph.input[0])
    given = next((rows.values[field] for field in (*(fields or ()), name) if field in rows), None)
    if not width or given is None or not whole_rows.as_octets(given):
        return candidate
    dims = given.shape[1:] if whole_rows.are_arrays(given) else (width,)
    # A plain uint8 matrix may be columns: only who names one field for it says that it is not.
    if math.prod(dims) != width or (fields is None and whole_rows.are_arrays(given) and len(dims) == 1):
        return candidate
    model = onnx.ModelProto()
    model.CopyFrom(candidate.model)
    rewrite.take_octets(model.graph, dims)
    return replace(candidate, model=model, original=_of_octets(original, name), fields=None)


def _float_width(value: onnx.ValueInfoProto) -> int:
    """The columns of a matrix of floats; 0 for any other input."""
    tensor = value.type.tensor_type
    is_float = tensor.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE)
    return tensor.shape.dim[1].dim_value if is_float and len(tensor.shape.dim) == 2 else 0


def _of_octets(
    original: Callable[[Mapping[str, Array]], Expected], name: str
) -> Callable[[Mapping[str, Array]], Expected]:
    def of_octets(feeds: Mapping[str, Array]) -> Expected:
        return original({name: feeds[name].reshape(len(feeds[name]), -1).astype(np.float64)})

    return of_octets
