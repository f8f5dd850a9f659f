"""The demonstration itself, cut short: it holds what it promises, and leaves nothing behind however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcast.kafka import KafkaLog
from tests.brokers import Broker

MONTHS = 3
DEADLINE_S = 240.0
DELETED_S = 60.0


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "modelcast", "demo", "--months", str(MONTHS), *options]


def environment(folder: Path) -> dict[str, str]:
    """With all temporary files of the run and its children in a folder of their own."""
    folder.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELCAST_")}
    return {**kept, "TMPDIR": str(folder)}


def processes_with(folder: Path) -> list[int]:
    """Processes whose environment names `folder`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(folder).encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def left_in(folder: Path) -> list[str]:
    # ONNX Runtime leaves a small file of its own in the temporary folder wherever it is imported.
    return [path.name for path in folder.iterdir() if path.name != ".ses"]


def await_nothing_left(folder: Path) -> None:
    """Children that wait for work end as soon as they see that their parent did: a moment later."""
    deadline = time.monotonic() + DELETED_S
    while any(left := (processes_with(folder), left_in(folder))):
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def await_line(path: Path, words: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while words not in path.read_text():
        assert time.monotonic() < deadline, f"never said {words!r}:\n{path.read_text()}"
        time.sleep(0.05)


def test_it_holds_what_it_promises_and_leaves_a_given_broker_as_it_was(
    broker: Broker, fresh_topic: Callable[..., str], tmp_path: Path
) -> None:
    report, temporary, prefix = tmp_path / "report.html", tmp_path / "tmp", fresh_topic("demo")
    done = subprocess.run(
        command("--json", "-b", broker.bootstrap_servers, "--prefix", prefix, "--report", str(report)),
        env=environment(temporary),
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"topics begin with {prefix}-" in done.stderr
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        deadline = time.monotonic() + DELETED_S  # a deletion takes effect a moment later
        while left := [name for name in log.topics() if name.startswith(prefix)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.1)
    assert "was not all deleted" not in done.stderr
    figures = json.loads(done.stdout)
    assert (figures["lost"], figures["duplicated"], figures["dead_letters"], figures["rejected"]) == (0, 0, 1, 1)
    assert figures["events"] == figures["predictions"] + 1 == 78_146
    assert figures["swaps"] == 2
    assert [month["month"] for month in figures["auc_by_month"]] == [2, 3]
    assert figures["auc_by_month"][1]["live"] > figures["auc_by_month"][1]["frozen"]
    assert 0 < figures["publish_to_live_ms"]["median"] <= figures["publish_to_live_ms"]["max"]
    assert 0 < figures["longest_gap_ms"]["median"] <= figures["longest_gap_ms"]["max"]
    assert "wind_gust" in report.read_text()
    await_nothing_left(temporary)


@pytest.mark.parametrize(
    ("after", "number", "status"),
    [("Kafka is up", signal.SIGINT, 130), ("wait in Kafka", signal.SIGINT, 130), ("live v1", signal.SIGTERM, 143)],
)
def test_interrupted_it_takes_its_broker_and_its_scorer_with_it(
    after: str, number: signal.Signals, status: int, tmp_path: Path
) -> None:
    report, temporary, said = tmp_path / "report.html", tmp_path / "tmp", tmp_path / "stderr"
    with said.open("wb") as stderr:
        running = subprocess.Popen(
            command("--report", str(report)), env=environment(temporary), stdout=stderr, stderr=stderr
        )
    try:
        await_line(said, after)
        assert processes_with(temporary)
        running.send_signal(number)
        assert running.wait(DEADLINE_S) == status, said.read_text()
    finally:
        running.kill()
        running.wait()
    assert "nothing is left behind" in said.read_text()
    assert "Traceback" not in said.read_text()
    await_nothing_left(temporary)
    assert not report.exists()
