"""What a version can be doing on an instance: its states, the one table of legal moves, and who is where.

Rules:
- A version that is wanted is fetched, verified, loaded and warmed, and then ready; a step that fails refuses it.
- What is ready goes live by a swap, or is let go. What is replaced is kept, or quiesces until its last lease ended.
- Anything still loaded may come back; what is unloaded or refused starts again at `ASPIRED`.
- A move that `TRANSITIONS` does not allow raises, and changes nothing.

    aspired → fetching → verifying → loading → warming → ready → live ⇄ kept → quiescing → unloaded
       └──────────┴──────────┴──────────┴─────────┴→ refused
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from modelcast.names import ModelVersion
from modelcast.registry.image import identity_of

if TYPE_CHECKING:
    from .servable import Servable


class State(StrEnum):
    """What a version is doing on this instance."""

    ASPIRED = "aspired"  # the registry wants it here
    FETCHING = "fetching"  # files that are missing, digests of all
    VERIFYING = "verifying"  # what the graph asks for, its inputs, a trial in a limited child
    LOADING = "loading"  # the runtime's session
    WARMING = "warming"  # golden examples, a run of each batch size
    READY = "ready"  # loaded, checked and warm, not live yet
    LIVE = "live"
    KEPT = "kept"  # was live, still loaded
    QUIESCING = "quiescing"  # to be destroyed after its last lease
    UNLOADED = "unloaded"
    REFUSED = "refused"


TRANSITIONS: Mapping[State | None, frozenset[State]] = {
    None: frozenset({State.ASPIRED, State.READY}),  # ready at once: loaded by someone else than a control plane
    State.ASPIRED: frozenset({State.FETCHING, State.REFUSED}),
    State.FETCHING: frozenset({State.VERIFYING, State.REFUSED}),
    State.VERIFYING: frozenset({State.LOADING, State.REFUSED}),
    State.LOADING: frozenset({State.WARMING, State.REFUSED}),
    State.WARMING: frozenset({State.READY, State.REFUSED}),
    State.READY: frozenset({State.LIVE, State.QUIESCING}),
    State.LIVE: frozenset({State.KEPT, State.QUIESCING}),
    State.KEPT: frozenset({State.LIVE, State.QUIESCING}),
    State.QUIESCING: frozenset({State.LIVE, State.UNLOADED}),  # still loaded, so it may come back
    State.UNLOADED: frozenset({State.ASPIRED, State.READY}),
    State.REFUSED: frozenset({State.ASPIRED}),
}

# The way from wanted to ready, in order; a loader says which of these it is at.
LOAD_STEPS = (State.FETCHING, State.VERIFYING, State.LOADING, State.WARMING)
# Neither loaded nor on the way to it.
HISTORY = frozenset({State.UNLOADED, State.REFUSED})
# History is kept to explain a status: enough of it, bounded for ever.
MAX_LEDGER_VERSIONS = 256


class IllegalTransitionError(RuntimeError):
    """A version was moved where `TRANSITIONS` does not lead: a defect of this package, never a user's fault."""


@dataclass(frozen=True, slots=True, order=True)
class VersionKey:
    """One version on one repository: numbers start again when a repository is made anew.

    Attributes:
        content: Its identity (`identity_of`); empty where nothing is known of it. Where a trust policy changes, another
            version may stand under the same number.
    """

    repository: str
    id: ModelVersion
    content: str = ""

    @classmethod
    def of(cls, servable: Servable) -> VersionKey:
        return cls(servable.manifest.repository, servable.id, identity_of(servable.manifest))

    def __str__(self) -> str:
        return str(self.id)


class Ledger:
    """The state of every version of one model reference; not thread-safe, the slot's lock guards it."""

    def __init__(self) -> None:
        self._states: dict[VersionKey, State] = {}

    def state(self, key: VersionKey) -> State | None:
        return self._states.get(key)

    def check(self, key: VersionKey, to: State) -> None:
        """Raises IllegalTransitionError if `key` may not move to `to`."""
        before = self._states.get(key)
        if to not in TRANSITIONS[before]:
            raise IllegalTransitionError(f"{key} can't move from {before or 'nowhere'} to {to}")

    def move(self, key: VersionKey, to: State) -> None:
        """Moves `key` to `to`; raises IllegalTransitionError, changing nothing, if that is no legal move."""
        self.check(key, to)
        self._states.pop(key, None)  # so that the order is that of the last move
        self._states[key] = to
        if len(self._states) > MAX_LEDGER_VERSIONS:
            oldest = next((old for old, state in self._states.items() if state in HISTORY), None)
            if oldest is not None:
                del self._states[oldest]

    def snapshot(self) -> Mapping[VersionKey, State]:
        return dict(self._states)
