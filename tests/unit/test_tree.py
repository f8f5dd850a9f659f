"""The file tree: large tensors in files named after their bytes, the same bytes on every run, nothing from outside."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelcast import graph, runtime
from modelcast.errors import SourceError, StructureError
from modelcast.publisher import tree

LARGE = np.arange(tree.MIN_TENSOR_BYTES // 4, dtype=np.float32).reshape(2, -1)  # exactly at the threshold
SMALL = LARGE[:, :-1].copy()


def model_of(**tensors: np.ndarray | TensorProto) -> onnx.ModelProto:
    """y = x + sum of the sums of all tensors."""
    nodes, last = [], "x"
    for name in tensors:
        nodes.append(helper.make_node("ReduceMean", [name], [f"{name}_mean"], keepdims=0))
        nodes.append(helper.make_node("Add", [last, f"{name}_mean"], [f"{name}_added"]))
        last = f"{name}_added"
    nodes.append(helper.make_node("Identity", [last], ["y"]))
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None])],
        [t if isinstance(t, TensorProto) else numpy_helper.from_array(t, name) for name, t in tensors.items()],
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def external(name: str, array: np.ndarray, **entries: str) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def run(directory: Path) -> np.ndarray:
    return runtime.open_session(directory / "model.onnx", device="cpu").run({"x": np.float32([0, 1])})[0]


def written(folder: Path, model: onnx.ModelProto, source: Path | None = None) -> Path:
    folder.mkdir()
    tree.write(model, source, folder)
    return folder


def test_large_tensors_get_files_named_after_their_bytes(tmp_path: Path) -> None:
    directory = written(tmp_path / "t", model_of(large=LARGE, small=SMALL))
    digest = hashlib.sha256(LARGE.tobytes()).hexdigest()
    assert tree.paths(directory) == ["model.onnx", f"tensors/{digest}"]
    assert (directory / f"tensors/{digest}").read_bytes() == LARGE.tobytes()
    assert (directory / "model.onnx").stat().st_size < 2 * SMALL.nbytes
    entry = tree.entries(directory)[1]
    assert (entry.size, entry.digest) == (LARGE.nbytes, f"sha256:{digest}")
    facts = graph.inspect(directory / "model.onnx", tree.paths(directory))
    assert facts.external == {f"tensors/{digest}"}
    np.testing.assert_allclose(run(directory), np.float32([0, 1]) + LARGE.mean() + SMALL.mean(), rtol=1e-5)


def test_the_callers_model_stays_as_it_is(tmp_path: Path) -> None:
    model = model_of(large=LARGE)
    before = model.SerializeToString(deterministic=True)
    written(tmp_path / "t", model)
    assert model.SerializeToString(deterministic=True) == before


def test_equal_tensors_share_a_file_and_an_unchanged_one_keeps_its_path(tmp_path: Path) -> None:
    one = written(tmp_path / "one", model_of(a=LARGE, b=LARGE, head=LARGE + 1))
    two = written(tmp_path / "two", model_of(a=LARGE, b=LARGE, head=LARGE + 2))
    assert len(tree.paths(one)) == 3
    assert len(set(tree.paths(one)) & set(tree.paths(two)) - {"model.onnx"}) == 1


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = model_of(a=LARGE, b=SMALL), model_of(a=LARGE, b=SMALL)
    two.opset_import.insert(0, helper.make_opsetid("ai.onnx.ml", 3))
    one.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    assert tree.entries(written(tmp_path / "one", one)) == tree.entries(written(tmp_path / "two", two))


def test_values_kept_as_numbers_are_the_same_file_as_raw_ones(tmp_path: Path) -> None:
    typed = helper.make_tensor("a", TensorProto.FLOAT, LARGE.shape, LARGE.ravel())
    assert not typed.raw_data
    one, two = written(tmp_path / "one", model_of(a=typed)), written(tmp_path / "two", model_of(a=LARGE))
    assert tree.entries(one) == tree.entries(two)


def test_everything_else_of_the_model_survives(tmp_path: Path) -> None:
    model = model_of(large=LARGE)
    model.doc_string, model.producer_name, model.producer_version = "what it is", "someone", "3"
    model.metadata_props.add(key="k", value="v")
    model.graph.doc_string = "a graph"
    loaded = onnx.load(written(tmp_path / "t", model) / "model.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), LARGE)
    for part in (model, loaded):
        del part.graph.initializer[:]
    assert loaded == model


def test_external_data_of_the_source_is_taken_over(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    onnx.save(
        model_of(large=LARGE, small=SMALL),
        source / "m.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    model = onnx.load(source / "m.onnx", load_external_data=False)
    assert tree.entries(written(tmp_path / "t", model, source)) == tree.entries(
        written(tmp_path / "inside", model_of(large=LARGE, small=SMALL))
    )


def test_external_data_in_attributes_is_put_into_the_graph(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(LARGE.tobytes())
    model = model_of(small=SMALL)
    constant = helper.make_node("Constant", [], ["unused"], value=external("c", LARGE, location="w.bin"))
    model.graph.node.insert(0, constant)
    directory = written(tmp_path / "t", model, tmp_path)
    assert tree.paths(directory) == ["model.onnx"]
    loaded = onnx.load(directory / "model.onnx").graph.node[0].attribute[0].t
    np.testing.assert_array_equal(numpy_helper.to_array(loaded), LARGE)


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("../secret.bin", StructureError),
        ("/etc/hostname", StructureError),
        ("sub/../../secret.bin", StructureError),
        ("link.bin", StructureError),
        (".env", StructureError),
        ("./.env", StructureError),
        ("", StructureError),
        ("nowhere.bin", SourceError),
        ("folder", SourceError),
    ],
)
def test_external_data_that_is_not_the_models_is_never_read(
    tmp_path: Path, location: str, error: type[Exception]
) -> None:
    source = tmp_path / "source"
    (source / "folder").mkdir(parents=True)
    for place in (tmp_path / "secret.bin", source / ".env"):
        place.write_bytes(LARGE.tobytes())
    (source / "link.bin").symlink_to(tmp_path / "secret.bin")
    with pytest.raises(error, match="external data"):
        written(tmp_path / "t", model_of(a=external("a", LARGE, location=location)), source)


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": "8"},
        {"length": "12"},
        {"offset": "x"},
        {"offset": "-4"},
        {"length": str(LARGE.nbytes + 4)},
    ],
)
def test_external_data_that_does_not_fit_its_tensor_is_refused(tmp_path: Path, entries: dict[str, str]) -> None:
    (tmp_path / "w.bin").write_bytes(LARGE.tobytes())
    with pytest.raises(SourceError, match="'a'"):
        written(tmp_path / "t", model_of(a=external("a", LARGE, location="w.bin", **entries)), tmp_path)


def test_a_model_in_memory_has_no_folder_for_external_data(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="has no folder"):
        written(tmp_path / "t", model_of(a=external("a", LARGE, location="w.bin")))


@pytest.mark.parametrize(("dims", "kind"), [([-1, 4], TensorProto.FLOAT), ([4], 999), ([4], 0)])
def test_tensors_of_impossible_sizes_are_refused(tmp_path: Path, dims: list[int], kind: int) -> None:
    (tmp_path / "w.bin").write_bytes(b"0" * 64)
    tensor = external("a", LARGE, location="w.bin")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    tensor.data_type = kind
    with pytest.raises(StructureError, match="'a'"):
        written(tmp_path / "t", model_of(a=tensor), tmp_path)
