"""A live version that fails on everything: refused, and the one before it serves again."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcast.names import ModelVersion
from modelcast.records import Refusal

from .control_rig import FRAUD, Rig


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    made.init()
    return made


def failures(rig: Rig) -> list[Refusal]:
    return [refusal for refusal in rig.plane.refusals(FRAUD) if refusal.reason == "failed-live"]


def test_the_version_before_serves_again_and_the_failing_one_is_not_tried_again(rig: Rig) -> None:
    rig.publish(1)
    rig.settle()
    rig.publish(2)
    rig.settle()
    rig.plane.report_failure(FRAUD, ModelVersion("fraud", 2), "it raises")
    rig.settle()
    assert rig.live() == 1
    assert rig.loader.calls == [1, 2], "the version before was kept: nothing is loaded"
    assert [(refusal.version, refusal.message) for refusal in failures(rig)] == [(2, "it raises")]
    assert [refusal.version for refusal in rig.plane.status_snapshot().models[0].refusals] == [2]


def test_a_new_release_goes_live_over_it(rig: Rig) -> None:
    rig.publish(1)
    rig.settle()
    rig.publish(2)
    rig.settle()
    rig.plane.report_failure(FRAUD, ModelVersion("fraud", 2), "it raises")
    rig.settle()
    rig.publish(3)
    rig.settle()
    assert rig.live() == 3


def test_a_first_version_that_fails_leaves_the_slot_empty_until_another_is_released(rig: Rig) -> None:
    rig.publish(1)
    rig.settle()
    rig.plane.report_failure(FRAUD, ModelVersion("fraud", 1), "it raises")
    rig.settle()
    assert rig.live() is None
    rig.publish(2)
    rig.settle()
    assert rig.live() == 2


def test_a_report_that_comes_after_a_swap_changes_nothing(rig: Rig) -> None:
    rig.publish(1)
    rig.settle()
    rig.publish(2)
    rig.settle()
    rig.plane.report_failure(FRAUD, ModelVersion("fraud", 1), "it raised")
    rig.settle()
    assert (rig.live(), failures(rig)) == (2, [])
