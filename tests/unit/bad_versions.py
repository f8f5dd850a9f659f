"""Files of versions that no publisher of ours would send: each is refused by a check of its own.

`graph` and `examples` make the files of a good one: `score = amount + age + 0.5`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcast import golden
from modelcast.golden import Examples
from modelcast.runtime import Array

ROWS = 10
X = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)
SUM = [
    helper.make_node("ReduceSum", ["x", "axis"], ["sum"], keepdims=0),
    helper.make_node("Add", ["sum", "bias"], ["score"]),
]
AXIS = numpy_helper.from_array(np.array([1], np.int64), "axis")
BIAS = numpy_helper.from_array(np.array(0.5, np.float32), "bias")


def graph(
    nodes: list[onnx.NodeProto] = SUM, *, opset: int = 17, initializers: tuple[TensorProto, ...] = (AXIS, BIAS)
) -> bytes:
    built = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        list(initializers),
    )
    return helper.make_model(built, ir_version=10, opset_imports=[helper.make_opsetid("", opset)]).SerializeToString()


def examples(folder: Path, outputs: Array | None = None, *, x: Array = X) -> bytes:
    path = folder / "examples.npz"
    golden.write(path, Examples({"x": x}, {"score": x.sum(axis=1) + np.float32(0.5) if outputs is None else outputs}))
    return path.read_bytes()


def env_as_tensor(folder: Path) -> dict[str, bytes]:
    tensor = TensorProto(name="bias", data_type=TensorProto.FLOAT, dims=[], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=".env")
    return {"model.onnx": graph(initializers=(AXIS, tensor)), "examples.npz": examples(folder)}


def examples_as_tensor(folder: Path) -> dict[str, bytes]:
    tensor = TensorProto(name="bias", data_type=TensorProto.FLOAT, dims=[], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="examples.npz")
    return {"model.onnx": graph(initializers=(AXIS, tensor)), "examples.npz": examples(folder)}


def newer_opset(folder: Path) -> dict[str, bytes]:
    return {"model.onnx": graph(opset=99), "examples.npz": examples(folder)}


def no_examples(folder: Path) -> dict[str, bytes]:
    return {"model.onnx": graph()}


def golden_mismatch(folder: Path) -> dict[str, bytes]:
    return {"model.onnx": graph(), "examples.npz": examples(folder, X.sum(axis=1) + np.float32(0.6))}


def golden_nan(folder: Path) -> dict[str, bytes]:
    nan = numpy_helper.from_array(np.array(np.nan, np.float32), "bias")
    wanted = np.full(ROWS, np.nan, np.float32)
    return {"model.onnx": graph(initializers=(AXIS, nan)), "examples.npz": examples(folder, wanted)}


def golden_constant(folder: Path) -> dict[str, bytes]:
    nodes = [*SUM[:1], helper.make_node("Mul", ["sum", "bias"], ["score"])]
    zero = numpy_helper.from_array(np.array(0, np.float32), "bias")
    return {
        "model.onnx": graph(nodes, initializers=(AXIS, zero)),
        "examples.npz": examples(folder, np.zeros(ROWS, np.float32)),
    }


def golden_empty(folder: Path) -> dict[str, bytes]:
    return {"model.onnx": graph(), "examples.npz": examples(folder, x=X[:0])}


def golden_without_outputs(folder: Path) -> dict[str, bytes]:
    golden.write(folder / "examples.npz", Examples({"x": X}, {}))
    return {"model.onnx": graph(), "examples.npz": (folder / "examples.npz").read_bytes()}


def allocation_bomb(folder: Path) -> dict[str, bytes]:
    shape = numpy_helper.from_array(np.array([1 << 32], np.int64), "shape")
    bomb = helper.make_node("ConstantOfShape", ["shape"], ["z"])
    nodes = [bomb, helper.make_node("ReduceSum", ["z"], ["bias"], keepdims=0), *SUM]
    return {"model.onnx": graph(nodes, initializers=(AXIS, shape)), "examples.npz": examples(folder)}


def broken_shapes(folder: Path) -> dict[str, bytes]:
    three = numpy_helper.from_array(np.ones((3, 1), np.float32), "bias")
    nodes = [helper.make_node("MatMul", ["x", "bias"], ["score"])]
    return {"model.onnx": graph(nodes, initializers=(three,)), "examples.npz": examples(folder)}
