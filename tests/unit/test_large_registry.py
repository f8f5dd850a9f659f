"""Of a large registry, whoever wants a few models reads those: the others are known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelcast import codec
from modelcast.consumer import ModelClient
from modelcast.consumer.following import RegistryFollower
from modelcast.errors import BrokerError, ModelNotFoundError
from modelcast.log import LogRecord
from modelcast.names import ModelRef
from modelcast.registry import reader
from modelcast.registry.delta import RegistryDelta
from modelcast.registry.image import RegistryImage
from modelcast.registry.reader import RegistryReader
from modelcast.testing import MemoryLog, Repository
from modelcast.topics import Topics

from .control_rig import wait_until
from .registry_records import REPOSITORY, key_of, manifest, records, release

TOPICS = Topics("large")
HISTORY = (
    REPOSITORY, manifest(1), release(1, 1), manifest(1, model="spam"), release(1, 1, model="spam"),
    manifest(1, model="churn"), manifest(2), release(2, 2),
)  # fmt: skip


def only(*models: str) -> Callable[[str], bool]:
    return set(models).__contains__


def replayed(log: list[LogRecord], *wanted: str, base: RegistryImage | None = None) -> RegistryImage:
    delta = RegistryDelta(base or RegistryImage(), wanted=only(*wanted))
    for record in log:
        delta.replay(record)
    return delta.apply()


def write(log: MemoryLog, *payloads: codec.Payload) -> None:
    writer = log.writer()
    for payload in payloads:
        value = codec.encode_envelope(codec.seal(payload))
        writer.send(TOPICS.registry, key=key_of(payload), value=value, partition=0)


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    with MemoryLog() as log:
        for spec in TOPICS.specs(blob_partitions=1, replication_factor=1):
            log.create(spec)
        write(log, *HISTORY)
        yield log


def adding(bias: float) -> Callable[..., object]:
    return lambda amount: amount + bias


class TestDelta:
    def test_a_wanted_model_is_what_it_is_in_the_whole_registry(self) -> None:
        log = records(*HISTORY)
        whole, part = replayed(log, "fraud", "spam", "churn"), replayed(log, "fraud")
        assert part.models == {"fraud": whole.models["fraud"]}
        assert part.repository == whole.repository
        assert part.revision == whole.revision
        assert (part.others, whole.others) == ({"spam", "churn"}, frozenset())

    def test_what_was_passed_over_is_not_read_at_all(self) -> None:
        garbage = LogRecord("r", 0, 1, 0, key_of(manifest(1, model="spam")), b"no envelope")
        assert replayed([*records(REPOSITORY), garbage], "fraud").faults == ()
        assert len(replayed([*records(REPOSITORY), garbage], "spam").faults) == 1

    def test_in_two_steps_as_in_one(self) -> None:
        log = records(*HISTORY)
        for cut in range(len(log) + 1):
            assert replayed(log[cut:], "fraud", base=replayed(log[:cut], "fraud")) == replayed(log, "fraud")

    def test_a_key_that_names_no_model_is_told_and_kept_nowhere(self) -> None:
        strange = LogRecord("r", 0, 1, 0, b"version/ bad name /1", b"x")
        found = replayed([*records(REPOSITORY), strange], "fraud")
        assert (found.others, [fault.offset for fault in found.faults]) == (frozenset(), [1])

    def test_an_unknown_name_is_answered_with_all_names_there_are(self) -> None:
        with pytest.raises(ModelNotFoundError, match="Published so far: churn, fraud, spam"):
            replayed(records(*HISTORY), "fraud").model("froud")


class TestReader:
    def test_a_small_registry_is_read_whole(self, log: MemoryLog) -> None:
        image = RegistryReader(log, TOPICS, wanted=only("fraud")).catch_up(5)
        assert sorted(image.models) == ["churn", "fraud", "spam"]

    def test_of_a_large_one_only_what_is_wanted(self, log: MemoryLog, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reader, "MANY_RECORDS", len(HISTORY))
        following = RegistryReader(log, TOPICS, wanted=only("fraud"))
        assert sorted(following.catch_up(5).models) == ["fraud"]
        write(log, manifest(2, model="spam"), manifest(3))
        image = following.poll(5)
        assert image is not None
        assert {name: sorted(entry.versions) for name, entry in image.models.items()} == {"fraud": [1, 2, 3]}

    def test_the_time_given_is_for_standing_still_and_not_for_reading(self, log: MemoryLog) -> None:
        now_s = 0.0

        def noted(_: LogRecord) -> None:
            nonlocal now_s
            now_s += 60.0

        following = RegistryReader(log, TOPICS, on_record=noted, clock=lambda: now_s)
        assert following.catch_up(1.0).revision == len(HISTORY)
        writer = log.transactional_writer("id", timeout_ms=10_000)
        writer.begin()
        writer.send(TOPICS.registry, key=b"k", value=b"v", partition=0)
        impatient = RegistryReader(log, TOPICS, clock=iter(range(1_000)).__next__)
        with pytest.raises(BrokerError, match="nothing came for 1 s"):
            impatient.catch_up(1.0)


class TestFollower:
    @pytest.fixture
    def wanted(self) -> set[str]:
        return {"fraud"}

    @pytest.fixture
    def follower(self, log: MemoryLog, wanted: set[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[RegistryFollower]:
        monkeypatch.setattr(reader, "MANY_RECORDS", 1)
        made = RegistryFollower(
            log,
            TOPICS,
            clock=lambda: 0.0,
            refs=lambda: [ModelRef(name) for name in wanted],
            wanted=lambda: only(*wanted),
        )
        yield made
        made.close()

    def models(self, follower: RegistryFollower) -> list[str]:
        assert follower.fault is None
        assert follower.image is not None
        return sorted(follower.image.models)

    def test_it_reads_what_is_wanted_and_reads_anew_when_more_is(
        self, follower: RegistryFollower, wanted: set[str], log: MemoryLog
    ) -> None:
        follower.turn(0)
        assert self.models(follower) == ["fraud"]
        wanted.add("spam")
        ticket = follower.ask_end()
        follower.turn(0)
        assert follower.has_read(ticket)
        assert self.models(follower) == ["fraud", "spam"]
        write(log, manifest(2, model="spam"), manifest(2, model="churn"))
        follower.turn(0)
        assert follower.image is not None
        assert sorted(follower.image.models["spam"].versions) == [1, 2]
        assert self.models(follower) == ["fraud", "spam"]

    def test_a_model_wanted_before_it_is_there_is_read_when_it_comes(
        self, follower: RegistryFollower, wanted: set[str], log: MemoryLog
    ) -> None:
        follower.turn(0)
        wanted.add("new")
        follower.ask_end()
        follower.turn(0)
        write(log, manifest(1, model="new"))
        follower.turn(0)  # the reader was opened before anybody wanted it, and passes its first record over
        follower.turn(0)
        assert self.models(follower) == ["fraud", "new"]

    def test_asking_for_the_end_alone_reads_nothing_twice(
        self, follower: RegistryFollower, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        follower.turn(0)
        monkeypatch.setattr(follower, "_open", lambda: pytest.fail("it was read anew"))
        ticket = follower.ask_end()
        follower.turn(0)
        assert follower.has_read(ticket)


class TestClient:
    def test_models_named_later_and_matched_later_are_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reader, "MANY_RECORDS", 1)
        monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
        monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path / "cache"))
        repository = Repository.in_memory()
        for bias, name in enumerate(("fraud", "spam", "churn-de", "idle")):
            repository.publish(name, adding(bias))
        with ModelClient(connection=repository, models=["fraud"], device="cpu") as client:
            assert client["fraud"].predict({"amount": 1.0})["score"] == [1.0]
            assert client["spam"].predict({"amount": 1.0})["score"] == [2.0]
            client._plane.follow("churn-*")
            wait_until(lambda: ModelRef("churn-de") in client._plane.refs(), "the pattern's model")
            assert client["churn-de"].predict({"amount": 1.0})["score"] == [3.0]
            image = client._plane.image
            assert image is not None
            assert sorted(image.models) == ["churn-de", "fraud", "spam"]
            with pytest.raises(ModelNotFoundError, match="Published so far: churn-de, fraud, idle, spam"):
                client["froud"]
