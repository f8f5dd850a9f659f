"""The commit thread: what becomes visible when, and what every failure leads to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

from modelcast.consumer.commit import (
    FENCES_MAX,
    QUEUE_BATCHES,
    QUEUE_EVENTS,
    Committer,
    Destination,
    FlushingCommitter,
    ScoredBatch,
    Stage,
    TransactionalCommitter,
)
from modelcast.consumer.dead_letters import DeadLetter
from modelcast.errors import AuthorizationError, BrokerError, FencedError
from modelcast.group import TransactionalBatchProducer
from modelcast.log import BEGINNING, TopicSpec
from modelcast.testing.group import CommitFault, MemoryGroupConsumer, MemoryGroupLog, MemoryTransactionalProducer

SCORES = "scores"
TO = Destination("events", (SCORES,), "scores.dead-letters")
SOON_S = 60.0


@pytest.fixture
def log() -> MemoryGroupLog:
    log = MemoryGroupLog()
    for topic in (TO.events, *TO.outputs):
        log.create(TopicSpec(topic, 2))
    return log


@pytest.fixture
def member(log: MemoryGroupLog) -> MemoryGroupConsumer:
    return join(log)


def join(log: MemoryGroupLog) -> MemoryGroupConsumer:
    member = log.group_consumer("g", session_timeout_ms=6000)
    member.subscribe(TO.events, on_assign=_ignore, on_revoke=_ignore, on_lost=_ignore)
    member.consume(1, 0)
    return member


def _ignore(_: object) -> None: ...


def batch(member: MemoryGroupConsumer, first: int, *, epoch: int = 1, count: int = 1) -> ScoredBatch:
    records = [{"key": None, "value": b"%d" % offset} for offset in range(first, first + count)]
    return ScoredBatch(epoch, count, {(SCORES, 0): records}, (), {0: first + count}, member.group_metadata())


@contextmanager
def transactional(
    log: MemoryGroupLog, opened: Callable[[], TransactionalBatchProducer] | None = None
) -> Iterator[TransactionalCommitter]:
    committer = TransactionalCommitter(TO, opened or (lambda: log.transactional_batch_producer("id", timeout_ms=6000)))
    committer.start()
    try:
        yield committer
    finally:
        committer.close(SOON_S)


def visible(log: MemoryGroupLog) -> list[bytes | None]:
    with closing(log.reader(SCORES, {0: BEGINNING, 1: BEGINNING})) as reader:
        return [record.value for record in reader.poll(0)]


def wait_for(committer: Committer, stage: Stage) -> None:
    with committer._changed:
        assert committer._changed.wait_for(lambda: committer.stage is stage, SOON_S), committer.stage


def test_predictions_and_offsets_become_visible_together(log: MemoryGroupLog, member: MemoryGroupConsumer) -> None:
    with transactional(log) as committer:
        assert committer.submit(batch(member, 0, count=3), SOON_S)
        assert committer.drain(SOON_S)
        assert visible(log) == [b"0", b"1", b"2"]
        assert log.committed_offsets("g", TO.events) == {0: 3}
        assert (committer.totals.events, committer.totals.predictions, committer.totals.commits) == (3, 3, 1)


def test_an_aborted_batch_takes_the_queue_along_until_the_scoring_thread_went_back(
    log: MemoryGroupLog, member: MemoryGroupConsumer
) -> None:
    log.next_commits.append(CommitFault.ABORTED)
    with transactional(log) as committer:
        committer.submit(batch(member, 0), SOON_S)
        wait_for(committer, Stage.FAILED)
        assert not committer.submit(batch(member, 1), SOON_S), "a batch that continues a failed one must not be taken"
        assert visible(log) == []
        committer.resume()
        committer.submit(batch(member, 0), SOON_S)
        assert committer.drain(SOON_S)
        assert visible(log) == [b"0"]
        assert committer.error is None


@pytest.mark.parametrize(
    ("fault", "landed"), [(CommitFault.REPLY_LOST_COMMITTED, [b"0"]), (CommitFault.REPLY_LOST_ABORTED, [])]
)
def test_a_commit_in_doubt_takes_a_new_producer_before_offsets_may_be_read(
    log: MemoryGroupLog, member: MemoryGroupConsumer, fault: CommitFault, landed: list[bytes]
) -> None:
    log.next_commits.append(fault)
    producers: list[TransactionalBatchProducer] = []

    def take() -> MemoryTransactionalProducer:
        producers.append(log.transactional_batch_producer("id", timeout_ms=6000))
        return producers[-1]  # type: ignore[return-value]

    with transactional(log, take) as committer:
        committer.submit(batch(member, 0), SOON_S)
        wait_for(committer, Stage.FAILED)
        assert len(producers) == 2
        assert visible(log) == landed
        assert log.committed_offsets("g", TO.events) == ({0: 1} if landed else {})


def test_a_lost_generation_is_refused_and_nothing_of_it_is_visible(
    log: MemoryGroupLog, member: MemoryGroupConsumer
) -> None:
    stale = batch(member, 0)
    join(log)  # a rebalance between consuming and committing
    with transactional(log) as committer:
        committer.submit(stale, SOON_S)
        wait_for(committer, Stage.FAILED)
    assert visible(log) == []
    assert log.committed_offsets("g", TO.events) == {}


def test_batches_that_wait_share_a_transaction_but_never_across_assignments(
    log: MemoryGroupLog, member: MemoryGroupConsumer
) -> None:
    committer = TransactionalCommitter(TO, lambda: log.transactional_batch_producer("id", timeout_ms=6000))
    for entry in (batch(member, 0), batch(member, 1)):
        assert committer.submit(entry, 0)
    committer.start()
    assert committer.drain(SOON_S)
    assert log.commits == [{0: 2}]
    committer.close(SOON_S)

    apart = TransactionalCommitter(TO, lambda: log.transactional_batch_producer("id", timeout_ms=6000))
    for entry in (batch(member, 2, epoch=1), batch(member, 3, epoch=2)):
        assert apart.submit(entry, 0)
    apart.start()
    assert apart.drain(SOON_S)
    assert log.commits == [{0: 2}, {0: 3}, {0: 4}]
    apart.close(SOON_S)


def test_the_queue_is_bounded(log: MemoryGroupLog, member: MemoryGroupConsumer) -> None:
    committer = TransactionalCommitter(TO, lambda: log.transactional_batch_producer("id", timeout_ms=6000))
    large = [batch(member, number * QUEUE_EVENTS, count=QUEUE_EVENTS) for number in range(QUEUE_BATCHES + 1)]
    assert [committer.submit(one, 0) for one in large] == [True] * QUEUE_BATCHES + [False]
    committer.close(SOON_S)


def test_events_that_come_one_by_one_do_not_wait_for_two_transactions(
    log: MemoryGroupLog, member: MemoryGroupConsumer
) -> None:
    committer = TransactionalCommitter(TO, lambda: log.transactional_batch_producer("id", timeout_ms=6000))
    taken = [committer.submit(batch(member, offset), 0) for offset in range(QUEUE_EVENTS + 1)]
    assert taken == [True] * QUEUE_EVENTS + [False]
    committer.close(SOON_S)


def test_dead_letters_hold_whole_events_and_do_not_queue_as_small_batches(
    log: MemoryGroupLog, member: MemoryGroupConsumer
) -> None:
    committer = TransactionalCommitter(TO, lambda: log.transactional_batch_producer("id", timeout_ms=6000))
    poison = replace(batch(member, 0), dead_letters=(DeadLetter(None, b"whole event", 0, ()),))
    assert [committer.submit(poison, 0) for _ in range(QUEUE_BATCHES + 1)] == [True] * QUEUE_BATCHES + [False]
    committer.close(SOON_S)


def test_a_fence_is_survived_but_not_one_after_another(log: MemoryGroupLog, member: MemoryGroupConsumer) -> None:
    log.next_commits.extend([CommitFault.FENCED] * FENCES_MAX)
    with transactional(log) as committer:
        for _ in range(FENCES_MAX - 1):
            committer.submit(batch(member, 0), SOON_S)
            wait_for(committer, Stage.FAILED)
            committer.resume()
        committer.submit(batch(member, 0), SOON_S)
        wait_for(committer, Stage.BROKEN)
        assert isinstance(committer.error, FencedError)
        committer.resume()
        assert committer.stage is Stage.BROKEN
    assert visible(log) == []


def test_what_can_not_get_better_breaks_the_committer_at_once(log: MemoryGroupLog, member: MemoryGroupConsumer) -> None:
    class Refused(MemoryTransactionalProducer):
        def begin(self) -> None:
            raise AuthorizationError("no ACL for this transactional id")

    with transactional(log, lambda: Refused(log, log.transactional_writer("id", timeout_ms=1))) as committer:
        committer.submit(batch(member, 0), SOON_S)
        wait_for(committer, Stage.BROKEN)
        assert isinstance(committer.error, AuthorizationError)


def test_a_failure_that_repeats_takes_a_new_producer_and_waits_longer(
    log: MemoryGroupLog, member: MemoryGroupConsumer
) -> None:
    log.next_commits.extend([CommitFault.ABORTED] * 3)
    opened = 0

    def take() -> MemoryTransactionalProducer:
        nonlocal opened
        opened += 1
        return log.transactional_batch_producer("id", timeout_ms=6000)

    delays = []
    with transactional(log, take) as committer:
        for _ in range(3):
            committer.submit(batch(member, 0), SOON_S)
            wait_for(committer, Stage.FAILED)
            delays.append(committer.retry_delay_s)
            committer.resume()
    assert opened == 3
    assert delays[0] == 0.0
    assert delays[1] < delays[2]


def test_a_producer_that_can_not_be_reopened_is_tried_until_it_can(
    log: MemoryGroupLog, member: MemoryGroupConsumer
) -> None:
    log.next_commits.append(CommitFault.REPLY_LOST_ABORTED)
    answers: list[BrokerError | None] = [None, BrokerError("no broker answers"), BrokerError("no broker answers"), None]

    def take() -> MemoryTransactionalProducer:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return log.transactional_batch_producer("id", timeout_ms=6000)

    with transactional(log, take) as committer:
        committer.submit(batch(member, 0), SOON_S)
        wait_for(committer, Stage.FAILED)
        assert answers == []


def test_close_finishes_what_was_handed_on(log: MemoryGroupLog, member: MemoryGroupConsumer) -> None:
    with transactional(log) as committer:
        committer.submit(batch(member, 0), SOON_S)
    assert visible(log) == [b"0"]


def test_at_least_once_offers_offsets_only_of_what_was_acknowledged(
    log: MemoryGroupLog, member: MemoryGroupConsumer
) -> None:
    committer = FlushingCommitter(TO, log.batch_producer)
    committer.start()
    committer.submit(batch(member, 0), SOON_S)
    assert committer.drain(SOON_S)
    too_large = ScoredBatch(
        1, 1, {(SCORES, 0): [{"key": None, "value": bytes(2_000_000)}]}, (), {0: 2}, member.group_metadata()
    )
    committer.submit(too_large, SOON_S)
    wait_for(committer, Stage.FAILED)
    assert committer.take_acknowledged() == {0: 1}
    assert committer.take_acknowledged() == {}
    committer.close(SOON_S)
    assert visible(log) == [b"0"]
