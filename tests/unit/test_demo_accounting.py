"""The demonstration's figures, on tables small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.demo.accounting import (
    Flow,
    Positions,
    Spread,
    account,
    auc_by_month,
    flight_of_each,
    live_scores,
    longest_gap_ms,
    throughput,
)

NOBODY = Positions.of([], [])
THREE = Positions.of([0, 0, 1], [0, 1, 0])


def test_every_event_with_one_outcome_is_neither_lost_nor_duplicated() -> None:
    outcomes = account(THREE, Positions.of([1, 0], [0, 0]), Positions.of([0], [1]))
    assert (outcomes.events, outcomes.predictions, outcomes.dead_letters) == (3, 2, 1)
    assert (outcomes.lost, outcomes.duplicated, outcomes.stray) == (0, 0, 0)


def test_an_event_without_an_outcome_is_lost() -> None:
    assert account(THREE, Positions.of([0], [0]), NOBODY).lost == 2


def test_a_second_prediction_is_a_duplicate_and_hides_no_loss() -> None:
    outcomes = account(THREE, Positions.of([0, 0, 0], [0, 0, 1]), NOBODY)
    assert (outcomes.lost, outcomes.duplicated) == (1, 1)


def test_an_event_both_predicted_and_dead_is_a_duplicate() -> None:
    assert account(THREE, THREE, Positions.of([0], [1])).duplicated == 1


def test_the_same_offset_of_another_partition_is_another_event() -> None:
    outcomes = account(THREE, Positions.of([0, 0, 2], [0, 1, 0]), NOBODY)
    assert (outcomes.lost, outcomes.stray, outcomes.duplicated) == (1, 1, 0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_outcomes_always_add_up(copies: list[int]) -> None:
    events = Positions.of([0] * len(copies), list(range(len(copies))))
    offsets = [offset for offset, count in enumerate(copies) for _ in range(count)]
    outcomes = account(events, Positions.of([0] * len(offsets), offsets), NOBODY)
    assert outcomes.lost == copies.count(0)
    assert outcomes.predictions == outcomes.events - outcomes.lost + outcomes.duplicated


def test_predictions_find_their_flight_by_where_the_event_stood() -> None:
    flights = flight_of_each(Positions.of([1, 0, 7], [0, 1, 7]), THREE, np.array([10, -1, 12]))
    assert flights.tolist() == [12, -1, -1]
    assert flight_of_each(THREE, NOBODY, np.array([], dtype=np.int64)).tolist() == [-1, -1, -1]


def test_flights_without_a_score_are_nan() -> None:
    scores = live_scores(np.array([2, -1]), np.array([0.5, 0.9]), 3)
    assert math.isnan(scores[0])
    assert math.isnan(scores[1])
    assert scores[2] == 0.5


def test_auc_compares_the_same_flights_and_leaves_the_first_month_out() -> None:
    periods = np.array([1, 1, 2, 2, 2, 2, 3, 3])
    late = np.array([True, False, True, False, True, False, True, True])
    counted = np.array([True] * 5 + [False] + [True] * 2)
    frozen = np.array([0.9, 0.1, 0.4, 0.5, 0.6, 0.7, 0.1, 0.2])
    live = np.array([0.9, 0.1, 0.8, 0.5, 0.6, 0.7, 0.1, 0.2])
    (february,) = auc_by_month(periods, late, counted, frozen=frozen, live=live)
    assert (february.month, february.frozen, february.live, february.flights) == (2, 0.5, 1.0, 3)


def test_the_gap_at_a_swap_is_the_longest_within_a_second_of_it() -> None:
    times = np.array([1000, 1100, 1200, 1700, 1800, 9000])
    assert longest_gap_ms(times, 1500, [Flow(1000, 1800)]) == 500


def test_a_gap_counts_whole_even_if_it_reaches_out_of_the_window() -> None:
    times = np.array([1000, 5000, 9000])
    assert longest_gap_ms(times, 3000, [Flow(1000, 9000)]) == 4000


def test_waiting_for_the_first_prediction_of_a_stretch_is_a_gap_but_the_pause_before_it_is_none() -> None:
    times = np.array([1000, 5300, 5400])
    assert longest_gap_ms(times, 5200, [Flow(500, 1000), Flow(5000, 5400)]) == 300


def test_a_swap_while_nothing_is_sent_has_no_gap() -> None:
    assert longest_gap_ms(np.array([1000, 2000]), 5000, [Flow(1000, 2000)]) is None


def test_throughput_counts_each_prediction_once() -> None:
    at_s, rates = throughput(np.array([1000, 1100, 1250, 1999]), origin_ms=1000, bucket_ms=250)
    assert at_s.tolist() == [0.125, 0.375, 0.625, 0.875]
    assert rates.tolist() == [8, 4, 0, 4]
    assert throughput(np.array([], dtype=np.int64), origin_ms=0, bucket_ms=250)[0].size == 0


def test_a_spread_of_nothing_is_null() -> None:
    assert (Spread.of([]).median, Spread.of([]).max) == (None, None)
    assert (Spread.of([1, 9, 2]).median, Spread.of([1, 9, 2]).max) == (pytest.approx(2), pytest.approx(9))
