"""What `consumer/reconciler.py` promises beside the policy: loads, patterns, memory, staleness, live failures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelcast.consumer import reconciler
from modelcast.consumer.budget import IDLE_S
from modelcast.consumer.freshness import Stale, StaleReason
from modelcast.consumer.lifecycle import State
from modelcast.consumer.line import AWAITED_S, ROOM_AWAITED_S, Line
from modelcast.consumer.policy import MAX_RETRY_S, Action, Preserve, View, decide
from modelcast.consumer.reconciler import Moment
from modelcast.errors import BrokerError, GoldenError, ModelNotFoundError, OutOfMemoryError
from modelcast.names import ModelRef
from modelcast.records import ModelState
from modelcast.registry.image import ModelEntry, RegistryImage

from .reconciler_rig import CHURN, FRAUD, Bench
from .registry_records import REPOSITORY

RISK = ModelRef("risk")


def stale(*, stop: bool, message: str = "the registry was not followed for too long") -> Stale:
    return Stale(StaleReason.UNREACHABLE, 5, stop, message)


class TestLoading:
    def test_a_version_takes_every_step_and_says_where_it_is(self) -> None:
        bench = Bench(FRAUD)
        bench.registry.put(1)
        bench.turn()
        line = bench.line()
        seen = []
        for state in (State.FETCHING, State.VERIFYING, State.LOADING, State.WARMING):
            bench.reconciler.stepped(state)
            status = line.status()
            seen.append((status.state, status.next_version, status.next_state))
        assert seen == [
            (ModelState.LOADING, 1, state) for state in (State.FETCHING, State.VERIFYING, State.LOADING, State.WARMING)
        ]
        bench.finish()
        status = line.status()
        assert (status.state, status.live_version, status.next_version) == (ModelState.LIVE, 1, None)
        assert bench.told() == ["fraud@1 live"]

    @pytest.mark.parametrize("last", [None, State.FETCHING, State.VERIFYING, State.LOADING, State.WARMING])
    def test_a_load_may_fail_at_every_step(self, last: State | None) -> None:
        bench = Bench(FRAUD)
        bench.registry.put(1)
        bench.settle()
        bench.registry.put(2)
        bench.turn()
        if last is not None:
            bench.reconciler.stepped(last)
        bench.finish(GoldenError("row 3 is off"))
        assert bench.live() == 1
        assert bench.told() == ["fraud@1 live", "fraud@2 golden"]
        assert State.REFUSED in bench.line().slot.states().values()

    def test_one_load_at_a_time_and_releases_in_quick_succession_hold_up_no_other_model(self) -> None:
        bench = Bench(FRAUD, CHURN)
        bench.registry.put(1)
        bench.registry.put(1, "churn")
        bench.settle()
        bench.registry.put(2)
        bench.turn()
        bench.registry.put(3)
        bench.registry.put(2, "churn")
        bench.finish()
        bench.registry.put(4)
        bench.settle()
        assert bench.loads[2:] == ["fraud@2", "churn@2", "fraud@4"]

    def test_what_is_asked_for_is_loaded_first(self) -> None:
        bench = Bench(FRAUD, CHURN, RISK)
        for model in ("fraud", "churn", "risk"):
            bench.registry.put(1, model)
        bench.reconciler.wake(RISK)
        bench.settle()
        assert bench.loads == ["risk@1", "fraud@1", "churn@1"]

    def test_a_retry_says_when_it_is_due_and_one_that_waits_for_a_load_does_not(self) -> None:
        bench = Bench(FRAUD, CHURN)
        bench.registry.put(1)
        bench.turn()
        bench.finish(BrokerError("away"))
        assert bench.turn().due_s == pytest.approx(bench.now_s + 0.5)
        bench.registry.put(1, "churn")
        bench.turn()
        bench.now_s += 1
        assert bench.turn().due_s is None
        bench.finish()
        assert bench.loads == ["fraud@1", "churn@1", "fraud@1"]

    def test_an_unsubscribed_model_is_let_go_and_its_load_too(self) -> None:
        bench = Bench(FRAUD, CHURN)
        bench.registry.put(1)
        bench.settle()
        bench.registry.put(2)
        bench.turn()
        bench.reconciler.unsubscribe(FRAUD)
        bench.turn()
        assert bench.loaded() == []
        bench.finish()
        assert (bench.loaded(), bench.reconciler.slots()) == ([], [(CHURN, bench.line(CHURN).slot)])
        with pytest.raises(ModelNotFoundError, match="nobody subscribed to 'fraud'"):
            bench.line(FRAUD)

    def test_an_unsubscribed_model_that_fails_to_load_is_forgotten(self) -> None:
        bench = Bench(FRAUD)
        bench.registry.put(1)
        bench.turn()
        bench.reconciler.unsubscribe(FRAUD)
        bench.finish(GoldenError("wrong"))
        bench.turn()
        assert (bench.reconciler.slots(), bench.news) == ([], [])


class TestPatterns:
    def test_models_are_followed_as_they_are_released(self) -> None:
        bench = Bench()
        bench.registry.put(1, "fraud-de")
        bench.registry.publish(1, "fraud-fr")
        bench.registry.put(1, "churn")
        bench.reconciler.follow("fraud-*")
        bench.settle()
        assert bench.loads == ["fraud-de@1"]
        bench.registry.release(1, "fraud-fr")
        bench.settle()
        assert bench.loads == ["fraud-de@1", "fraud-fr@1"]

    def test_a_pattern_followed_later_finds_what_was_there(self) -> None:
        bench = Bench()
        bench.registry.put(1, "fraud-de")
        bench.settle()
        bench.reconciler.follow("fraud-*")
        bench.settle()
        assert bench.live(ModelRef("fraud-de")) == 1

    def test_whoever_was_unsubscribed_by_name_stays_out_until_subscribed_by_name(self) -> None:
        bench = Bench()
        bench.reconciler.follow("fraud-*")
        bench.registry.put(1, "fraud-de")
        bench.settle()
        bench.reconciler.unsubscribe(ModelRef("fraud-de"))
        bench.registry.put(2, "fraud-de")
        bench.settle()
        assert (bench.reconciler.lines, bench.loaded()) == ({}, [])
        bench.reconciler.subscribe(ModelRef("fraud-de"))
        bench.settle()
        assert bench.live(ModelRef("fraud-de")) == 2

    def test_no_more_models_are_followed_than_a_status_can_hold(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(reconciler, "MAX_FOLLOWED", 2)
        bench = Bench()
        bench.reconciler.follow("*")
        for model in ("a", "b", "c", "d"):
            bench.registry.put(1, model)
        bench.settle()
        assert bench.loaded() == ["a@1", "b@1"]
        assert bench.reconciler.passed_over == 2


class TestMemory:
    def test_models_nobody_asks_for_are_loaded_while_there_is_room_and_then_idle(self) -> None:
        bench = Bench(FRAUD, CHURN, RISK, budget_bytes=10)
        for model in ("fraud", "churn", "risk"):
            bench.registry.put(1, model, size=5)
        bench.settle()
        assert bench.loaded() == ["churn@1", "fraud@1"]
        assert bench.line(RISK).is_idle
        assert bench.line(RISK).status().state is ModelState.IDLE
        bench.now_s += 10 * IDLE_S
        bench.settle()
        assert bench.loads == ["fraud@1", "churn@1"]
        assert bench.told() == ["fraud@1 live", "churn@1 live"]

    def test_what_is_asked_for_takes_the_place_of_the_longest_idle(self) -> None:
        bench = Bench(FRAUD, CHURN, RISK, budget_bytes=10)
        for model in ("fraud", "churn", "risk"):
            bench.registry.put(1, model, size=5)
        bench.settle()
        bench.now_s += 5
        bench.use(FRAUD)
        bench.turn()
        bench.now_s += IDLE_S
        bench.reconciler.wake(RISK)
        bench.settle()
        assert bench.loaded() == ["fraud@1", "risk@1"]
        assert bench.told()[-2:] == ["churn@1 evicted", "risk@1 live"]
        assert (bench.line(CHURN).is_idle, bench.line(RISK).is_idle) == (True, False)

    def test_what_was_evicted_comes_back_when_asked_for_and_not_before(self) -> None:
        bench = Bench(FRAUD, CHURN, budget_bytes=5)
        bench.registry.put(1, size=5)
        bench.registry.put(1, "churn", size=5)
        bench.settle()
        bench.now_s += IDLE_S
        bench.reconciler.wake(CHURN)
        bench.settle()
        assert (bench.live(FRAUD), bench.live(CHURN)) == (None, 1)
        bench.registry.put(2, size=5)
        bench.reconciler.unsubscribe(CHURN)
        bench.settle()
        assert bench.loaded() == []
        bench.reconciler.wake(FRAUD)
        bench.settle()
        assert bench.live(FRAUD) == 2

    def test_want_of_memory_is_told_once_where_somebody_asks_and_ends_by_itself(self) -> None:
        bench = Bench(FRAUD, CHURN, budget_bytes=5)
        bench.registry.put(1, size=5)
        bench.settle()
        bench.registry.put(1, "churn", size=5)
        bench.reconciler.wake(CHURN)
        for _ in range(3):
            bench.now_s += 10
            bench.settle()
        assert bench.told() == ["fraud@1 live", "churn@1 memory"]
        (refusal,) = bench.line(CHURN).refusals()
        assert "needs 0.0 MiB of a memory budget of 0.0 MiB" in refusal.message
        bench.now_s += IDLE_S
        bench.settle()
        assert bench.live(CHURN) == 1
        assert bench.line(CHURN).refusals() == ()

    def test_want_of_memory_that_is_over_in_a_moment_is_not_told(self) -> None:
        bench = Bench(FRAUD, CHURN, budget_bytes=5, idle_s=0.0)
        bench.registry.put(1, size=5)
        bench.registry.put(1, "churn", size=5)
        bench.reconciler.wake(FRAUD)
        bench.settle()
        bench.reconciler.wake(CHURN)  # at once, before whoever asked for the other one could use it
        bench.turn()
        (refusal,) = bench.line(CHURN).refusals()
        assert refusal.reason == "memory"
        bench.now_s += AWAITED_S
        bench.settle()
        assert bench.told() == ["fraud@1 live", "fraud@1 evicted", "churn@1 live"]

    def test_an_update_that_finds_no_room_leaves_the_live_version_and_is_told(self) -> None:
        bench = Bench(FRAUD, CHURN, budget_bytes=10)
        bench.registry.put(1, size=5)
        bench.registry.put(1, "churn", size=5)
        bench.settle()
        bench.use(CHURN)
        bench.use(FRAUD)
        bench.registry.put(2, size=5)
        bench.settle()
        bench.now_s += ROOM_AWAITED_S
        bench.settle()
        assert (bench.live(FRAUD), bench.live(CHURN)) == (1, 1)
        assert bench.told()[-1] == "fraud@2 memory"
        bench.now_s += IDLE_S
        bench.use(FRAUD)
        bench.settle()
        assert (bench.live(FRAUD), bench.live(CHURN)) == (2, None)

    def test_kept_versions_make_room_first(self) -> None:
        bench = Bench(FRAUD, CHURN, budget_bytes=10)
        for version in (1, 2):
            bench.registry.put(version, size=4)
            bench.settle()
        assert bench.loaded() == ["fraud@1", "fraud@2"]
        bench.registry.put(1, "churn", size=5)
        bench.settle()
        assert bench.loaded() == ["churn@1", "fraud@2"]

    def test_memory_that_is_leased_is_waited_for(self) -> None:
        bench = Bench(FRAUD, CHURN, budget_bytes=5)
        bench.registry.put(1, size=5)
        bench.settle()
        bench.registry.put(1, "churn", size=5)
        bench.now_s += IDLE_S
        bench.reconciler.wake(CHURN)
        with bench.line(FRAUD).slot.lease() as servable:
            bench.now_s += IDLE_S
            bench.turn()
            bench.now_s += IDLE_S
            bench.turn()
            assert (bench.job, servable.is_closed) == (None, False)
        bench.settle()
        assert bench.live(CHURN) == 1

    def test_what_can_never_fit_is_refused_and_an_older_version_serves(self) -> None:
        bench = Bench(FRAUD, budget_bytes=5)
        bench.registry.put(1, size=5)
        bench.registry.put(2, size=6)
        bench.settle()
        assert bench.live() == 1
        assert bench.told() == ["fraud@2 memory", "fraud@1 live"]

    def test_f24_out_of_memory_lets_what_is_kept_go_and_tries_again(self) -> None:
        bench = Bench(FRAUD, CHURN)
        for version in (1, 2):
            bench.registry.put(version, "churn")
            bench.settle()
        bench.registry.put(1)
        bench.turn()
        bench.finish(OutOfMemoryError("the device has 2 MiB left"))
        assert bench.loaded() == ["churn@2"]
        assert bench.told()[-1] == "fraud@1 out-of-memory"
        bench.settle()
        assert bench.live() == 1

    def test_f24_where_resources_are_preserved_it_is_not_tried_again_for_nothing(self) -> None:
        bench = Bench(FRAUD, CHURN, preserve=Preserve.RESOURCES)
        bench.registry.put(1)
        bench.registry.put(1, "churn")
        bench.settle()
        bench.registry.put(2)
        bench.turn()
        assert bench.live() is None
        bench.finish(OutOfMemoryError("the device has 2 MiB left"))
        bench.settle()
        bench.now_s += 10 * MAX_RETRY_S
        bench.settle()
        assert (bench.live(), bench.loads[2:]) == (1, ["fraud@2", "fraud@1"])
        bench.reconciler.unsubscribe(CHURN)  # its memory may be enough
        bench.settle()
        assert bench.live() == 2

    def test_whoever_sees_an_evicted_model_empty_sees_that_it_is_idle(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A prediction at that moment asks for the model, instead of being told that there is none."""
        bench = Bench(FRAUD, CHURN, budget_bytes=100)
        for model in ("fraud", "churn"):
            bench.registry.put(1, model, size=60)
        bench.settle()
        line, clear, seen = bench.line(), bench.line().slot.clear, []

        def watched() -> None:
            clear()
            seen.append((line.slot.live, line.is_idle))

        monkeypatch.setattr(line.slot, "clear", watched)
        bench.now_s += IDLE_S + 1
        bench.reconciler.wake(CHURN)
        bench.settle()
        assert seen == [(None, True)]

    def test_whoever_asked_for_a_model_has_a_moment_to_use_it(self) -> None:
        """Two that are asked for at once would make room for each other, and neither ever answer."""
        bench = Bench(FRAUD, CHURN, budget_bytes=100, idle_s=0.0)
        for model in ("fraud", "churn"):
            bench.registry.put(1, model, size=60)
        bench.reconciler.wake(FRAUD)
        bench.reconciler.wake(CHURN)
        bench.settle()
        assert (bench.live(), bench.live(CHURN)) == (1, None)
        assert bench.turn().due_s == pytest.approx(bench.now_s + AWAITED_S)
        bench.use()
        bench.settle()
        assert (bench.live(), bench.live(CHURN)) == (None, 1)
        bench.reconciler.wake(FRAUD)
        bench.now_s += AWAITED_S
        bench.settle()
        assert (bench.live(), bench.live(CHURN)) == (1, None)

    def test_a_turn_of_many_idle_models_looks_at_each_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is turned every second: at 600 models, half a core went into looking at all for each."""
        refs = [ModelRef(f"model-{number}") for number in range(50)]
        bench = Bench(*refs, budget_bytes=10)
        for ref in refs:
            bench.registry.put(1, ref.model)
        bench.settle()
        looks: list[Line] = []
        holdings = Line.holdings
        monkeypatch.setattr(Line, "holdings", lambda line, now_s: looks.append(line) or holdings(line, now_s))
        bench.turn()
        assert len(looks) <= 2 * len(refs)


class TestPreservingResources:
    def test_one_model_at_a_time_is_without_a_live_version(self) -> None:
        refs = (FRAUD, CHURN, RISK)
        bench = Bench(*refs, preserve=Preserve.RESOURCES)
        for version in (1, 2):
            for ref in refs:
                bench.registry.put(version, ref.model)
            if version == 1:
                bench.settle()
        bench.turn()
        while bench.job is not None:
            assert [bench.live(ref) for ref in refs].count(None) == 1
            bench.finish()
        assert [bench.live(ref) for ref in refs] == [2, 2, 2]

    def test_one_that_is_still_in_use_is_waited_for(self) -> None:
        bench = Bench(FRAUD, CHURN, preserve=Preserve.RESOURCES)
        for version in (1, 2):
            bench.registry.put(version)
            bench.registry.put(version, "churn")
            if version == 1:
                bench.settle()
        with bench.line().slot.lease():
            bench.turn()
            bench.turn()
            assert (bench.live(), bench.live(CHURN), bench.job) == (None, 1, None)
            bench.now_s += reconciler.LAST_LEASE_S  # not for ever: it may hang
            bench.settle()
            assert (bench.live(), bench.live(CHURN)) == (None, 2)
        bench.settle()
        assert (bench.live(), bench.live(CHURN)) == (2, 2)

    def test_a_version_that_made_way_was_replaced_all_the_same(self) -> None:
        bench = Bench(FRAUD, preserve=Preserve.RESOURCES)
        for version in (1, 2, 3):
            bench.registry.put(version)
            bench.settle()
        assert (bench.live(), bench.line().status().swaps) == (3, 2)
        bench.line().clear()
        bench.settle()  # the same one again
        assert (bench.live(), bench.line().status().swaps) == (3, 2)

    def test_nothing_makes_way_for_a_version_that_finds_no_room(self) -> None:
        bench = Bench(FRAUD, CHURN, budget_bytes=100, preserve=Preserve.RESOURCES)
        bench.registry.put(1, size=40)
        bench.registry.put(1, "churn", size=50)
        bench.settle()
        bench.registry.put(2, size=60)
        for _ in range(3):
            bench.now_s += IDLE_S / 2
            bench.use(FRAUD)
            bench.use(CHURN)
            bench.settle()
            assert (bench.live(), bench.live(CHURN)) == (1, 1)
        assert bench.told()[2:] == ["fraud@2 memory"]
        bench.now_s += IDLE_S + 1
        bench.use(FRAUD)
        bench.settle()
        assert (bench.live(), bench.live(CHURN)) == (2, None)

    def test_the_room_that_was_made_is_the_successors(self) -> None:
        bench = Bench(FRAUD, CHURN, budget_bytes=100, preserve=Preserve.RESOURCES)
        bench.registry.put(1, size=60)
        bench.settle()
        bench.use()
        bench.registry.put(1, "churn", size=60)
        bench.reconciler.wake(CHURN)
        bench.turn()
        bench.now_s += ROOM_AWAITED_S
        bench.turn()
        assert bench.told()[1:] == ["churn@1 memory"]
        bench.registry.put(2, size=70)
        bench.settle()
        assert (bench.live(), bench.live(CHURN)) == (2, None)

    def test_models_that_run_out_of_memory_do_not_take_turns_for_ever(self) -> None:
        bench = Bench(FRAUD, CHURN, preserve=Preserve.RESOURCES)
        for version in (1, 2):
            bench.registry.put(version)
            bench.registry.put(version, "churn")
            if version == 1:
                bench.settle()
        bench.turn()
        while bench.job is not None:
            assert len(bench.loads) <= 6, bench.loads
            bench.finish(OutOfMemoryError("too little") if bench.job.action.key.id.version == 2 else None)
        assert (bench.live(), bench.live(CHURN)) == (1, 1)


class TestStaleness:
    def test_what_is_stale_goes_on_serving_and_says_so(self) -> None:
        bench = Bench(FRAUD)
        bench.registry.put(1)
        bench.settle()
        bench.stale[FRAUD] = stale(stop=False)
        bench.turn()
        assert (bench.live(), bench.line().status().stale) == (1, True)
        assert bench.told()[-1] == "fraud@1 stale"
        assert [refusal.reason for refusal in bench.line().refusals()] == ["stale"]
        bench.registry.put(2)
        bench.settle()
        assert bench.live() == 2

    def test_f12_where_it_must_not_serve_it_does_not_until_it_is_fresh_again(self) -> None:
        bench = Bench(FRAUD, CHURN)
        bench.registry.put(1)
        bench.registry.put(1, "churn")
        bench.settle()
        bench.stale[FRAUD] = stale(stop=True)
        bench.registry.put(2)
        bench.settle()
        assert (bench.live(FRAUD), bench.live(CHURN), bench.loaded()) == (None, 1, ["churn@1"])
        status = bench.line().status()
        assert (status.state, status.stale, status.live_version) == (ModelState.WAITING, True, None)
        assert bench.line().is_settled
        bench.stale.clear()
        bench.settle()
        assert bench.live(FRAUD) == 2
        assert bench.line().refusals() == ()

    def test_a_verdict_is_told_once_though_its_words_change(self) -> None:
        bench = Bench(FRAUD)
        bench.registry.put(1)
        bench.settle()
        for seconds in range(3):
            bench.stale[FRAUD] = stale(stop=False, message=f"{seconds} s")
            bench.turn()
        assert bench.told().count("fraud@1 stale") == 1
        bench.stale[FRAUD] = stale(stop=True)
        bench.turn()
        assert bench.told().count("fraud@1 stale") == 2

    def test_what_was_being_loaded_meanwhile_is_let_go(self) -> None:
        bench = Bench(FRAUD)
        bench.registry.put(1)
        bench.turn()
        bench.stale[FRAUD] = stale(stop=True)
        bench.finish()
        assert (bench.live(), bench.loaded()) == (None, [])


class TestLiveFailures:
    def test_a_report_of_a_version_that_is_not_live_any_more_changes_nothing(self) -> None:
        bench = Bench(FRAUD)
        for version in (1, 2):
            bench.registry.put(version)
            bench.settle()
        bench.reconciler.failed_live(FRAUD, bench.made[0].id, "every row failed")
        bench.settle()
        assert (bench.live(), bench.told()) == (2, ["fraud@1 live", "fraud@2 live"])

    def test_without_anything_to_go_back_to_nothing_is_live_until_the_next_release(self) -> None:
        bench = Bench(FRAUD)
        bench.registry.put(1)
        bench.settle()
        bench.reconciler.failed_live(FRAUD, bench.made[0].id, "every row failed")
        bench.settle()
        assert (bench.live(), bench.line().is_settled) == (None, True)
        bench.registry.put(2)
        bench.settle()
        assert bench.live() == 2


@pytest.mark.parametrize("is_anew", [True, False])
def test_a_retry_that_came_to_nothing_is_not_waited_for(is_anew: bool) -> None:
    """Whoever waits for the model is told at once that nothing comes."""
    ref = ModelRef("fraud", 1)
    bench = Bench(ref)
    bench.registry.put(1)
    bench.turn()
    bench.finish(BrokerError("away"))
    if is_anew:
        bench.registry.models.clear()
        bench.registry.repository = replace(REPOSITORY, uuid="0b7a4c1e-0000-4000-8000-000000000002")
    else:
        bench.registry.withdraw(1)
    bench.turn()
    bench.now_s += MAX_RETRY_S
    bench.turn()
    assert bench.job is None
    assert bench.line(ref).is_settled


def test_marks_that_can_not_be_read_leave_the_model_as_it_is_and_no_other() -> None:
    bench = Bench(FRAUD, CHURN)
    bench.registry.put(1)
    bench.settle()
    bench.marks[FRAUD] = ValueError("damaged")
    bench.registry.put(2)
    bench.registry.put(1, "churn")
    bench.settle()
    assert (bench.live(FRAUD), bench.live(CHURN)) == (1, 1)
    assert isinstance(bench.line().fault, ValueError)
    bench.marks.clear()
    bench.settle()
    assert bench.live(FRAUD) == 2


def test_f11_a_model_whose_mark_is_not_known_yet_waits_for_it() -> None:
    bench = Bench(FRAUD)
    bench.registry.put(1)
    bench.reconciler.observe(bench.registry.image)
    assert bench.reconciler.turn(Moment(0.0, 0), marks={}).load is None
    bench.marks[FRAUD] = 2
    bench.settle()
    assert (bench.loads, bench.told()) == ([], ["fraud@1 replayed"])


class TestManyModels:
    def test_a_turn_decides_again_only_where_something_changed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        decided: list[ModelRef] = []

        def noting(image: RegistryImage, view: View, preserve: Preserve) -> Action:
            decided.append(view.ref)
            return decide(image, view, preserve)

        monkeypatch.setattr(reconciler, "decide", noting)
        refs = [ModelRef(f"model-{number}") for number in range(20)]
        bench = Bench(*refs)
        for ref in refs:
            bench.registry.put(1, ref.model)
        bench.settle()
        assert [bench.live(ref) for ref in refs] == [1] * 20
        # Each is looked at once to find the load it wants; then there are swaps, and what follows from them.
        assert len(decided) == 3 * 20
        decided.clear()
        bench.turn()
        assert decided == []
        bench.marks[refs[3]] = 7
        bench.turn()
        assert decided == [refs[3]] * 2
        assert bench.told()[-1] == "model-3@1 replayed"

    def test_what_is_loaded_meanwhile_is_decided_on_anew(self) -> None:
        bench = Bench(FRAUD, CHURN)
        bench.registry.put(1)
        bench.registry.put(1, "churn")
        bench.turn()
        assert bench.loads == ["fraud@1"]
        bench.turn()  # the other one's load is wanted, and begins when the first one ends
        bench.finish()
        assert (bench.live(), bench.loads) == (1, ["fraud@1", "churn@1"])
        bench.finish(BrokerError("no broker answers"))
        bench.turn()
        assert (bench.live(CHURN), bench.job) == (None, None)
        bench.now_s += MAX_RETRY_S
        bench.settle()
        assert bench.live(CHURN) == 1


def test_f25_1000_swaps_leave_no_more_behind_than_ten() -> None:
    bench = Bench(FRAUD)
    for version in range(1, 1001):
        bench.registry.put(version)
        bench.settle()
        bench.registry.models["fraud"] = keep_latest(bench, 3)
    assert bench.live() == 1000
    assert bench.loaded() == ["fraud@1000", "fraud@999"]
    line = bench.line()
    assert len(line.slot.states()) <= 256
    assert (len(line.refused), len(line._load_ms)) == (0, 3)
    assert len(bench.reconciler.slots()) == 1


def keep_latest(bench: Bench, count: int) -> ModelEntry:
    """An image of 1,000 versions is not what is tried here."""
    entry = bench.registry.models["fraud"]
    latest = {number: entry.versions[number] for number in list(entry.versions)[-count:]}
    return replace(entry, versions=latest, releases=entry.releases[-count:])
