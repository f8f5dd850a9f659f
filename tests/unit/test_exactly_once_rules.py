"""The rules exactly-once rests on, each alone: on a broker, another one may save what breaks with one of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from modelcast.consumer.batches import BatchSizer
from modelcast.consumer.commit import ScoredBatch
from modelcast.consumer.loop import GATHER_S
from modelcast.group import GroupMetadata
from modelcast.testing.group import CommitFault, MemoryGroupConsumer, MemoryTransactionalProducer

from .control_rig import wait_until
from .scorer_rig import FunctionServable, Rig, RunningScorer

SOON_S = 60.0


class Gate:
    """Holds every commit of the group log's producers until it is opened; tells of each that begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.reached, self._open = threading.Event(), threading.Event()
        begin, commit = MemoryTransactionalProducer.begin, MemoryTransactionalProducer.commit

        def counted(producer: MemoryTransactionalProducer) -> None:
            self.begun += 1
            begin(producer)

        def held(producer: MemoryTransactionalProducer) -> None:
            self.reached.set()
            assert self._open.wait(SOON_S)
            commit(producer)

        monkeypatch.setattr(MemoryTransactionalProducer, "begin", counted)
        monkeypatch.setattr(MemoryTransactionalProducer, "commit", held)

    def open(self) -> None:
        self._open.set()


def sources(rig: Rig) -> list[tuple[int, int]]:
    return [(partition, offset) for partition, offset, _, _ in rig.predictions()]


def test_group_metadata_is_taken_with_the_batch_and_goes_with_its_commit() -> None:
    rig = Rig()
    rig.send(range(3))
    happened: list[str] = []
    taken: list[GroupMetadata] = []
    handed_on: list[ScoredBatch] = []
    scorer = RunningScorer(
        rig, live=FunctionServable(1, before=lambda: happened.append("scored")), end=rig.end(), instance="a"
    )
    take, submit = scorer.consumer.group_metadata, scorer.committer.submit

    def noted() -> GroupMetadata:
        happened.append("metadata")
        taken.append(take())
        return taken[-1]

    def seen(batch: ScoredBatch, timeout_s: float) -> bool:
        handed_on.append(batch)
        return submit(batch, timeout_s)

    scorer.consumer.group_metadata = noted  # type: ignore[method-assign]
    scorer.committer.submit = seen  # type: ignore[method-assign]
    with scorer:
        scorer.join()
    assert happened == ["metadata", "scored"], "scored first, a rebalance meanwhile would be committed over"
    assert handed_on[0].metadata is taken[0]


def test_offsets_are_committed_with_the_metadata_of_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[object] = []
    send = MemoryTransactionalProducer.send_offsets

    def seen(
        producer: MemoryTransactionalProducer, topic: str, offsets: Mapping[int, int], metadata: GroupMetadata
    ) -> None:
        used.append(metadata)
        send(producer, topic, offsets, metadata)

    monkeypatch.setattr(MemoryTransactionalProducer, "send_offsets", seen)
    rig = Rig()
    rig.send(range(3))
    handed_on: list[ScoredBatch] = []
    scorer = RunningScorer(rig, live=FunctionServable(1), end=rig.end())
    submit = scorer.committer.submit
    scorer.committer.submit = lambda batch, timeout_s: (  # type: ignore[method-assign]
        handed_on.append(batch) or submit(batch, timeout_s)  # type: ignore[func-returns-value]
    )
    with scorer:
        scorer.join()
    assert [id(metadata) for metadata in used] == [id(batch.metadata) for batch in handed_on]


