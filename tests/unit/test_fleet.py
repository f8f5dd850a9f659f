"""The fleet as a value: who is there, what is wrong, how far a version has come."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.consumer.policy import reason_of
from modelcast.errors import BrokerError, CacheError, GoldenError, QuarantinedError
from modelcast.fleet.fleet import (
    FINAL_REASONS,
    FORGET_AFTER_MS,
    HEARTBEATS_MISSED,
    LOST_GRACE_MS,
    MAX_HEARTBEAT_MS,
    STALE_TOLERATED_MS,
    Fleet,
    Presence,
    Roster,
    presence_of,
    rollout,
)
from modelcast.log import LogRecord
from modelcast.names import ModelVersion
from modelcast.records import InstanceStatus, ModelState

from .fleet_records import NOW_MS, STATUS_TOPIC, model, record, refusal, status

PATIENCE_MS = HEARTBEATS_MISSED * 5_000 + LOST_GRACE_MS
FRAUD_8 = ModelVersion("fraud", 8)


def fleet_of(*statuses: InstanceStatus, now_ms: int = NOW_MS) -> Fleet:
    roster = Roster()
    for said in statuses:
        roster.replay(record(said), said.at_ms)
    return roster.fleet(now_ms)


class TestPresence:
    def test_the_last_word_of_each_instance_counts(self) -> None:
        fleet = fleet_of(status("a", model(version=1)), status("b"), status("a", model(version=2)))
        assert [instance.name for instance in fleet.instances] == ["a", "b"]
        assert fleet.instances[0].status.models[0].live_version == 2

    def test_an_instance_runs_until_it_missed_too_many_heartbeats(self) -> None:
        assert presence_of(status(), PATIENCE_MS) is Presence.RUNNING
        assert presence_of(status(), PATIENCE_MS + 1) is Presence.LOST

    def test_each_says_itself_how_often_it_speaks(self) -> None:
        slow = status(heartbeat_ms=60_000)
        assert presence_of(slow, HEARTBEATS_MISSED * 60_000) is Presence.RUNNING
        assert presence_of(slow, HEARTBEATS_MISSED * 60_000 + LOST_GRACE_MS + 1) is Presence.LOST

    @pytest.mark.parametrize("heartbeat_ms", [2**31 - 1, MAX_HEARTBEAT_MS])
    def test_one_that_promises_a_heartbeat_a_month_is_missed_all_the_same(self, heartbeat_ms: int) -> None:
        silent_ms = HEARTBEATS_MISSED * MAX_HEARTBEAT_MS + LOST_GRACE_MS + 1
        assert presence_of(status(heartbeat_ms=heartbeat_ms), silent_ms) is Presence.LOST

    def test_one_that_said_goodbye_has_stopped_and_is_never_lost(self) -> None:
        assert presence_of(status(ended=True), 0) is Presence.STOPPED
        assert presence_of(status(ended=True), 10 * PATIENCE_MS) is Presence.STOPPED

    def test_before_there_was_a_word_for_it_stopped_models_said_so(self) -> None:
        stopped = model(version=None, state=ModelState.STOPPED)
        assert presence_of(status("a", stopped, stopped), 0) is Presence.STOPPED
        assert presence_of(status("a", stopped, model()), 0) is Presence.RUNNING
        assert presence_of(status("a"), 0) is Presence.RUNNING  # it follows nothing (yet)

    def test_a_tombstone_takes_an_instance_away(self) -> None:
        roster = Roster()
        roster.replay(record(status("a")), NOW_MS)
        roster.replay(LogRecord(STATUS_TOPIC, 0, 1, NOW_MS, b"a", None), NOW_MS)
        assert roster.fleet(NOW_MS).instances == ()

    def test_who_does_not_run_is_forgotten_after_a_while(self) -> None:
        lost, ended = status("lost"), status("ended", ended=True)
        assert len(fleet_of(lost, ended, now_ms=NOW_MS + FORGET_AFTER_MS).instances) == 2
        assert fleet_of(lost, ended, now_ms=NOW_MS + FORGET_AFTER_MS + 1).instances == ()

    def test_who_runs_is_never_forgotten(self) -> None:
        roster = Roster()
        roster.replay(record(status("a")), NOW_MS)
        assert len(roster.fleet(NOW_MS + 1_000, forget_after_ms=0).instances) == 1

    def test_while_the_reader_was_deaf_nobody_was_silent(self) -> None:
        roster = Roster()
        roster.replay(record(status("a")), NOW_MS)
        roster.excuse(100_000)
        assert roster.fleet(NOW_MS + 100_000 + PATIENCE_MS).instances[0].is_running

    @pytest.mark.parametrize("value", [b"", b"garbage", b"\xc3\x01" + bytes(8) + b"newer"])
    def test_what_cannot_be_read_is_kept_by_name(self, value: bytes) -> None:
        roster = Roster()
        roster.replay(LogRecord(STATUS_TOPIC, 0, 0, NOW_MS, b"newer", value), NOW_MS)
        fleet = roster.fleet(NOW_MS)
        assert (fleet.instances, fleet.unreadable) == ((), ("newer",))
        assert [problem.kind for problem in fleet.problems()] == ["unreadable"]

    def test_a_status_under_another_instances_key_is_not_believed(self) -> None:
        roster = Roster()
        roster.replay(record(status("a"), key=b"b"), NOW_MS)
        assert roster.fleet(NOW_MS).unreadable == ("b",)


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 9)), max_size=30),
    st.data(),
)
def test_reading_backwards_in_stretches_gives_what_reading_forwards_gives(
    said: list[tuple[str, int]], data: st.DataObject
) -> None:
    records = [record(status(name, model(version=version + 1)), offset=i) for i, (name, version) in enumerate(said)]
    forwards = Roster()
    for entry in records:
        forwards.replay(entry, NOW_MS)
    backwards, end = Roster(), len(records)
    while end:
        start = data.draw(st.integers(0, end - 1))
        stretch = Roster()
        for entry in records[start:end]:
            stretch.replay(entry, NOW_MS)
        backwards.put_under(stretch)
        end = start
    assert backwards.fleet(NOW_MS) == forwards.fleet(NOW_MS)


class TestProblems:
    def kinds(self, *statuses: InstanceStatus, now_ms: int = NOW_MS) -> list[str]:
        return [problem.kind for problem in fleet_of(*statuses, now_ms=now_ms).problems()]

    def test_a_fleet_in_order_has_none(self) -> None:
        idle = model("rare", None, state=ModelState.IDLE)
        coming = model("new", None, state=ModelState.LOADING, next_version=1, next_state="fetching")
        assert self.kinds(status("a", model(), idle, coming), status("b", ended=True)) == []

    def test_an_instance_that_is_lost_is_one_and_its_models_are_none(self) -> None:
        assert self.kinds(status("a", model(version=None)), now_ms=NOW_MS + 60_000) == ["lost"]

    def test_nothing_live_and_nothing_coming_is_one(self) -> None:
        assert self.kinds(status("a", model(version=None))) == ["waiting"]

    def test_a_refusal_says_more_than_that_nothing_is_live(self) -> None:
        assert self.kinds(status("a", model(version=None, refusals=(refusal(),)))) == ["refused"]

    def test_a_version_refused_since_the_live_one_went_live_is_one(self) -> None:
        before, since = refusal(6, at_ms=NOW_MS - 61_000), refusal(8, at_ms=NOW_MS - 59_000)
        (problem,) = fleet_of(status("a", model(refusals=(before, since)))).problems()
        assert (problem.kind, problem.model, problem.version, problem.reason) == ("refused", "fraud", 8, "golden")

    def test_what_is_wanted_and_refused_is_one_whenever_that_was(self) -> None:
        refused = (refusal(8, at_ms=NOW_MS - 1_000_000),)
        assert self.kinds(status("a", model(version=7, wanted_version=8, refusals=refused))) == ["refused"]

    def test_a_rollback_settles_a_refusal(self) -> None:
        assert self.kinds(status("a", model(version=7, wanted_version=7, refusals=(refusal(8),)))) == []

    def test_a_release_whose_content_nobody_knows_is_refused_all_the_same(self) -> None:
        untrusted = model(version=7, wanted_version=7, refusals=(refusal(0, "untrusted"),))
        assert self.kinds(status("a", untrusted)) == ["refused"]

    def test_one_that_is_being_tried_again_is_not_refused_now(self) -> None:
        again = model(refusals=(refusal(8, "broker"),), next_version=8, next_state="fetching")
        assert self.kinds(status("a", again)) == []

    def test_a_registry_that_cannot_be_followed_is_one_after_a_while(self) -> None:
        assert self.kinds(status("a", model(), stale_ms=STALE_TOLERATED_MS - 1)) == []
        assert self.kinds(status("a", model(), stale_ms=STALE_TOLERATED_MS)) == ["stale"]

    def test_a_stale_model_is_one_problem_with_the_words_of_its_refusal(self) -> None:
        stale = model(version=None, stale=True, refusals=(refusal(7, "stale"),))
        (problem,) = fleet_of(status("a", stale)).problems()
        assert (problem.kind, problem.message) == ("stale", "version 7 is not right")
        assert self.kinds(status("a", model(stale=True))) == ["stale"]


class TestSelect:
    FLEET = fleet_of(
        status("web-0", model("fraud"), model("churn-de")), status("web-1", model("churn-fr")), status("job-0")
    )

    def names(self, **globs: list[str]) -> list[tuple[str, list[str]]]:
        fleet = self.FLEET.select(**globs)
        return [(instance.name, [entry.model for entry in instance.status.models]) for instance in fleet.instances]

    def test_without_globs_everything_stays(self) -> None:
        assert self.FLEET.select() == self.FLEET

    def test_models_by_glob_take_their_instances_along(self) -> None:
        assert self.names(models=["churn-*"]) == [("web-0", ["churn-de"]), ("web-1", ["churn-fr"])]

    def test_instances_by_glob(self) -> None:
        assert self.names(instances=["job-*", "web-1"]) == [("job-0", []), ("web-1", ["churn-fr"])]

    def test_both(self) -> None:
        assert self.names(models=["fraud"], instances=["web-1"]) == []


class TestRollout:
    def test_it_is_done_when_every_running_instance_of_the_model_runs_the_version(self) -> None:
        a, b, other = status("a", model(version=8)), status("b", model(version=7)), status("c", model("churn", 1))
        assert not rollout(fleet_of(a, b, other), FRAUD_8).is_done
        assert rollout(fleet_of(a, status("b", model(version=8)), other), FRAUD_8).live == ("a", "b")
        assert rollout(fleet_of(a, status("b", model(version=8)), other), FRAUD_8).is_done

    def test_with_nobody_there_it_is_not(self) -> None:
        assert not rollout(fleet_of(status("c", model("churn", 1))), FRAUD_8).is_done

    def test_the_lost_and_the_stopped_hold_it_up_no_longer(self) -> None:
        running = status("a", model(version=8), at_ms=NOW_MS + 60_000)
        lost, stopped = status("b", model(version=7)), status("c", model(version=7), ended=True)
        assert rollout(fleet_of(running, lost, stopped, now_ms=NOW_MS + 60_000), FRAUD_8).is_done

    def test_who_is_pinned_elsewhere_or_idle_need_not(self) -> None:
        pinned = status("b", model(version=5, pinned=5))
        idle = status("c", model(version=None, state=ModelState.IDLE))
        found = rollout(fleet_of(status("a", model(version=8)), pinned, idle), FRAUD_8)
        assert (found.is_done, found.aside) == (True, ("b", "c"))

    def test_who_is_pinned_to_it_must(self) -> None:
        assert not rollout(fleet_of(status("b", model(version=None, pinned=8))), FRAUD_8).is_done

    def test_a_refusal_that_repeats_itself_is_told_at_once(self) -> None:
        found = rollout(fleet_of(status("a", model(refusals=(refusal(8),)))), FRAUD_8)
        assert [(problem.instance, problem.reason) for problem in found.refused] == [("a", "golden")]

    @pytest.mark.parametrize("error", [BrokerError("x"), CacheError("x"), OSError("x"), QuarantinedError("x")])
    def test_what_may_pass_is_waited_for(self, error: BaseException) -> None:
        passing = status("a", model(refusals=(refusal(8, reason_of(error)),)))
        assert rollout(fleet_of(passing), FRAUD_8).refused == ()

    def test_a_refusal_of_another_version_says_nothing_of_this_one(self) -> None:
        assert rollout(fleet_of(status("a", model(refusals=(refusal(9),)))), FRAUD_8).refused == ()


def test_checks_that_fail_again_on_the_same_bytes_are_final() -> None:
    assert reason_of(GoldenError("x")) in FINAL_REASONS
    assert {"integrity", "binding", "structure", "failed-live"} <= FINAL_REASONS
    assert not FINAL_REASONS & {"broker", "store", "disk", "setup", "internal", "quarantined", "stale"}


def test_an_instance_is_shown_with_the_models_it_had() -> None:
    """What was live in a lost instance is what is not scored now."""
    (instance,) = fleet_of(status("a", model(version=7)), now_ms=NOW_MS + 60_000).instances
    assert replace(instance.status, at_ms=0).models[0].live_version == 7
