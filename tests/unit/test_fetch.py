"""Versions come from the log whole, wherever their chunks lie, once a host; what is damaged is refused by name."""

from __future__ import annotations

import contextlib
import errno
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcast import digest
from modelcast.blobs import chunk_count
from modelcast.errors import BrokerError, CacheError, IntegrityError, StructureError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.log import LogReader
from modelcast.records import ChunkHint, FileEntry, Manifest, Signature
from modelcast.registry.image import VersionRecord
from modelcast.testing.memory import MemoryLog
from modelcast.topics import ChunkKey, Topics, blob_partition

PARTITIONS = 3
CHUNK_BYTES = 1000
TOPICS = Topics("test")

FILES = {
    "model.onnx": Random(1).randbytes(3_500),
    "tensors/0.bin": Random(2).randbytes(10_000),
    "tensors/1.bin": Random(3).randbytes(1),
    "examples.npz": b"",
}


@dataclass
class Repository:
    """A blobs topic on an in-memory log, and what a publisher does with it."""

    log: MemoryLog = field(default_factory=MemoryLog)

    def __post_init__(self) -> None:
        for spec in TOPICS.specs(blob_partitions=PARTITIONS, replication_factor=1):
            self.log.create(spec)
        self.writer = self.log.writer()

    def publish(self, files: dict[str, bytes] = FILES, *, model: str = "fraud", hints: bool = True) -> VersionRecord:
        found = tuple(self.upload(model, data) for data in files.values())
        return self.record(files, model=model, hints=found if hints else ())

    def record(
        self, files: dict[str, bytes] = FILES, *, model: str = "fraud", hints: Iterable[ChunkHint | None] = ()
    ) -> VersionRecord:
        entries = tuple(FileEntry(path, len(data), digest.of_bytes(data)) for path, data in sorted(files.items()))
        manifest = Manifest("r", model, 1, 0, "me", "", entries, CHUNK_BYTES, Signature((), ()), 8, {"": 17})
        return VersionRecord(manifest, tuple(hint for hint in hints if hint), 1)

    def upload(self, model: str, data: bytes) -> ChunkHint | None:
        name, count = digest.of_bytes(data), chunk_count(len(data), CHUNK_BYTES)
        offsets = [self.send(model, name, i, data[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]) for i in range(count)]
        return ChunkHint(name, self.home(model, name), offsets[0], offsets[-1]) if offsets else None

    def send(self, model: str, name: str, index: int, chunk: bytes | None, *, chunk_bytes: int = CHUNK_BYTES) -> int:
        offsets: list[int] = []
        key = ChunkKey(model, name, chunk_bytes, index).encode()
        home = self.home(model, name)
        self.writer.send(TOPICS.blobs, key=key, value=chunk, partition=home, on_ack=lambda _, at: offsets.append(at))
        self.writer.flush(5)
        return offsets[0]

    @staticmethod
    def home(model: str, name: str) -> int:
        return blob_partition(model, name, PARTITIONS)


@pytest.fixture
def repository() -> Repository:
    return Repository()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache")
    yield cache
    cache.close()


