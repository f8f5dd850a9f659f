"""What lies on the blobs topic, and what the registry lists of it: together, what is garbage.

Rules:
- Garbage is what no manifest lists, whoever signed it: a version that this repository's policy does not admit yet may
  be waiting for a second signature, so `Listing` knows of no policy.
- A manifest that can't be read, of a later release for instance, may list anything: nothing of its model is garbage.
- Where a manifest has signatures, a withdrawal without any makes no garbage: consumers under a policy don't believe it.
- First the blobs are surveyed, then the registry is read. What was published between the two is listed, and what was
  uploaded after the survey is not seen.
- Both read on from where they stopped. Of a chunk its size is kept, of a file the time of its newest chunk: a hundred
  thousand chunks take some ten megabytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from modelcast import codec
from modelcast.blobs import chunk_count
from modelcast.digest import is_digest
from modelcast.errors import UsageError, WireError
from modelcast.log import BEGINNING, Log, LogRecord
from modelcast.names import check_model_name
from modelcast.records import Manifest, RepositoryIdentity, Withdrawn
from modelcast.registry.image import ModelEntry, VersionRecord
from modelcast.scan import scan
from modelcast.topics import REPOSITORY_KEY, ChunkKey, RegistryKey, Topics

from .change import Tombstone

# A leader's failover takes seconds, a dead holder's transaction up to twenty: what gives nothing for longer is broken.
STALL_S = 120.0

# Called with records passed and records in all.
Progress = Callable[[int, int], None]


class ListedFile(NamedTuple):
    """A file's content as it is cut: what a chunk's key says beside model and index."""

    digest: str
    chunk_bytes: int


class StoredFile(NamedTuple):
    """Chunks of one file in one partition, where a publisher put them or somebody copied them."""

    partition: int
    model: str
    digest: str
    chunk_bytes: int

    def tombstone(self, index: int) -> Tombstone:
        """What takes one of its chunks away."""
        return Tombstone(self.partition, ChunkKey(self.model, self.digest, self.chunk_bytes, index).encode())


@dataclass(slots=True)
class Chunks:
    """The chunks of a stored file: size by index, and the time of the newest, in epoch milliseconds."""

    sizes: dict[int, int] = field(default_factory=dict)
    newest_ms: int = 0


def listed_files(manifest: Manifest) -> Iterator[ListedFile]:
    """The content a version needs on the blobs topic; none if its files lie elsewhere."""
    if manifest.store is None:
        for entry in manifest.files:
            yield ListedFile(entry.digest, manifest.chunk_bytes)


def live_files(entry: ModelEntry) -> set[ListedFile]:
    """What the live versions of a registry's image list."""
    records = (record for record in entry.versions.values() if isinstance(record, VersionRecord))
    return {file for record in records for file in listed_files(record.manifest)}


class Listing:
    """Which content each version lists, from every record of the registry; not thread-safe.

    Args:
        only: The one model that matters; by default all do.
    """

    def __init__(self, log: Log, topics: Topics, *, only: str | None = None) -> None:
        self._log = log
        self._topic = topics.registry
        self._only = only
        self._read_to: dict[int, int] = {}
        self._repository: str | None = None
        self._versions: dict[str, dict[int, set[ListedFile]]] = {}
        self._unread: dict[str, set[int]] = {}
        self._signed: set[tuple[str, int]] = set()
        self._files: dict[ListedFile, ListedFile] = {}  # one object of each: versions share most of theirs

    def read_on(self) -> None:
        """Reads to the end the registry has now. Raises BrokerError."""
        for record in _read_on(self._log, self._topic, self._read_to):
            if record.key is not None and record.value is not None:
                self._take(record.key, record.value)

    def is_whole(self, model: str) -> bool:
        """Whether every record of the model's versions could be read."""
        return not self._unread.get(model)

    def is_signed(self, model: str, version: int) -> bool:
        """Whether somebody signed this version's manifest; by what key is for a policy to say."""
        return (model, version) in self._signed

    def files(self, model: str, *, but: int | None = None) -> set[ListedFile]:
        """What the versions of a model list; `but` leaves one out."""
        versions = self._versions.get(model, {})
        return {file for number, files in versions.items() if number != but for file in files}

    def _take(self, raw_key: bytes, value: bytes) -> None:
        if raw_key == REPOSITORY_KEY:
            payload, _ = _opened(value)
            if self._repository is None and isinstance(payload, RepositoryIdentity):
                self._repository = payload.uuid
            return
        key = RegistryKey.decode(raw_key)
        if key is None or key.kind != "version" or self._only not in (None, key.model):
            return
        payload, has_signatures = _opened(value)
        match payload:
            case Manifest():
                if has_signatures:
                    self._signed.add((key.model, key.number))
                # All that ever stood here: which of them counts is for each reader's policy to say.
                files = self._versions.setdefault(key.model, {}).setdefault(key.number, set())
                files.update(self._files.setdefault(file, file) for file in listed_files(payload))
            case Withdrawn(repository=repository, model=model, version=version):
                # A record of another repository, or copied to this key, withdraws nothing.
                is_its_own = (repository, model, version) == (self._repository, key.model, key.number)
                if is_its_own and (has_signatures or not self.is_signed(model, version)):
                    self._versions.get(key.model, {}).pop(key.number, None)
                    self._unread.get(key.model, set()).discard(key.number)
            case None:
                self._unread.setdefault(key.model, set()).add(key.number)


