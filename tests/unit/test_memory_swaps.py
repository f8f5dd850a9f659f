"""A version there is no memory for: the old one serves, the reason is said, and it goes live once there is room."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelcast.consumer.policy import Preserve
from modelcast.errors import OutOfMemoryError

from .control_rig import FRAUD, Rig

FULL = OutOfMemoryError("ONNX Runtime can't load model.onnx: there is not enough memory on cuda:0")


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """Version 1 is live."""
    rig = Rig(tmp_path)
    rig.init()
    rig.publish(1)
    rig.settle()
    return rig


def test_f24_out_of_memory_at_a_swap_leaves_the_old_version_and_says_why(rig: Rig) -> None:
    rig.loader.errors[2] = FULL
    rig.publish(2)
    rig.settle()
    assert rig.live() == 1
    assert rig.loader.made[0].closed_by is None
    (refusal,) = rig.plane.refusals(FRAUD)
    assert (refusal.version, refusal.reason) == (2, "out-of-memory")
    assert "not enough memory on cuda:0" in refusal.message
    assert rig.statuses()[-1].models[0].live_version == 1


def test_f24_it_is_tried_again_and_goes_live_once_there_is_memory(rig: Rig) -> None:
    rig.loader.errors[2] = FULL
    rig.publish(2)
    rig.settle()
    tried = len(rig.loader.calls)
    for _ in range(3):
        rig.now_s += 60
        rig.settle()
    assert len(rig.loader.calls) > tried
    assert rig.live() == 1
    del rig.loader.errors[2]
    rig.now_s += 60
    rig.settle()
    assert rig.live() == 2
    assert rig.plane.refusals(FRAUD) == ()


def test_f24_resource_preserving_makes_room_first_and_brings_the_old_version_back(tmp_path: Path) -> None:
    rig = Rig(tmp_path, preserve=Preserve.RESOURCES)
    rig.init()
    rig.publish(1)
    rig.settle()
    rig.loader.errors[2] = FULL
    rig.publish(2)
    rig.settle()
    assert rig.loader.made[0].closed_by is not None  # it was let go for version 2, which did not fit even so
    assert rig.live() == 1
    tried = len(rig.loader.calls)
    rig.now_s += 60
    rig.settle()
    assert len(rig.loader.calls) == tried  # nothing could make more room, and each attempt stops the one that serves
