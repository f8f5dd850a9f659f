"""A real, tiny ONNX model: `score = amount + age + bias`, so that a prediction tells which version made it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcast import digest, golden
from modelcast.publisher.prepare import PreparedModel
from modelcast.records import EXAMPLES_PATH, GRAPH_PATH, FileEntry, Tolerance

from .registry_records import SIGNATURE

IR_VERSION, OPSET = 10, 21


def score(amount: float, age: float, bias: float) -> float:
    return amount + age + bias


def linear_model(directory: Path, bias: float, *, golden_off_by: float = 0.0) -> PreparedModel:
    """Writes the model with its golden examples, wrong by `golden_off_by`, as a publisher prepares it."""
    directory.mkdir(parents=True, exist_ok=True)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0),
            helper.make_node("Add", ["sum", "bias"], ["score"]),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        [
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array(bias, np.float32), "bias"),
        ],
    )
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    (directory / GRAPH_PATH).write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    x = np.array([[1, 2], [3, 4]], np.float32)
    want = x.sum(axis=1) + np.float32(bias + golden_off_by)
    golden.write(directory / EXAMPLES_PATH, golden.Examples({"x": x}, {"score": want}))
    entries = []
    for name in (EXAMPLES_PATH, GRAPH_PATH):
        data = (directory / name).read_bytes()
        entries.append(FileEntry(name, len(data), digest.of_bytes(data)))
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
