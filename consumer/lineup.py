"""The models of one scorer, together: their slots, one lease on all of them, and which of them fails.

- A batch is scored by all models or waits for all: its events have one offset, and what is committed is done with.
- So a model without a live version holds all events back. That is a start, or what `--when-stale stop` asks for.
- A live version that fails whatever it is given (a fault of the model) holds them back for as long as another version
  of it is likely to take its place. What follows is the user's choice (`WhenFailing`): events wait on, or the model is
  *excused*: its events become its dead letters, and the others' predictions are committed. An excused model is tried on
  every batch, so one that recovers scores on without being told.
- Another version in the slot settles all that was held against the one before.

    lineup = Lineup([plane.slot(ref) for ref in refs], when_failing=WhenFailing.DEAD_LETTER)
    if (reason := lineup.reason_to_wait()) is None:
        with lineup.lease() as leased: ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Self

from modelcast.errors import UsageError

if TYPE_CHECKING:
    from modelcast.names import ModelVersion

    from .servable import Servable
    from .slot import Slot

# The one reason to wait that the loop's owner knows more about.
NO_VERSION = "no version is live"
# How long a version that fails may take to make way before its model is excused. The one before it is loaded still, and
# takes milliseconds; one that has to be fetched and loaded takes seconds.
SUCCESSOR_PATIENCE_S = 30.0


class WhenFailing(StrEnum):
    """What happens to events when a model fails on all of them, and nothing takes its place."""

    WAIT = "wait"  # they stay in Kafka, for all models
    DEAD_LETTER = "dead-letter"  # they are that model's dead letters; the other models score on

    @classmethod
    def of(cls, word: str | None, models: int) -> Self:
        """The user's choice, or what is right for so many models. Raises UsageError if it is none.

        One model's events wait: nobody gains by going on. Of several, one must not stop the others.
        """
        if word is None:
            return cls(cls.DEAD_LETTER if models > 1 else cls.WAIT)
        if word not in list(cls):
            raise UsageError(f"a failing model can't {word!r}", hint="Use wait or dead-letter.")
        return cls(word)


@dataclass(frozen=True, slots=True)
class Leased:
    """The live servables, in the order of the models; usable until the lease ends.

    Attributes:
        generations: Of each slot, read before its servable was leased.
    """

    servables: tuple[Servable, ...]
    generations: tuple[int, ...]

    @property
    def ids(self) -> tuple[ModelVersion, ...]:
        return tuple(servable.id for servable in self.servables)


@dataclass(frozen=True, slots=True)
class _Blame:
    """What is held against one model's live version; void once its slot has another generation."""

    version: ModelVersion
    generation: int
    until_s: float


class Lineup:
    """For the scoring thread.

    Args:
        slots: One a model, at least one.
        when_failing: What becomes of the events of a model that fails for good.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        slots: Sequence[Slot],
        *,
        when_failing: WhenFailing = WhenFailing.WAIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._slots = tuple(slots)
        self._when_failing = when_failing
        self._clock = clock
        self._blames: dict[int, _Blame] = {}

    @property
    def is_live(self) -> bool:
        """Whether every model has a live version."""
        return all(slot.live is not None for slot in self._slots)

    def reason_to_wait(self) -> str | None:
        """Why events wait for a model; None if they can be scored."""
        if not self.is_live:
            return NO_VERSION
        for index in self._failing():
            blame = self._blames[index]
            if self._when_failing is WhenFailing.WAIT:
                return f"{blame.version} fails on every event, and nothing can take its place"
            if self._clock() < blame.until_s:
                return f"{blame.version} fails on every event, and another version may take its place"
        return None

    def excused(self) -> frozenset[int]:
        """Models whose failure is their own, so that a batch is committed without their predictions."""
        return frozenset(self._failing())

    def blame(self, index: int, leased: Leased) -> None:
        """Notes that a model fails, whatever it is given."""
        self._blames[index] = _Blame(leased.ids[index], leased.generations[index], self._clock() + SUCCESSOR_PATIENCE_S)

    @contextmanager
    def lease(self) -> Iterator[Leased]:
        """The live servables of all models.

        Raises:
            ModelNotFoundError: One of them has none.
        """
        with ExitStack() as stack:
            generations = tuple(slot.generation for slot in self._slots)
            yield Leased(tuple(stack.enter_context(slot.lease()) for slot in self._slots), generations)

    def _failing(self) -> list[int]:
        for index, blame in list(self._blames.items()):
            if self._slots[index].generation != blame.generation:
                del self._blames[index]
        return sorted(self._blames)
