"""Rates of counts over the last seconds, and what is counted of a model that applications call."""

from __future__ import annotations

import pytest

from modelcast.consumer.rate import WINDOW_S, Calls, Rate
from modelcast.consumer.slot import Slot

from .control_rig import FRAUD, Rig
from .scorer_rig import FunctionServable


def test_a_steady_growth_has_its_rate_and_a_pause_brings_it_to_nothing() -> None:
    rate = Rate(0.0)
    for tenth in range(1, 101):
        rate.add(tenth / 10, tenth * 10)
    assert rate.per_s(10.0, 1_000) == pytest.approx(100)
    for tenth in range(101, 101 + int(WINDOW_S * 10) + 20):
        rate.add(tenth / 10, 1_000)
    assert rate.per_s(17.0, 1_000) == 0.0


def test_the_rate_is_of_the_last_seconds_only() -> None:
    rate = Rate(0.0)
    for second in range(1, 21):
        rate.add(float(second), 1_000 if second <= 10 else 1_000 + (second - 10) * 5)
    assert rate.per_s(20.0, 1_050) == pytest.approx(5)


def test_a_first_count_makes_no_rate_of_a_millisecond() -> None:
    rate = Rate(0.0)
    assert not rate.add(0.001, 100)
    assert rate.per_s(0.001, 100) == pytest.approx(200)


def test_calls_are_the_leases_of_a_slot() -> None:
    now_s = 0.0
    slot = Slot("fraud")
    slot.swap(FunctionServable(1))  # type: ignore[arg-type]
    calls = Calls(slot, clock=lambda: now_s)
    for _ in range(10):
        with slot.lease():
            pass
    now_s = 2.0
    activity = calls()
    assert (activity.events, activity.events_per_s, activity.lag, activity.dead_letters) == (10, 5.0, None, None)


def test_the_status_of_a_client_counts_what_is_asked_of_each_model() -> None:
    rig = Rig()
    rig.init()
    rig.publish(1)
    rig.settle()
    for _ in range(3):
        with rig.plane.slot(FRAUD).lease():
            pass
    (model,) = rig.plane.status_snapshot().models
    assert (model.events, model.wanted_version) == (3, 1)
    rig.publish(2)
    rig.loader.errors[2] = OSError("disk")
    rig.settle()
    (model,) = rig.plane.status_snapshot().models
    assert (model.live_version, model.wanted_version) == (1, 2)
