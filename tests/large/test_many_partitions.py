"""256 partitions of events: one scorer drains them, two share them, one is killed and the other takes over."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from modelcast.dev.broker import LocalBroker
from modelcast.kafka import KafkaLog
from tests.faults.scorer_processes import ScoreProcess, Stage, wait_for

from .processes import Memory, memory_of

PARTITIONS = 256
BACKLOG = 256_000
SENT_AT_ONCE = 32_000  # less than a client's queue holds
PER_SECOND = 2_560
# Joining with this many partitions, and the first transactions on each, on a machine that has other things to do.
PATIENCE_S = 180.0
# A scorer of one partition takes some 150 MB; what a stream may hold beside that does not grow with partitions.
SCORER_BYTES = 700_000_000
# What is promised of a scorer that is gone for good is 20 s on a quiet machine.
TAKEN_OVER_S = 60.0


@pytest.fixture
def stage(broker: LocalBroker, prefix: str, tmp_path: Path) -> Stage:
    stage = Stage(broker.bootstrap_servers, prefix, tmp_path, partitions=PARTITIONS)
    stage.publish(0.5)
    return stage


def passed(stage: Stage, offsets: dict[int, int]) -> bool:
    committed = stage.committed()
    return all(committed.get(partition, 0) >= offset for partition, offset in offsets.items())


def memory(scorer: ScoreProcess) -> Memory:
    return memory_of(scorer.process.pid)


def members(stage: Stage) -> list[int]:
    """How many partitions each instance has."""
    return sorted(len(stage.partitions_of(instance)) for instance in ("one", "two"))


@pytest.mark.timeout(900)
def test_256_partitions_are_drained_shared_and_taken_over_with_nothing_lost_or_doubled(stage: Stage) -> None:
    for start in range(0, BACKLOG, SENT_AT_ONCE):
        stage.send(SENT_AT_ONCE, start=start)
    with stage.score("--instance", "one") as one:
        one.wait_line("live", PATIENCE_S)
        began = time.monotonic()
        wait_for(lambda: passed(stage, {0: 1}), "the first transaction", PATIENCE_S)
        first_s = time.monotonic() - began
        each = BACKLOG // PARTITIONS
        wait_for(lambda: passed(stage, dict.fromkeys(range(PARTITIONS), each)), "the backlog", PATIENCE_S)
        print(
            f"\n{BACKLOG:,} events of {PARTITIONS} partitions scored in {time.monotonic() - began:.1f} s by one scorer "
            f"(first commit after {first_s:.1f} s): {memory(one)}"
        )
        with stage.feeding(PER_SECOND) as feeder, stage.score("--instance", "two") as two:
            two.wait_line("live", PATIENCE_S)
            began = time.monotonic()
            wait_for(lambda: members(stage) == [PARTITIONS // 2] * 2, "the partitions to be shared", PATIENCE_S)
            behind = dict(feeder.next_offsets)
            wait_for(lambda: passed(stage, behind), "both scorers to go on", PATIENCE_S)
            print(
                f"shared and scored again by two after {time.monotonic() - began:.1f} s: {memory(one)}; {memory(two)}"
            )
            two.kill()
            began, behind = time.monotonic(), dict(feeder.next_offsets)
            wait_for(lambda: passed(stage, behind), "the other one to take over", PATIENCE_S)
            taken_over_s = time.monotonic() - began
            print(f"all of them scored again {taken_over_s:.1f} s after one was killed; {feeder.sent:,} events sent")
            assert memory(one).own < SCORER_BYTES
        # What the feeder was told of lags behind what it sent, on a busy broker by tens of thousands.
        wait_for(lambda: not feeder.is_alive(), "the feeder's last acknowledgements", PATIENCE_S)
        with KafkaLog({"bootstrap.servers": stage.servers}) as log:
            ends = dict(log.end_offsets(stage.events, committed=False))
        wait_for(lambda: passed(stage, ends), "all that was sent to be scored", PATIENCE_S)
        assert one.end() == 0, one.last_words()
    verdict = stage.judge()
    assert verdict.is_whole
    assert verdict.predictions == verdict.events == BACKLOG + feeder.sent
    assert taken_over_s < TAKEN_OVER_S