class Counting:
    """A log that counts the readers opened and the records they hand out."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.readers = 0
        self.records = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def reader(self, *args: object, **kwargs: object) -> LogReader:
        self.readers += 1
        reader = self._log.reader(*args, **kwargs)
        poll = reader.poll

        def counted(timeout_s: float) -> object:
            records = poll(timeout_s)
            self.records += len(records)
            return records

        reader.poll = counted
        return reader


def contents(view: Path) -> dict[str, bytes]:
    return {str(path.relative_to(view)): path.read_bytes() for path in sorted(view.rglob("*")) if path.is_file()}


def chunks(data: bytes) -> list[bytes]:
    return [data[i : i + CHUNK_BYTES] for i in range(0, len(data), CHUNK_BYTES)]


@pytest.mark.parametrize("hints", [True, False])
def test_a_version_comes_whole_by_hints_or_without(repository: Repository, cache: Cache, hints: bool) -> None:
    seen: list[tuple[int, int]] = []
    record = repository.publish(hints=hints)
    view = Fetcher(repository.log, TOPICS, cache).fetch(record, lambda done, total: seen.append((done, total)))
    assert contents(view) == FILES
    assert seen[-1] == (13_501, 13_501)
    assert sorted(seen) == seen


def test_only_missing_files_travel(repository: Repository, cache: Cache) -> None:
    log = Counting(repository.log)
    fetcher = Fetcher(log, TOPICS, cache)
    fetcher.fetch(repository.publish())
    assert log.readers == 1
    fetcher.fetch(repository.publish())
    assert log.readers == 1
    tuned = {**FILES, "tensors/1.bin": b"tuned"}
    before = log.records
    assert contents(fetcher.fetch(repository.publish(tuned))) == tuned
    assert log.records - before < 3


def test_f07_stale_hints_fall_back_to_a_scan_by_key(repository: Repository, cache: Cache) -> None:
    record = repository.publish()
    graph, large, small = record.hints
    stale = (
        replace(graph, first_offset=graph.first_offset + 1),  # its first chunk lies before
        replace(large, partition=(large.partition + 1) % PARTITIONS, last_offset=10**12),
        replace(small, first_offset=900, last_offset=901),  # past the end
        replace(small, partition=PARTITIONS),
    )
    log = Counting(repository.log)
    assert contents(Fetcher(log, TOPICS, cache).fetch(replace(record, hints=stale))) == FILES
    assert log.readers == 2


def test_of_many_hints_of_a_file_one_is_followed(repository: Repository, cache: Cache) -> None:
    files = {"tensors/0.bin": FILES["tensors/0.bin"]}
    name = digest.of_bytes(files["tensors/0.bin"])
    home = repository.home("fraud", name)
    for index in range(2_000):
        repository.send("fraud", name, index, b"other chunk size", chunk_bytes=16)
    record = repository.publish(files)
    scattered = tuple(ChunkHint(name, home, at, at) for at in range(0, 2_000, 100))
    log = Counting(repository.log)
    view = Fetcher(log, TOPICS, cache).fetch(replace(record, hints=(*scattered, *record.hints)))
    assert contents(view) == files
    assert (log.readers, log.records) == (1, len(chunks(files["tensors/0.bin"])))


def test_f06_chunks_out_of_order_doubled_and_deleted_in_between_are_taken(repository: Repository, cache: Cache) -> None:
    data = FILES["tensors/0.bin"]
    name = digest.of_bytes(data)
    repository.send("fraud", name, 3, b"old" + bytes(CHUNK_BYTES - 3))
    repository.send("fraud", name, 4, None)
    for index in (*reversed(range(10)), 0, 3, 3):
        repository.send("fraud", name, index, chunks(data)[index])
        repository.send("fraud", name, index, b"other chunk size", chunk_bytes=16)
        repository.send("other", name, index, b"of another model")
    view = Fetcher(repository.log, TOPICS, cache).fetch(repository.record({"tensors/0.bin": data}))
    assert contents(view) == {"tensors/0.bin": data}


def test_a_chunk_sent_again_mends_one_that_was_damaged(repository: Repository, cache: Cache) -> None:
    data = FILES["tensors/0.bin"]
    name = digest.of_bytes(data)
    bad = [bytes(CHUNK_BYTES), b"short", *chunks(data)[2:]]
    offsets = [repository.send("fraud", name, index, chunk) for index, chunk in enumerate(bad)]
    hint = ChunkHint(name, repository.home("fraud", name), offsets[0], offsets[-1])
    for index in (0, 1):
        repository.send("fraud", name, index, chunks(data)[index])
    record = repository.record({"tensors/0.bin": data}, hints=[hint])
    assert contents(Fetcher(repository.log, TOPICS, cache).fetch(record)) == {"tensors/0.bin": data}


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_f06_damage_is_refused_with_file_and_chunk_and_leaves_nothing(cache: Cache, data: st.DataObject) -> None:
    repository = Repository()
    content = FILES["tensors/0.bin"]
    name, pieces = digest.of_bytes(content), chunks(content)
    index = data.draw(st.integers(0, len(pieces) - 1))
    kind = data.draw(st.sampled_from(["flipped", "cut", "missing", "exchanged"]))
    sent: list[tuple[int, bytes]] = list(enumerate(pieces))
    match kind:
        case "flipped":
            at = data.draw(st.integers(0, CHUNK_BYTES - 1))
            damaged = bytearray(pieces[index])
            damaged[at] ^= 1
            sent[index] = (index, bytes(damaged))
            expected = "'tensors/0.bin' has digest"
        case "cut":
            sent[index] = (index, pieces[index][:-1])
            expected = f"chunk {index} of file 'tensors/0.bin' has 999 bytes"
        case "missing":
            del sent[index]
            expected = f"'tensors/0.bin' are missing, the first is chunk {index}"
        case _:
            other = (index + 1) % len(pieces)
            sent[index], sent[other] = (index, pieces[other]), (other, pieces[index])
            expected = "'tensors/0.bin' has digest"
    offsets = [repository.send("fraud", name, i, chunk) for i, chunk in sent]
    hint = ChunkHint(name, repository.home("fraud", name), offsets[0], offsets[-1])
    record = repository.record({"tensors/0.bin": content}, hints=[hint] if data.draw(st.booleans()) else [])
    with pytest.raises(IntegrityError, match=expected):
        Fetcher(repository.log, TOPICS, cache).fetch(record)
    assert list((cache.root / "blobs" / "sha256").iterdir()) == []
    assert list((cache.root / "views").glob("*/*")) == []


def test_f44_what_others_put_in_a_files_place_during_its_fetch_is_not_loaded(
    repository: Repository, cache: Cache
) -> None:
    record = repository.publish({f"tensors/{number}": Random(number).randbytes(5_000) for number in range(4)})

    def meddle(done: int, total: int) -> None:
        for path in (cache.root / "blobs" / "sha256").iterdir():
            path.unlink()
            path.write_bytes(bytes(5_000))

    view = Fetcher(repository.log, TOPICS, cache).fetch(record, meddle)
    assert all(digest.of_file(view / entry.path) == entry.digest for entry in record.manifest.files)
    cache.release(view)
    view = Fetcher(repository.log, TOPICS, cache).fetch(record)
    assert all(digest.of_file(view / entry.path) == entry.digest for entry in record.manifest.files)


def test_f13_files_of_two_versions_do_not_mix(repository: Repository, cache: Cache) -> None:
    record = repository.publish()
    graph, *others = sorted(record.manifest.files, key=lambda entry: entry.path != "model.onnx")
    mixed = replace(graph, digest=others[1].digest)
    with pytest.raises(IntegrityError):
        Fetcher(repository.log, TOPICS, cache).fetch(
            replace(record, manifest=replace(record.manifest, files=(mixed, *others)))
        )


def test_f38_damaged_cache_files_are_fetched_again(repository: Repository, cache: Cache) -> None:
    fetcher = Fetcher(repository.log, TOPICS, cache)
    record = repository.publish()
    cache.release(fetcher.fetch(record))
    for path in (cache.root / "blobs" / "sha256").iterdir():
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[::-1] + b"x")
    assert contents(fetcher.fetch(record)) == FILES


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a file system that has none."""

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "hardlink_to", refuse)


