"""What is going on, for whoever watches: written by the play's threads, read by the view."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

# Over how long the rate shown is counted: shorter ones jump with every commit.
_RATE_WINDOW_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The figures at a moment; counts are of committed records."""

    month: int = 0
    doing: str = "setting the stage"
    sent: int = 0
    predictions: int = 0
    dead_letters: int = 0
    events_per_s: float = 0.0
    live: int | None = None
    released: int | None = None
    swaps: int = 0
    rejected: int = 0


class Board:
    """The figures and the notes; thread-safe.

    Args:
        on_note: Told each note with the seconds since the beginning.
    """

    def __init__(self, on_note: Callable[[float, str], None] = lambda _at_s, _text: None) -> None:
        self._lock = threading.Lock()
        self._on_note = on_note
        self._began = time.monotonic()
        self._now = Snapshot()
        self._notes: tuple[tuple[float, str], ...] = ()
        self._counts: deque[tuple[float, int]] = deque([(self._began, 0)])

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began

    @property
    def notes(self) -> tuple[tuple[float, str], ...]:
        """Everything noted, with the seconds since the beginning."""
        return self._notes

    def snapshot(self) -> Snapshot:
        """The figures now."""
        with self._lock:
            now = time.monotonic()
            while len(self._counts) > 1 and now - self._counts[0][0] > _RATE_WINDOW_S:
                self._counts.popleft()
            since, before = self._counts[0]
            scored = self._now.predictions + self._now.dead_letters
            # After a pause the oldest count is that of the pause's end: a rate over too short a time would be a lie.
            rate = (scored - before) / max(now - since, _RATE_WINDOW_S / 2)
            return replace(self._now, events_per_s=rate)

    def doing(self, text: str, *, month: int | None = None) -> None:
        """What the play does now."""
        with self._lock:
            self._now = replace(self._now, doing=text, month=self._now.month if month is None else month)

    def sent(self, count: int) -> None:
        """Events sent so far."""
        with self._lock:
            self._now = replace(self._now, sent=count)

    def counted(self, *, predictions: int = 0, dead_letters: int = 0) -> None:
        """That many more were committed."""
        with self._lock:
            self._now = replace(
                self._now,
                predictions=self._now.predictions + predictions,
                dead_letters=self._now.dead_letters + dead_letters,
            )
            self._counts.append((time.monotonic(), self._now.predictions + self._now.dead_letters))

    def released(self, version: int) -> None:
        """The version that is released now."""
        with self._lock:
            self._now = replace(self._now, released=version)

    def live(self, version: int, *, swapped: bool) -> None:
        """The version that scores now."""
        with self._lock:
            self._now = replace(self._now, live=version, swaps=self._now.swaps + swapped)

    def rejected(self) -> None:
        """One more version was refused."""
        with self._lock:
            self._now = replace(self._now, rejected=self._now.rejected + 1)

    def note(self, text: str) -> None:
        """Something happened (rich markup)."""
        at_s = self.seconds
        with self._lock:
            self._notes = (*self._notes, (at_s, text))
        self._on_note(at_s, text)
