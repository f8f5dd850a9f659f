"""`score --workers N` on a real broker: real processes, real kills, judged from the topics."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.faults import oracle
from tests.faults.scorer_processes import ScoreProcess, Stage, wait_for


@pytest.fixture
def stage(broker: Broker, prefix: str, tmp_path: Path) -> Stage:
    return Stage(broker.bootstrap_servers, prefix, tmp_path)


def whole(stage: Stage) -> oracle.Verdict:
    judged = oracle.judge(
        stage.servers,
        events=stage.events,
        predictions=stage.predictions,
        dead_letters=stage.dead_letters,
        schemas=stage.schemas,
    )
    assert judged.is_whole, judged
    return judged


def predictions(stage: Stage) -> int:
    return sum(oracle.end_offsets(stage.servers, stage.predictions, committed=True).values())


def pid_of(scorer: ScoreProcess, worker: int) -> int:
    """The process that is this worker now."""
    return int(
        [line for line in scorer.lines if line.get("event") == "worker_started" and line["worker"] == worker][-1]["pid"]
    )


def test_workers_share_the_stream_and_one_that_is_killed_comes_back_as_who_it_was(stage: Stage) -> None:
    stage.publish(0.5)
    with stage.feeding(400) as feeder, stage.score("--instance", "web", "--workers", "2") as scorer:
        for worker in (0, 1):
            assert scorer.wait_line("started", worker=worker)["instance"] == f"web-{worker}"
            scorer.wait_line("live", worker=worker)
        wait_for(lambda: predictions(stage) > 100, "predictions")
        killed = pid_of(scorer, 1)
        os.kill(killed, signal.SIGKILL)
        assert scorer.wait_line("worker_ended", worker=1)["how"] == "SIGKILL"
        wait_for(lambda: pid_of(scorer, 1) != killed, "its successor")
        wait_for(lambda: _starts(scorer, 1) == 2, "its successor to start")
        behind = dict(feeder.next_offsets)
        wait_for(lambda: _passed(stage, behind), "every partition to be scored again")
        assert scorer.end() == 0, scorer.last_words()
        assert scorer.wait_line("stopped", workers=2)["restarts"] == 1
    assert {line["instance"] for line in scorer.lines if line["event"] == "started"} == {"web-0", "web-1"}
    total = stage.finish("--workers", "2")
    assert (total["event"], total["left"], total["workers"]) == ("stopped", 0, 2), "it ends when every worker has"
    judged = whole(stage)
    assert judged.predictions == judged.events


def _starts(scorer: ScoreProcess, worker: int) -> int:
    return sum(line["event"] == "started" and line["worker"] == worker for line in list(scorer.lines))


def _passed(stage: Stage, behind: dict[int, int]) -> bool:
    written = oracle.end_offsets(stage.servers, stage.predictions, committed=True)
    return all(written[partition] >= offset for partition, offset in behind.items())


def test_what_can_not_be_scored_ends_all_with_one_error_and_its_exit_status(stage: Stage) -> None:
    stage.publish(0.5)
    done = subprocess.run(
        [
            sys.executable, "-m", "modelcast", "score", "fraud@9", "--events", stage.events,
            "--predictions", stage.predictions, "--workers", "2",
        ],
        env=stage.environment(), capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert done.stderr.count("error:") == 1
    assert "'fraud' has no version 9" in done.stderr
    assert done.stdout == ""
