"""The scoring loop where the group, the producer or a model is late at the wrong moment."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from concurrent.futures import TimeoutError as StillRunning
from typing import Any

import pytest

from modelcast.consumer import loop as loop_module
from modelcast.consumer.batches import BatchSizer
from modelcast.consumer.end import EndOfTopic
from modelcast.errors import FencedError
from modelcast.testing.group import MemoryBatchProducer, MemoryGroupConsumer, MemoryTransactionalProducer

from .control_rig import wait_until
from .scorer_rig import FunctionServable, Rig, RunningScorer, score_all


def sources(rig: Rig) -> list[tuple[int, int]]:
    return [(partition, offset) for partition, offset, _, _ in rig.predictions()]


@pytest.mark.parametrize("at_least_once", [False, True])
def test_f31_a_commit_too_slow_for_a_revocation_loses_no_event_of_the_partitions_that_stay(
    monkeypatch: pytest.MonkeyPatch, at_least_once: bool
) -> None:
    """As the incremental protocols revoke: one partition goes, the other stays where it was."""
    monkeypatch.setattr(loop_module, "REVOKE_DRAIN_S", 0.05)
    producer: Any = MemoryBatchProducer if at_least_once else MemoryTransactionalProducer
    finish = "settle" if at_least_once else "commit"
    committing, go_on, revoked = threading.Event(), threading.Event(), threading.Event()
    original = getattr(producer, finish)

    def slow(self: Any, *arguments: Any) -> Any:
        committing.set()
        assert go_on.wait(60)
        return original(self, *arguments)

    monkeypatch.setattr(producer, finish, slow)
    rig = Rig(partitions=2)
    rig.send(range(2), partition=0)
    sizer = BatchSizer(events_max=2)
    with RunningScorer(rig, live=FunctionServable(1), at_least_once=at_least_once, sizer=sizer) as scorer:

        def revoke() -> None:
            if committing.is_set() and scorer.committer._state.queue and not revoked.is_set():
                scorer.loop._revoked([1])
                revoked.set()
                go_on.set()

        scorer.on_tick = revoke
        assert committing.wait(60)
        rig.send(range(2, 20), partition=0)
        assert revoked.wait(60)
        wait_until(lambda: rig.committed().get(0) == 20, "the end of the partition that stayed")
    assert scorer.error is None
    assert set(sources(rig)) == {(0, offset) for offset in range(20)}
    if not at_least_once:
        assert sources(rig) == [(0, offset) for offset in range(20)]


def test_f32_a_slow_batch_that_is_done_just_when_its_wait_ends_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "RUN_INLINE_S", 0.0)
    result = Future.result

    def late(future: Future[Any], timeout: float | None = None) -> Any:
        if timeout is not None and not hasattr(future, "asked"):
            future.asked = True  # type: ignore[attr-defined]
            result(future)  # it ends between the end of the wait and the look at it
            raise StillRunning
        return result(future, timeout)

    monkeypatch.setattr(Future, "result", late)
    rig = Rig()
    rig.send(range(5))
    scorer = score_all(rig, FunctionServable(1))
    assert scorer.error is None
    assert sources(rig) == [(0, offset) for offset in range(5)]


def test_partitions_added_while_a_scorer_runs_to_the_end_are_beyond_it() -> None:
    rig = Rig(partitions=2)
    rig.send(range(3), partition=0)
    rig.send(range(3), partition=1)
    end = EndOfTopic({0: 0}, {0: 3})  # as it was before the second partition
    with RunningScorer(rig, live=FunctionServable(1), end=end) as scorer:
        scorer.join()
    assert scorer.error is None
    assert [source for source in sources(rig) if source[0] == 0] == [(0, 0), (0, 1), (0, 2)]


def test_a_fence_told_by_a_commit_is_survived_as_one_told_by_a_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    commit, fences = MemoryGroupConsumer.commit, iter([True])

    def fenced_once(consumer: MemoryGroupConsumer, offsets: dict[int, int]) -> None:
        if next(fences, False):
            raise FencedError("the coordinator forgot this static member")
        commit(consumer, offsets)

    monkeypatch.setattr(MemoryGroupConsumer, "commit", fenced_once)
    rig = Rig()
    rig.send(range(10))
    scorer = score_all(rig, FunctionServable(1), at_least_once=True)
    assert scorer.error is None
    assert set(sources(rig)) == {(0, offset) for offset in range(10)}
    assert rig.committed() == {0: 10}
