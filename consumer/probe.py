"""Tries a graph in a child process that may neither outgrow its memory nor outlive its time.

- A 144-byte graph can ask for 4 GB, loop for ever, or crash the runtime: nothing of that may happen to a process that
  scores. So a version nobody vouches for is loaded and run in a child first.
- The child is this file run as a script, so that it imports no more than the runtime. It then waits for one trial on
  its standard input, serves it and ends. A waiting child costs about 50 MB and saves 0.2 s of each trial; `prepare`
  starts it.
- Limits: private memory by RLIMIT_DATA beyond what the child has when the trial begins (mapped files are the page
  cache's), time by a timer of the kernel in the child and by the parent, no core files. A child whose parent is gone
  reads the end of its input, or runs into its timer.
- It gets the few environment variables it needs, so no credentials.
- Linux counts private memory as said. Elsewhere only the time limit holds.

    with TrialRunner() as runner:
        probe = runner.run(Trial(folder / "model.onnx", folder / "examples.npz", memory_bytes=1 << 30, wall_s=10))
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from modelcast.errors import ModelcastError, SmokeRunError
from modelcast.records import LoadProbe

# What a graph may take beside its own files when it is tried: activations of its examples, the runtime's arena.
MEMORY_BYTES = 2 << 30
# A file's bytes are mapped or read, repacked for the processor, and held twice while that happens.
MEMORY_PER_FILE_BYTE = 3
# Examples a trial runs. The golden run that follows reproduces all of them, and events are of any content anyhow: more
# rows would prove little more, and take a large model's time twice.
ROWS = 8
# Beyond a trial's own time: starting Python and importing the runtime on a busy host.
_START_S = 30.0
# A report is some numbers or one message.
_MAX_REPORT_BYTES = 64 << 10
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "TMPDIR")
_OVERTIME_SIGNALS = frozenset({signal.SIGALRM, signal.SIGXCPU})
_MEMORY_WORDS = ("bad_alloc", "allocate", "MemoryError", "out of memory")


def memory_allowed(size_bytes: int) -> int:
    """Private memory the trial of a version with files of this size may take, in bytes."""
    return MEMORY_BYTES + MEMORY_PER_FILE_BYTE * size_bytes


@dataclass(frozen=True, slots=True)
class Trial:
    """One graph to load and run, on the CPU.

    Attributes:
        graph: The `.onnx` file, its external files beside it.
        examples: An `examples.npz`, on the first `ROWS` of whose inputs the graph is run; None loads it only.
        memory_bytes: Private memory the trial may take.
        wall_s: Seconds it may take.
    """

    graph: Path
    examples: Path | None
    memory_bytes: int
    wall_s: float


class TrialRunner:
    """Runs trials, each in a child of its own; for one thread, but `close`. Use as a context manager."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # of what a trial that outlasts `close` would start behind it
        self._closed = False

    def prepare(self) -> None:
        """Starts the child of the next trial, so that it is ready by then; returns at once."""
        with self._lock:
            if not self._closed:
                self._start()

    def _start(self) -> None:
        if self._child is not None and self._child.poll() is None:
            return
        self._discard()
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry or ".").absolute()) for entry in sys.path)
        environment["OMP_NUM_THREADS"] = environment["OPENBLAS_NUM_THREADS"] = "1"
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd="/",
        )

    def run(self, trial: Trial) -> LoadProbe:
        """Loads the graph and runs it on its examples.

        Raises:
            SmokeRunError: The graph failed, took too much time or memory, or crashed the child.
        """
        self._start()
        child = self._child
        assert child is not None and child.stdin is not None and child.stdout is not None  # noqa: PT018, S101
        request = {
            "graph": str(trial.graph.absolute()),
            "examples": None if trial.examples is None else str(trial.examples.absolute()),
            "memory_bytes": trial.memory_bytes,
            "wall_s": trial.wall_s,
        }
        try:
            with contextlib.suppress(BrokenPipeError):  # it is dead, which its exit status explains better
                child.stdin.write(json.dumps(request).encode() + b"\n")
                child.stdin.flush()
            report, on_time = _read_report(child.stdout.fileno(), trial.wall_s + _START_S)
            if not on_time:
                child.kill()
            status = child.wait()
        finally:
            self._discard()
        return _judge(trial, report, status if on_time else -signal.SIGALRM)

    def close(self) -> None:
        """Ends a waiting child; none is prepared from now on."""
        with self._lock:
            self._closed = True
            self._discard()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _discard(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _read_report(file: int, timeout_s: float) -> tuple[bytes, bool]:
    """What the child wrote until it closed its output, and whether it did in time."""
    report = b""
    deadline = time.monotonic() + timeout_s
    while len(report) <= _MAX_REPORT_BYTES:
        if not select.select([file], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return report, False
        block = os.read(file, _MAX_REPORT_BYTES)
        if not block:
            return report, True
        report += block
    return report, False


def _judge(trial: Trial, report: bytes, status: int) -> LoadProbe:
    limit = f"{trial.memory_bytes >> 20} MiB"
    if status < 0:
        sign = -status
        if sign in _OVERTIME_SIGNALS:
            raise SmokeRunError(f"loading and running the model on its examples took longer than {trial.wall_s:g} s")
        name = signal.Signals(sign).name if sign in set(signal.Signals) else f"signal {sign}"
        raise SmokeRunError(f"the model crashed the process that tried it ({name}, with {limit} of memory)")
    try:
        datum: Mapping[str, Any] = json.loads(report)
        if "error" not in datum:
            return LoadProbe(float(datum["load_ms"]), float(datum["run_ms"]), int(datum["peak_bytes"]))
        message = str(datum["error"])[:1000]
    except (ValueError, TypeError, KeyError) as error:
        raise SmokeRunError(f"the process that tried the model ended with status {status} and no report") from error
    if any(word in message for word in _MEMORY_WORDS):
        raise SmokeRunError(f"the model needs more than {limit} of memory: {message}")
    raise SmokeRunError(f"the model failed when it was tried: {message}")


def _serve() -> None:
    """The child: one trial from standard input, one report to standard output."""
    from modelcast import golden, runtime

    runtime.versions()
    reply = os.dup(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # native code may print
    line = sys.stdin.buffer.readline()
    if not line:
        return
    request = json.loads(line)
    _limit(request["memory_bytes"], request["wall_s"])
    try:
        began = time.monotonic()
        # Not repacked for the processor: most of a large model's loading, and it takes no more than its size in memory.
        session = runtime.open_session(Path(request["graph"]), device="cpu", prepacking=False)
        loaded = time.monotonic()
        if request["examples"] is not None:
            inputs = golden.read(Path(request["examples"])).inputs
            session.run({name: array[:ROWS] if array.ndim else array for name, array in inputs.items()})
        report: dict[str, Any] = {
            "load_ms": (loaded - began) * 1e3,
            "run_ms": (time.monotonic() - loaded) * 1e3,
            "peak_bytes": _peak_bytes(),
        }
    except ModelcastError as error:
        report = {"error": error.message[:1000]}
    except MemoryError:
        report = {"error": "MemoryError"}
    except Exception as error:
        report = {"error": f"{type(error).__name__}: {error}"[:1000]}
    os.write(reply, json.dumps(report).encode())


def _limit(memory_bytes: int, wall_s: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_REAL, wall_s)
    present = _status_bytes("VmData")
    if present:
        allowed = present + memory_bytes
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        if hard != resource.RLIM_INFINITY:
            allowed = min(allowed, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))


def _peak_bytes() -> int:
    # Not ru_maxrss where there is better: it counts the parent's memory from before the exec.
    return _status_bytes("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status_bytes(name: str) -> int:
    """One size of Linux's own account of this process; 0 elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) << 10
    return 0


if __name__ == "__main__":
    _serve()
