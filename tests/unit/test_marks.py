"""What `consumer/state.py` promises: marks that only grow, per repository and model, over restarts and processes."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.consumer import state
from modelcast.consumer.state import MAX_FILE_BYTES, Marks
from modelcast.errors import ConfigError
from modelcast.names import ModelRef

from .control_rig import Rig
from .registry_records import REPOSITORY, manifest, release

UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER = "7c9e6679-7425-40de-944b-e07fc1f90ae7"


def test_a_model_never_seen_has_mark_0(tmp_path: Path) -> None:
    assert Marks(tmp_path).get(UUID, "fraud") == 0
    assert not list(tmp_path.iterdir())


def test_a_mark_survives_a_restart(tmp_path: Path) -> None:
    Marks(tmp_path).advance(UUID, "fraud", 7)
    assert Marks(tmp_path).get(UUID, "fraud") == 7


def test_a_repository_made_anew_starts_afresh(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    marks.advance(UUID, "fraud", 7)
    assert marks.get(OTHER, "fraud") == 0
    marks.advance(OTHER, "fraud", 1)
    assert Marks(tmp_path).get(UUID, "fraud") == 7


@given(st.lists(st.tuples(st.sampled_from(["fraud", "churn"]), st.integers(1, 50)), max_size=20))
def test_marks_are_the_maximum_of_what_was_seen(seen: list[tuple[str, int]]) -> None:
    marks = Marks(None)
    for model, sequence in seen:
        marks.advance(UUID, model, sequence)
    for model in ("fraud", "churn"):
        assert marks.get(UUID, model) == max([s for name, s in seen if name == model], default=0)


def test_a_second_process_does_not_turn_a_mark_back(tmp_path: Path) -> None:
    early, late = Marks(tmp_path), Marks(tmp_path)
    assert early.get(UUID, "fraud") == 0
    late.advance(UUID, "fraud", 9)
    early.advance(UUID, "fraud", 3)
    early.advance(UUID, "churn", 1)
    again = Marks(tmp_path)
    assert (again.get(UUID, "fraud"), again.get(UUID, "churn")) == (9, 1)
    assert early.get(UUID, "fraud") == 9


def _advance_many(folder: Path, model: str) -> None:
    marks = Marks(folder)
    for sequence in range(1, 31):
        marks.advance(UUID, model, sequence)


def test_processes_at_once_lose_no_mark(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_advance_many, args=(tmp_path, name)) for name in ("fraud", "churn")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert json.loads((tmp_path / "marks" / f"{UUID}.json").read_text()) == {"churn": 30, "fraud": 30}


@pytest.mark.parametrize("content", [b"", b"[]", b'{"fraud": "7"}', b'{"fraud": true}', b"\xff", b'{"fraud": 7'])
def test_a_damaged_file_is_an_error_and_not_mark_0(tmp_path: Path, content: bytes) -> None:
    Marks(tmp_path).advance(UUID, "fraud", 7)
    (tmp_path / "marks" / f"{UUID}.json").write_bytes(content)
    with pytest.raises(ConfigError, match="delete the file"):
        Marks(tmp_path).get(UUID, "fraud")


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "marks" / f"{UUID}.json"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigError, match="larger"):
        Marks(tmp_path).get(UUID, "fraud")


def test_a_folder_that_can_not_be_written_is_told_and_the_mark_counts_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "marks").write_text("a file where the folder should be")
    marks = Marks(tmp_path)
    with pytest.raises(ConfigError, match="state folder"):
        marks.advance(UUID, "fraud", 7)
    assert marks.get(UUID, "fraud") == 7


@pytest.mark.parametrize("repository", ["", "../../etc/passwd", "a/b", "x" * 65])
def test_a_repository_name_can_not_leave_the_folder(tmp_path: Path, repository: str) -> None:
    with pytest.raises(ConfigError, match="UUID"):
        Marks(tmp_path).get(repository, "fraud")


def test_models_first_seen_together_cost_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded before all marks are raised: of a thousand models, each in a write of its own, in 6 s."""
    writes: list[Path] = []

    def replace(path: Path, data: bytes, **_: bool) -> None:
        writes.append(path)
        path.write_bytes(data)

    monkeypatch.setattr(state, "replace_file", replace)
    models = [f"model-{number}" for number in range(20)]
    rig = Rig(tmp_path, refs=tuple(map(ModelRef, models)))
    rig.init()
    for model in models:
        rig.put(manifest(1, model=model), release(1, 1, model=model))
    rig.settle()
    rig.plane.close()
    assert len(writes) == 1
    assert [Marks(tmp_path).get(REPOSITORY.uuid, model) for model in models] == [1] * 20


def test_nothing_is_left_beside_the_marks(tmp_path: Path) -> None:
    marks = Marks(tmp_path)
    for sequence in (1, 2, 3):
        marks.advance(UUID, "fraud", sequence)
    assert {path.suffix for path in (tmp_path / "marks").iterdir()} <= {".json", ".lock"}
