"""Deleting and collecting: what a version lists is never taken, what nothing lists is, and publishers notice."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcast import codec, digest
from modelcast.errors import BrokerError, FencedError, OutcomeUnknownError, UsageError, VersionNotFoundError
from modelcast.files.store import FileStore
from modelcast.log import BEGINNING
from modelcast.publisher import removal
from modelcast.publisher.change import Author, Record, Tombstone
from modelcast.publisher.hold import Holder, ModelHold
from modelcast.publisher.prepare import PreparedModel
from modelcast.publisher.removal import Garbage, Remover
from modelcast.publisher.session import RegistryWriter
from modelcast.publisher.upload import CHUNK_BYTES
from modelcast.records import FileEntry, Withdrawn
from modelcast.registry.image import RegistryImage, VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import init
from modelcast.scan import scan
from modelcast.testing.memory import MemoryLog
from modelcast.topics import ChunkKey, Topics, blob_partition

from .prepared import prepared
from .registry_records import manifest as a_manifest
from .registry_records import withdrawn as a_withdrawal

TOPICS = Topics("test")
BACKBONE = random.Random(1).randbytes(3 * CHUNK_BYTES + 17)
NOW_S = 1_700_000_000.0
AUTHOR = Author("tester", lambda: int(NOW_S * 1000) + 1)


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    with MemoryLog(clock=lambda: NOW_S) as log:
        init(log, TOPICS, blob_partitions=2)
        yield log


@pytest.fixture
def registry(log: MemoryLog) -> RegistryWriter:
    return RegistryWriter(log, TOPICS, author=AUTHOR, sleep=lambda _: None)


@pytest.fixture
def remover(registry: RegistryWriter) -> Remover:
    return Remover(registry.holder)


@pytest.fixture
def model(tmp_path: Path) -> PreparedModel:
    return prepared(tmp_path / "a", {"model.onnx": b"graph", "tensors/w": BACKBONE})


def image(log: MemoryLog) -> RegistryImage:
    with closing(RegistryReader(log, TOPICS)) as reader:
        return reader.catch_up(5)


def lying(log: MemoryLog) -> set[bytes]:
    """Keys that compaction would keep."""
    ends = log.end_offsets(TOPICS.blobs, committed=False)
    values: dict[bytes, bytes | None] = {}
    for record in scan(log, TOPICS.blobs, dict.fromkeys(ends, BEGINNING), ends, timeout_s=5):
        assert record.key is not None
        values[record.key] = record.value
    return {key for key, value in values.items() if value is not None}


def keys(model: str, files: tuple[FileEntry, ...]) -> set[bytes]:
    return {
        ChunkKey(model, file.digest, CHUNK_BYTES, index).encode()
        for file in files
        for index in range(-(-file.size // CHUNK_BYTES))
    }


def content(log: MemoryLog) -> tuple[Mapping[int, int], Mapping[int, int]]:
    """Changes with everything that is written."""
    registry, blobs = (log.end_offsets(topic, committed=False) for topic in (TOPICS.registry, TOPICS.blobs))
    return registry, blobs


class BrokenOffError(Exception):
    """Stands for the end of a process."""


def break_off(registry: RegistryWriter, model: str, content: PreparedModel) -> None:
    """An upload of everything that never became a version."""

    def stop(_: str, done: int, total: int) -> None:
        if done == total:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        registry.publish(model, content, release=False, progress=stop)


def test_a_deleted_version_says_why_and_its_number_is_never_used_again(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel
) -> None:
    registry.publish("fraud", model, release=False)
    removed = remover.delete("fraud", 1, message="trained on the wrong data")
    assert (str(removed.id), removed.chunks, removed.bytes) == ("fraud@1", 5, len(BACKBONE) + 5)
    assert lying(log) == set()
    with pytest.raises(VersionNotFoundError, match="fraud@1 was withdrawn: trained on the wrong data"):
        registry.release("fraud", 1)
    again = registry.publish("fraud", model, release=False)
    assert again.manifest.version == 2
    assert again.bytes_sent == again.bytes_total  # a withdrawn version's chunks are not counted on
    assert lying(log) == keys("fraud", model.files)


def test_deleting_again_says_so_and_writes_nothing(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel
) -> None:
    registry.publish("fraud", model, release=False)
    first = remover.delete("fraud", 1, message="first")
    before = content(log)
    second = remover.delete("fraud", 1, message="second")
    assert (first.repeated, second.repeated) == (False, True)
    assert second.record == first.record
    assert content(log) == before


def test_files_that_another_version_lists_stay(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel, tmp_path: Path
) -> None:
    head = prepared(tmp_path / "b", {"model.onnx": b"another graph", "tensors/w": BACKBONE})
    registry.publish("fraud", model, release=False)
    registry.publish("fraud", head, release=False)
    registry.publish("spam", model, release=False)
    assert remover.delete("fraud", 1).bytes == 5
    assert lying(log) == keys("fraud", head.files) | keys("spam", model.files)


def test_the_live_version_is_never_deleted(registry: RegistryWriter, remover: Remover, model: PreparedModel) -> None:
    registry.publish("fraud", model, release=True)
    for force in (False, True):
        with pytest.raises(UsageError, match="fraud@1 is live") as raised:
            remover.delete("fraud", 1, force=force)
        assert "modelcast release fraud" in str(raised.value.hint)


def test_a_version_that_was_live_is_deleted_by_force_only_and_no_rollback_goes_there(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel
) -> None:
    for _ in range(3):
        registry.publish("fraud", model, release=True)
    with pytest.raises(UsageError, match="fraud@2 was live once") as raised:
        remover.delete("fraud", 2)
    assert raised.value.hint == "Delete it all the same with: modelcast delete fraud@2 --force"
    remover.delete("fraud", 2, force=True)
    assert registry.rollback("fraud").version == 1
    assert lying(log) == keys("fraud", model.files)


def test_a_kill_between_two_transactions_leaves_garbage_and_no_half_version(
    log: MemoryLog,
    registry: RegistryWriter,
    remover: Remover,
    model: PreparedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(removal, "TOMBSTONES_PER_TRANSACTION", 2)
    registry.publish("fraud", model, release=False)
    commit, commits = ModelHold.commit, iter(range(9))

    def die_after_the_first(hold: ModelHold, *args: object) -> None:
        if next(commits):
            raise BrokenOffError
        commit(hold, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(ModelHold, "commit", die_after_the_first)
        with pytest.raises(BrokenOffError):
            remover.delete("fraud", 1)
    assert isinstance(image(log).models["fraud"].versions[1], Withdrawn)
    assert len(lying(log)) == 3
    assert remover.collect(grace_s=0).chunks == 3
    assert lying(log) == set()


@pytest.mark.parametrize("failure", [FencedError, OutcomeUnknownError])
@pytest.mark.parametrize("landed", [False, True])
def test_a_deletion_that_was_not_answered_is_done_once(
    log: MemoryLog,
    registry: RegistryWriter,
    remover: Remover,
    model: PreparedModel,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[Exception],
    landed: bool,
) -> None:
    registry.publish("fraud", model, release=False)
    commit, fails = ModelHold.commit, iter([True])

    def unanswered(hold: ModelHold, *args: object) -> None:
        failing = next(fails, False)
        if landed or not failing:
            commit(hold, *args)  # type: ignore[arg-type]
        if failing:
            raise failure("no answer")

    monkeypatch.setattr(ModelHold, "commit", unanswered)
    removed = remover.delete("fraud", 1, message="reason")
    assert not removed.repeated
    assert image(log).models["fraud"].versions[1] == removed.record
    assert lying(log) == set()


def test_a_deletion_that_loses_the_model_half_way_leaves_the_rest_to_gc(
    log: MemoryLog,
    registry: RegistryWriter,
    remover: Remover,
    model: PreparedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(removal, "TOMBSTONES_PER_TRANSACTION", 2)
    registry.publish("fraud", model, release=False)
    commit = ModelHold.commit

    def commit_and_lose(hold: ModelHold, *args: object) -> None:
        commit(hold, *args)  # type: ignore[arg-type]
        log.transactional_writer(TOPICS.publisher_id("fraud"), timeout_ms=10_000).close()

    with monkeypatch.context() as patch:
        patch.setattr(ModelHold, "commit", commit_and_lose)
        removed = remover.delete("fraud", 1)
    assert removed.left
    assert (removed.chunks, len(lying(log))) == (2, 3)
    assert remover.collect(grace_s=0).chunks == 3


def test_a_broker_that_leaves_after_the_withdrawal_leaves_the_rest_to_gc(
    registry: RegistryWriter, remover: Remover, model: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "TOMBSTONES_PER_TRANSACTION", 2)
    registry.publish("fraud", model, release=False)
    commit = ModelHold.commit

    def only_the_first(hold: ModelHold, records: Sequence[Record], tombstones: Sequence[Tombstone]) -> None:
        if not records:
            raise BrokerError("gone")
        commit(hold, records, tombstones)

    with monkeypatch.context() as patch:
        patch.setattr(ModelHold, "commit", only_the_first)
        removed = remover.delete("fraud", 1)
    assert (removed.left, removed.repeated, removed.chunks) == (True, False, 2)
    assert remover.collect(grace_s=0).chunks == 3


def test_a_publisher_that_counts_on_a_file_that_is_deleted_meanwhile_sends_it_again(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel, tmp_path: Path
) -> None:
    registry.publish("fraud", model, release=False)
    head = prepared(tmp_path / "b", {"model.onnx": b"another graph", "tensors/w": BACKBONE})
    deletions = iter([1])

    def delete_meanwhile(*_: object) -> None:
        for version in deletions:
            Remover(Holder(log, TOPICS)).delete("fraud", version)

    published = registry.publish("fraud", head, release=True, progress=delete_meanwhile)
    assert published.manifest.version == 2
    assert published.bytes_sent >= len(BACKBONE)
    assert keys("fraud", head.files) <= lying(log)


def test_an_upload_goes_on_through_any_number_of_rollbacks_and_sends_nothing_twice(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    for _ in range(3):
        registry.publish("fraud", prepared(tmp_path / "a", {"model.onnx": b"graph"}), release=True)
    rival = RegistryWriter(log, TOPICS, sleep=lambda _: None)
    fired = 0

    def roll_back(*_: object) -> None:
        nonlocal fired
        if fired < 6 * 4:  # with each chunk of the first upload, and of five attempts after it
            fired += 1
            rival.release("fraud", 1 + fired % 2)

    large = prepared(tmp_path / "b", {"tensors/w": BACKBONE})
    published = registry.publish("fraud", large, release=True, progress=roll_back)
    assert published.manifest.version == 4
    assert published.bytes_sent == len(BACKBONE)
    assert image(log).models["fraud"].champion == published.release


def test_gc_takes_what_uploads_left_and_nothing_that_a_version_lists(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel, tmp_path: Path
) -> None:
    registry.publish("fraud", model, release=False)
    break_off(registry, "fraud", prepared(tmp_path / "b", {"model.onnx": b"left", "tensors/w": BACKBONE}))
    break_off(registry, "never", prepared(tmp_path / "c", {"tensors/w": BACKBONE}))
    collected = remover.collect(grace_s=0)
    assert collected.models == (Garbage("fraud", 1, 4), Garbage("never", 4, len(BACKBONE)))
    assert (collected.chunks, collected.bytes) == (5, len(BACKBONE) + 4)
    assert lying(log) == keys("fraud", model.files)
    assert remover.collect(grace_s=0).models == ()


def test_a_dry_run_says_the_same_writes_nothing_and_fences_nobody(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel
) -> None:
    break_off(registry, "never", model)
    before = content(log)
    writer = log.transactional_writer(TOPICS.publisher_id("never"), timeout_ms=10_000)
    shown = remover.collect(grace_s=0, dry_run=True)
    writer.begin()  # raises if it was fenced
    writer.close()
    assert shown.dry_run
    assert content(log) == before
    assert shown.models == remover.collect(grace_s=0).models != ()


def test_what_is_younger_than_the_grace_period_stays_whole_files_at_a_time(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel
) -> None:
    break_off(registry, "never", model)
    assert remover.collect(grace_s=60).models == ()
    tensor = next(file for file in model.files if file.path == "tensors/w")
    key = ChunkKey("never", tensor.digest, CHUNK_BYTES, 0).encode()
    with closing(log.writer()) as writer:
        home = blob_partition("never", tensor.digest, 2)
        writer.send(TOPICS.blobs, key=key, value=b"x", partition=home, timestamp_ms=int(NOW_S * 1000) + 5_000)
        writer.flush(5)
    # The graph's chunk is old; of the tensor one chunk came lately, so somebody may be sending it.
    assert remover.collect(grace_s=0).models == (Garbage("never", 1, 5),)
    assert len(lying(log)) == 4


def test_gc_leaves_a_model_of_which_it_can_not_read_a_version(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel
) -> None:
    break_off(registry, "fraud", model)
    with closing(log.writer()) as writer:
        writer.send(TOPICS.registry, key=b"version/fraud/1", value=b"of a later release", partition=0)
        writer.flush(5)
    collected = remover.collect(grace_s=0)
    assert (collected.models, collected.unread) == ((), ("fraud",))
    assert lying(log) == keys("fraud", model.files)


def test_gc_keeps_what_any_record_of_a_number_lists_whoever_admits_it(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel, tmp_path: Path
) -> None:
    first = registry.publish("fraud", model, release=False).manifest
    second = prepared(tmp_path / "b", {"model.onnx": b"signed by somebody else"})
    break_off(registry, "fraud", second)
    rival = replace(first, files=second.files)
    foreign = a_withdrawal(1)  # of another repository: it withdraws nothing here
    with closing(log.writer()) as writer:
        for payload in (rival, foreign, a_manifest(7)):
            key = f"version/fraud/{payload.version}".encode()
            writer.send(TOPICS.registry, key=key, value=codec.encode_envelope(codec.seal(payload)), partition=0)
        writer.flush(5)
    assert remover.collect(grace_s=0).models == ()
    assert lying(log) == keys("fraud", model.files) | keys("fraud", second.files)


def test_gc_looks_again_once_nobody_else_can_change_the_model(
    log: MemoryLog,
    registry: RegistryWriter,
    remover: Remover,
    model: PreparedModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    break_off(registry, "fraud", model)
    holding = Holder.holding

    def publish_first(holder: Holder, *args: object, **kwargs: object) -> object:
        monkeypatch.setattr(Holder, "holding", holding)
        assert registry.publish("fraud", model, release=False).bytes_sent == 0
        return holding(holder, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Holder, "holding", publish_first)
    assert remover.collect(grace_s=0).models == ()
    assert lying(log) == keys("fraud", model.files)


def test_a_tombstone_of_an_aborted_transaction_takes_nothing_away(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel
) -> None:
    break_off(registry, "never", model)
    with closing(log.transactional_writer(TOPICS.publisher_id("never"), timeout_ms=10_000)) as writer:
        writer.begin()
        for file in model.files:
            key = ChunkKey("never", file.digest, CHUNK_BYTES, 0).encode()
            writer.send(TOPICS.blobs, key=key, value=None, partition=blob_partition("never", file.digest, 2))
        writer.abort()
    assert remover.collect(grace_s=0, dry_run=True).chunks == 5


def test_f42_gc_waits_for_another_models_open_transaction(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel
) -> None:
    break_off(registry, "never", model)
    other = log.transactional_writer(TOPICS.publisher_id("spam"), timeout_ms=10_000)
    other.begin()
    for partition in range(2):
        other.send(
            TOPICS.blobs, key=ChunkKey("spam", "sha256:" + "a" * 64, 1, 0).encode(), value=None, partition=partition
        )
    finished = threading.Timer(0.3, other.commit)
    finished.start()
    break_off(registry, "late", model)  # behind the open transaction, and seen all the same
    assert [garbage.model for garbage in remover.collect(grace_s=0).models] == ["late", "never"]
    finished.join()
    other.close()


def test_deleting_a_version_whose_files_lie_in_a_store_leaves_them_there_and_says_so(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    store = FileStore(f"file://{tmp_path}/store")
    registry.publish("fraud", model, release=False, store=store)
    break_off(registry, "fraud", model)  # the same content as chunks, which that version does not need
    assert remover.collect(grace_s=0).chunks == 5
    removed = remover.delete("fraud", 1)
    assert (removed.chunks, removed.left, removed.store) == (0, False, store.url)


def test_a_chunk_that_lies_elsewhere_than_in_its_home_is_sent_again(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    made = prepared(tmp_path / "b", {f"tensors/{n}": b"tensor %d" % n for n in range(8)})
    homes = {file.digest: blob_partition("fraud", file.digest, 2) for file in made.files}
    assert set(homes.values()) == {0, 1}

    def misplace(_: str, done: int, total: int) -> None:
        with closing(log.writer()) as writer:
            for file in made.files:
                key = ChunkKey("fraud", file.digest, CHUNK_BYTES, 0).encode()
                value = (made.directory / file.path).read_bytes()
                writer.send(TOPICS.blobs, key=key, value=value, partition=1 - homes[file.digest])
            writer.flush(5)
        raise BrokenOffError

    with pytest.raises(BrokenOffError):
        registry.publish("fraud", made, release=False, progress=misplace)
    assert registry.publish("fraud", made, release=False).bytes_sent >= made.files[0].size * 7


def test_f08_deleting_a_version_that_declares_a_billion_chunks_takes_no_time_and_leaves_them_to_gc(
    log: MemoryLog, registry: RegistryWriter, remover: Remover, model: PreparedModel
) -> None:
    first = registry.publish("fraud", model, release=False).manifest
    hostile = replace(first, version=2, chunk_bytes=1, files=(FileEntry("model.onnx", 1 << 30, "sha256:" + "a" * 64),))
    with closing(log.writer()) as writer:
        value = codec.encode_envelope(codec.seal(hostile))
        writer.send(TOPICS.registry, key=b"version/fraud/2", value=value, partition=0)
        writer.flush(5)
    removed = remover.delete("fraud", 2)
    assert (removed.chunks, removed.left) == (0, True)
    assert isinstance(image(log).models["fraud"].versions[2], Withdrawn)


def test_gc_tells_how_far_it_read(registry: RegistryWriter, remover: Remover, model: PreparedModel) -> None:
    break_off(registry, "never", model)
    told: list[tuple[int, int]] = []
    remover.collect(dry_run=True, progress=lambda done, total: told.append((done, total)))
    assert told[-1] == (5, 5)
    assert told == sorted(told)


def test_a_key_that_is_not_a_publishers_is_left_alone(log: MemoryLog, remover: Remover) -> None:
    strange = [b"", b"x", b"fraud/sha256:" + b"a" * 64 + b"/10/007", b"../sha256:" + b"a" * 64 + b"/10/0"]
    with closing(log.writer()) as writer:
        for key in strange:
            writer.send(TOPICS.blobs, key=key, value=b"v", partition=0)
        writer.flush(5)
    assert remover.collect(grace_s=0).models == ()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["publish", "release", "break", "delete", "gc"]), st.integers(0, 5))))
def test_whatever_is_done_versions_stay_whole_and_a_last_gc_leaves_only_them(steps: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder, MemoryLog(clock=lambda: NOW_S) as log:
        init(log, TOPICS, blob_partitions=2)
        registry = RegistryWriter(log, TOPICS, author=AUTHOR, sleep=lambda _: None)
        remover = Remover(registry.holder)
        gone: set[int] = set()
        for action, number in steps:
            # Contents repeat and share files, as versions of one model do.
            files = {"model.onnx": b"graph %d" % number, "tensors/w": b"shared %d" % (number % 2)}
            made = prepared(Path(folder) / str(number), files)
            entry = image(log).models.get("fraud")
            pick = sorted(entry.versions)[number % len(entry.versions)] if entry and entry.versions else None
            if action == "break":
                break_off(registry, "fraud", made) if not _is_listed(log, made) else None
            elif action == "gc":
                remover.collect(grace_s=0)
            elif action == "publish" or pick is None or pick in gone:
                assert registry.publish("fraud", made, release=False).manifest.version not in gone
            elif action == "release":
                registry.release("fraud", pick)
            elif entry and entry.champion and entry.champion.version == pick:
                with pytest.raises(UsageError):
                    remover.delete("fraud", pick, force=True)
            else:
                remover.delete("fraud", pick, force=True)
                gone.add(pick)
        remover.collect(grace_s=0)
        entry = image(log).models.get("fraud")
        records = entry.versions.values() if entry else ()
        live = [record.manifest for record in records if isinstance(record, VersionRecord)]
        assert lying(log) == {key for manifest in live for key in keys("fraud", manifest.files)}
        assert not entry or {n for n, record in entry.versions.items() if isinstance(record, Withdrawn)} == gone


def _is_listed(log: MemoryLog, made: PreparedModel) -> bool:
    entry = image(log).models.get("fraud")
    records = entry.versions.values() if entry else ()
    listed = {f.digest for r in records if isinstance(r, VersionRecord) for f in r.manifest.files}
    return {digest.of_file(made.directory / file.path) for file in made.files} <= listed
