"""`Seals`: files this process has checked, and that nobody has touched since.

A backbone that ten versions share need not be hashed ten times. A file is taken for what it was checked to be while all
of this holds:
- Its inode, size, mtime and ctime are what they were then. Every write, truncation, rename, link and change of mode
  moves the ctime, to which no program can set a time of its choice. What moves it for our own reasons (a link to it,
  its removal) is done under the lock, between a look before and a look after.
- Its mtime is the odd nanosecond we gave it: clocks of file systems tick in milliseconds, so a write within the same
  tick shows there. Where times are kept more coarsely than we gave them, nothing is ever sealed.
- It was checked less than `SEAL_S` ago: a disk that rots moves no time.

What shows in none of these is a store into a page that somebody mapped writable and dirtied before the check.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Final

# Updates that follow each other within it share their hashing; a daily one can afford its own.
SEAL_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Seal:
    """What a file looked like when its bytes were known, and when they were last looked at."""

    inode: tuple[int, int]
    size: int
    mtime_ns: int
    ctime_ns: int
    checked_s: float

    @classmethod
    def of(cls, status: os.stat_result, checked_s: float) -> Seal:
        inode = (status.st_dev, status.st_ino)
        return cls(inode, status.st_size, status.st_mtime_ns, status.st_ctime_ns, checked_s)


# Of a file that can't be sealed.
UNSEALED: Final = Seal((0, 0), -1, 0, 0, -math.inf)


class Seals:
    """By digest; thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = Lock()
        self._seals: dict[str, Seal] = {}

    def link(self, digest: str, path: Path, target: Path) -> Seal | None:
        """Makes `target` a link to a file, and the file's mtime now.

        Returns:
            What it looks like now, to be handed to `put` once its bytes are checked; None if they need not be.

        Raises:
            OSError: As linking does.
        """
        with self._lock:
            before = self._intact(digest, path)
            now_ns = time.time_ns()
            os.utime(path, ns=(now_ns, now_ns))
            target.hardlink_to(path)
            after = Seal.of(target.lstat(), self._clock())
            if after.mtime_ns != now_ns:
                after = replace(after, checked_s=-math.inf)
            elif before is not None and _same_file(before, after):
                self._seals[digest] = replace(after, checked_s=before.checked_s)
                return None
            self._seals.pop(digest, None)
            return after

    def put(self, digest: str, seal: Seal) -> None:
        """Seals a file whose bytes were read after `seal` was taken, and were right."""
        with self._lock:
            self._seals[digest] = seal

    def drop(self, digest: str) -> None:
        with self._lock:
            self._seals.pop(digest, None)

    def keep_only(self, digests: Collection[str]) -> None:
        """Forgets all others, whose files are gone."""
        with self._lock:
            self._seals = {digest: seal for digest, seal in self._seals.items() if digest in digests}

    @contextmanager
    def unlinking(self, paths: Collection[tuple[str, Path]]) -> Iterator[None]:
        """Within it, links to these files (digest and path of each) are removed, and their mtime is made now.

        Seals that hold, hold on.
        """
        with self._lock:
            before = [(digest, path, self._intact(digest, path)) for digest, path in paths]
            yield
            for digest, path, seal in before:
                with suppress(OSError):
                    touched = path.lstat().st_mtime_ns
                    now_ns = time.time_ns()
                    os.utime(path, ns=(now_ns, now_ns), follow_symlinks=False)
                    if seal is not None and touched == seal.mtime_ns:
                        after = Seal.of(path.lstat(), seal.checked_s)
                        if _same_file(seal, after) and after.mtime_ns == now_ns:
                            self._seals[digest] = after

    def _intact(self, digest: str, path: Path) -> Seal | None:
        seal = self._seals.get(digest)
        if seal is None or self._clock() - seal.checked_s > SEAL_S:
            return None
        with suppress(OSError):
            return seal if Seal.of(path.lstat(), seal.checked_s) == seal else None
        return None


def _same_file(before: Seal, after: Seal) -> bool:
    return (before.inode, before.size) == (after.inode, after.size)
