"""Getting a version's files onto the blobs topic: only what is missing, and knowing where it went.

What is missing is decided while the model's transactional id is held:
- A file that a live version of the model lists was written whole before that version was committed: nothing is sent.
- Of a publication that was broken off, or fenced, what it sent is found (`leftovers`) and not sent again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelcast import blobs
from modelcast.errors import BrokerError
from modelcast.log import Log
from modelcast.records import ChunkHint, FileEntry
from modelcast.registry.image import ModelEntry, VersionRecord
from modelcast.topics import ChunkKey, Topics, blob_partition

from .leftovers import Leftovers

# Below Kafka's default limits with room for key and record overhead. Publishing 400 MB took 2.1, 2.8, 1.9, 0.9, 0.9 ms
# of processor time a MB (`python -m benchmarks.publish --chunks 64,128,256,512,960`, means of two sweeps on two shared
# cores); fetching at 256 and 512 KiB was alike. Versions in chunks of another size are read as ever, and their files
# sent once more.
CHUNK_BYTES = 512 * 1024
# Key (at most 100 + 1 + 71 + 1 + 7 + 1 + 10 bytes) and the record batch's own bytes, rounded up.
_OVERHEAD_BYTES = 1024
# The largest record an upload makes.
RECORD_BYTES = CHUNK_BYTES + _OVERHEAD_BYTES
# Broker failover takes seconds; past this the upload is reported as failed and a rerun sends the rest.
_FLUSH_TIMEOUT_S = 120.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Upload:
    """What an upload did, and where the chunks of each file lie now."""

    bytes_sent: int
    hints: tuple[ChunkHint, ...]


class Uploader:
    """Sends the files of one version of one model; of several attempts, each sends what is missing by then."""

    def __init__(
        self, log: Log, topics: Topics, model: str, repository: str, *, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self._log = log
        self._chunk_bytes = chunk_bytes
        self._topics = topics
        self._model = model
        self._leftovers = Leftovers(log, topics, model, repository, chunk_bytes)

    def upload(
        self,
        directory: Path,
        files: tuple[FileEntry, ...],
        entry: ModelEntry,
        progress: Progress | None = None,
        *,
        resend: bool = False,
    ) -> Upload:
        """Sends what is missing of `files`, whose bytes lie under `directory`.

        Args:
            resend: Sends files that live versions have too: their chunks on the topic are damaged.

        Raises:
            BrokerError: A chunk would not fit the topic's limit (before the first byte), or was not acknowledged.
        """
        known = {} if resend else _hints_of(entry, self._chunk_bytes)
        new = {e.digest: e for e in files if e.digest not in known}
        if not new:
            return Upload(0, tuple(known[e.digest] for e in files))
        self._check_limit()
        partitions = self._log.topics()[self._topics.blobs]
        homes = {digest: blob_partition(self._model, digest, partitions) for digest in new}
        there = self._leftovers.find(directory, files, set(homes.values()))
        sender = _Sender(self._log, self._topics.blobs)
        total = sum(e.size for e in new.values())
        done = sent = 0
        try:
            for file in new.values():
                with (directory / file.path).open("rb") as source:
                    for index in range(blobs.chunk_count(file.size, self._chunk_bytes)):
                        key = ChunkKey(self._model, file.digest, self._chunk_bytes, index).encode()
                        position = index * self._chunk_bytes
                        if (offset := there.get(key)) is not None:
                            sender.found(file.digest, homes[file.digest], offset)
                        else:
                            source.seek(position)
                            chunk = source.read(self._chunk_bytes)
                            sender.send(file.digest, homes[file.digest], key, chunk)
                            sent += len(chunk)
                        if progress is not None:
                            progress("upload", done + min(position + self._chunk_bytes, file.size), total)
                done += file.size
            sender.flush()
        finally:
            sender.close()
        places = {**known, **sender.hints()}
        return Upload(sent, tuple(places[e.digest] for e in files if e.digest in places))

    def done(self) -> None:
        """The version is committed: what was sent is no longer a rest to be found."""
        self._leftovers.forget()

    def _check_limit(self) -> None:
        limit = int(self._log.describe(self._topics.blobs).configs.get("max.message.bytes", "1048588"))
        if limit < self._chunk_bytes + _OVERHEAD_BYTES:
            raise BrokerError(
                f"topic {self._topics.blobs!r} takes records of at most max.message.bytes={limit} bytes, "
                f"a chunk needs {self._chunk_bytes + _OVERHEAD_BYTES}",
                hint=(
                    "Raise it with: kafka-configs.sh --bootstrap-server … --alter --entity-type topics "
                    f"--entity-name {self._topics.blobs} --add-config max.message.bytes=1048588"
                ),
            )


class _Sender:
    """Sends chunks and collects where they were written; acknowledgements come on the log's own thread."""

    def __init__(self, log: Log, topic: str) -> None:
        self._writer = log.writer()
        self._topic = topic
        self._lock = threading.Lock()
        self._places: dict[str, ChunkHint] = {}

    def send(self, digest: str, partition: int, key: bytes, chunk: bytes) -> None:
        self._writer.send(
            self._topic,
            key=key,
            value=chunk,
            partition=partition,
            on_ack=lambda acked, offset: self.found(digest, acked, offset),
        )

    def found(self, digest: str, partition: int, offset: int) -> None:
        with self._lock:
            place = self._places.get(digest)
            first = offset if place is None else min(place.first_offset, offset)
            last = offset if place is None else max(place.last_offset, offset)
            self._places[digest] = ChunkHint(digest, partition, first, last)

    def flush(self) -> None:
        self._writer.flush(_FLUSH_TIMEOUT_S)

    def hints(self) -> Mapping[str, ChunkHint]:
        return self._places

    def close(self) -> None:
        self._writer.close()


def missing(files: tuple[FileEntry, ...], entry: ModelEntry, *, resend: bool = False) -> tuple[FileEntry, ...]:
    """The files that no live version of the model has, one of each digest."""
    known = {} if resend else _hints_of(entry, CHUNK_BYTES)
    return tuple({e.digest: e for e in files if e.digest not in known}.values())


def _hints_of(entry: ModelEntry, chunk_bytes: int) -> dict[str, ChunkHint]:
    """Files that live versions of the model have, with where they lie."""
    known: dict[str, ChunkHint] = {}
    for record in entry.versions.values():
        if not isinstance(record, VersionRecord) or record.manifest.store is not None:
            continue  # what lies in a store has no chunks, whatever its hints say
        if record.manifest.chunk_bytes == chunk_bytes:
            hints = {hint.digest: hint for hint in record.hints}
            # A file without a hint is there too, but its next version should say where: it is sent again.
            known.update({e.digest: hints[e.digest] for e in record.manifest.files if e.digest in hints})
    return known
