"""Calls of native code that may never return, bounded from outside: a thread of its own makes them.

When one does not return in time the thread is left to it. What the call used (a client, a session half built) must not
be used again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class BoundedCalls:
    """Runs calls one after another on one thread; for one caller at a time. Useless after a TimeoutError."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], T], timeout_s: float) -> T:
        """What `call` returns, or raises; TimeoutError if it has not returned in time."""
        future: Future[T] = Future()
        self._calls.put((call, future))
        try:
            return future.result(timeout_s)
        finally:
            del future  # it holds its error, whose traceback leads back here: a circle around the caller

    def close(self) -> None:
        """Lets the thread end after the call it is in, if that ever returns."""
        self._calls.put(None)

    def _run(self) -> None:
        while (entry := self._calls.get()) is not None:
            call, future = entry
            try:
                future.set_result(call())
            except BaseException as error:  # the caller's to handle, whatever it is
                future.set_exception(error)
            del entry, call, future  # while the thread waits, nothing is to be kept alive by it
