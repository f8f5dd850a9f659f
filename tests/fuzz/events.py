"""Damaged batches of events by the thousand, drawn at random."""

from __future__ import annotations

from .entropy import Dice
from .harness import Harness
from .shapes import shapes

# Shapes are made anew so often: strange schemas are drawn with each.
ROUND_BATCHES = 5_000


def by_dice(batches: int, seed: int) -> int:
    """Judges so many batches; how many events were damaged in them. A finding's note says how to play it again."""
    broken = 0
    for first in range(0, batches, ROUND_BATCHES):
        harnesses = [Harness(shape) for shape in shapes(seed + first)]
        for number in range(first, min(first + ROUND_BATCHES, batches)):
            broken += judge(harnesses, seed, number)
    return broken


def judge(harnesses: list[Harness], seed: int, number: int) -> int:
    """The batch of this number; how many of its events were damaged."""
    harness = harnesses[number % len(harnesses)]
    try:
        return harness.judge(Dice(f"{seed}/{number}"))
    except BaseException as error:
        error.add_note(f"found in shape {harness.shape.name!r}")
        error.add_note(f"again: python -m tests.fuzz --only events --seed {seed} --case {number}")
        raise


def again(seed: int, number: int) -> int:
    """Plays one batch of a seed again."""
    return judge([Harness(shape) for shape in shapes(seed + number - number % ROUND_BATCHES)], seed, number)
