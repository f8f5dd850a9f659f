"""Real ONNX models for faults: one whose score depends on how it is summed up, and one as slow as an event asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from modelcast.publisher.prepare import PreparedModel
from tests.unit.linear_model import Floats, prepared

HIDDEN = 32


def wavy_model(directory: Path, seed: int) -> PreparedModel:
    """A small network (2 inputs, 32 hidden, tanh): no two seeds, and hardly two ways to add up, give the same score."""
    nodes, weights = network(np.random.default_rng(seed), output="score")
    return prepared(directory, nodes, tensors(weights), _own_scores, name="faults")


def network(
    chance: np.random.Generator, *, output: str
) -> tuple[list[onnx.NodeProto], dict[str, npt.NDArray[np.float64]]]:
    """The nodes of a small network from `x` [N, 2] to `output` [N], and its weights by name."""
    weights = {
        "w1": chance.normal(0, 0.05, (2, HIDDEN)),
        "b1": chance.normal(0, 1, HIDDEN),
        "w2": chance.normal(0, 1, (HIDDEN, 1)),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Tanh", ["h"], ["t"]),
        helper.make_node("MatMul", ["t", "w2"], ["column"]),
        helper.make_node("Squeeze", ["column", "axis"], [output]),
    ]
    return nodes, weights


def tensors(weights: Mapping[str, npt.NDArray[np.float64]]) -> list[onnx.TensorProto]:
    """The initializers of a `network`."""
    initializers = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    initializers.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
    return initializers


def lazy_model(directory: Path) -> PreparedModel:
    """`score = amount + age`, after as many turns of a loop as the largest amount of the batch."""
    truth = numpy_helper.from_array(np.array(True), "go_on")
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go_on_in"], ["go_on_out"]),
            helper.make_node("Add", ["sum_in", "nothing"], ["sum_out"]),
        ],
        "turn",
        [
            helper.make_tensor_value_info("turn_number", TensorProto.INT64, []),
            helper.make_tensor_value_info("go_on_in", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_in", TensorProto.FLOAT, [None]),
        ],
        [
            helper.make_tensor_value_info("go_on_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", TensorProto.FLOAT, [None]),
        ],
        [numpy_helper.from_array(np.array(0, np.float32), "nothing")],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0),
        helper.make_node("Gather", ["x", "first"], ["amounts"], axis=1),
        helper.make_node("ReduceMax", ["amounts"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["turns"], to=TensorProto.INT64),
        helper.make_node("Loop", ["turns", "go_on", "sum"], ["score"], body=body),
    ]
    initializers = [
        truth,
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
        numpy_helper.from_array(np.array(0, np.int64), "first"),
    ]
    return prepared(directory, nodes, initializers, _own_scores, name="faults")


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """A session with the options that a scorer's has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _own_scores(path: Path, x: Floats) -> Floats:
    (scores,) = open_graph(path).run(None, {"x": x})
    return np.asarray(scores)
