"""How many events wait: counted from a member's positions to the ends, by a thread that nobody waits for."""

from __future__ import annotations

import threading
import time

import pytest

from modelcast.consumer.lag import CLOSE_TIMEOUT_S, LagMeter
from modelcast.errors import BrokerError
from modelcast.log import TopicSpec
from modelcast.testing.memory import MemoryLog

from .control_rig import wait_until
from .scorer_rig import TO, FunctionServable, Rig, RunningScorer


class Answering(MemoryLog):
    """Two partitions of ten and five events, the first three of partition 0 gone; may be away, or hang."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.hangs: threading.Event | None = None
        self.create(TopicSpec("events", 2))
        writer = self.writer()
        for partition, count in ((0, 10), (1, 5)):
            for _ in range(count):
                writer.send("events", key=None, value=b"", partition=partition)

    def begin_offsets(self, topic: str) -> dict[int, int]:
        if self.hangs is not None:
            self.hangs.wait(60.0)
        if self.away:
            raise BrokerError("no broker answers")
        return {**super().begin_offsets(topic), 0: 3}


@pytest.fixture
def log() -> Answering:
    return Answering()


@pytest.fixture
def meter(log: Answering) -> LagMeter:
    meter = LagMeter(log, "events", every_s=0.005)
    meter.ask()
    return meter


def test_it_is_the_sum_of_what_is_ahead_of_each_position(meter: LagMeter) -> None:
    assert meter.lag({0: 8, 1: 5}) == 2
    assert meter.lag({1: 1}) == 4


def test_a_partition_nobody_consumed_from_waits_from_its_beginning(meter: LagMeter) -> None:
    assert meter.lag({0: None, 1: None}) == 7 + 5


def test_what_is_gone_does_not_wait_and_what_came_since_the_answer_is_not_less_than_nothing(meter: LagMeter) -> None:
    assert meter.lag({0: 0}) == 7
    assert meter.lag({0: 12}) == 0


def test_without_partitions_or_before_an_answer_there_is_no_lag_to_tell(log: Answering, meter: LagMeter) -> None:
    assert meter.lag({}) is None
    assert LagMeter(log, "events").lag({0: 0}) is None


def test_while_kafka_is_away_it_is_not_known_and_afterwards_it_is(log: Answering, meter: LagMeter) -> None:
    meter.start()
    log.away = True
    wait_until(lambda: meter.lag({0: 8}) is None, "the answer to be given up")
    log.away = False
    wait_until(lambda: meter.lag({0: 8}) == 2, "the next answer")
    meter.close()


def test_a_question_that_hangs_keeps_nobody_from_ending(log: Answering) -> None:
    log.hangs = threading.Event()
    meter = LagMeter(log, "events")
    meter.start()
    started = time.monotonic()
    meter.close()
    assert time.monotonic() - started < CLOSE_TIMEOUT_S + 30.0
    log.hangs.set()


def test_events_that_wait_for_their_schema_are_lag_though_they_were_fetched() -> None:
    rig = Rig(partitions=2)
    rig.send_bytes(b"\xc3\x01" + bytes(range(8)) + b"datum")
    rig.send([1, 2])
    meter = LagMeter(rig.log, TO.events)
    meter.ask()
    seen: list[int | None] = []
    scorer = RunningScorer(rig, live=FunctionServable(1))
    scorer.on_tick = lambda: seen.append(meter.lag(scorer.loop.positions()))
    with scorer:
        wait_until(lambda: any("0001020304050607" in (reason or "") for reason in scorer.heard.waiting), "the wait")
        told = len(seen)
        wait_until(lambda: len(seen) > told + 1, "more looks")
        assert seen[-1] == 3


def test_a_scorer_without_a_version_lags_and_one_that_has_scored_does_not() -> None:
    rig = Rig(partitions=2)
    rig.send([1, 2, 3], partition=0)
    rig.send([4], partition=1)
    meter = LagMeter(rig.log, TO.events)
    meter.ask()
    seen: list[int | None] = []
    scorer = RunningScorer(rig)
    scorer.on_tick = lambda: seen.append(meter.lag(scorer.loop.positions()))
    with scorer:
        wait_until(lambda: seen and seen[-1] == 4, "events to wait")
        scorer.slot.swap(FunctionServable(1))  # type: ignore[arg-type]
        wait_until(lambda: seen[-1] == 0, "events to be scored")
    assert scorer.error is None
