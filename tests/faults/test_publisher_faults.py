"""Publishers and brokers killed at every place: a version is visible whole or not at all, numbered without a gap."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelcast import codec
from modelcast.errors import BrokerError
from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from modelcast.publisher.hold import TRANSACTION_TIMEOUT_MS
from modelcast.publisher.prepare import PreparedModel, prepare
from modelcast.publisher.published import Published
from modelcast.publisher.session import RegistryWriter
from modelcast.publisher.upload import CHUNK_BYTES
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S, init
from modelcast.topics import Topics, blob_partition
from tests.brokers import Broker
from tests.machine import Stopwatch
from tests.publishing import FIELDS, SETTLED_S, TIMEOUT_S, chunks, image, stable_s, wide_model
from tests.reliability.figures import figure
from tests.unit.registry_records import key_of, manifest

ROOT = Path(__file__).resolve().parents[2]
MODEL = "fraud"
# Five chunks of weights, one of the graph, one of the examples.
WIDTH = 300_000
CHUNK_COUNT = 7
# Twenty chunks in flight while the broker is away.
LARGE_WIDTH = 2_600_000
# How seldom a broker looks for transactions to end, by default.
SWEEP_S = 10
# Commits cut short at a random moment; one takes a second.
COMMITS = 4
# An upload of forty chunks at this pace is fenced a dozen times, by people who roll back as fast as they can type.
PACE_S = 0.1
ROLLBACK_EVERY_S = 0.3
# Fewer releases than these would not be in the way of an upload, which waits for them before its end.
ENOUGH = 5
EXAMPLES = [{"amount": 1.0, "age": 2.0}, {"amount": 3.0, "age": 4.0}]


def prepared_model(folder: Path, width: int) -> PreparedModel:
    folder.mkdir(parents=True)
    source = wide_model(width).SerializeToString()
    return prepare(source, EXAMPLES, fields=FIELDS, directory=folder)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    return prepared_model(tmp_path_factory.mktemp("model") / "tree", WIDTH)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    return prepared_model(tmp_path_factory.mktemp("large") / "tree", LARGE_WIDTH)


def sizes(model: PreparedModel) -> list[int]:
    """Bytes of each chunk, in the order they are sent."""
    return [min(CHUNK_BYTES, file.size - start) for file in model.files for start in range(0, file.size, CHUNK_BYTES)]


@dataclass
class Publishers:
    """Publisher processes of one repository."""

    servers: str
    prefix: str
    folder: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def topics(self) -> Topics:
        return Topics(self.prefix)

    def start(self, model: PreparedModel, where: str = "") -> subprocess.Popen[str]:
        """One that is ready to publish."""
        content = self.folder / f"prepared-{len(self.started)}.pickle"
        content.write_bytes(pickle.dumps(model))
        arguments = [self.servers, self.prefix, MODEL, str(content), where]
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.publisher_child", *arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(child)
        says(child, "ready")
        return child

    def run(self, model: PreparedModel, where: str = "") -> tuple[int, dict[str, Any]]:
        """Status of a publisher that is let go, and what it published."""
        return end(go(self.start(model, where)))

    def close(self) -> None:
        for child in self.started:
            child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                assert stream is not None
                with suppress(BrokenPipeError):
                    stream.close()


def says(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdout is not None
    assert child.stderr is not None
    if (line := child.stdout.readline().strip()) != word:
        pytest.fail(f"{line!r} instead of {word!r}: {child.stderr.read()}")


def go(child: subprocess.Popen[str]) -> subprocess.Popen[str]:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return child


def end(child: subprocess.Popen[str]) -> tuple[int, dict[str, Any]]:
    out, err = child.communicate(timeout=TIMEOUT_S)
    if child.returncode not in (0, 7, -signal.SIGKILL):
        pytest.fail(f"exit status {child.returncode}: {err}")
    return child.returncode, json.loads(out.splitlines()[-1]) if child.returncode == 0 else {}


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The marks of uploads broken off, for publishers here and in processes of their own."""
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def publishers(broker: Broker, prefix: str, tmp_path: Path) -> Iterator[Publishers]:
    made = Publishers(broker.bootstrap_servers, prefix, tmp_path)
    yield made
    made.close()


@pytest.fixture
def log(publishers: Publishers) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": publishers.servers}) as made:
        init(made, publishers.topics, blob_partitions=2)
        yield made


