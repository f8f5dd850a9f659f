"""`Sink`: chunks to their places in files on the disk, and whole files into the cache.

- A chunk is written by whoever puts it and hashed on a second thread while the next ones arrive. Both let go of the
  interpreter's lock, so a fetch takes two processors, one for the disk and one for the digests.
- What waits to be hashed is bounded by `_QUEUED_CHUNKS`, whatever the size of the model.
- A file is kept as soon as it is whole: a fetch that is killed loses the files it was in the middle of, no more. A file
  some of whose chunks came twice is kept at the end: until then one more may mend it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator, Iterable
from pathlib import Path

from modelcast.blobs import FileAssembly
from modelcast.errors import IntegrityError
from modelcast.files.cache import Cache, explained
from modelcast.records import FileEntry

# Enough to keep both threads busy, some megabytes.
_QUEUED_CHUNKS = 32
_READ_BYTES = 1 << 20
# Linux keeps what one call writes in blocks of memory as large as the call. Small ones it has at hand; for large ones a
# virtual machine goes to its host, which took 1.0 to 1.6 s of processor time for 400 MB, and this 0.75 s.
_WRITE_BYTES = 16 << 10

# Called with bytes done and bytes in all of the files being fetched.
Progress = Callable[[int, int], None]


class Target:
    """One file on its way."""

    def __init__(self, entry: FileEntry, chunk_bytes: int, partial: Path) -> None:
        self.entry = entry
        self.chunk_bytes = chunk_bytes
        self.partial = partial
        self.assembly = FileAssembly(entry, chunk_bytes)
        self.fault: IntegrityError | None = None
        self.is_begun = False
        self.is_doubled = False  # a chunk came when all were there
        self.is_kept = False
        self.is_on_hold = False  # the file is still there under the name it was written by


class Sink:
    """Puts chunks where they belong; for the thread that made it. Use as a context manager."""

    def __init__(self, cache: Cache, total: int, progress: Progress) -> None:
        self._cache = cache
        self._total = total
        self._progress = progress
        self._done = 0
        self._expected: tuple[Target, ...] = ()
        self._whole = 0  # of those expected, how many have all their chunks
        self._settled = False
        self._queue: queue.Queue[tuple[Target, int, bytes, bool] | None] = queue.Queue(_QUEUED_CHUNKS)
        self._hashed: queue.SimpleQueue[Target] = queue.SimpleQueue()  # those whose last missing chunk was hashed
        self._open: tuple[Target, int] | None = None  # one file is open at a time, however many a model has
        self._thread = threading.Thread(target=self._hash, name="modelcast-hash", daemon=True)

    def __enter__(self) -> Sink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._close_file()

    def expect(self, targets: Iterable[Target]) -> None:
        """Begins a pass over the topic for these files, each from nothing: what an earlier pass found was not whole."""
        self._expected = tuple(targets)
        for target in self._expected:
            target.assembly = FileAssembly(target.entry, target.chunk_bytes)
            target.fault = None
            target.is_doubled = False
        self._hashed = queue.SimpleQueue()
        self._whole = sum(not target.assembly.chunks for target in self._expected)
        self._settled = False

    def put(self, target: Target, index: int, chunk: bytes) -> None:
        """Takes one chunk; waits while hashing is behind.

        Raises:
            CacheError: The cache can't be written.
        """
        if target.is_kept:
            return
        before = target.assembly.missing
        try:
            position = target.assembly.accept(index, chunk)
        except IntegrityError as fault:
            target.fault = fault
            return
        target.is_doubled |= before == 0
        with explained(self._cache.root):
            _write_all(self._file(target), chunk, position)
        is_last = target.assembly.missing == 0 < before
        self._queue.put((target, index, chunk, is_last))
        if target.assembly.missing < before:
            self._whole += is_last
            self._done = min(self._done + len(chunk), self._total)  # a second pass counts from where the first ended
            self._progress(self._done, self._total)
        self._keep_hashed()

    def is_done(self) -> bool:
        """Whether every file was kept. A file whose chunks are all there is tried once; later chunks may mend it."""
        if self._whole == len(self._expected) and not self._settled:
            self._settled = True
            self.settle()
        return all(target.is_kept for target in self._expected) if self._settled else False

    def settle(self) -> None:
        """Waits until all is hashed, then keeps every file that is whole; the others say what is wrong with them."""
        self._queue.join()
        self._close_file()
        for target in self._expected:
            if not target.is_kept:
                self._try_keep(target)

    def _keep_hashed(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                target = self._hashed.get_nowait()
                # Chunks that came twice, or not in their order, are read again from the disk: at the end, all at once.
                # Of a doubled one the hashing thread may not know yet.
                if not target.is_doubled and target.assembly.hashed_bytes == target.entry.size:
                    self._try_keep(target)

    def _try_keep(self, target: Target) -> None:
        try:
            if target.assembly.missing:
                target.assembly.finish()
            with explained(self._cache.root):
                if not target.assembly.chunks and not target.is_begun:
                    target.partial.touch(exist_ok=False)
                    target.is_begun = True
                with contextlib.closing(_blocks(target.partial, target.assembly.hashed_bytes)) as rest:
                    target.assembly.finish(rest)
        except IntegrityError as fault:
            # A chunk that was refused says more than that it is missing.
            target.fault = target.fault if target.assembly.missing and target.fault else fault
            return
        if self._open is not None and self._open[0] is target:
            self._close_file()
        target.is_on_hold = self._cache.keep(target.entry, target.partial)
        target.is_kept = True

    def _hash(self) -> None:
        while (item := self._queue.get()) is not None:
            target, index, chunk, is_last = item
            target.assembly.hash(index, chunk)
            if is_last:
                self._hashed.put(target)
            self._queue.task_done()
        self._queue.task_done()

    def _file(self, target: Target) -> int:
        if self._open is None or self._open[0] is not target:
            self._close_file()
            # Made once: where somebody removed it meanwhile, what it held is not taken for written.
            made = 0 if target.is_begun else os.O_CREAT | os.O_EXCL
            self._open = (target, os.open(target.partial, os.O_RDWR | made, 0o600))
            target.is_begun = True
        return self._open[1]

    def _close_file(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None


def _write_all(file: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view[:_WRITE_BYTES], position)
        view, position = view[written:], position + written


def _blocks(path: Path, start: int) -> Generator[bytes, None, None]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(_READ_BYTES):
            yield block
