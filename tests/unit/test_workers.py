"""The supervisor and real processes: small programs in the place of scorers, which say what a scorer would."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelcast.cli.output import Output
from modelcast.consumer import worker_restarts, workers
from modelcast.consumer.worker_child import WORKER_VARIABLE, Worker
from modelcast.consumer.workers import POLARS_VARIABLE, WORKERS_MAX, Supervisor
from modelcast.errors import BrokerError, FencedError, TopicNotFoundError, UsageError, VersionNotFoundError, WorkerError

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0

# What every small program can say and do. `life` is how often this worker has been started, this time included.
# What a test waits for is a file: `up-0` of worker 0 once it serves, `told` once people read what the test expects.
PRELUDE = """
import json, os, signal, sys, time
from pathlib import Path
number = int(os.environ["MODELCAST_WORKER"].partition(":")[2])
folder = Path(sys.argv[1])
def say(**line): os.write(1, json.dumps(line).encode() + b"\\n")
def report(event, text="text", **more): say(report={"event": event, **more}, text=text)
def figures(events, **more):
    return {"events": events, "predictions": events, "dead_letters": 0, "swaps": 0, "recoveries": 0,
            "events_per_s": 1.0, "live": 1, "lag": 0, **more}
def fail(kind, status): say(error={"kind": kind, "message": "no", "hint": "mend it", "details": {}}); sys.exit(status)
def until_stopped(*_):
    report("stopped", **figures(5, seconds=1.0, left=0)); sys.exit(0)
def await_file(name):
    for _ in range(6000):
        if (folder / name).exists(): return
        time.sleep(0.01)
    fail(f"waited a minute for {name}", 1)
def serve():
    signal.signal(signal.SIGTERM, until_stopped); report("started")
    (folder / f"up-{number}").touch()
    while True: time.sleep(0.01)
with (folder / f"lives-{number}").open("a+") as lives:
    lives.write("x"); lives.flush(); lives.seek(0); life = len(lives.read())
"""


class Crew:
    """A supervisor of small programs, run in this process, and what it printed."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._capsys = capsys
        self.lines: list[dict[str, Any]] = []
        self.words = ""

    def run(self, program: str, count: int = 2, *, until_end: bool = True, json_lines: bool = True) -> None:
        command = [sys.executable, "-I", "-S", "-c", PRELUDE + textwrap.dedent(program), str(self.folder)]
        supervisor = Supervisor(count, Output(json=json_lines), until_end=until_end, command=command)
        try:
            supervisor.run()
        finally:
            said = self._capsys.readouterr()
            self.words = said.err
            self.lines = [json.loads(line) for line in said.out.splitlines()]

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]

    def lives(self, worker: int) -> int:
        return len((self.folder / f"lives-{worker}").read_text())

    def is_up(self, *numbers: int) -> bool:
        return all((self.folder / f"up-{number}").exists() for number in numbers)


@pytest.fixture
def crew(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Crew]:
    monkeypatch.setattr(worker_restarts, "FIRST_PAUSE_S", 0.01)
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    others = children()
    yield Crew(tmp_path, capsys)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)] == before
    assert children() <= others, "a process was left over"


def children() -> set[str]:
    """Processes of this one; other tests' fixtures may have some."""
    return set(Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split())


@contextlib.contextmanager
def once(condition: Callable[[], bool], *then: Callable[[], None]) -> Iterator[None]:
    """Does something, from another thread, as soon as a condition holds."""

    def wait() -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        for act in then:
            act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    yield
    thread.join(DEADLINE_S)


def signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def let_go_on(crew: Crew, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """Makes the file `told` once the progress that people read has these words."""
    text = workers._progress_text

    def read(*arguments: Any) -> str:
        told = text(*arguments)
        if words in told:
            (crew.folder / "told").touch()
        return told

    monkeypatch.setattr(workers, "_progress_text", read)


def test_lines_of_all_are_passed_on_with_their_worker_and_summed_at_the_end(crew: Crew) -> None:
    crew.run(
        """
        report("started"); report("progress", **figures(10)); report("stopped", **figures(20 + number, left=0))
        """,
        3,
    )
    for event in ("worker_started", "started", "progress", "worker_ended"):
        assert sorted(line["worker"] for line in crew.of(event)) == [0, 1, 2], event
    *stopped, total = crew.of("stopped")
    assert sorted((line["worker"], line["events"]) for line in stopped) == [(0, 20), (1, 21), (2, 22)]
    assert crew.lines[-1] is total
    assert (total["workers"], total["events"], total["left"], total["restarts"]) == (3, 63, 0, 0)


def test_people_read_each_worker_s_news_once_and_the_sums(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PROGRESS_S", 0.05)
    sums = "2 workers  version 1  2,001 events  2/s  lag 14"
    let_go_on(crew, monkeypatch, sums)
    crew.run(
        """
        report("started", "scoring [bold]events[/bold]")
        report("warning", "keep it", message="topic 'scores' deletes")
        report("progress", **figures(1000 + number, lag=7))
        await_file("told")
        report("stopped", **figures(2000, left=0))
        """,
        json_lines=False,
    )
    assert crew.lines == []
    assert sorted(line for line in crew.words.splitlines() if "scoring events" in line) == [
        "worker 0  scoring events", "worker 1  scoring events"
    ]  # fmt: skip
    assert crew.words.count("topic 'scores' deletes") == 1
    assert sums in crew.words
    assert "Scored 4,000 events" in crew.words.splitlines()[-1]


def test_of_several_models_people_read_each_one_s_version(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PROGRESS_S", 0.05)
    let_go_on(crew, monkeypatch, "1 events")
    crew.run(
        """
        one = {"live": 3, "predictions": 1, "dead_letters": 0}
        two = {"fraud": one, "churn": one | {"live": None}}
        report("started"); report("progress", **figures(1, live=None, models=two))
        await_file("told"); report("stopped", **figures(2, left=0))
        """,
        1,
        json_lines=False,
    )
    assert "1 workers  fraud version 3, churn no version live  1 events" in crew.words


def test_a_killed_worker_comes_back_and_what_it_did_is_counted(crew: Crew) -> None:
    crew.run(
        """
        report("started"); report("progress", **figures(10))
        if number == 1 and life == 1: os.kill(os.getpid(), signal.SIGKILL)
        report("stopped", **figures(20, left=0))
        """
    )
    ended = {(line["worker"], line["how"]): line["restart_in_s"] for line in crew.of("worker_ended")}
    assert ended[1, "SIGKILL"] is not None
    assert ended[1, "exit status 0"] is ended[0, "exit status 0"] is None
    assert (crew.lives(0), crew.lives(1)) == (1, 2)
    assert (crew.lines[-1]["events"], crew.lines[-1]["restarts"]) == (50, 1)


def test_a_worker_that_ends_without_being_told_comes_back_unless_the_end_was_asked_for(crew: Crew) -> None:
    program = """
        report("started")
        if life == 1: report("stopped", **figures(5, left=3)); sys.exit(0)
        serve()
    """
    with once(lambda: crew.is_up(0), signalled(signal.SIGTERM)):
        crew.run(program, 1, until_end=False)
    assert crew.lives(0) == 2


def test_of_a_worker_that_somebody_stopped_before_the_end_there_is_another(crew: Crew) -> None:
    crew.run("""report("started"); report("stopped", **figures(5, left=2 - life))""", 1)
    assert crew.lives(0) == 2
    assert crew.lines[-1]["left"] == 0


def test_a_worker_that_ends_at_once_again_and_again_ends_all(crew: Crew) -> None:
    program = """
        if number == 1: await_file("up-0"); os.kill(os.getpid(), signal.SIGSEGV)
        serve()
    """
    with pytest.raises(WorkerError, match="worker 1 ended 5 times in a row .* SIGSEGV") as raised:
        crew.run(program)
    assert raised.value.exit_code == 1
    assert (crew.lives(0), crew.lives(1)) == (1, worker_restarts.SHORT_LIVES_MAX)
    assert crew.lines[-1]["events"] == 5, "the other one ended in good order"


def test_a_slow_start_is_no_steady_life(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_restarts, "STEADY_S", 0.05)
    with pytest.raises(WorkerError, match="5 times in a row"):
        crew.run("time.sleep(0.1); sys.exit(1)", 1)


def test_what_no_second_try_can_mend_ends_all_with_the_error_of_the_worker(crew: Crew) -> None:
    program = """
        if number == 1: fail("TopicNotFoundError", 4)
        serve()
    """
    with pytest.raises(TopicNotFoundError, match="worker 1: no") as raised:
        crew.run(program)
    assert (raised.value.exit_code, raised.value.hint) == (4, "mend it")
    assert crew.lives(1) == 1


def test_where_nothing_ever_worked_nothing_is_tried_again(crew: Crew) -> None:
    with pytest.raises(BrokerError) as raised:
        crew.run("""fail("BrokerError", 3)""", 1)
    assert raised.value.exit_code == 3
    assert crew.lives(0) == 1


def test_what_may_pass_is_tried_again_and_then_ends_all_with_its_error(crew: Crew) -> None:
    with pytest.raises(FencedError) as raised:
        crew.run("""report("started"); fail("FencedError", 7)""", 1)
    assert raised.value.exit_code == 7
    assert crew.lives(0) == worker_restarts.SHORT_LIVES_MAX


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_all_in_good_order(crew: Crew, number: signal.Signals) -> None:
    with once(lambda: crew.is_up(0, 1), signalled(number)):
        crew.run("serve()", until_end=False)
    assert [line["how"] for line in crew.of("worker_ended")] == ["exit status 0"] * 2
    assert crew.lines[-1]["events"] == 10


def test_an_error_on_the_way_out_is_the_command_s(crew: Crew) -> None:
    program = """
        signal.signal(signal.SIGTERM, lambda *_: fail("BrokerError", 3)); report("started")
        (folder / "up").touch()
        while True: time.sleep(0.01)
    """
    with once((crew.folder / "up").exists, signalled(signal.SIGTERM)), pytest.raises(BrokerError):
        crew.run(program, 1, until_end=False)


STUBBORN = """
    signal.signal(signal.SIGTERM, lambda *_: (folder / "asked").touch()); report("started")
    (folder / f"up-{number}").touch()
    while True: time.sleep(0.01)
"""


def test_a_second_signal_kills_all(crew: Crew) -> None:
    with (
        once((crew.folder / "up-0").exists, signalled(signal.SIGINT)),
        once((crew.folder / "asked").exists, signalled(signal.SIGINT)),
        pytest.raises(SystemExit) as raised,
    ):
        crew.run(STUBBORN, 1, until_end=False)
    assert raised.value.code == 130
    assert [line["how"] for line in crew.of("worker_ended")] == ["SIGKILL"]


def test_who_does_not_end_in_time_is_killed_and_that_is_said(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "STOP_DEADLINE_S", 0.2)
    with (
        once((crew.folder / "up-0").exists, signalled(signal.SIGTERM)),
        pytest.raises(WorkerError, match="had not ended 0.2 s after they were asked to"),
    ):
        crew.run(STUBBORN, 1, until_end=False)


@pytest.mark.parametrize(("set_to", "count"), [(None, 2), (None, 200), ("7", 2)])
def test_workers_divide_the_cores_unless_the_user_has(
    monkeypatch: pytest.MonkeyPatch, set_to: str | None, count: int
) -> None:
    monkeypatch.setattr(workers, "_cores", lambda: 8)
    monkeypatch.delenv(POLARS_VARIABLE, raising=False)
    if set_to is not None:
        monkeypatch.setenv(POLARS_VARIABLE, set_to)
    environment = Supervisor(count, Output())._environment
    assert environment[POLARS_VARIABLE] == (set_to or str(max(1, 8 // count)))


def test_what_is_printed_in_the_place_of_a_line_is_shown_and_breaks_nothing(crew: Crew) -> None:
    crew.run("""print("hello\\n5\\n{}", flush=True); report("started"); report("stopped", **figures(5, left=0))""", 1)
    assert crew.words.splitlines() == ["hello", "5", "{}"]
    assert crew.lines[-1]["events"] == 5


def test_a_command_that_can_not_be_started_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(WorkerError, match="can't start worker 0: No such file"):
        Supervisor(2, Output(json=True), command=["/nowhere/python"]).run()


@pytest.mark.parametrize("count", [0, -1, WORKERS_MAX + 1])
def test_no_workers_and_thousands_are_a_usage_error(count: int) -> None:
    with pytest.raises(UsageError, match=f"--workers {count}"):
        Supervisor(count, Output())


def test_a_process_nobody_started_as_a_worker_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(WORKER_VARIABLE, raising=False)
    assert Worker.here() is None


@pytest.mark.parametrize("said", ["1:0", "", f"{os.getppid()}:one"])
def test_a_variable_meant_for_another_process_is_a_usage_error(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv(WORKER_VARIABLE, said)
    with pytest.raises(UsageError, match=WORKER_VARIABLE):
        Worker.here()
    assert WORKER_VARIABLE not in os.environ


# A worker as the command has it, without a scorer.
REAL_WORKER = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
from modelcast.consumer import worker_child
from modelcast.consumer.reports import ScorerStats, Started, Stopped
from modelcast.errors import VersionNotFoundError
{patch}
worker = worker_child.Worker.here()
with worker:
    worker.tell(Started("fraud", "e", "p", "d", "g", worker.instance("web"), "exactly-once", 4))
    print("native code speaks", os.environ.get("MODELCAST_WORKER"))
    {body}
"""


def real_worker(body: str, patch: str = "") -> list[str]:
    return [sys.executable, "-c", REAL_WORKER.format(root=str(ROOT), body=body, patch=patch)]


def test_a_worker_has_its_own_instance_and_its_lines_to_itself_and_leaves_its_error_to_the_supervisor(
    capfd: pytest.CaptureFixture[str],
) -> None:
    command = real_worker("raise VersionNotFoundError('there is no fraud@9', hint='take 8')")
    with pytest.raises(VersionNotFoundError, match="worker 0: there is no fraud@9"):
        Supervisor(1, Output(json=True), command=command).run()
    said = capfd.readouterr()
    events = [json.loads(line) for line in said.out.splitlines()]
    assert [line["event"] for line in events] == ["worker_started", "started", "worker_ended", "stopped"]
    assert (events[1]["instance"], events[1]["worker"]) == ("web-0", 0)
    assert said.err == "native code speaks None\n", "and whoever the worker starts is no worker"


@pytest.mark.parametrize("stubborn", [False, True])
def test_workers_of_a_killed_supervisor_end_by_themselves(tmp_path: Path, stubborn: bool) -> None:
    patch = "worker_child.STOP_DEADLINE_S = 0.2; signal.signal(signal.SIGTERM, lambda *_: None)" if stubborn else ""
    command = real_worker(
        "time.sleep(600); os._exit(9)" if not stubborn else "[time.sleep(1) for _ in range(600)]", patch
    )
    supervising = (
        "from modelcast.cli.output import Output; from modelcast.consumer.workers import Supervisor\n"
        f"Supervisor(2, Output(json=True), command={command!r}).run()"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", supervising], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    pids, started = set(), 0
    while started < 2:
        line = json.loads(supervisor.stdout.readline())
        started += line["event"] == "started"
        pids |= {line["pid"]} if line["event"] == "worker_started" else set()
    assert len(pids) == 2
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    deadline = time.monotonic() + DEADLINE_S
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker is left over"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):  # reaped meanwhile, where there are such files
        return not Path("/proc").exists()
