"""A client and its cache: what is damaged, deleted, read-only or full costs a fetch or a wait, never the live model."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcast import digest
from modelcast.consumer import ModelClient
from modelcast.errors import CacheError
from modelcast.files.cache import Cache, blobs_folder
from modelcast.files.fetch import Fetcher
from modelcast.log import Log, LogReader
from modelcast.publisher.prepare import PreparedModel, prepare
from modelcast.publisher.session import RegistryWriter
from modelcast.records import Refusal
from modelcast.registry.repository import init
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics
from tests.publishing import FIELDS, image, wide_model

from .control_rig import wait_until

ROWS = {"amount": [1.0, 3.0], "age": [2.0, 4.0]}
EXAMPLES = [{"amount": 1.0, "age": 2.0}, {"amount": 3.0, "age": 4.0}]
# A model of 0.8 MB on a disk of 2 MiB: one fits beside another, but not beside `FILLER_BYTES`.
WIDTH = 100_000
DISK_BYTES = 2 << 20
FILLER_BYTES = 1_000_000


class CountingLog:
    """A log that counts what is asked of one topic."""

    def __init__(self, log: MemoryLog, topic: str) -> None:
        self._log, self._topic = log, topic
        self.asked = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def reader(self, topic: str, *args: object, **kwargs: object) -> LogReader:
        self.asked += topic == self._topic
        return self._log.reader(topic, *args, **kwargs)

    def begin_offsets(self, topic: str) -> object:
        self.asked += topic == self._topic
        return self._log.begin_offsets(topic)

    def end_offsets(self, topic: str, **kwargs: object) -> object:
        self.asked += topic == self._topic
        return self._log.end_offsets(topic, **kwargs)

    def close(self) -> None:
        """A client's end is not this log's."""


class Stage:
    """A repository in memory with one model, and clients that share a cache."""

    def __init__(self, folder: Path, prepared: list[PreparedModel]) -> None:
        self.folder = folder
        self.cache_dir = folder / "cache"
        self.topics = Topics("t")
        memory = MemoryLog()
        init(memory, self.topics, blob_partitions=2)
        self.log = CountingLog(memory, self.topics.blobs)
        self.writer = RegistryWriter(memory, self.topics)
        self._prepared = iter(prepared)

    def open_log(self) -> Log:
        return self.log

    def publish(self) -> None:
        self.writer.publish("fraud", next(self._prepared), release=True)

    def client(self) -> ModelClient:
        return ModelClient(connection=self, cache_dir=self.cache_dir, state_dir=self.folder / "state", device="cpu")

    def blobs(self) -> list[Path]:
        return sorted(blobs_folder(self.cache_dir).iterdir())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> list[PreparedModel]:
    """Two versions that share no large file."""
    made = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("source")
        source = wide_model(WIDTH, seed=seed).SerializeToString()
        made.append(prepare(source, EXAMPLES, fields=FIELDS, directory=folder))
    return made


@pytest.fixture
def stage(tmp_path: Path, prepared: list[PreparedModel], monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    made = Stage(tmp_path, prepared)
    made.publish()
    return made


@pytest.fixture
def disk(stage: Stage) -> Iterator[Path]:
    """The cache on a disk of its own, and a small one."""
    folder = stage.cache_dir
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=700", "modelcast-test", str(folder)]
    if os.geteuid() != 0 or mount is None:
        pytest.skip("only root can mount a small disk")
    if subprocess.run([mount, *options], check=False, capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a disk")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing can be written by this path meanwhile; what is open stays open."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def refused(client: ModelClient, version: int) -> list[Refusal]:
    return [refusal for refusal in client["fraud"].refusals if refusal.version == version]


def test_a_restart_with_a_warm_cache_reads_nothing_of_the_blobs_topic(stage: Stage) -> None:
    with stage.client() as client:
        scores = client["fraud"].predict(ROWS)["score"].tolist()
    assert stage.log.asked > 0
    stage.log.asked = 0
    with stage.client() as client:
        assert client["fraud"].predict(ROWS)["score"].tolist() == scores
    assert stage.log.asked == 0


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


def test_f38_files_damaged_or_deleted_between_two_starts_are_fetched_again(stage: Stage) -> None:
    with stage.client() as client:
        scores = client["fraud"].predict(ROWS)["score"].tolist()
    for path, damage in zip(stage.blobs(), (flip, cut, Path.unlink), strict=True):
        damage(path)
    stage.log.asked = 0
    with stage.client() as client:
        assert client["fraud"].predict(ROWS)["score"].tolist() == scores
    assert stage.log.asked > 0


def test_f38_a_cache_that_is_deleted_in_use_leaves_the_live_version_and_takes_the_next(stage: Stage) -> None:
    with stage.client() as client:
        fraud = client["fraud"]
        scores = fraud.predict(ROWS)["score"].tolist()
        shutil.rmtree(stage.cache_dir)
        assert fraud.predict(ROWS)["score"].tolist() == scores
        stage.publish()
        wait_until(lambda: fraud.version == 2, "version 2 to be live")
        assert fraud.predict(ROWS).version == 2
    with stage.client() as client:
        assert client["fraud"].version == 2


def test_f44_a_live_file_replaced_or_removed_by_others_goes_on_scoring(stage: Stage) -> None:
    """What our own writers do to a file, they do by rename: a mapped one never changes."""
    with stage.client() as client:
        fraud = client["fraud"]
        scores = fraud.predict(ROWS)["score"].tolist()
        for path in stage.blobs():
            path.rename(path.with_name("gone"))
            path.write_bytes(b"damage")
        assert fraud.predict(ROWS)["score"].tolist() == scores
        with stage.client() as other:  # as another process that has to load the same version
            assert other["fraud"].predict(ROWS)["score"].tolist() == scores
        assert fraud.predict(ROWS)["score"].tolist() == scores


def test_f38_a_full_disk_keeps_the_live_version_says_why_and_takes_the_next_once_there_is_room(
    stage: Stage, disk: Path
) -> None:
    with stage.client() as client:
        fraud = client["fraud"]
        assert fraud.version == 1
        (disk / "filler").write_bytes(bytes(FILLER_BYTES))
        stage.publish()
        wait_until(lambda: refused(client, 2), "the refusal")
        assert refused(client, 2)[-1].reason == "disk"
        assert re.search(r"need \d+ bytes.* has \d+ free.*Free some space", refused(client, 2)[-1].message)
        assert fraud.predict(ROWS).version == 1
        (disk / "filler").unlink()
        wait_until(lambda: fraud.version == 2, "version 2 to be live")
        assert [path for path in stage.cache_dir.rglob("*~") if path.is_file()] == []


def test_f38_unused_versions_give_way_to_a_new_one_on_a_small_disk(stage: Stage, disk: Path) -> None:
    with stage.client() as client:
        assert client["fraud"].version == 1
    (disk / "filler").write_bytes(bytes(FILLER_BYTES))
    stage.publish()
    with stage.client() as client:  # version 1 lies there, and nobody uses it
        assert client["fraud"].version == 2


def test_f38_a_disk_that_becomes_read_only_keeps_the_live_version_and_heals(stage: Stage, disk: Path) -> None:
    with stage.client() as client:
        fraud = client["fraud"]
        assert fraud.version == 1
        with read_only(disk):
            stage.publish()
            wait_until(lambda: refused(client, 2), "the refusal")
            assert "can't be written: Read-only file system" in refused(client, 2)[-1].message
            assert fraud.predict(ROWS).version == 1
        wait_until(lambda: fraud.version == 2, "version 2 to be live")


def test_f38_a_cache_that_is_read_only_at_the_start_is_told_with_its_remedy(stage: Stage, disk: Path) -> None:
    with (
        read_only(disk),
        pytest.raises(CacheError, match=r"can't be written: Read-only file system.*MODELCAST_CACHE_DIR"),
    ):
        stage.client()


def test_f38_a_disk_that_fills_while_a_file_is_written_leaves_nothing_of_it(
    stage: Stage, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = image(stage.log, stage.topics).models["fraud"].version(1)
    (disk / "filler").write_bytes(bytes(DISK_BYTES - WIDTH * 4))
    usage = shutil.disk_usage(disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=DISK_BYTES))  # somebody was faster
    with contextlib.closing(Cache(disk)) as cache:
        with pytest.raises(CacheError, match=r"can't be written: No space left on device.*Free some space"):
            Fetcher(stage.log, stage.topics, cache).fetch(record)
        left = {path.name for path in disk.rglob("*") if path.is_file() and path.suffix != ".lock"}
        assert left - {"filler"} < {digest.hex_part(entry.digest) for entry in record.manifest.files}
        (disk / "filler").unlink()
        view = Fetcher(stage.log, stage.topics, cache).fetch(record)
        assert all(digest.of_file(view / entry.path) == entry.digest for entry in record.manifest.files)
