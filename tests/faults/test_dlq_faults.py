"""`dlq replay` killed at any moment, and interrupted: every letter goes back exactly once."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable

import pytest
from confluent_kafka import Producer

from modelcast.config import Connection
from modelcast.log import TopicSpec
from modelcast.registry.repository import init
from tests.brokers import Broker
from tests.faults import oracle
from tests.publishing import Shell

# Several transactions of 1,000 letters, so that a kill meets one of them.
LETTERS = 12_000
MUCH = 3_000
PARTITIONS = 2
SOON_S = 60.0


def write_letters(servers: str, topic: str, events: str) -> None:
    producer = Producer({"bootstrap.servers": servers})
    for number in range(LETTERS):
        partition = number % PARTITIONS
        told = {"exception": b"NullField", "message": b"why", "topic": events.encode()}
        told |= {"partition": b"%d" % partition, "offset": b"%d" % number}
        producer.produce(
            topic,
            value=b"%d" % number,
            partition=partition,
            headers=[(f"__streams.errors.{name}", value) for name, value in told.items()],
        )
        producer.poll(0)
    assert producer.flush(30) == 0


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_f27_a_replay_that_is_ended_sends_every_letter_once_all_the_same(
    broker: Broker, prefix: str, fresh_topic: Callable[..., str], how: signal.Signals
) -> None:
    servers = broker.bootstrap_servers
    shell = Shell(servers, prefix)
    connection = Connection.resolve(servers, prefix=prefix)
    log = connection.open_log()
    init(log, connection.topics, blob_partitions=1)
    events, topic = fresh_topic("events"), fresh_topic("letters")
    for name in (events, topic):
        log.create(TopicSpec(name, PARTITIONS))
    write_letters(servers, topic, events)

    ends = 0
    while sum(log.end_offsets(events, committed=True).values()) < LETTERS:
        before, deadline = log.end_offsets(events, committed=False), time.monotonic() + SOON_S
        replay = subprocess.Popen(
            shell.line("dlq", "replay", topic), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        # Not at a time but at a place: as soon as anything of this run has arrived, committed or not.
        while replay.poll() is None and log.end_offsets(events, committed=False) == before:
            assert time.monotonic() < deadline, "nothing is sent back"
            time.sleep(0.005)
        # While much is left: a signal that comes when the replay is over strikes an interpreter that shuts down.
        left = LETTERS - sum(log.end_offsets(events, committed=False).values())
        if ends < 3 and left > MUCH and replay.poll() is None:
            replay.send_signal(how)
            ends += 1
        _, told = replay.communicate(timeout=SOON_S)
        assert replay.returncode in (0, -signal.SIGKILL, 130), told
        assert "Traceback" not in told
    assert ends, "the replay was too quick to be ended"

    assert shell.json("dlq", "replay", topic)["sent"] == 0
    oracle.await_settled(servers, events)
    sent = [message.value() for message in oracle.read(servers, events)]
    assert sorted(sent, key=int) == [b"%d" % number for number in range(LETTERS)]
    for partition in range(PARTITIONS):
        numbers = [int(value) for value in sent if int(value) % PARTITIONS == partition]
        assert numbers == sorted(numbers), "letters of a partition changed their order"
