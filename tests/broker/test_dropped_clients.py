"""A client that is beyond help leaves nothing behind in its process: no threads, no connections."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from modelcast.consumer.commit import Destination, ScoredBatch, Stage, TransactionalCommitter
from modelcast.errors import FencedError
from modelcast.kafka import KafkaLog
from modelcast.kafka.batch import KafkaTransactionalBatchProducer
from modelcast.log import TransactionalWriter
from tests.brokers import Broker
from tests.log_contract import DEADLINE_S, fresh

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted by name in /proc")

TRANSACTION_TIMEOUT_MS = 120_000
TIMES = 3


def clients() -> int:
    """Clients of Kafka in this process: each has one thread of this name as long as it is there."""
    names = (thread.read_text() for thread in Path("/proc/self/task").glob("*/comm"))
    return sum(name == "rdk:main\n" for name in names)


def assert_clients(count: int) -> None:
    """A thread that was ended may be listed for a moment."""
    deadline = time.monotonic() + DEADLINE_S
    while clients() != count:
        assert time.monotonic() < deadline, f"{clients()} clients are there, not {count}"
        time.sleep(0.02)


@pytest.fixture
def log(broker: Broker) -> KafkaLog:
    return KafkaLog({"bootstrap.servers": broker.bootstrap_servers})


def fence_in_mid_commit(log: KafkaLog, topic: str) -> None:
    def take() -> KafkaTransactionalBatchProducer:
        return log.transactional_batch_producer(topic, timeout_ms=TRANSACTION_TIMEOUT_MS)

    with closing(take()) as old:
        old.begin()
        old.produce_batch(topic, 0, [{"key": None, "value": b"x"}])
        old.settle(DEADLINE_S)
        with closing(take()), pytest.raises(FencedError):
            old.commit()


def fence_a_writer_in_mid_commit(log: KafkaLog, topic: str) -> None:
    def take() -> TransactionalWriter:
        return log.transactional_writer(topic, timeout_ms=TRANSACTION_TIMEOUT_MS)

    with closing(take()) as old:
        old.begin()
        old.send(topic, key=None, value=b"x")
        old.flush(DEADLINE_S)
        with closing(take()), pytest.raises(FencedError):
            old.commit()


@pytest.mark.parametrize("fence", [fence_in_mid_commit, fence_a_writer_in_mid_commit])
def test_a_producer_whose_id_was_taken_in_mid_commit_is_gone_once_it_is_dropped(
    fence: Callable[[KafkaLog, str], None], log: KafkaLog
) -> None:
    topic = fresh(log)
    before = clients()
    for _ in range(TIMES):
        fence(log, topic)
    assert_clients(before)


def test_a_committer_keeps_one_producer_however_often_it_has_to_take_another(log: KafkaLog) -> None:
    events, scores = fresh(log), fresh(log)
    days = itertools.count(0.0, 86_400.0)  # fences as rare as this are survived without end
    with closing(log.group_consumer(f"group-{events}", session_timeout_ms=60_000)) as member:
        committer = TransactionalCommitter(
            Destination(events, (scores,), scores),
            lambda: log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS),
            clock=days.__next__,
        )
        committer.start()
        try:
            before = clients()
            for offset in range(TIMES):
                log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS).close()
                records = [{"key": None, "value": b"x"}]
                batch = ScoredBatch(1, 1, {(scores, 0): records}, (), {0: offset + 1}, member.group_metadata())
                assert committer.submit(batch, DEADLINE_S)
                deadline = time.monotonic() + DEADLINE_S
                while committer.stage is not Stage.FAILED:
                    assert time.monotonic() < deadline, committer.stage
                    time.sleep(0.02)
                committer.resume()
            assert_clients(before)
        finally:
            committer.close(DEADLINE_S)
