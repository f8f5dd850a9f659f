"""`status` and `top` on a real broker: instances that run, swap, end and die, as who operates them sees it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelcast import codec
from modelcast.config import Connection
from modelcast.consumer import Scorer
from modelcast.fleet.fleet import Presence
from modelcast.fleet.watch import StatusWatch
from modelcast.log import TopicSpec
from modelcast.publisher.session import RegistryWriter
from modelcast.records import InstanceStatus
from modelcast.registry.repository import init
from modelcast.testing.broker import unique_name
from tests.brokers import Broker
from tests.publishing import Shell
from tests.unit.control_rig import wait_until
from tests.unit.fleet_records import model, refusal, status
from tests.unit.linear_model import linear_model

LONGEST_S = 60.0


class Place:
    """A repository with a model and a topic of events."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.connection = Connection.resolve(broker.bootstrap_servers, prefix=unique_name("fleet"))
        self.shell = Shell(broker.bootstrap_servers, self.connection.prefix)
        self.folder = folder
        self.log = self.connection.open_log()
        init(self.log, self.connection.topics, blob_partitions=1)
        self.writer = RegistryWriter(self.log, self.connection.topics)
        self.events = f"{self.connection.prefix}-events"
        self.log.create(TopicSpec(self.events, 1))

    def publish(self, bias: float) -> int:
        prepared = linear_model(self.folder / f"source-{bias}", bias)
        return self.writer.publish("fraud", prepared, release=True).manifest.version

    def send(self, count: int) -> None:
        with closing(self.log.writer()) as writer:
            for number in range(count):
                writer.send(self.events, key=None, value=b'{"amount": %d, "age": 1}' % number)
            writer.flush(LONGEST_S)

    def say(self, *statuses: InstanceStatus) -> None:
        with closing(self.log.writer()) as writer:
            for said in statuses:
                key, topic = said.instance.encode(), self.connection.topics.status
                writer.send(topic, key=key, value=codec.encode_status(said))
            writer.flush(LONGEST_S)


@pytest.fixture
def place(broker: Broker, tmp_path: Path) -> Iterator[Place]:
    made = Place(broker, tmp_path)
    yield made
    made.log.close()


def test_a_scorer_is_followed_through_a_release_to_its_end(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelcast.consumer.status.CLOSE_TIMEOUT_S", LONGEST_S)  # its last status is worth a long wait
    place.publish(0.0)
    place.send(100)
    scorer = Scorer(
        "fraud",
        place.events,
        f"{place.events}-scores",
        connection=place.connection,
        instance="web-0",
        cache_dir=place.folder / "cache",
        state_dir=place.folder / "state",
    )
    thread = threading.Thread(target=scorer.run, daemon=True)
    thread.start()
    done = place.shell.json("status", "--wait-live", "fraud@1", "--timeout", "60s")
    assert done["done"]
    assert done["live"] == [f"{place.connection.prefix}.fraud.{place.events}-scores/web-0"]
    assert place.publish(1.0) == 2
    assert "live on 1 instance" in place.shell.says("status", "--wait-live", "fraud@2", "--timeout", "60s")

    def figures() -> dict[str, object]:
        (instance,) = place.shell.json("status", "--model", "fr*")["instances"]
        assert (instance["role"], instance["device"], instance["state"]) == ("scorer", "cpu", "running")
        (entry,) = instance["models"]
        return {name: entry[name] for name in ("version", "state", "swaps", "events", "lag", "dead_letters")}

    wanted = {"version": 2, "state": "live", "swaps": 1, "events": 100, "lag": 0, "dead_letters": 0}
    wait_until(lambda: figures() == wanted, f"the status to say {wanted}", LONGEST_S)
    scorer.stop()
    thread.join(LONGEST_S)
    (ended,) = place.shell.json("status")["instances"]
    assert (ended["state"], ended["models"][0]["state"]) == ("stopped", "stopped")
    assert place.shell.call("status", "--check")[0] == 0


CLIENT = """
import sys
from modelcast.consumer import ModelClient
with ModelClient(sys.argv[1], prefix=sys.argv[2], models=["fraud"], instance="app-0") as client:
    client["fraud"]
    print("live", flush=True)
    sys.stdin.read()
"""


def test_an_instance_that_was_killed_is_lost_with_what_it_ran(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(place.folder / "cache"))
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(place.folder / "state"))
    place.publish(0.0)
    line = [sys.executable, "-c", CLIENT, place.shell.servers, place.shell.prefix]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "live\n"
        place.shell.json("status", "--wait-live", "fraud@1", "--instance", "app-*", "--timeout", "60s")
        client.kill()
    killed_s, ahead_s = time.time(), 0.0
    with closing(
        StatusWatch(place.log, place.connection.topics, now_ms=lambda: int((killed_s + ahead_s) * 1000))
    ) as watch:
        (instance,) = watch.look().instances
        assert instance.presence is Presence.RUNNING  # nobody can know yet
        ahead_s = 20.0
        (instance,) = watch.fleet.instances
    assert (instance.presence, instance.status.models[0].live_version) == (Presence.LOST, 1)
    assert [problem.kind for problem in watch.fleet.problems()] == ["lost"]


