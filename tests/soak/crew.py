"""The scorers of a soak, each at its place; whoever was killed, ended or gave up for a good reason is started again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from modelcast.dev.process import dying_with_parent
from modelcast.errors import ExitCode

from .stage import EVENTS, MODEL, STREAMS, Stage, StreamPlace

# A commit without an answer is drained for 30 s, what else is closed may ask a node that is away.
END_S = 180.0
# What a scorer may end with by itself: a cluster that was away for too long, an id that was taken over while it was
# frozen. Whoever runs it starts it again.
GIVES_UP = frozenset({ExitCode.BROKER, ExitCode.FENCED})
STACKS_S = 3.0


@dataclass
class Place:
    """One scorer's place in its group.

    Attributes:
        spared: It is never killed, ended or frozen, so that what its memory and threads do over hours is seen.
        idle_until_s: When the next one may start here (monotonic).
        wanted_end: A signal was sent that ends it.
        frozen: It is stopped.
        is_live: It told that it scores.
    """

    name: str
    stream: StreamPlace
    spared: bool
    process: subprocess.Popen[bytes] | None = None
    idle_until_s: float = 0.0
    wanted_end: signal.Signals | None = None
    asked_s: float = 0.0
    frozen: bool = False
    is_live: bool = False
    log: Path = Path()
    starts: int = 0
    resident_kib: list[int] = field(default_factory=list)
    threads: list[int] = field(default_factory=list)

    @property
    def runs(self) -> bool:
        return self.process is not None


class Crew:
    """All scorers; `tend`, called by one thread, looks after them: they die with it.

    Attributes:
        faults: Broken promises, in words.
        resident_most_kib: The most that any scorer held.
    """

    def __init__(self, stage: Stage, each: int) -> None:
        self.faults: list[str] = []
        self.resident_most_kib = 0
        self.places = [
            Place(f"{stream.name}-{number}", stream, spared=stream is STREAMS[0] and number == 0)
            for stream in STREAMS
            for number in range(each)
        ]
        self._stage = stage
        self._end_s = stage.patience * END_S
        self._logs = stage.folder / "scorers"
        self._logs.mkdir()
        self._lock = threading.RLock()

    @property
    def spared(self) -> Place:
        return next(place for place in self.places if place.spared)

    def tend(self) -> None:
        """Starts who is missing, and looks at who ended."""
        with self._lock:
            for place in self.places:
                if place.process is None:
                    if time.monotonic() >= place.idle_until_s:
                        self._start(place)
                elif (status := place.process.poll()) is not None:
                    self._ended(place, status)
                elif not place.is_live:
                    place.is_live = _count(place.log, "live") > 0
                elif place.wanted_end is not None and time.monotonic() - place.asked_s > self._end_s:
                    self.faults.append(f"{place.name} did not end in {self._end_s:g} s after {place.wanted_end.name}")
                    self.show_stacks()
                    place.wanted_end = None

    def signal(self, place: Place, number: signal.Signals, *, back_after_s: float = 0.0) -> bool:
        """Sends a signal to who is there; another starts at that place once it is gone and that time is over."""
        with self._lock:
            if place.process is None or place.process.poll() is not None:
                return False
            if place.wanted_end is not None and number != signal.SIGCONT:
                return False
            place.process.send_signal(number)
            if number in (signal.SIGKILL, signal.SIGTERM):
                place.wanted_end, place.asked_s = number, time.monotonic()
                place.idle_until_s = time.monotonic() + back_after_s
            else:
                place.frozen = number == signal.SIGSTOP
            return True

    def is_manned(self, place: Place) -> bool:
        """Whether another of the same group scores."""
        return any(other.is_live for other in self.places if other is not place and other.stream is place.stream)

    def end(self) -> None:
        """All of them, in order."""
        for place in self.places:
            self.signal(place, signal.SIGTERM, back_after_s=1e9)
        deadline = time.monotonic() + self._end_s + 5
        while any(place.runs for place in self.places) and time.monotonic() < deadline:
            self.tend()
            time.sleep(0.1)

    def kill_all(self) -> None:
        for place in self.places:
            if place.process is not None:
                place.process.kill()
                place.process.wait(30)

    def measure(self) -> None:
        """Notes what each holds in memory, and how many threads it has."""
        with self._lock:
            for place in self.places:
                if place.process is not None and (kib := _status_of(place.process.pid, "VmRSS")):
                    place.resident_kib.append(kib)
                    place.threads.append(_status_of(place.process.pid, "Threads"))
                    self.resident_most_kib = max(self.resident_most_kib, kib)

    def show_stacks(self) -> None:
        """Lets each write into its log where it is."""
        for place in self.places:
            if place.process is not None and place.process.poll() is None:
                place.process.send_signal(signal.SIGCONT)
                place.process.send_signal(signal.SIGUSR1)
        time.sleep(STACKS_S)

    def count(self, event: str) -> int:
        """How many reports of a kind all of them made."""
        return sum(_count(path, event) for path in self._logs.glob("*.jsonl"))

    def _start(self, place: Place) -> None:
        place.starts += 1
        stem = f"{place.name}-{place.starts:03}"
        place.log = self._logs / f"{stem}.jsonl"
        with place.log.open("wb") as out, (self._logs / f"{stem}.err").open("wb") as err:
            place.process = subprocess.Popen(
                dying_with_parent([
                    sys.executable, "-m", "tests.soak.scorer_main", "score", MODEL, "--events", EVENTS,
                    "--predictions", place.stream.predictions, "--group", place.stream.group,
                    "--instance", place.name, "--json", *place.stream.options,
                ]),
                env=self._stage.environment(),
                stdout=out,
                stderr=err,
            )  # fmt: skip
        place.wanted_end, place.frozen, place.is_live = None, False, False
        self._stage.timeline.note("scorer starts", who=place.name, log=stem, pid=place.process.pid)

    def _ended(self, place: Place, status: int) -> None:
        wanted, place.process, place.wanted_end, place.is_live = place.wanted_end, None, None, False
        self._stage.timeline.note("scorer ended", who=place.name, status=status, wanted=wanted and wanted.name)
        if wanted is None:
            place.idle_until_s = time.monotonic() + 1
            if status in GIVES_UP:
                self._stage.timeline.note("scorer gave up", who=place.name, status=status)
            else:
                self.faults.append(f"{place.name} (start {place.starts}) ended by itself with {status}")
        elif wanted == signal.SIGTERM and status not in (0, *GIVES_UP) and not _is_beside_work(place.log, status):
            self.faults.append(f"{place.name} (start {place.starts}) ended with {status} after SIGTERM")


def _is_beside_work(log: Path, status: int) -> bool:
    """Whether SIGTERM met Python itself: before a scorer had started, or once it had told how it ended."""
    text = log.read_text(encoding="utf-8")
    has_begun, is_done = '"event": "started"' in text, '"event": "stopped"' in text or '{"error"' in text
    return status == -signal.SIGTERM and (is_done or not has_begun)


def _count(path: Path, event: str) -> int:
    found = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            found += json.loads(line).get("event") == event
        except json.JSONDecodeError:  # the last line of one that was killed
            continue
    return found


def _status_of(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), 0)
