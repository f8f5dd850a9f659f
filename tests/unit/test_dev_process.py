"""A process is known by pid and start time; its end is seen whether or not it is a child."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelcast.dev.process import Process, spawn, start_time

DEADLINE_S = 60.0


def run(code: str, output: Path, *, die_with_parent: bool = False) -> Process:
    command = [sys.executable, "-I", "-S", "-c", code]
    return spawn(command, output=output, env=dict(os.environ), die_with_parent=die_with_parent)


@pytest.mark.parametrize("die_with_parent", [False, True])
def test_a_spawned_process_writes_to_its_file_and_is_reaped(tmp_path: Path, die_with_parent: bool) -> None:
    output = tmp_path / "output"
    output.write_text("before\n")
    process = run("import os; os.write(1, b'out\\n'); os.write(2, b'err\\n')", output, die_with_parent=die_with_parent)
    assert process.wait(DEADLINE_S)
    assert output.read_text() == "before\nout\nerr\n"
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)


def test_a_spawned_process_has_a_session_of_its_own(tmp_path: Path) -> None:
    process = run("import os; os.write(1, str(os.getsid(0)).encode())", tmp_path / "output")
    assert process.wait(DEADLINE_S)
    assert (tmp_path / "output").read_text() == str(process.pid)


def test_wait_says_when_time_ran_out_and_send_whether_there_was_anybody(tmp_path: Path) -> None:
    process = run("import time; time.sleep(600)", tmp_path / "output")
    assert not process.wait(0)
    assert process.send(signal.SIGKILL)
    assert process.wait(DEADLINE_S)
    assert not process.send(signal.SIGKILL)


def test_a_recycled_pid_is_not_the_process() -> None:
    mine = start_time(os.getpid())
    assert mine is not None
    assert Process(os.getpid(), mine).alive()
    stranger = Process(os.getpid(), "a start in another time")
    assert not stranger.alive()
    assert not stranger.send(signal.SIGKILL)  # else this test would not live to say so


def test_a_dead_process_nobody_reaped_is_gone() -> None:
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", ""], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.read()  # the end of its output: it is about to end
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it ended, and still stands in the table
        assert start_time(child.pid) is None


def test_a_program_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        spawn([str(tmp_path / "nothing")], output=tmp_path / "output", env={}, die_with_parent=False)
