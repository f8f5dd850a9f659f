"""Missing files of a version from the log into the cache.

- Chunks are looked for where the hints say, then, for what was not found there whole, by a scan of the file's partition
  from its beginning to its true end. Keys say what a chunk is, hints never; only the digest says what a file is.
- Files that lie side by side in a partition are read in one pass; what lies between distant ones is skipped.
- Tombstones are ignored. Of several chunks of one index the last counts, as compaction would have it.
- A chunk is written to its place and hashed on a second thread while the next ones arrive: memory is bounded by what
  the reader fetches ahead and `_QUEUED_CHUNKS`, whatever the size of the model.
- Chunks were written outside transactions and before their manifest, so nothing has to be waited for: the blobs topic
  is read uncommitted.
- A fetch takes as long as its bytes take to come; it fails when nothing comes for `STALL_S`.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelcast.blobs import FileAssembly, check_path
from modelcast.errors import BrokerError, IntegrityError, OffsetOutOfRangeError, StructureError
from modelcast.files.cache import Cache, explained
from modelcast.log import BEGINNING, Log, LogReader, LogRecord
from modelcast.records import ChunkHint, FileEntry, Manifest
from modelcast.registry.image import VersionRecord
from modelcast.topics import ChunkKey, Topics, blob_partition

# A broker's failover takes seconds; a partition without a leader for longer is reported, and the load tried again.
STALL_S = 30.0
# Another process of this host may be fetching the same model, at the pace of a slow network.
LOCK_TIMEOUT_S = 600.0
# Once damaged files were replaced, what is damaged again was damaged by something that goes on.
_ATTEMPTS = 3
_POLL_S = 0.1
# Chunks between the reader and the disk: enough to keep both busy, some megabytes.
_QUEUED_CHUNKS = 32
# Records that are cheaper to read over than to seek past: a seek drops what the client fetched ahead.
_GAP_RECORDS = 64
_READ_BYTES = 1 << 20

# Called with bytes done and bytes in all of the files being fetched.
Progress = Callable[[int, int], None]


class _Target:
    """One file on its way."""

    def __init__(self, entry: FileEntry, chunk_bytes: int, partial: Path) -> None:
        self.entry = entry
        self.chunk_bytes = chunk_bytes
        self.partial = partial
        self.assembly = FileAssembly(entry, chunk_bytes)
        self.fault: IntegrityError | None = None
        self.is_kept = False


@dataclass(slots=True)
class _Span:
    """Offsets of one partition that are said to hold a file."""

    first: int
    last: int


@dataclass(slots=True)
class _Course:
    """What is left to read of one partition."""

    spans: list[_Span]
    end: int
    is_parked: bool = field(default=False)


class Fetcher:
    """Brings versions into a cache; safe for several threads."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        cache: Cache,
        *,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._topics = topics
        self._cache = cache
        self._stall_s = stall_s
        self._clock = clock

    def fetch(self, record: VersionRecord, progress: Progress | None = None) -> Path:
        """A private folder with the version's files, every one with the size and digest its manifest declares.

        The caller hands it back by `Cache.release`.

        Raises:
            IntegrityError: A file can't be assembled from the chunks on the topic.
            StructureError: A path of the manifest leaves the folder.
            BrokerError: The topic can't be read, or nothing came for `stall_s`.
            CacheError: The cache can't be written, or the disk is too small.
        """
        manifest = record.manifest
        _check_tree(manifest.files)
        checked: set[str] = set()
        bad: list[FileEntry] = []
        for _ in range(_ATTEMPTS):
            if self._missing(manifest):
                with self._cache.lock(manifest.model, LOCK_TIMEOUT_S):
                    missing = self._missing(manifest)  # another process may have fetched them meanwhile
                    self._download(record, missing, progress)
                    checked.update(entry.digest for entry in missing)
            view, bad = self._cache.view(manifest.files, checked=checked)
            if not bad:
                self._cache.trim()
                return view
            for entry in bad:
                self._cache.drop(entry)
            checked.clear()
        raise IntegrityError(f"file {bad[0].path!r} of {manifest.id} is damaged in the cache each time it is fetched")

    def _missing(self, manifest: Manifest) -> list[FileEntry]:
        """Files that are not in the cache, one of each digest."""
        return list({e.digest: e for e in manifest.files if not self._cache.has(e)}.values())

    def _download(self, record: VersionRecord, missing: Sequence[FileEntry], progress: Progress | None) -> None:
        total = sum(entry.size for entry in missing)
        self._cache.check_space(total)
        manifest = record.manifest
        targets = {entry.digest: _Target(entry, manifest.chunk_bytes, self._cache.partial(entry)) for entry in missing}
        try:
            with _Sink(self._cache, total, progress) as sink:
                for source in (self._by_hints, self._by_scan):
                    left = {digest: target for digest, target in targets.items() if not target.is_kept}
                    sink.expect(left.values())
                    for key, chunk in source(record, left, sink.is_done):
                        sink.put(left[key.digest], key.index, chunk)
                    sink.settle()
            for target in targets.values():
                if not target.is_kept:
                    raise target.fault or IntegrityError(f"file {target.entry.path!r} was not found on the topic")
        finally:
            for target in targets.values():
                with contextlib.suppress(OSError):
                    target.partial.unlink(missing_ok=True)

    def _by_hints(
        self, record: VersionRecord, targets: Mapping[str, _Target], is_done: Callable[[], bool]
    ) -> Iterator[tuple[ChunkKey, bytes]]:
        hints = [hint for hint in record.hints if hint.digest in targets]
        if not hints:
            return
        topic = self._topics.blobs
        begins, ends = self._log.begin_offsets(topic), self._log.end_offsets(topic, committed=False)
        # A topic truncated or made anew under our eyes: the scan says what is there.
        with contextlib.suppress(OffsetOutOfRangeError):
            yield from self._read(record.manifest, targets, _courses(hints, begins, ends), is_done)

    def _by_scan(
        self, record: VersionRecord, targets: Mapping[str, _Target], is_done: Callable[[], bool]
    ) -> Iterator[tuple[ChunkKey, bytes]]:
        if not targets:
            return
        ends = self._log.end_offsets(self._topics.blobs, committed=False)
        homes = {blob_partition(record.manifest.model, digest, len(ends)) for digest in targets}
        courses = {home: _Course([_Span(BEGINNING, ends[home] - 1)], ends[home]) for home in homes if ends[home] > 0}
        yield from self._read(record.manifest, targets, courses, is_done)

    def _read(
        self,
        manifest: Manifest,
        targets: Mapping[str, _Target],
        courses: Mapping[int, _Course],
        is_done: Callable[[], bool],
    ) -> Iterator[tuple[ChunkKey, bytes]]:
        """Chunks of the wanted files along the courses, until these end or `is_done`."""
        if not courses or is_done():
            return
        starts = {partition: course.spans[0].first for partition, course in courses.items()}
        reader = self._log.reader(self._topics.blobs, starts, committed=False)
        try:
            seen: dict[int, int] = {}
            deadline = self._clock() + self._stall_s
            while any(course.spans for course in courses.values()) and not is_done():
                for record in reader.poll(_POLL_S):
                    chunk = _wanted(record, manifest, targets)
                    if chunk is not None:
                        yield chunk
                positions = {partition: reader.position(partition) for partition in courses}
                if positions != seen:
                    seen, deadline = positions, self._clock() + self._stall_s
                elif self._clock() >= deadline:
                    raise BrokerError(
                        f"nothing came of topic {self._topics.blobs!r} for {self._stall_s:g} s, fetching {manifest.id}"
                    )
                _steer(reader, courses, positions)
        finally:
            reader.close()


