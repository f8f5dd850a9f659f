"""A broker that freezes, dies and comes back, as writers and readers see it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from modelcast.dev.broker import LocalBroker
from modelcast.errors import BrokerError, OutcomeUnknownError
from modelcast.kafka import KafkaLog, transaction
from modelcast.log import BEGINNING
from tests.log_contract import DEADLINE_S, fresh, put, read_to, read_until, settled_ends, values

TIMEOUT_MS = 10_000


@pytest.fixture
def log(own_broker: LocalBroker) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": own_broker.bootstrap_servers}) as log:
        yield log


def test_a_commit_without_an_answer_is_in_doubt_until_the_id_is_taken_again(
    own_broker: LocalBroker, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transaction, "COMMIT_TIMEOUT_S", 1.0)
    topic = fresh(log)
    writer = log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)
    writer.begin()
    writer.send(topic, key=None, value=b"in doubt", partition=0)
    writer.flush(DEADLINE_S)
    own_broker.pause()
    try:
        with pytest.raises(OutcomeUnknownError, match="not known") as raised:
            writer.commit()
        assert raised.value.retriable is False
        with pytest.raises(OutcomeUnknownError):
            writer.begin()
        started = time.monotonic()
        writer.abort()
        writer.close()
        assert time.monotonic() - started < 1.0
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
    own_broker: LocalBroker, log: KafkaLog, monkeypatch: pytest.MonkeyPatch
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


def test_writer_reader_and_log_outlive_a_broker_that_is_killed(own_broker: LocalBroker, log: KafkaLog) -> None:
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


def test_the_wrong_security_protocol_names_the_settings_to_check(own_broker: LocalBroker, log: KafkaLog) -> None:
    put(log, fresh(log), b"x")
    settings = {"bootstrap.servers": own_broker.bootstrap_servers, "security.protocol": "SSL"}
    with KafkaLog(settings) as wrong, pytest.raises(BrokerError, match="SSL") as raised:
        wrong.topics()
    assert raised.value.hint is not None
    assert "security.protocol" in raised.value.hint
