"""A clock that never goes back, over restarts too: what expired stays expired.

- The latest time seen is kept in the state folder. A system clock behind it does not count: time goes on from there.
- A clock that was once far ahead makes keys expire early, and so it stays until somebody says otherwise:
  `modelcast keys reset-clock`, or deleting `<state>/clock.json`.
- A folder or file that can't be used costs the memory over restarts, never the service: that is logged once.

    SteadyClock(folders.state_folder()).now_ms()
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modelcast.json_data import read_json
from modelcast.replacing import replace_file

LOGGER: Final = logging.getLogger("modelcast.trust")

FILE_NAME: Final = "clock.json"
# Keys expire by the day: what a crash forgets of the floor is no more than this.
SAVE_EVERY_MS: Final = 60_000
_MAX_FILE_BYTES: Final = 1_000


def _system_ms() -> int:
    return time.time_ns() // 1_000_000


class SteadyClock:
    """Epoch milliseconds that only grow; thread-safe.

    Args:
        folder: Where the floor is kept; None keeps it in memory.
        system_ms: The system's clock, which may jump.
        monotonic_s: Seconds that never go back while this process runs.
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        system_ms: Callable[[], int] = _system_ms,
        monotonic_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = None if folder is None else folder / FILE_NAME
        self._system_ms = system_ms
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._complained = False
        self._saved_ms = self._floor_ms = self._read()
        self._floor_at_s = monotonic_s()

    def now_ms(self) -> int:
        """The time; never before one it gave already, in this process or an earlier one of this user."""
        with self._lock:
            at_s = self._monotonic_s()
            # A clock set back goes on from the floor: standing still, it would let keys live longer.
            onwards_ms = self._floor_ms + int((at_s - self._floor_at_s) * 1000)
            self._floor_ms, self._floor_at_s = max(self._system_ms(), onwards_ms), at_s
            if self._floor_ms >= self._saved_ms + SAVE_EVERY_MS:
                self._save()
            return self._floor_ms

    def _read(self) -> int:
        if self._path is None:
            return 0
        try:
            with self._path.open("rb") as file:
                floor = read_json(file.read(_MAX_FILE_BYTES))["floor_ms"]
            if type(floor) is not int or floor < 0:
                raise ValueError(f"floor_ms is {floor!r}")
        except FileNotFoundError:
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._complain(error)
            return 0
        return floor

    def _save(self) -> None:
        if self._path is None:
            return
        self._saved_ms = self._floor_ms  # also if it fails: tried again a while later, not at every call
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            floor_ms = max(self._floor_ms, self._read())  # another process of this user may be ahead
            replace_file(self._path, json.dumps({"floor_ms": floor_ms}).encode())
        except OSError as error:
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        if not self._complained:
            self._complained = True
            LOGGER.error(
                "the time last seen can't be kept in %s (%s): after a restart with the clock set back, expired keys "
                "would count again",
                self._path,
                error,
            )


def reset(folder: Path) -> bool:
    """Forgets the floor; whether there was one. Raises OSError."""
    try:
        (folder / FILE_NAME).unlink()
    except FileNotFoundError:
        return False
    return True
