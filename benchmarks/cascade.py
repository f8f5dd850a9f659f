"""A model of any size that answers most events in microseconds: a cascade, whose large part scores the hard ones only.

Its large part is dense layers, which the runtime repacks at each load and keeps in memory of its own: the most that
loading and destroying a model of that size can cost. What scores easy events is small, so that a gap in scoring is
seen to the tenth of a millisecond, and not hidden by the model's own time.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcast.publisher.prepare import PreparedModel, prepare

Array = np.ndarray[Any, Any]

# Events with a key above this are hard.
EASY_MOST: Final = 899
_KEYS = 1000
_VECTOR = 16
_WIDTH = 2048
_EXAMPLES = 32


def make(size: int, seed: int, directory: Path) -> PreparedModel:
    """One of about `size` bytes, that shares no file with those of other seeds, prepared in a new folder."""
    directory.mkdir(parents=True)
    keys = np.random.default_rng(0).integers(0, _KEYS, _EXAMPLES)  # easy ones and hard ones
    return prepare(_graph(size, seed).SerializeToString(), {"key": keys}, directory=directory)


def easy_events(rows: int) -> Mapping[str, Array]:
    """Columns that only the small part sees."""
    return {"key": np.arange(rows, dtype=np.int64) % EASY_MOST}


def hard_events(rows: int) -> Mapping[str, Array]:
    """Columns that the large part scores."""
    return {"key": EASY_MOST + 1 + np.arange(rows, dtype=np.int64) % (_KEYS - EASY_MOST - 1)}


def _graph(size: int, seed: int) -> onnx.ModelProto:
    layers = size // (_WIDTH * _WIDTH * 4)
    random = np.random.default_rng(seed)
    weights = {"table": _weights(random, _KEYS, _VECTOR), "first": _weights(random, _VECTOR, _WIDTH)}
    nodes = [
        helper.make_node("Gather", ["table", "key"], ["vector"]),
        helper.make_node("ReduceMean", ["vector", "axis"], ["easy"], keepdims=0),
        helper.make_node("Greater", ["key", "easy_most"], ["is_hard"]),
        helper.make_node("NonZero", ["is_hard"], ["hard_row"]),
        helper.make_node("Transpose", ["hard_row"], ["hard_rows"]),
        helper.make_node("GatherND", ["vector", "hard_rows"], ["hard_vector"]),
        helper.make_node("MatMul", ["hard_vector", "first"], ["layer0"]),
    ]
    for n in range(layers):
        weights[f"w{n}"] = _weights(random, _WIDTH, _WIDTH)
        nodes.append(helper.make_node("MatMul", [f"layer{n}", f"w{n}"], [f"product{n}"]))
        nodes.append(helper.make_node("Tanh", [f"product{n}"], [f"layer{n + 1}"]))
    nodes.append(helper.make_node("ReduceMean", [f"layer{layers}", "axis"], ["hard"], keepdims=0))
    nodes.append(helper.make_node("ScatterND", ["easy", "hard_rows", "hard"], ["score"]))
    graph = helper.make_graph(
        nodes,
        "cascade",
        [helper.make_tensor_value_info("key", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        [
            *(numpy_helper.from_array(array, name) for name, array in weights.items()),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array(EASY_MOST, np.int64), "easy_most"),
        ],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def _weights(random: np.random.Generator, rows: int, columns: int) -> Array:
    return random.standard_normal((rows, columns), np.float32) * np.float32(rows**-0.5)
