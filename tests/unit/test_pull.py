"""A version in a folder: whole, verified, and nothing of anybody's lost."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelcast import digest, golden
from modelcast.errors import UsageError, VersionNotFoundError
from modelcast.files import pull as pulling
from modelcast.files.pull import Pulled, pull_version
from modelcast.files.store_url import Stores
from modelcast.names import ModelRef
from modelcast.publisher.prepare import PreparedModel, prepare
from modelcast.publisher.session import RegistryWriter
from modelcast.records import FileEntry, content_digest
from modelcast.registry.repository import init
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

TOPICS = Topics("test")
# Above what stays inside the graph, so that there is a file of a tensor.
WIDTH = 40_000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    weights = np.random.default_rng(1).random((2, WIDTH), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("ReduceMean", ["product", "axis"], ["score"], keepdims=0),
        ],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([1], np.int64), "axis")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    rows = {"a": [1.0, 3.0, 5.0], "b": [2.0, 4.0, 6.0]}
    return prepare(model, rows, fields=["a", "b"], directory=tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def log(prepared: PreparedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryLog]:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path / "cache"))
    with MemoryLog() as made:
        init(made, TOPICS)
        RegistryWriter(made, TOPICS).publish("wide", prepared, release=True, metrics={"auc": 0.9})
        RegistryWriter(made, TOPICS).publish("wide", prepared, release=False)
        yield made


def pull(log: MemoryLog, directory: Path, ref: str = "wide", *, force: bool = False) -> Pulled:
    return pull_version(log, TOPICS, ModelRef.parse(ref), directory, force=force, stores=Stores.of(()))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_was_pulled_runs_anywhere_and_is_what_was_published(log: MemoryLog, tmp_path: Path) -> None:
    pulled = pull(log, tmp_path / "models" / "wide")
    assert pulled.directory == tmp_path / "models" / "wide"
    entries = []
    for entry in pulled.manifest.files:
        path = pulled.directory / entry.path
        assert os.access(path, os.W_OK)
        entries.append(FileEntry(entry.path, path.stat().st_size, digest.of_bytes(path.read_bytes())))
    assert content_digest(tuple(entries)) == pulled.manifest.digest
    assert len(entries) == 3, "a graph, a tensor, the examples"
    examples = golden.read(pulled.directory / "examples.npz")
    session = onnxruntime.InferenceSession(pulled.graph)
    np.testing.assert_allclose(session.run(None, dict(examples.inputs))[0], examples.outputs["score"], rtol=1e-5)
    told = json.loads((pulled.directory / "manifest.json").read_text())
    assert (told["model"], told["version"], told["digest"]) == ("wide", 1, pulled.manifest.digest)
    assert told["metrics"] == {"auc": 0.9}
    assert told["inputs"][0]["fields"] == ["a", "b"]
    assert names(tmp_path / "models") == ["wide"]


def test_writing_to_what_was_pulled_harms_no_cache(log: MemoryLog, tmp_path: Path) -> None:
    first = pull(log, tmp_path / "one")
    first.graph.write_bytes(b"mine now")
    assert pull(log, tmp_path / "two").graph.read_bytes() != b"mine now"


def test_an_empty_folder_is_taken_and_a_pulled_one_only_by_force(log: MemoryLog, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert pull(log, tmp_path / "out").manifest.version == 1
    with pytest.raises(UsageError, match="holds a pulled version") as refused:
        pull(log, tmp_path / "out", "wide@2")
    assert "--force" in (refused.value.hint or "")
    assert pull(log, tmp_path / "out", "wide@2", force=True).manifest.version == 2
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["version"] == 2
    assert [name for name in names(tmp_path) if "out" in name] == ["out"]


def test_what_no_pull_put_there_is_never_touched(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    for force in (False, True):
        with pytest.raises(UsageError, match=r"holds what no pull put there, such as 'thesis.txt'"):
            pull(log, tmp_path / "home", force=force)
    pull(log, tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"such as 'notes.txt'"):
        pull(log, tmp_path / "out", force=True)
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    for name in ("file", "link"):
        with pytest.raises(UsageError, match="is not a folder"):
            pull(log, tmp_path / name, force=True)
    monkeypatch.chdir(tmp_path / "home")
    for place in (Path(), tmp_path):
        with pytest.raises(UsageError, match="is the folder you are in"):
            pull(log, place, force=True)


@pytest.mark.parametrize("force", [False, True])
def test_a_pull_that_is_interrupted_leaves_what_was_there(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    place = tmp_path / "place"
    if force:
        pull(log, place / "out")
    copied = iter([False, True])

    def copy_until_interrupted(source: Path, target: Path) -> None:
        if next(copied):
            raise KeyboardInterrupt
        target.write_bytes(source.read_bytes())

    with monkeypatch.context() as patch:
        patch.setattr(pulling.shutil, "copyfile", copy_until_interrupted)
        with pytest.raises(KeyboardInterrupt):
            pull(log, place / "out", "wide@2", force=force)
    assert place.exists() == force, "folders it made on the way are gone too"
    if force:
        assert names(place) == ["out"]
        assert json.loads((place / "out" / "manifest.json").read_text())["version"] == 1


def test_a_replacement_that_fails_gives_the_old_folder_back(
    log: MemoryLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    pull(log, place / "out")
    rename = Path.rename

    def fail_the_last(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_the_last)
    with pytest.raises(UsageError, match="can't write .*: Input/output error"):
        pull(log, place / "out", "wide@2", force=True)
    assert names(place) == ["out"]
    assert json.loads((place / "out" / "manifest.json").read_text())["version"] == 1


def test_files_damaged_in_the_cache_are_fetched_anew(log: MemoryLog, tmp_path: Path) -> None:
    pull(log, tmp_path / "once")
    for blob in (tmp_path / "cache" / "models" / "blobs" / "sha256").iterdir():
        blob.chmod(0o600)
        blob.write_bytes(b"\0" * blob.stat().st_size)  # as a failing disk would have it
    again = pull(log, tmp_path / "again")
    for entry in again.manifest.files:
        assert digest.of_bytes((again.directory / entry.path).read_bytes()) == entry.digest


def test_what_is_not_there_is_said_before_a_folder_is_made(log: MemoryLog, tmp_path: Path) -> None:
    with pytest.raises(VersionNotFoundError):
        pull(log, tmp_path / "place" / "out", "wide@9")
    assert not (tmp_path / "place").exists()


def test_pull_is_found_where_people_look() -> None:
    import modelcast

    assert modelcast.pull is pulling.pull
    assert modelcast.Pulled is Pulled
    with pytest.raises(AttributeError, match="no attribute 'push'"):
        _ = modelcast.push
