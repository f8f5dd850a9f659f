"""Versions whose loading ended the process, remembered over restarts: no crash loop.

- A load leaves a marker file, locked while it lasts. A marker nobody holds belongs to a process that died loading.
- A process that ends of its own will takes its markers along, whatever it was loading: Ctrl-C is no crash.
- One such death may be chance (a kill, a full memory); after two the version is refused, until the markers expire or
  are cleared.

One file a load, `<folder>/crashes/<digest>.<random>`, which names the version for people.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modelcast import digest
from modelcast.errors import ConfigError, QuarantinedError
from modelcast.folders import STATE_VARIABLE
from modelcast.json_data import read_json

MAX_CRASHES = 2
# A runtime or driver may be mended without a new version; a day later it is tried again.
EXPIRY_S = 24 * 3600.0
# A marker before it is locked; what a process that was killed then left is a minute old at most when it is removed.
_UNLOCKED = "~"
_UNLOCKED_S = 60.0
# `NAME@VERSION` as JSON; a marker that is larger is not one of ours.
_MAX_NAME_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Suspect:
    """Content whose loading ended processes.

    Attributes:
        content: Digest of the version's files.
        name: The version as it was called when it was loaded last; empty if that is not known.
        crashes: How many processes died, within `EXPIRY_S`.
        last_ms: When the last of these loads began, in milliseconds since 1970.
        expires_ms: From when on it may be loaded again, at the latest.
    """

    content: str
    name: str
    crashes: int
    last_ms: int
    expires_ms: int

    @property
    def is_quarantined(self) -> bool:
        return self.crashes >= MAX_CRASHES


@dataclass(frozen=True, slots=True)
class _Marker:
    path: Path
    content: str
    name: str
    began_s: float


class Quarantine:
    """Crash memory of one host and user.

    Args:
        folder: The state folder; None remembers nothing.
        now: Seconds since 1970.
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
        if opened is None:
            yield
            return
        marker, file = opened
        forget = partial(_forget, marker, os.getpid())
        atexit.register(forget)
        try:
            yield
        finally:
            forget()
            atexit.unregister(forget)
            os.close(file)

    def suspects(self) -> tuple[Suspect, ...]:
        """What ended processes, the latest first. Raises ConfigError if the folder can't be read."""
        with _explained(self._folder):
            found: dict[str, list[_Marker]] = {}
            for marker in self._left():
                found.setdefault(marker.content, []).append(marker)
        return tuple(
            sorted(
                (_suspect(content, markers) for content, markers in found.items()),
                key=lambda suspect: (-suspect.last_ms, suspect.name),
            )
        )

    def clear(self, contents: Collection[str]) -> None:
        """Forgets what happened to this content (digests); loads that are running are not touched.

        Raises:
            ConfigError: The folder can't be written.
        """
        with _explained(self._folder):
            for marker in self._left():
                if marker.content in contents:
                    marker.path.unlink(missing_ok=True)

    def _enter(self, content: str, name: str) -> tuple[Path, int] | None:
        """A locked marker; None if the folder can't be written, which costs the memory of crashes, not the service."""
        if self._folder is None:
            return None
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            crashes = sum(1 for _ in self._left(content))
            if crashes < MAX_CRASHES:
                return _mark(self._folder, content, name)
        except OSError:
            return None
        raise QuarantinedError(
            f"loading {name} ended the process {crashes} times; it is quarantined for {EXPIRY_S / 3600:g} hours",
            hint=f"To try it again: modelcast quarantine clear {name}",
        )

    def _left(self, content: str = "") -> Iterator[_Marker]:
        """Markers whose process is gone, of one content or all; those that expired are removed."""
        if self._folder is None:
            return
        for path in sorted(self._folder.glob(f"{content or '*'}.*")):
            with contextlib.suppress(FileNotFoundError):
                age_s = self._now() - path.stat().st_mtime
                if path.name.endswith(_UNLOCKED):
                    if age_s > _UNLOCKED_S:
                        path.unlink(missing_ok=True)
                elif age_s > EXPIRY_S:
                    path.unlink(missing_ok=True)
                elif (marker := _abandoned(path)) is not None:
                    yield marker


def _mark(folder: Path, content: str, name: str) -> tuple[Path, int]:
    marker = folder / f"{content}.{uuid.uuid4().hex}"
    unlocked = marker.with_name(f"{marker.name}{_UNLOCKED}")
    file = os.open(unlocked, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        os.write(file, json.dumps({"version": name}).encode())
        fcntl.flock(file, fcntl.LOCK_EX)
        unlocked.rename(marker)  # nobody sees it without its lock and takes it for a dead one's
    except BaseException:
        os.close(file)
        raise
    return marker, file


def _forget(marker: Path, pid: int) -> None:
    if os.getpid() == pid:  # a forked child that ends has loaded nothing
        with contextlib.suppress(OSError):
            marker.unlink(missing_ok=True)


def _abandoned(path: Path) -> _Marker | None:
    """The marker, unless its process lives."""
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two who look do not take each other for the process
        name = _name(os.read(file, _MAX_NAME_BYTES))
        return _Marker(path, f"sha256:{path.name.partition('.')[0]}", name, os.fstat(file).st_mtime)
    except BlockingIOError:
        return None
    finally:
        os.close(file)


def _name(text: bytes) -> str:
    try:
        return str(read_json(text)["version"])
    except (ValueError, KeyError, TypeError):
        return ""


def _suspect(content: str, markers: list[_Marker]) -> Suspect:
    markers = sorted(markers, key=lambda marker: marker.began_s)
    # It may be loaded again once fewer than two are left, or the only one is forgotten.
    deciding = markers[-MAX_CRASHES] if len(markers) >= MAX_CRASHES else markers[-1]
    return Suspect(
        content,
        next((marker.name for marker in reversed(markers) if marker.name), ""),
        len(markers),
        int(markers[-1].began_s * 1000),
        int((deciding.began_s + EXPIRY_S) * 1000),
    )


@contextlib.contextmanager
def _explained(folder: Path | None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"the quarantine in {folder} can't be read or written: {error.strerror or error}",
            hint=f"Run the command as the user who runs the models, or name the folder in {STATE_VARIABLE}.",
        ) from error
