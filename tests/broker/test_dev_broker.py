"""`LocalBroker` is a real broker: what it acknowledged is there after it was stopped, killed or paused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from modelcast.dev.broker import LocalBroker
from modelcast.dev.ports import free_ports, is_free
from modelcast.dev.process import Process, start_time
from modelcast.errors import BrokerError
from modelcast.testing.broker import local_broker, unique_name
from tests.brokers import Broker
from tests.machine import Stopwatch

DEADLINE_S = 60.0
READY_GOAL_S = 3.0
# Enough for a kill to fall into the telling of a transaction's end to its partitions.
COMMITTING = 4
PARTITIONS = 30
KILLS = 3


@pytest.fixture
def process(tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker that is a process, wherever the session's are."""
    with local_broker(tmp_path / "process") as running:
        yield running


def write(broker: Broker, topic: str, value: bytes, *, timeout_s: float = DEADLINE_S) -> bool:
    """Produces one record; returns whether it was acknowledged in time."""
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers, "reconnect.backoff.max.ms": 200})
    producer.produce(topic, value, partition=0)
    unsent: int = producer.flush(timeout_s)
    if unsent:
        producer.purge()
        producer.flush(1)
    return unsent == 0


def read_all(broker: Broker, topic: str) -> list[bytes]:
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "reader"})
    try:
        _, end = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=DEADLINE_S)
        consumer.assign([TopicPartition(topic, 0, 0)])
        values: list[bytes] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(values) < end and time.monotonic() < deadline:
            for message in consumer.consume(end - len(values), 1.0):
                value = message.value()
                assert isinstance(value, bytes), message.error()
                values.append(value)
        return values
    finally:
        consumer.close()


def create(broker: Broker, topic: str, partitions: int = 1) -> None:
    admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
    admin.create_topics([NewTopic(topic, partitions, 1)])[topic].result(DEADLINE_S)


def test_the_session_broker_takes_and_gives_records(broker: Broker) -> None:
    topic = unique_name("taken")
    create(broker, topic)
    assert write(broker, topic, b"a")
    assert read_all(broker, topic) == [b"a"]


def test_a_misspelt_topic_is_not_created(broker: Broker) -> None:
    topic = unique_name("misspelt")
    write(broker, topic, b"a", timeout_s=1.0)
    assert topic not in AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics().topics


def test_port_and_data_outlive_stop_and_kill(own_broker: Broker) -> None:
    create(own_broker, "kept")
    address = own_broker.bootstrap_servers
    assert write(own_broker, "kept", b"first")

    own_broker.stop()
    assert not own_broker.running
    own_broker.start()
    assert write(own_broker, "kept", b"second")

    own_broker.kill()
    assert not own_broker.running
    began = time.monotonic()
    own_broker.start()
    print(f"ready {time.monotonic() - began:.2f} s after kill -9")

    assert own_broker.bootstrap_servers == address
    assert read_all(own_broker, "kept") == [b"first", b"second"]


def test_no_transaction_hangs_after_a_kill(process: LocalBroker) -> None:
    create(process, "committed", PARTITIONS)
    stop = threading.Event()
    committing = [
        threading.Thread(target=commit_on_and_on, args=(process, stop), daemon=True) for _ in range(COMMITTING)
    ]
    for each in committing:
        each.start()
    try:
        reached = 0
        for _ in range(KILLS):
            reached = await_committed(process, beyond=reached + COMMITTING)
            process.kill()
            process.start()
        await_committed(process, beyond=reached + COMMITTING)
    finally:
        stop.set()
    for each in committing:
        each.join(DEADLINE_S)


def commit_on_and_on(broker: LocalBroker, stop: threading.Event) -> None:
    """A record to each partition a transaction; after a failure under another id: the same would end what hangs."""
    while not stop.is_set():
        producer = Producer({
            "bootstrap.servers": broker.bootstrap_servers, "transactional.id": unique_name("id"),
            "transaction.timeout.ms": 5_000, "log_level": 0,
        })  # fmt: skip
        with suppress(KafkaException):
            producer.init_transactions(DEADLINE_S)
            while not stop.is_set():
                producer.begin_transaction()
                for partition in range(PARTITIONS):
                    producer.produce("committed", b"x", partition=partition)
                producer.commit_transaction(DEADLINE_S)


