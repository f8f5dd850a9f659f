"""The rest between two transactions."""

from __future__ import annotations

import pytest

from modelcast.kafka.pacing import FIRST_REST_S, MAX_REST_S, MIN_REST_S, Pacing

QUICK_S = 0.004
PUT_OFF_S = QUICK_S + 0.02


def learned(pacing: Pacing, *took_s: float, records: int = 1) -> float:
    for one in took_s:
        pacing.ended(0.0, one, records)
    return pacing.rest_s


def test_the_first_transaction_begins_at_once() -> None:
    assert Pacing().left_s(100.0) == 0.0


def test_the_next_one_rests_for_what_is_left() -> None:
    pacing = Pacing()
    pacing.ended(10.0, QUICK_S, 1)
    rest_s = pacing.rest_s
    assert pacing.left_s(10.0) == pytest.approx(rest_s)
    assert pacing.left_s(10.0 + rest_s / 2) == pytest.approx(rest_s / 2)
    assert pacing.left_s(10.1) == 0.0


def test_a_transaction_that_met_the_markers_of_the_last_makes_the_rest_longer() -> None:
    pacing = Pacing()
    before = learned(pacing, QUICK_S)
    assert learned(pacing, PUT_OFF_S) > before


def test_the_rest_stays_within_its_bounds() -> None:
    pacing = Pacing()
    assert learned(pacing, QUICK_S, *[PUT_OFF_S] * 15) == MAX_REST_S
    assert learned(pacing, *[QUICK_S] * 500) == MIN_REST_S


def test_a_broker_that_became_slower_is_not_taken_for_retries_for_ever() -> None:
    pacing = Pacing()
    learned(pacing, QUICK_S)
    assert learned(pacing, *[PUT_OFF_S] * 150) == MIN_REST_S


def test_large_transactions_teach_nothing() -> None:
    pacing = Pacing()
    assert learned(pacing, QUICK_S, *[1.0] * 10, records=20_000) == FIRST_REST_S
