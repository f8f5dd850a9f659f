"""What is remembered of the dev broker is trusted only as far as its process is there."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from modelcast.dev.folders import dev_state_dir
from modelcast.dev.process import Process, start_time
from modelcast.dev.state import STATE_FILE, DevState, running_bootstrap_servers


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path))
    dev_state_dir().mkdir()
    return dev_state_dir()


def this_process() -> Process:
    started = start_time(os.getpid())
    assert started is not None
    return Process(os.getpid(), started)


@pytest.mark.parametrize("process", [None, Process(4711, "long ago")])
def test_what_is_saved_is_loaded(folder: Path, process: Process | None) -> None:
    state = DevState(29_092, process, "2026-01-01T00:00:00+00:00", ready=True)
    state.save(folder)
    assert DevState.load(folder) == state


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"port": "x"}', json.dumps({"port": 1, "process": 5})])
def test_an_illegible_file_means_nothing_is_known(folder: Path, text: str) -> None:
    (folder / STATE_FILE).write_text(text)
    assert DevState.load(folder) is None
    assert running_bootstrap_servers() is None


def test_a_ready_broker_that_runs_has_an_address(folder: Path) -> None:
    DevState(29_092, this_process(), ready=True).save(folder)
    assert running_bootstrap_servers() == "127.0.0.1:29092"


@pytest.mark.parametrize(
    "state",
    [
        DevState(29_092),
        DevState(29_092, this_process(), ready=False),
        DevState(29_092, Process(os.getpid(), "before the last boot"), ready=True),
    ],
    ids=["stopped", "not-ready-yet", "recycled-pid"],
)
def test_else_it_has_none(folder: Path, state: DevState) -> None:
    state.save(folder)
    assert running_bootstrap_servers() is None


def test_without_a_file_it_has_none(folder: Path) -> None:
    assert running_bootstrap_servers() is None
