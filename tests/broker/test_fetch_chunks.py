"""Versions come from a real broker by hints, and by key when hints lie or compaction moved what they name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest

from modelcast import digest
from modelcast.errors import IntegrityError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.kafka import KafkaLog
from modelcast.log import Log
from modelcast.records import ChunkHint, FileEntry, Manifest, Signature
from modelcast.registry.image import VersionRecord
from modelcast.topics import ChunkKey, Topics, blob_partition
from tests.brokers import Broker

PARTITIONS = 3
CHUNK_BYTES = 256 * 1024
FILES = {
    "examples.npz": Random(1).randbytes(10_000),
    "model.onnx": Random(2).randbytes(300_000),
    "tensors/0.bin": Random(3).randbytes(9_000_001),
    "tensors/1.bin": Random(4).randbytes(5_000_000),
}


@pytest.fixture
def log(broker: Broker) -> Iterator[Log]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        yield log


@pytest.fixture
def topics(log: Log, prefix: str) -> Topics:
    topics = Topics(prefix)
    for spec in topics.specs(blob_partitions=PARTITIONS, replication_factor=1):
        log.create(spec)
    return topics


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache")
    yield cache
    cache.close()


def note(offsets: list[int], partition: int, offset: int) -> None:
    offsets.append(offset)


def publish(log: Log, topics: Topics) -> VersionRecord:
    writer = log.writer()
    hints, entries = [], []
    for path, data in FILES.items():
        name = digest.of_bytes(data)
        home = blob_partition("m", name, PARTITIONS)
        offsets: list[int] = []
        for index, start in enumerate(range(0, len(data), CHUNK_BYTES)):
            key = ChunkKey("m", name, CHUNK_BYTES, index).encode()
            chunk = data[start : start + CHUNK_BYTES]
            writer.send(topics.blobs, key=key, value=chunk, partition=home, on_ack=partial(note, offsets))
        writer.flush(60)
        hints.append(ChunkHint(name, home, min(offsets), max(offsets)))
        entries.append(FileEntry(path, len(data), name))
    writer.close()
    manifest = Manifest("r", "m", 1, 0, "me", "", tuple(entries), CHUNK_BYTES, Signature((), ()), 8, {"": 17})
    return VersionRecord(manifest, tuple(hints), 1)


def contents(view: Path) -> dict[str, bytes]:
    return {str(path.relative_to(view)): path.read_bytes() for path in sorted(view.rglob("*")) if path.is_file()}


def test_a_version_comes_by_its_hints(log: Log, topics: Topics, cache: Cache) -> None:
    assert contents(Fetcher(log, topics, cache).fetch(publish(log, topics))) == FILES


@pytest.mark.parametrize("shift", [-3, 2, 1_000_000])
def test_f07_a_version_comes_by_key_when_its_hints_lie(log: Log, topics: Topics, cache: Cache, shift: int) -> None:
    record = publish(log, topics)
    moved = tuple(
        replace(hint, first_offset=hint.first_offset + shift, last_offset=hint.last_offset + shift)
        for hint in record.hints
    )
    assert contents(Fetcher(log, topics, cache).fetch(replace(record, hints=moved))) == FILES


def test_f07_chunks_that_are_gone_are_named(log: Log, topics: Topics, cache: Cache) -> None:
    record = publish(log, topics)
    lost = FileEntry("tensors/2.bin", CHUNK_BYTES * 2, digest.of_bytes(b"never"))
    manifest = replace(record.manifest, files=(*record.manifest.files, lost))
    with pytest.raises(IntegrityError, match=r"2 of 2 chunks of file 'tensors/2\.bin' are missing"):
        Fetcher(log, topics, cache).fetch(replace(record, manifest=manifest))
    assert list((cache.root / "views").glob("*/*")) == []
