"""Files of models on this host, named by what they hold, shared by every version and process of one user.

    <root>/blobs/sha256/<hex>        a file whose bytes had this digest when it was put there; 0444, never written again
    <root>/blobs/sha256/<hex>.<n>~   one being written, by a process that holds the model's lock
    <root>/views/<process>/<n>/…     one loaded version: its manifest's paths as hard links, for one session
    <root>/views/<process>.lock      held while the process lives; views of others are deleted
    <root>/locks/<model>.lock        held while files of the model are fetched: one fetch a host

- A file is there whole or not at all: it is written under a partial name, checked, and renamed. It is not synced to the
  disk: what a power failure leaves of it has another digest, and a view is checked before each load.
- A damaged file is replaced, never mended: whoever mapped the old one keeps it.
- Folders are private (0700): nothing that other users may write is ever mapped.
- What this process has checked and nobody has touched since is not hashed again: see `modelcast.files.seals`.
- Files that no view holds are removed, the longest unused first, when all together outgrow the limit.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import stat
import uuid
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path

from filelock import FileLock, Timeout

from modelcast import digest
from modelcast.blobs import check_path
from modelcast.errors import BrokerError, CacheError
from modelcast.files.seals import UNSEALED, Seal, Seals
from modelcast.folders import CACHE_VARIABLE, cache_folder
from modelcast.records import FileEntry

# Some hundred small models or a few large ones; a version that is loaded is never removed for it.
DEFAULT_LIMIT_BYTES = 20 << 30
# Whoever waits for another process's fetch looks again this often.
_LOCK_POLL_S = 0.02
# Another process may look at our lock file the moment it appears, and lets go of it at once.
_SWEEP_S = 5.0
# Blocks of a file being checked: hashed at full speed, and the interpreter's lock let go in between.
_READ_BYTES = 1 << 20
# Half of the processors are left to whoever scores meanwhile; a disk gives no more than a few threads can take.
_HASHERS = max(1, min(4, (os.cpu_count() or 1) // 2))
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class Flaw(Enum):
    """What is wrong with a file in the cache: nobody has it, or its bytes are not what its name says."""

    MISSING = "missing"
    DAMAGED = "damaged"


class _NotTheFileError(Exception):
    """What lies under a file's name has another size, or is no file."""


