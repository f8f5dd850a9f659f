"""Versions put on a real registry past the publisher's checks: refused where they would run, the old one serves on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelcast import digest
from modelcast.config import Connection
from modelcast.consumer import ModelClient
from modelcast.publisher.prepare import PreparedModel
from modelcast.publisher.session import RegistryWriter
from modelcast.records import FileEntry, Tolerance
from modelcast.registry.repository import init
from tests.brokers import Broker
from tests.unit import bad_versions
from tests.unit.registry_records import SIGNATURE

LONGEST_S = 60.0
Files = dict[str, bytes]


def good(folder: Path) -> Files:
    return {"model.onnx": bad_versions.graph(), "examples.npz": bad_versions.examples(folder)}


def prepared(folder: Path, make: Callable[[Path], Files]) -> PreparedModel:
    folder.mkdir()
    entries = []
    for path, data in sorted(make(folder).items()):
        (folder / path).write_bytes(data)
        entries.append(FileEntry(path, len(data), digest.of_bytes(data)))
    return PreparedModel(folder, tuple(entries), SIGNATURE, 10, {"": 17}, Tolerance(), None, {})


@pytest.fixture
def connection(broker: Broker, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Connection:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    return Connection.resolve(broker.bootstrap_servers, prefix=prefix, environment={})


@pytest.fixture
def registry(connection: Connection) -> Iterator[RegistryWriter]:
    with connection.open_log() as log:
        init(log, connection.topics)
        yield RegistryWriter(log, connection.topics)


@pytest.mark.parametrize(
    ("make", "reason", "words"),
    [
        pytest.param(bad_versions.env_as_tensor, "structure", "'.env'", id="f17-external-data"),
        pytest.param(bad_versions.newer_opset, "structure", "operator set 99", id="f18-newer-opset"),
        pytest.param(bad_versions.allocation_bomb, "smoke-run", "MiB of memory", id="f19-allocation-bomb"),
        pytest.param(bad_versions.golden_mismatch, "golden", "not reproduced", id="f23-golden-mismatch"),
    ],
)
def test_f17_f18_f19_f23_a_hostile_version_is_refused_and_the_live_one_serves_on(
    connection: Connection,
    registry: RegistryWriter,
    tmp_path: Path,
    make: Callable[[Path], Files],
    reason: str,
    words: str,
) -> None:
    registry.publish("fraud", prepared(tmp_path / "v1", good), release=True)
    with ModelClient(connection=connection, cache_dir=tmp_path / "cache", device="cpu") as models:
        fraud = models["fraud"]
        assert fraud.predict({"amount": [1.0], "age": [2.0]}).version == 1
        registry.publish("fraud", prepared(tmp_path / "v2", make), release=True)
        deadline = time.monotonic() + LONGEST_S
        while not fraud.refusals:
            assert time.monotonic() < deadline, "the hostile version was not refused"
            prediction = fraud.predict({"amount": [1.0], "age": [2.0]})
            assert (prediction.version, prediction["score"].tolist()) == (1, [3.5])
        (refusal,) = fraud.refusals
        assert (refusal.version, refusal.reason) == (2, reason)
        assert words in refusal.message
        assert fraud.predict({"amount": [1.0], "age": [2.0]}).version == 1
