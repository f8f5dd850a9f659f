"""Files of models on this host, named by what they hold, shared by every version and process of one user.

    <root>/blobs/sha256/<hex>        a file whose bytes had this digest when it was put there; 0444, never written again
    <root>/views/<process>/<n>.<k>/  one loaded version: its manifest's paths as hard links, for one session
    <root>/views/<process>/<n>~/     one fetch: files that are being written, and links to what must not go meanwhile
    <root>/views/<process>.lock      held while the process lives; folders of others are deleted
    <root>/locks/<model>.lock        held while files of the model are fetched: one fetch a host
    <root>/versions/<k>.json         which version has which files, for people who look

- A file is there whole or not at all: it is written under its fetch, checked, and renamed. It is not synced to the
  disk: what a power failure leaves of it has another digest, and a view is checked before each load.
- A damaged file is replaced, never mended: whoever mapped the old one keeps it.
- Folders are private (0700): nothing that other users may write is ever mapped.
- What this process has checked and nobody has touched since is not hashed again: see `modelcast.files.seals`.
- Files that no process has linked are removed, the longest unused first, when all together outgrow the limit or the
  disk has no room for what comes. A process that is killed takes its links with it.
- Any of it may be deleted at any time, by anyone: what is missing is made or fetched again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from filelock import FileLock, Timeout

from modelcast import digest
from modelcast.blobs import check_path
from modelcast.errors import CacheError
from modelcast.files.limit import limit_bytes
from modelcast.files.notes import Note, Notes
from modelcast.files.presence import Presence
from modelcast.files.seals import UNSEALED, Seal, Seals
from modelcast.folders import CACHE_VARIABLE, cache_folder
from modelcast.records import FileEntry, Manifest

# Whoever waits for another process's fetch tries the lock this often, and looks this often whether that fetch goes on.
_LOCK_POLL_S = 0.02
_LOOK_S = 1.0
# A file on its way has this name for a moment; what still has it after this was left by a process that was killed.
STAGED = "~"
_LEFTOVER_S = 3600.0
# Blocks of a file being checked: hashed at full speed, and the interpreter's lock let go in between.
_READ_BYTES = 1 << 20
# Half of the processors are left to whoever scores meanwhile; a disk gives no more than a few threads can take.
_HASHERS = max(1, min(4, (os.cpu_count() or 1) // 2))
NONE_CHECKED: Mapping[str, Path] = {}
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# Too many links, or a file system that has none.
_UNLINKABLE = frozenset({errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EXDEV})


class Flaw(Enum):
    """What is wrong with a file in the cache: nobody has it, or its bytes are not what its name says."""

    MISSING = "missing"
    DAMAGED = "damaged"


class _NotTheFileError(Exception):
    """What lies under a file's name has another size, or is no file."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What was taken out of a cache."""

    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class _Blob:
    """A file of the cache as a look at its folder found it."""

    path: Path
    size: int
    used_s: float
    links: int

    @property
    def is_staged(self) -> bool:
        return self.path.name.endswith(STAGED)