class Cache:
    """One user's cache on this host; safe for several threads and processes.

    Args:
        root: Its folder; by default the user's cache folder, or `MODELCAST_CACHE_DIR`.
        limit_bytes: What the files may take in all before unused ones are removed.

    Raises:
        CacheError: The folder can't be made or is not writable.
    """

    def __init__(self, root: Path | None = None, *, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self.root = (cache_folder() / "models") if root is None else root
        self._limit_bytes = limit_bytes
        self._blobs = self.root / "blobs" / "sha256"
        self._views = self.root / "views"
        self._locks = self.root / "locks"
        self._numbers = itertools.count()
        self._seals = Seals()
        self._held: dict[Path, tuple[tuple[str, Path], ...]] = {}  # what each view's files are links to
        with explained(self.root):
            for folder in (self.root, self._blobs, self._views, self._locks):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.root.chmod(0o700)
            name = uuid.uuid4().hex
            self._alive = FileLock(self._views / f"{name}.lock", thread_local=False)
            self._alive.acquire(timeout=_SWEEP_S)
            self._own = self._views / name
            self._own.mkdir(mode=0o700)
            self._sweep()

    def has(self, entry: FileEntry) -> bool:
        """Whether a file of this digest and size is there; its bytes are not looked at."""
        try:
            status = self._path(entry).lstat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == entry.size

    @contextlib.contextmanager
    def lock(self, model: str, timeout_s: float) -> Iterator[None]:
        """Held while files of a model are fetched.

        Raises:
            BrokerError: Another process fetched for longer than `timeout_s`.
        """
        lock = FileLock(self._locks / f"{model}.lock")
        with explained(self.root):
            try:
                lock.acquire(timeout=timeout_s, poll_interval=_LOCK_POLL_S)
            except Timeout as error:
                raise BrokerError(f"another process fetches {model} and did not end in {timeout_s:g} s") from error
        try:
            yield
        finally:
            lock.release()

    def check_space(self, needed_bytes: int) -> None:
        """Raises CacheError if the disk can't hold so many bytes more."""
        free = shutil.disk_usage(self.root).free
        if needed_bytes > free:
            raise CacheError(
                f"the model's files need {needed_bytes} bytes, the disk of the cache {self.root} has {free} free",
                hint=f"Free some space, or set {CACHE_VARIABLE} to a larger disk.",
            )

    def partial(self, entry: FileEntry) -> Path:
        """A new name to write a file under; leftovers of the same file are removed. Only with the model's lock."""
        for left in self._blobs.glob(f"{digest.hex_part(entry.digest)}.*~"):
            left.unlink(missing_ok=True)
        return self._blobs / f"{digest.hex_part(entry.digest)}.{os.getpid()}-{next(self._numbers)}~"

    def keep(self, entry: FileEntry, partial: Path) -> None:
        """Takes over a whole file written under a partial name, whose digest was checked."""
        with explained(self.root):
            partial.chmod(0o444)
            partial.replace(self._path(entry))

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
        self, files: Collection[FileEntry], *, checked: Collection[str] = ()
    ) -> tuple[Path, dict[FileEntry, Flaw]]:
        """A private folder that holds these files only, under their paths.

        Args:
            files: What it shall hold, paths and all.
            checked: Digests of files whose bytes were checked just now.

        Returns:
            The folder, and the files that are missing or damaged: if any, the folder is gone, and the files are to be
            fetched anew, the damaged ones after they were dropped.

        Raises:
            StructureError: A path leaves the folder.
            CacheError: The cache can't be written.
        """
        folder = self._own / str(next(self._numbers))
        bad: dict[FileEntry, Flaw] = {}
        unsure: list[tuple[FileEntry, Path, Seal]] = []
        with explained(self.root):
            folder.mkdir(mode=0o700)
            self._held[folder] = tuple((entry.digest, self._path(entry)) for entry in files)
            try:
                for entry in files:
                    target = folder / check_path(entry.path)
                    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    try:
                        seal = self._link(entry, target)
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
        return folder, bad

    def release(self, view: Path) -> None:
        """Removes a view; what it held stays in the cache."""
        with self._seals.unlinking(self._held.pop(view, ())):
            shutil.rmtree(view, ignore_errors=True)

    def trim(self) -> None:
        """Removes unused files, the longest unused first, until the rest fits the limit."""
        found: list[tuple[float, int, Path]] = []
        there: set[str] = set()
        total = 0
        with explained(self.root), os.scandir(self._blobs) as entries:
            for entry in entries:
                there.add(f"sha256:{entry.name}")
                status = entry.stat(follow_symlinks=False)
                total += status.st_size
                if status.st_nlink == 1 and not entry.name.endswith("~"):
                    found.append((status.st_mtime, status.st_size, Path(entry.path)))
        self._seals.keep_only(there)
        for _, size, path in sorted(found):
            if total <= self._limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def close(self) -> None:
        """Removes the views of this process. What a session mapped stays mapped."""
        shutil.rmtree(self._own, ignore_errors=True)
        self._alive.release()
        Path(self._alive.lock_file).unlink(missing_ok=True)

    def _path(self, entry: FileEntry) -> Path:
        return self._blobs / digest.hex_part(entry.digest)

    def _link(self, entry: FileEntry, target: Path) -> Seal | None:
        """Links a file, used now and so the last to be removed; None if its bytes are known to be right."""
        source = self._path(entry)
        if not self.has(entry):
            source.lstat()
            raise _NotTheFileError
        try:
            return self._seals.link(entry.digest, source, target)
        except OSError as error:
            # Too many links, or a file system that has none.
            if error.errno not in (errno.EMLINK, errno.EPERM, errno.ENOTSUP, errno.EXDEV):
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

    def _sweep(self) -> None:
        """Removes the views of processes that are gone."""
        for lock_file in self._views.glob("*.lock"):
            if lock_file.stem == self._own.name:
                continue
            lock = FileLock(lock_file)
            with contextlib.suppress(Timeout):
                lock.acquire(blocking=False)
                shutil.rmtree(self._views / lock_file.stem, ignore_errors=True)
                lock_file.unlink(missing_ok=True)
                lock.release()


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


def _is_whole(path: Path, entry: FileEntry) -> bool:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)
    with contextlib.closing(os.fdopen(os.open(path, flags), "rb", buffering=0)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
            return False
        hasher = hashlib.sha256()
        while block := file.read(_READ_BYTES):
            hasher.update(block)
    return f"sha256:{hasher.hexdigest()}" == entry.digest
