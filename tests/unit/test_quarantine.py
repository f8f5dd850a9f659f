"""What `consumer/quarantine.py` promises: what killed its loader twice is left alone, and nothing else is."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from modelcast.consumer.loading import Job, LoadWorker
from modelcast.consumer.policy import Basis, Load
from modelcast.consumer.quarantine import EXPIRY_S, Quarantine
from modelcast.consumer.slot import VersionKey
from modelcast.errors import LoadError, QuarantinedError
from modelcast.names import ModelRef
from modelcast.registry.image import VersionRecord

from .control_rig import DEADLINE_S, FakeServable, wait_until
from .registry_records import manifest

SPAWN = multiprocessing.get_context("spawn")


def _die_loading(folder: Path, version: int) -> None:
    with Quarantine(folder).guard(manifest(version)):
        os._exit(9)


def _exit_loading(folder: Path, version: int) -> None:
    context = Quarantine(folder).guard(manifest(version))
    context.__enter__()
    sys.exit(0)


def _hold_loading(folder: Path, version: int, held: object, end: object) -> None:
    with Quarantine(folder).guard(manifest(version)):
        held.set()
        end.wait(60)


def in_child(target: object, *arguments: object) -> None:
    process = SPAWN.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode is not None


def may_load(folder: Path, version: int = 1, **options: object) -> bool:
    try:
        with Quarantine(folder, **options).guard(manifest(version)):
            return True
    except QuarantinedError:
        return False


def test_f20_content_that_killed_its_loader_twice_is_quarantined(tmp_path: Path) -> None:
    in_child(_die_loading, tmp_path, 1)
    assert may_load(tmp_path), "one death may be chance"
    in_child(_die_loading, tmp_path, 1)
    with (
        pytest.raises(QuarantinedError, match="fraud@1 is in quarantine: 2 processes died"),
        Quarantine(tmp_path).guard(manifest(1)),
    ):
        pass
    assert may_load(tmp_path, 2), "another version is another content"


def test_the_same_content_under_another_number_stays_quarantined(tmp_path: Path) -> None:
    for _ in range(2):
        in_child(_die_loading, tmp_path, 1)
    twin = replace(manifest(2), files=manifest(1).files)
    with pytest.raises(QuarantinedError), Quarantine(tmp_path).guard(twin):
        pass


def test_f21_quarantine_ends_by_itself(tmp_path: Path) -> None:
    for _ in range(2):
        in_child(_die_loading, tmp_path, 1)
    assert not may_load(tmp_path)
    assert may_load(tmp_path, now_s=lambda: time.time() + EXPIRY_S + 1)
    assert may_load(tmp_path), "what expired is forgotten"


def test_a_load_that_fails_or_ends_leaves_nothing(tmp_path: Path) -> None:
    for error in (LoadError("no memory"), ValueError("odd")):
        for _ in range(3):
            with pytest.raises(type(error)), Quarantine(tmp_path).guard(manifest(1)):
                raise error
    assert may_load(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_process_that_exits_while_it_loads_did_not_die_of_it(tmp_path: Path) -> None:
    for _ in range(3):
        in_child(_exit_loading, tmp_path, 1)
    assert may_load(tmp_path)


def test_processes_that_load_at_the_same_time_count_for_nothing(tmp_path: Path) -> None:
    end, helds = SPAWN.Event(), [SPAWN.Event() for _ in range(3)]
    processes = [SPAWN.Process(target=_hold_loading, args=(tmp_path, 1, held, end)) for held in helds]
    for process in processes:
        process.start()
    assert all(held.wait(60) for held in helds)
    assert may_load(tmp_path)
    end.set()
    for process in processes:
        process.join(60)


def test_a_folder_that_can_not_be_written_stops_no_load(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "loading").write_text("a file where the folder should be")
    assert may_load(tmp_path)
    assert "fraud@1 is loaded without a mark" in caplog.text


def test_without_a_folder_nothing_is_guarded() -> None:
    with Quarantine(None).guard(manifest(1)):
        pass


def _worker_that_dies(folder: Path) -> None:
    class Deadly:
        def load(self, record: VersionRecord, fields: object) -> FakeServable:
            os._exit(9)

    _load(folder, Deadly())
    time.sleep(60)


def _load(folder: Path, loader: object) -> LoadWorker:
    worker = LoadWorker(loader, Quarantine(folder))
    record = VersionRecord(manifest(1), (), 1)
    worker.submit(Job(ModelRef("fraud"), Load(VersionKey("r", record.manifest.id), record, Basis(1, 1, 0)), None))
    return worker


def test_f21_a_worker_does_not_load_what_killed_its_predecessors(tmp_path: Path) -> None:
    calls = []

    class Counting:
        def load(self, record: VersionRecord, fields: object) -> FakeServable:
            calls.append(record)
            return FakeServable(record.manifest)

    for _ in range(2):
        in_child(_worker_that_dies, tmp_path)
    worker = _load(tmp_path, Counting())
    outcomes = []
    wait_until(lambda: outcomes.append(worker.collect()) or outcomes[-1], "the outcome")
    assert isinstance(outcomes[-1].error, QuarantinedError)
    assert not calls
    assert worker.close(DEADLINE_S)