class Cache:
    """One user's cache on this host; safe for several threads and processes.

    Args:
        root: Its folder; by default the user's cache folder, or `MODELCAST_CACHE_DIR`.
        limit: Bytes its files may take in all before unused ones are removed; by default `MODELCAST_CACHE_BYTES`, or
            what `modelcast.files.limit` says.

    Raises:
        CacheError: The folder can't be made or is not writable.
        ConfigError: `MODELCAST_CACHE_BYTES` is not a size.
    """

    def __init__(self, root: Path | None = None, *, limit: int | None = None) -> None:
        self.root = default_root() if root is None else root
        self._blobs = blobs_folder(self.root)
        self._locks = self.root / "locks"
        self._notes = Notes(notes_folder(self.root))
        self._numbers = itertools.count()
        self._seals = Seals()
        self._held: dict[Path, tuple[tuple[str, Path], ...]] = {}  # what each folder's files are links to
        with explained(self.root):
            self._make_folders()
            self.root.chmod(0o700)
            self._presence = Presence(views_folder(self.root))
            self._presence.sweep()
        self.limit_bytes = limit_bytes(self.root) if limit is None else limit

    def has(self, entry: FileEntry) -> bool:
        """Whether a file of this digest and size is there; its bytes are not looked at."""
        try:
            return _may_be(self._path(entry).lstat(), entry)
        except OSError:
            return False

    @contextlib.contextmanager
    def lock(self, model: str, patience_s: float) -> Iterator[Callable[[], None]]:
        """Held while files of a model are fetched: whoever else wants them waits, and finds them.

        A holder that is stopped or hangs is waited for no longer than `patience_s`; two fetches at once do no harm.

        Returns:
            To be called as the fetch goes on: says that this one does not hang.
        """
        path = self._locks / f"{model}.lock"
        lock = FileLock(path)
        while not lock.is_locked:
            with explained(self.root):
                self._make_folders()  # somebody may have removed them
                try:
                    lock.acquire(timeout=_LOOK_S, poll_interval=_LOCK_POLL_S)
                except Timeout:
                    if _age_s(path) > patience_s:
                        break
        touched_s = 0.0

        def go_on() -> None:
            nonlocal touched_s
            if time.monotonic() - touched_s >= _LOOK_S:
                touched_s = time.monotonic()
                with contextlib.suppress(OSError):
                    os.utime(path)

        try:
            if lock.is_locked:
                go_on()
            yield go_on
        finally:
            lock.release()

    def make_room(self, needed_bytes: int) -> None:
        """Removes unused files, the longest unused first, until so many bytes more fit the limit and the disk.

        Raises:
            CacheError: The disk can't hold them even so.
        """
        with explained(self.root):
            self._presence.sweep()
            free = shutil.disk_usage(self.root).free
            unused = sum(blob.size for blob in self._look() if blob.links == 1)
            if needed_bytes <= free + unused:  # else all would go for nothing
                self._remove(
                    lambda total, freed: total + needed_bytes > self.limit_bytes or free + freed < needed_bytes
                )
                free = shutil.disk_usage(self.root).free
        if needed_bytes > free:
            raise CacheError(
                f"the model's files need {needed_bytes} bytes, the disk of the cache {self.root} has {free} free",
                hint=f"Free some space, or set {CACHE_VARIABLE} to a larger disk.",
            )

    @contextlib.contextmanager
    def hold(self, files: Collection[FileEntry]) -> Iterator[Path]:
        """A folder for a fetch: what is there of these files, and what comes, is not removed while it lasts.

        Raises:
            CacheError: The cache can't be written.
        """
        with explained(self.root):
            folder = self._presence.folder / f"{next(self._numbers)}~"
            folder.mkdir(mode=0o700)
        self._held[folder] = tuple({entry.digest: self._path(entry) for entry in files}.items())
        try:
            for name, path in self._held[folder]:
                with contextlib.suppress(OSError):
                    self._seals.link(name, path, folder / path.name)
            yield folder
        finally:
            self.release(folder)

    def keep(self, entry: FileEntry, partial: Path) -> bool:
        """Takes over a whole file written within a fetch, whose digest was checked.

        Returns:
            Whether it stays on hold too, under the name it was written by.

        Raises:
            CacheError: The cache can't be written, or somebody removed the file.
        """
        path = self._path(entry)
        staged = path.with_name(f"{path.name}.{os.getpid()}-{next(self._numbers)}{STAGED}")
        with explained(self.root):
            self._make_folders()
            partial.chmod(0o444)
            try:
                staged.hardlink_to(partial)  # which stays until the fetch ends, and says that the file is in use
            except OSError as error:
                if error.errno not in _UNLINKABLE:
                    raise
                staged = partial
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            staged.replace(path)
        return staged is not partial

    def drop(self, entry: FileEntry) -> None:
        """Removes a file found damaged; sessions that mapped it are not touched."""
        with explained(self.root):
            path = self._path(entry)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        self._seals.drop(entry.digest)

    def view(
        self, files: Collection[FileEntry], *, checked: Mapping[str, Path] = NONE_CHECKED, of: Manifest | None = None
    ) -> tuple[Path, dict[FileEntry, Flaw]]:
        """A private folder that holds these files only, under their paths.

        Args:
            files: What it shall hold, paths and all.
            of: The version they are, noted for people who look at the cache.
            checked: By digest, files on hold whose bytes were checked just now: these are taken, whatever others put
                in their place meanwhile, and not hashed again.

        Returns:
            The folder, and the files that are missing or damaged: if any, the folder is gone, and the files are to be
            fetched anew, the damaged ones after they were dropped.

        Raises:
            StructureError: A path leaves the folder.
            CacheError: The cache can't be written.
        """
        note = None if of is None else Note.of(of)
        bad: dict[FileEntry, Flaw] = {}
        unsure: list[tuple[FileEntry, Path, Seal]] = []
        with explained(self.root):
            self._make_folders()
            folder = self._presence.folder / f"{next(self._numbers)}.{note.key if note else ''}"  # as `key_of` reads
            folder.mkdir(mode=0o700)
            self._held[folder] = tuple((entry.digest, self._path(entry)) for entry in files)
            try:
                for entry in files:
                    target = folder / check_path(entry.path)
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    try:
                        seal = self._link(entry, checked.get(entry.digest, self._path(entry)), target)
                    except FileNotFoundError:  # never here, or another process trimmed or dropped it
                        bad[entry] = Flaw.MISSING
                    except _NotTheFileError:
                        bad[entry] = Flaw.DAMAGED
                    else:
                        if seal is not None:
                            unsure.append((entry, target, seal))
                bad.update(dict.fromkeys(self._damaged(unsure, checked), Flaw.DAMAGED))
            except BaseException:
                self.release(folder)
                raise
        if bad:
            self.release(folder)
        elif note is not None:
            self._notes.put(note)
        return folder, bad

    def release(self, view: Path) -> None:
        """Removes a view; what it held stays in the cache."""
        with self._seals.unlinking(self._held.pop(view, ())):
            shutil.rmtree(view, ignore_errors=True)
        if key := key_of(view.name):
            self._notes.touch(key)

    def trim(self) -> None:
        """Removes unused files, the longest unused first, until the rest fits the limit."""
        with explained(self.root):
            self._remove(lambda total, _: total > self.limit_bytes)

    def clear(self, *, unused_only: bool = False) -> Removed:
        """Removes what no process uses, and unless `unused_only` what is in use too.

        Sessions keep what they mapped; the disk has its space back when they let go of it.

        Raises:
            CacheError: The cache can't be written.
        """
        with explained(self.root):
            return self._remove(lambda *_: True, spare_used=unused_only)

    def close(self) -> None:
        """Removes the folders of this process. What a session mapped stays mapped."""
        self._presence.close()

    def _make_folders(self) -> None:
        for folder in (self.root, self._blobs, self._locks):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _remove(self, is_needed: Callable[[int, int], bool], *, spare_used: bool = True) -> Removed:
        """Removes files, the longest unused first, while `is_needed(bytes there, bytes removed)`."""
        found = self._look()
        total = sum(blob.size for blob in found)
        files = freed = 0
        if is_needed(total, 0):
            self._presence.sweep()
            found = self._look()  # what the dead had linked is unused now
            total = sum(blob.size for blob in found)
        there = {blob.path.name for blob in found}
        for blob in sorted(found, key=lambda blob: blob.used_s):
            if blob.is_staged:
                unwanted = blob.links == 1 and time.time() - blob.used_s > _LEFTOVER_S
            else:
                unwanted = (blob.links == 1 or not spare_used) and is_needed(total, freed)
            if unwanted:
                blob.path.unlink(missing_ok=True)
                there.discard(blob.path.name)
                total -= blob.size
                files, freed = files + 1, freed + blob.size
        digests = {f"sha256:{name}" for name in there}
        self._seals.keep_only(digests)
        if files:
            self._notes.keep_only(digests)
        return Removed(files, freed)

    def _look(self) -> list[_Blob]:
        found: list[_Blob] = []
        with contextlib.suppress(FileNotFoundError), os.scandir(self._blobs) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # another process removes, too
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        found.append(_Blob(Path(entry.path), status.st_size, status.st_mtime, status.st_nlink))
        return found

    def _path(self, entry: FileEntry) -> Path:
        return self._blobs / digest.hex_part(entry.digest)

    def _link(self, entry: FileEntry, source: Path, target: Path) -> Seal | None:
        """Links a file, used now and so the last to be removed; None if its bytes are known to be right."""
        if not _may_be(source.lstat(), entry):
            raise _NotTheFileError
        try:
            return self._seals.link(entry.digest, source, target)
        except OSError as error:
            if error.errno not in _UNLINKABLE:
                raise
            shutil.copyfile(source, target)
            target.chmod(0o444)
            return UNSEALED

    def _damaged(self, unsure: Sequence[tuple[FileEntry, Path, Seal]], checked: Collection[str]) -> Iterator[FileEntry]:
        """Those whose bytes are wrong; the others are sealed."""

        def is_right(one: tuple[FileEntry, Path, Seal]) -> bool:
            entry, target, _ = one
            return entry.digest in checked or _is_whole(target, entry)

        with ThreadPoolExecutor(_HASHERS, "modelcast-hash") as pool:
            for right, (entry, _, seal) in zip(pool.map(is_right, unsure), unsure, strict=True):
                if right:
                    self._seals.put(entry.digest, seal)
                else:
                    yield entry


