"""Sources: ONNX in any form, estimators and joblib files; what is neither is told apart in one message."""

from __future__ import annotations

import pickle
from pathlib import Path

import joblib
import numpy as np
import onnx
import pytest
import sklearn
from onnx import TensorProto, helper
from sklearn.linear_model import LinearRegression

from modelcast.errors import SourceError
from modelcast.publisher import tree
from modelcast.publisher.prepare import prepare
from modelcast.publisher.sources import Candidate, load


def tiny() -> onnx.ModelProto:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in "xy"]
    body = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", value[:1], value[1:])
    return helper.make_model(body, producer_name="maker", producer_version="7")


def silent(line: str) -> None:
    raise AssertionError(f"nothing to tell, but: {line}")


def test_onnx_in_any_form(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny().SerializeToString())
    for source, folder in ((path, tmp_path), (str(path), tmp_path), (path.read_bytes(), None), (tiny(), None)):
        candidate = load(source, silent)
        assert isinstance(candidate, Candidate)
        assert candidate.model == tiny()
        assert candidate.folder == folder
        assert candidate.original is None
        assert candidate.frameworks == {"maker": "7"}


def spread(folder: Path, *, files: int, padding: int = 0) -> tuple[Path, dict[str, np.ndarray]]:
    """A model of three large tensors in one or more files, each tensor `padding` bytes after the one before."""
    arrays = {name: np.random.default_rng(seed).random((9, 5_000), np.float32) for seed, name in enumerate("abc")}
    model = tiny()
    for number, (name, array) in enumerate(arrays.items()):
        path = folder / "data" / f"{number % files}.bin"
        path.parent.mkdir(exist_ok=True)
        with path.open("ab") as file:
            file.write(b"\xff" * padding)
            offset = file.tell()
            file.write(array.tobytes())
        tensor = model.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", f"data/{path.name}"), ("offset", offset), ("length", array.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx", arrays


@pytest.mark.parametrize(("files", "padding"), [(1, 0), (1, 4_096), (2, 3), (3, 0)])
def test_external_data_in_one_file_or_many_at_any_offset(tmp_path: Path, files: int, padding: int) -> None:
    path, arrays = spread(tmp_path, files=files, padding=padding)
    candidate = load(path, silent)
    assert tree.locations(candidate.model) == tuple(f"data/{number}.bin" for number in range(files))
    (tmp_path / "tree").mkdir()
    tree.write(candidate.model, candidate.folder, tmp_path / "tree")
    written = {found.read_bytes() for found in (tmp_path / "tree" / "tensors").iterdir()}
    assert written == {array.tobytes() for array in arrays.values()}


def test_a_missing_file_of_external_data_is_named(tmp_path: Path) -> None:
    path, _ = spread(tmp_path, files=3)
    (tmp_path / "data" / "1.bin").unlink()
    (tmp_path / "tree").mkdir()
    with pytest.raises(SourceError, match=r"data/1\.bin.*No such file") as caught:
        prepare(path, {"x": np.ones(2)}, directory=tmp_path / "tree")
    assert caught.value.hint
    assert not list((tmp_path / "tree").iterdir())


@pytest.mark.parametrize("form", ["bytes", "ModelProto"])
def test_external_data_of_a_model_in_memory_takes_its_path(tmp_path: Path, form: str) -> None:
    path, _ = spread(tmp_path, files=1)
    source = path.read_bytes() if form == "bytes" else onnx.load(path, load_external_data=False)
    (tmp_path / "tree").mkdir()
    with pytest.raises(SourceError, match="Publish the path"):
        prepare(source, {"x": np.ones(2)}, directory=tmp_path / "tree")


def test_a_folder_says_which_file_to_name(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no model"):
        load(tmp_path, silent)
    (tmp_path / "m.onnx").write_bytes(tiny().SerializeToString())
    with pytest.raises(SourceError, match=r"Name the file: .*m\.onnx"):
        load(str(tmp_path), silent)


@pytest.mark.parametrize("suffix", [".joblib", ".pkl", ".pickle"])
def test_an_estimator_from_a_file_or_an_object(tmp_path: Path, suffix: str) -> None:
    estimator = LinearRegression().fit([[1.0], [2.0]], [1, 2])
    assert load(estimator, silent) is estimator
    path = tmp_path / f"m{suffix}"
    joblib.dump(estimator, path)
    np.testing.assert_array_equal(load(path, silent).coef_, estimator.coef_)
    path.write_bytes(pickle.dumps(estimator))
    np.testing.assert_array_equal(load(path, silent).coef_, estimator.coef_)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nowhere.onnx", None, "no such file"),
        ("folder.onnx", "", "is a folder"),
        ("m.h5", b"x", r"suffix '\.h5'"),
        ("m", b"x", "suffix ''"),
        ("m.onnx", b"not a model", "can't be read as an ONNX model"),
        ("m.onnx", b"", "there is no graph"),
        ("m.joblib", b"not a pickle", "can't load"),
        ("m.pkl", b"", "can't load"),
        ("m.pkl", pickle.dumps({"a": 1}), "holds a dict"),
        ("m.pkl", b"cnowhere_module\nThing\n.", "nowhere_module"),
        ("m.pkl", pickle.dumps(LinearRegression), "neither"),
    ],
)
def test_unreadable_files_are_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes | str | None, said: str
) -> None:
    path = tmp_path / name
    if content == "":
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(SourceError, match=said) as caught:
        load(path, lambda _: None)
    assert str(path) in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["m.json", "m.ubj", "m.txt"])
def test_a_boosters_own_file_is_refused_with_the_way_out(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"{}")
    with pytest.raises(SourceError) as caught:
        load(tmp_path / name, silent)
    assert "load it as a Booster" in (caught.value.hint or "")


@pytest.mark.parametrize("source", [3, None, {"a": 1}, LinearRegression, object()])
def test_objects_that_are_no_model_are_refused(source: object) -> None:
    with pytest.raises(SourceError, match="neither an ONNX model nor a trained model"):
        load(source, silent)


def test_an_estimator_of_another_version_is_loaded_with_a_warning(tmp_path: Path) -> None:
    data = pickle.dumps(LinearRegression().fit([[1.0], [2.0]], [1, 2]), protocol=0)
    (tmp_path / "m.pkl").write_bytes(data.replace(f"V{sklearn.__version__}\n".encode(), b"V0.1.2\n"))
    told: list[str] = []
    load(tmp_path / "m.pkl", told.append)
    assert len(told) == 1
    assert "saved by scikit-learn 0.1.2" in told[0]
