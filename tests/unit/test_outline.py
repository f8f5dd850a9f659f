"""The outline of a file is its model, with large tensors left in the file; anything unusual is parsed as a whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from modelcast.publisher import outline, sources, tree

LARGE = np.arange(tree.MIN_TENSOR_BYTES // 4 + 5, dtype=np.float32)


def model_of(*tensors: TensorProto) -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", value[:1], value[1:], list(tensors))
    return helper.make_model(body, producer_name="maker", doc_string="words")


def tensors() -> list[TensorProto]:
    return [
        numpy_helper.from_array(LARGE, "large"),
        numpy_helper.from_array(LARGE[:7], "small"),
        helper.make_tensor("typed", TensorProto.FLOAT, LARGE.shape, LARGE),
        numpy_helper.from_array(LARGE + 1, "last"),
    ]


def test_an_outline_is_the_model_once_its_tensors_are_loaded(tmp_path: Path) -> None:
    model = model_of(*tensors())
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = outline.read(tmp_path / "m.onnx")
    assert found is not None
    outside = [tensor.name for tensor in found.graph.initializer if tensor.data_location == TensorProto.EXTERNAL]
    assert outside == ["large", "last"]
    load_external_data_for_model(found, str(tmp_path))
    for tensor in found.graph.initializer:
        tensor.ClearField("data_location")
    assert found == model


def test_a_file_gives_the_tree_that_its_bytes_give(tmp_path: Path) -> None:
    data = model_of(*tensors()).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data)
    trees = []
    for name, source in (("a", tmp_path / "m.onnx"), ("b", data)):
        (tmp_path / name).mkdir()
        candidate = sources.load(source, print)
        assert isinstance(candidate, sources.Candidate)
        tree.write(candidate.model, candidate.folder, tmp_path / name)
        trees.append(tree.entries(tmp_path / name))
    assert trees[0] == trees[1]


@pytest.mark.parametrize("name", ["odd:name.onnx", "link.onnx"])
def test_a_file_that_could_not_be_named_as_external_data_is_parsed_whole(tmp_path: Path, name: str) -> None:
    data = model_of(*tensors()).SerializeToString()
    (tmp_path / "odd:name.onnx").write_bytes(data)
    (tmp_path / "link.onnx").symlink_to("odd:name.onnx")
    assert outline.read(tmp_path / name) is None
    candidate = sources.load(tmp_path / name, print)
    assert isinstance(candidate, sources.Candidate)
    assert candidate.model == onnx.ModelProto.FromString(data)


def test_two_graphs_have_no_outline(tmp_path: Path) -> None:
    data = model_of(*tensors()).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data + data)
    assert outline.read(tmp_path / "m.onnx") is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_broken_files_never_raise_and_never_differ(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(model_of(*tensors()[:2]).SerializeToString())
    head = data.draw(st.integers(0, 120))
    whole[head] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("broken") / "m.onnx"
    path.write_bytes(
        bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole) - 1, tree.MIN_TENSOR_BYTES + 9]))])
    )
    found = outline.read(path)
    if found is None:
        return
    want = onnx.ModelProto.FromString(path.read_bytes())
    assert [t.name for t in found.graph.initializer] == [t.name for t in want.graph.initializer]
    assert found.graph.node == want.graph.node
