"""`Notes`: which versions the files of a cache belong to, for people who look at it.

One small file a version, `<folder>/<key>.json`; its mtime says when the version was used last. Nothing that is loaded
rests on them: the manifest says what a version holds, and the digest what a file is. A note that is lost, damaged or
could not be written costs a line of a table.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelcast import digest
from modelcast.json_data import read_json
from modelcast.records import FileEntry, Manifest

# A manifest of 100,000 files; what is larger is not one of ours.
_MAX_NOTE_BYTES = 16 << 20
_SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Note:
    """One version that was fetched, or found in the cache, by a process of this host."""

    repository: str
    model: str
    version: int
    files: tuple[FileEntry, ...]

    @property
    def key(self) -> str:
        """A name for files and folders that belong to this version."""
        text = f"{self.repository}\0{self.model}\0{self.version}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @classmethod
    def of(cls, manifest: Manifest) -> Note:
        return cls(manifest.repository, manifest.model, manifest.version, manifest.files)


class Notes:
    """The notes of one cache; safe for several threads and processes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, note: Note) -> None:
        """Writes a note, if that is possible."""
        partial = self._folder / f"{note.key}.{os.getpid()}~"
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.write_text(json.dumps(_as_json(note)), encoding="utf-8")
            partial.replace(self._folder / f"{note.key}{_SUFFIX}")
            return
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)

    def touch(self, key: str) -> None:
        """Says that a version is used now."""
        with contextlib.suppress(OSError):
            os.utime(self._folder / f"{key}{_SUFFIX}")

    def all(self) -> Iterator[tuple[Note, int]]:
        """Every note that can be read, and when its version was used last, in milliseconds since 1970."""
        for path in sorted(self._folder.glob(f"*{_SUFFIX}")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                status = path.stat()
                if status.st_size <= _MAX_NOTE_BYTES:
                    yield _from_json(read_json(path.read_bytes())), status.st_mtime_ns // 1_000_000

    def keep_only(self, digests: Collection[str]) -> None:
        """Forgets versions of whose files none is left, and what a killed process left half written."""
        kept = {f"{n.key}{_SUFFIX}" for n, _ in self.all() if any(entry.digest in digests for entry in n.files)}
        for path in self._folder.glob("*"):
            if path.name not in kept:
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)


def _as_json(note: Note) -> dict[str, Any]:
    return {
        "repository": note.repository,
        "model": note.model,
        "version": note.version,
        "files": [[entry.path, entry.size, entry.digest] for entry in note.files],
    }


def _from_json(value: Any) -> Note:
    files = tuple(FileEntry(str(path), size, str(name)) for path, size, name in value["files"])
    if not all(digest.is_digest(entry.digest) and type(entry.size) is int for entry in files):
        raise ValueError("a file has no digest or size")
    if type(value["version"]) is not int:
        raise ValueError("a version is no number")
    note = Note(str(value["repository"]), str(value["model"]), value["version"], files)
    _ = note.key  # of a text that has no UTF-8 there is none
    return note