def test_without_links_files_are_copied(repository: Repository, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    no_links(monkeypatch)
    fetcher = Fetcher(repository.log, TOPICS, cache)
    record = repository.publish()
    first, second = fetcher.fetch(record), fetcher.fetch(record)
    assert contents(first) == contents(second) == FILES
    cache.release(first)
    assert contents(second) == FILES
    assert all(cache.has(entry) for entry in record.manifest.files)


def meddle(cache: Cache, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]) -> None:
    """Another process gets at the files between each fetch and its view, where no link can hold them."""
    view = cache.view
    no_links(monkeypatch)

    def late(*args: object, **kwargs: object) -> tuple[Path, list[FileEntry]]:
        for path in (cache.root / "blobs" / "sha256").iterdir():
            spoil(path)
        return view(*args, **kwargs)

    monkeypatch.setattr(cache, "view", late)


def test_f08_files_trimmed_before_they_are_used_say_nothing_of_the_model(
    repository: Repository, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    meddle(cache, monkeypatch, Path.unlink)
    with pytest.raises(CacheError, match="was removed from the model cache .* by another process") as failed:
        Fetcher(repository.log, TOPICS, cache).fetch(repository.publish())
    assert failed.value.retriable


def test_f38_files_that_are_damaged_each_time_say_nothing_of_the_model(
    repository: Repository, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damage(path: Path) -> None:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes() + b"x")

    meddle(cache, monkeypatch, damage)
    with pytest.raises(CacheError, match="was damaged in the model cache .* each time it was fetched") as failed:
        Fetcher(repository.log, TOPICS, cache).fetch(repository.publish())
    assert failed.value.retriable


def test_f08_a_version_larger_than_the_disk_is_refused_before_anything_is_written(
    repository: Repository, cache: Cache
) -> None:
    entry = FileEntry("model.onnx", 1 << 40, digest.of_bytes(b""))
    record = repository.record({})
    huge = replace(record.manifest, files=(entry,), chunk_bytes=1 << 19)
    with pytest.raises(CacheError, match="1099511627776 bytes"):
        Fetcher(repository.log, TOPICS, cache).fetch(replace(record, manifest=huge))


@pytest.mark.parametrize("paths", [("../x",), ("/x",), ("a", "a/b")])
def test_f17_paths_are_checked_before_anything_is_fetched(
    repository: Repository, cache: Cache, paths: tuple[str, ...]
) -> None:
    log = Counting(repository.log)
    with pytest.raises(StructureError):
        Fetcher(log, TOPICS, cache).fetch(repository.record(dict.fromkeys(paths, b"x")))
    assert log.readers == 0


def test_a_topic_from_which_nothing_comes_is_reported(repository: Repository, cache: Cache) -> None:
    class Silent(Counting):
        def reader(self, *args: object, **kwargs: object) -> LogReader:
            reader = super().reader(*args, **kwargs)
            reader.poll = lambda timeout_s: []
            return reader

    record = repository.publish()
    ticks = iter(range(1000))
    fetcher = Fetcher(Silent(repository.log), TOPICS, cache, stall_s=5, clock=lambda: float(next(ticks)))
    with pytest.raises(BrokerError, match=r"nothing came of topic 'test\.blobs' for 5 s, fetching fraud@1"):
        fetcher.fetch(record)


def test_a_host_fetches_a_version_once(repository: Repository, tmp_path: Path) -> None:
    log = Counting(repository.log)
    record = repository.publish()
    ready = threading.Barrier(4)
    caches = [Cache(tmp_path / "cache") for _ in range(4)]  # as four processes have

    def fetch(cache: Cache) -> dict[str, bytes]:
        ready.wait(60)
        return contents(Fetcher(log, TOPICS, cache).fetch(record))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(fetch, caches)) == [FILES] * 4
    assert log.readers == 1
    for cache in caches:
        cache.close()


