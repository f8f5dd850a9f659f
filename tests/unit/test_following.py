"""What `consumer/following.py` promises on a log that goes away and comes back, with and without its thread."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from filelock import FileLock

from modelcast import codec
from modelcast.consumer import following, snapshot
from modelcast.consumer.following import RegistryFollower
from modelcast.consumer.snapshot import SnapshotStore
from modelcast.errors import BrokerError, RepositoryNotFoundError
from modelcast.log import LogRecord
from modelcast.names import ModelRef
from modelcast.records import Manifest, Release
from modelcast.trust.admission import EVERYTHING, Admission
from modelcast.trust.watch import NO_POLICY, Watch

from .control_rig import FRAUD, TOPICS, UnsteadyLog, wait_until
from .registry_records import REPOSITORY, key_of, manifest, release, withdrawn
from .trust_rig import admission, sealed

NOW_MS = 1_800_000_000_000
CHURN = ModelRef("churn")
OTHER = replace(REPOSITORY, uuid="0b7a4c1e-0000-4000-8000-000000000002")


def of_other(payload: Manifest | Release) -> Manifest | Release:
    return replace(payload, repository=OTHER.uuid)


class ChangingPolicy:
    """A policy that can be exchanged while it is watched."""

    def __init__(self, *rules: Admission) -> None:
        self._rules = list(rules)
        self.admission = self._rules.pop(0)

    def changed(self) -> bool:
        if not self._rules:
            return False
        self.admission = self._rules.pop(0)
        return True


class Follows:
    """Followers of one registry that share a folder, as restarts of one application do."""

    def __init__(self, folder: Path) -> None:
        self.log = UnsteadyLog()
        self.folder = folder
        self.refs: tuple[ModelRef, ...] = (FRAUD,)
        self.now_s = 1000.0
        self.changes = 0
        self.made: list[RegistryFollower] = []

    def follower(self, *, trust: Watch = NO_POLICY, scope: str = "here") -> RegistryFollower:
        def changed() -> None:
            self.changes += 1

        made = RegistryFollower(
            self.log,
            TOPICS,
            clock=lambda: self.now_s,
            now_ms=lambda: NOW_MS,
            trust=trust,
            snapshots=SnapshotStore(self.folder, scope),
            refs=lambda: self.refs,
            on_change=changed,
        )
        self.made.append(made)
        return made

    def put(self, *payloads: codec.Payload, by: tuple[str, ...] = ()) -> None:
        writer = self.log.writer()
        for payload in payloads:
            envelope = sealed(payload, *by)
            writer.send(TOPICS.registry, key=key_of(payload), value=codec.encode_envelope(envelope), partition=0)

    def read(self) -> list[LogRecord]:
        """The registry's records."""
        with closing(self.log.reader(TOPICS.registry, {0: 0})) as reader:
            return list(reader.poll(0.0))

    def file(self, model: str = "fraud") -> Path:
        (found,) = self.folder.glob(f"*/{model}.json")
        return found

    def read_at(self, ms: int, model: str = "fraud") -> None:
        """Makes a snapshot as old as if it had been read then."""
        os.utime(self.file(model), ns=(ms * 1_000_000, ms * 1_000_000))


@pytest.fixture
def follows(tmp_path: Path) -> Iterator[Follows]:
    made = Follows(tmp_path / "registry")
    made.put(REPOSITORY, manifest(1), release(1, 1))
    yield made
    for follower in made.made:
        follower.close()