def test_on_revoke_what_was_handed_on_is_visible_before_the_partitions_are_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(partitions=2)
    for partition in (0, 1):
        rig.send(range(30), partition=partition)  # one batch together: a next one would be of the generation before
    gate = Gate(monkeypatch)
    end = rig.end()
    with RunningScorer(rig, live=FunctionServable(1), end=end) as first:
        assert gate.reached.wait(SOON_S)
        with RunningScorer(rig, live=FunctionServable(2), end=end) as second:
            wait_until(lambda: second.consumer.joined, "the second scorer to ask for its share")
            assert second.consumer.assignment() == []
            gate.open()
            second.join()
        first.join()
    assert first.heard.recovering == second.heard.recovering == [], "a batch was refused and had to be scored again"
    assert sources(rig) == [(partition, offset) for partition in (0, 1) for offset in range(30)]


def test_on_loss_what_waits_is_dropped_and_never_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.send(range(40))
    gate = Gate(monkeypatch)
    with RunningScorer(rig, live=FunctionServable(1)) as scorer:
        assert gate.reached.wait(SOON_S)
        rig.send(range(10))
        wait_until(lambda: scorer.committer._state.queue, "a batch behind the one being committed")
        begun = gate.begun
        begun_at_loss: list[int] = []  # counted then and there: soon after, what was dropped is begun again
        revoked = scorer.loop._assignment.revoked

        def noted(partitions: Sequence[int]) -> None:
            begun_at_loss.append(gate.begun)
            revoked(partitions)

        scorer.loop._assignment.revoked = noted  # type: ignore[method-assign]
        discard = scorer.committer.discard

        def discarded() -> None:
            discard()
            gate.open()

        scorer.committer.discard = discarded  # type: ignore[method-assign]
        rig.log.lose(scorer.consumer)
        wait_until(lambda: begun_at_loss, "the loss")
        assert begun_at_loss[0] == begun, "a batch of a lost assignment was sent to the broker"
        wait_until(lambda: len(rig.predictions()) == 50, "all predictions, after it came back")
    assert sources(rig) == [(0, offset) for offset in range(50)]


def test_few_events_wait_for_more_while_a_transaction_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.send(range(5))
    gate = Gate(monkeypatch)
    more = iter([2])  # come while the first batch is scored
    waited_s: list[float] = []

    def sleep(seconds: float) -> None:
        waited_s.append(seconds)
        rig.send(range(3))

    servable = FunctionServable(1, before=lambda: rig.send(range(next(more, 0))))
    scorer = RunningScorer(rig, live=servable, sizer=BatchSizer())
    scorer.loop._sleep = sleep
    with scorer:
        wait_until(lambda: servable.batches[1:], "a batch behind the one being committed")
        gate.open()
        wait_until(lambda: len(rig.predictions()) == 10, "all predictions")
    assert waited_s == [GATHER_S]
    assert servable.batches == [5, 5]


@pytest.mark.parametrize("fault", [CommitFault.REPLY_LOST_COMMITTED, CommitFault.REPLY_LOST_ABORTED])
def test_in_doubt_nothing_is_asked_of_the_producer_and_offsets_are_read_after_its_successor_took_the_id(
    monkeypatch: pytest.MonkeyPatch, fault: CommitFault
) -> None:
    happened: list[str] = []
    spy(monkeypatch, MemoryTransactionalProducer, "commit", lambda: happened.append("commit"))
    spy(monkeypatch, MemoryTransactionalProducer, "begin", lambda: happened.append("begin"))
    spy(monkeypatch, MemoryTransactionalProducer, "__init__", lambda: happened.append("take"))
    spy(monkeypatch, MemoryGroupConsumer, "seek", lambda: happened.append("rewind"))
    rig = Rig()
    rig.send(range(5))
    rig.log.next_commits.append(fault)
    with RunningScorer(rig, live=FunctionServable(1)):
        wait_until(lambda: "rewind" in happened, "the committed offsets")
    doubt = happened.index("commit")
    assert happened[: doubt + 1] == ["take", "begin", "commit"]
    assert happened[doubt + 1 : doubt + 3] == ["take", "rewind"]


def spy(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, note: Callable[[], None]) -> None:
    """Notes every call of a method before it is made."""
    original = getattr(owner, name)

    def noted(*arguments: Any, **named: Any) -> Any:
        note()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, noted)