def await_committed(broker: LocalBroker, *, beyond: int) -> int:
    """Waits until who reads committed records gets beyond an offset of every partition; returns how far they get."""
    consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": "reader", "log_level": 0})
    deadline = time.monotonic() + DEADLINE_S
    ends = [0]
    try:
        while min(ends) <= beyond:
            assert time.monotonic() < deadline, f"a transaction that never ends is in the way: {ends}"
            time.sleep(0.05)
            with suppress(KafkaException):  # just started, it may have no leaders yet
                ends = [
                    consumer.get_watermark_offsets(TopicPartition("committed", number), timeout=DEADLINE_S)[1]
                    for number in range(PARTITIONS)
                ]
        return max(ends)
    finally:
        consumer.close()


def test_a_later_start_is_ready_within_three_seconds(process: LocalBroker) -> None:
    process.stop()
    watch = Stopwatch()
    process.start()
    took_s = watch.took_s
    print(f"ready in {took_s:.2f} s")
    assert watch.allows(took_s, READY_GOAL_S)


def test_a_paused_broker_answers_nothing_until_it_goes_on(own_broker: Broker) -> None:
    create(own_broker, "paused")
    own_broker.pause()
    assert own_broker.running
    assert not write(own_broker, "paused", b"lost", timeout_s=1.0)
    own_broker.resume()
    assert write(own_broker, "paused", b"kept")
    assert read_all(own_broker, "paused")[-1] == b"kept"


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_paused_broker_can_be_ended(own_broker: Broker, end: str) -> None:
    create(own_broker, "kept")
    own_broker.pause()
    getattr(own_broker, end)()
    assert not own_broker.running
    own_broker.start()  # nobody holds its port and its data
    assert write(own_broker, "kept", b"first")


def test_it_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from modelcast.dev.broker import LocalBroker\n"
        "broker = LocalBroker(Path(sys.argv[1]), die_with_parent=True)\n"
        "starter = threading.Thread(target=broker.start)\n"
        "starter.start()\n"
        "starter.join()  # the death of the thread that started it is not the death of the process\n"
        "print(broker.pid, broker.running, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        pid, running = parent.stdout.readline().split()
        assert running == "True"
        child = Process(int(pid), start_time(int(pid)) or "gone")
        assert child.alive()
        os.kill(parent.pid, signal.SIGKILL)
        assert child.wait(DEADLINE_S)


def test_a_failed_start_shows_the_reason_and_leaves_no_process(tmp_path: Path) -> None:
    broker = LocalBroker(tmp_path, die_with_parent=True, server_properties={"log.retention.ms": "soon"})
    with pytest.raises(BrokerError, match=r"Invalid value soon for configuration log\.retention\.ms"):
        broker.start()
    assert not broker.running


def test_a_given_port_that_is_taken_is_refused_not_shared(broker: Broker, tmp_path: Path) -> None:
    port = int(broker.bootstrap_servers.rpartition(":")[2])
    second = LocalBroker(tmp_path, port=port, die_with_parent=True)
    with pytest.raises(BrokerError, match="Address already in use") as refused:
        second.start()
    assert str(second.log_path) in str(refused.value)
    assert not second.running


def test_server_properties_win(tmp_path: Path) -> None:
    port, extra = free_ports(2)
    controller = free_ports(1)[0]
    listeners = f"PLAINTEXT://127.0.0.1:{port},EXTRA://127.0.0.1:{extra},CONTROLLER://127.0.0.1:{controller}"
    settings = {
        "listeners": listeners,
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},EXTRA://127.0.0.1:{extra}",
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,EXTRA:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "inter.broker.listener.name": "PLAINTEXT",
    }
    with LocalBroker(tmp_path, port=port, die_with_parent=True, server_properties=settings):
        assert not is_free(extra)
        assert (
            len(AdminClient({"bootstrap.servers": f"127.0.0.1:{extra}"}).list_topics(timeout=DEADLINE_S).brokers) == 1
        )