def _check_tree(files: Iterable[FileEntry]) -> None:
    paths = {check_path(entry.path) for entry in files}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in paths:
                raise StructureError(f"{path!r} of the model lies below another of its files")


def _courses(hints: Iterable[ChunkHint], begins: Mapping[int, int], ends: Mapping[int, int]) -> dict[int, _Course]:
    """Where hints lead that can be true of these partitions."""
    spans: dict[int, list[_Span]] = {}
    for hint in hints:
        begin, end = begins.get(hint.partition, 0), ends.get(hint.partition, 0)
        first, last = max(hint.first_offset, begin), min(hint.last_offset, end - 1)
        if first <= last:
            spans.setdefault(hint.partition, []).append(_Span(first, last))
    return {
        partition: _Course(sorted(found, key=lambda span: span.first), ends[partition])
        for partition, found in spans.items()
    }


def _wanted(record: LogRecord, manifest: Manifest, targets: Mapping[str, _Target]) -> tuple[ChunkKey, bytes] | None:
    if record.key is None or record.value is None:
        return None
    key = ChunkKey.decode(record.key)
    if key is None or key.digest not in targets:
        return None
    if key.model != manifest.model or key.chunk_bytes != manifest.chunk_bytes:
        return None
    return key, record.value


def _steer(reader: LogReader, courses: Mapping[int, _Course], positions: Mapping[int, int]) -> None:
    """Passes over what no course leads through; a partition read to the end of its course waits at the log's end."""
    for partition, course in courses.items():
        position = positions[partition]
        while course.spans and position > course.spans[0].last:
            del course.spans[0]
        if course.is_parked:
            continue
        if not course.spans:
            course.is_parked = True
            if position < course.end and any(other.spans for other in courses.values()):
                reader.seek(partition, course.end)
        elif course.spans[0].first - position > _GAP_RECORDS:
            reader.seek(partition, course.spans[0].first)


