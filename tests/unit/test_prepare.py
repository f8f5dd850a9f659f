"""Preparing a version: what comes out of plain ONNX graphs, and what is refused, why, and with nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelcast import digest, golden, graph, runtime
from modelcast.errors import (
    BindingError,
    GoldenError,
    ModelcastError,
    SmokeRunError,
    SourceError,
    StructureError,
    UsageError,
)
from modelcast.publisher.prepare import GOLDEN_ROWS, PreparedModel, prepare
from modelcast.publisher.smoke import SmokeLimits
from modelcast.records import DType, Tolerance

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
Value = tuple[str, int, list[Any] | None]


def model_of(
    nodes: list[tuple[Any, ...]], inputs: list[Value], outputs: list[Value], **initializers: np.ndarray
) -> onnx.ModelProto:
    made = [
        helper.make_node(op, taken, given, **(options[0] if options else {})) for op, taken, given, *options in nodes
    ]
    body = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="by-hand")


def linear(width: int = 3) -> onnx.ModelProto:
    weights = np.arange(1, width + 1, dtype=np.float32).reshape(-1, 1)
    return model_of(
        [("MatMul", ["X", "w"], ["y"])], [("X", FLOAT, [None, width])], [("y", FLOAT, [None, 1])], w=weights
    )


def negative(name: str = "y", **changes: Any) -> onnx.ModelProto:
    return model_of([("Neg", ["x"], [name])], [("x", FLOAT, [None])], [(name, FLOAT, changes.get("shape", [None]))])


ROWS = pl.DataFrame({"a": [1.0, 2.0], "b": [3, 4], "c": [5.0, 6.0], "note": ["p", "q"]})
Prepare = Callable[..., PreparedModel]


@pytest.fixture
def publish(tmp_path: Path) -> Prepare:
    (tmp_path / "tree").mkdir()

    def run(source: Any, examples: Any = ROWS, **options: Any) -> PreparedModel:
        return prepare(source, examples, directory=tmp_path / "tree", **options)

    return run


def test_a_prepared_model_says_all_a_manifest_needs(publish: Prepare, tmp_path: Path) -> None:
    told: list[str] = []
    prepared = publish(linear(), fields=["a", "b", "c"], progress=told.append)
    assert told == ["load", "check", "smoke-run"]
    assert prepared.directory == tmp_path / "tree"
    assert [entry.path for entry in prepared.files] == ["examples.npz", "model.onnx"]
    for entry in prepared.files:
        path = prepared.directory / entry.path
        assert (entry.size, entry.digest) == (path.stat().st_size, digest.of_file(path))
    (taken,) = prepared.signature.inputs
    assert (taken.name, taken.dtype, taken.shape, taken.fields) == ("X", DType.FLOAT32, (None, 3), ("a", "b", "c"))
    (given,) = prepared.signature.outputs
    assert (given.name, given.dtype, given.shape, given.field) == ("y", DType.FLOAT32, (None, 1), "y")
    assert (prepared.ir_version, prepared.opsets) == (8, {"": 17})
    assert prepared.tolerance == Tolerance()
    assert prepared.probe.peak_bytes > 0
    assert prepared.frameworks.keys() == {"by-hand", "onnxruntime"}


def test_golden_examples_are_what_a_consumer_gets_from_the_files(publish: Prepare) -> None:
    prepared = publish(linear(), fields=["a", "b", "c"])
    examples = golden.read(prepared.directory / "examples.npz")
    np.testing.assert_array_equal(examples.outputs["y"], [[22.0], [28.0]])
    session = runtime.open_session(prepared.directory / "model.onnx", device="cpu")
    got = dict(zip((info.name for info in session.outputs), session.run(examples.inputs), strict=True))
    golden.check(examples.outputs, got, prepared.tolerance)


def test_few_golden_rows_are_kept_of_many_examples(publish: Prepare) -> None:
    told: list[str] = []
    prepared = publish(negative(), {"x": np.arange(10_500.0)}, progress=told.append)
    examples = golden.read(prepared.directory / "examples.npz")
    assert len(examples.inputs["x"]) == len(examples.outputs["y"]) == GOLDEN_ROWS
    assert "the first 10000 of 10500 examples are used" in told


def test_the_same_source_gives_the_same_files(publish: Prepare, tmp_path: Path) -> None:
    one = publish(linear(), fields=["a", "b", "c"])
    (tmp_path / "again").mkdir()
    two = prepare(linear().SerializeToString(), ROWS.to_dicts(), fields=["a", "b", "c"], directory=tmp_path / "again")
    assert one.files == two.files


def test_a_column_per_field_with_texts(publish: Prepare) -> None:
    model = model_of(
        [("Identity", ["note"], ["said"]), ("Neg", ["b"], ["minus"])],
        [("note", STRING, [None, 1]), ("b", INT64, [None, 1])],
        [("said", STRING, [None, 1]), ("minus", INT64, [None, 1])],
    )
    prepared = publish(model)
    assert prepared.signature.fields == ("note", "b")
    assert [(o.field, str(o.dtype), o.is_scalar) for o in prepared.signature.outputs] == [
        ("said", "string", True),
        ("minus", "int64", True),
    ]


def test_open_sizes_of_outputs_are_those_of_the_run(publish: Prepare) -> None:
    weights = np.ones((3, 4), np.float32)
    model = model_of(
        [("MatMul", ["X", "w"], ["y"])], [("X", FLOAT, [None, None])], [("y", FLOAT, [None, None])], w=weights
    )
    prepared = publish(model, fields=["a", "b", "c"])
    assert prepared.signature.inputs[0].shape == (None, 3)
    assert prepared.signature.outputs[0].shape == (None, 4)
    facts = graph.inspect(prepared.directory / "model.onnx", [entry.path for entry in prepared.files])
    graph.check_signature(facts, prepared.signature)


def test_output_names_become_avro_names(publish: Prepare) -> None:
    prepared = publish(negative("dense/out:0"), {"x": np.ones(3)})
    assert prepared.signature.outputs[0].field == "dense_out_0"


def test_large_tensors_travel_in_their_own_files(publish: Prepare, tmp_path: Path) -> None:
    width = 40_000
    onnx.save(linear(width), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    x = {"X": np.ones((2, width), np.float32)}
    prepared = publish(tmp_path / "m.onnx", x, fields=[f"f{n}" for n in range(width)])
    assert [entry.path.partition("/")[0] for entry in prepared.files] == ["examples.npz", "model.onnx", "tensors"]
    assert prepared.files[2].size == 4 * width


def test_initializers_among_the_inputs_need_no_field(publish: Prepare) -> None:
    model = linear()
    model.graph.input.append(helper.make_tensor_value_info("w", FLOAT, [3, 1]))
    assert len(publish(model, fields=["a", "b", "c"]).signature.inputs) == 1


def test_four_gibibytes_asked_for_by_a_few_bytes_are_refused(publish: Prepare) -> None:
    model = model_of(
        [("ConstantOfShape", ["n"], ["z"]), ("ReduceMax", ["z"], ["m"], {"keepdims": 0}), ("Add", ["x", "m"], ["y"])],
        [("x", FLOAT, [None])],
        [("y", FLOAT, [None])],
        n=np.array([1 << 30]),
    )
    with pytest.raises(SmokeRunError, match="memory limit"):
        publish(model, {"x": np.ones(2)})


def test_the_callers_limits_hold(publish: Prepare) -> None:
    with pytest.raises(SmokeRunError, match=r"time limit of 0\.01 s"):
        publish(negative(), {"x": np.ones(2)}, limits=replace(SmokeLimits(), wall_s=0.01))


@pytest.mark.parametrize(("op", "value"), [("Log", -1.0), ("Log", 0.0), ("Reciprocal", 0.0)])
def test_outputs_that_are_not_finite_are_refused_with_their_row(publish: Prepare, op: str, value: float) -> None:
    model = model_of([(op, ["x"], ["y"])], [("x", FLOAT, [None])], [("y", FLOAT, [None])])
    with pytest.raises(GoldenError, match=r"output 'y' is (nan|inf|-inf) in row 2"):
        publish(model, {"x": [1.0, 2.0, value]})


def test_a_missing_value_behind_it_is_named(publish: Prepare) -> None:
    with pytest.raises(GoldenError, match=r"row 1 of the examples \(there 'b' has no value\)"):
        publish(linear(), {"a": [1.0, 1.0], "b": [1.0, None], "c": [1.0, 1.0]}, fields=["a", "b", "c"])


CASES: dict[str, tuple[Any, Any, list[str] | None, type[ModelcastError], str]] = {
    "no examples": (linear(), None, ["a", "b", "c"], UsageError, "no examples"),
    "unreadable examples": (linear(), "nowhere.csv", ["a", "b", "c"], SourceError, "nowhere.csv"),
    "no fields for a matrix": (linear(), ROWS, None, UsageError, "its 3 columns"),
    "too few fields": (linear(), ROWS, ["a", "b"], UsageError, "names 2 fields, and matrix input 'X' takes 3"),
    "field not in the examples": (linear(), ROWS, ["a", "b", "d"], BindingError, "no field 'd'; they have 'a', 'b'"),
    "field of texts": (linear(), ROWS, ["a", "b", "note"], BindingError, "'note' of the examples holds texts"),
    "no field matches": (negative(), ROWS, None, BindingError, "matches input 'x'"),
    "array of another width": (
        linear(),
        {"X": np.ones((2, 5))},
        ["a", "b", "c"],
        BindingError,
        "5 columns, it takes 3",
    ),
    "not a model": (b"nonsense", ROWS, None, SourceError, "the bytes can't be read"),
    "unreadable file": ("nowhere.onnx", ROWS, None, SourceError, "nowhere.onnx"),
    "fixed batch": (
        model_of([("Neg", ["x"], ["y"])], [("x", FLOAT, [4, 2])], [("y", FLOAT, [4, 2])]),
        {"x": np.ones((4, 2))},
        ["a", "b"],
        StructureError,
        "exactly 4 rows|4 as its first dimension",
    ),
    "half floats": (
        model_of([("Neg", ["x"], ["y"])], [("x", TensorProto.FLOAT16, [None])], [("y", TensorProto.FLOAT16, [None])]),
        {"x": np.ones(2)},
        None,
        StructureError,
        "float16",
    ),
    "an output of bytes": (
        model_of([("Identity", ["x"], ["y"])], [("x", TensorProto.UINT8, [None])], [("y", TensorProto.UINT8, [None])]),
        {"x": [1, 2]},
        None,
        StructureError,
        "'y' is of type uint8.*Cast it",
    ),
    "reserved output": (negative("version"), {"x": [1.0]}, None, StructureError, "'version' of a prediction"),
    "outputs of one Avro name": (
        model_of(
            [("Neg", ["x"], ["y:0"]), ("Abs", ["x"], ["y/0"])],
            [("x", FLOAT, [None])],
            [("y:0", FLOAT, [None]), ("y/0", FLOAT, [None])],
        ),
        {"x": [1.0]},
        None,
        StructureError,
        "taken by 'y:0'",
    ),
    "sequence": (
        model_of([("SequenceConstruct", ["x"], ["y"])], [("x", FLOAT, [None])], []),
        {"x": [1.0]},
        None,
        StructureError,
        "is a sequence",
    ),
    "invalid graph": (
        model_of([("Neg", ["x", "x"], ["y"])], [("x", FLOAT, [None])], [("y", FLOAT, [None])]),
        {"x": [1.0]},
        None,
        StructureError,
        "not valid ONNX",
    ),
    "no inputs": (
        model_of([("Identity", ["w"], ["y"])], [], [("y", FLOAT, [None])], w=np.ones(2, np.float32)),
        ROWS,
        None,
        StructureError,
        "no inputs",
    ),
    "wrong declared shape": (negative(shape=[None, 2]), {"x": [1.0]}, None, ModelcastError, "'y'|valid"),
}
CASES["sequence"][0].graph.output.append(helper.make_tensor_sequence_value_info("y", FLOAT, [None]))


@pytest.mark.parametrize("name", CASES)
def test_refused_with_one_line_and_nothing_left_behind(publish: Prepare, tmp_path: Path, name: str) -> None:
    source, examples, fields, error, said = CASES[name]
    (tmp_path / "tree" / "mine.txt").write_text("stays")
    with pytest.raises(error, match=said) as caught:
        publish(source, examples, fields=fields)
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "tree").iterdir()] == ["mine.txt"]
