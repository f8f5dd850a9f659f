"""Other names for outputs and inputs: the same values under them, from any graph, and nothing else is touched."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelcast import runtime
from modelcast.errors import StructureError, UsageError
from modelcast.publisher.candidate import Candidate
from modelcast.publisher.parity import Expected
from modelcast.publisher.prepare import prepare
from modelcast.publisher.rename import renamed

X = np.float32([1, -2])


def model(*, first: str = "a", second: str = "b") -> onnx.ModelProto:
    """first = -x, second = |-(-x)|, by a value called `inner`, which both branches of an If take from outside."""
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("x", first, second)]
    branch = helper.make_graph(
        [helper.make_node("Neg", [first], ["deep"])], "branch", [], [helper.make_tensor_value_info("deep", 1, [None])]
    )
    nodes = [
        helper.make_node("Neg", ["x"], [first]),
        helper.make_node("If", ["yes"], ["inner"], then_branch=branch, else_branch=branch),
        helper.make_node("Abs", ["inner"], [second]),
    ]
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:], [yes]),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21)],
    )


def outputs(made: onnx.ModelProto, folder: Path, **feeds: np.ndarray) -> dict[str, list[float]]:
    onnx.checker.check_model(made)
    (folder / "m.onnx").write_bytes(made.SerializeToString())
    session = runtime.open_session(folder / "m.onnx", device="cpu")
    return {info.name: array.tolist() for info, array in zip(session.outputs, session.run(feeds), strict=True)}


@pytest.mark.parametrize(
    ("names", "want"),
    [
        ({"a": "score"}, {"score": [-1, 2], "b": [1, 2]}),
        ({"a": "b", "b": "a"}, {"b": [-1, 2], "a": [1, 2]}),
        ({"a": "b", "b": "c"}, {"b": [-1, 2], "c": [1, 2]}),
        ({"a": "inner"}, {"inner": [-1, 2], "b": [1, 2]}),
        ({"a": "deep"}, {"deep": [-1, 2], "b": [1, 2]}),
        ({"b": "yes"}, {"a": [-1, 2], "yes": [1, 2]}),
        ({"a": "a"}, {"a": [-1, 2], "b": [1, 2]}),
        ({}, {"a": [-1, 2], "b": [1, 2]}),
    ],
)
def test_values_stay_under_their_new_names(tmp_path: Path, names: dict[str, str], want: dict[str, list[float]]) -> None:
    given = Candidate(model())
    made = renamed(given, names).model
    assert outputs(made, tmp_path, x=X) == want
    assert given.model == model()


def test_an_input_can_be_renamed_too(tmp_path: Path) -> None:
    made = renamed(Candidate(model()), {"x": "amount", "b": "x"}).model
    assert outputs(made, tmp_path, amount=X) == {"a": [-1, 2], "x": [1, 2]}


def test_the_original_is_asked_and_answers_by_the_new_names() -> None:
    def original(feeds: dict[str, np.ndarray]) -> Expected:
        return Expected({"a": -feeds["x"], "b": abs(feeds["x"])}, {"a": np.array([True, False])})

    expected = renamed(Candidate(model(), original=original), {"x": "amount", "a": "score"}).original({"amount": X})
    assert {name: array.tolist() for name, array in expected.outputs.items()} == {"score": [-1, 2], "b": [1, 2]}
    assert list(expected.ties) == ["score"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"c": "d"}, r"no such output.*outputs are 'a', 'b'; its inputs 'x'"),
        ({"inner": "d"}, "no such output"),
        ({"yes": "d"}, "no such output"),
        ({"a": "b"}, "two outputs would be called 'b'"),
        ({"a": "c", "b": "c"}, "two outputs would be called 'c'"),
        ({"a": "x"}, "an output and an input would both be called 'x'"),
        ({"a": " "}, "no name"),
        ({"a": "b\nc"}, "no name"),
    ],
)
def test_what_can_not_be_renamed_is_said_with_what_there_is(names: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        renamed(Candidate(model()), names)

    assert re.search(said, str(caught.value))
    assert caught.value.hint


@pytest.mark.parametrize(("first", "second"), [("version", "b"), ("a:0", "a_0")])
def test_names_that_are_taken_are_refused_with_the_way_out(tmp_path: Path, first: str, second: str) -> None:
    with pytest.raises(StructureError) as caught:
        prepare(model(first=first, second=second), {"x": X}, directory=tmp_path)
    assert "--rename" in str(caught.value)
    taken = first if first == "version" else second
    prepared = prepare(model(first=first, second=second), {"x": X}, rename={taken: "score"}, directory=tmp_path)
    assert "score" in [spec.field for spec in prepared.signature.outputs]