class _Sink:
    """Writes and hashes chunks on a thread of its own; everything public is for the thread that made it."""

    def __init__(self, cache: Cache, total: int, progress: Progress | None) -> None:
        self._cache = cache
        self._total = total
        self._progress = progress
        self._done = 0
        self._expected: tuple[_Target, ...] = ()
        self._whole = 0  # of those expected, how many have all their chunks; written by the thread
        self._settled = False
        self._queue: queue.Queue[tuple[_Target, int, bytes] | None] = queue.Queue(_QUEUED_CHUNKS)
        self._error: BaseException | None = None
        self._open: tuple[_Target, int] | None = None  # one file is open at a time, however many a model has
        self._thread = threading.Thread(target=self._run, name="modelcast-fetch", daemon=True)

    def __enter__(self) -> _Sink:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)
        self._thread.join()
        self._close_file()

    def expect(self, targets: Iterable[_Target]) -> None:
        """Begins a pass over the topic for these files, each from nothing: what an earlier pass found was not whole."""
        self._expected = tuple(targets)
        for target in self._expected:
            target.assembly = FileAssembly(target.entry, target.chunk_bytes)
            target.fault = None
        self._whole = sum(not target.assembly.chunks for target in self._expected)
        self._settled = False

    def put(self, target: _Target, index: int, chunk: bytes) -> None:
        """Queues one chunk; waits while the disk is behind. Raises what the disk raised."""
        if not target.is_kept:
            self._queue.put((target, index, chunk))
        self._raise()

    def is_done(self) -> bool:
        """Whether every file was kept. A file whose chunks are all there is tried once; later chunks may mend it."""
        if self._whole == len(self._expected) and not self._settled:
            self._settled = True
            self.settle()
        return all(target.is_kept for target in self._expected) if self._settled else False

    def settle(self) -> None:
        """Waits for the disk, then keeps every file that is whole; the others say what is wrong with them."""
        self._queue.join()
        self._raise()
        self._close_file()
        for target in self._expected:
            if not target.is_kept:
                self._try_keep(target)

    def _try_keep(self, target: _Target) -> None:
        try:
            if target.assembly.missing:
                target.assembly.finish()
            with explained(self._cache.root):
                if not target.assembly.chunks:
                    target.partial.touch()
                with contextlib.closing(_blocks(target.partial, target.assembly.hashed_bytes)) as rest:
                    target.assembly.finish(rest)
        except IntegrityError as fault:
            # A chunk that was refused says more than that it is missing.
            target.fault = target.fault if target.assembly.missing and target.fault else fault
            return
        self._cache.keep(target.entry, target.partial)
        target.is_kept = True

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                if self._error is None:
                    self._write(*item)
            except BaseException as error:
                self._error = error
            finally:
                self._queue.task_done()
        self._queue.task_done()

    def _write(self, target: _Target, index: int, chunk: bytes) -> None:
        before = target.assembly.missing
        try:
            position = target.assembly.accept(index, chunk)
        except IntegrityError as fault:
            target.fault = fault
            return
        if self._open is None or self._open[0] is not target:
            self._close_file()
            self._open = (target, os.open(target.partial, os.O_RDWR | os.O_CREAT, 0o600))
        _write_all(self._open[1], chunk, position)
        if target.assembly.missing < before:
            self._whole += target.assembly.missing == 0
            self._done = min(self._done + len(chunk), self._total)  # a second pass counts from where the first ended
            if self._progress is not None:
                self._progress(self._done, self._total)

    def _close_file(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _raise(self) -> None:
        if self._error is not None:
            with explained(self._cache.root):
                raise self._error


def _write_all(file: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, position)
        view, position = view[written:], position + written


def _blocks(path: Path, start: int) -> Generator[bytes, None, None]:
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(_READ_BYTES):
            yield block
