"""What `consumer/control.py` promises, on an in-memory log: follow, load, swap, refuse, outlive every failure."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from modelcast.consumer import following, reconciler
from modelcast.consumer.binding import EventFields
from modelcast.errors import (
    BindingError,
    BrokerError,
    ConfigError,
    GoldenError,
    LoadError,
)
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import ModelState, RepositoryIdentity

from .control_rig import DEADLINE_S, FRAUD, RESOURCES, TOPICS, Rig, wait_until
from .registry_records import REPOSITORY, manifest, release, withdrawn

PINNED = ModelRef("fraud", 1)
CHURN = ModelRef("churn")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    made.init()
    return made


class TestFollowing:
    def test_a_release_goes_live_and_the_next_one_takes_its_place(self, rig: Rig) -> None:
        rig.publish(1)
        rig.settle()
        assert rig.live() == 1
        rig.publish(2)
        rig.settle()
        assert rig.live() == 2
        assert rig.loader.calls == [1, 2]

    def test_a_version_that_was_not_released_is_not_loaded(self, rig: Rig) -> None:
        rig.put(manifest(1))
        rig.settle()
        assert (rig.live(), rig.loader.calls) == (None, [])

    def test_a_rollback_to_the_kept_version_loads_nothing(self, rig: Rig) -> None:
        rig.publish(1)
        rig.settle()
        rig.publish(2)
        rig.settle()
        rig.put(release(3, 1, restores=1))
        rig.settle()
        assert rig.live() == 1
        assert rig.loader.calls == [1, 2]

    def test_nothing_is_acted_on_behind_an_open_transaction(self, rig: Rig) -> None:
        # The reader must pass the true end, and an open transaction holds it back.
        rig.publish(1)
        writer = rig.log.transactional_writer("publisher-of-another-model", timeout_ms=1000)
        writer.begin()
        writer.send(TOPICS.registry, key=b"version/churn/1", value=b"", partition=0)
        started = rig.now_s
        rig.plane._follower._clock = iter([started, started, *[started + 1000.0] * 50]).__next__
        rig.step()
        assert (rig.plane.image, rig.loader.calls) == (None, [])

    def test_a_pin_and_the_champion_live_side_by_side(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path, refs=(FRAUD, PINNED))
        rig.init()
        for version in (1, 2):
            rig.publish(version)
        rig.settle()
        assert (rig.live(FRAUD), rig.live(PINNED)) == (2, 1)

    def test_f26_500_releases_in_a_burst_cost_two_loads_and_end_on_the_newest(self) -> None:
        rig = Rig()  # 500 marks synced to a disk are another matter
        rig.init()
        rig.publish(1)
        rig.settle()
        rig.loader.gate.clear()
        rig.loader.entered.clear()
        rig.publish(2)
        rig.step()
        assert rig.loader.entered.wait(DEADLINE_S)
        for version in range(3, 501):
            rig.publish(version)
            rig.step()
        assert rig.loader.calls == [1, 2]
        rig.loader.gate.set()
        rig.settle()
        assert rig.live() == 500
        assert rig.loader.calls == [1, 2, 500]

    def test_a_rollback_during_a_load_keeps_the_loaded_version_out(self, rig: Rig) -> None:
        swaps: list[ModelVersion] = []
        rig.plane.on_swap(lambda event: swaps.append(event.new))
        rig.publish(1)
        rig.settle()
        rig.loader.gate.clear()
        rig.publish(2)
        rig.step()
        rig.put(release(3, 1, restores=1))
        rig.step()
        rig.loader.gate.set()
        rig.settle()
        assert [swap.version for swap in swaps] == [1]
        wait_until(lambda: rig.loader.made[-1].closed_by is not None, "the loaded version to be destroyed")

    def test_a_line_subscribed_later_is_served_too(self, rig: Rig) -> None:
        rig.publish(1)
        rig.settle()
        rig.put(manifest(1, model="churn"), release(1, 1, model="churn"))
        slot = rig.plane.subscribe(ModelRef("churn"))
        rig.settle()
        assert slot.live is not None
        assert rig.plane.subscribe(ModelRef("churn")) is slot

    def test_f25_1000_swaps_leave_two_servables_a_bounded_memory_of_them_and_no_thread_or_handle(
        self, rig: Rig
    ) -> None:
        held = {}
        for version in range(1, 1001):
            rig.publish(version)
            rig.settle()
            held[version] = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
        assert [made.id.version for made in rig.loader.made if made.closed_by is None] == [999, 1000]
        assert len(rig.plane.slot(FRAUD).states()) <= 256
        assert rig.plane.status_snapshot().models[0].swaps == 999
        assert held[1000][0] <= held[10][0]  # what other tests left may end meanwhile
        assert held[1000][1] <= held[10][1]

    def test_a_large_kept_version_makes_room_before_the_next_load(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reconciler, "KEEP_BESIDE_LOAD_BYTES", 1)
        for version in (1, 2):
            rig.publish(version)
            rig.settle()
        rig.loader.gate.clear()
        rig.publish(3)
        rig.step()
        assert rig.loader.made[0].closed_by is not None
        rig.loader.gate.set()
        rig.settle()
        assert rig.live() == 3


class TestRefusals:
    def test_a_refused_version_leaves_the_live_one_and_says_why(self, rig: Rig) -> None:
        told = []
        rig.plane.on_refused(lambda ref, refusal: told.append((ref, refusal.version, refusal.reason)))
        rig.publish(1)
        rig.settle()
        rig.loader.errors[2] = GoldenError("output 'score', row 3: 0.5, but 0.7 was published")
        rig.publish(2)
        rig.settle()
        assert rig.live() == 1
        assert told == [(FRAUD, 2, "golden")]
        (refusal,) = rig.plane.refusals(FRAUD)
        assert (refusal.version, refusal.reason) == (2, "golden")
        assert "row 3" in refusal.message

    def test_a_refused_version_is_not_tried_again_however_long_it_is_champion(self, rig: Rig) -> None:
        rig.loader.errors[1] = GoldenError("wrong")
        rig.publish(1)
        for _ in range(5):
            rig.now_s += 3600
            rig.settle()
        assert rig.loader.calls == [1]

    def test_f22_a_version_refused_for_the_events_fields_is_tried_when_they_change(self, rig: Rig) -> None:
        rig.loader.errors[1] = BindingError("field 'amount' is a string, and the model wants float32")
        rig.plane.set_event_fields(FRAUD, EventFields({"amount": "string"}, "the schema of topic tx"))
        rig.publish(1)
        rig.settle()
        assert rig.live() is None
        rig.plane.set_event_fields(FRAUD, EventFields({"amount": "string"}, "the schema of topic tx"))
        rig.settle()
        assert rig.loader.calls == [1]
        del rig.loader.errors[1]
        rig.plane.set_event_fields(FRAUD, EventFields({"amount": "double"}, "the schema of topic tx"))
        rig.settle()
        assert rig.live() == 1
        assert rig.loader.fields[-1].kinds == {"amount": "double"}

    @pytest.mark.parametrize("error", [BrokerError("away"), OSError(28, "No space left on device"), ValueError("odd")])
    def test_a_failure_that_may_pass_is_tried_again_with_pauses(self, rig: Rig, error: Exception) -> None:
        rig.loader.errors[1] = error
        rig.publish(1)
        rig.settle()
        assert rig.loader.calls == [1]
        for attempts in range(2, 6):
            rig.now_s += 31
            rig.settle()
            assert len(rig.loader.calls) == attempts
        rig.loader.errors.clear()
        rig.now_s += 31
        rig.settle()
        assert rig.live() == 1
        assert rig.plane.refusals(FRAUD) == ()

    def test_a_panic_below_the_loader_is_one_more_failure(self, rig: Rig) -> None:
        class NativePanic(BaseException):
            pass

        rig.publish(1)
        rig.settle()
        rig.loader.errors[2] = NativePanic("index out of bounds")
        rig.publish(2)
        rig.settle()
        assert rig.live() == 1
        assert rig.plane.refusals(FRAUD)[0].reason == "internal"

    def test_a_repeated_failure_is_told_once(self, rig: Rig) -> None:
        told = []
        rig.plane.on_refused(lambda _ref, refusal: told.append(refusal.reason))
        rig.loader.errors[1] = BrokerError("away")
        rig.publish(1)
        for _ in range(5):
            rig.now_s += 31
            rig.settle()
        assert told == ["broker"]

    def test_a_champion_withdrawn_while_live_stays_live_and_is_told(self, rig: Rig) -> None:
        rig.publish(1)
        rig.settle()
        rig.put(withdrawn(1))
        rig.settle()
        assert rig.live() == 1
        assert rig.plane.refusals(FRAUD)[0].reason == "withdrawn"

    def test_at_a_start_the_release_before_a_refused_champion_serves(self, rig: Rig) -> None:
        rig.loader.errors[2] = LoadError("out of memory")
        rig.publish(1)
        rig.publish(2)
        rig.settle()
        assert rig.live() == 1
        assert [refusal.version for refusal in rig.plane.refusals(FRAUD)] == [2]

    def test_a_version_that_fails_live_gives_way_to_the_one_before(self, rig: Rig) -> None:
        for version in (1, 2):
            rig.publish(version)
            rig.settle()
        rig.plane.report_failure(FRAUD, ModelVersion("fraud", 2), "every row of a batch failed")
        rig.settle()
        assert rig.live() == 1
        assert rig.loader.calls == [1, 2]
        assert [refusal.reason for refusal in rig.plane.refusals(FRAUD)] == ["failed-live"]

    def test_a_version_that_fails_live_after_a_rollback_does_not_bring_back_what_was_rolled_back(
        self, rig: Rig
    ) -> None:
        for version in (1, 2, 3):
            rig.publish(version)
            rig.settle()
        rig.put(release(4, 2, restores=2))
        rig.settle()
        rig.plane.report_failure(FRAUD, ModelVersion("fraud", 2), "every row of a batch failed")
        rig.settle()
        assert rig.live() == 1

    def test_a_version_that_fails_live_and_is_in_no_registry_any_more_is_let_go(self, rig: Rig) -> None:
        rig.publish(1)
        rig.settle()
        rig.log.exchange()
        rig.init(RepositoryIdentity("0b7a4c1e-0000-4000-8000-000000000002", 0, 1))
        rig.now_s += following.PROBE_S
        rig.settle()
        assert rig.live() == 1
        rig.plane.report_failure(FRAUD, ModelVersion("fraud", 1), "every row of a batch failed")
        rig.settle()
        assert rig.live() is None

    def test_a_callback_that_fails_does_not_stop_the_swap(self, rig: Rig) -> None:
        def fail(_: object) -> None:
            raise RuntimeError("a user's callback")

        rig.plane.on_swap(fail)
        rig.publish(1)
        rig.settle()
        assert rig.live() == 1


class TestResourcePreserving:
    def test_f24_the_old_version_is_gone_before_the_new_one_is_loaded(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path, preserve=RESOURCES)
        rig.init()
        rig.publish(1)
        rig.settle()
        rig.loader.gate.clear()
        rig.publish(2)
        with rig.plane.slot(FRAUD).lease():
            rig.step()
            rig.step()
            assert rig.loader.calls == [1]
        rig.step()
        rig.step()
        assert rig.loader.made[0].closed_by is not None
        rig.loader.gate.set()
        rig.settle()
        assert rig.live() == 2

    def test_f24_a_refused_version_brings_the_old_one_back(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path, preserve=RESOURCES)
        rig.init()
        rig.publish(1)
        rig.settle()
        rig.loader.errors[2] = LoadError("out of memory")
        rig.publish(2)
        rig.settle()
        assert rig.live() == 1
        assert rig.loader.calls == [1, 2, 1]


class TestRegistryTrouble:
    def test_f11_a_release_below_the_mark_is_refused_after_a_restart(self, rig: Rig) -> None:
        for version in (1, 2, 3):
            rig.publish(version)
        rig.settle()
        rig.log.exchange()  # the same repository, with its last releases cut off
        rig.init()
        rig.publish(1)
        rig.plane = rig.make()
        rig.settle()
        assert rig.live() is None
        assert [(entry.version, entry.reason) for entry in rig.plane.refusals(FRAUD)] == [(1, "replayed")]
        rig.put(manifest(4), release(4, 4))
        rig.settle()
        assert rig.live() == 4

    def test_f39_a_truncated_registry_leaves_the_live_version_and_is_told(self, rig: Rig) -> None:
        for version in (1, 2):
            rig.publish(version)
        rig.settle()
        rig.log.exchange()
        rig.init()
        rig.now_s += following.PROBE_S
        rig.settle()
        rig.now_s += 1
        rig.settle()
        assert rig.live() == 2
        assert rig.plane.refusals(FRAUD)[0].reason == "replayed"

    def test_f39_a_registry_made_anew_starts_afresh_and_loudly(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        for version in (1, 2):
            rig.publish(version)
        rig.settle()
        other = RepositoryIdentity("0b7a4c1e-0000-4000-8000-000000000002", 0, 1)
        rig.log.exchange()
        rig.init(other)
        rig.put(replace(manifest(1), repository=other.uuid), replace(release(1, 1), repository=other.uuid))
        rig.now_s += following.PROBE_S
        rig.settle()
        assert rig.live() == 2
        rig.now_s += 1
        rig.settle()
        assert rig.live() == 1
        assert "another repository" in caplog.text
        assert rig.plane.status_snapshot().repository == other.uuid

    def test_f39_a_registry_made_anew_and_grown_longer_is_noticed_by_its_records(self, rig: Rig) -> None:
        rig.publish(1)
        rig.settle()
        other = RepositoryIdentity("0b7a4c1e-0000-4000-8000-000000000002", 0, 1)
        rig.now_s += following.REREAD_S + 1
        reader = rig.plane._follower._reader
        rig.log.exchange()
        rig.init(other)
        for version in (1, 2):
            rig.put(
                replace(manifest(version), repository=other.uuid),
                replace(release(version, version), repository=other.uuid),
            )
        reader._reader._log = rig.log._log  # the client library goes on at its offset in the new topic
        rig.settle()
        rig.now_s += 1
        rig.settle()
        assert rig.live() == 2
        assert rig.plane.status_snapshot().repository == other.uuid

    def test_a_broker_that_is_away_makes_the_plane_stale_and_nothing_else(self, rig: Rig) -> None:
        rig.publish(1)
        rig.settle()
        rig.log.down = True
        rig.now_s += following.PROBE_S
        rig.settle()
        rig.now_s += 7
        assert rig.live() == 1
        assert rig.plane.stale_s == 7
        assert isinstance(rig.plane.fault, BrokerError)
        rig.log.down = False
        rig.publish(2)
        rig.settle()
        assert rig.live() == 2
        assert rig.plane.stale_s == 0
        assert rig.plane.fault is None

    def test_a_broker_away_at_the_start_is_waited_for(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path)
        rig.init()
        rig.publish(1)
        rig.log.down = True
        rig.step()
        assert isinstance(rig.plane.fault, BrokerError)
        rig.log.down = False
        rig.step()
        assert rig.plane.image is None  # not yet: a pause lies between
        rig.now_s += 1
        rig.settle()
        assert rig.live() == 1

    def test_damaged_marks_stop_the_model_and_not_the_others(self, rig: Rig, tmp_path: Path) -> None:
        marks = tmp_path / "marks"
        marks.mkdir()
        (marks / f"{REPOSITORY.uuid}.json").write_text("{")
        pinned = rig.plane.subscribe(PINNED)
        rig.publish(1)
        rig.settle()
        assert rig.live() is None
        assert pinned.live is not None
        with pytest.raises(ConfigError, match="delete the file"):
            rig.plane.wait_live(FRAUD, 0.0)


class TestStatus:
    def test_a_status_tells_what_is_live_since_when_and_how_fast(self, rig: Rig) -> None:
        rig.now_s = 1_700_000_005.0
        rig.publish(1)
        rig.settle()
        rig.publish(2)
        rig.settle()
        status = rig.statuses()[-1]
        (model,) = status.models
        assert (status.repository, status.instance, status.role, status.device) == (
            REPOSITORY.uuid,
            "host-0",
            "client",
            "cpu",
        )
        assert (model.model, model.state, model.live_version, model.swaps) == ("fraud", ModelState.LIVE, 2, 1)
        assert model.since_ms == 1_700_000_005_000
        assert model.release_to_live_ms == 4998.0  # the release was made 2 ms after …000
        assert model.load_ms == 0.0  # by a clock that stands still

    def test_a_refusal_is_told(self, rig: Rig) -> None:
        rig.loader.errors[1] = GoldenError("wrong")
        rig.publish(1)
        rig.settle()
        assert rig.statuses()[-1].models[0].refusals[0].reason == "golden"

    def test_heartbeats_go_on_while_a_load_lasts(self, rig: Rig) -> None:
        rig.publish(1)
        rig.loader.gate.clear()
        rig.step()
        sent = len(rig.statuses())
        for _ in range(3):
            rig.now_s += 6
            rig.step()
        assert len(rig.statuses()) == sent + 3
        assert rig.statuses()[-1].models[0].state is ModelState.LOADING
        rig.loader.gate.set()
        rig.settle()

    def test_a_pinned_or_stand_in_version_has_no_time_to_live(self, rig: Rig) -> None:
        rig.loader.errors[2] = GoldenError("wrong")
        rig.publish(1)
        rig.publish(2)
        rig.settle()
        assert rig.statuses()[-1].models[0].release_to_live_ms is None
