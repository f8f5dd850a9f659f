"""The dev broker: one, whoever starts it how often; it outlives the command, and keeps port and data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from modelcast.dev import service
from modelcast.dev.folders import dev_state_dir, kafka_cache_dir
from modelcast.dev.jars import kafka_jars, listed_jars
from modelcast.dev.ports import answers
from modelcast.dev.process import Process, start_time
from modelcast.dev.state import DevState
from modelcast.errors import ExitCode

DEADLINE_S = 180.0
RUN = [sys.executable, "-c", "from modelcast.cli import main; main()", "dev"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path))
    yield dev_state_dir()
    service.down()


def dev(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Runs `modelcast dev …` as a user does; returns its exit code and JSON."""
    command = [*RUN, *arguments, "--json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def topics(address: str) -> set[str]:
    return set(AdminClient({"bootstrap.servers": address}).list_topics(timeout=DEADLINE_S).topics)


def test_from_up_to_reset() -> None:
    began = time.monotonic()
    code, first = dev("up")
    print(f"first up: {time.monotonic() - began:.2f} s")
    assert (code, first["started"]) == (ExitCode.DONE, True)
    address = first["bootstrap_servers"]
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic("kept", 1, 1)])["kept"].result(DEADLINE_S)

    code, again = dev("up")
    assert (code, again["started"], again["pid"]) == (ExitCode.DONE, False, first["pid"])
    code, status = dev("status")
    assert (code, status["running"], status["pid"]) == (ExitCode.DONE, True, first["pid"])
    assert service.running_bootstrap_servers() == address

    code, down = dev("down")
    assert (code, down["stopped"]) == (ExitCode.DONE, True)
    assert start_time(first["pid"]) is None
    assert dev("status")[0] == ExitCode.BROKER

    began = time.monotonic()
    code, second = dev("up")
    print(f"later up: {time.monotonic() - began:.2f} s")
    assert second["bootstrap_servers"] == address
    assert "kept" in topics(address)

    code, _ = dev("reset", "--yes")
    assert code == ExitCode.DONE
    assert start_time(second["pid"]) is None
    assert not Path(second["data_dir"]).exists()


def test_of_two_ups_at_once_one_starts_it_and_both_find_it() -> None:
    with (
        subprocess.Popen([*RUN, "up", "--json"], cwd=ROOT, stdout=subprocess.PIPE) as one,
        subprocess.Popen([*RUN, "up", "--json"], cwd=ROOT, stdout=subprocess.PIPE) as two,
    ):
        said = [json.loads(command.communicate(timeout=DEADLINE_S)[0]) for command in (one, two)]
    assert sorted(each["started"] for each in said) == [False, True]
    assert said[0]["pid"] == said[1]["pid"]


def test_a_killed_broker_is_seen_to_be_gone_and_started_again_on_its_port() -> None:
    first, _ = service.up()
    assert first.pid is not None
    os.kill(first.pid, signal.SIGKILL)
    assert Process(first.pid, start_time(first.pid) or "gone").wait(DEADLINE_S)
    assert not service.status().running
    assert service.running_bootstrap_servers() is None
    second, started = service.up()
    assert started
    assert second.bootstrap_servers == first.bootstrap_servers


def test_what_an_interrupted_up_left_behind_is_ended_first(state_dir: Path) -> None:
    first, _ = service.up()
    state = DevState.load(state_dir)
    assert state is not None
    assert state.process is not None
    replace(state, ready=False).save(state_dir)  # as an `up` killed before the broker was ready leaves it
    assert service.running_bootstrap_servers() is None
    second, started = service.up()
    assert started
    assert not state.process.alive()
    assert second.pid != first.pid
    assert answers(state.port)


def test_a_port_somebody_else_took_meanwhile_is_left_to_them(state_dir: Path) -> None:
    service.up()
    service.down()
    state = DevState.load(state_dir)
    assert state is not None
    with socket.create_server(("127.0.0.1", state.port)):
        second, _ = service.up()
    assert second.bootstrap_servers != state.bootstrap_servers
    assert topics(str(second.bootstrap_servers)) == set()


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A mirror on this machine, which serves what the user's cache holds: both are laid out alike."""
    kafka_jars()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(kafka_cache_dir()))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        config = tmp_path / "jgo.conf"
        config.write_text(f"[repositories]\nmirror = http://127.0.0.1:{server.server_port}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(config))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield
        server.shutdown()
        thread.join()


def test_jars_are_fetched_with_progress_and_a_damaged_one_is_mended(tmp_path: Path, mirror: None) -> None:
    cache = tmp_path / "cache"
    seen: list[tuple[int, int]] = []
    jars = kafka_jars(cache_dir=cache, on_progress=lambda done, total: seen.append((done, total)))
    count = len(listed_jars())
    assert seen == [(done, count) for done in range(1, count + 1)]

    jars[3].write_bytes(b"damaged")
    jars[5].unlink()
    seen.clear()
    kafka_jars(cache_dir=cache, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(count - 1, count), (count, count)]

    began = time.monotonic()
    kafka_jars(cache_dir=cache, on_progress=lambda done, total: pytest.fail("nothing is missing"))
    print(f"checking {count} jars: {time.monotonic() - began:.3f} s")
    shutil.rmtree(cache)
