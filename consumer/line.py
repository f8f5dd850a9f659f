"""One model reference on one instance: its slot, what was refused, and what its status says.

Only the control thread changes a line; every other thread reads values that are replaced whole, and takes leases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelcast.names import ModelRef, ModelVersion
from modelcast.records import ModelState, ModelStatus, Refusal, Release

from .lifecycle import LOAD_STEPS, State, VersionKey
from .policy import NO_VERSION, RefusedVersion, View
from .slot import Slot

if TYPE_CHECKING:
    from .binding import EventFields
    from .servable import Servable

# Enough to explain what an instance does; a status is one small record.
MAX_STATUS_REFUSALS = 10
# Refusals remembered so that they are not tried again: more versions than this were never in a history at once.
MAX_REFUSED = 1000


@dataclass(frozen=True, slots=True)
class Swapped:
    """A version went live.

    Attributes:
        load_ms: What its loading took.
        release_to_live_ms: From the release's creation until now (clocks of two hosts); None if pinned or standing in.
    """

    ref: ModelRef
    old: ModelVersion | None
    new: ModelVersion
    at_ms: int
    load_ms: float
    release_to_live_ms: float | None


class Line:
    """The state behind one subscription."""

    def __init__(self, ref: ModelRef, *, keep: int) -> None:
        self.ref = ref
        self.slot = Slot(str(ref), keep=keep)
        self.ready: Servable | None = None
        self.fields: EventFields | None = None
        self.fields_generation = 0
        self.refused: dict[VersionKey, RefusedVersion] = {}
        self.loading = False
        self.fault: Exception | None = None
        # The registry was read to an end taken after this line was there.
        self.caught_up = False
        # Nothing is live, and waiting alone will change nothing.
        self.hopeless = False
        self._load_ms: dict[VersionKey, float] = {}
        self._facts = ModelStatus(ref.model, ref.version, ModelState.WAITING)

    def view(self, *, busy: bool, mark: int, now_s: float) -> View:
        """What the policy decides on."""
        return View(
            self.ref,
            live=self.slot.live_key,
            loaded=frozenset(self.slot.loaded()),
            ready=None if self.ready is None else VersionKey.of(self.ready),
            busy=busy,
            refused=self.refused,
            mark=mark,
            fields=self.fields_generation,
            now_s=now_s,
        )

    def begin_load(self, key: VersionKey) -> None:
        """Notes that a version is to be loaded."""
        self.slot.move(key, State.ASPIRED)
        self.loading = True

    def advance_load(self, key: VersionKey, to: State) -> None:
        """Notes that a load came to one of `LOAD_STEPS`; those before it were taken, told or not."""
        state = self.slot.state(key)
        at = LOAD_STEPS.index(state) + 1 if state in LOAD_STEPS else 0
        for step in LOAD_STEPS[at : LOAD_STEPS.index(to) + 1]:
            self.slot.move(key, step)

    def end_load(self, servable: Servable, took_ms: float) -> None:
        """Takes what was loaded."""
        key = VersionKey.of(servable)
        self.advance_load(key, LOAD_STEPS[-1])
        self.slot.move(key, State.READY)
        self.ready = servable
        self.loading = False
        held = {key, self.slot.live_key, *self.slot.loaded()}
        self._load_ms = {known: ms for known, ms in self._load_ms.items() if known in held} | {key: took_ms}

    def swap(self, key: VersionKey, release: Release | None, now_ms: int) -> Swapped:
        """Makes the ready version, or one still loaded, live."""
        is_ready = self.ready is not None and VersionKey.of(self.ready) == key
        servable = self.ready if is_ready else self.slot.loaded().get(key)
        if servable is None:
            raise LookupError(f"{key} is neither ready nor loaded")
        before = self.slot.live_key
        after_release = None if release is None else float(now_ms - release.created_ms)
        event = Swapped(
            self.ref, before.id if before else None, key.id, now_ms, self._load_ms.get(key, 0.0), after_release
        )
        # Before the swap: whoever sees the new version must not read the old one's facts.
        self._facts = replace(
            self._facts,
            live_version=key.id.version,
            since_ms=now_ms,
            load_ms=event.load_ms,
            release_to_live_ms=after_release,
            swaps=self._facts.swaps + (before is not None),
        )
        self._forget_refusals(key, release)
        self.slot.swap(servable)
        if is_ready:
            self.ready = None
        return event

    def _forget_refusals(self, live: VersionKey, release: Release | None) -> None:
        """What goes live was admitted after all: under its number, and its release as far as it goes."""
        reached = release.sequence if release is not None else 0
        self.refused = {
            key: refused
            for key, refused in self.refused.items()
            if key.id != live.id and not (key.id.version == NO_VERSION and refused.basis.sequence <= reached)
        }

    def unload(self, key: VersionKey) -> None:
        """Lets go of the ready version, or empties the slot of the live one."""
        if self.ready is not None and VersionKey.of(self.ready) == key:
            ready, self.ready = self.ready, None
            self.slot.discard(ready)
        elif self.slot.live_key == key:
            self.clear()

    def clear(self) -> None:
        """Lets go of everything."""
        if self.ready is not None:
            ready, self.ready = self.ready, None
            self.slot.discard(ready)
        self.slot.clear()
        self._facts = replace(self._facts, live_version=None, since_ms=None, load_ms=None, release_to_live_ms=None)

    def refuse(self, refusal: RefusedVersion) -> bool:
        """Remembers a refusal; False if it says no more than the one known."""
        key = refusal.key
        known = self.refused.pop(key, None)
        self.refused[key] = refusal
        while len(self.refused) > MAX_REFUSED:
            del self.refused[next(iter(self.refused))]
        if self.slot.state(key) in (State.ASPIRED, *LOAD_STEPS):
            self.loading = False
        # A version that is live or kept stays what it is: it may be refused as the next one all the same.
        if self.slot.state(key) in (None, State.UNLOADED, State.REFUSED):
            self.slot.move(key, State.ASPIRED)
        if self.slot.state(key) in (State.ASPIRED, *LOAD_STEPS):
            self.slot.move(key, State.REFUSED)
        return known is None or (known.reason, known.message) != (refusal.reason, refusal.message)

    def refusals(self) -> tuple[Refusal, ...]:
        """The latest refusals, oldest first."""
        latest = list(self.refused.values())[-MAX_STATUS_REFUSALS:]
        return tuple(Refusal(entry.key.id.version, entry.reason, entry.message, entry.at_ms) for entry in latest)

    def status(self) -> ModelStatus:
        """What the status topic says of this line."""
        facts = self._facts
        state = ModelState.LOADING if self.loading else ModelState.WAITING
        if facts.live_version is not None:
            state = ModelState.LIVE
        return replace(facts, state=state, refusals=self.refusals())
