"""`ModelClient` on a real broker: how soon a release is live, and what becomes of it when Kafka or the topic goes."""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from modelcast import codec
from modelcast.config import Connection
from modelcast.consumer import ModelClient, following
from modelcast.errors import BrokerError, RepositoryNotFoundError
from modelcast.publisher.session import RegistryWriter
from modelcast.records import InstanceStatus, ModelState
from modelcast.registry.repository import init
from tests.brokers import Broker
from tests.machine import Stopwatch
from tests.unit.control_rig import wait_until
from tests.unit.linear_model import linear_model

ROWS = {"amount": [1.0, 2.0], "age": [10, 20]}
LONGEST_S = 180.0


class Repository:
    """A repository on a broker, with a publisher of linear models and clients on folders of their own."""

    def __init__(self, broker: Broker, prefix: str, folder: Path) -> None:
        self.connection = Connection.resolve(broker.bootstrap_servers, prefix=prefix)
        self.folder = folder
        self.log = self.connection.open_log()
        init(self.log, self.connection.topics, blob_partitions=2)
        self.writer = RegistryWriter(self.log, self.connection.topics)
        self.count = 0

    def publish(self, bias: float) -> int:
        self.count += 1
        prepared = linear_model(self.folder / f"source-{self.count}", bias)
        return self.writer.publish("fraud", prepared, release=True).manifest.version

    def client(self) -> ModelClient:
        return ModelClient(
            connection=self.connection,
            cache_dir=self.folder / "cache",
            state_dir=self.folder / "state",
            device="cpu",
            instance="tested",
        )

    def statuses(self) -> list[InstanceStatus]:
        topic = self.connection.topics.status
        ends = self.log.end_offsets(topic, committed=True)
        reader = self.log.reader(topic, {0: 0})
        found = []
        while reader.position(0) < ends[0]:
            found += [codec.decode_status(record.value) for record in reader.poll(0.1)]
        reader.close()
        return found


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def repository(broker: Broker, prefix: str, tmp_path: Path) -> Repository:
    return Repository(broker, prefix, tmp_path)


@pytest.fixture
def own_repository(own_broker: Broker, prefix: str, tmp_path: Path) -> Iterator[Repository]:
    return Repository(own_broker, prefix, tmp_path)


def test_publish_to_live_takes_at_most_a_second_in_the_median(repository: Repository) -> None:
    took_ms, in_time = [], 0
    repository.publish(0.0)
    with repository.client() as client:
        fraud = client["fraud"]
        for version in range(2, 12):
            repository.publish(float(version))
            watch = Stopwatch()
            wait_until(lambda v=version: fraud.version == v, f"version {version} to be live")
            took_ms.append(watch.took_s * 1000)
            in_time += watch.allows(watch.took_s, 1.0)
            assert fraud.predict(ROWS)["score"].tolist() == [11.0 + version, 22.0 + version]
    print(f"\npublish to live: median {statistics.median(took_ms):.0f} ms, longest {max(took_ms):.0f} ms")
    assert in_time >= len(took_ms) / 2, "not in the median"


def test_the_status_topic_tells_what_is_live_and_that_it_stopped(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelcast.consumer.status.CLOSE_TIMEOUT_S", LONGEST_S)  # the last status is worth a long wait
    repository.publish(100.0)
    with repository.client() as client:
        client["fraud"].predict(ROWS)
        wait_until(lambda: any(s.models and s.models[0].state is ModelState.LIVE for s in repository.statuses()), "it")
    wait_until(lambda: repository.statuses()[-1].ended, "the last status")
    last = repository.statuses()[-1]
    assert (last.instance, last.role, last.models[0].state) == ("tested", "client", ModelState.STOPPED)
    live = next(s.models[0] for s in reversed(repository.statuses()) if s.models[0].state is ModelState.LIVE)
    assert live.live_version == 1
    assert live.load_ms > 0
    assert live.release_to_live_ms is not None


def test_no_repository_is_told_with_its_remedy(broker: Broker, prefix: str, tmp_path: Path) -> None:
    with (
        ModelClient(
            broker.bootstrap_servers, prefix=prefix, cache_dir=tmp_path / "cache", state_dir=tmp_path / "state"
        ) as client,
        pytest.raises(RepositoryNotFoundError, match="modelcast init"),
    ):
        client["fraud"]


def test_an_absent_broker_is_told_within_the_time_given(tmp_path: Path) -> None:
    with (
        ModelClient("localhost:9", cache_dir=tmp_path / "cache", state_dir=tmp_path / "state", timeout_s=2.0) as client,
        pytest.raises(BrokerError),
    ):
        client["fraud"]


def test_a_broker_that_dies_leaves_the_model_and_its_return_brings_the_next(
    own_repository: Repository, own_broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PROBE_S", 0.5)
    own_repository.publish(100.0)
    with own_repository.client() as client:
        fraud = client["fraud"]
        own_broker.kill()
        wait_until(lambda: client.stale_s > 0, "the client to notice", LONGEST_S)
        assert fraud.predict(ROWS)["score"].tolist() == [111.0, 122.0]
        own_broker.restart()
        own_repository.publish(200.0)
        wait_until(lambda: fraud.version == 2, "version 2 to be live", LONGEST_S)
        wait_until(lambda: client.stale_s == 0, "the client to be well again", LONGEST_S)


def test_f39_a_registry_made_anew_under_a_running_client_leaves_the_model_and_starts_afresh(
    repository: Repository, broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(following, "PROBE_S", 0.5)
    for bias in (100.0, 200.0, 300.0):
        repository.publish(bias)
    with repository.client() as client:
        fraud = client["fraud"]
        before = client.status.repository
        registry = repository.connection.topics.registry
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        admin.delete_topics([registry])[registry].result()
        wait_until(lambda: client.stale_s > 0, "the client to notice", LONGEST_S)
        assert fraud.predict(ROWS).version == 3
        init(repository.log, repository.connection.topics, blob_partitions=2)
        wait_until(lambda: client.status.repository != before, "the new repository", LONGEST_S)
        assert fraud.predict(ROWS).version == 3
        assert "another repository" in caplog.text
        repository.publish(400.0)
        wait_until(lambda: fraud.version == 1, "version 1 of the new repository", LONGEST_S)
        assert fraud.predict(ROWS)["score"].tolist() == [411.0, 422.0]


def test_forks_are_told_and_end_in_peace_and_can_make_a_client_of_their_own(
    repository: Repository, broker: Broker
) -> None:
    repository.publish(100.0)
    arguments = [broker.bootstrap_servers, repository.connection.prefix, str(repository.folder)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.broker.forking", *arguments],
        capture_output=True, text=True, timeout=LONGEST_S, check=False,
    )  # fmt: skip
    told, *rest = done.stdout.splitlines() or [done.stderr]
    assert told.startswith("uses 3 times: this ModelClient was made in process"), done.stderr
    assert rest == [
        "uses its own [111.0]",
        *("uses ended with 3", "drops", "drops ended with 3", "exits ended with 3"),
        "parent [111.0]",
    ]
