"""What must go when memory is short. Pure: it decides on figures, and lets go of nothing itself.

Rules:
- Everything loaded counts, also what is only waiting for its last lease; so does what is about to be loaded.
- A version that needs more than the whole budget is refused. One that finds no room now is tried again when there is.
- What is kept for a rollback goes first: the asking model's own, then that of models idle the longest.
- Then live versions of idle models go, longest idle first, but only for a model that somebody asks for or uses: among
  models that nobody uses, the one that is loaded stays.
- The asking model's live version never goes: it serves until the new one is ready.
- Nothing goes unless all that goes makes enough room.

    match budget.plan(need_bytes, asker=ref, wanted=True, holdings=holdings):
        case LetGo(holdings): ...
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from modelcast.names import ModelRef
from modelcast.records import Manifest

# A model that answers requests is asked more often than this; loading it again takes a second or a few.
IDLE_S = 60.0


class Place(StrEnum):
    """Where a loaded version is."""

    LIVE = "live"
    KEPT = "kept"
    READY = "ready"  # goes live, or is let go, at once
    LEAVING = "leaving"  # its memory is free as soon as its last lease ends


@dataclass(frozen=True, slots=True)
class Holding:
    """Memory that a loaded version takes.

    Attributes:
        size_bytes: All of it.
        idle_s: How long nobody used the model.
    """

    ref: ModelRef
    place: Place
    size_bytes: int
    idle_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Fits:
    """There is room."""


@dataclass(frozen=True, slots=True)
class LetGo:
    """There is room once these are gone."""

    holdings: tuple[Holding, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """There is room once what is leaving has left."""


@dataclass(frozen=True, slots=True)
class Short:
    """There is no room, and nothing that may go for it."""

    message: str


Plan = Fits | LetGo | Wait | Short


@dataclass(frozen=True, slots=True)
class Budget:
    """What one instance may hold in memory.

    Attributes:
        limit_bytes: For all models together; None for no limit.
        need: What a version takes once it is loaded, in bytes.
        idle_s: A model nobody used for so long may be let go for another one.
    """

    limit_bytes: int | None = None
    need: Callable[[Manifest], int] = lambda manifest: manifest.size_bytes
    idle_s: float = IDLE_S

    def too_large(self, manifest: Manifest) -> str | None:
        """Why a version can never be loaded under this budget; None if it can."""
        if self.limit_bytes is None or self.need(manifest) <= self.limit_bytes:
            return None
        return (
            f"{manifest.id} needs {_mib(self.need(manifest))} of memory, more than the whole memory budget of "
            f"{_mib(self.limit_bytes)}"
        )

    def plan(self, manifest: Manifest, *, asker: ModelRef, wanted: bool, holdings: Sequence[Holding]) -> Plan:
        """What to do so that a version finds room.

        Args:
            asker: The model it is loaded for.
            wanted: Whether somebody asks for that model, or uses it.
            holdings: All that is in memory.
        """
        if self.limit_bytes is None:
            return Fits()
        missing = self.need(manifest) - (self.limit_bytes - _sum(holdings))
        if missing <= 0:
            return Fits()
        missing -= _sum(holding for holding in holdings if holding.place is Place.LEAVING)
        if missing <= 0:
            return Wait()
        chosen = []
        for holding in self._dispensable(asker, wanted, holdings):
            chosen.append(holding)
            missing -= holding.size_bytes
            if missing <= 0:
                return LetGo(tuple(chosen))
        return Short(
            f"{manifest.id} needs {_mib(self.need(manifest))} of a memory budget of {_mib(self.limit_bytes)}, and what "
            "is loaded is in use: it is loaded as soon as there is room"
        )

    def overflow(self, holdings: Sequence[Holding]) -> tuple[Holding, ...]:
        """The kept versions to let go of because versions turned out larger than they were expected to be."""
        if self.limit_bytes is None:
            return ()
        excess = _sum(holding for holding in holdings if holding.place is not Place.LEAVING) - self.limit_bytes
        chosen = []
        for holding in sorted((h for h in holdings if h.place is Place.KEPT), key=_longest_idle_first):
            if excess <= 0:
                break
            chosen.append(holding)
            excess -= holding.size_bytes
        return tuple(chosen)

    def _dispensable(self, asker: ModelRef, wanted: bool, holdings: Sequence[Holding]) -> Iterable[Holding]:
        kept = [holding for holding in holdings if holding.place is Place.KEPT]
        yield from sorted(kept, key=lambda holding: (holding.ref != asker, *_longest_idle_first(holding)))
        if not wanted:
            return
        idle = [h for h in holdings if h.place is Place.LIVE and h.ref != asker and h.idle_s >= self.idle_s]
        yield from sorted(idle, key=_longest_idle_first)


UNLIMITED = Budget()


def _longest_idle_first(holding: Holding) -> tuple[float, str]:
    return -holding.idle_s, str(holding.ref)


def _sum(holdings: Iterable[Holding]) -> int:
    return sum(holding.size_bytes for holding in holdings)


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
