"""What `consumer/reaper.py` promises: large sessions are destroyed while nobody scores, or after a while."""

from __future__ import annotations

import pytest

from modelcast.consumer.reaper import LOOK_S, LULL_S, PATIENCE_S, SMALL_BYTES, Reaper
from modelcast.consumer.slot import Slot
from modelcast.names import ModelRef
from tests.unit.control_rig import Rig
from tests.unit.test_slot import FakeServable

LARGE = SMALL_BYTES + 1


def replaced(size: int) -> tuple[Slot, FakeServable]:
    """A slot in which a version of that size was replaced, and that version."""
    slot, old = Slot("fraud", keep=0), FakeServable(1, memory_bytes=size)
    slot.swap(old)
    slot.swap(FakeServable(2, memory_bytes=size))
    return slot, old


def reap(reaper: Reaper, *slots: Slot, at_s: float, at_once: bool = False) -> list[str]:
    named = [(ModelRef(f"model-{number}"), slot) for number, slot in enumerate(slots)]
    return [ref.model for ref in reaper.reap(named, at_s, at_once=at_once)]


def use(slot: Slot) -> None:
    with slot.lease():
        pass


def test_what_is_small_goes_at_once_and_nothing_is_due() -> None:
    slot, old = replaced(SMALL_BYTES)
    reaper = Reaper()
    reap(reaper, slot, at_s=0)
    assert old.closed
    assert reaper.due_s is None


def test_what_is_large_goes_once_nobody_used_a_model_for_a_while() -> None:
    slot, old = replaced(LARGE)
    reaper = Reaper()
    reap(reaper, slot, at_s=100)
    assert not old.closed
    assert reaper.due_s == 100 + LOOK_S
    use(slot)
    reap(reaper, slot, at_s=100 + LOOK_S)
    reap(reaper, slot, at_s=100 + LOOK_S + LULL_S / 2)
    assert not old.closed  # a lease was taken since
    reap(reaper, slot, at_s=100 + 2 * LULL_S)
    assert old.closed
    assert reaper.due_s is None


def test_another_model_of_the_instance_counts_too() -> None:
    slot, old = replaced(LARGE)
    other, _ = replaced(0)
    reaper = Reaper()
    reap(reaper, slot, other, at_s=0)
    with other.lease():  # one long run
        reap(reaper, slot, other, at_s=LULL_S)
        assert not old.closed
    reap(reaper, slot, other, at_s=2 * LULL_S)
    assert old.closed


def test_where_somebody_always_scores_it_goes_all_the_same() -> None:
    slot, old = replaced(LARGE)
    reaper = Reaper()
    at_s = 0.0
    while at_s < PATIENCE_S:
        use(slot)
        reap(reaper, slot, at_s=at_s)
        assert not old.closed
        at_s = reaper.due_s or PATIENCE_S
    use(slot)
    reap(reaper, slot, at_s=PATIENCE_S)
    assert old.closed


def test_each_one_waits_its_own_time() -> None:
    slot, _ = replaced(LARGE)
    reaper = Reaper()
    reap(reaper, slot, at_s=0)
    reap(reaper, slot, at_s=LULL_S)
    later = FakeServable(3, memory_bytes=LARGE)
    slot.swap(later)
    slot.swap(FakeServable(4))
    use(slot)
    reap(reaper, slot, at_s=1000)
    assert slot.quiescing == 2
    reap(reaper, slot, at_s=1000 + 2 * LULL_S)
    assert later.closed


def test_a_leased_one_is_not_waited_for() -> None:
    slot, old = Slot("fraud", keep=0), FakeServable(1, memory_bytes=LARGE)
    slot.swap(old)
    reaper = Reaper()
    with slot.lease():
        slot.swap(FakeServable(2))
        reap(reaper, slot, at_s=0)
        assert reaper.due_s is None  # the end of the lease says so
    assert not old.closed


def test_where_memory_is_short_nothing_waits() -> None:
    slot, old = replaced(LARGE)
    with slot.lease():
        assert reap(Reaper(), slot, at_s=0, at_once=True) == ["model-0"]
    assert old.closed


def test_it_tells_whose_memory_is_free_also_where_a_destructor_fails() -> None:
    small, _ = replaced(0)
    large, _ = replaced(LARGE)
    broken, old = replaced(0)
    old.breaks = True
    assert reap(Reaper(), small, large, broken, at_s=0) == ["model-0", "model-2"]


def test_memory_of_a_large_one_goes_back_to_the_system_and_small_ones_are_not_worth_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    monkeypatch.setattr("modelcast.consumer.reaper.give_back", lambda: calls.append(1))
    small, _ = replaced(SMALL_BYTES)
    reap(Reaper(), small, at_s=0)
    assert calls == []
    large, _ = replaced(LARGE)
    reap(Reaper(), large, at_s=0, at_once=True)
    assert calls == [1]


def test_a_control_plane_turns_again_for_what_waits() -> None:
    rig = Rig(keep=0)
    rig.init()
    rig.publish(1)
    rig.settle()
    old = rig.loader.made[0]
    old.memory_bytes = LARGE
    rig.publish(2)
    rig.settle()
    assert rig.plane.step() == rig.now_s + LOOK_S
    assert old.closed_by is None
    rig.now_s += LULL_S * 2
    rig.plane.step()
    assert old.closed_by is not None


def test_a_control_plane_that_is_short_of_memory_does_not_wait() -> None:
    rig = Rig(keep=0, memory_budget_bytes=1 << 30)
    rig.init()
    rig.publish(1)
    rig.settle()
    old = rig.loader.made[0]
    old.memory_bytes = LARGE
    rig.publish(2)
    rig.settle()
    assert old.closed_by is not None
