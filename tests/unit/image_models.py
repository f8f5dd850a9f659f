"""Models of images that are small and real: a convolution with fixed weights, and digits learned by scikit-learn."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

Array = npt.NDArray[Any]

SIDE = 8
CLASSES = 10


def conv_net(dtype: int = TensorProto.UINT8, *, open_sizes: bool = False) -> onnx.ModelProto:
    """`image` `[N, 8, 8, 1]` of pixels → `probabilities` `[N, 10]` and `label` `[N]`, by a convolution and a layer."""
    source = np.random.default_rng(8)
    kernels = source.normal(size=(4, 1, 3, 3)).astype(np.float32)
    weights = source.normal(size=(4 * 4 * 4, CLASSES)).astype(np.float32)
    sizes: list[Any] = ["H", "W", 1] if open_sizes else [SIDE, SIDE, 1]
    constants = {"kernels": kernels, "weights": weights, "scale": np.float32([1 / 16]), "flat": np.int64([-1, 64])}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
            helper.make_node("Transpose", ["scaled"], ["channels_first"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["channels_first", "kernels"], ["features"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["features"], ["positive"]),
            helper.make_node("MaxPool", ["positive"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Reshape", ["pooled", "flat"], ["rows"]),
            helper.make_node("Gemm", ["rows", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
        ],
        "conv_net",
        [helper.make_tensor_value_info("image", dtype, ["N", *sizes])],
        [
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
        ],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


@cache
def digits() -> tuple[Array, Array]:
    """Scanned digits as uint8 `[1797, 8, 8]`, and what they are."""
    pixels, labels = load_digits(return_X_y=True)
    return pixels.astype(np.uint8).reshape(-1, SIDE, SIDE), labels


@cache
def digit_classifier() -> Any:
    """Logistic regression on 64 scaled pixels."""
    images, labels = digits()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300))
    return model.fit(images.reshape(-1, SIDE * SIDE).astype(np.float64), labels)
