"""A broker's disk that is really full: publishing fails by name, whoever scores goes on, and room mends it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from modelcast.config import Connection
from modelcast.consumer import ModelClient
from modelcast.dev.broker import LocalBroker, new_cluster_id
from modelcast.errors import BrokerError
from modelcast.kafka import KafkaLog
from modelcast.publisher import upload
from modelcast.publisher.prepare import PreparedModel, prepare
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from modelcast.topics import Topics
from tests.publishing import FIELDS, image, wide_model
from tests.reliability.figures import figure
from tests.small_disk import SmallDisk, small_disk
from tests.unit.linear_model import linear_model

from .scorer_processes import Stage, wait_for

MODEL = "fraud"
EXAMPLES = [{"amount": 1.0, "age": 2.0}, {"amount": 3.0, "age": 4.0}]
# Of a publisher whose chunks nobody takes: long enough for a broker to notice its disk, shorter than people's 120 s.
PATIENCE_S = 30.0
# The version has 21 MB of weights: more than the disk takes beside what a broker keeps of its own.
WIDTH = 2_600_000
SMALL_MB, ROOMY_MB = 16, 400
# A machine that is busy elsewhere is no broker that is gone.
STEADY = {"broker.session.timeout.ms": "18000", "broker.heartbeat.interval.ms": "2000"}


@pytest.fixture(autouse=True)
def impatient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "_FLUSH_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "publisher-state"))


def large_model(folder: Path) -> PreparedModel:
    folder.mkdir(parents=True)
    return prepare(wide_model(WIDTH).SerializeToString(), EXAMPLES, fields=FIELDS, directory=folder)


@contextmanager
def second_disk(first: LocalBroker, disk: SmallDisk) -> Iterator[LocalBroker]:
    """The same broker with one more disk, which has none of its topics yet: Kafka puts the next ones there."""
    first.stop()
    kafka = first.data_dir / "kafka"
    properties = (kafka / "meta.properties").read_text()
    folder = disk.folder / "kafka"
    folder.mkdir()
    (folder / "meta.properties").write_text(
        re.sub(r"^directory\.id=.*$", f"directory.id={new_cluster_id()}", properties, flags=re.MULTILINE)
    )
    both = {"log.dirs": f"{kafka},{folder}", **STEADY}
    with LocalBroker(first.data_dir, port=first.port, die_with_parent=True, server_properties=both) as broker:
        yield broker


def move_blobs(stage: Stage) -> None:
    """Makes the blobs topic anew."""
    topic = Topics(stage.prefix).blobs
    admin = AdminClient({"bootstrap.servers": stage.servers})
    admin.delete_topics([topic])[topic].result(60)
    with KafkaLog({"bootstrap.servers": stage.servers}) as log:
        wait_for(lambda: topic not in log.topics(), "the topic to be gone")
    stage.run("init")


@pytest.mark.timeout(600)  # three starts of a broker, and two publishers who wait in vain
def test_f05_a_full_disk_of_the_blobs_fails_publishers_by_name_and_no_scorer(prefix: str, tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk", SMALL_MB) as disk,
        LocalBroker(tmp_path / "b", die_with_parent=True, server_properties=STEADY) as first,
    ):
        stage = Stage(first.bootstrap_servers, prefix, tmp_path)
        stage.committed()  # the group's topic and the transactions' lie on the first disk
        with KafkaLog({"bootstrap.servers": stage.servers}) as log:
            log.transactional_writer(f"{prefix}-first", timeout_ms=10_000).close()
        with second_disk(first, disk) as broker:
            move_blobs(stage)
            there = {path.name.rpartition("-")[0] for path in (disk.folder / "kafka").iterdir() if path.is_dir()}
            assert there == {Topics(prefix).blobs}
            _publish_on_a_full_disk(stage, broker, disk, large_model(tmp_path / "large"))


def _publish_on_a_full_disk(stage: Stage, broker: LocalBroker, disk: SmallDisk, model: PreparedModel) -> None:
    topics = Topics(stage.prefix)
    assert stage.publish(0.5) == 1
    with stage.feeding(100) as feeder, stage.score("--instance", "a") as scorer:
        scorer.wait_line("live", version=1)
        with KafkaLog({"bootstrap.servers": stage.servers}) as log:
            registry = RegistryWriter(log, topics)
            for _ in range(2):  # the second finds the disk as the first left it
                with pytest.raises(BrokerError, match=rf"topic '{re.escape(topics.blobs)}'") as raised:
                    registry.publish(MODEL, model, release=True)
                assert "no leader" in raised.value.message.lower()
                assert "disk" in (raised.value.hint or "")
                assert sorted(image(log, topics).models[MODEL].versions) == [1]
                figure(f"the publisher was told: {raised.value.message}")
            behind = feeder.sent
            wait_for(lambda: sum(stage.committed().values()) > behind, "scoring, while the disk is full")
            disk.grow(ROOMY_MB)
            broker.restart()
            published = registry.publish(MODEL, model, release=True)
        assert published.manifest.version == 2
        assert 0 < published.bytes_sent < sum(file.size for file in model.files), "what was taken was sent again"
        scorer.wait_line("swapped")
        stage.await_scored(100)
        assert scorer.end() == 0, scorer.last_words()
    stage.finish("--instance", "a")
    assert stage.judge().is_whole


def test_f05_a_full_disk_that_ends_the_broker_leaves_applications_what_they_have(prefix: str, tmp_path: Path) -> None:
    rows = {"amount": [1.0], "age": [10.0]}
    with (
        small_disk(tmp_path / "b" / "kafka", SMALL_MB) as disk,
        LocalBroker(tmp_path / "b", die_with_parent=True, server_properties=STEADY) as broker,
        KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log,
    ):
        topics = Topics(prefix)
        init(log, topics, blob_partitions=2)
        registry = RegistryWriter(log, topics)
        registry.publish(MODEL, linear_model(tmp_path / "small", 100.0), release=True)
        connection = Connection.resolve(broker.bootstrap_servers, prefix=prefix)
        client = ModelClient(connection=connection, cache_dir=tmp_path / "cache", state_dir=tmp_path / "state")
        with closing(client):
            fraud = client.model(MODEL).wait_live(60)
            with pytest.raises(BrokerError, match=re.escape(broker.bootstrap_servers)) as raised:
                registry.publish(MODEL, large_model(tmp_path / "large"), release=True)
            wait_for(lambda: not broker.running, "Kafka to end for want of a disk")
            figure(f"the publisher was told: {raised.value.message}")
            assert fraud.predict(rows)["score"].tolist() == [111.0]
            wait_for(lambda: client.stale_s > 0, "the client to notice")
            assert fraud.predict(rows)["score"].tolist() == [111.0]
            disk.grow(ROOMY_MB)
            broker.restart()
            assert sorted(image(log, topics).models[MODEL].versions) == [1], "half of a version is visible"
            registry.publish(MODEL, linear_model(tmp_path / "next", 200.0), release=True)
            wait_for(lambda: fraud.predict(rows)["score"].tolist() == [211.0], "the next version")
