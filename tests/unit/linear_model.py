"""A real, tiny ONNX model: `score = amount + age + bias`, so that a prediction tells which version made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcast import digest, golden
from modelcast.publisher.prepare import PreparedModel
from modelcast.records import EXAMPLES_PATH, GRAPH_PATH, FileEntry, Tolerance

from .registry_records import SIGNATURE

IR_VERSION, OPSET = 10, 21

Floats = npt.NDArray[Any]


def score(amount: float, age: float, bias: float) -> float:
    return amount + age + bias


def linear_model(directory: Path, bias: float, *, golden_off_by: float = 0.0) -> PreparedModel:
    """Writes the model with its golden examples, wrong by `golden_off_by`, as a publisher prepares it."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "bias"], ["score"]),
    ]
    initializers = [
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array(bias, np.float32), "bias"),
    ]
    return prepared(
        directory, nodes, initializers, lambda _, x: x.sum(axis=1) + np.float32(bias + golden_off_by), name="linear"
    )


def prepared(
    directory: Path,
    nodes: list[onnx.NodeProto],
    initializers: list[onnx.TensorProto],
    golden_scores: Callable[[Path, Floats], Floats],
    *,
    name: str,
) -> PreparedModel:
    """Writes a graph from `x` [N, 2] to `score` [N], with the golden scores given for its path and the examples."""
    directory.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        initializers,
    )
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    path = directory / GRAPH_PATH
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    x = np.array([[1, 2], [3, 4]], np.float32)
    golden.write(directory / EXAMPLES_PATH, golden.Examples({"x": x}, {"score": golden_scores(path, x)}))
    entries = []
    for entry in (EXAMPLES_PATH, GRAPH_PATH):
        data = (directory / entry).read_bytes()
        entries.append(FileEntry(entry, len(data), digest.of_bytes(data)))
    return PreparedModel(
        directory=directory,
        files=tuple(entries),
        signature=SIGNATURE,
        ir_version=IR_VERSION,
        opsets={"": OPSET},
        tolerance=Tolerance(),
        probe=None,
        frameworks={},
    )
