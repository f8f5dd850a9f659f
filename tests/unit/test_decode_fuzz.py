"""Damaged events and their neighbours, in every shape: a taste of what `make fuzz` does at length."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcast.consumer.dead_letters import DeadLetter, DeadLetterBuilder
from tests.fuzz.entropy import Dice
from tests.fuzz.harness import TOPIC, Event, Harness, Player
from tests.fuzz.shapes import Shape, shapes

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus" / "events"
# Each shape this often: seconds in all.
BATCHES = 12


@pytest.fixture(scope="module")
def player() -> Player:
    return Player()


SHAPES = shapes(Player.SEED)


@pytest.mark.parametrize("shape", SHAPES, ids=[shape.name for shape in SHAPES])
def test_f33_what_becomes_of_an_event_follows_from_its_own_bytes(shape: Shape) -> None:
    harness = Harness(shape)
    assert sum(harness.judge(Dice(f"{shape.name}/{number}")) for number in range(BATCHES)) >= BATCHES


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(tape=st.binary(min_size=2, max_size=60))
def test_f33_whatever_happens_to_events_their_neighbours_keep_their_predictions(player: Player, tape: bytes) -> None:
    player.play(tape)


def test_f33_what_fuzzers_found_their_way_to_stays_harmless(player: Player) -> None:
    tapes = sorted(CORPUS.iterdir())
    assert len(tapes) > 50
    for tape in tapes:
        player.play(tape.read_bytes())


def test_most_events_of_every_shape_are_good_before_they_are_damaged() -> None:
    """Else the fuzzers would look at nothing but dead letters; strange shapes may have events no model takes."""
    for harness in Player().harnesses:
        good = sum(isinstance(outcome, bytes) for outcome in harness.clean.values())
        assert good >= len(harness.whole) / 2 or harness.shape.name.startswith("strange"), harness.shape.name


def test_the_harness_notices_a_neighbour_that_changed(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = player.harnesses[0]
    monkeypatch.setattr(harness, "clean", dict.fromkeys(harness.clean, b"something else"))
    with pytest.raises(AssertionError, match="comes to"):
        harness.judge(Dice(1))


def test_the_harness_notices_a_letter_that_lost_bytes(player: Player, monkeypatch: pytest.MonkeyPatch) -> None:
    class Careless(DeadLetterBuilder):
        def build(self, *arguments: Any) -> list[DeadLetter]:
            return [replace(letter, value=(letter.value or b"")[:3]) for letter in super().build(*arguments)]

    harness = player.harnesses[0]
    monkeypatch.setattr(harness._scoring, "_letters", Careless(TOPIC))
    with pytest.raises(AssertionError):
        harness.outcomes([Event(0, b"\xff garbage", ())])


def test_shapes_of_one_seed_are_always_the_same() -> None:
    assert [shape.values for shape in shapes(7)] == [shape.values for shape in shapes(7)]
