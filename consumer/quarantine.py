"""Versions that killed the process that loaded them: after two such deaths they are left alone for a while.

- Each load holds a locked marker file, removed when the load ends, however it ends, and when the process exits by
  itself. A marker whose lock is free is what a dead process left: the system frees its locks.
- Two of them within `EXPIRY_S` quarantine the content, not the number: one kill by chance bans no good model, and the
  same bytes under another number stay banned.
- Loads of several live processes hold a marker each, and count for nothing.
- A folder that can't be written costs the memory of crashes, not the service.

    with Quarantine(state_dir).guard(manifest):
        loader.load(...)
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from modelcast.errors import QuarantinedError
from modelcast.records import Manifest

LOGGER: Final = logging.getLogger("modelcast.control")

# The first death may be the out-of-memory killer's choice, or an operator's.
MAX_DEATHS: Final = 2
# Long enough that a supervisor's restarts do not become a crash loop, short enough that a mended host recovers alone.
EXPIRY_S: Final = 3600.0


class Quarantine:
    """The markers of one state folder.

    Args:
        folder: None guards nothing.
        now_s: Epoch seconds, as the file system tells them.
    """

    def __init__(self, folder: Path | None, *, now_s: Callable[[], float] = time.time) -> None:
        self._folder = None if folder is None else folder / "loading"
        self._now_s = now_s

    @contextlib.contextmanager
    def guard(self, manifest: Manifest) -> Iterator[None]:
        """Marks a load while it lasts.

        Raises:
            QuarantinedError: The version's content killed the process that loaded it, twice.
        """
        if self._folder is None:
            yield
            return
        folder = self._folder / manifest.digest.partition(":")[2]
        deaths = self._deaths(folder)
        if deaths >= MAX_DEATHS:
            raise QuarantinedError(
                f"{manifest.id} is in quarantine: {deaths} processes died while they loaded it",
                hint=f"It is tried again an hour after the last; to try at once, delete {folder}.",
            )
        marker = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            LOGGER.warning("%s is loaded without a mark that a crash would leave: %s", manifest.id, error)
            yield
            return

        def forget() -> None:
            marker.unlink(missing_ok=True)

        atexit.register(forget)
        try:
            yield
        finally:
            forget()
            os.close(handle)
            atexit.unregister(forget)

    def _deaths(self, folder: Path) -> int:
        deaths = 0
        for marker in folder.iterdir() if folder.is_dir() else ():
            try:
                handle = os.open(marker, os.O_RDWR)
            except FileNotFoundError:
                continue  # that load just ended
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._now_s() - os.fstat(handle).st_mtime > EXPIRY_S:
                    marker.unlink(missing_ok=True)
                else:
                    deaths += 1
            except BlockingIOError:
                pass  # its process lives, and loads
            finally:
                os.close(handle)
        return deaths
