"""What `consumer/control.py` promises whoever waits, and whoever has many models: on running threads where needed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcast.consumer import control, following, reconciler
from modelcast.consumer.budget import IDLE_S
from modelcast.consumer.freshness import Freshness
from modelcast.consumer.lifecycle import State
from modelcast.consumer.servable import memory_need
from modelcast.consumer.status import Activity
from modelcast.errors import (
    BrokerError,
    GoldenError,
    LoadError,
    ModelNotFoundError,
    RepositoryNotFoundError,
    VersionNotFoundError,
)
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import ModelState
from modelcast.trust.policy import WhenStale
from tests.machine import Stopwatch

from .control_rig import DEADLINE_S, FRAUD, TOPICS, Rig, wait_until
from .registry_records import manifest, release

PINNED = ModelRef("fraud", 1)
CHURN = ModelRef("churn")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    made.init()
    return made


class TestWaiting:
    """`wait_live` on a running thread."""

    @pytest.fixture
    def plane(self, tmp_path: Path):
        rig = Rig(tmp_path)
        rig.plane = control.ControlPlane(
            rig.log, TOPICS, rig.loader, refs=[FRAUD], state_dir=tmp_path, role="client", instance="host-0"
        )
        yield rig
        rig.loader.gate.set()
        rig.plane.close()

    def test_returns_the_slot_once_something_is_live(self, plane: Rig) -> None:
        plane.init()
        plane.plane.start()
        plane.publish(1)
        assert plane.plane.wait_live(FRAUD, DEADLINE_S).live is not None

    def test_a_model_nobody_published_is_named_at_once_unless_patient(self, plane: Rig) -> None:
        plane.init()
        plane.plane.start()
        with pytest.raises(ModelNotFoundError, match="fraud"):
            plane.plane.wait_live(FRAUD, DEADLINE_S, patient=False)
        threading.Timer(0.05, lambda: plane.publish(1)).start()
        assert plane.plane.wait_live(FRAUD, DEADLINE_S).live is not None

    def test_a_model_that_was_not_released_says_how_to_release_it(self, plane: Rig) -> None:
        plane.init()
        plane.put(manifest(1))
        plane.plane.start()
        with pytest.raises(VersionNotFoundError, match="modelcast release fraud 1"):
            plane.plane.wait_live(FRAUD, DEADLINE_S, patient=False)

    def test_refusals_are_told_with_their_reasons(self, plane: Rig) -> None:
        plane.init()
        plane.loader.errors[1] = GoldenError("row 3 is off")
        plane.publish(1)
        plane.plane.start()
        with pytest.raises(LoadError, match=r"version 1 \(golden\): row 3 is off"):
            plane.plane.wait_live(FRAUD, DEADLINE_S, patient=False)

    def test_no_repository_is_told_at_once(self, plane: Rig) -> None:
        plane.plane.start()
        with pytest.raises(RepositoryNotFoundError, match="modelcast init"):
            plane.plane.wait_live(FRAUD, DEADLINE_S, patient=False)

    def test_a_broker_that_is_away_is_told_when_the_time_is_up(self, plane: Rig) -> None:
        plane.log.down = True
        plane.plane.start()
        wait_until(lambda: plane.plane.fault, "the first try")
        with pytest.raises(BrokerError, match="no broker answers"):
            plane.plane.wait_live(FRAUD, 0.3, patient=False)

    def test_a_load_that_takes_too_long_is_told(self, plane: Rig) -> None:
        plane.init()
        plane.loader.gate.clear()
        plane.publish(1)
        plane.plane.start()
        assert plane.loader.entered.wait(DEADLINE_S)
        with pytest.raises(LoadError, match=r"not loaded in 0\.3 s"):
            plane.plane.wait_live(FRAUD, 0.3, patient=False)

    def test_close_ends_within_its_time_though_a_load_hangs(self, plane: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(control, "CLOSE_TIMEOUT_S", 0.2)
        plane.init()
        plane.loader.gate.clear()
        plane.publish(1)
        plane.plane.start()
        assert plane.loader.entered.wait(DEADLINE_S)
        started = time.monotonic()
        plane.plane.close()
        assert time.monotonic() - started < DEADLINE_S / 2
        plane.loader.gate.set()
        wait_until(lambda: plane.loader.made and plane.loader.made[0].closed_by, "the late servable to be destroyed")

    def test_close_says_stopped_and_destroys_everything(self, plane: Rig) -> None:
        plane.init()
        plane.publish(1)
        plane.plane.start()
        plane.plane.wait_live(FRAUD, DEADLINE_S)
        plane.plane.close()
        assert [made.closed_by is None for made in plane.loader.made] == [False]
        assert plane.statuses()[-1].models[0].state is ModelState.STOPPED

    def test_servables_are_destroyed_on_the_control_thread(self, plane: Rig) -> None:
        plane.init()
        plane.publish(1)
        plane.plane.start()
        slot = plane.plane.wait_live(FRAUD, DEADLINE_S)
        for version in (2, 3):
            with slot.lease():
                plane.publish(version)
                wait_until(lambda v=version: slot.live.id.version == v, f"version {version} to be live")
        wait_until(lambda: plane.loader.made[0].closed_by, "version 1 to be destroyed")
        assert plane.loader.made[0].closed_by == plane.plane._thread.ident

    def test_a_defect_is_survived(self, plane: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        plane.init()
        plane.plane.start()
        decide, failures = reconciler.decide, iter([True, True])

        def fail_twice(*arguments: object) -> object:
            if next(failures, False):
                raise RuntimeError("a defect")
            return decide(*arguments)

        monkeypatch.setattr(reconciler, "decide", fail_twice)
        plane.publish(1)
        assert plane.plane.wait_live(FRAUD, DEADLINE_S).live is not None

    def test_a_small_model_is_live_soon_after_its_release(self, plane: Rig) -> None:
        plane.init()
        plane.publish(1)
        plane.plane.start()
        slot = plane.plane.wait_live(FRAUD, DEADLINE_S)
        watch = Stopwatch()
        plane.publish(2)
        wait_until(lambda: slot.live.id.version == 2, "version 2 to be live")
        assert watch.allows(watch.took_s, 1.0)


class TestManyModels:
    def test_a_pattern_brings_models_as_they_are_released_and_they_can_be_left(self, rig: Rig) -> None:
        rig.plane.follow("churn-*")
        rig.put(manifest(1, model="churn-de"), release(1, 1, model="churn-de"), manifest(1, model="churn-fr"))
        rig.settle()
        assert rig.plane.refs() == (FRAUD, ModelRef("churn-de"))
        assert rig.live(ModelRef("churn-de")) == 1
        rig.plane.unsubscribe(ModelRef("churn-de"))
        rig.settle()
        assert rig.plane.refs() == (FRAUD,)
        assert rig.loader.made[-1].closed_by is not None
        with pytest.raises(ModelNotFoundError, match="nobody subscribed to 'churn-de'"):
            rig.plane.slot(ModelRef("churn-de"))

    def test_idle_models_make_room_for_one_that_is_asked_for(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path, refs=(FRAUD, CHURN), memory_budget_bytes=memory_need(manifest(1)) + 100)
        rig.init()
        rig.publish(1)
        rig.settle()
        rig.put(manifest(1, model="churn"), release(1, 1, model="churn"))
        rig.settle()
        assert (rig.live(FRAUD), rig.live(CHURN)) == (1, None)
        assert (rig.plane.is_idle(FRAUD), rig.plane.is_idle(CHURN)) == (False, True)
        rig.now_s += IDLE_S + 1
        rig.plane.wake(CHURN)
        rig.settle()
        assert (rig.live(FRAUD), rig.live(CHURN)) == (None, 1)
        assert [model.state for model in rig.statuses()[-1].models] == [ModelState.IDLE, ModelState.LIVE]
        assert rig.loader.made[0].closed_by is not None

    def test_what_counts_what_a_model_does_is_asked_for_each_status(self, rig: Rig) -> None:
        rig.plane.set_activity(FRAUD, lambda: Activity(events=70, events_per_s=7.0, lag=3, dead_letters=1))
        rig.publish(1)
        rig.settle()
        model = rig.plane.status_snapshot().models[0]
        assert (model.events, model.events_per_s, model.lag, model.dead_letters) == (70, 7.0, 3, 1)

    def test_a_status_says_how_far_a_load_is(self, rig: Rig) -> None:
        rig.publish(1)
        rig.loader.gate.clear()
        rig.step()
        assert rig.loader.entered.wait(DEADLINE_S)
        wait_until(lambda: rig.step() or rig.statuses()[-1].models[0].next_state == State.WARMING, "the last step")
        assert rig.statuses()[-1].models[0].next_version == 1
        rig.loader.gate.set()
        rig.settle()
        assert rig.statuses()[-1].models[0].next_state is None

    def test_f12_what_is_stale_where_it_must_not_be_serves_nothing_until_it_is_fresh(self, tmp_path: Path) -> None:
        freshness = Freshness(max_stale_s=60, when_stale=WhenStale.STOP)
        rig = Rig(tmp_path, freshness=freshness)
        rig.init()
        rig.publish(1)
        rig.settle()
        rig.log.down = True
        rig.now_s += following.PROBE_S
        rig.settle()
        rig.now_s += 61
        rig.settle()
        stale = rig.plane.stale(FRAUD)
        assert stale is not None
        assert stale.stop
        assert rig.live() is None
        assert [refusal.reason for refusal in rig.plane.refusals(FRAUD)] == ["stale"]
        rig.log.down = False
        rig.now_s += following.PROBE_S
        rig.settle()
        assert (rig.live(), rig.plane.refusals(FRAUD), rig.loader.calls) == (1, (), [1, 1])


def test_models_that_share_one_room_are_all_of_use(tmp_path: Path) -> None:
    """Whoever waits for one that was live for a moment, and let go for another, asks for it again."""
    refs = (FRAUD, CHURN)
    rig = Rig(tmp_path, refs=refs)
    rig.init()
    for ref in refs:
        rig.put(manifest(1, model=ref.model), release(1, 1, model=ref.model))
    rig.plane = control.ControlPlane(
        rig.log,
        TOPICS,
        rig.loader,
        refs=refs,
        role="client",
        instance="host-0",
        memory_budget_bytes=memory_need(manifest(1)) * 3 // 2,
        idle_s=0.0,
    )
    used = dict.fromkeys(refs, 0)

    def use(ref: ModelRef) -> None:
        while used[ref] < 5:
            slot = rig.plane.wait_live(ref, DEADLINE_S, patient=False)
            with contextlib.suppress(ModelNotFoundError), slot.lease():
                used[ref] += 1

    with rig.plane:
        threads = [threading.Thread(target=use, args=(ref,)) for ref in refs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert list(used.values()) == [5, 5]


class TestTrouble:
    """What must not leave a control plane waiting for ever."""

    def test_the_end_of_a_load_outlives_a_turn_that_failed(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise PermissionError("the state folder")

        rig.loader.gate.clear()
        rig.publish(1)
        wait_until(lambda: rig.step() or rig.loader.calls, "a load")
        with monkeypatch.context() as patch:
            patch.setattr(rig.plane._marking, "raised", fail)
            rig.loader.gate.set()
            wait_until(lambda: rig.loader.made and not rig.plane._worker._news.empty(), "the end of the load")
            with pytest.raises(PermissionError):
                rig.step()
        rig.settle()
        assert rig.live() == 1

    def test_who_subscribes_again_amid_a_turn_waits_for_the_registry_anew(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rig.settle()
        raised = rig.plane._marking.raised

        def meanwhile(*what: object) -> object:
            rig.plane.unsubscribe(FRAUD)
            rig.plane.subscribe(FRAUD)
            return raised(*what)

        rig.plane.unsubscribe(FRAUD)
        rig.plane.subscribe(FRAUD)
        rig.plane._follower.turn(0.0)  # as far as the first of them asked
        with monkeypatch.context() as patch:
            patch.setattr(rig.plane._marking, "raised", meanwhile)
            rig.plane.step()
        rig.plane.step()
        assert not rig.plane.is_hopeless(FRAUD), "it may have been released before the second asked"
        rig.settle()
        assert rig.plane.is_hopeless(FRAUD)

    def test_what_was_settled_before_the_registry_was_read_to_its_end_is_no_reason_to_give_up(self, rig: Rig) -> None:
        """A turn amid the question, as another thread takes it: a version was released, and is being loaded."""
        line = rig.plane._reconciler.line(FRAUD)

        class Amid(type(line)):
            @property
            def is_caught_up(self) -> bool:
                self.is_settled = False
                return True

        line.is_settled = True
        del line.is_caught_up
        line.__class__ = Amid
        assert not rig.plane.is_hopeless(FRAUD)

    def test_a_count_that_fails_leaves_nothing_behind_at_the_end(self, tmp_path: Path) -> None:
        def fail() -> Activity:
            raise RuntimeError("a defect")

        rig = Rig(tmp_path)
        rig.init()
        rig.publish(1)
        rig.plane.start()
        rig.plane.wait_live(FRAUD, DEADLINE_S)
        rig.plane.set_activity(FRAUD, fail)
        rig.plane.close()
        assert rig.loader.made[0].closed_by is not None


class TestWaking:
    """The control thread sleeps until something happens: none of these may take its longest wait."""

    @pytest.fixture
    def awake(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
        monkeypatch.setattr(control, "IDLE_WAIT_S", 3600.0)
        rig = Rig(tmp_path)
        rig.plane = control.ControlPlane(
            rig.log, TOPICS, rig.loader, refs=[FRAUD], state_dir=tmp_path, role="client", instance="host-0"
        )
        rig.init()
        rig.publish(1)
        rig.plane.start()
        yield rig
        rig.loader.gate.set()
        rig.plane.close()

    def test_releases_loads_leases_subscriptions_failures_and_the_end(self, awake: Rig) -> None:
        slot = awake.plane.wait_live(FRAUD, DEADLINE_S)
        with slot.lease():
            for version in (2, 3):
                awake.publish(version)
                wait_until(lambda v=version: awake.live() == v, f"version {version} to be live")
        wait_until(lambda: awake.loader.made[0].closed_by, "version 1 to be destroyed when its lease ends")
        pinned = awake.plane.subscribe(PINNED)
        assert pinned.wait_live(DEADLINE_S)
        awake.plane.report_failure(FRAUD, ModelVersion("fraud", 3), "every row of a batch failed")
        wait_until(lambda: awake.live() == 2, "version 2 to serve again")
        awake.plane.unsubscribe(PINNED)
        wait_until(lambda: awake.loader.made[-1].closed_by, "the unsubscribed version to be destroyed")
        awake.plane.follow("churn-*")
        awake.put(manifest(1, model="churn-de"), release(1, 1, model="churn-de"))
        churn = ModelRef("churn-de")
        wait_until(lambda: churn in awake.plane.refs() and awake.live(churn) == 1, "a model that a pattern brings")
        awake.loader.errors[4] = BrokerError("away")
        awake.publish(4)
        wait_until(lambda: awake.plane.refusals(FRAUD), "a refusal")
        awake.loader.errors.clear()
        wait_until(lambda: awake.live() == 4, "the retry, when it is due")
        started = time.monotonic()
        awake.plane.close()
        assert time.monotonic() - started < DEADLINE_S
