"""What `consumer/slot.py` promises: one live servable, leases that see one version, nothing destroyed under a lease."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from modelcast.consumer.lifecycle import LOAD_STEPS, IllegalTransitionError, State, VersionKey
from modelcast.consumer.slot import Slot
from modelcast.errors import ModelNotFoundError
from modelcast.names import ModelVersion
from modelcast.registry.image import identity_of

from .control_rig import wait_until

REPOSITORY = "repository-1"


@dataclass(eq=False)
class FakeServable:
    """Knows whether it was destroyed, how often and on which thread."""

    number: int
    closed_by: list[int] = field(default_factory=list)
    breaks: bool = False
    memory_bytes: int = 0

    @property
    def id(self) -> ModelVersion:
        return ModelVersion("fraud", self.number)

    @property
    def manifest(self) -> SimpleNamespace:
        return SimpleNamespace(repository=REPOSITORY)

    @property
    def closed(self) -> bool:
        return bool(self.closed_by)

    def close(self) -> None:
        assert not self.closed_by, "destroyed twice"
        self.closed_by.append(threading.get_ident())
        if self.breaks:
            raise RuntimeError("this destructor fails")


def key(number: int) -> VersionKey:
    return VersionKey(REPOSITORY, ModelVersion("fraud", number), identity_of(SimpleNamespace(repository=REPOSITORY)))


def test_an_empty_slot_gives_no_lease_and_names_the_model() -> None:
    with pytest.raises(ModelNotFoundError, match="fraud"), Slot("fraud").lease():
        pass


def test_a_lease_keeps_the_version_it_saw_over_a_swap() -> None:
    slot = Slot("fraud", keep=0)
    first, second = FakeServable(1), FakeServable(2)
    slot.swap(first)
    with slot.lease() as before:
        slot.swap(second)
        with slot.lease() as after:
            assert (before.id.version, after.id.version) == (1, 2)
        assert slot.reap() == 0
        assert not first.closed
    assert slot.reap() == 1
    assert first.closed
    assert not second.closed


def test_the_one_before_is_kept_and_comes_back_by_a_swap() -> None:
    slot = Slot("fraud")
    first, second = FakeServable(1), FakeServable(2)
    slot.swap(first)
    assert slot.swap(second) is first
    assert slot.kept_key == key(1)
    assert slot.swap(slot.loaded()[key(1)]) is second
    assert (slot.live, slot.kept_key) == (first, key(2))
    assert slot.reap() == 0


def test_one_version_is_kept_and_no_more() -> None:
    slot = Slot("fraud")
    servables = [FakeServable(number) for number in range(1, 11)]
    for servable in servables:
        slot.swap(servable)
        slot.reap()
    assert [servable.closed for servable in servables] == [True] * 8 + [False] * 2


def test_a_quiescing_version_comes_back_while_it_is_leased() -> None:
    slot = Slot("fraud", keep=0)
    first = FakeServable(1)
    slot.swap(first)
    with slot.lease():
        slot.swap(FakeServable(2))
        assert slot.state(key(1)) is State.QUIESCING
        slot.swap(slot.loaded()[key(1)])
    slot.reap()
    assert slot.live is first
    assert not first.closed


def test_the_end_of_the_last_lease_calls_for_the_reaper_and_destroys_nothing_itself() -> None:
    calls: list[int] = []
    slot = Slot("fraud", keep=0, on_reapable=lambda: calls.append(1))
    first = FakeServable(1)
    slot.swap(first)
    outer, inner = slot.lease(), slot.lease()
    with outer:
        with inner:
            slot.swap(FakeServable(2))
        assert not calls
    assert len(calls) == 1
    assert not first.closed


def test_generation_tells_of_every_change() -> None:
    slot = Slot("fraud")
    seen = [slot.generation]
    for number in (1, 2):
        slot.swap(FakeServable(number))
        seen.append(slot.generation)
    slot.clear()
    seen.append(slot.generation)
    assert seen == sorted(set(seen))


def test_wait_live_returns_when_another_thread_swaps() -> None:
    slot = Slot("fraud")
    assert slot.wait_live(0.0) is False
    threading.Timer(0.02, lambda: slot.swap(FakeServable(1))).start()
    assert slot.wait_live(60.0) is True


def test_a_discarded_servable_never_goes_live_and_is_destroyed() -> None:
    slot = Slot("fraud")
    for state in (State.ASPIRED, *LOAD_STEPS, State.READY):
        slot.move(key(1), state)
    servable = FakeServable(1)
    slot.discard(servable)
    assert slot.live is None
    assert slot.reap() == 1
    assert servable.closed
    assert slot.state(key(1)) is State.UNLOADED


def test_a_version_still_loading_can_not_go_live_and_nothing_changes() -> None:
    slot = Slot("fraud")
    slot.swap(FakeServable(1))
    slot.move(key(2), State.ASPIRED)
    slot.move(key(2), State.FETCHING)
    with pytest.raises(IllegalTransitionError, match="fraud@2 is fetching"):
        slot.swap(FakeServable(2))
    assert slot.live_key == key(1)
    assert slot.state(key(2)) is State.FETCHING
    assert slot.generation == 1


def test_clear_lets_go_of_everything_but_what_is_leased() -> None:
    slot = Slot("fraud")
    first, second = FakeServable(1), FakeServable(2)
    slot.swap(first)
    slot.swap(second)
    with slot.lease():
        slot.clear()
        slot.reap()
        assert (first.closed, second.closed) == (True, False)
    slot.reap()
    assert second.closed
    assert slot.quiescing == 0


def test_a_destructor_that_fails_does_not_spare_the_others() -> None:
    slot = Slot("fraud")
    servables = [FakeServable(1, breaks=True), FakeServable(2)]
    for servable in servables:
        slot.swap(servable)
    slot.clear()
    with pytest.raises(ExceptionGroup, match="fraud"):
        slot.reap()
    assert all(servable.closed for servable in servables)
    assert slot.reap() == 0


@settings(max_examples=60, stateful_step_count=40, deadline=None)
class SlotMachine(RuleBasedStateMachine):
    """Any order of swaps, ways back, leases and reaping, against a model that is a few lines."""

    leases = Bundle("leases")

    @initialize(keep=st.sampled_from([0, 1]))
    def start(self, keep: int) -> None:
        self.slot = Slot("fraud", keep=keep)
        self.everyone: list[FakeServable] = []
        self.leased: list[FakeServable] = []
        self.live: FakeServable | None = None

    @rule()
    def swap_a_new_one(self) -> None:
        servable = FakeServable(len(self.everyone) + 1)
        self.everyone.append(servable)
        assert self.slot.swap(servable) is self.live
        self.live = servable

    @rule(data=st.data())
    def swap_one_back(self, data: st.DataObject) -> None:
        loaded = self.slot.loaded()
        if loaded:
            chosen = loaded[data.draw(st.sampled_from(sorted(loaded)))]
            assert not chosen.closed
            self.slot.swap(chosen)
            self.live = chosen

    @rule(target=leases)
    def take_a_lease(self) -> object:
        if self.live is None:
            return None
        lease = self.slot.lease()
        servable = lease.__enter__()
        assert servable is self.live
        self.leased.append(servable)
        return lease, servable

    @rule(taken=consumes(leases))
    def end_a_lease(self, taken: object) -> None:
        if taken is not None:
            lease, servable = taken
            assert not servable.closed, "destroyed under a lease"
            lease.__exit__(None, None, None)
            self.leased.remove(servable)

    @rule()
    def drop_kept(self) -> None:
        self.slot.drop_kept()

    @rule()
    def clear(self) -> None:
        self.slot.clear()
        self.live = None

    @rule()
    def reap(self) -> None:
        self.slot.reap()
        wanted = {self.live, *self.slot.loaded().values(), *self.leased}
        assert {servable for servable in self.everyone if not servable.closed} <= wanted

    @invariant()
    def what_is_used_exists_and_one_is_live(self) -> None:
        assert self.slot.live is self.live
        assert not any(servable.closed for servable in [*self.leased, *self.slot.loaded().values()])
        assert list(self.slot.states().values()).count(State.LIVE) == (self.live is not None)
        assert list(self.slot.states().values()).count(State.KEPT) <= 1


TestSlotMachine = SlotMachine.TestCase


def test_what_is_large_waits_for_another_time_where_that_is_wanted() -> None:
    slot = Slot("fraud", keep=0)
    small, large = FakeServable(1, memory_bytes=10), FakeServable(2, memory_bytes=11)
    for servable in (small, large, FakeServable(3)):
        slot.swap(servable)
    assert slot.may_reap(10)
    assert slot.reap(10) == 1
    assert (small.closed, large.closed) == (True, False)
    with slot.lease():
        assert slot.is_leased
        slot.swap(slot.loaded()[key(2)])
        assert slot.loaded().keys() == {key(3)}
        assert slot.is_leased
        assert not slot.may_reap(-1)  # what is leased is not to be destroyed at all
    assert not slot.is_leased
    assert slot.reap() == 1
    assert not large.closed


class InterruptedSlot(Slot):
    """Another thread acts right after the n-th look at the live tenant: where a lease has no lock to hide behind."""

    looks = -1

    def __init__(self) -> None:
        super().__init__("fraud", keep=0)
        self.act: Callable[[], object] = int

    @property
    def _live(self) -> object:
        tenant = self._tenant
        self.looks -= 1
        if self.looks == 0:
            self.act()
        return tenant

    @_live.setter
    def _live(self, tenant: object) -> None:
        self._tenant = tenant


@pytest.mark.parametrize("look", [1, 2])
def test_a_version_replaced_while_it_is_being_leased_is_left_alone_or_not_given(look: int) -> None:
    reapable: list[int] = []
    slot = InterruptedSlot()
    slot._on_reapable = lambda: reapable.append(1)
    first, second = FakeServable(1), FakeServable(2)
    slot.swap(first)

    def replace() -> None:
        slot.swap(second)
        slot.reap()

    slot.act, slot.looks = replace, look
    with slot.lease() as servable:
        assert not servable.closed
        assert servable is (second if look == 1 else first)
    assert reapable  # also by the lease that did not come about: it may have kept the reaper from destroying
    slot.reap()
    assert first.closed
    assert not second.closed
    assert slot.uses == 1


def test_an_emptied_slot_gives_no_lease_to_who_was_about_to_take_one() -> None:
    slot = InterruptedSlot()
    slot.swap(FakeServable(1))
    slot.act, slot.looks = slot.clear, 1
    with pytest.raises(ModelNotFoundError), slot.lease():
        pass
    assert slot.reap() == 1


@pytest.fixture
def _hasty_threads() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_hasty_threads")
def test_threads_that_lease_while_another_swaps_never_see_a_destroyed_version() -> None:
    slot = Slot("fraud")
    slot.swap(FakeServable(1))
    stop = threading.Event()
    seen: list[set[int]] = [set(), set()]
    wrong: list[int] = []

    def use(mine: set[int]) -> None:
        while not stop.is_set():
            with slot.lease() as servable:
                mine.add(servable.number)
                if servable.closed:
                    wrong.append(servable.number)

    threads = [threading.Thread(target=use, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    for number in range(2, 300):
        slot.swap(FakeServable(number))
        slot.reap()
    wait_until(lambda: all(seen), "both to have had a turn")
    stop.set()
    for thread in threads:
        thread.join(60)
    assert not wrong