class Survey:
    """What lies on the blobs topic; not thread-safe."""

    def __init__(self, log: Log, topics: Topics) -> None:
        self._log = log
        self._topic = topics.blobs
        self._read_to: dict[int, int] = {}
        self._models: dict[str, dict[StoredFile, Chunks]] = {}

    def read_on(self, progress: Progress | None = None) -> None:
        """Reads to the end the topic has now. Raises BrokerError."""
        for record in _read_on(self._log, self._topic, self._read_to, progress):
            self._take(record)

    def models(self) -> list[str]:
        """Names of the models that have chunks, in order."""
        return sorted(self._models)

    def garbage(self, model: str, listed: Iterable[ListedFile], before_ms: int) -> Mapping[StoredFile, Chunks]:
        """Files of a model that are not listed and whose newest chunk is older than `before_ms`."""
        kept = set(listed)
        return {
            file: chunks
            for file, chunks in self._models.get(model, {}).items()
            if ListedFile(file.digest, file.chunk_bytes) not in kept and chunks.newest_ms < before_ms
        }

    def _take(self, record: LogRecord) -> None:
        key = _chunk_key(record.key)
        if key is None:  # nothing of ours
            return
        file = StoredFile(record.partition, key.model, key.digest, key.chunk_bytes)
        files = self._models.setdefault(key.model, {})
        chunks = files.get(file)
        if record.value is not None:
            chunks = chunks or files.setdefault(file, Chunks())
            chunks.sizes[key.index] = len(record.value)
            chunks.newest_ms = max(chunks.newest_ms, record.timestamp_ms)
        elif chunks is not None:
            chunks.sizes.pop(key.index, None)
            if not chunks.sizes:
                del files[file]


def tombstones(files: Mapping[StoredFile, Chunks]) -> Iterator[tuple[Tombstone, int]]:
    """What takes all these chunks away, each with the bytes it frees."""
    for file, chunks in files.items():
        for index, size in sorted(chunks.sizes.items()):
            yield file.tombstone(index), size


def declared(manifest: Manifest, file: ListedFile) -> Iterator[tuple[int, int]]:
    """Index and size of the chunks that a version's file should have."""
    size = next(entry.size for entry in manifest.files if entry.digest == file.digest)
    for index in range(chunk_count(size, file.chunk_bytes)):
        yield index, min(file.chunk_bytes, size - index * file.chunk_bytes)


def _opened(value: bytes) -> tuple[codec.Payload | None, bool]:
    """The payload, if it can be read, and whether it bears signatures."""
    try:
        envelope = codec.decode_envelope(value)
        return codec.unseal(envelope), bool(envelope.signatures)
    except WireError:
        return None, False


def _chunk_key(raw: bytes | None) -> ChunkKey | None:
    """A key as publishers write them; None for any other, which can't be taken away under its decoded name."""
    key = ChunkKey.decode(raw or b"")
    try:
        legal = key is not None and is_digest(key.digest) and check_model_name(key.model) and key.encode() == raw
    except UsageError:
        legal = False
    return key if legal else None


def _read_on(log: Log, topic: str, read_to: dict[int, int], progress: Progress | None = None) -> Iterator[LogRecord]:
    """What came to a topic since `read_to`, which is moved to the true end; committed records only.

    A tombstone of a transaction that was aborted takes nothing away.
    """
    ends = log.end_offsets(topic, committed=False)
    begins = log.begin_offsets(topic)
    starts = {partition: read_to.get(partition, BEGINNING) for partition in ends}
    reached = {partition: max(starts[partition], begins[partition]) for partition in ends}
    total = sum(ends.values()) - sum(reached.values())
    done = 0
    for record in scan(log, topic, starts, ends, timeout_s=STALL_S):
        if progress is not None:
            done += record.offset + 1 - reached[record.partition]
            reached[record.partition] = record.offset + 1
            progress(done, total)
        yield record
    if progress is not None and total:
        progress(total, total)  # behind the last record there may be markers
    read_to.update(ends)
