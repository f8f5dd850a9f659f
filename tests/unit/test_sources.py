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


@pytest.mark.parametrize("source", [3, None, {"a": 1}, LinearRegression, object()])
def test_objects_that_are_no_model_are_refused(source: object) -> None:
    with pytest.raises(SourceError, match="neither an ONNX model nor a fitted scikit-learn estimator"):
        load(source, silent)


def test_an_estimator_of_another_version_is_loaded_with_a_warning(tmp_path: Path) -> None:
    data = pickle.dumps(LinearRegression().fit([[1.0], [2.0]], [1, 2]), protocol=0)
    (tmp_path / "m.pkl").write_bytes(data.replace(f"V{sklearn.__version__}\n".encode(), b"V0.1.2\n"))
    told: list[str] = []
    load(tmp_path / "m.pkl", told.append)
    assert len(told) == 1
    assert "saved by scikit-learn 0.1.2" in told[0]
