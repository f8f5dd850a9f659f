"""Models of the Hub, over HTTP from a stand-in: one graph at one commit, and what is said of anything else."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelcast.errors import MissingExtraError, ModelcastError, NotFoundError, SourceError, StructureError
from modelcast.publisher import sources, tree
from modelcast.publisher.prepare import prepare
from modelcast.publisher.references.hub import Place

from .hub_server import COMMIT, OTHER_COMMIT, Hub, Repository, hub

constants = pytest.importorskip("huggingface_hub.constants")

LARGE = np.arange(tree.MIN_TENSOR_BYTES // 4, dtype=np.float32).reshape(2, -1)


def model(weights: np.ndarray = LARGE, location: str | None = None) -> bytes:
    """score = mean(x @ weights), the weights inside or at `location`."""
    tensor = numpy_helper.from_array(weights, "w")
    if location:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"]),
        helper.make_node("ReduceMean", ["wide", "axis"], ["score"], keepdims=0),
    ]
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        [tensor, numpy_helper.from_array(np.int64([1]), "axis")],
    )
    made = helper.make_model(body, ir_version=10, opset_imports=[helper.make_opsetid("", 21)], producer_name="maker")
    return bytes(made.SerializeToString())


OTHERS = {
    "README.md": b"words",
    "pytorch_model.bin": b"\x80pickle",
    "modeling.py": b"raise SystemExit",
    "config.json": b"{}",
}
REPOSITORIES = {
    "me/one": Repository(
        {COMMIT: {"model.onnx": model(), **OTHERS}, OTHER_COMMIT: {"model.onnx": model(LARGE + 1)}},
        {"main": COMMIT, "v1": OTHER_COMMIT, "refs/pr/1": OTHER_COMMIT},
    ),
    "me/beside": Repository(
        {
            COMMIT: {
                "onnx/model.onnx": model(location="data/w.bin"),
                "onnx/data/w.bin": LARGE.tobytes(),
                "data/w.bin": b"no",
                **OTHERS,
            }
        }
    ),
    "me/many": Repository({COMMIT: {"onnx/model.onnx": model(), "onnx/model_fp16.onnx": model(), **OTHERS}}),
    "me/torn": Repository({COMMIT: {"model.onnx": model(location="w.bin")}}),
    "me/below": Repository({COMMIT: {"model.onnx": model(location="model.onnx/x")}}),
    "me/outside": Repository({COMMIT: {"model.onnx": model(location="../../secret")}}),
    "me/none": Repository({COMMIT: OTHERS}),
    "me/broken": Repository({COMMIT: {"model.onnx": b"not a model"}}),
    "me/private": Repository({COMMIT: {"model.onnx": model()}}, token="hf_letmein"),
    "me/gated": Repository({COMMIT: {"model.onnx": model()}}, gated=True),
}


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub(REPOSITORIES) as running:
        # What HF_ENDPOINT, HF_HOME and HF_TOKEN set when the package is imported, as it is by now.
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        yield running


@contextlib.contextmanager
def opened(reference: str) -> Iterator[tuple[sources.Opened, list[str]]]:
    told: list[str] = []
    with sources.opened(reference, told.append) as found:
        yield found, told


def weights(found: sources.Opened, folder: Path) -> np.ndarray:
    folder.mkdir()
    tree.write(found.model.model, found.model.folder, folder)
    return np.frombuffer(next((folder / "tensors").iterdir()).read_bytes(), "<f4").reshape(LARGE.shape)


@pytest.mark.parametrize(
    ("reference", "commit", "first"),
    [
        ("hf:me/one", COMMIT, 0.0),
        ("hf:me/one@main", COMMIT, 0.0),
        ("hf:me/one@v1", OTHER_COMMIT, 1.0),
        ("hf:me/one@refs/pr/1", OTHER_COMMIT, 1.0),
        (f"hf:me/one@{OTHER_COMMIT}:model.onnx", OTHER_COMMIT, 1.0),
    ],
)
def test_the_only_graph_at_a_commit_that_is_recorded(
    served: Hub, tmp_path: Path, reference: str, commit: str, first: float
) -> None:
    with opened(reference) as (found, told):
        pinned = f"me/one@{commit}:model.onnx"
        assert found.origin == {"hf": pinned}
        assert told == ([] if reference == f"hf:{pinned}" else [f"{reference} is hf:{pinned}"])
        np.testing.assert_array_equal(weights(found, tmp_path / "tree"), LARGE + first)
    assert served.files_given == ["model.onnx"]


def test_external_data_comes_with_its_graph_and_nothing_else(served: Hub, tmp_path: Path) -> None:
    with opened("hf:me/beside") as (found, _):
        np.testing.assert_array_equal(weights(found, tmp_path / "tree"), LARGE)
    assert served.files_given == ["onnx/model.onnx", "onnx/data/w.bin"]


def test_one_of_many_graphs_is_named_by_its_path(served: Hub) -> None:
    with opened("hf:me/many@main:onnx/model_fp16.onnx") as (found, _):
        assert found.origin == {"hf": f"me/many@{COMMIT}:onnx/model_fp16.onnx"}
    assert served.files_given == ["onnx/model_fp16.onnx"]


def test_a_version_says_which_commit_it_is(served: Hub, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    prepared = prepare("hf:me/one", {"x": np.float32([[1, 2], [3, 4]])}, fields=["a", "b"], directory=tmp_path / "tree")
    assert prepared.frameworks["hf"] == f"me/one@{COMMIT}:model.onnx"
    assert prepared.frameworks["maker"] == ""


def test_a_private_repository_takes_a_token(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_letmein")
    with opened("hf:me/private") as (found, _):
        assert found.origin == {"hf": f"me/private@{COMMIT}:model.onnx"}


def test_what_was_fetched_is_there_when_the_hub_is_not(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened("hf:me/beside") as (found, _):
        pinned = found.origin["hf"]
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with opened(f"hf:{pinned}") as (found, told):
        np.testing.assert_array_equal(weights(found, tmp_path / "tree"), LARGE)
        assert told == []
    with pytest.raises(SourceError, match="can't be reached.*commit and path"), opened("hf:me/beside"):
        pass
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with opened(f"hf:{pinned}"):
        pass


@pytest.mark.parametrize(
    ("reference", "kind", "said"),
    [
        ("me/nothing", NotFoundError, "no repository me/nothing, or it is private.*HF_TOKEN"),
        ("me/private", NotFoundError, "no repository me/private, or it is private.*hf auth login"),
        ("me/gated", SourceError, "is gated.*Ask for access: http"),
        ("me/one@v7", NotFoundError, "no branch, tag or commit 'v7'"),
        (f"me/one@{'0' * 40}:model.onnx", NotFoundError, "no branch, tag or commit"),
        ("me/one:other.onnx", NotFoundError, r"no file other\.onnx. Its \.onnx files: model\.onnx"),
        (f"me/one@{COMMIT}:other.onnx", NotFoundError, r"no file other\.onnx"),
        (
            "me/many",
            SourceError,
            r"has 2 \.onnx files: onnx/model\.onnx, onnx/model_fp16\.onnx. Name one: hf:me/many@main:onnx/model\.onnx",
        ),
        ("me/none", SourceError, r"no \.onnx file; nothing pickled is read from the Hub \(pytorch_model\.bin\)"),
        ("me/none:pytorch_model.bin", SourceError, "Nothing pickled is read from the Hub"),
        ("me/torn", NotFoundError, r"no file w\.bin. The graph's tensors"),
        ("me/below", StructureError, r"'model\.onnx/x' lies below model\.onnx, which is a file"),
        ("me/outside", StructureError, "outside the model's folder"),
        ("me/broken", SourceError, "can't be read as an ONNX model"),
        ("me/one:config.json", SourceError, r"not an \.onnx file"),
        ("", SourceError, "not a reference"),
        ("me/one@", SourceError, "not a reference"),
        ("a/b/c", SourceError, "not a reference"),
        ("me/one@main:", SourceError, "not a reference"),
        ("me/o..ne", SourceError, "not a name of a repository"),
    ],
)
def test_what_is_not_there_is_said_with_the_way_out(
    served: Hub, reference: str, kind: type[ModelcastError], said: str
) -> None:
    with pytest.raises(kind) as caught, opened(f"hf:{reference}"):
        pass
    assert re.search(said, str(caught.value)), str(caught.value)
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert not {"pytorch_model.bin", "modeling.py"}.intersection(served.files_given)


def test_without_huggingface_hub_there_is_an_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub.utils.tqdm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'modelcast\[hf\]'"), opened("hf:me/one"):
        pass


def test_nothing_pickled_is_taken_even_on_demand(served: Hub) -> None:
    with pytest.raises(SourceError, match="nothing pickled"), sources.opened("hf:me/none", print, trust_pickle=True):
        pass


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("gpt2", Place("gpt2", "main", None)),
        ("me/a-b.c_1@v1.2", Place("me/a-b.c_1", "v1.2", None)),
        ("me/a@refs/pr/1:x/y.ONNX", Place("me/a", "refs/pr/1", "x/y.ONNX")),
    ],
)
def test_a_place_is_repository_revision_and_path(text: str, want: Place) -> None:
    assert Place.parse(text) == want


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("models:/fraud/1", "mlflow:models:/"),
        ("runs:/123/model", "mlflow:runs:/"),
        ("hf://me/one", "hf:OWNER/REPO"),
        ("https://huggingface.co/me/one", "hf:OWNER/REPO"),
        ("https://example.org/m.onnx", "Download it"),
        ("s3://bucket/m.onnx", "Download it"),
    ],
)
def test_what_is_nearly_a_reference_is_told_how_it_is_written(source: str, hint: str) -> None:
    with pytest.raises(SourceError) as caught, sources.opened(source, print):
        pass
    assert hint in str(caught.value)
