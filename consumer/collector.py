"""Python's cycle collector, kept off the hot path.

Every event is some objects that the collector tracks and that reference counting frees: left alone, it walks a batch,
and now and then the whole heap, many times a batch for nothing (half of a scorer's time was this). While a scorer runs

- what was there before is set aside (`gc.freeze`): it is not garbage, and need not be walked;
- nothing is collected inside a batch;
- between batches, when hardly anything is alive, the young are collected once enough has gathered or a second has
  passed, and all of it once a minute, so that cycles made by the application's other threads are still found.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

# Objects made and not freed since the last collection, beyond which the next one does not wait for its second.
YOUNG_OBJECTS_MAX = 100_000
YOUNG_INTERVAL_S = 1.0
FULL_INTERVAL_S = 60.0


class QuietCollector:
    """A context in which garbage is collected by `between_batches` only; leaves the collector as it found it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._was_enabled = False
        self._young_at_s = self._full_at_s = 0.0

    def __enter__(self) -> Self:
        self._was_enabled = gc.isenabled()
        gc.collect()
        gc.freeze()
        gc.disable()
        self._young_at_s = self._full_at_s = self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        gc.unfreeze()
        if self._was_enabled:
            gc.enable()

    def between_batches(self) -> None:
        """Collects if it is time."""
        now = self._clock()
        if now - self._full_at_s >= FULL_INTERVAL_S:
            gc.collect()
            self._young_at_s = self._full_at_s = now
        elif now - self._young_at_s >= YOUNG_INTERVAL_S or gc.get_count()[0] > YOUNG_OBJECTS_MAX:
            gc.collect(1)
            self._young_at_s = now
