"""An application that scores in a tight loop while versions go live in it, in a process of its own.

    with Application(servers, prefix, folder) as application:
        application.follow()
        application.wait_live(1)
        application.score(easy_events(64))
        application.begin()                 # a window
        …                                   # what scoring is to be watched through
        print(application.end().longest_ms)

- A gap is the time from one prediction's return to the next one's: what a caller of `predict` waits at most.
- Memory is the process's own, mapped files of the model included.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
import timeit
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE

from .transfers import MODEL

if TYPE_CHECKING:
    from modelcast.consumer import ModelClient
    from modelcast.consumer.line import Swapped

_TIMEOUT_S = 60.0
# Written to `clear_refs`, sets the peak of resident memory to what is resident now (proc_pid_clear_refs(5)).
_RESET_PEAK = "5"
_LEASES = 20_000


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps between predictions of one window, in milliseconds."""

    predictions: int
    p50_ms: float
    p99_ms: float
    p999_ms: float
    longest_ms: float


@dataclass(frozen=True, slots=True)
class Live:
    """A version went live; `at_s` by the monotonic clock, which all processes of a host share."""

    version: int
    at_s: float
    load_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the process holds now.

    Attributes:
        resident_bytes: VmRSS.
        peak_bytes: VmHWM, since it was last reset.
        threads: Python's and native ones.
        handles: Open file descriptors.
    """

    resident_bytes: int
    peak_bytes: int
    threads: int
    handles: int


class Application:
    """The process, seen from outside. Use as a context manager.

    Args:
        trust_policy: Its trust policy; versions signed as it wants are not tried in a child at each load.
    """

    def __init__(self, servers: str, prefix: str, folder: Path, *, trust_policy: Path | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        arguments = (servers, prefix, folder, trust_policy, other)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        self._answer("start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pipe.close()
        self._process.join(_TIMEOUT_S)

    def follow(self) -> None:
        """Subscribes to the model; nothing is loaded before."""
        self._ask("follow")

    def wait_live(self, version: int) -> Live:
        """Waits until a version goes live; swaps before that one are forgotten."""
        live: Live = self._ask("wait_live", version)
        return live

    def score(self, columns: Mapping[str, Any]) -> None:
        """Predicts on these columns from now on, again and again."""
        self._ask("score", dict(columns))

    def predict(self, columns: Mapping[str, Any]) -> int:
        """Predicts once; which version did."""
        version: int = self._ask("predict", dict(columns))
        return version

    def lease_ns(self) -> float:
        """What a lease takes when nobody else uses the model: the best of some tries."""
        lease_ns: float = self._ask("lease_ns")
        return lease_ns

    def begin(self) -> None:
        """Begins a window."""
        self._ask("begin")

    def end(self) -> Gaps:
        """Ends the window."""
        gaps: Gaps = self._ask("end")
        return gaps

    def footprint(self, *, reset: bool = False) -> Footprint:
        """What it holds; from now on, `reset` counts the peak anew."""
        footprint: Footprint = self._ask("footprint", reset)
        return footprint

    def _ask(self, what: str, *arguments: object) -> Any:
        self._pipe.send((what, arguments))
        return self._answer(what)

    def _answer(self, what: str) -> Any:
        if not self._pipe.poll(_TIMEOUT_S):
            raise SystemExit(f"the application did not answer {what!r} within {_TIMEOUT_S:g} s")
        try:
            failed, answer = self._pipe.recv()
        except EOFError:
            raise SystemExit(f"the application ended at {what!r}") from None
        if failed:
            raise SystemExit(f"the application failed at {what!r}: {answer}")
        return answer


def _serve(servers: str, prefix: str, folder: Path, trust_policy: Path | None, pipe: Pipe) -> None:
    os.environ |= {CACHE_VARIABLE: str(folder / "cache"), STATE_VARIABLE: str(folder / "state")}
    from modelcast.consumer import ModelClient

    with ModelClient(servers, prefix=prefix, device="cpu", trust_policy=trust_policy) as client:
        served = _Served(client)
        pipe.send((False, None))
        while True:
            try:
                what, arguments = pipe.recv()
            except EOFError:
                break
            try:
                pipe.send((False, getattr(served, what)(*arguments)))
            except Exception as error:  # told to who asked
                pipe.send((True, f"{type(error).__name__}: {error}"))
        served.close()


class _Served:
    """What the process does when it is asked."""

    def __init__(self, client: ModelClient) -> None:
        self._client = client
        self._swaps: queue.SimpleQueue[Live] = queue.SimpleQueue()
        self._at_s = array("d")
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def follow(self) -> None:
        self._model = self._client.model(MODEL)
        self._model.on_swap(self._swapped)

    def wait_live(self, version: int) -> Live:
        while True:
            try:
                live = self._swaps.get(timeout=_TIMEOUT_S / 2)
            except queue.Empty:
                why = "; ".join(entry.message for entry in self._model.refusals) or "nothing was refused"
                raise TimeoutError(f"version {version} did not go live: {why}") from None
            if live.version == version:
                return live

    def score(self, columns: Mapping[str, Any]) -> None:
        self._model.predict(columns)
        self._thread = threading.Thread(target=self._score, args=(columns,), daemon=True)
        self._thread.start()

    def predict(self, columns: Mapping[str, Any]) -> int:
        return self._model.predict(columns).version

    def lease_ns(self) -> float:
        slot = self._model._slot

        def lease() -> None:
            with slot.lease():
                pass

        return min(timeit.repeat(lease, number=_LEASES, repeat=5)) / _LEASES * 1e9

    def begin(self) -> None:
        self._at_s = array("d")

    def end(self) -> Gaps:
        at_s = self._at_s
        self._at_s = array("d")
        if self._failure is not None:
            raise self._failure
        gaps_ms = np.diff(np.array(at_s)) * 1e3
        p50, p99, p999 = np.percentile(gaps_ms, [50, 99, 99.9])
        return Gaps(len(gaps_ms), float(p50), float(p99), float(p999), float(gaps_ms.max()))

    def footprint(self, reset: bool) -> Footprint:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        status = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
        handles = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names only, of files that may be closed meanwhile
        found = Footprint(
            int(status["VmRSS"][0]) << 10, int(status["VmHWM"][0]) << 10, int(status["Threads"][0]), handles
        )
        if reset:
            Path("/proc/self/clear_refs").write_text(_RESET_PEAK, encoding="ascii")
        return found

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(_TIMEOUT_S)

    def _score(self, columns: Mapping[str, Any]) -> None:
        predict, now, stopped = self._model.predict, time.perf_counter, self._stop.is_set
        version = 0
        try:
            while not stopped():
                done = predict(columns).version
                self._at_s.append(now())
                if done < version:
                    raise AssertionError(f"version {done} scored after version {version}")
                version = done
        except BaseException as error:  # told by the window's end
            self._failure = error

    def _swapped(self, event: Swapped) -> None:
        at_s = time.monotonic()
        live = self._model._slot.live
        report = None if live is None else live.report
        steps = {} if report is None else {name: round(getattr(report, name), 1) for name in report.__slots__}
        self._swaps.put(Live(event.new.version, at_s, steps))
