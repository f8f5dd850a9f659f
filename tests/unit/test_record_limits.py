"""Events that are larger than a client or a topic takes are refused by name."""

from __future__ import annotations

import polars as pl
import pytest

from modelcast.consumer.commit import Destination
from modelcast.consumer.setup import RECEIVE_MAX_BYTES, plan_topics
from modelcast.errors import BrokerError, RecordTooLargeError
from modelcast.events.send import EventSender
from modelcast.kafka import settings
from modelcast.log import TopicSpec
from modelcast.testing import MemoryLog
from modelcast.testing.memory import CLIENT_MAX_RECORD_BYTES
from modelcast.topics import Topics

TOPIC = "events"


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    log.create(TopicSpec(TOPIC, 1, configs={"max.message.bytes": "5000"}))
    return log


def sender(log: MemoryLog) -> EventSender:
    return EventSender(log, Topics("test"), TOPIC, schema=None)


def frame(*sizes: int) -> pl.DataFrame:
    return pl.DataFrame({"note": ["x" * size for size in sizes]})


def test_an_event_larger_than_the_client_may_send_is_named_by_its_row(log: MemoryLog) -> None:
    with sender(log) as sending:
        sending.send(frame(10, 20))
        with pytest.raises(RecordTooLargeError, match=r"^row 4: .*'events'.*too large"):
            sending.send(frame(30, CLIENT_MAX_RECORD_BYTES, 40))
        assert sending.events == 3


def test_events_that_the_topic_does_not_take_are_told_with_the_largest_of_them(log: MemoryLog) -> None:
    with sender(log) as sending:
        sending.send(frame(10, 6_000, 20))
        with pytest.raises(RecordTooLargeError, match=r"over 5000 bytes \(the largest, row 2, has 6,0\d\d bytes\)"):
            sending.flush()


def test_a_record_that_is_too_large_is_the_brokers_to_refuse() -> None:
    assert issubclass(RecordTooLargeError, BrokerError)  # whoever bears a broker's refusal bears this one


@pytest.mark.parametrize(("limit", "warned"), [(RECEIVE_MAX_BYTES, False), (RECEIVE_MAX_BYTES + 1, True)])
def test_a_topic_of_events_larger_than_a_scorer_receives_is_told_of_at_its_start(limit: int, warned: bool) -> None:
    log = MemoryLog()
    log.create(TopicSpec(TOPIC, 1, configs={"max.message.bytes": str(limit)}))
    told = plan_topics(log, Destination(TOPIC, ("scores",), "letters")).warnings
    assert bool(told) == warned
    assert all("receive.message.max.bytes" in warning and f"--entity-name {TOPIC}" in warning for warning in told)


def test_what_a_scorer_says_it_receives_is_what_its_clients_take() -> None:
    for made in (
        settings.reader_settings({}, committed=True),
        settings.group_settings({}, group="g", instance=None, session_timeout_ms=6_000, committed=True),
    ):
        assert made["receive.message.max.bytes"] == RECEIVE_MAX_BYTES