class TestThread:
    def test_it_tells_of_an_image_and_of_each_that_follows(self, follows: Follows) -> None:
        follower = follows.follower().start()
        wait_until(lambda: follower.image is not None, "an image")
        wait_until(lambda: follows.changes, "news of it")
        changes = follows.changes
        follows.put(manifest(2))
        wait_until(lambda: follower.image and set(follower.image.models["fraud"].versions) == {1, 2}, "the next")
        wait_until(lambda: follows.changes > changes, "news of that")
        assert not follower.is_snapshot

    def test_a_ticket_is_fulfilled_by_an_end_taken_after_it(self, follows: Follows) -> None:
        follower = follows.follower()
        early = follower.ask_end()
        assert not follower.has_read(early)
        follower.turn(0.0)
        assert follower.has_read(early)
        late = follower.ask_end()
        assert not follower.has_read(late)
        follower.turn(0.0)
        assert follower.has_read(late)

    def test_a_ticket_waits_for_the_broker(self, follows: Follows) -> None:
        follower = follows.follower()
        follower.turn(0.0)
        follows.log.down = True
        ticket = follower.ask_end()
        follower.turn(0.0)
        assert not follower.has_read(ticket)
        assert isinstance(follower.fault, BrokerError)
        follows.log.down = False
        follows.now_s += following.MAX_REOPEN_S
        follower.turn(0.0)
        assert follower.has_read(ticket)
        assert follower.fault is None

    def test_it_ends_and_leaves_no_thread(self, follows: Follows) -> None:
        follower = follows.follower().start()
        wait_until(lambda: follower.image is not None, "an image")
        follower.close()
        wait_until(
            lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("modelcast-registry")],
            "its threads to end",
        )

    def test_a_broker_that_came_back_is_found_within_the_longest_pause(self, follows: Follows) -> None:
        follower = follows.follower()
        follows.log.down = True
        for _ in range(20):
            follower.turn(0.0)
            follows.now_s += following.MAX_REOPEN_S
        follows.log.down = False
        follower.turn(0.0)
        assert follower.image is not None
        assert follower.stale_s == 0

    def test_a_transaction_that_hides_the_end_makes_it_stale_until_it_is_decided(self, follows: Follows) -> None:
        follower = follows.follower()
        follower.turn(0.0)
        writer = follows.log.transactional_writer("publisher", timeout_ms=1000)
        writer.begin()
        writer.send(TOPICS.registry, key=b"hidden", value=b"", partition=0)
        for is_stale in (False, True):
            for _ in range(7):
                follows.now_s += following.PROBE_S
                follows.read_at(0)
                follower.turn(0.0)
                assert follows.file().stat().st_mtime == 0  # what was not read to its end is not confirmed
            assert (follower.stale_s > 0) == is_stale
        assert "can't be read to its end" in str(follower.fault)
        writer.abort()
        follower.turn(0.0)
        follows.now_s += following.PROBE_S
        follower.turn(0.0)
        assert (follower.stale_s, follower.fault) == (0, None)
        assert follows.file().stat().st_mtime > 0


