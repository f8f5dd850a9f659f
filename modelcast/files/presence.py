"""`Presence`: a process's own folder beside those of others, removed when the process is gone, however it ended.

    <views>/<pid>.<random>/        what this process holds
    <views>/<pid>.<random>.lock    locked while the process lives: the system lets go of it, whatever happens

- Whoever starts, or needs room, removes the folders whose locks nobody holds.
- A folder that somebody removed under a living process is made anew under another name: what sessions mapped of the old
  one stays mapped.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from threading import Lock

from filelock import FileLock, Timeout

# Another process may look at our lock file the moment it appears, and lets go of it at once.
_ENTER_S = 5.0
_SUFFIX = ".lock"


class Presence:
    """This process among those that use `views`; thread-safe.

    Raises:
        OSError: The folder can't be written.
    """

    def __init__(self, views: Path) -> None:
        self._views = views
        self._lock = Lock()
        self._is_closed = False
        self._enter()

    @property
    def folder(self) -> Path:
        """This process's folder, there and locked. Raises OSError."""
        with self._lock:
            if self._is_closed:  # a fetch that was under way when its process closed the cache
                raise FileNotFoundError(errno.ENOENT, "it was closed", str(self._folder))
            if not (self._folder.is_dir() and Path(self._alive.lock_file).exists()):
                self._alive.release()
                self._enter()
            return self._folder

    def sweep(self) -> None:
        """Removes what processes left that are gone."""
        for lock_file in self._views.glob(f"*{_SUFFIX}"):
            if lock_file.stem == self._folder.name:
                continue
            lock = FileLock(lock_file)
            with contextlib.suppress(Timeout, OSError):
                lock.acquire(blocking=False)
                shutil.rmtree(self._views / lock_file.stem, ignore_errors=True)
                lock_file.unlink(missing_ok=True)
                lock.release()
        with contextlib.suppress(OSError):  # the whole of it may be removed meanwhile
            for folder in self._views.iterdir():
                # A lock is there before its folder and goes after it: without one, somebody removed it by hand, and a
                # process that is still alive makes itself another.
                if folder.suffix != _SUFFIX and not folder.with_name(f"{folder.name}{_SUFFIX}").exists():
                    shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Removes this process's folder."""
        with self._lock:
            self._is_closed = True
            shutil.rmtree(self._folder, ignore_errors=True)
            # While it is held: a name given up first could be another's by then.
            with contextlib.suppress(OSError):
                Path(self._alive.lock_file).unlink(missing_ok=True)
            self._alive.release()

    def _enter(self) -> None:
        self._views.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            name = f"{os.getpid()}.{uuid.uuid4().hex}"
            self._alive = FileLock(self._views / f"{name}{_SUFFIX}", thread_local=False)
            self._alive.acquire(timeout=_ENTER_S)
            if Path(self._alive.lock_file).exists():  # a sweep that was before us took it for a dead one's
                break
            self._alive.release()
        self._folder = self._views / name
        self._folder.mkdir(mode=0o700)


def living(views: Path) -> Iterator[tuple[int, Path]]:
    """Process id and folder of each process that is there; changes nothing."""
    for lock_file in sorted(views.glob(f"*{_SUFFIX}")):
        folder, pid = lock_file.with_suffix(""), lock_file.name.partition(".")[0]
        if pid.isdecimal() and folder.is_dir() and _is_held(lock_file):
            yield int(pid), folder


def _is_held(lock_file: Path) -> bool:
    try:
        file = os.open(lock_file, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
