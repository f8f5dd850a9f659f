"""What `consumer/budget.py` promises, rule by rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.consumer.budget import IDLE_S, Budget, Fits, Holding, LetGo, Place, Plan, Short, Wait
from modelcast.names import ModelRef
from modelcast.records import FileEntry, Manifest

from .registry_records import manifest

A, B, C = ModelRef("a"), ModelRef("b"), ModelRef("c")
LIVE, KEPT, LEAVING, READY = Place.LIVE, Place.KEPT, Place.LEAVING, Place.READY
IDLE = IDLE_S + 1


def sized(size_bytes: int) -> Manifest:
    return replace(manifest(3, model="a"), files=(FileEntry("model.onnx", size_bytes, "sha256:" + "0" * 64),))


def plan(limit: int | None, need: int, *holdings: Holding, wanted: bool = True) -> Plan:
    return Budget(limit).plan(sized(need), asker=A, wanted=wanted, holdings=holdings)


def test_without_a_limit_everything_fits() -> None:
    assert plan(None, 1 << 50) == Fits()
    assert Budget().too_large(sized(1 << 50)) is None
    assert Budget().overflow([Holding(A, KEPT, 1 << 50)]) == ()


def test_what_is_left_is_enough_or_not() -> None:
    assert plan(10, 4, Holding(B, LIVE, 6)) == Fits()
    assert isinstance(plan(10, 5, Holding(B, LIVE, 6)), Short)


def test_what_never_fits_is_told_with_both_figures() -> None:
    assert Budget(10).too_large(sized(10)) is None
    message = Budget(10 << 20).too_large(sized(11 << 20))
    assert message == "a@3 needs 11.0 MiB of memory, more than the whole memory budget of 10.0 MiB"


def test_what_is_leaving_is_waited_for_and_nothing_else_goes() -> None:
    assert plan(10, 5, Holding(B, LEAVING, 6), Holding(C, LIVE, 2, IDLE)) == Wait()


def test_what_is_kept_goes_first_the_asking_models_own_before_all() -> None:
    own, idle, busy = Holding(A, KEPT, 2, 0), Holding(B, KEPT, 2, IDLE), Holding(C, KEPT, 2, 1)
    live = Holding(B, LIVE, 4, IDLE)
    assert plan(10, 2, busy, idle, own, live) == LetGo((own,))
    assert plan(10, 4, busy, idle, own, live) == LetGo((own, idle))
    assert plan(10, 6, busy, idle, own, live) == LetGo((own, idle, busy))
    assert plan(10, 7, busy, idle, own, live) == LetGo((own, idle, busy, live))


def test_idle_models_go_longest_idle_first_and_busy_ones_never() -> None:
    older, newer, busy = Holding(B, LIVE, 3, IDLE + 1), Holding(C, LIVE, 3, IDLE), Holding(ModelRef("d"), LIVE, 3, 59)
    assert plan(9, 3, newer, busy, older) == LetGo((older,))
    assert plan(9, 6, newer, busy, older) == LetGo((older, newer))
    assert isinstance(plan(9, 7, newer, busy, older), Short)


def test_for_a_model_nobody_uses_no_other_goes_but_what_is_kept() -> None:
    assert isinstance(plan(10, 5, Holding(B, LIVE, 10, IDLE), wanted=False), Short)
    kept = Holding(B, KEPT, 5)
    assert plan(10, 5, kept, Holding(C, LIVE, 5, IDLE), wanted=False) == LetGo((kept,))


def test_the_live_version_of_the_asking_model_stays_however_idle() -> None:
    assert isinstance(plan(10, 5, Holding(A, LIVE, 6, IDLE)), Short)


def test_versions_larger_than_expected_cost_what_is_kept() -> None:
    live, kept, other = Holding(A, LIVE, 12), Holding(B, KEPT, 3, 1), Holding(C, KEPT, 3, 5)
    assert Budget(12).overflow([live, kept, other]) == (other, kept)
    assert Budget(15).overflow([live, kept, other]) == (other,)
    assert Budget(12).overflow([live, Holding(B, LEAVING, 5)]) == ()


holdings_ = st.lists(
    st.builds(
        Holding, st.sampled_from([A, B, C]), st.sampled_from(Place), st.integers(0, 9), st.sampled_from([0, 59, 60, 99])
    ),
    max_size=8,
)


@given(limit=st.integers(1, 40), need=st.integers(0, 40), wanted=st.booleans(), holdings=holdings_)
def test_a_plan_makes_just_enough_room_of_what_may_go(
    limit: int, need: int, wanted: bool, holdings: list[Holding]
) -> None:
    free = limit - sum(holding.size_bytes for holding in holdings)
    leaving = sum(holding.size_bytes for holding in holdings if holding.place is LEAVING)
    match plan(limit, need, *holdings, wanted=wanted):
        case Fits():
            assert need <= free
        case Wait():
            assert free < need <= free + leaving
        case LetGo(chosen):
            sizes = [holding.size_bytes for holding in chosen]
            assert free + leaving + sum(sizes[:-1]) < need <= free + leaving + sum(sizes)
            for holding in chosen:
                assert holding.place is KEPT or (
                    wanted and holding.place is LIVE and holding.ref != A and holding.idle_s >= IDLE_S
                )
        case Short(message):
            assert free + leaving < need
            assert "a@3" in message


@pytest.mark.parametrize("place", [READY, LIVE])
def test_what_serves_or_is_about_to_is_in_nobodys_way(place: Place) -> None:
    assert isinstance(plan(10, 5, Holding(B, place, 6, 0)), Short)
