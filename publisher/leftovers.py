"""What is on the blobs topic of a version that is not published yet: by an upload broken off, or fenced meanwhile.

- A mark in the state folder says where in each partition the model's first upload since its last publication began.
  Whatever lies behind it, by key and by content, need not be sent again. Without a mark, or on another host, everything
  is sent: the same keys and bytes once more, which compaction merges.
- A tombstone takes a chunk away. Only a holder of the model's id writes any, and this is asked while the id is held, so
  nothing found here can vanish before the commit.
- What was found is kept between attempts: the next one reads on from where the last one ended, so that an attempt whose
  upload was done takes moments, however large the model, and gets between two changes made by others.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modelcast.blobs import chunk_count
from modelcast.folders import state_folder
from modelcast.json_data import read_json
from modelcast.log import Log, LogRecord
from modelcast.records import FileEntry
from modelcast.replacing import replace_file
from modelcast.scan import scan
from modelcast.topics import ChunkKey, Topics, blob_partition

# A leader's failover takes seconds; a partition that gives nothing for so long ends the publication.
_STALL_S = 120.0
# How long a broker keeps a tombstone that has done its work, by default (`delete.retention.ms`).
_TOMBSTONE_MS = 24 * 3600 * 1000


class Leftovers:
    """Finds the chunks of one model that lie on the topic already; for one publication, of several attempts."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        model: str,
        repository: str,
        chunk_bytes: int,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._topic = topics.blobs
        self._model = model
        self._chunk_bytes = chunk_bytes
        self._mark = state_folder() / "uploads" / repository / f"{topics.prefix}.{model}.json"
        self._clock = clock
        self._found: dict[bytes, int] = {}
        self._read_to: dict[int, int] = {}
        self._read_at = clock()

    def find(self, directory: Path, files: Sequence[FileEntry], partitions: set[int]) -> Mapping[bytes, int]:
        """Chunks of `files` in these partitions: key -> offset. The first call of a publication leaves a mark.

        Args:
            directory: Where the files lie; a chunk is found if it is equal to the bytes there.

        Raises:
            BrokerError: The topic can't be read to its end.
        """
        begins = self._log.begin_offsets(self._topic)
        ends = self._log.end_offsets(self._topic, committed=False)
        known = self._resumable(begins, ends)
        # Elsewhere than between a partition's ends a mark is of a topic that was made anew: there is nothing to find.
        marked = {p: mark for p, mark in self._read_mark().items() if begins.get(p, 0) <= mark <= ends.get(p, -1)}
        starts = {p: known.get(p, marked.get(p, ends[p])) for p in partitions}
        self._write_mark({**starts, **marked})
        # A chunk that lies elsewhere than in its home, as a copying tool may leave it, is not found by who fetches.
        homes = {entry.digest: blob_partition(self._model, entry.digest, len(ends)) for entry in files}
        wanted = {(homes[entry.digest], entry.digest): entry for entry in files}
        for record in scan(self._log, self._topic, starts, ends, timeout_s=_STALL_S, committed=False):
            self._take(record, directory, wanted)
        self._read_to |= {p: ends[p] for p in partitions}
        self._read_at = self._clock()
        return self._found

    def forget(self) -> None:
        """The version is committed: what was sent is no longer a rest to be found."""
        with contextlib.suppress(OSError):  # it can't be there, or costs a look at what lies behind it
            self._mark.unlink(missing_ok=True)

    def _resumable(self, begins: Mapping[int, int], ends: Mapping[int, int]) -> Mapping[int, int]:
        """Where the last attempt read to; nothing if what it found may have gone unseen since."""
        # A tombstone that came since may be gone again, after as long as the broker keeps them.
        configs = self._log.describe(self._topic).configs
        kept_s = int(configs.get("delete.retention.ms", _TOMBSTONE_MS)) / 1000
        is_fresh = self._clock() - self._read_at < kept_s / 2
        if not is_fresh or any(not begins.get(p, 0) <= end <= ends.get(p, -1) for p, end in self._read_to.items()):
            self._found.clear()
            self._read_to.clear()
        return self._read_to

    def _take(self, record: LogRecord, directory: Path, wanted: Mapping[tuple[int, str], FileEntry]) -> None:
        key = ChunkKey.decode(record.key or b"")
        if record.key is None or key is None or key.model != self._model or key.chunk_bytes != self._chunk_bytes:
            return
        entry = wanted.get((record.partition, key.digest))
        if entry is None:
            return
        self._found.pop(record.key, None)
        if record.value is None or key.index >= chunk_count(entry.size, self._chunk_bytes):
            return
        with (directory / entry.path).open("rb") as file:
            file.seek(key.index * self._chunk_bytes)
            if file.read(self._chunk_bytes) == record.value:
                self._found[record.key] = record.offset

    def _read_mark(self) -> dict[int, int]:
        try:
            marked = read_json(self._mark.read_bytes())
            return {int(partition): offset for partition, offset in marked.items() if type(offset) is int}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}  # no mark, or one cut short by a crash: everything is sent

    def _write_mark(self, starts: Mapping[int, int]) -> None:
        # In a container whose disk is read-only, a publication that is broken off is sent again.
        with contextlib.suppress(OSError):
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            # A rival publisher on this host may write the same mark now.
            replace_file(self._mark, json.dumps({str(number): offset for number, offset in starts.items()}).encode())
