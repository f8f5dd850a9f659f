"""Getting a version's files onto the blobs topic: only what is missing, and knowing where it went.

What is missing is decided while the model's transactional id is held:
- A file that a live version of the model lists was written whole before that version was committed: nothing is sent.
- Of a publication that was broken off, a mark in the state folder says where in each partition it began; the chunks
  found from there on, by key and by content, are not sent again. Without a mark, or on another host, all are sent:
  the same key and bytes once more, which compaction merges.
"""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelcast import blobs
from modelcast.digest import of_bytes
from modelcast.errors import BrokerError
from modelcast.folders import state_folder
from modelcast.log import Log
from modelcast.records import ChunkHint, FileEntry
from modelcast.registry.image import ModelEntry, VersionRecord
from modelcast.scan import scan
from modelcast.topics import ChunkKey, Topics, blob_partition

# Below Kafka's default limits with room for key and record overhead; 256 KiB chunks were fetched faster than 1 MB ones.
CHUNK_BYTES = 256 * 1024
# Key (at most 100 + 1 + 71 + 1 + 7 + 1 + 10 bytes) and the record batch's own bytes, rounded up.
_OVERHEAD_BYTES = 1024
# Broker failover takes seconds; past this the upload is reported as failed and a rerun sends the rest.
_FLUSH_TIMEOUT_S = 120.0
_SCAN_TIMEOUT_S = 120.0

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Upload:
    """What an upload did, and where the chunks of each file lie now."""

    bytes_sent: int
    hints: tuple[ChunkHint, ...]


class Uploader:
    """Sends the files of one version of one model."""

    def __init__(self, log: Log, topics: Topics, model: str, repository: str) -> None:
        self._log = log
        self._topics = topics
        self._model = model
        self._mark = state_folder() / "uploads" / repository / f"{topics.prefix}.{model}.json"

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
        known = {} if resend else _hints_of(entry)
        new = {e.digest: e for e in files if e.digest not in known}
        if not new:
            return Upload(0, tuple(known[e.digest] for e in files))
        self._check_limit()
        partitions = self._log.topics()[self._topics.blobs]
        homes = {digest: blob_partition(self._model, digest, partitions) for digest in new}
        there = self._resume(set(homes.values()))
        sender = _Sender(self._log, self._topics.blobs)
        total = sum(e.size for e in new.values())
        done = sent = 0
        try:
            for file in new.values():
                for index, chunk in enumerate(blobs.cut(directory / file.path, CHUNK_BYTES)):
                    key = ChunkKey(self._model, file.digest, CHUNK_BYTES, index).encode()
                    found = there.get(key)
                    if found is not None and found[1] == of_bytes(chunk):
                        sender.found(file.digest, homes[file.digest], found[0])
                    else:
                        sender.send(file.digest, homes[file.digest], key, chunk)
                        sent += len(chunk)
                    done += len(chunk)
                    if progress is not None:
                        progress("upload", done, total)
            sender.flush()
        finally:
            sender.close()
        places = {**known, **sender.hints()}
        return Upload(sent, tuple(places[e.digest] for e in files if e.digest in places))

    def done(self) -> None:
        """The version is committed: what was sent is no longer a rest to be found."""
        self._mark.unlink(missing_ok=True)

    def _check_limit(self) -> None:
        limit = int(self._log.describe(self._topics.blobs).configs.get("max.message.bytes", "1048588"))
        if limit < CHUNK_BYTES + _OVERHEAD_BYTES:
            raise BrokerError(
                f"topic {self._topics.blobs!r} takes records of at most max.message.bytes={limit} bytes, "
                f"a chunk needs {CHUNK_BYTES + _OVERHEAD_BYTES}",
                hint=(
                    "Raise it with: kafka-configs.sh --bootstrap-server … --alter --entity-type topics "
                    f"--entity-name {self._topics.blobs} --add-config max.message.bytes=1048588"
                ),
            )

    def _resume(self, partitions: set[int]) -> Mapping[bytes, tuple[int, str]]:
        """Chunks an earlier, broken-off publication left: key -> (offset, digest of the chunk)."""
        ends = self._log.end_offsets(self._topics.blobs, committed=False)
        marked = self._read_mark()
        begins = self._log.begin_offsets(self._topics.blobs) if marked else {}
        # Elsewhere than between a partition's ends a mark is of a topic that was made anew: there is nothing to find.
        starts = {p: marked[p] for p in partitions if p in marked and begins[p] <= marked[p] <= ends[p]}
        self._write_mark({**marked, **{p: ends[p] for p in partitions}, **starts})
        there: dict[bytes, tuple[int, str]] = {}
        prefix = f"{self._model}/".encode()
        for record in scan(self._log, self._topics.blobs, starts, ends, timeout_s=_SCAN_TIMEOUT_S, committed=False):
            if record.key is None or not record.key.startswith(prefix):
                continue
            if record.value is None:
                there.pop(record.key, None)
            else:
                there[record.key] = (record.offset, of_bytes(record.value))
        return there

    def _read_mark(self) -> dict[int, int]:
        try:
            marked = json.loads(self._mark.read_text())
            return {int(partition): int(offset) for partition, offset in marked.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}  # no mark, or one cut short by a crash: everything is sent

    def _write_mark(self, starts: Mapping[int, int]) -> None:
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        # A rival publisher on this host writes the same mark: each writes a file of its own and renames it.
        with tempfile.NamedTemporaryFile("w", dir=self._mark.parent, suffix=".partial", delete=False) as partial:
            json.dump({str(partition): offset for partition, offset in starts.items()}, partial)
        Path(partial.name).replace(self._mark)


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
    known = {} if resend else _hints_of(entry)
    return tuple({e.digest: e for e in files if e.digest not in known}.values())


def _hints_of(entry: ModelEntry) -> dict[str, ChunkHint]:
    """Files that live versions of the model have, with where they lie."""
    known: dict[str, ChunkHint] = {}
    for record in entry.versions.values():
        if isinstance(record, VersionRecord) and record.manifest.chunk_bytes == CHUNK_BYTES:
            hints = {hint.digest: hint for hint in record.hints}
            # A file without a hint is there too, but its next version should say where: it is sent again.
            known.update({e.digest: hints[e.digest] for e in record.manifest.files if e.digest in hints})
    return known