def test_a_restart_with_a_warm_cache_asks_nothing_of_the_log(repository: Repository, tmp_path: Path) -> None:
    record = repository.publish()
    first = Cache(tmp_path / "cache")
    Fetcher(repository.log, TOPICS, first).fetch(record)
    first.close()

    class Gone:
        def __getattr__(self, name: str) -> object:
            raise AssertionError(f"the log was asked for {name}")

    second = Cache(tmp_path / "cache")
    assert contents(Fetcher(Gone(), TOPICS, second).fetch(record)) == FILES
    second.close()


def test_two_models_that_share_a_file_do_not_disturb_each_others_fetch(repository: Repository, tmp_path: Path) -> None:
    shared = FILES["tensors/0.bin"]
    hint = repository.upload("churn", shared)
    assert hint is not None
    fraud = repository.record({"tensors/0.bin": shared, "head": b"fraud"})
    repository.upload("fraud", b"fraud")
    repository.upload("fraud", shared)
    churn = replace(repository.record({"tensors/0.bin": shared}), hints=(hint,))
    churn = replace(churn, manifest=replace(churn.manifest, model="churn"))
    first, second = (Cache(tmp_path / "cache") for _ in range(2))  # as two processes have
    other: list[dict[str, bytes]] = []

    def meanwhile(done: int, total: int) -> None:
        if not other and len(shared) // 2 < done < len(shared):
            other.append(contents(Fetcher(repository.log, TOPICS, second).fetch(churn)))

    assert contents(Fetcher(repository.log, TOPICS, first).fetch(fraud, meanwhile)) == {
        "tensors/0.bin": shared,
        "head": b"fraud",
    }
    assert other == [{"tensors/0.bin": shared}]
    first.close()
    second.close()


