"""Records larger than a client, its queue or a topic takes: refused by name, at once, and sent as the hint says."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import closing

import pytest

from modelcast.dev.broker import LocalBroker
from modelcast.errors import RecordTooLargeError
from modelcast.kafka import KafkaLog
from modelcast.log import BEGINNING, TopicSpec
from modelcast.scan import scan

LARGE_BYTES = 2_000_000
FLUSH_S = 60.0


def too_large(broker: LocalBroker, topic: str, **properties: str) -> RecordTooLargeError:
    """What is said of a record of `LARGE_BYTES`."""
    named = {name.replace("_", "."): value for name, value in properties.items()}
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers, **named}) as log, closing(log.writer()) as writer:

        def send() -> None:
            writer.send(topic, key=None, value=bytes(LARGE_BYTES), partition=0)
            writer.flush(FLUSH_S)

        with pytest.raises(RecordTooLargeError) as refused:
            send()
    return refused.value


def test_a_record_the_client_may_not_send_is_sent_with_the_properties_the_hint_names(
    broker: LocalBroker, fresh_topic: Callable[..., str]
) -> None:
    topic = fresh_topic()
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        log.create(TopicSpec(topic, 1, configs={"max.message.bytes": str(2 * LARGE_BYTES)}))
        said = too_large(broker, topic, queue_buffering_max_kbytes="1024")
        assert "2,000,000 bytes" in said.message
        raised = dict(re.findall(r"-X ([a-z.]+)=(\d+)", said.hint or ""))
        assert raised.keys() == {"message.max.bytes", "queue.buffering.max.kbytes"}
        with (
            KafkaLog({"bootstrap.servers": broker.bootstrap_servers, **raised}) as willing,
            closing(willing.writer()) as writer,
        ):
            writer.send(topic, key=None, value=bytes(LARGE_BYTES), partition=0)
            writer.flush(FLUSH_S)
        (found,) = scan(log, topic, {0: BEGINNING}, log.end_offsets(topic, committed=False), timeout_s=FLUSH_S)
        assert found.value == bytes(LARGE_BYTES)


def test_a_record_larger_than_the_clients_queue_is_refused_and_not_waited_for(
    broker: LocalBroker, fresh_topic: Callable[..., str]
) -> None:
    topic = fresh_topic()
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        log.create(TopicSpec(topic, 1, configs={"max.message.bytes": str(2 * LARGE_BYTES)}))
    said = too_large(broker, topic, message_max_bytes="3000000", queue_buffering_max_kbytes="1024")
    assert "-X queue.buffering.max.kbytes=" in (said.hint or "")
    assert "-X message.max.bytes=" not in (said.hint or "")  # that one is large enough


def test_a_record_the_topic_does_not_take_names_both_settings(
    broker: LocalBroker, fresh_topic: Callable[..., str]
) -> None:
    topic = fresh_topic()
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        log.create(TopicSpec(topic, 1))
    said = too_large(broker, topic, message_max_bytes="3000000")
    assert "max.message.bytes of the topic" in (said.hint or "")
