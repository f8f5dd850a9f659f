"""`Inventory`: what lies in a cache of models, who uses it, and how long ago it was used.

A look changes nothing, and needs nothing but leave to read. Other processes go on meanwhile: what they add or remove in
that moment may be counted or not.

    inventory = take_inventory(default_root())
    inventory.bytes, inventory.used_bytes, [str(version.id) for version in inventory.versions]
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelcast.errors import CacheError
from modelcast.files.cache import STAGED, blobs_folder, key_of, notes_folder, views_folder
from modelcast.files.limit import limit_bytes
from modelcast.files.notes import Note, Notes
from modelcast.files.presence import living
from modelcast.names import ModelVersion

_FETCH: Final = "~"


@dataclass(frozen=True, slots=True)
class CachedVersion:
    """A version that has files in the cache.

    Attributes:
        repository: UUID of its repository.
        id: The version.
        bytes: Of all its files; versions share files.
        cached_bytes: Of those that are here.
        files: How many it has.
        cached_files: How many of them are here.
        used_ms: When a process last loaded it or let go of it.
        processes: Ids of the processes that have it loaded.
    """

    repository: str
    id: ModelVersion
    bytes: int
    cached_bytes: int
    files: int
    cached_files: int
    used_ms: int
    processes: tuple[int, ...]

    @property
    def is_whole(self) -> bool:
        """Whether it can be loaded without a fetch."""
        return self.cached_files == self.files


@dataclass(frozen=True, slots=True)
class Inventory:
    """A cache as it was found.

    Attributes:
        root: Its folder.
        limit_bytes: What the files may take before unused ones are removed.
        files: How many are there, each of another content.
        bytes: What they take.
        used_bytes: Of it, what some process has loaded or is fetching: it is not removed.
        kept_bytes: Beside them: removed or replaced here, and freed when the processes that have them loaded let go.
        unnamed_files: Files of no version that is noted.
        fetching: Processes that are fetching.
        versions: Those that have files here, the latest used first.
    """

    root: Path
    limit_bytes: int
    files: int
    bytes: int
    used_bytes: int
    kept_bytes: int
    unnamed_files: int
    fetching: tuple[int, ...]
    versions: tuple[CachedVersion, ...]


@dataclass(frozen=True, slots=True)
class _Found:
    inode: int
    size: int
    is_used: bool


def take_inventory(root: Path) -> Inventory:
    """Looks at the cache in `root`; one that is not there is empty.

    Raises:
        CacheError: The folder can't be read.
        ConfigError: `MODELCAST_CACHE_BYTES` is not a size.
    """
    limit = limit_bytes(root)
    try:
        blobs = _blobs(root)
        users: dict[str, set[int]] = defaultdict(set)
        fetching = set()
        kept: dict[int, int] = {}
        for pid, folder in living(views_folder(root)):
            for held in _entries(folder):
                if held.name.endswith(_FETCH):
                    fetching.add(pid)
                else:
                    users[key_of(held.name)].add(pid)
                    kept.update(_files(held))
        notes = list(Notes(notes_folder(root)).all())
    except OSError as error:
        raise CacheError(
            f"the model cache {root} can't be read: {error.strerror or error}",
            hint="It belongs to the user who runs the models: look as that user.",
        ) from error
    for blob in blobs.values():
        kept.pop(blob.inode, None)
    versions = [_version(note, used_ms, blobs, users[note.key]) for note, used_ms in notes]
    named = {entry.digest for note, _ in notes for entry in note.files}
    return Inventory(
        root=root,
        limit_bytes=limit,
        files=len(blobs),
        bytes=sum(blob.size for blob in blobs.values()),
        used_bytes=sum(blob.size for blob in blobs.values() if blob.is_used),
        kept_bytes=sum(kept.values()),
        unnamed_files=len(blobs.keys() - named),
        fetching=tuple(sorted(fetching)),
        versions=tuple(sorted((v for v in versions if v.cached_files), key=lambda v: (-v.used_ms, str(v.id)))),
    )


def _blobs(root: Path) -> dict[str, _Found]:
    found: dict[str, _Found] = {}
    try:
        entries = os.scandir(blobs_folder(root))
    except FileNotFoundError:
        return found
    with entries:
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # removed between the two looks
                continue
            if stat.S_ISREG(status.st_mode) and not entry.name.endswith(STAGED):
                found[f"sha256:{entry.name}"] = _Found(status.st_ino, status.st_size, status.st_nlink > 1)
    return found


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:  # its process ended meanwhile
        return []


def _files(view: Path) -> Iterator[tuple[int, int]]:
    """Inode and size of each file of a view."""
    for path in view.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # let go meanwhile
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                yield status.st_ino, status.st_size


def _version(note: Note, used_ms: int, blobs: dict[str, _Found], users: set[int]) -> CachedVersion:
    here = [blobs[entry.digest] for entry in note.files if entry.digest in blobs]
    return CachedVersion(
        repository=note.repository,
        id=ModelVersion(note.model, note.version),
        bytes=sum(entry.size for entry in note.files),
        cached_bytes=sum(blob.size for blob in here),
        files=len(note.files),
        cached_files=len(here),
        used_ms=used_ms,
        processes=tuple(sorted(users)),
    )
