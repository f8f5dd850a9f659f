"""A control plane that starts without its registry, on what this host knew of it: rows 11, 12 and 39."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from modelcast import codec
from modelcast.consumer import following
from modelcast.consumer.freshness import Freshness
from modelcast.consumer.snapshot import SnapshotStore
from modelcast.errors import BrokerError, RepositoryNotFoundError
from modelcast.names import ModelRef
from modelcast.trust.admission import Admission, PolicyAdmission
from modelcast.trust.policy import WhenStale, parse_policy

from .control_rig import FRAUD, TOPICS, Rig
from .registry_records import REPOSITORY, key_of, manifest, release
from .trust_rig import policy_text, sealed

CHURN = ModelRef("churn")
OTHER = replace(REPOSITORY, uuid="0b7a4c1e-0000-4000-8000-000000000002")
DAY_S = 24 * 3600


class Fixed:
    """A policy that nobody changes."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission

    def changed(self) -> bool:
        return False


class Host(Rig):
    """A rig that keeps what it knows, and can be restarted with its registry away."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder = folder
        super().__init__(folder / "state", snapshots=SnapshotStore(folder / "registry", "here"), **options)
        self.now_s = time.time()  # a snapshot's age is told by its file's time

    def restart(self, **options: object) -> None:
        self.plane.close()
        self.plane = self.make(**options)

    def sign(self, *payloads: codec.Payload) -> None:
        """Puts records that alice signed."""
        writer = self.log.writer()
        for payload in payloads:
            value = codec.encode_envelope(sealed(payload, "alice"))
            writer.send(TOPICS.registry, key=key_of(payload), value=value, partition=0)

    def come_back(self) -> None:
        self.log.down = False
        self.now_s += following.MAX_REOPEN_S
        self.settle()


@pytest.fixture
def host(tmp_path: Path) -> Host:
    made = Host(tmp_path)
    made.init()
    made.publish(1)
    made.publish(2)
    made.settle()
    made.log.down = True
    return made


def test_the_last_known_champion_is_live_and_said_to_be_stale(host: Host) -> None:
    host.now_s += 3600
    host.restart()
    host.settle()
    assert host.live() == 2
    assert host.plane.stale_s == pytest.approx(3600, abs=60)
    status = host.plane.status_snapshot()
    assert status.repository == REPOSITORY.uuid
    assert status.stale_ms == pytest.approx(3_600_000, abs=60_000)


def test_what_was_released_meanwhile_is_live_when_the_broker_is_back(host: Host) -> None:
    host.log.down = False
    host.publish(3)
    host.log.down = True
    host.restart()
    host.settle()
    assert host.live() == 2
    host.come_back()
    assert host.live() == 3
    assert host.plane.stale_s == 0


def test_a_refused_champion_gives_way_to_the_one_a_rollback_would_restore(host: Host) -> None:
    host.loader.errors[2] = BrokerError("not in the cache")
    host.restart()
    for _ in range(10):
        host.settle()
        host.now_s += 60
    assert host.live() == 1


def test_a_client_that_asks_for_it_waits_for_what_stands_in_whatever_keeps_it_from_the_registry(host: Host) -> None:
    """A fault that only a person can mend ends the wait for a model, but not where it is there."""
    host.log.down = False
    host.log.exchange()
    host.restart()
    with host.plane:
        host.plane.wait_live(FRAUD, 60.0, patient=False)
        assert isinstance(host.plane.fault, RepositoryNotFoundError)
        host.plane.subscribe(CHURN)
        with pytest.raises(RepositoryNotFoundError):
            host.plane.wait_live(CHURN, 60.0, patient=False)


def test_a_model_this_host_did_not_know_waits_for_the_registry(host: Host) -> None:
    host.restart()
    host.plane.subscribe(CHURN)
    host.settle()
    assert not host.plane.is_hopeless(CHURN)
    with pytest.raises(BrokerError):
        host.plane.wait_live(CHURN, 0.0)


def test_a_pattern_finds_what_this_host_knew(host: Host) -> None:
    host.refs = ()
    host.restart()
    host.plane.follow("fra*")
    host.settle()
    assert host.live() == 2


def test_f11_an_old_snapshot_put_back_is_refused(host: Host, tmp_path: Path) -> None:
    host.log.down = False
    shutil.copytree(tmp_path / "registry", tmp_path / "old")
    host.put(release(3, 1, restores=1))  # the version was found to be bad
    host.settle()
    assert host.live() == 1
    host.log.down = True
    shutil.rmtree(tmp_path / "registry")
    (tmp_path / "old").rename(tmp_path / "registry")
    host.restart()
    host.settle()
    assert host.live() is None
    assert [refusal.reason for refusal in host.plane.refusals(FRAUD)] == ["replayed"]
    host.come_back()
    assert host.live() == 1


def test_f11_an_old_release_replayed_when_the_broker_is_back_leaves_what_stands_in(host: Host) -> None:
    host.restart()
    host.settle()
    host.log.exchange()
    host.log.down = False
    host.init()
    host.publish(1)  # the registry as it was before release 2, of the same repository
    host.come_back()
    assert host.live() == 2
    assert [refusal.reason for refusal in host.plane.refusals(FRAUD)] == ["replayed"]


def test_f39_a_restart_while_the_registry_is_gone_serves_the_last_good_version_until_there_is_a_better_one(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.log.down = False
    host.log.exchange()
    host.restart()
    host.settle()
    assert isinstance(host.plane.fault, RepositoryNotFoundError)
    assert host.live() == 2
    assert "stands in for it" in caplog.text
    host.init(OTHER)
    host.come_back()
    assert "holds another repository now" in caplog.text
    host.put(replace(release(1, 7), repository=OTHER.uuid))
    host.settle()
    assert host.live() == 2
    host.put(manifest(7, repository=OTHER.uuid))
    host.settle()
    assert host.live() == 7


@pytest.mark.parametrize("when", list(WhenStale))
def test_f12_what_was_known_too_long_ago_stops_or_goes_on(tmp_path: Path, when: WhenStale) -> None:
    host = Host(tmp_path, freshness=Freshness(3600, when))
    host.init()
    host.publish(1)
    host.settle()
    host.log.down = True
    host.now_s += 7200
    host.restart()
    host.settle()
    stale = host.plane.stale(FRAUD)
    assert stale is not None
    assert (stale.reason, stale.stop) == ("unreachable", when is WhenStale.STOP)
    assert host.live() == (None if when is WhenStale.STOP else 1)
    host.come_back()
    assert host.live() == 1
    assert host.plane.stale(FRAUD) is None


def test_f12_a_registry_out_of_reach_for_too_long_empties_the_slot_and_fills_it_again(tmp_path: Path) -> None:
    host = Host(tmp_path, freshness=Freshness(60, WhenStale.STOP))
    host.init()
    host.publish(1)
    host.settle()
    host.log.down = True
    host.now_s += following.PROBE_S
    host.settle()
    assert host.live() == 1
    host.now_s += 61
    host.settle()
    assert host.live() is None
    host.come_back()
    assert host.live() == 1


def test_f12_a_frozen_model_is_unloaded_until_there_is_a_release_of_today(tmp_path: Path) -> None:
    rules = parse_policy(policy_text("fraud: alice") + 'max_age = "30d"\nwhen_stale = "stop"')
    host = Host(tmp_path)
    host.restart(trust=Fixed(PolicyAdmission(rules, lambda: 0)))
    host.init()
    host.sign(manifest(1), replace(release(1, 1), created_ms=int(host.now_s * 1000)))
    host.settle()
    assert host.live() == 1
    host.now_s += 31 * DAY_S
    host.settle()
    stale = host.plane.stale(FRAUD)
    assert stale is not None
    assert stale.reason == "frozen"
    assert host.live() is None
    assert [refusal.reason for refusal in host.plane.refusals(FRAUD)] == ["stale"]
    host.sign(replace(release(2, 1), created_ms=int(host.now_s * 1000)))
    host.settle()
    assert host.live() == 1
    assert host.plane.refusals(FRAUD) == ()
