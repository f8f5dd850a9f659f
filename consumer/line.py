"""One model reference on one instance: its slot, what was refused, and what its status says.

Only the reconciler changes a line; every other thread reads values that are replaced whole, and takes leases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelcast.names import ModelRef, ModelVersion
from modelcast.records import ModelState, ModelStatus, Refusal, Release
from modelcast.registry.image import RegistryImage

from .budget import Budget, Holding, Place
from .freshness import Stale
from .lifecycle import LOAD_STEPS, State, VersionKey
from .policy import MEMORY, NO_VERSION, Load, RefusedVersion, View
from .rate import Calls
from .slot import Slot
from .status import Activity

if TYPE_CHECKING:
    from .binding import EventFields
    from .servable import Servable

# How long whoever asked for a model that went live has for using it: to be told of it takes them milliseconds.
AWAITED_S = 0.25
# How long a version looks for room before that is told: a model that others just asked for, or memory that is about to
# be let go of, makes room by then.
ROOM_AWAITED_S = 2.0
# Enough to explain what an instance does; a status is one small record.
MAX_STATUS_REFUSALS = 10
# Refusals remembered so that they are not tried again: more versions than this were never in a history at once.
MAX_REFUSED = 1000

# The reason of a refusal that is not a version's: what is known of the model is older than it may be.
STALE = "stale"


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


@dataclass(frozen=True, slots=True)
class _Decided:
    """What was decided, and on what: of a thousand models a turn concerns one, and finds the others as they were."""

    image: RegistryImage
    mark: int | None
    fields: int
    want: Load | None


class Line:
    """The state behind one subscription.

    Attributes:
        ready: Loaded and not live yet: for no longer than a turn.
        loading: The version that is being loaded.
        refused: Versions that were refused, oldest first.
        stale: What is known of the model is older than it may be.
        short: The version that found no room in memory, and why.
        is_evicted: It was let go to make room for another model, and is loaded again once somebody asks for it.
        is_asked: Somebody asks for it, and nothing is live.
        is_awaited: It went live because somebody asked for it, who did not use it yet.
        is_settled: Nothing is live, and waiting alone will change nothing.
        used_at_s: When somebody was last seen to use it; before all time if nobody was.
        mark: The highest release sequence ever seen; None before anybody said so.
        fault: What keeps marks from being read.
        is_between: The live version was let go for the one that is to take its place.
        made_way_at_s: When that was last so.
        is_caught_up: The registry was read to an end taken after this line was there.
        turn: When a load was last begun, in turns of the reconciler.
    """

    def __init__(self, ref: ModelRef, *, keep: int, on_reapable: Callable[[], None] = lambda: None) -> None:
        self.ref = ref
        self.slot = Slot(str(ref), keep=keep, on_reapable=on_reapable)
        self.ready: Servable | None = None
        self.loading: VersionKey | None = None
        self.fields: EventFields | None = None
        self.fields_generation = 0
        self.refused: dict[VersionKey, RefusedVersion] = {}
        self.stale: Stale | None = None
        self.short: Refusal | None = None
        self.is_evicted = False
        self.is_asked = False
        self.is_awaited = False
        self.is_settled = False
        self.is_between = False
        self.made_way_at_s = -math.inf
        self.used_at_s = -math.inf
        self.mark: int | None = None if ref.version is None else 0
        self.fault: Exception | None = None
        self.is_caught_up = False
        self.turn = 0
        self.activity: Callable[[], Activity] = Calls(self.slot)
        self._short_since_s = -math.inf
        self._is_short_told = False
        self._uses = 0
        self._decided: _Decided | None = None
        self._served: VersionKey | None = None  # what was live last, also where it was let go first
        self._load_ms: dict[VersionKey, float] = {}
        self._facts = ModelStatus(ref.model, ref.version, ModelState.WAITING)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is live for want of memory, and asking may change that."""
        return self.slot.live is None and (self.is_evicted or self.short is not None)

    @property
    def is_stopped(self) -> bool:
        """Whether it must not serve what it knows."""
        return self.stale is not None and self.stale.stop

    def view(self, *, busy: bool, now_s: float, budget: Budget) -> View:
        """What the policy decides on."""
        return View(
            self.ref,
            live=self.slot.live_key,
            loaded=frozenset(self.slot.loaded()),
            ready=None if self.ready is None else VersionKey.of(self.ready),
            busy=busy,
            refused=self.refused,
            mark=self.mark or 0,
            fields=self.fields_generation,
            now_s=now_s,
            budget=budget,
        )

    def note_decision(self, image: RegistryImage, want: Load | None) -> None:
        """Notes what this line wants of `image`, while nothing is being loaded: a load, or nothing at all."""
        self._decided = _Decided(image, self.mark, self.fields_generation, want)

    def decided_on(self, image: RegistryImage) -> _Decided | None:
        """What was decided, if deciding again comes to the same; a refusal may be due for another try at any time."""
        decided = self._decided
        if decided is None or self.refused or decided.image is not image:
            return None
        return decided if (decided.mark, decided.fields) == (self.mark, self.fields_generation) else None

    def holdings(self, now_s: float) -> list[Holding]:
        """The memory it takes."""
        idle_s = -math.inf if self.is_awaited else max(0.0, now_s - self.used_at_s)
        live, kept = self.slot.live, self.slot.kept_key
        found = [] if live is None else [Holding(self.ref, Place.LIVE, live.memory_bytes, idle_s)]
        if self.ready is not None:
            found.append(Holding(self.ref, Place.READY, self.ready.memory_bytes, idle_s))
        for key, servable in self.slot.loaded().items():
            place = Place.KEPT if key == kept else Place.LEAVING
            found.append(Holding(self.ref, place, servable.memory_bytes, idle_s))
        return found

    def look_at_uses(self, now_s: float) -> None:
        """Notes whether somebody used it since the last look."""
        uses = self.slot.uses
        if uses != self._uses:
            self._uses, self.used_at_s = uses, now_s
            self.is_awaited = False
        elif now_s - self.used_at_s >= AWAITED_S:
            self.is_awaited = False

    def begin_load(self, key: VersionKey) -> None:
        """Notes that a version is to be loaded."""
        self.slot.move(key, State.ASPIRED)
        self.loading = key

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
        self.loading = self._decided = None
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
            swaps=self._facts.swaps + (self._served not in (None, key)),
        )
        self._served = key
        self._forget_refusals(key, release)
        self._decided = None
        self.slot.swap(servable)
        if is_ready:
            self.ready = None
        self.short = None
        self.is_awaited = self.is_asked
        self.is_evicted = self.is_asked = self.is_settled = self.is_between = False
        return event

    def _forget_refusals(self, live: VersionKey, release: Release | None) -> None:
        """What goes live was admitted after all: under its number, and its release as far as it goes."""
        reached = release.sequence if release is not None else 0
        self.refused = {
            key: refused
            for key, refused in self.refused.items()
            if key.id != live.id and not (key.id.version == NO_VERSION and refused.basis.sequence <= reached)
        }

    def discard(self) -> None:
        """Lets go of the ready version."""
        if self.ready is not None:
            ready, self.ready, self._decided = self.ready, None, None
            self.slot.discard(ready)

    def make_way(self, now_s: float) -> None:
        """Lets go of the live version for its successor, which is to be loaded next."""
        self.made_way_at_s = now_s
        self.is_between = True  # first, so that whoever finds nothing live knows to wait
        self._let_go()

    def clear(self) -> None:
        """Lets go of everything."""
        self.is_between = False
        self._let_go()

    def _let_go(self) -> None:
        self.is_awaited, self._decided = False, None
        self.discard()
        self.slot.clear()
        self._facts = replace(self._facts, live_version=None, since_ms=None, load_ms=None, release_to_live_ms=None)

    def refuse(self, refusal: RefusedVersion) -> bool:
        """Remembers a refusal; False if it says no more than the one known."""
        key = refusal.key
        known = self.refused.pop(key, None)
        self.refused[key] = refusal
        while len(self.refused) > MAX_REFUSED:
            del self.refused[next(iter(self.refused))]
        if self.loading == key:
            self.loading = None
        # A version that is live or kept stays what it is: it may be refused as the next one all the same.
        if self.slot.state(key) in (None, State.UNLOADED, State.REFUSED):
            self.slot.move(key, State.ASPIRED)
        if self.slot.state(key) in (State.ASPIRED, *LOAD_STEPS):
            self.slot.move(key, State.REFUSED)
        return known is None or (known.reason, known.message) != (refusal.reason, refusal.message)

    def forgive(self, reason: str) -> None:
        """What was refused for this reason is worth another try now."""
        if not self.refused:
            return
        self.refused = {
            key: replace(refused, retry_at_s=0.0) if refused.reason == reason else refused
            for key, refused in self.refused.items()
        }

    def find_no_room(self, version: ModelVersion, message: str, now_s: float, now_ms: int) -> Refusal | None:
        """Notes that a version finds no room in memory; the refusal, if that is to be told now."""
        if self.short is None or self.short.version != version.version:
            self.short = Refusal(version.version, MEMORY, message, now_ms)
            self._short_since_s, self._is_short_told = now_s, False
        if self._is_short_told or not self._is_missed or now_s - self._short_since_s < ROOM_AWAITED_S:
            return None
        self._is_short_told = True
        return self.short

    @property
    def _is_missed(self) -> bool:
        """Whether want of memory is a refusal: where nothing is live and nobody asks, the model is just idle."""
        return self.is_asked or self.slot.live is not None

    def refusals(self) -> tuple[Refusal, ...]:
        """The latest refusals, oldest first."""
        latest = [
            Refusal(entry.key.id.version, entry.reason, entry.message, entry.at_ms)
            for entry in list(self.refused.values())[-MAX_STATUS_REFUSALS:]
        ]
        if self.short is not None and self._is_missed:
            latest.append(self.short)
        if self.stale is not None:
            latest.append(self.staleness(self.stale))
        return tuple(latest[-MAX_STATUS_REFUSALS:])

    def staleness(self, stale: Stale) -> Refusal:
        """What is told of a model that is known no better than it was."""
        return Refusal(self._facts.live_version or self.ref.version or NO_VERSION, STALE, stale.message, stale.since_ms)

    def status(self, wanted_version: int | None = None) -> ModelStatus:
        """What the status topic says of this line, with the version that the registry wants here."""
        facts, loading = self._facts, self.loading
        state = ModelState.WAITING
        if facts.live_version is not None:
            state = ModelState.LIVE
        elif loading is not None:
            state = ModelState.LOADING
        elif self.is_idle:
            state = ModelState.IDLE
        activity = self.activity()
        return replace(
            facts,
            state=state,
            refusals=self.refusals(),
            wanted_version=wanted_version,
            next_version=None if loading is None else loading.id.version,
            next_state=None if loading is None else self.slot.state(loading),
            events=activity.events,
            events_per_s=activity.events_per_s,
            lag=activity.lag,
            dead_letters=activity.dead_letters,
            stale=self.stale is not None,
        )
