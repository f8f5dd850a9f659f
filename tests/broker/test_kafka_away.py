"""A broker that freezes, dies and comes back, as writers, readers and applications see it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient

from modelcast.consumer import ModelClient, following
from modelcast.errors import BrokerError, OutcomeUnknownError
from modelcast.kafka import KafkaLog, transaction
from modelcast.log import BEGINNING
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from modelcast.topics import Topics
from tests.brokers import Broker
from tests.log_contract import DEADLINE_S, fresh, put, read_to, read_until, settled_ends, values
from tests.machine import Stopwatch
from tests.unit.control_rig import wait_until
from tests.unit.linear_model import linear_model

TIMEOUT_MS = 10_000
# What the project promises of an application that starts while Kafka is away, its model being in the cache.
LIVE_WITHIN_S = 2.0
MAX_STARTS = 3


@pytest.fixture
def log(own_broker: Broker) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": own_broker.bootstrap_servers}) as log:
        yield log


def test_a_commit_without_an_answer_is_in_doubt_until_the_id_is_taken_again(
    own_broker: Broker, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    topic = fresh(log)
    writer = log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)
    writer.begin()
    writer.send(topic, key=None, value=b"in doubt", partition=0)
    writer.flush(DEADLINE_S)
    own_broker.pause()
    try:
        with monkeypatch.context() as patch:
            patch.setattr(transaction, "COMMIT_TIMEOUT_S", 1.0)
            with pytest.raises(OutcomeUnknownError, match="not known") as raised:
                writer.commit()
        assert raised.value.retriable is False
        with pytest.raises(OutcomeUnknownError):
            writer.begin()
        watch = Stopwatch()
        writer.abort()
        writer.close()
        assert watch.allows(watch.took_s, 1.0)
    finally:
        own_broker.resume()
    with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as successor:
        ends = settled_ends(log, topic)  # taking the id decided it: nothing stays open
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            assert values(read_to(reader, ends)) in ([], [b"in doubt"])
        successor.begin()
        successor.send(topic, key=None, value=b"next", partition=0)
        successor.commit()


def test_an_abort_nobody_answers_does_not_raise_and_nothing_becomes_visible(
    own_broker: Broker, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "ABORT_TIMEOUT_S", 1.0)
    topic = fresh(log)
    writer = log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)
    writer.begin()
    writer.send(topic, key=None, value=b"dropped", partition=0)
    writer.flush(DEADLINE_S)
    own_broker.pause()
    try:
        writer.abort()
        with pytest.raises(BrokerError):
            writer.begin()
        writer.close()
    finally:
        own_broker.resume()
    log.transactional_writer(topic, timeout_ms=TIMEOUT_MS).close()
    with closing(log.reader(topic, {0: BEGINNING})) as reader:
        assert read_to(reader, settled_ends(log, topic)) == []


def test_writer_reader_and_log_outlive_a_broker_that_is_killed(own_broker: Broker, log: KafkaLog) -> None:
    topic = fresh(log)
    with closing(log.writer()) as writer, closing(log.reader(topic, {0: BEGINNING})) as reader:
        writer.send(topic, key=None, value=b"before", partition=0)
        writer.flush(DEADLINE_S)
        assert values(read_until(reader, bool)) == [b"before"]
        own_broker.kill()
        writer.send(topic, key=None, value=b"while away", partition=0)
        assert list(reader.poll(0.5)) == []
        with pytest.raises(BrokerError, match="1 records are not acknowledged after 0.2 s"):
            writer.flush(0.2)
        own_broker.restart()
        writer.flush(DEADLINE_S)
        assert values(read_until(reader, bool)) == [b"while away"]
        assert log.end_offsets(topic, committed=False) == {0: 2}


def test_the_wrong_security_protocol_names_the_settings_to_check(own_broker: Broker, log: KafkaLog) -> None:
    put(log, fresh(log), b"x")
    settings = {"bootstrap.servers": own_broker.bootstrap_servers, "security.protocol": "SSL"}
    with KafkaLog(settings) as wrong, pytest.raises(BrokerError, match="SSL") as raised:
        wrong.topics()
    assert raised.value.hint is not None
    assert "security.protocol" in raised.value.hint


def test_f36_an_application_starts_from_its_cache_while_the_broker_is_away_and_follows_again_when_it_is_back(
    own_broker: Broker, prefix: str, log: KafkaLog, tmp_path: Path
) -> None:
    init(log, Topics(prefix), blob_partitions=2)
    writer = RegistryWriter(log, Topics(prefix))
    writer.publish("fraud", linear_model(tmp_path / "one", 100.0), release=True)
    folders = {"cache_dir": tmp_path / "cache", "state_dir": tmp_path / "state"}
    with ModelClient(own_broker.bootstrap_servers, prefix=prefix, models=["fraud"], **folders) as client:
        client.wait_live(["fraud"])
    own_broker.kill()
    starts = 0
    while True:  # other processes may take the processors from one start
        starts += 1
        watch = Stopwatch()
        with _starting(own_broker, prefix, tmp_path) as (told, await_more):
            print(f"\nlive {told['took_s']:.2f} s after its start with no broker")
            assert (told["version"], told["scores"]) == (1, [111.0])
            assert told["stale_s"] > 0
            if told["took_s"] > LIVE_WITHIN_S and starts < MAX_STARTS:
                continue
            assert watch.allows(told["took_s"], LIVE_WITHIN_S)
            own_broker.restart()
            writer.publish("fraud", linear_model(tmp_path / "two", 200.0), release=True)
            assert await_more() == {"stale_s": 0.0, "version": 2}
            assert await_more()["closed_s"] < DEADLINE_S
            return


def test_f39_a_restart_while_the_registry_is_gone_serves_the_last_good_version_until_the_next_one(
    broker: Broker,
    prefix: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "MAX_REOPEN_S", 0.5)
    topics, rows = Topics(prefix), {"amount": [1.0], "age": [10]}
    folders = {"cache_dir": tmp_path / "cache", "state_dir": tmp_path / "state"}
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        init(log, topics, blob_partitions=2)
        RegistryWriter(log, topics).publish("fraud", linear_model(tmp_path / "one", 100.0), release=True)
        with ModelClient(broker.bootstrap_servers, prefix=prefix, **folders) as client:
            assert client["fraud"].version == 1
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        admin.delete_topics([topics.registry])[topics.registry].result()
        wait_until(lambda: topics.registry not in log.topics(), "the registry to be gone", DEADLINE_S)
        with ModelClient(broker.bootstrap_servers, prefix=prefix, **folders) as client:
            fraud = client["fraud"]
            assert fraud.predict(rows)["score"].tolist() == [111.0]
            assert client.stale_s > 0
            assert "what this host knew of fraud at" in caplog.text
            init(log, topics, blob_partitions=2)
            RegistryWriter(log, topics).publish("fraud", linear_model(tmp_path / "two", 200.0), release=True)
            wait_until(lambda: client.stale_s == 0, "the registry to be followed again", DEADLINE_S)
            wait_until(lambda: fraud.predict(rows)["score"].tolist() == [211.0], "the next version", DEADLINE_S)
            assert "holds another repository now" in caplog.text


@contextmanager
def _starting(
    broker: Broker, prefix: str, folder: Path
) -> Iterator[tuple[dict[str, Any], Callable[[], dict[str, Any]]]]:
    """What an application that starts now says first, and how to wait for what it says next."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.broker.starting", broker.bootstrap_servers, prefix, str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = process.stdout
        yield json.loads(lines.readline()), lambda: json.loads(lines.readline())
    finally:
        process.kill()
        process.communicate()