def test_a_fetch_that_breaks_off_keeps_the_files_it_had_whole(repository: Repository, cache: Cache) -> None:
    class BrokeOffError(Exception):
        pass

    files = {f"tensors/{number}.bin": Random(number).randbytes(9_500) for number in range(8)}
    record = repository.publish(files)
    total = sum(map(len, files.values()))

    def break_off(done: int, total: int) -> None:
        if done > 50_000 and [entry for entry in record.manifest.files if cache.has(entry)]:
            raise BrokeOffError

    with pytest.raises(BrokeOffError):
        Fetcher(repository.log, TOPICS, cache).fetch(record, break_off)
    kept = sum(entry.size for entry in record.manifest.files if cache.has(entry))
    assert 0 < kept < total
    seen: list[tuple[int, int]] = []
    view = Fetcher(repository.log, TOPICS, cache).fetch(record, lambda done, total: seen.append((done, total)))
    assert contents(view) == files
    assert seen[-1] == (total - kept, total - kept)


def test_f44_a_chunk_that_comes_when_its_file_is_whole_is_checked_with_it(repository: Repository, cache: Cache) -> None:
    """It was written over a good one: what is kept must be what was hashed."""
    data, name = FILES["tensors/0.bin"], digest.of_bytes(FILES["tensors/0.bin"])
    for index, chunk in enumerate(chunks(data)):
        repository.send("fraud", name, index, chunk)
    repository.send("fraud", name, 2, bytes(CHUNK_BYTES))
    record = repository.record({"tensors/0.bin": data, "tensors/1.bin": FILES["tensors/1.bin"]})
    repository.upload("fraud", FILES["tensors/1.bin"])
    with contextlib.suppress(IntegrityError):  # as compaction has it, the last one counts
        view = Fetcher(repository.log, TOPICS, cache).fetch(record)
        assert contents(view)["tensors/0.bin"] == data
    kept = [path for path in (cache.root / "blobs" / "sha256").iterdir() if path.name == digest.hex_part(name)]
    assert all(path.read_bytes() == data for path in kept)


def test_the_cache_is_trimmed_after_a_fetch_and_when_a_process_begins(repository: Repository, tmp_path: Path) -> None:
    versions = [repository.publish({"model.onnx": bytes([i]) * 5_000}) for i in range(3)]

    def cached() -> list[bool]:
        return [cache.has(record.manifest.files[0]) for record in versions]

    cache = Cache(tmp_path / "cache", limit=10_000)
    fetcher = Fetcher(repository.log, TOPICS, cache)
    for record in versions:
        cache.release(fetcher.fetch(record))
    assert cached() == [False, True, True]
    cache.close()

    cache = Cache(tmp_path / "cache", limit=5_000)  # restarted with a smaller limit, and nothing to fetch
    Fetcher(repository.log, TOPICS, cache).fetch(versions[1])
    assert cached() == [False, True, False]
    cache.close()
