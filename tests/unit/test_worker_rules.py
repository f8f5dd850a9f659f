"""When workers come back, and what their figures come to: the rules, without a process."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.consumer.loop import CLOSE_DRAIN_S
from modelcast.consumer.worker_child import STOP_DEADLINE_S
from modelcast.consumer.worker_restarts import (
    FIRST_PAUSE_S,
    LAST_PAUSE_S,
    SHORT_LIVES_MAX,
    STEADY_S,
    Restarts,
)
from modelcast.consumer.worker_totals import WorkerTotals


def test_a_worker_killed_after_a_steady_life_is_back_at_once() -> None:
    assert Restarts().after(STEADY_S) == 0.0


def test_a_worker_that_ends_at_once_comes_back_later_each_time_and_then_never() -> None:
    restarts = Restarts()
    pauses = [restarts.after(0.1) for _ in range(SHORT_LIVES_MAX)]
    assert pauses == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S, 8 * FIRST_PAUSE_S, None]


@given(st.lists(st.floats(0, 100), max_size=50))
def test_only_short_lives_in_a_row_are_given_up_and_no_pause_is_endless(lives: list[float]) -> None:
    restarts, row = Restarts(), 0
    for lasted_s in lives:
        row = 0 if lasted_s >= STEADY_S else row + 1
        pause_s = restarts.after(lasted_s)
        assert (pause_s is None) == (row >= SHORT_LIVES_MAX)
        assert pause_s is None or 0 <= pause_s <= LAST_PAUSE_S
        assert (pause_s == 0) == (row == 0)


def test_workers_are_given_longer_to_end_than_they_give_their_last_commit() -> None:
    assert STOP_DEADLINE_S > CLOSE_DRAIN_S


def line(events: int, **more: Any) -> dict[str, Any]:
    return {
        "events": events, "predictions": events - 1, "dead_letters": 1, "recoveries": 0, "swaps": 0,
        "events_per_s": 10.0, "live": 1, "lag": 5, **more,
    }  # fmt: skip


def test_counts_rates_and_lags_are_summed() -> None:
    totals = WorkerTotals()
    totals.tell(0, line(10))
    totals.tell(1, line(20))
    totals.tell(1, line(30))  # its figures since its start: in the place of what it said before
    assert totals.figures() == {
        "events": 40, "predictions": 38, "dead_letters": 2, "recoveries": 0, "swaps": 0,
        "live": 1, "events_per_s": 20.0, "lag": 10,
    }  # fmt: skip


def test_what_a_worker_did_before_it_was_killed_stays_in_the_counts_and_not_in_rate_and_lag() -> None:
    totals = WorkerTotals()
    totals.tell(0, line(10))
    totals.tell(1, line(20))
    totals.end(0)
    figures = totals.figures()
    assert (figures["events"], figures["events_per_s"], figures["lag"]) == (30, 10.0, 5)
    totals.tell(0, line(1))  # its successor counts from nothing
    assert totals.counts()["events"] == 31


def test_a_release_that_every_worker_swapped_to_is_one_swap() -> None:
    totals = WorkerTotals()
    for worker in range(3):
        totals.tell(worker, line(1, swaps=2, live=3))
    assert (totals.counts()["swaps"], totals.counts()["live"]) == (2, 3)
    totals.end(1)
    totals.tell(1, line(1, swaps=1, live=4))
    assert (totals.counts()["swaps"], totals.counts()["live"]) == (3, 4)


def models(fraud: int, churn: int, churn_live: int | None) -> dict[str, Any]:
    return {
        "fraud": {"live": 7, "predictions": fraud, "dead_letters": 0},
        "churn": {"live": churn_live, "predictions": churn, "dead_letters": 1},
    }


def test_of_several_models_each_one_s_predictions_are_summed() -> None:
    totals = WorkerTotals()
    totals.tell(0, line(10, live=None, models=models(9, 8, None)))
    totals.end(0)
    totals.tell(0, line(5, live=None, models=models(5, 4, 2)))
    totals.tell(1, line(3, live=None, models=models(3, 2, None)))
    assert totals.counts()["models"] == {
        "fraud": {"live": 7, "predictions": 17, "dead_letters": 0},
        "churn": {"live": 2, "predictions": 14, "dead_letters": 3},
    }
    assert totals.counts()["events"] == 18


@pytest.mark.parametrize(("told", "left"), [([7, 0], 0), ([0, None], None), ([3, 2], 2)])
def test_what_is_left_is_what_the_last_one_to_stop_says(told: list[int | None], left: int | None) -> None:
    totals = WorkerTotals()
    for worker, said in enumerate(told):
        totals.tell(worker, line(1, left=said))
        totals.end(worker)
    assert totals.left == left


def test_without_a_word_of_any_worker_nothing_is_known() -> None:
    figures = WorkerTotals().figures()
    assert (figures["events"], figures["live"], figures["lag"]) == (0, None, None)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50), st.booleans()), max_size=60))
def test_no_count_ever_falls_or_is_counted_twice(steps: list[tuple[int, int, bool]]) -> None:
    totals, now, before, last = WorkerTotals(), dict.fromkeys(range(3), 0), 0, 0
    for worker, more, ends in steps:
        now[worker] += more
        totals.tell(worker, line(now[worker]))
        assert totals.counts()["events"] == before + sum(now.values()) >= last
        last = totals.counts()["events"]
        if ends:
            before += now[worker]
            now[worker] = 0
            totals.end(worker)
            assert totals.counts()["events"] == last
