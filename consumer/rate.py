"""How fast a count grows, over the last seconds; and what a client's applications ask of a model."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from .status import Activity

if TYPE_CHECKING:
    from .slot import Slot

# Shorter ones jump with every commit.
WINDOW_S = 5.0
_STEP_S = 0.5


class Rate:
    """The rate of one count; for one thread."""

    def __init__(self, now_s: float, count: int = 0) -> None:
        self._counts: deque[tuple[float, int]] = deque([(now_s, count)])

    def add(self, now_s: float, count: int) -> bool:
        """Takes the count as it is now; False if it was taken a moment ago."""
        if now_s - self._counts[-1][0] < _STEP_S:
            return False
        self._counts.append((now_s, count))
        while len(self._counts) > 2 and now_s - self._counts[1][0] > WINDOW_S:
            self._counts.popleft()
        return True

    def per_s(self, now_s: float, count: int) -> float:
        """The growth to `count`, in 1/s."""
        since_s, before = self._counts[0]
        return (count - before) / max(now_s - since_s, _STEP_S)


class Calls:
    """Activity of a model nobody else counts for: its leases, one a call of `predict`. Thread-safe."""

    def __init__(self, slot: Slot, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._slot = slot
        self._clock = clock
        self._lock = threading.Lock()
        self._rate = Rate(clock())

    def __call__(self) -> Activity:
        """The calls so far, about, and their rate."""
        with self._lock:
            now_s, calls = self._clock(), self._slot.uses
            self._rate.add(now_s, calls)
            return Activity(calls, self._rate.per_s(now_s, calls))
