"""One host's processes and their cache, on a real broker: bytes travel once, and not again for a restart or a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelcast.config import Connection
from modelcast.consumer import ModelClient
from modelcast.files.cache import Cache, blobs_folder
from modelcast.kafka import KafkaLog
from modelcast.publisher.prepare import PreparedModel, prepare
from modelcast.publisher.session import RegistryWriter
from modelcast.records import FileEntry
from modelcast.registry.repository import init
from modelcast.topics import Topics
from tests.brokers import Broker
from tests.fetching import CountingLog
from tests.publishing import FIELDS, TIMEOUT_S, wide_model

ROOT = Path(__file__).resolve().parents[2]
ROWS = {"amount": [1.0, 3.0], "age": [2.0, 4.0]}
EXAMPLES = [{"amount": 1.0, "age": 2.0}, {"amount": 3.0, "age": 4.0}]
WIDTH = 1_500_000  # 12 MB of weights, in 23 chunks
PROCESSES = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    folder = tmp_path_factory.mktemp("model")
    return prepare(wide_model(WIDTH).SerializeToString(), EXAMPLES, fields=FIELDS, directory=folder)


@dataclass
class Host:
    """Processes that fetch one model of one repository into one cache."""

    connection: Connection
    folder: Path
    files: tuple[FileEntry, ...]
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.files)

    @property
    def cache_dir(self) -> Path:
        return self.folder / "cache"

    def start(self, *options: str) -> subprocess.Popen[str]:
        """One that is ready to fetch."""
        where = [self.connection.bootstrap_servers, self.connection.prefix, "fraud", str(self.cache_dir)]
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.fetching", *where, *options],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(child)
        assert child.stdout is not None
        assert child.stderr is not None
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        return child

    def client(self) -> ModelClient:
        return ModelClient(
            connection=self.connection, cache_dir=self.cache_dir, state_dir=self.folder / "state", device="cpu"
        )


def end(child: subprocess.Popen[str], status: int = 0) -> dict[str, Any]:
    out, err = child.communicate("go\n", timeout=TIMEOUT_S)
    assert child.returncode == status, err
    found: dict[str, Any] = json.loads(out) if status == 0 else {}
    return found


@pytest.fixture
def host(
    broker: Broker, prefix: str, tmp_path: Path, model: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Host]:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    connection = Connection.resolve(broker.bootstrap_servers, prefix=prefix)
    with KafkaLog(connection.settings) as log:
        init(log, connection.topics, blob_partitions=2)
        RegistryWriter(log, connection.topics).publish("fraud", model, release=True)
    made = Host(connection, tmp_path, model.files)
    yield made
    for child in made.started:
        child.kill()
        child.communicate()


def test_processes_of_a_host_fetch_a_version_once_between_them(host: Host) -> None:
    children = [host.start() for _ in range(PROCESSES)]
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    found = [end(child) for child in children]
    print(found)
    assert all(one["right"] for one in found)
    assert sorted(one["bytes"] for one in found) == [0] * (PROCESSES - 1) + [host.size]


def test_f38_a_fetch_killed_half_way_is_gone_on_with_and_leaves_nothing(host: Host) -> None:
    end(host.start(str(host.size // 2)), -signal.SIGKILL)
    whole = {path.name for path in blobs_folder(host.cache_dir).iterdir()}
    kept = sum(entry.size for entry in host.files if entry.digest.removeprefix("sha256:") in whole)
    assert 0 < kept < host.size
    found = end(host.start())
    assert found == {"bytes": host.size - kept, "right": True}
    Cache(host.cache_dir).close()
    left = {path.name for path in host.cache_dir.rglob("*") if path.is_file() and path.suffix not in {".lock", ".json"}}
    assert left == {entry.digest.removeprefix("sha256:") for entry in host.files}


def test_a_client_that_starts_with_a_warm_cache_reads_not_one_chunk(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs: list[CountingLog] = []

    def counting(connection: Connection) -> CountingLog:
        logs.append(CountingLog(KafkaLog(connection.settings), Topics(connection.prefix).blobs))
        return logs[-1]

    monkeypatch.setattr(Connection, "open_log", counting)
    for expected in (host.size, 0):
        with host.client() as client:
            assert client["fraud"].predict(ROWS).version == 1
        assert sum(log.bytes for log in logs) == expected
        logs.clear()
