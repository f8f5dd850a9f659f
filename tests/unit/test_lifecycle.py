"""What `consumer/lifecycle.py` promises: a version moves as the table says and never otherwise."""

from __future__ import annotations

import pytest

from modelcast.consumer.lifecycle import (
    HISTORY,
    LOAD_STEPS,
    MAX_LEDGER_VERSIONS,
    TRANSITIONS,
    IllegalTransitionError,
    Ledger,
    State,
    VersionKey,
)
from modelcast.names import ModelVersion


def key(number: int) -> VersionKey:
    return VersionKey("repository-1", ModelVersion("fraud", number))


def ways() -> dict[State | None, list[State]]:
    """A legal way from nowhere to every state that has one."""
    found: dict[State | None, list[State]] = {None: []}
    frontier: list[State | None] = [None]
    while frontier:
        state = frontier.pop(0)
        for following in sorted(TRANSITIONS[state]):
            if following not in found:
                found[following] = [*found[state], following]
                frontier.append(following)
    return found


def test_every_state_can_be_reached_and_left() -> None:
    assert set(ways()) == {None, *State}
    assert set(TRANSITIONS) == {None, *State}
    assert all(TRANSITIONS.values())


def test_the_way_of_a_version_that_goes_well() -> None:
    ledger = Ledger()
    for state in (State.ASPIRED, *LOAD_STEPS, State.READY, State.LIVE, State.KEPT, State.QUIESCING, State.UNLOADED):
        ledger.move(key(1), state)
    assert ledger.state(key(1)) is State.UNLOADED


@pytest.mark.parametrize("before", [None, *State])
@pytest.mark.parametrize("to", State)
def test_the_ledger_moves_as_the_table_says_and_never_otherwise(before: State | None, to: State) -> None:
    ledger = Ledger()
    for state_on_the_way in ways()[before]:
        ledger.move(key(1), state_on_the_way)
    if to in TRANSITIONS[before]:
        ledger.move(key(1), to)
        assert ledger.state(key(1)) is to
    else:
        with pytest.raises(IllegalTransitionError, match="fraud@1"):
            ledger.move(key(1), to)
        assert ledger.state(key(1)) is before


def test_a_version_is_refused_from_every_step_before_it_is_ready_and_from_no_other_state() -> None:
    refusable = {state for state, following in TRANSITIONS.items() if State.REFUSED in following}
    assert refusable == {State.ASPIRED, *LOAD_STEPS}


def test_only_what_is_loaded_can_go_live() -> None:
    loaded = {state for state, following in TRANSITIONS.items() if State.LIVE in following}
    assert loaded == {State.READY, State.KEPT, State.QUIESCING}


def test_the_ledger_forgets_history_first_and_stays_bounded() -> None:
    ledger = Ledger()
    ledger.move(key(1), State.READY)
    ledger.move(key(1), State.LIVE)
    for number in range(2, 3 * MAX_LEDGER_VERSIONS):
        ledger.move(key(number), State.ASPIRED)
        ledger.move(key(number), State.REFUSED)
    states = ledger.snapshot()
    assert len(states) == MAX_LEDGER_VERSIONS
    assert ledger.state(key(1)) is State.LIVE
    assert set(states.values()) - {State.LIVE} <= HISTORY
