"""`--workers N`: several scorers of one group, each a process of its own, kept running by this one.

- A worker is this very command once more (`worker_child.py` says how it knows); this process has neither a Kafka client
  nor a runtime, and one thread.
- A worker that is killed or fails comes back (`worker_restarts.py` says when), unless nothing has ever worked, or what
  it failed with no second try can mend: then all end, with its error and exit code.
- SIGTERM and Ctrl-C are passed on as SIGTERM; whoever has not ended by `STOP_DEADLINE_S` is killed, and at a second
  signal everybody at once. Under exactly-once neither loses or doubles anything.
- If this process is killed, its workers see their standard input end, and stop by themselves.
- What workers report is passed on with their number; counts are summed (`worker_totals.py`).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType, TracebackType
from typing import Any, Self

from rich.markup import escape

from modelcast import errors
from modelcast.cli.output import Output
from modelcast.errors import ExitCode, ModelcastError, UsageError, WorkerError

from .worker_child import STOP_DEADLINE_S, WORKER_VARIABLE
from .worker_restarts import Restarts
from .worker_totals import WorkerTotals

# Each is a process with a client, a runtime and a trial child: some 140 MB. More than this is a slip of the keyboard.
WORKERS_MAX = 256
# Polars makes as many threads as there are cores, in each process: 64 of them take 30 MB and a quarter more processor
# time than two. What the user set stands.
POLARS_VARIABLE = "POLARS_MAX_THREADS"
# As often as one scorer says how it goes.
PROGRESS_S = 5.0
_READ_BYTES = 64 << 10


@dataclass
class _Life:
    """One process of a worker."""

    number: int
    process: subprocess.Popen[bytes]
    began_s: float
    started_s: float | None = None  # when it had come as far as to its group
    unread: bytes = b""
    stopped: Mapping[str, Any] | None = None  # its last report, if it came to that
    error: ModelcastError | None = None

    def lines(self, data: bytes) -> Sequence[bytes]:
        """What is complete, with `data` behind what was read before."""
        *complete, self.unread = (self.unread + data).split(b"\n")
        return complete


@dataclass
class _Place:
    """One of the N: who is in it now, or when somebody will be."""

    number: int
    restarts: Restarts = field(default_factory=Restarts)
    life: _Life | None = None
    start_at_s: float | None = 0.0


class Supervisor:
    """Runs workers until all are done, or are asked to stop; `run` is for the main thread of a process.

    Args:
        count: How many.
        output: Where reports go.
        until_end: Whether a worker that ends in good order is done; else it is started again.
        command: What a worker is: this process's own command if it is not given.
    """

    def __init__(
        self, count: int, output: Output, *, until_end: bool = False, command: Sequence[str] | None = None
    ) -> None:
        if not 1 <= count <= WORKERS_MAX:
            raise UsageError(f"--workers {count} is none of 1 to {WORKERS_MAX}")
        self._output = output
        self._until_end = until_end
        self._command = [sys.executable, *sys.orig_argv[1:]] if command is None else list(command)
        self._environment = {POLARS_VARIABLE: str(max(1, _cores() // count)), **os.environ}
        self._places = [_Place(number) for number in range(count)]
        self._totals = WorkerTotals()
        self._selector = selectors.DefaultSelector()
        self._began_s = time.monotonic()
        self._started = False  # whether any worker ever got as far as to its group
        self._warnings: set[str] = set()
        self._restarted = 0
        self._failure: ModelcastError | None = None
        self._deadline_s: float | None = None
        self._killed = False
        self._progress_at_s = self._began_s + PROGRESS_S
        self._news = False

    def run(self) -> None:
        """Starts the workers and keeps them running.

        Raises:
            WorkerError: A worker ended again and again, or did not end in time.
            ModelcastError: What ended a worker and no restart can mend.
            SystemExit: A second signal killed all.
        """
        with self._selector, _Signals(self._selector) as signals:
            try:
                while self._turn(signals):
                    pass
            finally:
                self._bury()
        self._conclude(signals.asked)

    def _turn(self, signals: _Signals) -> bool:
        """Takes what has happened; False when nobody runs or will."""
        now = time.monotonic()
        if self._deadline_s is None:
            if signals.asked:
                self._stop(now)
            else:
                self._start_due(now)
        elif not self._killed and (signals.asked > 1 or now >= self._deadline_s):
            self._kill()
        if all(place.life is None and place.start_at_s is None for place in self._places):
            return False
        for key, _ in self._selector.select(self._pause_s(now)):
            if key.data is None:
                signals.clear()
            else:
                self._read(key.data)
        for place in self._places:
            if place.life is not None and place.life.process.poll() is not None:
                self._ended(place, place.life)
        self._tell_progress(time.monotonic())
        return True

    def _pause_s(self, now: float) -> float:
        times = [place.start_at_s for place in self._places if place.start_at_s is not None]
        if self._deadline_s is not None and not self._killed:
            times.append(self._deadline_s)
        if self._news:
            times.append(self._progress_at_s)
        return max(0.0, min(times, default=now + PROGRESS_S) - now)

    def _start_due(self, now: float) -> None:
        for place in self._places:
            if place.life is None and place.start_at_s is not None and place.start_at_s <= now:
                place.start_at_s = None
                try:
                    place.life = self._start(place.number)
                except OSError as error:
                    self._failure = WorkerError(
                        f"can't start worker {place.number}: {error.strerror or error}",
                        hint="Look at this host's memory and its limits on processes, or ask for fewer workers.",
                    )
                    self._stop(now)
                    return

    def _start(self, number: int) -> _Life:
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            process_group=0,  # Ctrl-C in a terminal is this process's to pass on
            env={**self._environment, WORKER_VARIABLE: f"{os.getpid()}:{number}"},
        )
        life = _Life(number, process, time.monotonic())
        assert process.stdout is not None  # noqa: S101 - it was asked for
        os.set_blocking(process.stdout.fileno(), False)
        self._selector.register(process.stdout, selectors.EVENT_READ, life)
        self._pass_on({"event": "worker_started", "worker": number, "pid": process.pid}, None)
        return life

    def _read(self, life: _Life) -> None:
        """Takes what a worker has said since."""
        assert life.process.stdout is not None  # noqa: S101 - it was asked for
        file = life.process.stdout.fileno()
        while True:
            try:
                data = os.read(file, _READ_BYTES)
            except BlockingIOError:
                return
            if not data:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(life.process.stdout)
                return
            for line in life.lines(data):
                self._hear(life, line)

    def _hear(self, life: _Life, said: bytes) -> None:
        line = _line(said)
        if line is None:  # printed by something before the worker took its output to itself
            sys.stderr.write(said.decode(errors="replace") + "\n")
            return
        if "error" in line:
            life.error = _error(line["error"])
            return
        report = line["report"]
        match report["event"]:
            case "started":
                self._started = True
                life.started_s = time.monotonic()
            case "progress":
                self._totals.tell(life.number, report)
                self._news = True
            case "stopped":
                self._totals.tell(life.number, report)
                life.stopped = report
        self._pass_on({**report, "worker": life.number}, line["text"])

    def _pass_on(self, report: Mapping[str, Any], text: str | None) -> None:
        if self._output.json:
            self._output.line(report)
        match report["event"]:
            case "warning":
                if report["message"] not in self._warnings:  # each worker finds the same
                    self._warnings.add(report["message"])
                    self._output.warn(report["message"])
            case "progress" | "stopped":
                pass  # summed
            case _ if text is not None and not self._output.json:
                self._output.say(f"[dim]worker {report['worker']}[/dim]  {text}")

    def _ended(self, place: _Place, life: _Life) -> None:
        self._read(life)
        self._close(life)
        place.life = None
        self._totals.end(place.number)
        now = time.monotonic()
        lasted_s = now - life.began_s
        how = _how(life.process.returncode)
        pause_s: float | None = None
        if self._deadline_s is None:
            steady_s = 0.0 if life.started_s is None else now - life.started_s
            pause_s = self._pause_after(place, life, steady_s, how)
        elif life.error is not None and self._failure is None:
            self._failure = life.error
        report = {"event": "worker_ended", "worker": place.number, "pid": life.process.pid, "how": how}
        coming = "" if pause_s is None else f"; back {'now' if pause_s == 0 else f'in {pause_s:g} s'}"
        wanted = self._deadline_s is not None or self._is_done(life)
        text = f"[{'dim' if wanted else 'yellow'}]ended[/]    {how} after {lasted_s:.1f} s{coming}"
        self._pass_on({**report, "seconds": round(lasted_s, 3), "restart_in_s": pause_s}, None if wanted else text)
        if pause_s is not None:
            place.start_at_s = now + pause_s
            self._restarted += 1
        elif self._failure is not None and self._deadline_s is None:
            self._stop(now)

    def _is_done(self, life: _Life) -> bool:
        """Whether the worker has come to the end that was asked for; asked to stop before it, it left something."""
        if not self._until_end or life.process.returncode != 0:
            return False
        return life.stopped is None or life.stopped.get("left") == 0

    def _pause_after(self, place: _Place, life: _Life, steady_s: float, how: str) -> float | None:
        """How long until the worker is started again; None if it is not, because all is done or `_failure` is set."""
        if self._is_done(life):
            return None
        error = life.error
        hopeless = error is not None and (not error.retriable or not self._started)
        pause_s = None if hopeless else place.restarts.after(steady_s)
        if pause_s is None:
            number = place.number
            if error is None:
                self._failure = WorkerError(
                    f"worker {number} ended {place.restarts.short_lives} times in a row soon after its start, "
                    f"the last time by {how}",
                    hint="Run the command without --workers to see what happens to it.",
                )
            else:
                message = f"worker {number}: {error.message}"
                self._failure = type(error)(message, hint=error.hint, details=error.details)
        return pause_s

    def _stop(self, now: float) -> None:
        """Asks all to end, and lets nobody come back."""
        self._deadline_s = now + STOP_DEADLINE_S
        for place in self._places:
            place.start_at_s = None
            if place.life is not None:
                place.life.process.terminate()

    def _kill(self) -> None:
        self._killed = True
        for place in self._places:
            if place.life is not None:
                place.life.process.kill()

    def _bury(self) -> None:
        """Leaves no process and no pipe behind, whatever ended the supervisor."""
        for place in self._places:
            if place.life is not None:
                place.life.process.kill()
                place.life.process.wait()
                self._close(place.life)

    def _close(self, life: _Life) -> None:
        assert life.process.stdout is not None and life.process.stdin is not None  # noqa: S101, PT018 - asked for
        with contextlib.suppress(KeyError):
            self._selector.unregister(life.process.stdout)
        life.process.stdout.close()
        life.process.stdin.close()

    def _tell_progress(self, now: float) -> None:
        if not self._news or now < self._progress_at_s:
            return
        self._news = False
        self._progress_at_s = now + PROGRESS_S
        if not self._output.json:
            self._output.say(_progress_text(self._totals.figures(), len(self._places)))

    def _conclude(self, asked: int) -> None:
        seconds = time.monotonic() - self._began_s
        figures = self._totals.counts()
        if self._started:
            if self._output.json:
                rest = {"seconds": round(seconds, 3), "left": self._totals.left, "restarts": self._restarted}
                self._output.line({"event": "stopped", "workers": len(self._places), **figures, **rest})
            else:
                self._output.say(
                    f"Scored {figures['events']:,} events in {seconds:.1f} s with {len(self._places)} workers: "
                    f"{figures['predictions']:,} predictions, {figures['dead_letters']:,} dead letters, "
                    f"{figures['swaps']} swaps, {self._restarted} restarts"
                )
        if self._killed and asked > 1:
            raise SystemExit(int(ExitCode.INTERRUPTED))
        if self._failure is not None:
            raise self._failure
        if self._killed:
            raise WorkerError(
                f"workers had not ended {STOP_DEADLINE_S:g} s after they were asked to, and were killed",
                hint="What they had not committed will be scored again.",
            )


class _Signals:
    """Counts who asks for an end, and wakes the selector for that and for children that ended."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self.asked = 0
        self._selector = selector
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._reading, False)
        os.set_blocking(self._writing, False)
        self._before: dict[signal.Signals, Any] = {}

    def clear(self) -> None:
        """Takes what woke the selector."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._reading, _READ_BYTES):
                pass

    def __enter__(self) -> Self:
        self._selector.register(self._reading, selectors.EVENT_READ, None)
        self._woken_before = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._woken_before)
        os.close(self._reading)
        os.close(self._writing)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal module's signature
        if number != signal.SIGCHLD:
            self.asked += 1


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _line(said: bytes) -> Mapping[str, Any] | None:
    """What a worker said, or None if it was not the worker."""
    try:
        line = json.loads(said)
    except ValueError:
        return None
    return line if isinstance(line, dict) and not {"report", "error"}.isdisjoint(line) else None


def _error(datum: Mapping[str, Any]) -> ModelcastError:
    """The error that a worker ended with."""
    kind = getattr(errors, datum["kind"], ModelcastError)
    error: ModelcastError = kind(datum["message"], hint=datum["hint"], details=datum["details"])
    return error


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:  # a real-time signal
        return f"signal {-status}"


def _progress_text(figures: Mapping[str, Any], workers: int) -> str:
    models = figures.get("models", {})
    lives = [f"{model} {_version(one['live'])}" for model, one in models.items()] or [_version(figures["live"])]
    waiting = "" if figures["lag"] is None else f"lag {figures['lag']:,}  "
    return (
        f"[dim]{workers} workers  {escape(', '.join(lives))}  {figures['events']:,} events  "
        f"{figures['events_per_s']:,.0f}/s  {waiting}{figures['dead_letters']:,} dead letters  "
        f"{figures['swaps']} swaps[/dim]"
    )


def _version(live: int | None) -> str:
    return "no version live" if live is None else f"version {live}"
