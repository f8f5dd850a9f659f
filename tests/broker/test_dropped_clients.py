"""A client that is beyond help leaves nothing behind in its process: no threads, no connections."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
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
from tests.unit.control_rig import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted by name in /proc")

TRANSACTION_TIMEOUT_MS = 120_000
TIMES = 3


def clients() -> set[str]:
    """Clients of Kafka in this process by their main threads, which are there as long as they are."""
    return {thread.name for thread in Path("/proc/self/task").iterdir() if name_of(thread) == "rdk:main"}


def name_of(thread: Path) -> str:
    try:
        return (thread / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
        return ""


@pytest.fixture
def log(broker: Broker) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        yield log


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
    wait_until(lambda: clients() <= before, "the clients to be gone")


def test_a_committer_keeps_one_producer_however_often_it_has_to_take_another(log: KafkaLog) -> None:
    events, scores = fresh(log), fresh(log)
    days = itertools.count(0.0, 86_400.0)  # fences as rare as this are survived without end
    with closing(log.group_consumer(f"group-{events}", session_timeout_ms=60_000)) as member:
        committer = TransactionalCommitter(
            Destination(events, (scores,), scores),
            lambda: log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS),
            clock=days.__next__,
        )
        before = clients()
        committer.start()
        try:
            for offset in range(TIMES):
                log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS).close()
                records = [{"key": None, "value": b"x"}]
                batch = ScoredBatch(1, 1, {(scores, 0): records}, (), {0: offset + 1}, member.group_metadata())
                assert committer.submit(batch, DEADLINE_S)
                wait_until(lambda: committer.stage is Stage.FAILED, "another producer")
                committer.resume()
            wait_until(lambda: len(clients() - before) == 1, "all but one to be gone")
        finally:
            committer.close(DEADLINE_S)
