"""What an instance does under a trust policy: whom it follows, what it says, and what a restart remembers."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from modelcast import codec
from modelcast.consumer.following import PROBE_S, REREAD_S
from modelcast.consumer.policy import REPLAYED, UNTRUSTED
from modelcast.consumer.state import MAX_SIGNER_SETS, Marks
from modelcast.errors import ConfigError
from modelcast.names import ModelRef
from modelcast.records import Envelope, Refusal
from modelcast.trust.clock import SteadyClock
from modelcast.trust.watch import PolicyWatch

from .control_rig import FRAUD, TOPICS, Rig
from .registry_records import REPOSITORY, key_of, manifest, release
from .trust_rig import NOW_MS, policy_text, sealed

UUID = REPOSITORY.uuid
ALICE = policy_text("fraud*: alice")


class TrustRig(Rig):
    """A control plane under a policy file, which a test may change."""

    def __init__(self, folder: Path, text: str) -> None:
        self.path = folder / "trust.toml"
        self.edits = 0
        self.system_ms = NOW_MS
        self.write(text)
        super().__init__(folder / "state")
        self.init()

    def make(self, **options: object) -> object:  # type: ignore[override]
        clock = SteadyClock(self.state_dir, system_ms=lambda: self.system_ms, monotonic_s=lambda: self.now_s)
        return super().make(trust=PolicyWatch(self.path, clock), **options)

    def write(self, text: str) -> None:
        self.path.write_text(text)
        self.edits += 1  # a test's edits follow faster than a file system's clock ticks
        os.utime(self.path, ns=(self.edits, self.edits))

    def edit(self, text: str) -> None:
        """Changes the policy, and lets the plane notice."""
        self.write(text)
        self.later()

    def later(self, seconds: float = PROBE_S) -> None:
        self.now_s += seconds
        self.settle()

    def put_signed(self, *payloads: codec.Payload, by: tuple[str, ...] = ("alice",)) -> None:
        for payload in payloads:
            self.put_envelope(key_of(payload), sealed(payload, *by))

    def put_envelope(self, at: bytes, envelope: Envelope) -> None:
        self.log.writer().send(TOPICS.registry, key=at, value=codec.encode_envelope(envelope), partition=0)

    def release(self, version: int, sequence: int | None = None, *, by: tuple[str, ...] = ("alice",)) -> None:
        self.put_signed(manifest(version), release(sequence or version, version), by=by)
        self.settle()

    def restart(self) -> None:
        self.plane.close()
        self.plane = self.make()
        self.settle()

    def refusals(self, reason: str, ref: ModelRef = FRAUD) -> list[Refusal]:
        return [refusal for refusal in self.plane.refusals(ref) if refusal.reason == reason]


@pytest.fixture
def rig(tmp_path: Path) -> Callable[[str], TrustRig]:
    return lambda text=ALICE: TrustRig(tmp_path, text)


def test_what_is_signed_goes_live(rig: Callable[..., TrustRig]) -> None:
    under = rig()
    under.release(1)
    assert (under.live(), under.plane.refusals(FRAUD)) == (1, ())


@pytest.mark.parametrize("by", [(), ("mallory",), ("bob",)])
def test_f09_an_untrusted_release_is_refused_by_name_and_the_old_version_serves(
    by: tuple[str, ...], rig: Callable[..., TrustRig]
) -> None:
    under = rig()
    under.release(1)
    under.release(2, by=by)
    assert under.live() == 1
    (refusal,) = under.refusals(UNTRUSTED)
    assert "release 2 of 'fraud' is not admitted" in refusal.message
    assert under.statuses()[-1].models[0].refusals == (refusal,)


def test_a_trusted_release_of_an_untrusted_version_is_refused(rig: Callable[..., TrustRig]) -> None:
    under = rig()
    under.release(1)
    under.put_signed(manifest(2), by=())
    under.put_signed(release(2, 2))
    under.settle()
    (refusal,) = under.refusals(UNTRUSTED)
    assert (under.live(), refusal.version) == (1, 2)


def test_the_second_signature_makes_it_live_and_ends_the_refusal(rig: Callable[..., TrustRig]) -> None:
    under = rig(policy_text("fraud*: alice bob: 2"))
    under.release(1)
    assert under.live() is None
    assert "below-threshold" in under.refusals(UNTRUSTED)[0].message
    under.release(1, by=("alice", "bob"))
    assert (under.live(), under.plane.refusals(FRAUD)) == (1, ())


def test_records_that_are_not_admitted_do_not_make_the_registry_be_read_anew(rig: Callable[..., TrustRig]) -> None:
    under = rig()
    under.release(1)
    under.later(REREAD_S + 1)
    under.release(2, by=("mallory",))
    assert under.plane.fault is None
    assert under.plane.stale_s == 0


class TestTheFileChanges:
    def test_a_key_added_while_running_lets_in_what_it_signed(self, rig: Callable[..., TrustRig]) -> None:
        under = rig()
        under.release(1)
        under.release(2, by=("bob",))
        assert under.live() == 1
        under.edit(policy_text("fraud*: alice bob"))
        assert (under.live(), under.plane.refusals(FRAUD)) == (2, ())

    def test_what_is_live_stays_until_something_admitted_takes_its_place(self, rig: Callable[..., TrustRig]) -> None:
        under = rig()
        under.release(1)
        under.edit(policy_text("fraud*: bob"))
        assert under.live() == 1
        assert under.refusals(UNTRUSTED)
        under.release(2, by=("bob",))
        assert under.live() == 2

    def test_a_broken_policy_is_loud_and_the_one_before_stays(
        self, rig: Callable[..., TrustRig], caplog: pytest.LogCaptureFixture
    ) -> None:
        under = rig()
        under.release(1)
        with caplog.at_level(logging.ERROR):
            under.edit("[[rules]]\nmodels = 3\n")
            under.release(2, by=("mallory",))
            under.later()
        assert under.live() == 1
        assert len([line for line in caplog.messages if "the one before stays in force" in line]) == 1
        under.path.unlink()
        under.later()
        under.release(3)
        assert under.live() == 3

    def test_a_broken_policy_is_an_error_at_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="rule 1"):
            TrustRig(tmp_path, "[[rules]]\nmodels = 3\n")

    def test_another_version_under_the_same_number_takes_the_place_of_the_one_that_is_live(
        self, rig: Callable[..., TrustRig]
    ) -> None:
        # The leaked key took number 2; whoever trusts it no more never saw it, and gave the number again.
        under = rig(policy_text("fraud*: alice mallory", keys=("alice", "mallory")))
        under.release(1)
        under.release(2, by=("mallory",))
        assert under.live() == 2
        under.edit(policy_text("fraud*: alice mallory", keys=("alice", "mallory"), mallory='revoked = "leaked"'))
        assert under.live() == 1
        genuine = replace(manifest(2), message="the same files, and another manifest")
        under.put_signed(genuine, release(2, 2))
        under.settle()
        servable = under.plane.slot(FRAUD).live
        assert servable is not None
        assert servable.manifest == genuine


def test_f16_a_key_that_expires_while_running_stops_counting_and_a_clock_set_back_brings_nothing_back(
    rig: Callable[..., TrustRig],
) -> None:
    under = rig(policy_text("fraud*: alice", alice='expires = "2027-01-15T09:00:00Z"'))
    under.release(1)
    under.system_ms += 2 * 3600 * 1000
    under.later()
    under.release(2)
    assert under.live() == 1
    assert "expired" in under.refusals(UNTRUSTED)[0].message
    under.system_ms -= 48 * 3600 * 1000
    under.restart()
    assert under.live() is None


class TestF11:
    """Row 11: an old release replayed, with a restart between."""

    def test_f11_an_old_release_replayed_after_a_restart_is_refused(self, rig: Callable[..., TrustRig]) -> None:
        under = rig()
        under.release(1)
        under.release(2)
        under.plane.close()
        under.log.exchange()
        under.init()
        under.put_signed(manifest(1), release(1, 1))  # genuine, and old
        under.restart()
        assert under.live() is None
        assert under.refusals(REPLAYED)
        under.put_signed(manifest(2), release(3, 1))  # going back is a release of its own
        under.settle()
        assert under.live() == 1


class TestF14:
    """Row 14: a sequence run up by a leaked key."""

    FAR = 1 << 60
    BEFORE = policy_text("fraud*: alice mallory", keys=("alice", "mallory"))
    AFTER = policy_text("fraud*: alice mallory", keys=("alice", "mallory"), mallory='revoked = "leaked"')

    def leaked(self, rig: Callable[..., TrustRig]) -> TrustRig:
        under = rig(self.BEFORE)
        under.release(1)
        under.release(2)
        under.put_signed(release(self.FAR, 1), by=("mallory",))
        under.settle()
        assert under.live() == 1
        under.put_signed(release(3, 2))
        under.settle()
        assert under.live() == 1  # every genuine release is below it
        return under

    def test_f14_revoking_the_key_brings_back_the_last_genuine_release(self, rig: Callable[..., TrustRig]) -> None:
        under = self.leaked(rig)
        under.edit(self.AFTER)
        assert under.live() == 2
        under.release(4)
        assert under.live() == 4

    def test_f14_so_it_does_over_a_restart_and_old_releases_stay_refused(self, rig: Callable[..., TrustRig]) -> None:
        under = self.leaked(rig)
        under.plane.close()
        under.write(self.AFTER)
        under.restart()
        assert under.live() == 2
        under.release(4)
        under.plane.close()
        under.log.exchange()
        under.init()
        under.put_signed(manifest(1), release(1, 1))
        under.restart()
        assert (under.live(), bool(under.refusals(REPLAYED))) == (None, True)

    def test_f14_marks_of_others_count_on_when_one_key_is_revoked(self, tmp_path: Path) -> None:
        marks = Marks(tmp_path)
        marks.advance(UUID, "fraud", 10, ("alice",))
        marks.advance(UUID, "fraud", 1 << 60, ("mallory",))
        again = Marks(tmp_path)
        assert again.get(UUID, "fraud") == 1 << 60
        assert again.get(UUID, "fraud", lambda signers: "mallory" not in signers) == 10
        assert again.get(UUID, "fraud", lambda signers: False) == 0


class TestMarks:
    def test_marks_without_signers_are_written_as_they_always_were(self, tmp_path: Path) -> None:
        Marks(tmp_path).advance(UUID, "fraud", 3)
        assert (tmp_path / "marks" / f"{UUID}.json").read_text() == '{"fraud": 3}'
        Marks(tmp_path).advance(UUID, "fraud", 2, ("alice",))
        assert Marks(tmp_path).get(UUID, "fraud", lambda signers: signers == ("alice",)) == 2

    def test_what_was_released_without_a_policy_binds_nobody_who_has_one(self, rig: Callable[..., TrustRig]) -> None:
        under = rig()
        Marks(under.state_dir).advance(UUID, "fraud", 1 << 60)
        under.restart()
        under.release(1)
        assert under.live() == 1

    def test_the_highest_marks_are_kept(self, tmp_path: Path) -> None:
        marks = Marks(tmp_path)
        for number in range(2 * MAX_SIGNER_SETS):
            marks.advance(UUID, "fraud", number + 1, (f"key {number}",))
        again = Marks(tmp_path)
        assert again.get(UUID, "fraud", lambda signers: signers == ("key 0",)) == 0
        assert again.get(UUID, "fraud") == 2 * MAX_SIGNER_SETS

    @pytest.mark.parametrize("mark", ['"x"', "[3]", '[{"sequence": 1}]', '[{"sequence": 1, "signers": [1]}]'])
    def test_a_damaged_mark_is_not_taken_for_none(self, mark: str, tmp_path: Path) -> None:
        (tmp_path / "marks").mkdir()
        (tmp_path / "marks" / f"{UUID}.json").write_text(f'{{"fraud": {mark}}}')
        with pytest.raises(ConfigError, match="can't be used"):
            Marks(tmp_path).get(UUID, "fraud")
