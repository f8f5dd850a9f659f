"""The highest release sequence ever seen of each model, kept over restarts: what is older was replayed.

- A mark belongs to a repository (its UUID) and a model: a repository made anew starts without marks.
- It names whose signatures the release was admitted by. Where these are not enough any more (a leaked key ran the
  sequence up, and was revoked), it does not count; what others signed before does.
- Marks only grow, and may be advanced by several processes of one user at once: each write takes a file lock, reads
  what is there and keeps the higher.
- A folder that can't be written costs the memory over restarts, not the service: the caller is told once, by the
  error, and marks go on in memory.

One file per repository, `<folder>/marks/<uuid>.json`: `{"fraud": 12}` without signers, with them
`{"fraud": [{"sequence": 12, "signers": ["…"]}]}`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from modelcast.errors import ConfigError
from modelcast.json_data import read_json
from modelcast.replacing import replace_file

# Another process holds the lock for one small write; whoever waits longer than this waits for a stopped process.
LOCK_TIMEOUT_S = 5.0
# A repository of 100,000 models has names of at most 100 characters each.
MAX_FILE_BYTES = 32 << 20

# Signers change when keys are rotated: the marks of so many combinations are kept, the highest ones.
MAX_SIGNER_SETS = 16

# Sequences by whose signatures they had; nobody's, where no policy asked for any.
Signers = tuple[str, ...]
_ModelMarks = dict[Signers, int]

_SAFE = re.compile(r"[A-Za-z0-9-]{1,64}")


class Marks:
    """The marks of one state folder; for one thread.

    Args:
        folder: Created when first written to; None keeps marks in memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else folder / "marks"
        self._known: dict[str, dict[str, _ModelMarks]] = {}

    def get(self, repository: str, model: str, counts: Callable[[Signers], bool] = lambda _: True) -> int:
        """The highest sequence seen; 0 if none was.

        Args:
            counts: Whether a release with these signers is still believed.

        Raises:
            ConfigError: The file of marks can't be read, or is damaged. Guessing 0 would let old releases in.
        """
        marks = self._of(repository).get(model, {})
        # Highest first: mostly the first one counts, and asking is not free.
        ordered = sorted(marks.items(), key=lambda mark: mark[1], reverse=True)
        return next((sequence for signers, sequence in ordered if counts(signers)), 0)

    def advance(self, repository: str, model: str, sequence: int, signers: Signers = ()) -> None:
        """Remembers `sequence` if it is the highest yet that these signed; raises as `advance_all`."""
        self.advance_all(repository, {model: (sequence, signers)})

    def advance_all(self, repository: str, seen: Mapping[str, tuple[int, Signers]]) -> None:
        """Remembers of each model the sequence and its signers, if it is the highest yet that these signed.

        All in one write: a thousand models that are first seen together took seconds else.

        Raises:
            ConfigError: The folder can't be written; the marks count for this process all the same.
        """
        known = self._of(repository)
        risen = []
        for model, (sequence, signers) in seen.items():
            ordered = tuple(sorted(signers))
            if sequence > known.get(model, {}).get(ordered, 0):
                known[model] = _merged(known.get(model, {}), {ordered: sequence})
                risen.append(model)
        path = self._path(repository)
        if path is None or not risen:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with FileLock(path.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S):
                for name, marks in self._read(repository).items():
                    known[name] = _merged(known.get(name, {}), marks)
                data = json.dumps({name: _as_json(marks) for name, marks in known.items()}, sort_keys=True)
                replace_file(path, data.encode(), synced=True)
        except (OSError, Timeout) as error:
            others = f" and {len(risen) - 1} others" if len(risen) > 1 else ""
            raise ConfigError(
                f"the release mark of {risen[0]!r}{others} can't be written to {path.parent}: {error}",
                hint="Make the state folder writable: until then an old release could be replayed after a restart.",
            ) from error

    def _path(self, repository: str) -> Path | None:
        if not _SAFE.fullmatch(repository):
            raise ConfigError(f"{repository!r} is not a repository's UUID")
        return None if self._folder is None else self._folder / f"{repository}.json"

    def _of(self, repository: str) -> dict[str, _ModelMarks]:
        if repository not in self._known:
            self._known[repository] = dict(self._read(repository))
        return self._known[repository]

    def _read(self, repository: str) -> Mapping[str, _ModelMarks]:
        path = self._path(repository)
        if path is None or not path.exists():
            return {}
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
            marks = read_json(path.read_bytes())
            if not isinstance(marks, dict):
                raise ValueError("it is not an object")
            return {name: _from_json(value) for name, value in marks.items()}
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the release marks in {path} can't be used: {error}",
                hint="If you are sure that no old release is being replayed to you, delete the file.",
            ) from error


def _merged(one: _ModelMarks, other: _ModelMarks) -> _ModelMarks:
    marks = {signers: max(one.get(signers, 0), other.get(signers, 0)) for signers in one.keys() | other.keys()}
    highest = sorted(marks.items(), key=lambda mark: mark[1], reverse=True)
    return dict(highest[:MAX_SIGNER_SETS])


def _as_json(marks: _ModelMarks) -> int | list[dict[str, object]]:
    if list(marks) == [()]:
        return marks[()]
    return [{"sequence": sequence, "signers": list(signers)} for signers, sequence in marks.items()]


def _from_json(value: object) -> _ModelMarks:
    if type(value) is int:
        return {(): value}
    if not isinstance(value, list):
        raise ValueError("a mark is neither a number nor a list")
    marks: _ModelMarks = {}
    for entry in value:
        match entry:
            case {"sequence": int(sequence), "signers": list(signers)} if all(isinstance(s, str) for s in signers):
                marks = _merged(marks, {tuple(sorted(signers)): sequence})
            case _:
                raise ValueError("a mark has no sequence or no signers")
    return marks