@pytest.mark.parametrize("k", range(CHUNK_COUNT + 1))
def test_f01_killed_after_chunk_k_nothing_is_visible_and_a_rerun_sends_exactly_the_rest(
    publishers: Publishers, log: KafkaLog, model: PreparedModel, k: int
) -> None:
    assert len(sizes(model)) == CHUNK_COUNT
    status, _ = publishers.run(model, f"chunk:{k}")
    assert status == -signal.SIGKILL
    assert len(chunks(log, publishers.topics)) == k
    assert image(log, publishers.topics).models == {}

    rerun = RegistryWriter(log, publishers.topics).publish(MODEL, model, release=True)
    assert rerun.manifest.version == 1
    assert rerun.bytes_sent == sum(sizes(model)[k:])
    entry = image(log, publishers.topics).models[MODEL]
    # Read back equal to the last digit: that is how a commit whose answer was lost is recognised.
    assert entry.version(1).manifest == rerun.manifest
    assert entry.version(1).manifest.files == model.files
    assert entry.champion == rerun.release
    assert set(chunks(log, publishers.topics).values()) == {1}  # nothing was sent twice


def test_f01_killed_between_the_records_and_the_commit_the_rerun_ends_the_open_transaction(
    publishers: Publishers, log: KafkaLog, model: PreparedModel
) -> None:
    status, _ = publishers.run(model, "flushed")
    assert status == -signal.SIGKILL
    registry = publishers.topics.registry
    stable, true = (log.end_offsets(registry, committed=committed)[0] for committed in (True, False))
    assert stable == true - 2  # both records stand there, in a transaction nobody will end

    child = publishers.start(model)
    watch = Stopwatch()
    status, rerun = end(go(child))
    took_s = watch.took_s
    in_time = watch.allows(took_s, 8)  # the broker itself ends it after 10 s at the earliest
    stable_s(log, registry)
    figure(f"a dead publisher's transaction was ended and its model published in {took_s:.2f} s")
    assert (status, rerun["version"], rerun["bytes_sent"]) == (0, 1, 0)
    entry = image(log, publishers.topics).models[MODEL]
    assert list(entry.versions) == [1]
    assert [release.sequence for release in entry.releases] == [1]
    assert entry.version(1).manifest.digest == rerun["digest"]
    assert in_time, took_s


def test_f01_killed_right_after_the_commit_the_version_stands_whole(
    publishers: Publishers, log: KafkaLog, model: PreparedModel
) -> None:
    status, _ = publishers.run(model, "committed")
    assert status == -signal.SIGKILL
    entry = image(log, publishers.topics).models[MODEL]
    assert entry.version(1).manifest.files == model.files
    assert entry.champion is not None
    status, again = publishers.run(model)
    assert (status, again["version"], again["bytes_sent"]) == (0, 2, 0)
    assert again["digest"] == entry.version(1).manifest.digest


def test_f01_killed_anywhere_in_the_commit_version_and_release_stand_together_or_not_at_all(
    publishers: Publishers, log: KafkaLog, model: PreparedModel
) -> None:
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    print(f"seed {seed}")
    stood = []
    for _ in range(COMMITS):
        before = image(log, publishers.topics).models.get(MODEL)
        count = len(before.versions) if before else 0
        publishers.run(model, f"commit:{chance.randrange(15_000)}")
        # What is open now is decided by the next holder of the id, or by the broker.
        log.transactional_writer(publishers.topics.publisher_id(MODEL), timeout_ms=10_000).close()
        stable_s(log, publishers.topics.registry)
        after = image(log, publishers.topics).models.get(MODEL)
        versions = sorted(after.versions) if after else []
        assert versions == list(range(1, len(versions) + 1))
        assert len(versions) - count in (0, 1)
        assert [release.version for release in (after.releases if after else ())] == versions
        stood.append(len(versions) - count)
    figure(f"of {COMMITS} commits cut short {sum(stood)} stood, whole")
    status, rerun = publishers.run(model)
    assert (status, rerun["version"]) == (0, sum(stood) + 1)


def test_f02_broker_killed_in_mid_upload_one_manifest_all_the_same(
    own_broker: Broker, prefix: str, tmp_path: Path, large: PreparedModel
) -> None:
    publishers = Publishers(own_broker.bootstrap_servers, prefix, tmp_path)
    with KafkaLog({"bootstrap.servers": publishers.servers}) as log, closing(publishers):
        init(log, publishers.topics, blob_partitions=2)
        child = go(publishers.start(large, "wait-half"))
        says(child, "half")
        own_broker.kill()
        go(child)  # it goes on queueing what nobody takes
        started = time.monotonic()
        own_broker.restart()
        status, published = end(child)
        figure(f"published {time.monotonic() - started:.1f} s after the broker was killed")
        assert (status, published["version"]) == (0, 1)
        entry = image(log, publishers.topics).models[MODEL]
        assert list(entry.versions) == [1]
        assert entry.version(1).manifest.files == large.files
        assert len(chunks(log, publishers.topics)) == len(sizes(large))


