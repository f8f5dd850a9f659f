"""An application's callbacks, called on a thread of their own, one after the other in the order things happened.

- Who tells of something never waits: a callback that hangs, raises, or waits for a model delays no swap and no load.
- The thread starts with the first callback. What happened before a callback was added is not told.
- `close` lets what has happened be told, for a bounded time.

    hooks.on_swap(lambda event: print(event.new), ref=ModelRef("fraud"))
    hooks.swapped(event)
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from modelcast.names import ModelRef
from modelcast.records import Refusal

if TYPE_CHECKING:
    from .line import Swapped

LOGGER: Final = logging.getLogger("modelcast.client")

# Swaps and refusals are minutes apart: so many that wait mean a callback that does not return.
MAX_WAITING: Final = 1000
# Callbacks are to be quick; a client that closes waits for the last ones, and not for one that hangs.
CLOSE_TIMEOUT_S: Final = 2.0

OnSwap = Callable[["Swapped"], None]
OnRefused = Callable[[ModelRef, Refusal], None]


class Hooks:
    """Callbacks for all models, or for one; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._on_swap: tuple[tuple[ModelRef | None, OnSwap], ...] = ()
        self._on_refused: tuple[tuple[ModelRef | None, OnRefused], ...] = ()
        self._calls: queue.SimpleQueue[tuple[Callable[..., None], tuple[Any, ...]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def on_swap(self, callback: OnSwap, *, ref: ModelRef | None = None) -> None:
        """Calls back after each version that goes live: of `ref`, or of any model."""
        with self._lock:
            self._on_swap = (*self._on_swap, (ref, callback))

    def on_refused(self, callback: OnRefused, *, ref: ModelRef | None = None) -> None:
        """Calls back after each version that is refused: of `ref`, or of any model."""
        with self._lock:
            self._on_refused = (*self._on_refused, (ref, callback))

    def swapped(self, event: Swapped) -> None:
        """Tells of a swap; returns at once."""
        for ref, callback in self._on_swap:
            if ref in (None, event.ref):
                self._post(callback, event)

    def refused(self, ref: ModelRef, refusal: Refusal) -> None:
        """Tells of a refusal; returns at once."""
        for wanted, callback in self._on_refused:
            if wanted in (None, ref):
                self._post(callback, ref, refusal)

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Takes no more, and waits until all was told."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._calls.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)
            if thread.is_alive():
                LOGGER.warning("a callback did not return in %g s", timeout_s)

    def _post(self, callback: Callable[..., None], *what: Any) -> None:
        if self._calls.qsize() >= MAX_WAITING:
            LOGGER.warning("%d callbacks wait for one that does not return: %r is left out", MAX_WAITING, callback)
            return
        with self._lock:
            if self._closed:
                return
            self._calls.put((callback, what))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="modelcast-callbacks", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        for callback, what in iter(self._calls.get, None):
            try:
                callback(*what)
            except Exception:
                LOGGER.exception("a callback failed")