class TestStartWithoutKafka:
    def test_what_was_known_stands_in_and_says_that_it_is_stale(
        self, follows: Follows, caplog: pytest.LogCaptureFixture
    ) -> None:
        read = follows.follower()
        read.turn(0.0)
        follows.read_at(NOW_MS - 60_000)
        follows.log.down = True
        restarted = follows.follower()
        with caplog.at_level(logging.WARNING):
            restarted.turn(0.0)
        assert restarted.is_snapshot
        assert read.image is not None
        assert restarted.image is not None
        assert restarted.image.models["fraud"] == read.image.models["fraud"]
        assert restarted.image.repository == REPOSITORY
        assert restarted.stale_s == pytest.approx(60)
        assert "2027-01-15 07:59:00 UTC stands in" in caplog.text

    def test_it_stands_in_within_a_second_though_the_broker_makes_us_wait(
        self, follows: Follows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(following, "STALE_START_S", 0.05)
        follows.follower().turn(0.0)
        silent = threading.Event()
        monkeypatch.setattr(follows.log, "reader", lambda *_, **__: silent.wait(60.0), raising=False)
        restarted = follows.follower().start()
        wait_until(lambda: restarted.is_snapshot, "the snapshot")
        assert restarted.fault is None
        silent.set()

    def test_the_registry_takes_its_place_as_soon_as_it_is_read(self, follows: Follows) -> None:
        follows.follower().turn(0.0)
        follows.put(manifest(2), release(2, 2))
        follows.log.down = True
        restarted = follows.follower()
        restarted.turn(0.0)
        ticket = restarted.ask_end()
        assert restarted.image is not None
        assert set(restarted.image.models["fraud"].versions) == {1}
        assert not restarted.has_read(ticket)
        follows.log.down = False
        follows.now_s += following.MAX_REOPEN_S
        restarted.turn(0.0)
        assert (restarted.is_snapshot, restarted.stale_s) == (False, 0)
        assert set(restarted.image.models["fraud"].versions) == {1, 2}
        assert restarted.has_read(ticket)

    def test_what_was_read_is_never_replaced_by_what_was_kept(self, follows: Follows) -> None:
        follower = follows.follower()
        follower.turn(0.0)
        follows.log.down = True
        follows.now_s += following.PROBE_S
        follower.turn(0.0)
        assert follower.fault is not None
        assert not follower.is_snapshot

    def test_without_a_snapshot_there_is_no_image(self, follows: Follows) -> None:
        follows.log.down = True
        follower = follows.follower()
        follower.turn(0.0)
        assert (follower.image, follower.is_snapshot) == (None, False)

    def test_another_cluster_or_prefix_has_its_own(self, follows: Follows) -> None:
        follows.follower(scope="one").turn(0.0)
        follows.log.down = True
        follower = follows.follower(scope="another")
        follower.turn(0.0)
        assert follower.image is None

    def test_a_registry_that_is_gone_is_stood_in_for_too(self, follows: Follows) -> None:
        follows.follower().turn(0.0)
        follows.log.exchange()
        restarted = follows.follower()
        restarted.turn(0.0)
        assert restarted.is_snapshot
        assert isinstance(restarted.fault, RepositoryNotFoundError)

    def test_a_damaged_snapshot_is_none(self, follows: Follows, caplog: pytest.LogCaptureFixture) -> None:
        follows.follower().turn(0.0)
        data = bytearray(follows.file().read_bytes())
        data[-20] ^= 1
        follows.file().write_bytes(data)
        follows.log.down = True
        restarted = follows.follower()
        restarted.turn(0.0)
        assert restarted.image is None
        assert "it is damaged" in caplog.text

    def test_age_is_that_of_the_oldest_model_in_use(self, follows: Follows) -> None:
        follows.refs = (FRAUD, CHURN)
        follows.put(manifest(1, model="churn"), release(1, 1, model="churn"))
        follows.follower().turn(0.0)
        follows.read_at(NOW_MS - 60_000)
        follows.read_at(NOW_MS - 3_600_000, "churn")
        follows.log.down = True
        restarted = follows.follower()
        restarted.turn(0.0)
        assert restarted.stale_s == pytest.approx(3600)
        assert restarted.stale_s_of("fraud") == pytest.approx(60)
        follows.refs = (FRAUD,)
        follows.now_s += 1
        assert restarted.stale_s == pytest.approx(61)


class TestTrust:
    """What a snapshot says is judged by the policy of the moment it is used."""

    def test_a_key_revoked_meanwhile_counts_for_nothing_at_a_start_without_kafka(
        self, follows: Follows, caplog: pytest.LogCaptureFixture
    ) -> None:
        self._publish_signed(follows, admission("fraud: alice"))
        restarted = follows.follower(trust=ChangingPolicy(admission("fraud: alice", alice='revoked = "leaked"')))
        for _ in range(3):
            restarted.turn(0.0)
            follows.now_s += following.MAX_REOPEN_S
        assert restarted.image is None
        assert "the key of alice was revoked (leaked)" in caplog.text
        assert caplog.text.count("what this host knew of fraud does not count") == 1

    def test_a_key_that_expired_meanwhile_counts_for_nothing(self, follows: Follows) -> None:
        self._publish_signed(follows, admission("fraud: alice", alice="expires = 2027-06-30"))
        later = admission("fraud: alice", alice="expires = 2027-06-30", now_ms=NOW_MS + 365 * 24 * 3_600_000)
        restarted = follows.follower(trust=ChangingPolicy(later))
        restarted.turn(0.0)
        assert restarted.image is None

    def test_one_that_still_counts_stands_in(self, follows: Follows) -> None:
        trusted = admission("fraud: alice")
        self._publish_signed(follows, trusted)
        restarted = follows.follower(trust=ChangingPolicy(trusted))
        restarted.turn(0.0)
        assert restarted.is_snapshot
        assert restarted.known is not None
        assert restarted.known.admission is trusted

    def test_a_snapshot_that_was_altered_is_not_admitted(self, follows: Follows) -> None:
        trusted = admission("fraud: alice")
        follows.follower().turn(0.0)  # unsigned
        follows.log.down = True
        restarted = follows.follower(trust=ChangingPolicy(trusted))
        restarted.turn(0.0)
        assert restarted.image is None

    def test_a_policy_that_changes_while_kafka_is_away_is_in_force(self, follows: Follows) -> None:
        follows.put(manifest(2), release(2, 2), by=("alice",))
        follows.follower().turn(0.0)
        follows.log.down = True
        restarted = follows.follower(trust=ChangingPolicy(EVERYTHING, admission("fraud: alice")))
        restarted.turn(0.0)
        assert restarted.image is not None
        assert set(restarted.image.models["fraud"].versions) == {1, 2}
        follows.now_s += following.PROBE_S
        restarted.turn(0.0)
        assert restarted.is_snapshot
        assert set(restarted.image.models["fraud"].versions) == {2}

    def test_a_key_revoked_while_kafka_is_away_takes_back_what_stands_in(
        self, follows: Follows, caplog: pytest.LogCaptureFixture
    ) -> None:
        trusted, revoked = admission("fraud: alice"), admission("fraud: alice", alice='revoked = "leaked"')
        self._publish_signed(follows, trusted)
        restarted = follows.follower(trust=ChangingPolicy(trusted, revoked))
        restarted.turn(0.0)
        assert restarted.image is not None
        assert restarted.image.models
        follows.now_s += following.PROBE_S
        restarted.turn(0.0)
        assert (restarted.image.models, restarted.known.admission, restarted.is_snapshot) == ({}, revoked, True)
        assert restarted.stale_s_of("fraud") > 0
        follows.log.down = False
        follows.now_s += following.MAX_REOPEN_S
        restarted.turn(0.0)
        assert not restarted.is_snapshot
        assert "another repository" not in caplog.text

    @staticmethod
    def _publish_signed(follows: Follows, trusted: Admission) -> None:
        follows.put(manifest(2), release(2, 2), by=("alice",))
        follows.follower(trust=ChangingPolicy(trusted)).turn(0.0)
        assert follows.file().exists()
        follows.log.down = True


class TestKeeping:
    def test_it_is_written_before_the_image_is_published(self, follows: Follows) -> None:
        follower = follows.follower()
        seen: list[bool] = []
        follower._on_change = lambda: seen.append(follows.file().exists())
        follower.turn(0.0)
        assert seen[0]

    def test_a_release_and_a_rollback_are_kept(self, follows: Follows) -> None:
        follower = follows.follower()
        follower.turn(0.0)
        follows.put(manifest(2), release(2, 2))
        follower.turn(0.0)
        follows.put(release(3, 1, restores=1))
        follower.turn(0.0)
        assert self._champion(follows) == (3, 1)

    def test_a_withdrawal_is_kept(self, follows: Follows) -> None:
        follows.put(withdrawn(1))
        follows.follower().turn(0.0)
        image = self._restarted(follows).image
        assert image is not None
        assert image.models["fraud"].versions == {1: withdrawn(1)}

    def test_a_pinned_version_is_kept_that_no_release_names(self, follows: Follows) -> None:
        follows.refs = (ModelRef("fraud", 1),)
        follows.put(*(manifest(version) for version in range(2, 30)))
        follows.put(*(release(version, version) for version in range(2, 30)))
        follows.follower().turn(0.0)
        image = self._restarted(follows).image
        assert image is not None
        assert {1, 29} <= set(image.models["fraud"].versions)
        assert len(image.models["fraud"].versions) < 12

    def test_other_models_are_not_kept(self, follows: Follows) -> None:
        follows.put(manifest(1, model="churn"), release(1, 1, model="churn"))
        follows.follower().turn(0.0)
        image = self._restarted(follows).image
        assert image is not None
        assert set(image.models) == {"fraud"}

    def test_a_model_first_used_later_is_looked_for(self, follows: Follows) -> None:
        follows.put(manifest(1, model="churn"), withdrawn(1, model="churn"), release(1, 1, model="churn"))
        follower = follows.follower()
        follower.turn(0.0)
        follows.refs = (FRAUD, CHURN)
        follows.now_s += following.PROBE_S
        follower.turn(0.0)
        image = self._restarted(follows).image
        assert image is not None
        assert follower.image is not None
        assert image.models["churn"] == follower.image.models["churn"]

    def test_a_history_too_large_to_be_held_is_looked_for(
        self, follows: Follows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("modelcast.consumer.keeper.MAX_NOTED_BYTES", 4_000)
        follows.put(*(manifest(version) for version in range(2, 50)))
        follower = follows.follower()
        follower.turn(0.0)
        follower.turn(0.0)
        assert self._champion(follows) == (1, 1)

    def test_its_time_is_when_the_registry_was_last_read_to_its_end(self, follows: Follows) -> None:
        follower = follows.follower()
        follower.turn(0.0)
        follows.read_at(0)
        follower.turn(0.0)
        assert follows.file().stat().st_mtime > 0
        follows.read_at(0)
        follows.now_s += following.PROBE_S
        follows.log.down = True
        follower.turn(0.0)
        assert follows.file().stat().st_mtime == 0

    def test_a_folder_that_cannot_be_written_costs_the_start_without_kafka_only(
        self, follows: Follows, caplog: pytest.LogCaptureFixture
    ) -> None:
        follows.folder.write_text("not a folder")
        follower = follows.follower()
        follower.turn(0.0)
        follows.put(manifest(2), release(2, 2))
        follower.turn(0.0)
        assert follower.image is not None
        assert follower.image.models["fraud"].champion == release(2, 2)
        assert caplog.text.count("can't be kept") == 1

    def test_what_could_not_be_written_is_not_said_to_be_new_and_is_written_later(
        self, follows: Follows, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(snapshot, "LOCK_TIMEOUT_S", 0.01)
        follows.refs = (FRAUD, CHURN)
        follows.put(manifest(1, model="churn"), release(1, 1, model="churn"))
        follower = follows.follower()
        follower.turn(0.0)
        with FileLock(follows.file().parent.with_suffix(".lock")):
            follows.put(manifest(2), release(2, 2), manifest(2, model="churn"), release(2, 2, model="churn"))
            follower.turn(0.0)
            follows.read_at(0)
            for _ in range(3):
                follows.now_s += following.PROBE_S
                follower.turn(0.0)
            assert follows.file().stat().st_mtime == 0
        assert caplog.text.count("can't be kept") == 1
        follows.now_s += following.PROBE_S
        follower.turn(0.0)
        assert self._champion(follows) == (2, 2)
        assert follows.file().stat().st_mtime > 0

    def test_a_model_that_a_registry_made_anew_lacks_is_not_said_to_be_known(self, follows: Follows) -> None:
        """What is left of the old registry must not stand before the new one's at a start without Kafka."""
        follows.refs = (FRAUD, CHURN)
        follows.put(manifest(2), release(2, 2))
        follower = follows.follower()
        follower.turn(0.0)
        follows.log.exchange()
        follows.put(OTHER, of_other(manifest(1, model="churn")), of_other(release(1, 1, model="churn")))
        follows.read_at(0)
        for _ in range(3):
            follows.now_s += following.MAX_REOPEN_S
            follower.turn(0.0)
        assert follows.file("churn").exists()
        assert follows.file().stat().st_mtime == 0
        image = self._restarted(follows).image
        assert image is not None
        assert set(image.models) == {"churn"}

    def test_a_process_behind_another_takes_nothing_from_it(self, follows: Follows) -> None:
        slow = follows.follower()
        slow.turn(0.0)
        image = slow.image
        follows.put(manifest(2), release(2, 2))
        follows.follower().turn(0.0)
        assert slow._keeper is not None
        assert image is not None
        slow._keeper.restart()
        slow._keeper._noted = {record.offset: record for record in follows.read()}
        slow._keeper.keep(image)
        assert self._champion(follows) == (2, 2)

    def _champion(self, follows: Follows) -> tuple[int, int]:
        image = self._restarted(follows).image
        assert image is not None
        champion = image.models["fraud"].champion
        assert champion is not None
        return champion.sequence, champion.version

    @staticmethod
    def _restarted(follows: Follows) -> RegistryFollower:
        follows.log.down = True
        restarted = follows.follower()
        restarted.turn(0.0)
        follows.log.down = False
        return restarted


@pytest.mark.parametrize(
    "body",
    [b'{"scope": ' + b"[" * 100_000, b'{"records": [{"offset": 1e999}]}', b"\xff"],
    ids=["deep", "huge", "binary"],
)
def test_no_file_in_the_folder_ends_it(follows: Follows, body: bytes) -> None:
    follows.follower().turn(0.0)
    follows.file().write_bytes(sha256(body).hexdigest().encode() + b"\n" + body)
    follows.log.down = True
    follower = follows.follower()
    follower.turn(0.0)
    assert follower.image is None
    follows.log.down = False
    follows.now_s += following.MAX_REOPEN_S
    follower.turn(0.0)
    assert follower.image is not None
    assert not follower.is_snapshot


@pytest.mark.parametrize("error", [BrokerError("away"), RepositoryNotFoundError("none"), ValueError("a defect")])
def test_no_failure_ends_it(follows: Follows, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    follower = follows.follower()
    with monkeypatch.context() as patch:
        patch.setattr(follows.log, "end_offsets", fail, raising=False)
        follower.turn(0.0)
    assert follower.fault is error
    follows.now_s += following.MAX_REOPEN_S
    follower.turn(0.0)
    assert follower.fault is None
