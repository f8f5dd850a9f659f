"""Versions whose loading ended the process, remembered over restarts: no crash loop.

- A load leaves a marker file, locked while it lasts. A marker nobody holds belongs to a process that died loading.
- One such death may be chance (a kill, a full memory); after two the version is refused, until the markers expire or
  the folder is cleared.

One file a load, `<folder>/crashes/<digest>.<random>`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from modelcast import digest
from modelcast.errors import QuarantinedError

MAX_CRASHES = 2
# A runtime or driver may be mended without a new version; a day later it is tried again.
EXPIRY_S = 24 * 3600.0


class Quarantine:
    """Crash memory of one host and user.

    Args:
        folder: The state folder; None remembers nothing.
    """

    def __init__(self, folder: Path | None, *, now: Callable[[], float] = time.time) -> None:
        self._folder = None if folder is None else folder / "crashes"
        self._now = now

    @contextlib.contextmanager
    def guard(self, content: str, name: str) -> Iterator[None]:
        """Surrounds the load of a version.

        Args:
            content: Digest of the version's content.
            name: The version, for messages.

        Raises:
            QuarantinedError: Loading this content ended a process twice.
        """
        opened = self._enter(digest.hex_part(content), name)
        try:
            yield
        finally:
            if opened is not None:
                marker, file = opened
                with contextlib.suppress(OSError):
                    marker.unlink(missing_ok=True)
                os.close(file)

    def _enter(self, content: str, name: str) -> tuple[Path, int] | None:
        """A locked marker; None if the folder can't be written, which costs the memory of crashes, not the service."""
        if self._folder is None:
            return None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            crashes = self._count(self._folder, content)
            if crashes < MAX_CRASHES:
                marker = self._folder / f"{content}.{uuid.uuid4().hex}"
                file = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
                fcntl.flock(file, fcntl.LOCK_EX)
                return marker, file
        except OSError:
            return None
        raise QuarantinedError(
            f"loading {name} ended the process {crashes} times; it is quarantined for {EXPIRY_S / 3600:g} hours",
            hint=f"To try it again, remove {self._folder}.",
        )

    def _count(self, folder: Path, content: str) -> int:
        crashes = 0
        for marker in folder.glob(f"{content}.*"):
            with contextlib.suppress(OSError):
                if self._now() - marker.stat().st_mtime > EXPIRY_S:
                    marker.unlink(missing_ok=True)
                    continue
                file = os.open(marker, os.O_RDWR)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    crashes += 1
                finally:
                    os.close(file)
        return crashes
