"""Where inputs come from: dice, Hypothesis, and a fuzzer that follows which code they reach.

Each engine puts so many inputs before one reader and raises what was found; a note says how to play it again.
"""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .entropy import Dice
from .reader import Judge, Reader


class Choices:
    """Decisions of Hypothesis, which knows each for what it is and finds the simplest that fail."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def number(self, least: int, most: int) -> int:
        return int(self._data.draw(st.integers(least, most)))

    def octets(self, count: int) -> bytes:
        return bytes(self._data.draw(st.binary(min_size=count, max_size=count)))


def by_dice(reader: Reader, cases: int, seed: int) -> Judge:
    """Inputs drawn by a seeded generator; each number of a seed is always the same input."""
    judge = Judge(reader)
    for number in range(cases):
        data = reader.drawn(Dice(f"{seed}/{number}"))
        try:
            judge.judge(data)
        except BaseException as error:
            error.add_note(f"again: python -m tests.fuzz --only {reader.name!r} --seed {seed} --case {number}")
            error.add_note(f"the input: {data!r}")
            raise
    return judge


def by_hypothesis(reader: Reader, cases: int, seed: int) -> Judge:
    """Inputs drawn by Hypothesis from the same decisions; what fails is told in its simplest form."""
    import hypothesis

    judge = Judge(reader)

    @hypothesis.seed(seed)
    @settings(
        max_examples=cases,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(st.data())
    def explore(data: Any) -> None:
        drawn = reader.drawn(Choices(data))
        try:
            judge.judge(drawn)
        except BaseException as error:
            error.add_note(f"the input for {reader.name!r}: {drawn!r}")
            raise

    explore()
    return judge
