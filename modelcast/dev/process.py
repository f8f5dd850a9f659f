"""A process known by pid *and* start time, so that a recycled pid is never taken for it.

It need not be a child of this process: the dev broker outlives the command that started it. If it is a child, it is
reaped here.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

_ON_LINUX = sys.platform == "linux"
POLL_INTERVAL_S = 0.01  # a process that is no child can only be polled; 10 ms is below anything a person notices

# The child asks to be killed with its parent, then becomes the program. Not a `preexec_fn`: that runs Python between
# fork and exec, where a lock another thread holds would never be released. The parent may be dead before the request.
_DIE_WITH_PARENT = (
    "import ctypes, os, sys; PR_SET_PDEATHSIG, SIGKILL = 1, 9; "
    "ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); "
    "os.execv(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class Process:
    """One running, or once running, process.

    Attributes:
        pid: Its process id.
        started: When it started, in the system's own words; only equality means anything.
    """

    pid: int
    started: str

    def alive(self) -> bool:
        """Returns whether it still runs; a stopped (SIGSTOP) process does."""
        if start_time(self.pid) == self.started:
            return True
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)  # a dead child stays in the table until it is waited for
        return False

    def send(self, number: signal.Signals) -> bool:
        """Sends a signal; returns False when the process is gone."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def wait(self, timeout_s: float) -> bool:
        """Waits for its end; returns whether it came in time."""
        deadline = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(POLL_INTERVAL_S)
        return True


def start_time(pid: int) -> str | None:
    """Returns when process `pid` started, or None when there is none or it is dead and only not reaped."""
    if _ON_LINUX:
        try:
            # The name, in parentheses, may hold anything; of the fields behind it, the first is the state, the 18th
            # the number of threads, the 20th the start time.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # A killed process's first thread is dead before the others have closed its ports and files.
        dead = fields[0] in "ZX" and int(fields[17]) <= 1
        return None if dead else f"{_boot_id()}/{fields[19]}"
    said = subprocess.run(["/bin/ps", "-o", "stat=,lstart=", "-p", str(pid)], capture_output=True, check=False)
    state, _, started = said.stdout.decode().strip().partition(" ")
    return None if not state or state.startswith("Z") else started.strip()


def spawn(command: Sequence[str], *, output: Path, env: Mapping[str, str], die_with_parent: bool) -> Process:
    """Starts `command` in a session of its own, its output appended to a file.

    Args:
        command: Program (absolute path) and arguments.
        output: Gets its standard output and error.
        env: Its environment.
        die_with_parent: Kill it when this process ends, however that ends (Linux only).

    Raises:
        OSError: The program can't be started.
    """
    if die_with_parent and _ON_LINUX:
        # The kernel ties the request to the *thread* that started the child: take one that lives as long as we do.
        return _spawner(os.getpid()).submit(_spawn, dying_with_parent(command), output, env).result()
    return _spawn(command, output, env)


def dying_with_parent(command: Sequence[str]) -> list[str]:
    """Returns a command that becomes `command` (absolute path), and is killed with the *thread* that starts it."""
    if not _ON_LINUX:
        return list(command)
    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


def _spawn(command: Sequence[str], output: Path, env: Mapping[str, str]) -> Process:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    pid = os.posix_spawn(
        command[0],
        list(command),
        env,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(output), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    # A child that died already has no start time; any word will do, since nothing will ever match it again.
    return Process(pid, start_time(pid) or "gone")


@functools.cache
def _spawner(_pid: int) -> ThreadPoolExecutor:
    """The thread that starts children; by pid, since a forked process inherits the cache but not the thread."""
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="modelcast-spawner")


@functools.cache
def _boot_id() -> str:
    """Start times count from boot: without it, a process of an earlier boot could be matched."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown-boot"
