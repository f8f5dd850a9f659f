"""One load at a time, on a thread of its own: the control thread follows the registry and sends statuses meanwhile.

- The thread touches the loader and nothing else. What it made is collected, and destroyed, by the control thread.
- What it does is told as it happens: a `Step` for each state the version comes to, an `Outcome` at the end.
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

from .lifecycle import State
from .policy import Load

if TYPE_CHECKING:
    from .binding import EventFields
    from .servable import Servable


class VersionLoader(Protocol):
    """What turns a version into a servable: `loader.Loader`."""

    def load(self, record: VersionRecord, fields: EventFields | None, on_state: Callable[[State], None]) -> Servable:
        """Raises ModelRefusedError if the version failed a check, anything else if it could not be checked.

        Args:
            on_state: Called with each of `lifecycle.LOAD_STEPS` as it begins.
        """


@dataclass(frozen=True, slots=True)
class Job:
    """A load asked for by one model reference."""

    ref: ModelRef
    action: Load
    fields: EventFields | None


@dataclass(frozen=True, slots=True)
class Step:
    """A job came to one of `lifecycle.LOAD_STEPS`."""

    job: Job
    state: State


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a job: a servable, or an error."""

    job: Job
    servable: Servable | None
    error: BaseException | None
    took_ms: float


class LoadWorker:
    """Runs jobs one by one; `submit` and `collect` are for one thread.

    Args:
        on_news: Called on the loader thread when `collect` has something to give.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        loader: VersionLoader,
        *,
        on_news: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loader = loader
        self._on_news = on_news
        self._clock = clock
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._news: queue.SimpleQueue[Step | Outcome] = queue.SimpleQueue()
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

    def collect(self) -> list[Step | Outcome]:
        """What happened since the last call, in order."""
        news: list[Step | Outcome] = []
        while True:
            try:
                news.append(self._news.get_nowait())
            except queue.Empty:
                return news
            if isinstance(news[-1], Outcome):
                self._job = None

    def close(self, timeout_s: float) -> bool:
        """Takes no more jobs; False if one was still running after `timeout_s`."""
        self._closed.set()
        self._jobs.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        for left in self.collect():
            if isinstance(left, Outcome) and left.servable is not None:
                left.servable.close()
        return True

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closed.is_set():
            started = self._clock()
            servable, error = None, None
            try:
                servable = self._loader.load(job.action.record, job.fields, self._steps_of(job))
            except BaseException as caught:  # some native libraries' panics derive from BaseException alone
                error = caught
            if self._closed.is_set() and servable is not None:
                servable.close()
                return
            self._tell(Outcome(job, servable, error, (self._clock() - started) * 1000.0))

    def _steps_of(self, job: Job) -> Callable[[State], None]:
        return lambda state: self._tell(Step(job, state))

    def _tell(self, news: Step | Outcome) -> None:
        self._news.put(news)
        self._on_news()
