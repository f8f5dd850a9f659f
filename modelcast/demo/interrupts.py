"""Ctrl-C and its like, so that nothing is left behind wherever they strike.

- A signal is remembered, and `check` raises KeyboardInterrupt for it. So it can strike neither between the making of a
  thing and the noting that it must be removed, nor in the middle of cleaning up.
- Inside `at_once` it raises where it strikes: for what takes seconds and holds nothing that others must clean up. Where
  the exception is swallowed (foreign callbacks do that), the next `check` raises again.
- Further signals change nothing: what the first began is bounded by its own deadlines.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A wait is made of naps of this length, so that what ends it is noticed soon.
_NAP_S: Final = 0.05


class Interrupts:
    """Remembers the first signal; made by `listening`. For the main thread."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._at_once = 0

    def check(self) -> None:
        """Raises KeyboardInterrupt if a signal came."""
        if self.number is not None:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Lets a signal raise wherever it strikes."""
        self.check()
        self._at_once += 1
        try:
            yield
        finally:
            self._at_once -= 1
        self.check()

    def sleep(self, seconds: float) -> None:
        """Sleeps, unless a signal came."""
        until = time.monotonic() + seconds
        self.check()
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP_S))
            self.check()

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        if self.number is None:
            self.number = number
            if self._at_once:
                raise KeyboardInterrupt


@contextmanager
def listening() -> Iterator[Interrupts]:
    """Handles SIGINT, SIGTERM and SIGHUP; on another thread than the main one, where Python can't, it does nothing."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.signal(number, interrupts.handle) for number in _SIGNALS}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
