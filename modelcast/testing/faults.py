"""Faults of a log, and what its clients share of them: dice, absence, lost answers. `faulty.py` is the log.

What each fault is, at the seam `modelcast.log`:

- **reorder**: records of a writer without transactions change places with others of its last `WINDOW_RECORDS`, as where
  several writers or a mirror write one topic; and a reader's partitions come interleaved anew. Kafka keeps the order of
  a partition for readers and inside transactions, and so does this: a reader never sees offsets go back.
- **duplicate**: such a writer's record is written once more, as whoever starts over after a lost answer does.
- **delay**: a poll brings nothing, or a part of what is there; the rest comes with a later one.
- **cut**: the connection breaks in a request. A question raises BrokerError. A flush has written a part and raises
  BrokerError. A commit was decided one way or the other, and raises OutcomeUnknownError: take the id anew, and read.
- **away**: nobody answers at all. Readers and consumers wait; everything else raises as above, and what was sent waits
  for the next flush.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from random import Random
from threading import Condition
from typing import Final, TypeVar

from modelcast.errors import BrokerError, OutcomeUnknownError, UsageError

T = TypeVar("T")

# How far a record strays from its place, and how many a broken connection may lose: few enough for small tests to see
# both, many enough that neighbours are not all that ever changes.
WINDOW_RECORDS: Final = 16


@dataclass(frozen=True, slots=True)
class Faults:
    """How often what happens: probabilities of a record, poll or request. See the module for what each means."""

    reorder: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    cut: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            share = getattr(self, field.name)
            if not 0 <= share <= 1:
                raise UsageError(f"fault {field.name!r} has the share {share}", hint="Give a probability from 0 to 1.")


NONE: Final = Faults()


class Troubled:
    """What has faults: shared by a log and its clients. Thread-safe.

    Args:
        faults: How often what happens; may be changed at any time by setting `faults`.
        seed: Of the dice.
    """

    def __init__(self, faults: Faults, seed: int) -> None:
        self.faults = faults
        self.seed = seed
        self._dice = Random(seed)  # noqa: S311 - a test that failed must be run again
        self._present = Condition()
        self._is_away = False

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody answers for as long as the block lasts."""
        self.go_away()
        try:
            yield
        finally:
            self.come_back()

    def go_away(self) -> None:
        """From now on nobody answers."""
        with self._present:
            self._is_away = True

    def come_back(self) -> None:
        """Ends `go_away`; whoever waits goes on at once."""
        with self._present:
            self._is_away = False
            self._present.notify_all()

    @property
    def is_away(self) -> bool:
        """Whether nobody answers."""
        return self._is_away

    def happens(self, share: float) -> bool:
        """Throws the dice; a share of 0 throws none, so that other faults fall alike with and without it."""
        if share <= 0:
            return False
        with self._present:
            return self._dice.random() < share

    def draw(self, below: int) -> int:
        """A number from 0 to `below - 1`."""
        with self._present:
            return self._dice.randrange(below)

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """A request with its answer. Raises BrokerError where there is none."""
        if self.is_away:
            raise self.gone(what)
        if self.happens(self.faults.cut):
            raise BrokerError(f"can't {what}: the connection was cut", hint="Try again.")
        return call()

    def gone(self, what: str) -> BrokerError:
        """The error of a request that nobody answers."""
        return BrokerError(f"can't {what}: no broker answers", hint="Ask again once the broker is back.")

    def wait_present(self, timeout_s: float) -> bool:
        """Waits until somebody answers; whether somebody does."""
        with self._present:
            return self._present.wait_for(lambda: not self._is_away, timeout_s)


class Doubt:
    """Commits whose answer may be lost."""

    def __init__(self, log: Troubled) -> None:
        self._log = log
        self.broken = False

    def check(self) -> None:
        """Raises OutcomeUnknownError after an answer was lost."""
        if self.broken:
            raise OutcomeUnknownError(
                "the answer to this writer's commit was lost", hint="Take the transactional id anew."
            )

    def commit(self, commit: Callable[[], None]) -> None:
        """Commits, or loses the request or its answer; raises OutcomeUnknownError then."""
        self.check()
        cut = self._log.happens(self._log.faults.cut)
        if cut and self._log.draw(2):
            commit()
        elif not cut and not self._log.is_away:
            commit()
            return
        self.broken = True
        self.check()
