"""The scoring loop on an in-memory log: what is scored, what waits, and what every fault costs."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcast.avro import Schema
from modelcast.consumer import loop as loop_module
from modelcast.consumer.batches import BatchSizer
from modelcast.consumer.loop import ScoringLoop
from modelcast.consumer.scoring import MODEL_FAULT_ROWS
from modelcast.errors import BrokerError, FencedError
from modelcast.events.schemas import SchemaTopic
from modelcast.group import Message
from modelcast.testing.group import CommitFault

from .control_rig import wait_until
from .scorer_rig import SCORES, SOON_S, TO, FunctionServable, Rig, RunningScorer, score_all


def expected(rig: Rig, count: int, *, partition: int = 0) -> list[tuple[int, int]]:
    return [(partition, offset) for offset in range(count)]


def sources(rig: Rig) -> list[tuple[int, int]]:
    return [(partition, offset) for partition, offset, _, _ in rig.predictions()]


def test_every_event_is_scored_once_in_order_into_its_own_partition() -> None:
    rig = Rig(partitions=2)
    rig.send(range(100), partition=0)
    rig.send(range(50), partition=1)
    score_all(rig, FunctionServable(1, bias=0.5))
    assert rig.predictions() == [(0, n, 1, n + 0.5) for n in range(100)] + [(1, n, 1, n + 0.5) for n in range(50)]
    assert rig.committed() == {0: 100, 1: 50}


def test_a_prediction_has_its_event_s_key() -> None:
    rig = Rig()
    rig.send([1.0])
    score_all(rig, FunctionServable(1))
    assert [record.key for record in rig.records(SCORES)] == [b"k"]


def test_poison_goes_to_the_dead_letters_of_its_partition_and_costs_nobody_else() -> None:
    rig = Rig(partitions=2)
    rig.send([1, 2], partition=1)
    rig.send_bytes(b"garbage", partition=1)
    rig.send_bytes(None, partition=1)
    rig.send([3], partition=1)
    score_all(rig, FunctionServable(1))
    assert sources(rig) == [(1, 0), (1, 1), (1, 4)]
    letters = rig.records(TO.dead_letters)
    assert [(letter.partition, letter.value) for letter in letters] == [(1, b"garbage"), (1, None)]
    assert rig.committed()[1] == 5


def test_rows_the_model_can_not_take_are_found_by_halving() -> None:
    rig = Rig()
    rig.send([1, 2, -1, 4, 5, -1, 7])
    score_all(rig, FunctionServable(1, fails=lambda amounts: bool((amounts < 0).any())))
    assert [(offset, score) for _, offset, _, score in rig.predictions()] == [(0, 1), (1, 2), (3, 4), (4, 5), (6, 7)]
    assert len(rig.records(TO.dead_letters)) == 2


def test_a_model_that_fails_on_everything_is_blamed_and_events_wait_for_another() -> None:
    rig = Rig()
    rig.send([1, 2, 3])
    broken = threading.Event()
    with RunningScorer(rig, live=FunctionServable(1, fails=lambda _: broken.is_set())) as scorer:
        wait_until(rig.predictions, "the first predictions")
        broken.set()
        rig.send([4, 5])
        scorer.wait_waiting("fails on every event")
        assert rig.records(TO.dead_letters) == []
        scorer.slot.swap(FunctionServable(2))  # type: ignore[arg-type]
        wait_until(lambda: len(rig.predictions()) == 5, "the other version's predictions")
    assert [version for _, _, version, _ in rig.predictions()] == [1, 1, 1, 2, 2]
    assert sources(rig) == expected(rig, 5)
    assert len(scorer.heard.failed) == 1, "the fault is told once, not for every try"


def test_a_lone_event_the_model_can_not_take_is_not_the_model_s_fault() -> None:
    rig = Rig()
    rig.send([-1, 1, -1])
    live = FunctionServable(1, fails=lambda amounts: bool((amounts < 0).any()))
    score_all(rig, live, sizer=BatchSizer(events_max=1))
    assert sources(rig) == [(0, 1)]
    assert len(rig.records(TO.dead_letters)) == 2


def test_a_model_that_never_scored_is_blamed_once_too_many_events_failed() -> None:
    rig = Rig()
    rig.send(range(MODEL_FAULT_ROWS + 4))
    with RunningScorer(rig, live=FunctionServable(1, fails=lambda _: True)) as scorer:
        scorer.wait_waiting("fails on every event")
    assert rig.predictions() == rig.records(TO.dead_letters) == []


def test_events_wait_until_a_version_is_live_and_the_member_stays() -> None:
    rig = Rig()
    rig.send(range(10))
    with RunningScorer(rig, end=rig.end()) as scorer:
        scorer.wait_waiting("no version is live")
        wait_until(lambda: scorer.heard.learned, "a look at the first event")
        assert rig.records(SCORES) == []
        scorer.slot.swap(FunctionServable(1))  # type: ignore[arg-type]
        scorer.join()
    assert sources(rig) == expected(rig, 10)


def test_a_swap_falls_between_two_batches() -> None:
    rig = Rig()
    rig.send(range(200))
    swapped = threading.Event()
    first = FunctionServable(1, before=lambda: len(first.batches) < 3 or swapped.wait(SOON_S))
    second = FunctionServable(2)
    with RunningScorer(rig, live=first, end=rig.end(), sizer=BatchSizer(events_max=10)) as scorer:
        wait_until(lambda: len(first.batches) >= 3, "some batches of the first version")
        scorer.slot.swap(second)  # type: ignore[arg-type]
        swapped.set()
        scorer.join()
    assert sources(rig) == expected(rig, 200)
    assert second.batches
    versions = [version for _, _, version, _ in rig.predictions()]
    assert versions == sorted(versions)
    assert versions.count(1) == sum(first.batches)
    assert versions.count(2) == sum(second.batches)


@pytest.mark.parametrize("fault", [fault for fault in CommitFault if fault is not CommitFault.NONE])
def test_f29_whatever_becomes_of_a_commit_nothing_is_lost_doubled_or_out_of_order(fault: CommitFault) -> None:
    rig = Rig(partitions=2)
    rig.send(range(60), partition=0)
    rig.send(range(40), partition=1)
    rig.log.next_commits.extend([fault, CommitFault.NONE, fault])
    scorer = score_all(rig, FunctionServable(1), sizer=BatchSizer(events_max=7))
    assert sources(rig) == expected(rig, 60) + expected(rig, 40, partition=1)
    # A busy machine may commit all that is left at once: then a lost reply leaves nothing to go back for.
    assert scorer.heard.recovering or fault is CommitFault.REPLY_LOST_COMMITTED


@settings(max_examples=15, deadline=None)
@given(
    faults=st.lists(st.sampled_from(CommitFault), max_size=8).filter(
        lambda faults: faults.count(CommitFault.FENCED) < 3
    ),
    events_max=st.integers(1, 30),
)
def test_f29_any_row_of_faults_leaves_every_event_scored_once(faults: list[CommitFault], events_max: int) -> None:
    rig = Rig()
    rig.send(range(80))
    rig.log.next_commits.extend(faults)
    score_all(rig, FunctionServable(1), sizer=BatchSizer(events_max=events_max))
    assert sources(rig) == expected(rig, 80)


def test_f41_a_member_that_lost_its_partitions_commits_nothing_for_them() -> None:
    rig = Rig()
    rig.send(range(20))
    running, go_on = threading.Event(), threading.Event()

    def stall() -> None:
        running.set()
        assert go_on.wait(60)

    with RunningScorer(rig, live=FunctionServable(1, before=stall), end=rig.end()) as slow:
        assert running.wait(60)
        rig.log.lose(slow.consumer)  # the broker thinks it dead in the middle of a batch
        with RunningScorer(rig, live=FunctionServable(2), end=rig.end()) as quick:
            quick.join()
            go_on.set()
            slow.join()
    assert sources(rig) == expected(rig, 20)
    assert {version for _, _, version, _ in rig.predictions()} == {2}


def test_scorers_of_a_group_share_the_partitions_across_joins_and_leaves() -> None:
    rig = Rig(partitions=4)
    for partition in range(4):
        rig.send(range(300), partition=partition)
    hurry = threading.Event()  # until both have scored, the first must not score all by itself

    def scorer() -> RunningScorer:
        paced = FunctionServable(1, before=lambda: hurry.wait(0.05))
        return RunningScorer(rig, live=paced, end=rig.end(), sizer=BatchSizer(events_max=5))

    with scorer() as first:
        wait_until(lambda: first.committer.totals.events > 50, "the first scorer's commits")
        with scorer() as second:
            wait_until(lambda: second.committer.totals.events > 50, "the second scorer's commits")
            hurry.set()
        first.join()
    assert (first.error, second.error) == (None, None)
    assert sources(rig) == [pair for partition in range(4) for pair in expected(rig, 300, partition=partition)]


def test_a_second_process_under_one_instance_ends_the_first_with_the_error_that_says_so() -> None:
    rig = Rig()
    rig.send(range(5))
    with RunningScorer(rig, live=FunctionServable(1), instance="host-0") as first:
        wait_until(lambda: len(rig.predictions()) == 5, "the first scorer's predictions")
        with RunningScorer(rig, live=FunctionServable(1), instance="host-0") as second:
            wait_until(lambda: first.error is not None, "the fence")
            assert isinstance(first.error, FencedError)
            rig.send([9])
            wait_until(lambda: len(rig.predictions()) == 6, "the second scorer's prediction")
            assert second.error is None
    assert sources(rig) == expected(rig, 6)


def test_the_end_is_passed_even_if_only_markers_and_aborted_records_stand_before_it() -> None:
    rig = Rig()
    rig.send(range(3))
    writer = rig.log.transactional_writer("feeder", timeout_ms=1000)
    for commit in (True, False):
        writer.begin()
        writer.send(TO.events, key=None, value=b'{"amount": 7, "age": 1}', partition=0)
        writer.commit() if commit else writer.abort()
    assert rig.end().ends == {0: 7}
    score_all(rig, FunctionServable(1))
    assert sources(rig) == [(0, 0), (0, 1), (0, 2), (0, 3)]
    assert rig.committed() == {0: 7}


def test_an_empty_topic_is_at_its_end() -> None:
    rig = Rig(partitions=3)
    score_all(rig, FunctionServable(1))
    assert rig.predictions() == []


def test_at_least_once_commits_what_was_delivered_and_repeats_after_a_failure() -> None:
    rig = Rig()
    rig.send(range(30))
    score_all(rig, FunctionServable(1), at_least_once=True, sizer=BatchSizer(events_max=10))
    assert sources(rig) == expected(rig, 30)
    assert rig.committed() == {0: 30}


def test_events_of_an_unknown_schema_wait_for_it_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "UNKNOWN_SCHEMA_PATIENCE_S", 0.3)
    rig = Rig()
    rig.send([1])
    rig.send_bytes(b"\xc3\x01" + bytes(range(8)) + b"datum")
    rig.send([2])
    scorer = score_all(rig, FunctionServable(1))
    assert any("0001020304050607" in (reason or "") for reason in scorer.heard.waiting)
    assert sources(rig) == [(0, 0), (0, 2)]
    (letter,) = rig.records(TO.dead_letters)
    assert (b"UnknownSchema" in dict(letter.headers).values()) is True


def test_a_broker_away_while_a_schema_is_described_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    register, away = SchemaTopic.register, iter([True, True])

    def register_once_back(topic: SchemaTopic, schema: Schema) -> None:
        if next(away, False):
            raise BrokerError("no broker answers")
        register(topic, schema)

    monkeypatch.setattr(SchemaTopic, "register", register_once_back)
    rig = Rig()
    rig.send(range(5))
    scorer = score_all(rig, FunctionServable(1))
    assert scorer.error is None
    assert any("no broker answers" in (reason or "") for reason in scorer.heard.waiting)
    assert sources(rig) == expected(rig, 5)


def test_events_dropped_in_a_rebalance_are_not_committed_as_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    consume, changed = ScoringLoop._consume, iter([True])

    def consume_across_a_rebalance(loop: ScoringLoop, count: int, timeout_s: float) -> list[Message]:
        if count > 1 and next(changed, False):
            loop._assignment.assigned([0])  # as the client calls it: a batch's first event is taken, the others come
        return consume(loop, count, timeout_s)

    monkeypatch.setattr(ScoringLoop, "_consume", consume_across_a_rebalance)
    rig = Rig()
    rig.send(range(100))
    scorer = score_all(rig, FunctionServable(1))
    assert scorer.error is None
    assert sources(rig) == expected(rig, 100)


def test_stop_leaves_nothing_half_done() -> None:
    rig = Rig()
    rig.send(range(500))
    with RunningScorer(rig, live=FunctionServable(1), sizer=BatchSizer(events_max=10)) as scorer:
        wait_until(lambda: scorer.committer.totals.events > 20, "some commits")
    assert scorer.error is None
    assert len(rig.predictions()) == rig.committed()[0]
    assert sources(rig) == expected(rig, rig.committed()[0])


def test_f32_a_model_slower_than_a_poll_may_take_keeps_its_member_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "RUN_INLINE_S", 0.02)
    rig = Rig()
    rig.send(range(3))
    polls: list[float] = []
    enough = threading.Event()
    slow = FunctionServable(1, before=lambda: enough.wait(60))
    with RunningScorer(rig, live=slow, end=rig.end()) as scorer:
        consume = scorer.consumer.consume

        def counted(count: int, timeout_s: float) -> object:
            polls.append(timeout_s)
            if polls.count(0.0) >= 5:
                enough.set()
            return consume(count, timeout_s)

        monkeypatch.setattr(scorer.consumer, "consume", counted)
        scorer.join()
    assert enough.is_set(), "no polling while the model ran"
    assert sources(rig) == expected(rig, 3)
    assert slow.batches == [3]


def test_f33_a_batch_that_names_thousands_of_schemas_nobody_described_is_done_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop_module, "UNKNOWN_SCHEMA_PATIENCE_S", 0.1)
    rig = Rig()
    for number in range(3000):
        rig.send_bytes(b"\xc3\x01" + number.to_bytes(8, "little"))
    with RunningScorer(rig, live=FunctionServable(1), end=rig.end(), sizer=one_batch()) as scorer:
        scorer.join()
    assert len(rig.records(TO.dead_letters)) == 3000


def one_batch() -> BatchSizer:
    sizer = BatchSizer()
    sizer.record(20_000, 10, 0.001, FunctionServable(1).id)
    while sizer.limit < 20_000:
        sizer.record(20_000, 10, 0.001, FunctionServable(1).id)
    return sizer
