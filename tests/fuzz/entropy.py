"""Where decisions come from: a random generator, or bytes that somebody made up. The same bytes decide the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")


class Entropy(Protocol):
    """A source of decisions."""

    def number(self, least: int, most: int) -> int: ...

    def octets(self, count: int) -> bytes: ...


class Dice:
    """Decisions of a seeded generator."""

    def __init__(self, seed: int | str) -> None:
        self._random = random.Random(seed)

    def number(self, least: int, most: int) -> int:
        return self._random.randint(least, most)

    def octets(self, count: int) -> bytes:
        return self._random.randbytes(count)


class Tape:
    """Decisions read off some bytes; at their end it goes on with the least of what is asked for."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, least: int, most: int) -> int:
        spread = most - least
        raw = int.from_bytes(self.octets((spread.bit_length() + 7) // 8))
        return least + raw % (spread + 1)

    def octets(self, count: int) -> bytes:
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken


def pick(entropy: Entropy, choices: Sequence[T]) -> T:
    """One of them."""
    return choices[entropy.number(0, len(choices) - 1)]
