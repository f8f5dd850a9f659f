"""Models of MLflow, from a real store: what is read, what it becomes, and what is said when it is not there."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import socket
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LinearRegression

from modelcast.errors import MissingExtraError, ModelcastError, NotFoundError, SourceError, StructureError
from modelcast.publisher import sources, tree
from modelcast.publisher.prepare import prepare
from modelcast.publisher.references import mlflow as place

mlflow = pytest.importorskip("mlflow")

LARGE = np.arange(tree.MIN_TENSOR_BYTES // 4, dtype=np.float32).reshape(2, -1)


def model(weights: np.ndarray = LARGE) -> onnx.ModelProto:
    """score = mean(x @ weights)"""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["wide"]),
        helper.make_node("ReduceMean", ["wide", "axis"], ["score"], keepdims=0),
    ]
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.int64([1]), "axis")],
    )
    return helper.make_model(body, ir_version=10, opset_imports=[helper.make_opsetid("", 21)], producer_name="maker")


@dataclass(frozen=True)
class Store:
    """What was logged: version 1 (`old`) and 2 (`champion`) of `fraud` as ONNX, `trees` as a pickle."""

    run: str
    model_id: str
    pickled: str


def logged(kind: str, name: str, logs: Any, **options: Any) -> tuple[str, str]:
    with mlflow.start_run() as run:
        getattr(mlflow, kind).log_model(logs, name=name, pip_requirements=["onnx"], **options)
        mlflow.log_metrics({"auc": 0.9, "system/memory": 5.0, "broken": float("nan")})
        (output,) = mlflow.MlflowClient().get_run(run.info.run_id).outputs.model_outputs
        return run.info.run_id, output.model_id


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store in a folder, which mlflow-skinny reads and writes without a database."""
    settings = {
        "MLFLOW_TRACKING_URI": (tmp_path_factory.mktemp("mlflow") / "store").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, value in settings.items():
            patch.setenv(name, value)
        import mlflow.onnx
        import mlflow.sklearn

        logged("onnx", "model", model(LARGE + 1), registered_model_name="fraud")
        run, model_id = logged("onnx", "model", model(), registered_model_name="fraud", save_as_external_data=True)
        pickled, _ = logged(
            "sklearn",
            "trees",
            LinearRegression().fit([[1.0, 2.0], [2.0, 1.0]], [1, 2]),
            registered_model_name="trees",
            serialization_format="cloudpickle",
        )
        with mlflow.start_run(pickled):
            (tmp_path_factory.getbasetemp() / "plain.onnx").write_bytes(model().SerializeToString())
            mlflow.log_artifact(str(tmp_path_factory.getbasetemp() / "plain.onnx"), "graphs")
        client = mlflow.MlflowClient()
        client.set_registered_model_alias("fraud", "champion", 2)
        client.set_registered_model_alias("fraud", "old", 1)
        yield Store(run, model_id, pickled)
        mlflow.set_tracking_uri(None)


@contextlib.contextmanager
def opened(reference: str, *, trust_pickle: bool = False) -> Iterator[tuple[sources.Opened, list[str]]]:
    told: list[str] = []
    with sources.opened(reference, told.append, trust_pickle=trust_pickle) as found:
        yield found, told


def failure(reference: str, kind: type[ModelcastError]) -> str:
    with pytest.raises(kind) as caught, opened(reference):
        pass
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return str(caught.value)


@pytest.mark.parametrize("last", ["@champion", "/2", "/latest"])
def test_a_registered_model_by_alias_number_or_the_latest(store: Store, last: str) -> None:
    with opened(f"mlflow:models:/fraud{last}") as (found, told):
        assert found.origin == {"mlflow": "models:/fraud/2", "mlflow-run": store.run}
        assert told == ([] if last == "/2" else [f"models:/fraud{last} is models:/fraud/2"])
        folder = found.model.folder
        # The model's own files and nothing else: no pickle, no environment, no code.
        (graph, weights) = sorted(path.name for path in folder.iterdir())
        assert {graph, weights} == {"model.onnx", *tree.locations(found.model.model)}
        made = folder.parent / "tree"
        made.mkdir()
        tree.write(found.model.model, folder, made)
        written = tree.paths(made)
        assert (made / written[1]).read_bytes() == LARGE.tobytes()
    assert not folder.exists()


def test_other_versions_are_other_models(store: Store) -> None:
    with opened("mlflow:models:/fraud@old") as (found, _):
        assert found.origin["mlflow"] == "models:/fraud/1"
        tensor = next(entry for entry in found.model.model.graph.initializer if entry.name == "w")
        with (found.model.folder / tree.locations(found.model.model)[0]).open("rb") as file:
            file.seek(int(next((entry.value for entry in tensor.external_data if entry.key == "offset"), "0")))
            assert np.frombuffer(file.read(8), "<f4").tolist() == [1.0, 2.0]


@pytest.mark.parametrize("reference", ["models:/{model_id}", "runs:/{run}/model", "runs:/{pickled}/graphs/plain.onnx"])
def test_a_model_that_was_logged_and_not_registered(store: Store, reference: str) -> None:
    place = reference.format(**vars(store))
    with opened(f"mlflow:{place}") as (found, _):
        run = store.pickled if "plain" in reference else store.run
        assert found.origin == {"mlflow": place, "mlflow-run": run}
        assert found.model.frameworks == {"maker": ""}


def test_a_version_knows_where_it_is_from_and_what_its_run_measured(store: Store, tmp_path: Path) -> None:
    prepared = prepare(
        "mlflow:models:/fraud@champion", {"x": np.float32([[1, 2], [3, 4]])}, fields=["a", "b"], directory=tmp_path
    )
    assert prepared.metrics == {"auc": 0.9}
    assert prepared.frameworks["mlflow"] == "models:/fraud/2"
    assert prepared.frameworks["mlflow-run"] == store.run
    assert len(prepared.files) == 3


def test_a_pickle_is_read_on_demand_only(store: Store) -> None:
    text = failure("mlflow:models:/trees/1", SourceError)
    assert "no onnx flavour; it has python_function, sklearn" in text
    assert "--trust-pickle" in text
    assert "runs their code" in text
    with opened("mlflow:models:/trees/1", trust_pickle=True) as (found, _):
        assert isinstance(found.model, LinearRegression)
        assert found.metrics == {"auc": 0.9}
    with opened("mlflow:models:/fraud/2", trust_pickle=True) as (found, _):
        assert isinstance(found.model, sources.Candidate)


@pytest.mark.parametrize(
    ("reference", "kind", "said"),
    [
        ("models:/nobody/1", NotFoundError, "nobody"),
        ("models:/nobody@champion", NotFoundError, "nobody"),
        ("models:/nobody/latest", NotFoundError, "nobody"),
        ("models:/fraud/77", NotFoundError, "77"),
        ("models:/fraud@best", NotFoundError, r"no alias 'best'; it has champion \(version 2\), old \(version 1\)"),
        ("models:/fraud/Production", SourceError, "stages are gone"),
        ("models:/fraud", SourceError, "names no version"),
        ("models:/m-0123456789abcdef", NotFoundError, "m-0123456789abcdef"),
        ("models:/", SourceError, "is not a reference"),
        ("fraud@champion", SourceError, "is not a reference"),
        ("models:/fraud/2/model.onnx", SourceError, "is not a reference"),
        ("runs:/0123456789abcdef0123456789abcdef/model", NotFoundError, "0123456789abcdef"),
        ("runs:/{run}", SourceError, r"no model in it. Name one of what it has: mlflow:runs:/\w+/model\."),
        ("runs:/{run}/moodel", NotFoundError, r"no MLmodel file. Name one of what it has: mlflow:runs:/\w+/model\."),
        ("runs:/{pickled}/graphs/none.onnx", NotFoundError, "none.onnx"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(
    store: Store, reference: str, kind: type[ModelcastError], said: str
) -> None:
    assert re.search(said, failure(f"mlflow:{reference.format(**vars(store))}", kind))


def test_a_server_that_is_not_there_is_told_from_a_model_that_is_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    text = failure("mlflow:models:/fraud@champion", SourceError)
    assert f"http://127.0.0.1:{port} can't be reached" in text
    assert "MLFLOW_TRACKING_URI" in text
    assert "secret" not in text


def test_a_store_that_takes_more_of_mlflow_is_an_install_line(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("sqlalchemy"):
        pytest.skip("sqlalchemy is installed, and MLflow reads databases")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////nowhere.db")
    assert "pip install mlflow" in failure("mlflow:models:/fraud/1", MissingExtraError)


def test_without_mlflow_there_is_an_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert "pip install 'modelcast[mlflow]'" in failure("mlflow:models:/fraud/1", MissingExtraError)


def test_the_environment_stays_as_it_was(store: Store) -> None:
    before = dict(os.environ)
    with opened("mlflow:models:/fraud/1"):
        pass
    failure("mlflow:models:/fraud/9", NotFoundError)
    assert dict(os.environ) == before


def written(folder: Path, text: str) -> Path:
    (folder / place.MLMODEL).write_text(text)
    return folder


def test_a_folder_that_mlflow_wrote_is_its_onnx_flavour(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(model().SerializeToString())
    found = sources.load(written(tmp_path, "flavors: {onnx: {data: model.onnx}, python_function: {}}"), print)
    assert found.folder == tmp_path


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("flavors: {xgboost: {data: model.ubj}}", SourceError, r"it has xgboost.*mlflow\.xgboost\.load_model"),
        ("flavors: {python_function: {}}", SourceError, "it has python_function.*log_model"),
        ("flavors: {}", SourceError, "it has none"),
        ("flavors: {sklearn: {pickled_model: m.pkl}}", SourceError, "--trust-pickle"),
        ("flavors: {sklearn: {pickled_model: m.skops, serialization_format: skops}}", SourceError, "skops' format"),
        ("flavors: {onnx: {data: ../../secret.onnx}}", StructureError, "outside"),
        ("flavors: {onnx: {data: /etc/passwd}}", StructureError, "outside"),
        ("flavors: {onnx: {data: model.pkl}}", SourceError, "'model.pkl' as its graph"),
        ("flavors: {onnx: {}}", SourceError, "does not name"),
        ("flavors: 3", SourceError, "names no flavours"),
        ("x: [", SourceError, "names no flavours"),
        ("", SourceError, "names no flavours"),
        ("!!python/object/apply:os.system ['true']", SourceError, "names no flavours"),
    ],
)
def test_what_a_folder_of_mlflow_lacks_is_said(
    tmp_path: Path, text: str, kind: type[ModelcastError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        sources.load(written(tmp_path, text), print)
    assert re.search(said, str(caught.value))
    assert str(tmp_path) in caught.value.message


def test_a_description_of_any_size_is_not_parsed(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="more than"):
        sources.load(written(tmp_path, "#" * (place.MAX_MLMODEL_BYTES + 1)), print)
