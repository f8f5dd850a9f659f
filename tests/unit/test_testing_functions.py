"""A Python function as a model: the graph computes what the function says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import runtime
from modelcast.errors import UsageError
from modelcast.testing import onnx_of
from modelcast.testing.functions import where

A = np.array([1.0, -2.0, 12.5, 4.0], np.float32)
B = np.array([3.0, 4.0, 0.5, 4.0], np.float32)


def run(function: Callable[..., Any], folder: Path, **fields: Any) -> dict[str, Any]:
    path = folder / "model.onnx"
    path.write_bytes(onnx_of(function).SerializeToString())
    session = runtime.open_session(path)
    return {info.name: array for info, array in zip(session.outputs, session.run(fields), strict=True)}


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a + b - 2 * a * b,
        lambda a, b: 1 + a - (2 - b) / (1 + abs(a)) + a / 4,
        lambda a, b: -a + b**2 + 8 / b,
        lambda a, b: (a > b) | ~(a <= 1.0) & (b >= 4),
        lambda a, b: (a < 2) | (a == b),
    ],
)
def test_the_graph_computes_what_the_function_does(function: Callable[..., Any], tmp_path: Path) -> None:
    got = run(function, tmp_path, a=A, b=B)["score"]
    assert got.tolist() == pytest.approx(function(A, B).tolist())


def test_outputs_have_the_names_of_the_dict(tmp_path: Path) -> None:
    got = run(lambda a, b: {"total": a + b, "is_large": where(a > 10, 1, 0) > 0.5}, tmp_path, a=A, b=B)
    assert got["total"].tolist() == (A + B).tolist()
    assert got["is_large"].tolist() == [False, False, True, False]


@given(st.floats(-1e6, 1e6, width=32))
def test_a_constant_is_of_the_precision_of_the_fields(number: float) -> None:
    (constant,) = onnx_of(lambda a: a + number).graph.initializer
    assert np.frombuffer(constant.raw_data, np.float32).tolist() == [number]


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda a: 1.0, "which no field has a part in"),
        (lambda a: 1.0 if a > 10 else 0.0, "can't branch on a value"),
        (lambda *rows: rows[0], "named parameters"),
        (lambda: 1.0, "named parameters"),
    ],
)
def test_what_no_graph_can_say_is_refused(function: Callable[..., Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        onnx_of(function)
