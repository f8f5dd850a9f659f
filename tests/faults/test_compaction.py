"""Compaction takes chunks away while versions are fetched: what is listed comes whole, all else is a clear error."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelcast.errors import IntegrityError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.kafka import KafkaLog
from modelcast.log import BEGINNING, Log, TopicSpec
from modelcast.publisher.prepare import PreparedModel
from modelcast.publisher.removal import Remover
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.image import VersionRecord
from modelcast.registry.repository import init
from modelcast.scan import scan
from modelcast.topics import Topics
from tests.brokers import Broker
from tests.compacting import init_compacting, standing, until_compacted
from tests.publishing import image
from tests.unit.prepared import prepared

MODEL = "fraud"
# Above all that a reader holds ahead: 32 MiB in the client, 8 MiB handed out, 8 MiB on the way to the disk.
LARGE_BYTES = 64 << 20
SMALL_BYTES = 3 << 20
# Long enough for whoever reads a tombstone's chunk to read the tombstone too.
TOMBSTONES_KEPT_MS = 5_000


def model(folder: Path, size: int, seed: int = 1) -> PreparedModel:
    return prepared(folder, {"model.onnx": b"graph %d" % seed, "tensors/w": random.Random(seed).randbytes(size)})


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def log(broker: Broker) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        yield log


@pytest.fixture
def topics(log: KafkaLog, prefix: str) -> Topics:
    topics = Topics(prefix)
    init_compacting(log, topics, tombstones_kept_ms=TOMBSTONES_KEPT_MS)
    return topics


@pytest.fixture
def registry(log: KafkaLog, topics: Topics) -> RegistryWriter:
    return RegistryWriter(log, topics)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with closing(Cache(tmp_path / "cache")) as cache:
        yield cache


def record_of(log: Log, topics: Topics, version: int) -> VersionRecord:
    return image(log, topics).models[MODEL].version(version)


def once(action: Callable[[], object]) -> Callable[[int, int], None]:
    """Holds a fetch up at its first chunk, for as long as `action` takes."""
    actions = iter([action])

    def progress(_: int, __: int) -> None:
        for act in actions:
            act()

    return progress


def without(old: set[tuple[int, int, bytes]]) -> Callable[[set[tuple[int, int, bytes]]], bool]:
    return lambda left: not left & old


def test_f07_chunks_moved_by_compaction_in_mid_fetch_are_found_by_key(
    log: KafkaLog, topics: Topics, registry: RegistryWriter, cache: Cache, tmp_path: Path
) -> None:
    made = model(tmp_path / "a", LARGE_BYTES)
    registry.publish(MODEL, made, release=True)
    old = standing(log, topics.blobs)

    def send_again_and_compact() -> None:
        registry.publish(MODEL, made, release=False, resend=True)
        until_compacted(log, topics.blobs, without(old))

    view = Fetcher(log, topics, cache).fetch(record_of(log, topics, 1), once(send_again_and_compact))
    assert contents(view) == contents(made.directory)


def test_f07_a_version_deleted_and_compacted_in_mid_fetch_is_a_clear_error_and_never_half_a_file(
    log: KafkaLog, topics: Topics, registry: RegistryWriter, cache: Cache, tmp_path: Path
) -> None:
    registry.publish(MODEL, model(tmp_path / "a", LARGE_BYTES), release=False)
    record = record_of(log, topics, 1)
    remover = Remover(registry.holder)

    def delete_and_compact() -> None:
        remover.delete(MODEL, 1)
        until_compacted(log, topics.blobs, lambda left: not left)

    with pytest.raises(IntegrityError, match=r"chunks of file 'tensors/w' are missing, the first is chunk \d+"):
        Fetcher(log, topics, cache).fetch(record, once(delete_and_compact))
    assert not any(cache.has(file) for file in record.manifest.files if file.path == "tensors/w")
    assert list((cache.root / "views").glob("*/*")) == []


def test_f07_a_deleted_version_is_whole_for_who_is_in_mid_fetch_until_compaction_comes(
    log: KafkaLog, prefix: str, cache: Cache, tmp_path: Path
) -> None:
    topics = Topics(f"{prefix}-slow")
    init(log, topics, blob_partitions=2)  # segments of a gigabyte, and no cleaner before half of it is stale
    registry = RegistryWriter(log, topics)
    made = model(tmp_path / "a", SMALL_BYTES)
    registry.publish(MODEL, made, release=False)
    record = record_of(log, topics, 1)
    view = Fetcher(log, topics, cache).fetch(record, once(lambda: Remover(registry.holder).delete(MODEL, 1)))
    assert contents(view) == contents(made.directory)


def test_f07_hints_that_compaction_made_stale_lead_to_a_search_by_key(
    log: KafkaLog, topics: Topics, registry: RegistryWriter, cache: Cache, tmp_path: Path
) -> None:
    made = model(tmp_path / "a", SMALL_BYTES)
    registry.publish(MODEL, made, release=True)
    old = standing(log, topics.blobs)
    registry.publish(MODEL, made, release=False, resend=True)
    until_compacted(log, topics.blobs, without(old))
    stale = record_of(log, topics, 1)
    assert not {(hint.partition, hint.first_offset) for hint in stale.hints} & {
        (partition, offset) for partition, offset, _ in standing(log, topics.blobs)
    }
    assert contents(Fetcher(log, topics, cache).fetch(stale)) == contents(made.directory)


def test_f07_a_mirror_with_other_offsets_serves_what_the_original_does(
    log: KafkaLog, topics: Topics, registry: RegistryWriter, cache: Cache, tmp_path: Path
) -> None:
    made = model(tmp_path / "a", SMALL_BYTES)
    registry.publish(MODEL, made, release=True)
    mirror = Topics(f"{topics.prefix}-mirror")
    for original, copy in ((topics.registry, mirror.registry), (topics.blobs, mirror.blobs)):
        copy_to(log, original, copy)
    record = record_of(log, mirror, 1)
    assert record == replace_offset(record_of(log, topics, 1), record.offset)  # hints and all
    assert contents(Fetcher(log, mirror, cache).fetch(record)) == contents(made.directory)
    # A publication on the mirror counts on what is there, and says where it is not.
    assert RegistryWriter(log, mirror).publish(MODEL, made, release=False).bytes_sent == 0


def replace_offset(record: VersionRecord, offset: int) -> VersionRecord:
    return VersionRecord(record.manifest, record.hints, offset)


def copy_to(log: Log, original: str, copy: str) -> None:
    """As a mirroring tool does: the same partitions, keys and values, behind what was there before."""
    partitions = log.topics()[original]
    log.create(TopicSpec(copy, partitions, 1, {"cleanup.policy": "compact"}))
    ends = log.end_offsets(original, committed=False)
    with closing(log.writer()) as writer:
        for partition in range(partitions):
            for index in range(100):
                writer.send(copy, key=b"before %d" % index, value=None, partition=partition)
        for record in scan(log, original, dict.fromkeys(ends, BEGINNING), ends, timeout_s=60):
            writer.send(copy, key=record.key, value=record.value, partition=record.partition)
        writer.flush(60)
