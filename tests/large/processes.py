"""Programs run to their end, or until told, with the most memory they ever had."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

ROOT: Final = Path(__file__).resolve().parents[2]
# How often memory is looked at: what is allocated and freed between two looks is missed, the kernel's own mark is not.
_LOOK_S: Final = 0.1
_LINES: Final = {
    name: re.compile(rf"^{name}:\s+(\d+) kB", re.MULTILINE) for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")
}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process.

    Attributes:
        resident: The most that was ever resident, pages of mapped files included, which the kernel may take back.
        own: The most that was seen to be the process's own.
    """

    resident: int = 0
    own: int = 0

    def __str__(self) -> str:
        return f"{self.resident / 1e6:,.0f} MB resident, {self.own / 1e6:,.0f} MB of them its own"


def memory_of(pid: int) -> Memory:
    """What a process has: nothing of one that is gone, or where the system does not say."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return Memory()
    found = {name: int(match[1]) * 1024 for name, line in _LINES.items() if (match := line.search(status))}
    return Memory(max(found.get("VmHWM", 0), found.get("VmRSS", 0)), found.get("RssAnon", 0))


class Program:
    """A Python program in a process of its own, watched; use as a context manager, which ends it.

    Args:
        arguments: Behind `python`.
        output: Where it writes what it prints on both streams.
        environment: All of its variables; None for this process's.
    """

    def __init__(self, *arguments: str, output: Path, environment: dict[str, str] | None = None) -> None:
        self._output = output
        with output.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=environment
            )
        self.memory = Memory()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self._output.read_text(errors="replace")

    def wait(self, timeout_s: float) -> str:
        """What it printed, once it ended well."""
        status = self.process.wait(timeout_s)
        assert status == 0, f"exit status {status}: {self.said}"
        return self.said

    def stop(self, timeout_s: float) -> str:
        """Ends it as its user would."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        self.process.wait(60)

    def _watch(self) -> None:
        while not self._ended.wait(_LOOK_S) and self.process.poll() is None:
            seen = memory_of(self.process.pid)
            self.memory = Memory(max(self.memory.resident, seen.resident), max(self.memory.own, seen.own))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._watcher.join()
        if self.process.poll() is None:
            self.kill()


def until(
    is_so: Callable[[], bool],
    timeout_s: float,
    what: str,
    programs: Sequence[Program] = (),
    *,
    every_s: float = _LOOK_S,
) -> float:
    """Waits for a condition, and fails as soon as one of `programs` ended; seconds that took."""
    began = time.monotonic()
    while not is_so():
        for program in programs:
            assert program.process.poll() is None, f"{what}: ended before: {program.said}"
        assert time.monotonic() - began < timeout_s, f"{what}: not within {timeout_s:g} s"
        time.sleep(every_s)
    return time.monotonic() - began
