"""Predictions asked for on an event loop: beside it, on a bounded number of threads, or on it where that is quicker.

- The way to a thread and back takes longer than many a prediction. A batch that was seen to take less runs on the loop
  itself (`Pace`); one that then takes much longer after all goes beside it again.
- As many calls run as there are threads. Others wait on their event loop, where cancelling one leaves nothing behind;
  cancelling one that runs returns at once and lets its result go.

    scores = await aside.run(lambda: model.predict(rows))
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from modelcast.errors import UsageError

T = TypeVar("T")

# A run takes one core (or waits for a device); some more threads than cores, so that one slow model leaves some free.
_SPARE_THREADS: Final = 4
_MAX_THREADS: Final = 32

# The way to a thread and back took 100 µs on an idle loop, 25 µs of them on the loop (`benchmarks.client` prints it):
# up to there, running a batch at once is quicker for the caller and delays others on the loop by little.
INLINE_S: Final = 100e-6
# A run on the loop that takes so long was not what it seemed …
_MISJUDGED_S: Final = 10 * INLINE_S
# … and batches of its size go beside the loop for so long.
_BAN_S: Final = 10.0


class Pace:
    """Which batches of one model are quick enough for the event loop.

    Known by the fastest run so far of batches of about the size (the same power of two), of one version.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._version: object = None
        self._fastest_s: dict[int, float] = {}
        self._banned_until_s: dict[int, float] = {}

    def is_quick(self, version: object, rows: int | None) -> bool:
        """Whether `rows` rows may run on the loop; None for a number that is not known."""
        if rows is None or version != self._version:
            return False
        size = rows.bit_length()
        return self._fastest_s.get(size, INLINE_S) < INLINE_S and self._banned_until_s.get(size, 0.0) <= self._clock()

    def note(self, version: object, rows: int | None, took_s: float, *, inline: bool) -> None:
        """Takes in what a run took."""
        if rows is None:
            return
        if version != self._version:
            self._version, self._fastest_s, self._banned_until_s = version, {}, {}
        size = rows.bit_length()
        if inline and took_s > _MISJUDGED_S:
            self._banned_until_s[size] = self._clock() + _BAN_S
        self._fastest_s[size] = min(took_s, self._fastest_s.get(size, took_s))


class Aside:
    """A bounded number of threads for event loops; they start when they are needed."""

    def __init__(self) -> None:
        self._threads = min(_MAX_THREADS, (os.cpu_count() or 1) + _SPARE_THREADS)
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="modelcast-predict")
        self._lock = threading.Lock()
        self._places: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}

    async def run(self, work: Callable[[], T]) -> T:
        """What `work` returns, done on one of the threads. Raises UsageError after `close`."""
        loop = asyncio.get_running_loop()
        places = self._places_of(loop)
        await places.acquire()
        try:
            future = self._executor.submit(work)
        except RuntimeError as error:
            places.release()
            raise UsageError("this ModelClient is closed", hint="Make a new one.") from error

        def leave(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile, and nobody waits for a place
                loop.call_soon_threadsafe(places.release)

        future.add_done_callback(leave)
        return await asyncio.wrap_future(future, loop=loop)

    def close(self) -> None:
        """Takes no more, and waits for what runs."""
        self._executor.shutdown(wait=True)

    def _places_of(self, loop: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
        with self._lock:
            places = self._places.get(loop)
            if places is None:
                alive = {other: place for other, place in self._places.items() if not other.is_closed()}
                self._places = alive | {loop: asyncio.Semaphore(self._threads)}
                places = self._places[loop]
            return places