class TestWaiting:
    """The last step of a deployment, and how it fails."""

    WAIT = ("status", "--wait-live", "fraud@8", "--timeout", "0.3s")

    @staticmethod
    def now_ms() -> int:
        return int(time.time() * 1000)

    def test_a_version_that_is_refused_fails_it_at_once(self, place: Place) -> None:
        refused = model(version=7, since_ms=1, wanted_version=8, refusals=(refusal(8, at_ms=self.now_ms()),))
        place.say(status("a", model(version=8), at_ms=self.now_ms()), status("b", refused, at_ms=self.now_ms()))
        started = time.monotonic()
        code, out, err = place.shell.call("status", "--wait-live", "fraud@8", "--timeout", "300s", "--json")
        assert (code, time.monotonic() - started < 150) == (5, True), err
        told = json.loads(out)["error"]
        assert (told["kind"], told["refused"][0]["instance"], told["live"]) == ("ModelRefusedError", "b", ["a"])
        assert "rollback fraud" in told["hint"]

    def test_a_time_to_wait_without_anything_to_wait_for_is_a_usage_error(self, place: Place) -> None:
        assert "--wait-live NAME@VERSION" in place.shell.fails("status", "--timeout", "1s", status=2)

    def test_instances_that_take_too_long_are_named_with_what_they_do(self, place: Place) -> None:
        behind = model(version=7, wanted_version=8, next_version=8, next_state="fetching")
        place.say(status("a", model(version=8), at_ms=self.now_ms()), status("b", behind, at_ms=self.now_ms()))
        error = place.shell.fails(*self.WAIT, status=6)
        assert "live on 1 of 2 instances" in error
        assert "b runs 7 (fetching)" in error
        assert "allow more time" in error

    def test_a_version_that_nobody_was_told_to_run_is_said_not_to_be_released(self, place: Place) -> None:
        place.say(status("a", model(version=7, wanted_version=7), at_ms=self.now_ms()))
        assert "modelcast history fraud" in place.shell.fails(*self.WAIT, status=6)

    def test_nobody_to_wait_for_is_not_found(self, place: Place) -> None:
        place.say(status("a", model("churn"), at_ms=self.now_ms()))
        assert "no running instance follows 'fraud'" in place.shell.fails(*self.WAIT, status=4)

    @pytest.mark.parametrize("wanted", ["fraud", "fraud@x", "@3"])
    def test_what_is_no_version_is_a_usage_error(self, wanted: str) -> None:
        Shell("127.0.0.1:1", "nowhere").fails("status", "--wait-live", wanted, status=2)


def test_check_says_whether_something_is_wrong(place: Place) -> None:
    now_ms = TestWaiting.now_ms()
    place.say(status("a", model(), at_ms=now_ms))
    assert place.shell.call("status", "--check")[0] == 0
    place.say(status("a", model(version=None), at_ms=now_ms))
    code, out, _ = place.shell.call("status", "--check")
    assert (code, "waiting" in out) == (6, True)
    assert place.shell.call("status")[0] == 0


def test_where_there_is_no_repository_it_says_how_to_make_one(broker: Broker) -> None:
    shell = Shell(broker.bootstrap_servers, unique_name("nowhere"))
    assert "modelcast init" in shell.fails("status", status=4)


def test_top_draws_the_fleet_and_leaves_the_terminal_as_it_was(place: Place) -> None:
    place.say(status("web-0", model(version=3), at_ms=TestWaiting.now_ms()))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 100, 0, 0))
    line = place.shell.line("top", "--interval", "0.1")
    environment = {**os.environ, "TERM": "xterm-256color"}
    shown = b""
    with subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as top:
        os.close(theirs)
        try:
            shown = _read_until(ours, b"web-0")
            place.say(status("web-1", model(version=4), at_ms=TestWaiting.now_ms()))
            shown += _read_until(ours, b"web-1")
            top.send_signal(signal.SIGINT)
            shown += _read_until(ours, None)
            assert top.wait(LONGEST_S) == 0
        finally:
            top.kill()
            os.close(ours)
    assert b"\x1b[?1049h" in shown
    assert shown.endswith(b"\x1b[?1049l")  # back from the alternate screen
    assert b"\x1b[?25h" in shown  # with its cursor
    assert b"Traceback" not in shown


def _read_until(terminal: int, words: bytes | None) -> bytes:
    """What is shown until `words` are, or to the end where there are none."""
    shown, deadline = b"", time.monotonic() + LONGEST_S
    while words is None or words not in shown:
        assert time.monotonic() < deadline, shown
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                shown += os.read(terminal, 65_536)
            except OSError:  # how a terminal ends
                assert words is None, shown
                break
    return shown


def test_where_nobody_is_chosen_it_says_that_others_may_run(place: Place) -> None:
    place.say(status("web-0", model(version=3), at_ms=TestWaiting.now_ms()))
    code, _, err = place.shell.call("status", "--model", "frodo*")
    assert (code, "--model and --instance" in err) == (0, True)


def test_what_is_no_terminal_gets_one_look(place: Place) -> None:
    place.say(status("web-0", model(version=3), at_ms=TestWaiting.now_ms()))
    printed = place.shell.says("top")
    assert printed.count("web-0") == 1
    assert "\x1b" not in printed
