"""Calls of the client library that may never return, bounded from outside.

`send_offsets_to_transaction` does not keep its timeout: while the group's coordinator is away it waits for a change of
some broker's state that may never come (librdkafka issues 5456 and 5511). A thread of its own makes such calls; when
one does not return in time the thread is left to it, and the client must not be used again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future


class BoundedCalls:
    """Runs calls one after another on one thread; for one caller at a time. Useless after a TimeoutError."""

    def __init__(self, name: str) -> None:
        self._calls: queue.SimpleQueue[tuple[Callable[[], None], Future[None]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], None], timeout_s: float) -> None:
        """Runs `call`, raising what it raises; TimeoutError if it has not returned in time."""
        future: Future[None] = Future()
        self._calls.put((call, future))
        future.result(timeout_s)

    def close(self) -> None:
        """Lets the thread end after the call it is in, if that ever returns."""
        self._calls.put(None)

    def _run(self) -> None:
        while (entry := self._calls.get()) is not None:
            call, future = entry
            try:
                call()
            except BaseException as error:  # the caller's to handle, whatever it is
                future.set_exception(error)
            else:
                future.set_result(None)
