"""Publishing on the log: one transaction, certain numbers, only what is missing, fencing that ends."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelcast.errors import (
    BrokerError,
    FencedError,
    OutcomeUnknownError,
    RepositoryNotFoundError,
    TopicConfigError,
    UsageError,
    VersionNotFoundError,
)
from modelcast.log import BEGINNING, TopicSpec
from modelcast.publisher.change import Author
from modelcast.publisher.hold import MAX_ATTEMPTS, ModelHold
from modelcast.publisher.session import RegistryWriter
from modelcast.publisher.upload import CHUNK_BYTES
from modelcast.registry.image import RegistryImage, VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import check_topics, init
from modelcast.scan import scan
from modelcast.testing.memory import MemoryLog
from modelcast.topics import ChunkKey, Topics, blob_partition

from .prepared import prepared

TOPICS = Topics("test")
AUTHOR = Author("tester", lambda: 1_700_000_000_000)
BACKBONE = random.Random(1).randbytes(3 * CHUNK_BYTES + 17)


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryLog]:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    with MemoryLog() as log:
        init(log, TOPICS)
        yield log


@pytest.fixture
def registry(log: MemoryLog) -> RegistryWriter:
    return RegistryWriter(log, TOPICS, author=AUTHOR, sleep=lambda _: None)


def image(log: MemoryLog) -> RegistryImage:
    reader = RegistryReader(log, TOPICS)
    try:
        return reader.catch_up(5)
    finally:
        reader.close()


def chunks(log: MemoryLog) -> list[ChunkKey]:
    ends = log.end_offsets(TOPICS.blobs, committed=False)
    found = []
    for record in scan(log, TOPICS.blobs, dict.fromkeys(ends, BEGINNING), ends, timeout_s=5, committed=False):
        assert record.key is not None
        key = ChunkKey.decode(record.key)
        assert key is not None
        assert record.partition == blob_partition(key.model, key.digest, len(ends))
        found.append(key)
    return found


def test_making_a_repository_twice_changes_nothing(log: MemoryLog) -> None:
    first = image(log).repository
    again = init(log, TOPICS)
    assert not again.created
    assert again.topics_created == ()
    assert again.repository == first == image(log).repository


def test_a_repository_that_was_never_made_is_named() -> None:
    with MemoryLog() as log, pytest.raises(RepositoryNotFoundError, match="modelcast init --prefix test"):
        check_topics(log, TOPICS)


def test_a_topic_that_would_lose_models_is_refused_with_the_line_that_mends_it() -> None:
    with MemoryLog() as log:
        log.create(TopicSpec(TOPICS.registry, 1, 1, {"cleanup.policy": "delete"}))
        with pytest.raises(TopicConfigError, match="--add-config cleanup.policy=compact"):
            init(log, TOPICS)


def test_versions_are_numbered_without_gaps_and_live_only_when_released(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph", "examples.npz": b"examples"})
    for expected in (1, 2, 3):
        published = registry.publish("fraud", model, release=False)
        assert (published.manifest.version, published.release) == (expected, None)
    entry = image(log).models["fraud"]
    assert sorted(entry.versions) == [1, 2, 3]
    assert entry.champion is None


def test_manifest_and_release_become_visible_together(log: MemoryLog, registry: RegistryWriter, tmp_path: Path) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph"})
    published = registry.publish("fraud", model, release=True, message="first", metrics={"auc": 0.9})
    entry = image(log).models["fraud"]
    assert entry.champion == published.release
    record = entry.version(1)
    assert record.manifest == published.manifest
    assert record.manifest.metrics == {"auc": 0.9}
    assert record.manifest.created_by == "tester"


def test_chunks_fit_default_limits_and_are_found_by_key_and_by_hint(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph", "tensors/w": BACKBONE})
    published = registry.publish("fraud", model, release=False)
    assert published.bytes_sent == published.bytes_total == len(BACKBONE) + 5
    tensor = next(entry for entry in model.files if entry.path == "tensors/w")
    assert [key.index for key in chunks(log) if key.digest == tensor.digest] == [0, 1, 2, 3]
    record = image(log).models["fraud"].version(1)
    hint = next(hint for hint in record.hints if hint.digest == tensor.digest)
    assert hint.last_offset - hint.first_offset == 3


def test_only_what_changed_travels(log: MemoryLog, registry: RegistryWriter, tmp_path: Path) -> None:
    registry.publish("fraud", prepared(tmp_path / "a", {"model.onnx": b"v1", "tensors/w": BACKBONE}), release=False)
    second = registry.publish(
        "fraud", prepared(tmp_path / "b", {"model.onnx": b"v2!", "tensors/w": BACKBONE}), release=False
    )
    assert second.bytes_sent == 3
    assert second.bytes_total == len(BACKBONE) + 3
    hints = image(log).models["fraud"].version(2).hints
    assert {hint.digest for hint in hints} == {entry.digest for entry in second.manifest.files}


def test_damaged_chunks_are_mended_by_sending_everything_again(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph", "tensors/w": BACKBONE})
    registry.publish("fraud", model, release=False)
    before = len(chunks(log))
    again = registry.publish("fraud", model, release=False, resend=True)
    assert again.bytes_sent == again.bytes_total
    assert len(chunks(log)) == 2 * before
    hints = {hint.digest: hint for hint in image(log).models["fraud"].version(2).hints}
    assert all(
        hints[hint.digest].first_offset > hint.last_offset for hint in image(log).models["fraud"].version(1).hints
    )


def test_a_manifest_too_large_for_a_record_is_refused_before_the_first_byte(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph"})
    with pytest.raises(UsageError, match="1,000,000 characters"):
        registry.publish("fraud", model, release=False, message="x" * 1_000_000)
    assert chunks(log) == []
    assert image(log).models == {}


def test_models_do_not_share_chunks(log: MemoryLog, registry: RegistryWriter, tmp_path: Path) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph"})
    registry.publish("fraud", model, release=False)
    assert registry.publish("spam", model, release=False).bytes_sent == 5
    assert {key.model for key in chunks(log)} == {"fraud", "spam"}


def test_the_same_content_has_the_same_digest_in_every_version(registry: RegistryWriter, tmp_path: Path) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph"})
    digests = {registry.publish("fraud", model, release=False).manifest.digest for _ in range(2)}
    assert len(digests) == 1


class BrokenOffError(Exception):
    """Stands for the end of a process."""


def test_f01_a_broken_off_upload_leaves_no_version_and_a_rerun_sends_only_the_rest(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph", "tensors/w": BACKBONE})

    def stop_after_two_chunks(_: str, done: int, __: int) -> None:
        if done >= 5 + 2 * CHUNK_BYTES:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        registry.publish("fraud", model, release=True, progress=stop_after_two_chunks)
    assert image(log).models == {}
    left = len(chunks(log))
    published = registry.publish("fraud", model, release=True)
    assert published.manifest.version == 1
    assert left == 3
    assert published.bytes_sent == CHUNK_BYTES + 17
    assert published.bytes_total == len(BACKBONE) + 5


def test_a_chunk_left_damaged_is_sent_again(log: MemoryLog, registry: RegistryWriter, tmp_path: Path) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph", "tensors/w": BACKBONE})

    def stop(_: str, done: int, total: int) -> None:
        if done >= total:
            raise BrokenOffError

    with pytest.raises(BrokenOffError):
        registry.publish("fraud", model, release=False, progress=stop)
    tensor = next(entry for entry in model.files if entry.path == "tensors/w")
    key = ChunkKey("fraud", tensor.digest, CHUNK_BYTES, 1).encode()
    partitions = len(log.end_offsets(TOPICS.blobs, committed=False))
    writer = log.writer()
    writer.send(TOPICS.blobs, key=key, value=b"x", partition=blob_partition("fraud", tensor.digest, partitions))
    writer.flush(5)
    writer.close()
    assert registry.publish("fraud", model, release=False).bytes_sent == CHUNK_BYTES


def test_f04_a_topic_that_takes_no_chunk_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    with MemoryLog() as log:
        for spec in TOPICS.specs(blob_partitions=1, replication_factor=1):
            configs = {**spec.configs, "max.message.bytes": "1000"} if spec.name == TOPICS.blobs else spec.configs
            log.create(TopicSpec(spec.name, spec.partitions, 1, configs))
        init(log, TOPICS)
        with pytest.raises(BrokerError, match=r"max\.message\.bytes"):
            RegistryWriter(log, TOPICS).publish(
                "fraud", prepared(tmp_path / "a", {"model.onnx": b"graph"}), release=False
            )
        assert chunks(log) == []


def test_f03_two_publishers_at_once_get_distinct_versions_or_one_is_told(log: MemoryLog, tmp_path: Path) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph", "tensors/w": BACKBONE})
    outcomes: list[object] = []

    def publish() -> None:
        try:
            outcomes.append(RegistryWriter(log, TOPICS).publish("fraud", model, release=True).manifest.version)
        except FencedError:
            outcomes.append("fenced")

    threads = [threading.Thread(target=publish) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    versions = [outcome for outcome in outcomes if outcome != "fenced"]
    assert len(outcomes) == 2
    assert sorted(image(log).models["fraud"].versions) == list(range(1, len(versions) + 1))


def test_whoever_is_fenced_for_ever_is_told_and_leaves_nothing(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph"})
    holds: list[ModelHold] = []

    def rival(*_: object) -> None:
        with closing(RegistryReader(log, TOPICS)) as reader:
            holds.append(ModelHold(log, TOPICS, "fraud", reader))

    with pytest.raises(FencedError, match=f"{MAX_ATTEMPTS} times"):
        registry.publish("fraud", model, release=True, progress=rival)
    # The first attempt sent the file, which is progress; the others found it there, and each met the rival once.
    assert len(holds) == 1 + MAX_ATTEMPTS
    assert image(log).models == {}


def test_a_commit_whose_answer_was_lost_is_not_done_twice(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = ModelHold.commit
    lost = iter([True])

    def commit_and_lose_the_answer(hold: ModelHold, *args: object) -> None:
        commit(hold, *args)  # type: ignore[arg-type]
        if next(lost, False):
            raise OutcomeUnknownError("no answer")

    monkeypatch.setattr(ModelHold, "commit", commit_and_lose_the_answer)
    published = registry.publish("fraud", prepared(tmp_path / "a", {"model.onnx": b"graph"}), release=True)
    entry = image(log).models["fraud"]
    assert published.manifest.version == 1
    assert list(entry.versions) == [1]
    assert len(entry.releases) == 1


def test_who_is_fenced_after_an_answer_was_lost_does_not_say_that_nothing_landed(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = ModelHold.commit

    def commit_and_lose_the_answer(hold: ModelHold, *args: object) -> None:
        commit(hold, *args)  # type: ignore[arg-type]
        monkeypatch.setattr(ModelHold, "__init__", fenced)
        raise OutcomeUnknownError("no answer")

    def fenced(*_: object, **__: object) -> None:
        raise FencedError("taken over")

    monkeypatch.setattr(ModelHold, "commit", commit_and_lose_the_answer)
    with pytest.raises(BrokerError, match="did not answer whether the change of 'fraud' was committed"):
        registry.publish("fraud", prepared(tmp_path / "a", {"model.onnx": b"graph"}), release=True)
    assert list(image(log).models["fraud"].versions) == [1]


def test_a_commit_that_was_really_lost_is_done_again(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = ModelHold.commit
    lost = iter([True])

    def lose_the_commit(hold: ModelHold, *args: object) -> None:
        if next(lost, False):
            raise OutcomeUnknownError("no answer")
        commit(hold, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ModelHold, "commit", lose_the_commit)
    registry.publish("fraud", prepared(tmp_path / "a", {"model.onnx": b"graph"}), release=True)
    assert list(image(log).models["fraud"].versions) == [1]


def test_f42_another_models_open_transaction_gives_no_number_twice(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    model = prepared(tmp_path / "a", {"model.onnx": b"graph"})
    registry.publish("fraud", model, release=True)
    other = log.transactional_writer(TOPICS.publisher_id("spam"), timeout_ms=10_000)
    other.begin()
    other.send(TOPICS.registry, key=b"version/spam/1", value=b"open", partition=0)
    # Behind spam's open record a read_committed end would not move: fraud@2 would be published as a second 1.
    ends = log.end_offsets(TOPICS.registry, committed=True)[0], log.end_offsets(TOPICS.registry, committed=False)[0]
    assert ends[0] < ends[1]
    finished = threading.Timer(0.3, other.abort)
    finished.start()
    assert registry.publish("fraud", model, release=False).manifest.version == 2
    finished.join()


def test_releasing_what_is_live_writes_nothing(log: MemoryLog, registry: RegistryWriter, tmp_path: Path) -> None:
    registry.publish("fraud", prepared(tmp_path / "a", {"model.onnx": b"graph"}), release=True)
    revision = image(log).revision
    assert registry.release("fraud", 1).sequence == 1
    assert image(log).revision == revision + 1 or image(log).revision == revision  # a marker of the hold at most
    assert len(image(log).models["fraud"].releases) == 1


def test_renewing_says_it_again_and_keeps_the_place_in_history(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path
) -> None:
    for name in "abc":
        registry.publish("fraud", prepared(tmp_path / name, {"model.onnx": name.encode()}), release=True)
    assert registry.rollback("fraud").version == 2
    renewed = registry.release("fraud", 2, message="still good", renew=True)
    assert (renewed.sequence, renewed.version, renewed.restores) == (5, 2, 2)
    assert image(log).models["fraud"].champion == renewed
    assert registry.rollback("fraud").version == 1


def test_what_is_not_live_is_not_renewed(log: MemoryLog, registry: RegistryWriter, tmp_path: Path) -> None:
    registry.publish("fraud", prepared(tmp_path / "a", {"model.onnx": b"a"}), release=False)
    with pytest.raises(UsageError, match="nothing is"):
        registry.release("fraud", 1, renew=True)
    registry.release("fraud", 1)
    registry.publish("fraud", prepared(tmp_path / "b", {"model.onnx": b"b"}), release=True)
    with pytest.raises(UsageError, match="fraud@1 can't be renewed: it is not live, fraud@2 is"):
        registry.release("fraud", 1, renew=True)
    assert image(log).models["fraud"].champion.version == 2


def test_release_and_rollback_go_through_history(log: MemoryLog, registry: RegistryWriter, tmp_path: Path) -> None:
    for name in "abc":
        registry.publish("fraud", prepared(tmp_path / name, {"model.onnx": name.encode()}), release=True)
    assert registry.rollback("fraud").version == 2
    assert registry.rollback("fraud").version == 1
    with pytest.raises(UsageError, match="no earlier champion"):
        registry.rollback("fraud")
    assert registry.release("fraud", 3).version == 3
    assert registry.rollback("fraud").version == 1
    with pytest.raises(VersionNotFoundError):
        registry.release("fraud", 9)
    assert all(isinstance(record, VersionRecord) for record in image(log).models["fraud"].versions.values())


def test_a_state_folder_that_takes_no_mark_stops_no_publication(
    log: MemoryLog, registry: RegistryWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "file"))
    registry.publish("fraud", prepared(tmp_path / "a", {"model.onnx": b"graph"}), release=True)
    assert image(log).models["fraud"].champion is not None