def default_root() -> Path:
    """Where the user's models are cached."""
    return cache_folder() / "models"


def is_cache(root: Path) -> bool:
    """Whether this folder was made by a cache, whatever of it was deleted since."""
    others = (views_folder(root), notes_folder(root), root / "locks")
    return blobs_folder(root).is_dir() and any(folder.is_dir() for folder in others)


def blobs_folder(root: Path) -> Path:
    return root / "blobs" / "sha256"


def views_folder(root: Path) -> Path:
    return root / "views"


def key_of(view: str) -> str:
    """Which version a view is of, as its note is called; empty if that is not known."""
    return view.partition(".")[2]


def notes_folder(root: Path) -> Path:
    return root / "versions"


@contextlib.contextmanager
def explained(root: Path) -> Iterator[None]:
    """Turns OSError into CacheError with what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno in _FULL
        raise CacheError(
            f"the model cache {root} can't be written: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename else ""),
            hint=f"Free some space, or set {CACHE_VARIABLE} to another disk."
            if full
            else f"Make it a folder this user may write, or set {CACHE_VARIABLE}.",
        ) from error


def _age_s(path: Path) -> float:
    """Seconds since a file was touched; 0 if it is gone."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _may_be(status: os.stat_result, entry: FileEntry) -> bool:
    """Whether it is a file of the size that is wanted."""
    return stat.S_ISREG(status.st_mode) and status.st_size == entry.size


def _is_whole(path: Path, entry: FileEntry) -> bool:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.closing(os.fdopen(os.open(path, flags), "rb", buffering=0)) as file:
        if not _may_be(os.fstat(file.fileno()), entry):
            return False
        hasher = hashlib.sha256()
        while block := file.read(_READ_BYTES):
            hasher.update(block)
    return f"sha256:{hasher.hexdigest()}" == entry.digest
