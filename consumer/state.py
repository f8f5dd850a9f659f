"""The highest release sequence ever seen of each model, kept over restarts: what is older was replayed.

- A mark belongs to a repository (its UUID) and a model: a repository made anew starts without marks.
- Marks only grow, and may be advanced by several processes of one user at once: each write takes a file lock, reads
  what is there and keeps the higher.
- A folder that can't be written costs the memory over restarts, not the service: the caller is told once, by the
  error, and marks go on in memory.

One file per repository, `<folder>/marks/<uuid>.json`: `{"fraud": 12}`.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from modelcast.errors import ConfigError

# Another process holds the lock for one small write; whoever waits longer than this waits for a stopped process.
LOCK_TIMEOUT_S = 5.0
# A repository of 100,000 models has names of at most 100 characters each.
MAX_FILE_BYTES = 32 << 20

_SAFE = re.compile(r"[A-Za-z0-9-]{1,64}")


class Marks:
    """The marks of one state folder; for one thread.

    Args:
        folder: Created when first written to; None keeps marks in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder / "marks"
        self._known: dict[str, dict[str, int]] = {}

    def get(self, repository: str, model: str) -> int:
        """The highest sequence seen; 0 if none was.

        Raises:
            ConfigError: The file of marks can't be read, or is damaged. Guessing 0 would let old releases in.
        """
        if repository not in self._known:
            self._known[repository] = dict(self._read(repository))
        return self._known[repository].get(model, 0)

    def advance(self, repository: str, model: str, sequence: int) -> None:
        """Remembers `sequence` if it is the highest yet.

        Raises:
            ConfigError: The folder can't be written; the mark counts for this process all the same.
        """
        if sequence <= self.get(repository, model):
            return
        known = self._known[repository]
        known[model] = sequence
        path = self._path(repository)
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(path.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S):
                for name, value in self._read(repository).items():
                    known[name] = max(value, known.get(name, 0))
                _replace(path, json.dumps(known, sort_keys=True).encode())
        except (OSError, Timeout) as error:
            raise ConfigError(
                f"the release mark of {model!r} can't be written to {path.parent}: {error}",
                hint="Make the state folder writable: until then an old release could be replayed after a restart.",
            ) from error

    def _path(self, repository: str) -> Path | None:
        if not _SAFE.fullmatch(repository):
            raise ConfigError(f"{repository!r} is not a repository's UUID")
        return None if self._folder is None else self._folder / f"{repository}.json"

    def _read(self, repository: str) -> Mapping[str, int]:
        path = self._path(repository)
        if path is None or not path.exists():
            return {}
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
            marks = json.loads(path.read_bytes())
            if not isinstance(marks, dict) or not all(type(value) is int for value in marks.values()):
                raise ValueError("it is not an object of numbers")
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the release marks in {path} can't be used: {error}",
                hint="If you are sure that no old release is being replayed to you, delete the file.",
            ) from error
        return marks


def _replace(path: Path, data: bytes) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