def test_f02_broker_killed_in_the_commit_one_manifest_all_the_same(
    own_broker: Broker, prefix: str, tmp_path: Path, model: PreparedModel
) -> None:
    publishers = Publishers(own_broker.bootstrap_servers, prefix, tmp_path)
    with KafkaLog({"bootstrap.servers": publishers.servers}) as log, closing(publishers):
        init(log, publishers.topics, blob_partitions=2)
        child = go(publishers.start(model, "wait-flushed"))
        says(child, "flushed")
        own_broker.kill()
        go(child)
        own_broker.restart()
        status, published = end(child)
        assert (status, published["version"]) == (0, 1)
        stable_s(log, publishers.topics.registry)
        entry = image(log, publishers.topics).models[MODEL]
        assert list(entry.versions) == [1]
        assert len(entry.releases) == 1


@pytest.mark.parametrize("attempt", range(3))
def test_f03_two_publishers_at_once_end_with_distinct_versions_or_one_is_told(
    publishers: Publishers, log: KafkaLog, model: PreparedModel, attempt: int
) -> None:
    rivals = [publishers.start(model) for _ in range(2)]
    for rival in rivals:
        go(rival)
    outcomes = [end(rival) for rival in rivals]
    published = sorted(published["version"] for status, published in outcomes if status == 0)
    print(f"round {attempt}: exit statuses {[status for status, _ in outcomes]}, versions {published}")
    assert all(status in (0, 7) for status, _ in outcomes)
    assert published == list(range(1, len(published) + 1))
    assert published
    stable_s(log, publishers.topics.registry)
    entry = image(log, publishers.topics).models[MODEL]
    assert sorted(entry.versions) == published
    assert [release.version for release in entry.releases] == published
    assert {record.manifest.digest for record in map(entry.version, published)} == {
        published["digest"] for status, published in outcomes if status == 0
    }


def test_f03_rollbacks_fired_all_the_time_never_kill_a_long_upload(
    publishers: Publishers, log: KafkaLog, model: PreparedModel, large: PreparedModel
) -> None:
    topics = publishers.topics
    registry = RegistryWriter(log, topics)
    for _ in range(2):
        registry.publish(MODEL, model, release=True)
    published: list[Published] = []
    attempts = 0
    in_the_way = threading.Event()

    def pace(_: str, done: int, total: int) -> None:
        nonlocal attempts
        if not attempts:
            time.sleep(PACE_S)  # a slow network; the attempts after the first find everything there
            if done == total:
                assert in_the_way.wait(TIMEOUT_S)
        attempts += done == total

    def publish() -> None:
        published.append(RegistryWriter(log, topics).publish(MODEL, large, release=False, progress=pace))

    publisher = threading.Thread(target=publish)
    publisher.start()
    fired = 0
    while publisher.is_alive():
        registry.release(MODEL, 1 + fired % 2)
        fired += 1
        if fired > ENOUGH:
            in_the_way.set()
        publisher.join(ROLLBACK_EVERY_S)
    figure(f"{fired} releases during one upload, nothing sent twice")
    assert [p.manifest.version for p in published] == [3]
    assert published[0].bytes_sent == sum(file.size for file in large.files)
    assert set(chunks(log, topics).values()) == {1}  # nothing was sent twice
    assert len(image(log, topics).models[MODEL].releases) >= fired


def test_f04_a_blobs_topic_that_takes_no_chunk_is_refused_before_the_first_byte(
    broker: Broker, prefix: str, model: PreparedModel
) -> None:
    topics = Topics(prefix)
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        for spec in topics.specs(blob_partitions=2, replication_factor=1):
            small = {"max.message.bytes": str(CHUNK_BYTES)} if spec.name == topics.blobs else {}
            log.create(TopicSpec(spec.name, spec.partitions, 1, {**spec.configs, **small}))
        init(log, topics)
        with pytest.raises(BrokerError, match=rf"max\.message\.bytes={CHUNK_BYTES} bytes") as raised:
            RegistryWriter(log, topics).publish(MODEL, model, release=True)
        assert f"--entity-name {topics.blobs} --add-config max.message.bytes=" in (raised.value.hint or "")
        assert chunks(log, topics) == {}
        assert image(log, topics).models == {}


