"""Models of a soak: no two versions score an event alike, and some take several chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from modelcast.publisher.prepare import PreparedModel
from tests.faults.models import network, tensors
from tests.unit.linear_model import IR_VERSION, OPSET, Floats, prepared

# 1.2 MB: three chunks.
BALLAST_NUMBERS = 300_000


def soak_model(directory: Path, seed: int, *, heavy: bool) -> PreparedModel:
    """A small network from `x` [N, 2] to `score` [N], as a publisher prepares it; a heavy one carries ballast."""
    nodes, initializers = _parts(seed, heavy=heavy)
    return prepared(directory, nodes, initializers, _own_scores, name="soak")


def write_soak_model(path: Path, seed: int) -> None:
    """The same as a file, for the command line."""
    nodes, initializers = _parts(seed, heavy=False)
    graph = helper.make_graph(
        nodes,
        "soak",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        initializers,
    )
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    path.write_bytes(model.SerializeToString())


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    """A session with the options that a scorer's has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _parts(seed: int, *, heavy: bool) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    chance = np.random.default_rng(seed)
    nodes, weights = network(chance, output="narrow" if heavy else "score")
    if heavy:
        weights["ballast"] = chance.random(BALLAST_NUMBERS)
        nodes += [
            helper.make_node("ReduceMax", ["ballast"], ["most"], keepdims=0),
            helper.make_node("Add", ["narrow", "most"], ["score"]),
        ]
    return nodes, tensors(weights)


def _own_scores(path: Path, x: Floats) -> Floats:
    (scores,) = open_graph(path).run(None, {"x": x})
    return np.asarray(scores)
