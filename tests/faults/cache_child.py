"""A process that fetches and lets go again, for ever, from a cache that is too small: `… CACHE LIMIT SEED`.

Every process has the same versions on a log of its own. It prints `ok` for each version whose files were what they
should be, the kind of error for what the cache refused, and ends with 1 at the first file that is not.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from modelcast import digest
from modelcast.errors import CacheError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.records import FileEntry
from modelcast.registry.image import VersionRecord
from modelcast.testing.memory import MemoryLog
from modelcast.topics import ChunkKey, Topics, blob_partition
from tests.unit.registry_records import manifest

TOPICS = Topics("t")
CHUNK_BYTES = 16 << 10
MODELS = ("fraud", "churn")
VERSIONS = 4
# Two models share one backbone; each version has a head.
BACKBONE = random.Random(0).randbytes(400_000)
HEAD_BYTES = 50_000


def versions(log: MemoryLog) -> Iterator[tuple[VersionRecord, dict[str, bytes]]]:
    """What is on the log."""
    writer = log.writer()
    for spec in TOPICS.specs(blob_partitions=2, replication_factor=1):
        log.create(spec)
    for model in MODELS:
        for number in range(1, VERSIONS + 1):
            files = {"head": random.Random(number).randbytes(HEAD_BYTES), "tensors/0": BACKBONE}
            entries = []
            for path, data in files.items():
                name = digest.of_bytes(data)
                home = blob_partition(model, name, 2)
                for index in range(-(-len(data) // CHUNK_BYTES)):
                    chunk = data[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
                    key = ChunkKey(model, name, CHUNK_BYTES, index).encode()
                    writer.send(TOPICS.blobs, key=key, value=chunk, partition=home)
                entries.append(FileEntry(path, len(data), name))
            writer.flush(60)
            of = replace(manifest(number), model=model, files=tuple(entries), chunk_bytes=CHUNK_BYTES)
            yield VersionRecord(of, (), number), files


def main(folder: str, limit: str, seed: str) -> int:
    chance = random.Random(seed)
    log = MemoryLog()
    known = list(versions(log))
    while True:
        try:
            cache = Cache(Path(folder), limit=int(limit))
            fetcher = Fetcher(log, TOPICS, cache)
            for _ in range(chance.randrange(1, 20)):
                record, files = chance.choice(known)
                view = fetcher.fetch(record)
                maps = {path: (view / path).open("rb") for path in files}
                for path, file in maps.items():
                    if file.read() != files[path]:
                        print(f"{path} of {record.manifest.id} is wrong", flush=True)
                        return 1
                    file.close()
                cache.release(view)
                print("ok", flush=True)
            cache.close()
        except (CacheError, FileNotFoundError) as error:  # somebody removed the view itself
            print(type(error).__name__, error, flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
