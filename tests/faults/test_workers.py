"""`score --workers`: workers and their supervisor killed, judged from the topics by an oracle that shares no code."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from modelcast.dev.broker import LocalBroker
from modelcast.dev.process import start_time
from modelcast.errors import ExitCode
from tests.machine import Stopwatch

from . import oracle
from .scorer_processes import ScoreProcess, Stage, wait_for

KILLS = 4
STOPPED_WITHIN_S = 35.0  # as documented


@pytest.fixture
def stage(broker: LocalBroker, prefix: str, tmp_path: Path) -> Stage:
    return Stage(broker.bootstrap_servers, prefix, tmp_path)


def whole(stage: Stage) -> None:
    judged = oracle.judge(
        stage.servers,
        events=stage.events,
        predictions=stage.predictions,
        dead_letters=stage.dead_letters,
        schemas=stage.schemas,
    )
    print(judged)
    assert judged.is_whole
    assert judged.predictions == judged.events


def pids(scorer: ScoreProcess) -> dict[int, int]:
    """The process of each worker now."""
    lines = [line for line in list(scorer.lines) if line.get("event") == "worker_started"]
    return {line["worker"]: line["pid"] for line in lines}


def heard(scorer: ScoreProcess, event: str, worker: int) -> int:
    return sum(line.get("event") == event and line.get("worker") == worker for line in list(scorer.lines))


def test_f27_workers_killed_again_and_again_come_back_and_lose_double_and_reorder_nothing(stage: Stage) -> None:
    stage.publish(0.5)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with stage.feeding(1_000) as feeder, stage.score("--workers", "2") as scorer:
        for worker in (0, 1):
            scorer.wait_line("live", worker=worker)
        for kill in range(KILLS):
            victim = chance.randrange(2)
            lives = heard(scorer, "live", victim)
            time.sleep(chance.random() * 0.5)  # anywhere in a transaction
            os.kill(pids(scorer)[victim], signal.SIGKILL)
            if kill == 1:
                stage.publish(1.5)  # a swap falls among the kills
            wait_for(lambda: heard(scorer, "live", victim) > lives, "its successor to be live")  # noqa: B023
        began = time.monotonic()
        assert scorer.end() == 0, scorer.last_words()
        print(f"ended {time.monotonic() - began:.1f} s after SIGTERM")
        assert feeder.sent > 1_000
    assert scorer.lines[-1]["restarts"] == KILLS
    instances = {line["instance"] for line in scorer.lines if line["event"] == "started"}
    assert len(instances) == 2, "whoever comes back is who was there"
    stage.finish("--workers", "2")
    whole(stage)


def test_f27_workers_of_a_killed_supervisor_end_by_themselves_and_lose_nothing(stage: Stage) -> None:
    stage.publish(0.5)
    with stage.feeding(1_000) as feeder:
        with stage.score("--workers", "2") as scorer:
            for worker in (0, 1):
                scorer.wait_line("live", worker=worker)
            behind = dict(feeder.next_offsets)
            wait_for(lambda: _passed(stage, behind), f"predictions of all partitions; it said {scorer.lines}")
            workers = {pid: start_time(pid) for pid in pids(scorer).values()}
            scorer.kill()
            watch = Stopwatch()
            wait_for(
                lambda: not any(start_time(pid) == started for pid, started in workers.items()),
                "the workers to end",
                4 * STOPPED_WITHIN_S,
            )
            assert watch.allows(watch.took_s, STOPPED_WITHIN_S)
        assert feeder.sent > 0
    stage.finish("--workers", "2")
    whole(stage)


def _passed(stage: Stage, behind: dict[int, int]) -> bool:
    written = oracle.end_offsets(stage.servers, stage.predictions, committed=True)
    return all(written[partition] >= offset for partition, offset in behind.items())


def test_f30_a_worker_stopped_past_its_transaction_goes_on_or_comes_back(stage: Stage) -> None:
    stage.publish(0.5)
    with stage.feeding(1_000) as feeder, stage.score("--workers", "2") as scorer:
        for worker in (0, 1):
            scorer.wait_line("live", worker=worker)
        frozen = pids(scorer)[1]
        os.kill(frozen, signal.SIGSTOP)
        behind = dict(feeder.next_offsets)
        time.sleep(9)  # its session of 6 s and its transaction's 6 s are over
        wait_for(lambda: _passed(stage, behind), "the other to have its partitions")
        os.kill(frozen, signal.SIGCONT)
        behind = dict(feeder.next_offsets)
        wait_for(lambda: _passed(stage, behind), "every partition to be scored again")
        assert scorer.process.poll() is None, scorer.last_words()
        # Whoever was fenced may be about to end when all are asked to.
        assert scorer.end() in (ExitCode.DONE, ExitCode.FENCED), scorer.last_words()
    stage.finish("--workers", "2")
    whole(stage)
