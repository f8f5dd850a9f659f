"""`KafkaLog` keeps the contract of every log on a real broker, and says within seconds when there is none."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka import KafkaError

from modelcast.errors import (
    AuthorizationError,
    BrokerError,
    ConfigError,
    FencedError,
    ModelcastError,
    OffsetOutOfRangeError,
    TopicNotFoundError,
    UsageError,
)
from modelcast.kafka import KafkaLog
from modelcast.kafka.faults import Faults
from modelcast.kafka.transaction import Transactions
from modelcast.log import BEGINNING, Log, LogWriter, TopicSpec
from tests.brokers import Broker
from tests.log_contract import DEADLINE_S, LogContract, fresh

# What somebody at a prompt waits for is 6 s; on a busy machine eleven clients at once take their time.
UNREACHABLE_LIMIT_S = 30.0


class TestKafkaLog(LogContract):
    @pytest.fixture
    def log(self, broker: Broker) -> Iterator[Log]:
        with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
            yield log


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody answers, and where nobody can start to during the test."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


ENTRY_POINTS: dict[str, Callable[[KafkaLog], object]] = {
    "topics": lambda log: log.topics(),
    "describe": lambda log: log.describe("t"),
    "create": lambda log: log.create(TopicSpec("t", 1)),
    "begin_offsets": lambda log: log.begin_offsets("t"),
    "end_offsets": lambda log: log.end_offsets("t", committed=True),
    "reader": lambda log: log.reader("t", {0: BEGINNING}),
    "writer": lambda log: log.writer(),
    "transactional_writer": lambda log: log.transactional_writer("id", timeout_ms=10_000),
    "group_consumer": lambda log: log.group_consumer("g", session_timeout_ms=6_000),
    "batch_producer": lambda log: log.batch_producer(),
    "transactional_batch_producer": lambda log: log.transactional_batch_producer("id", timeout_ms=10_000),
}


def test_an_absent_broker_is_reported_within_seconds_at_every_entry_point(
    nobody: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def attempt(name: str) -> tuple[float, BrokerError]:
        with KafkaLog({"bootstrap.servers": nobody}) as log:
            started = time.monotonic()
            with pytest.raises(BrokerError) as raised:
                ENTRY_POINTS[name](log)
            return time.monotonic() - started, raised.value

    with ThreadPoolExecutor(len(ENTRY_POINTS)) as pool:
        outcomes = dict(zip(ENTRY_POINTS, pool.map(attempt, ENTRY_POINTS), strict=True))
    for name, (took_s, error) in outcomes.items():
        assert took_s < UNREACHABLE_LIMIT_S, name
        assert f"no broker answers at {nobody} (Connection refused)" in error.message, name
        assert error.hint is not None, name
        assert "bootstrap.servers" in error.hint, name
    assert capfd.readouterr() == ("", "")  # librdkafka itself would have written on stderr
    lines = [record.getMessage() for record in caplog.records]
    assert lines, "what librdkafka says goes to the Python logger"
    assert len(lines) == len(set(lines))


def test_an_unknown_host_is_told_apart() -> None:
    with KafkaLog({"bootstrap.servers": "no-such-host.invalid:9092"}) as log, pytest.raises(BrokerError) as raised:
        log.topics()
    assert "no-such-host.invalid:9092 (" in raised.value.message


def test_refused_credentials_explain_the_timeout_they_cause() -> None:
    faults = Faults("somewhere:9093")
    faults.on_error(KafkaError(KafkaError._TRANSPORT, "sasl://somewhere:9093/1: Disconnected"))
    faults.on_error(KafkaError(KafkaError._AUTHENTICATION, "sasl://somewhere:9093/1: invalid credentials"))
    explained = faults.explain(KafkaError(KafkaError._TIMED_OUT), "can't reach Kafka")
    assert isinstance(explained, AuthorizationError)
    assert explained.retriable is False
    assert "invalid credentials" in explained.message
    assert "sasl." in (explained.hint or "")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (KafkaError._ALL_BROKERS_DOWN, BrokerError),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, AuthorizationError),
        (KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, AuthorizationError),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, TopicNotFoundError),
        (KafkaError._FENCED, FencedError),
        (KafkaError.INVALID_PRODUCER_EPOCH, FencedError),
        (KafkaError.ILLEGAL_GENERATION, BrokerError),
        (KafkaError._AUTO_OFFSET_RESET, OffsetOutOfRangeError),
        (KafkaError.INVALID_REPLICATION_FACTOR, BrokerError),  # not in the table
    ],
)
def test_every_code_has_its_one_error(code: int, kind: type[ModelcastError]) -> None:
    assert type(Faults("h:1").explain(KafkaError(code), "can't")) is kind


def test_a_topic_that_can_not_be_made_says_what_to_change(broker: Broker) -> None:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        with pytest.raises(BrokerError, match="can't create topic 'wide'.*--replication-factor"):
            log.create(TopicSpec("wide", 1, replication_factor=99))
        with pytest.raises(UsageError, match="can't create topic 'not/this'.*letters, digits"):
            log.create(TopicSpec("not/this", 1))


def test_wrong_properties_are_the_callers_mistake() -> None:
    with pytest.raises(ConfigError, match="bootstrap.servers"):
        KafkaLog({})
    with pytest.raises(ConfigError, match="no.such.property"):
        KafkaLog({"bootstrap.servers": "localhost:9092", "no.such.property": "1"})
    with pytest.raises(ConfigError, match="security.protocol"):
        KafkaLog({"bootstrap.servers": "localhost:9092", "security.protocol": "carrier-pigeon"})


def test_the_callers_properties_win_but_not_over_promises(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    settings = {
        "bootstrap.servers": broker.bootstrap_servers,
        "message.max.bytes": "3000",  # lower than ours: must be in force
        "acks": "1",  # would lose records: must not be
        "enable.auto.commit": "true",  # of the other kind of client
        "group.id": "somebody-elses",
    }
    with KafkaLog(settings) as log:
        topic = fresh(log)
        with closing(log.writer()) as writer:
            writer.send(topic, key=None, value=bytes(2_000), partition=0)
            writer.flush(DEADLINE_S)
            with pytest.raises(BrokerError, match="too large"):
                writer.send(topic, key=None, value=bytes(4_000), partition=0)
        log.reader(topic, {0: BEGINNING}).close()
    assert "acks=1 is not used" in caplog.text


def test_sending_to_a_missing_topic_does_not_create_it_even_where_the_broker_would(broker: Broker) -> None:
    missing = f"missing-{uuid4().hex[:12]}"
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        with pytest.raises(Exception, match=missing):
            log.writer().send(missing, key=None, value=b"x")
        assert missing not in log.topics()


def test_a_send_waits_while_the_queue_is_full(broker: Broker) -> None:
    settings = {"bootstrap.servers": broker.bootstrap_servers, "queue.buffering.max.messages": "10"}
    with KafkaLog(settings) as log:
        topic = fresh(log)
        with closing(log.writer()) as writer:
            for number in range(500):
                writer.send(topic, key=None, value=b"%d" % number, partition=0)
            writer.flush(DEADLINE_S)
        assert log.end_offsets(topic, committed=False) == {0: 500}


def test_whoever_is_fenced_in_the_middle_of_a_transaction_is_told_so_by_whatever_call_meets_it(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A record may be refused before the connection has told why; so the look at what it told comes too early here.
    monkeypatch.setattr(Transactions, "check_open", lambda _: None)
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        topic, name = fresh(log), f"id-{uuid4().hex[:12]}"
        with closing(log.transactional_writer(name, timeout_ms=10_000)) as first:
            first.begin()
            with closing(log.transactional_writer(name, timeout_ms=10_000)), pytest.raises(FencedError):
                send_until_refused(first, topic)


def send_until_refused(writer: LogWriter, topic: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        writer.send(topic, key=None, value=b"x", partition=0)
        time.sleep(0.001)


def test_a_topic_just_made_is_there_although_the_broker_that_is_asked_does_not_know_it_yet(
    broker: Broker, fresh_topic: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    topic, asked = fresh_topic(), []
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as first:
        assert first.create(TopicSpec(topic, 1))
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as second:
        assert not second.create(TopicSpec(topic, 1)), "it was made by the other"
        knows = second._metadata

        def lags() -> Mapping[str, Any]:
            asked.append(topic)
            return {} if len(asked) < 3 else knows()

        monkeypatch.setattr(second, "_metadata", lags)
        assert second.describe(topic).partitions == 1
    assert len(asked) == 3
