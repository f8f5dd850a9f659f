"""One load at a time, on a thread of its own: the control thread follows the registry and sends statuses meanwhile.

- The thread touches the loader and nothing else. What it made is collected, and destroyed, by the control thread.
- It ends with `close`; a load that outlasts `close` is let go when it is done.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from modelcast.names import ModelRef
from modelcast.registry.image import VersionRecord

from .policy import Load

if TYPE_CHECKING:
    from .binding import EventFields
    from .servable import Servable


class VersionLoader(Protocol):
    """What turns a version into a servable: `loader.Loader`."""

    def load(self, record: VersionRecord, fields: EventFields | None) -> Servable:
        """Raises ModelRefusedError if the version failed a check, anything else if it could not be checked."""


@dataclass(frozen=True, slots=True)
class Job:
    """A load asked for by one slot."""

    ref: ModelRef
    action: Load
    fields: EventFields | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: a servable, or an error."""

    job: Job
    servable: Servable | None
    error: BaseException | None
    took_ms: float


class LoadWorker:
    """Runs jobs one by one; `submit` and `collect` are for one thread."""

    def __init__(self, loader: VersionLoader, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._loader = loader
        self._clock = clock
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._job: Job | None = None

    @property
    def job(self) -> Job | None:
        """The job whose outcome was not collected yet."""
        return self._job

    def submit(self, job: Job) -> None:
        """Starts a load; only when `job` is None."""
        if self._job is not None:
            raise RuntimeError("the loader is busy: one load at a time")
        self._job = job
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="modelcast-loader", daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def collect(self) -> Outcome | None:
        """What became of the job, once it has ended."""
        try:
            outcome = self._outcomes.get_nowait()
        except queue.Empty:
            return None
        self._job = None
        return outcome

    def close(self, timeout_s: float) -> bool:
        """Takes no more jobs; False if one was still running after `timeout_s`."""
        self._closed.set()
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        left = self.collect()
        if left is not None and left.servable is not None:
            left.servable.close()
        return True

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closed.is_set():
            started = self._clock()
            servable, error = None, None
            try:
                servable = self._loader.load(job.action.record, job.fields)
            except BaseException as caught:  # some native libraries' panics derive from BaseException alone
                error = caught
            if self._closed.is_set() and servable is not None:
                servable.close()
                return
            self._outcomes.put(Outcome(job, servable, error, (self._clock() - started) * 1000.0))
