"""A version that kills whoever loads it, under a supervisor that starts every scorer again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from modelcast.dev.broker import LocalBroker
from modelcast.kafka import KafkaLog
from modelcast.records import GRAPH_PATH
from modelcast.topics import Topics
from tests.publishing import image

from . import oracle
from .scorer_processes import ROOT, Stage, wait_for

# A crash loop would have as many in some seconds.
STARTS_MAX = 6


class Supervisor(threading.Thread):
    """Starts a scorer again whenever it was killed, as systemd or a kubelet does."""

    def __init__(self, stage: Stage, crashing: str) -> None:
        super().__init__(daemon=True)
        self._line = [
            sys.executable, "-m", "tests.faults.crashing_scorer", crashing, "score", "fraud",
            "--events", stage.events, "--predictions", stage.predictions, "--json",
        ]  # fmt: skip
        self._environment = stage.environment()
        self.deaths: list[int] = []
        self.said: list[dict[str, Any]] = []
        self.process: subprocess.Popen[str] | None = None
        self.is_ending = False

    def run(self) -> None:
        for _ in range(STARTS_MAX):
            with subprocess.Popen(
                self._line,
                cwd=ROOT,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            ) as self.process:
                assert self.process.stdout is not None
                for line in self.process.stdout:
                    self.said.append({**json.loads(line), "start": len(self.deaths)})
            if self.is_ending:
                return
            self.deaths.append(self.process.returncode)

    def heard(self, event: str, **fields: object) -> bool:
        return any(
            line["event"] == event and all(line.get(name) == value for name, value in fields.items())
            for line in list(self.said)
        )

    def end(self) -> None:
        self.is_ending = True
        if self.process is not None:
            self.process.terminate()
        self.join(60)
        assert not self.is_alive()


@contextmanager
def supervised(stage: Stage, crashing: str) -> Iterator[Supervisor]:
    supervisor = Supervisor(stage, crashing)
    supervisor.start()
    try:
        yield supervisor
    finally:
        supervisor.end()


@pytest.fixture
def stage(broker: LocalBroker, prefix: str, tmp_path: Path) -> Stage:
    return Stage(broker.bootstrap_servers, prefix, tmp_path)


def graph_digest(stage: Stage, version: int) -> str:
    with closing(KafkaLog({"bootstrap.servers": stage.servers})) as log:
        manifest = image(log, Topics(stage.prefix)).models["fraud"].version(version).manifest
    return next(entry.digest for entry in manifest.files if entry.path == GRAPH_PATH)


def predictions(stage: Stage) -> int:
    return sum(oracle.end_offsets(stage.servers, stage.predictions, committed=True).values())


def test_f21_a_version_that_kills_its_scorer_twice_is_left_alone_and_the_last_good_one_serves(stage: Stage) -> None:
    assert stage.publish(0.5) == 1
    # Digests of the second must be known before it is loaded: it is taken back until the scorer runs.
    assert stage.publish(1.5) == 2
    stage.run("rollback", "fraud")
    with supervised(stage, graph_digest(stage, 2)) as supervisor:
        wait_for(lambda: supervisor.heard("live", version=1, start=0), f"version 1; {supervisor.said}")
        stage.run("release", "fraud", "2")
        wait_for(lambda: len(supervisor.deaths) == 2, f"two deaths; {supervisor.deaths}")
        wait_for(lambda: supervisor.heard("live", version=1, start=2), "the last good version")
        refused = {"version": 2, "reason": "quarantined", "start": 2}
        wait_for(lambda: supervisor.heard("refused", **refused), "the second to be refused")
        before = predictions(stage)
        stage.send(1000)
        wait_for(lambda: predictions(stage) >= before + 1000, "predictions")
        assert supervisor.deaths == [-signal.SIGKILL] * 2
        (suspect,) = stage.run("quarantine")["versions"]
        assert (suspect["version"], suspect["crashes"], suspect["quarantined"]) == ("fraud@2", 2, True)

        assert stage.publish(2.5) == 3
        wait_for(lambda: supervisor.heard("swapped", version=3, start=2), "the next version")
    assert stage.run("quarantine", "clear", "fraud@2")["cleared"][0]["version"] == "fraud@2"
    assert stage.run("quarantine") == {"versions": []}
