"""Missing files of a version from the log into the cache.

- Chunks are looked for where the hints say, then, for what was not found there whole, by a scan of the file's partition
  from its beginning to its true end. Keys say what a chunk is, hints never; only the digest says what a file is.
- Files that lie side by side in a partition are read in one pass; what lies between distant ones is skipped.
- Tombstones are ignored. Of several chunks of one index the last counts, as compaction would have it.
- Memory is bounded by what the reader fetches ahead and the sink (`modelcast.files.sink`) queues, whatever the size of
  the model.
- Chunks were written outside transactions and before their manifest, so nothing has to be waited for: the blobs topic
  is read uncommitted.
- A fetch takes as long as its bytes take to come; it fails when nothing comes for `STALL_S`.
- A version by reference comes from the store its manifest names, if this process may read it, by the same steps.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from modelcast.blobs import check_path
from modelcast.errors import BrokerError, CacheError, IntegrityError, OffsetOutOfRangeError, StructureError
from modelcast.files.cache import Cache, Flaw
from modelcast.files.limit import LIMIT_VARIABLE
from modelcast.files.sink import Progress, Sink, Target
from modelcast.files.store import FileStore
from modelcast.files.store_url import NO_STORES, Stores, StoreUrl
from modelcast.folders import CACHE_VARIABLE
from modelcast.log import BEGINNING, Log, LogReader, LogRecord
from modelcast.records import ChunkHint, FileEntry, Manifest
from modelcast.registry.image import VersionRecord
from modelcast.topics import ChunkKey, Topics, blob_partition

# A broker's failover takes seconds; a partition without a leader for longer is reported, and the load tried again.
STALL_S = 30.0
# Another process of this host may be fetching the same model: it is waited for as long as something comes to it. One
# to which nothing comes fails before this, so whoever is silent for longer is stopped or hangs.
LOCK_PATIENCE_S = STALL_S + 15.0
# Once damaged files were replaced, what is damaged again was damaged by something that goes on. It says nothing of
# the model: its bytes were right when they came.
_ATTEMPTS = 3
_POLL_S = 0.1
# Records that are cheaper to read over than to seek past: a seek drops what the client fetched ahead.
_GAP_RECORDS = 64
# Pieces a store's blocks are handed on in: whatever a manifest declares, what the sink queues stays some megabytes.
_PIECE_BYTES = 256 * 1024


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
    """Brings versions into a cache; safe for several threads.

    Args:
        log: Where the chunks are.
        topics: The repository's topics.
        cache: Where the files go.
        stores: What may be read of versions by reference.
        stall_s: How long nothing may come before a fetch fails.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        cache: Cache,
        *,
        stores: Stores = NO_STORES,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._topics = topics
        self._cache = cache
        self._stores = stores
        self._stall_s = stall_s
        self._clock = clock
        self._is_trimmed = False  # a limit may have become smaller since the last process

    def fetch(self, record: VersionRecord, progress: Progress | None = None) -> Path:
        """A private folder with the version's files, every one with the size and digest its manifest declares.

        The caller hands it back by `Cache.release`.

        Raises:
            IntegrityError: A file can't be assembled from the chunks on the topic, or from the store.
            StructureError: A path of the manifest leaves the folder.
            StoreNotAllowedError: The manifest names a store that is not one of `stores`.
            BrokerError: The topic can't be read, or nothing came for `stall_s`.
            StoreError: The store can't be read.
            CacheError: The cache can't be written, the disk is too small, or others remove or damage what was fetched.
        """
        manifest = record.manifest
        _check_tree(manifest.files)
        bad: Mapping[FileEntry, Flaw] = {}
        for _ in range(_ATTEMPTS):
            view, bad, is_fetched = self._attempt(record, progress)
            if not bad:
                if is_fetched or not self._is_trimmed:
                    self._is_trimmed = True
                    with contextlib.suppress(CacheError):  # which costs space, not the version
                        self._cache.trim()
                return view
            for entry in (entry for entry, flaw in bad.items() if flaw is Flaw.DAMAGED):
                self._cache.drop(entry)
        entry, flaw = next(iter(bad.items()))
        what = f"file {entry.path!r} of {manifest.id}"
        if flaw is Flaw.DAMAGED:
            raise CacheError(
                f"{what} was damaged in the model cache {self._cache.root} each time it was fetched",
                hint=f"Its disk fails, or something writes into that folder: set {CACHE_VARIABLE} to another.",
            )
        raise CacheError(
            f"{what} was removed from the model cache {self._cache.root} by another process each time it was fetched",
            hint=f"The cache is too small for the models used at once: raise {LIMIT_VARIABLE}, or give each service "
            f"a folder of its own by {CACHE_VARIABLE}.",
        )

    def _attempt(self, record: VersionRecord, progress: Progress | None) -> tuple[Path, Mapping[FileEntry, Flaw], bool]:
        """A view, what is wrong with it, and whether anything was fetched for it."""
        manifest = record.manifest
        missing = self._missing(manifest)
        fetched: Mapping[str, Path] = {}
        with contextlib.ExitStack() as until_viewed:
            if missing:
                with self._cache.lock(manifest.model, LOCK_PATIENCE_S) as go_on:
                    missing = self._missing(manifest)  # another process may have fetched them meanwhile
                    hold = until_viewed.enter_context(self._cache.hold(manifest.files))
                    fetched = self._download(record, missing, hold, _both(go_on, progress))
            view, bad = self._cache.view(manifest.files, checked=fetched, of=manifest)
        return view, bad, bool(missing)

    def _missing(self, manifest: Manifest) -> list[FileEntry]:
        """Files that are not in the cache, one of each digest."""
        return list({e.digest: e for e in manifest.files if not self._cache.has(e)}.values())

    def _download(
        self, record: VersionRecord, missing: Sequence[FileEntry], hold: Path, progress: Progress
    ) -> Mapping[str, Path]:
        """Fetches files into the cache; where those lie on hold that do, by digest."""
        if not missing:
            return {}
        manifest = record.manifest
        store = None if manifest.store is None else self._stores.check(manifest.store, manifest.id)
        total = sum(entry.size for entry in missing)
        self._cache.make_room(total)
        piece_bytes = manifest.chunk_bytes if store is None else _PIECE_BYTES
        targets = {entry.digest: Target(entry, piece_bytes, hold / str(number)) for number, entry in enumerate(missing)}
        with Sink(self._cache, total, progress) as sink:
            for source in (self._by_hints, self._by_scan) if store is None else (partial(_by_store, store),):
                left = {digest: target for digest, target in targets.items() if not target.is_kept}
                sink.expect(left.values())
                for key, chunk in source(record, left, sink.is_done):
                    sink.put(left[key.digest], key.index, chunk)
                sink.settle()
        for target in targets.values():
            if not target.is_kept:
                fault = target.fault or IntegrityError(f"file {target.entry.path!r} was not found on the topic")
                raise fault if store is None else _altered(fault, store)
        return {digest: target.partial for digest, target in targets.items() if target.is_on_hold}

    def _by_hints(
        self, record: VersionRecord, targets: Mapping[str, Target], is_done: Callable[[], bool]
    ) -> Iterator[tuple[ChunkKey, bytes]]:
        # One a file, as publishers write them: nobody signs hints, and thousands would cost a seek each.
        hints = {hint.digest: hint for hint in record.hints if hint.digest in targets}.values()
        if not hints:
            return
        topic = self._topics.blobs
        begins, ends = self._log.begin_offsets(topic), self._log.end_offsets(topic, committed=False)
        # A topic truncated or made anew under our eyes: the scan says what is there.
        with contextlib.suppress(OffsetOutOfRangeError):
            yield from self._read(record.manifest, targets, _courses(hints, begins, ends), is_done)

    def _by_scan(
        self, record: VersionRecord, targets: Mapping[str, Target], is_done: Callable[[], bool]
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
        targets: Mapping[str, Target],
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


def _by_store(
    store: StoreUrl, record: VersionRecord, targets: Mapping[str, Target], is_done: Callable[[], bool]
) -> Iterator[tuple[ChunkKey, bytes]]:
    """The files' objects in a store, cut as if they were chunks."""
    if is_done():
        return
    with FileStore(store) as opened, contextlib.closing(opened.read(t.entry for t in targets.values())) as blocks:
        for entry, start, block in blocks:
            for offset in range(0, len(block), _PIECE_BYTES):
                key = ChunkKey(record.manifest.model, entry.digest, _PIECE_BYTES, (start + offset) // _PIECE_BYTES)
                yield key, block[offset : offset + _PIECE_BYTES]


def _both(go_on: Callable[[], None], progress: Progress | None) -> Progress:
    def tell(done: int, total: int) -> None:
        go_on()
        if progress is not None:
            progress(done, total)

    return tell


def _altered(fault: IntegrityError, store: StoreUrl) -> IntegrityError:
    return IntegrityError(
        fault.message, hint=f"It was altered in the store: publish the model again with --store {store} --resend."
    )


def _check_tree(files: Collection[FileEntry]) -> None:
    paths = {check_path(entry.path) for entry in files}
    for path in paths:
        parts = path.split("/")
        for depth in range(1, len(parts)):
            if "/".join(parts[:depth]) in paths:
                raise StructureError(f"{path!r} of the model lies below another of its files")
    sizes: dict[str, FileEntry] = {}
    for entry in files:
        other = sizes.setdefault(entry.digest, entry)
        if other.size != entry.size:
            raise IntegrityError(f"files {other.path!r} and {entry.path!r} have one digest and two sizes")


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


def _wanted(record: LogRecord, manifest: Manifest, targets: Mapping[str, Target]) -> tuple[ChunkKey, bytes] | None:
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
