"""What was done and what happened, with its time: kept in a file as it happens, shown when something fails."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

# Of a failed run; the whole is in the file.
SHOWN_LINES = 150


class Timeline:
    """Lines of `{"at_s": …, "what": …, …}`; thread-safe.

    Attributes:
        counts: How often each thing happened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.counts: Counter[str] = Counter()
        self._started_s = time.monotonic()
        self._file = path.open("a", encoding="utf-8")
        self._latest: deque[str] = deque(maxlen=SHOWN_LINES)
        self._lock = threading.Lock()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._started_s

    def note(self, what: str, **facts: Any) -> None:
        """Something that happened now."""
        with self._lock:
            line = {"at_s": round(self.elapsed_s, 3), "clock": time.strftime("%H:%M:%S"), "what": what, **facts}
            self.counts[what] += 1
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            self._latest.append(f"{line['at_s']:9.3f}  {what}  {' '.join(f'{k}={v}' for k, v in facts.items())}")

    def latest(self) -> list[str]:
        """The last lines, for people."""
        with self._lock:
            return list(self._latest)

    def close(self) -> None:
        self._file.close()