def test_f42_another_models_open_transaction_is_waited_for_not_ended_and_gives_no_number_twice(
    publishers: Publishers, log: KafkaLog, model: PreparedModel
) -> None:
    publishers.run(model)
    topics = publishers.topics
    repository = image(log, topics).repository
    assert repository is not None
    other = manifest(1, model="spam", repository=repository.uuid)
    with closing(log.transactional_writer(topics.publisher_id("spam"), timeout_ms=300_000)) as spam:
        spam.begin()
        spam.send(topics.registry, key=key_of(other), value=codec.encode_envelope(codec.seal(other)), partition=0)
        spam.flush(60)
        rival = go(publishers.start(model))
        with pytest.raises(subprocess.TimeoutExpired):
            rival.wait(1.5)  # behind spam's record it can't know the registry's end
        spam.commit()
        status, published = end(rival)
    assert (status, published["version"]) == (0, 2)
    models = image(log, topics).models
    assert sorted(models[MODEL].versions) == [1, 2]
    assert models["spam"].version(1).manifest == other


def test_f42_a_transaction_that_a_dead_publisher_of_another_model_left_is_waited_out(
    publishers: Publishers, log: KafkaLog, model: PreparedModel
) -> None:
    topics = publishers.topics
    status, _ = publishers.run(model, "abandoned")
    assert status == -signal.SIGKILL
    watch = Stopwatch()
    published = RegistryWriter(log, topics).publish("spam", model, release=True)
    took_s = watch.took_s
    in_time = watch.allows(took_s, 1 + SWEEP_S + 5)
    figure(f"published behind a dead publisher's transaction after {took_s:.1f} s")
    assert published.manifest.version == 1
    assert in_time, took_s
    assert list(image(log, topics).models) == ["spam"]
    # Its own transactions live longer, and are waited out all the same.
    assert TRANSACTION_TIMEOUT_MS / 1_000 + SWEEP_S < CATCH_UP_TIMEOUT_S


def test_f42_a_transaction_that_stays_open_ends_the_wait_with_an_error_and_nothing_half_done(
    publishers: Publishers, log: KafkaLog, model: PreparedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelcast.publisher.hold.CATCH_UP_TIMEOUT_S", 1.0)
    topics = publishers.topics
    with closing(log.transactional_writer(topics.publisher_id("spam"), timeout_ms=300_000)) as spam:
        spam.begin()
        spam.send(topics.registry, key=b"version/spam/1", value=b"open", partition=0)
        spam.flush(60)
        with pytest.raises(BrokerError, match="could not be read to its end"):
            RegistryWriter(log, topics).publish(MODEL, model, release=True)
    stable_s(log, topics.registry)
    assert chunks(log, topics) == {}
    assert image(log, topics).models == {}


def test_a_mark_of_a_blobs_topic_that_was_made_anew_loses_no_chunk(
    publishers: Publishers, log: KafkaLog, model: PreparedModel, state_folder: Path
) -> None:
    topics = publishers.topics
    repository = image(log, topics).repository
    assert repository is not None
    mark = state_folder / "uploads" / repository.uuid / f"{topics.prefix}.{MODEL}.json"
    mark.parent.mkdir(parents=True)
    mark.write_text(json.dumps({"0": 1_000, "1": 1_000}))
    publishers.run(model, "chunk:7")
    begun = json.loads(mark.read_text())
    homes = {blob_partition(MODEL, file.digest, 2) for file in model.files}
    assert {partition: begun[str(partition)] for partition in homes} == dict.fromkeys(homes, 0)
    assert publishers.run(model)[1]["bytes_sent"] == 0


def test_publishers_of_different_models_do_not_disturb_each_other(
    log: KafkaLog, publishers: Publishers, model: PreparedModel
) -> None:
    outcomes: dict[str, int] = {}

    def publish(name: str) -> None:
        for _ in range(3):
            outcomes[name] = RegistryWriter(log, publishers.topics).publish(name, model, release=True).manifest.version

    threads = [threading.Thread(target=publish, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SETTLED_S)
    assert outcomes == {"a": 3, "b": 3, "c": 3}
    numbers = {name: sorted(entry.versions) for name, entry in image(log, publishers.topics).models.items()}
    assert numbers == {"a": [1, 2, 3], "b": [1, 2, 3], "c": [1, 2, 3]}
