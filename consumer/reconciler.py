"""From what happens to what is to be done: the state machine over all models of one instance. No I/O, thread or clock.

What happens is told as values: an image of the registry, the steps and the end of a load, a live version that fails, a
subscription, somebody who asks for a model, how old what is known is. `turn` then takes every step that needs no I/O
(slots are memory, and it is the only one that changes them) and says what is left: at most one load to begin, the
news, and when to turn again though nothing happens. It destroys nothing: what slots let go of waits for `Slot.reap`.

Rules, beside those of `policy` for one model and of `budget` for memory:
- One load at a time. A model that somebody asks for comes first, then those that have nothing live, then the one whose
  last load is longest ago: releases in quick succession of one model hold up no other.
- Where resources are preserved, one model at a time is without a live version, and none before its successor has room.
- A version that fails live is refused, and what a rollback would restore serves if it is still loaded.
- What is stale where it must not be serves nothing until it is fresh again.
- A model that was let go for another one's sake is loaded again when somebody asks for it, and not before.
- A pattern subscribes to models as they are released. Whoever was unsubscribed by name stays out.

    reconciler.observe(image)
    turn = reconciler.turn(Moment(clock(), now_ms()), marks={ModelRef("fraud"): 7})
    if turn.load is not None: ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modelcast.errors import ModelNotFoundError, ModelRefusedError, OutOfMemoryError
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import Refusal
from modelcast.registry.image import ModelEntry, RegistryImage

from .budget import UNLIMITED, Budget, Fits, Holding, LetGo, Place, Short, Wait
from .freshness import Stale
from .lifecycle import State, VersionKey
from .line import AWAITED_S, Line, Swapped
from .loading import Job
from .patterns import appeared, check_pattern, matches
from .policy import (
    FAILED_LIVE,
    Load,
    Nothing,
    Preserve,
    Refuse,
    RefusedVersion,
    Swap,
    Unload,
    basis_of,
    decide,
    reason_of,
    retry_delay_s,
)
from .slot import Slot

if TYPE_CHECKING:
    from .binding import EventFields
    from .servable import Servable

# Steps for one model in one turn: more than any sequence of decisions that needs no load.
_MAX_STEPS = 16
# A kept version above this is let go before the next load, so that no more than two large models are in memory.
KEEP_BESIDE_LOAD_BYTES = 256 << 20
# Where resources are preserved, others wait for a model's last lease: for longer than any prediction takes, and not for
# one that hangs.
LAST_LEASE_S = 10.0
# Models that patterns subscribe to: an instance's status is one record, and holds them all.
MAX_FOLLOWED = 1000


@dataclass(frozen=True, slots=True)
class Moment:
    """A reading of both clocks: monotonic seconds, epoch milliseconds."""

    s: float
    ms: int


@dataclass(frozen=True, slots=True)
class Refused:
    """A version was refused, or a model is stale."""

    ref: ModelRef
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Evicted:
    """A live version was let go because nobody used it and another model needs its memory."""

    ref: ModelRef
    version: ModelVersion


News = Swapped | Refused | Evicted


@dataclass(frozen=True, slots=True)
class Turn:
    """What is to be done.

    Attributes:
        load: To be begun; its steps and its end are awaited.
        news: In order.
        due_s: When to turn again at the latest, by the monotonic clock; None if only something new changes anything.
    """

    load: Job | None
    news: tuple[News, ...]
    due_s: float | None


@dataclass(frozen=True, slots=True)
class _Ended:
    servable: Servable | None
    error: BaseException | None
    took_ms: float


class Reconciler:
    """Keeps the slots of one instance on the versions they should hold; see the module.

    Not thread-safe: whoever shares it guards it by one lock. `lines` is replaced whole, so it can be read by anybody.

    Args:
        preserve: What a swap keeps at all cost.
        keep: Servables kept loaded behind each live one: 1 or 0.
        budget: What all models together may take in memory.
        on_reapable: Called, on whichever thread, when `Slot.reap` may have something to do.
    """

    def __init__(
        self,
        *,
        preserve: Preserve = Preserve.AVAILABILITY,
        keep: int = 1,
        budget: Budget = UNLIMITED,
        on_reapable: Callable[[], None] = lambda: None,
    ) -> None:
        self._preserve = preserve
        self._keep = 0 if preserve is Preserve.RESOURCES else keep
        self._budget = budget
        self._on_reapable = on_reapable
        self.lines: Mapping[ModelRef, Line] = {}
        self._retired: list[Line] = []
        self._patterns: tuple[str, ...] = ()
        self._left: set[ModelRef] = set()
        self._image: RegistryImage | None = None
        self._loading: tuple[Line, Load] | None = None
        self._ended: _Ended | None = None
        self._failures: list[tuple[ModelRef, ModelVersion, str]] = []
        self._news: list[News] = []
        self._turns = 0
        # Models that match a pattern, and are more than may be followed.
        self.passed_over = 0

    # -- what happens

    def subscribe(self, ref: ModelRef) -> Line:
        """The line of `ref`, which is kept up to date from now on."""
        self._left.discard(ref)
        if ref not in self.lines:
            line = Line(ref, keep=self._keep, on_reapable=self._on_reapable)
            self.lines = {**self.lines, ref: line}
        return self.lines[ref]

    def unsubscribe(self, ref: ModelRef, *, for_good: bool = True) -> None:
        """Lets go of a model. Raises ModelNotFoundError if nobody subscribed to it.

        Args:
            for_good: No pattern brings it again.
        """
        line = self.line(ref)
        self.lines = {other: kept for other, kept in self.lines.items() if other != ref}
        if for_good:
            self._left.add(ref)
        self._retired.append(line)
        line.clear()

    def follow(self, pattern: str) -> None:
        """Subscribes to the models that match, now and later. Raises UsageError if that is no pattern."""
        self._patterns = tuple(dict.fromkeys((*self._patterns, check_pattern(pattern))))
        if self._image is not None:
            self._follow((pattern,), self._image, RegistryImage())

    def wanted(self) -> Callable[[str], bool]:
        """Says of which models images must be, for what is subscribed to and followed now. For any thread."""
        names, patterns = {ref.model for ref in self.lines}, self._patterns
        return lambda model: model in names or matches(patterns, model)

    def observe(self, image: RegistryImage) -> None:
        """Takes the registry as it is now."""
        before = self._image
        if image is before:
            return
        self._image = image
        if self._patterns:
            self._follow(self._patterns, image, before or RegistryImage())

    def wake(self, ref: ModelRef) -> None:
        """Somebody asks for a model: if it was let go, it is loaded again."""
        line = self.line(ref)
        line.is_asked = line.slot.live is None

    def set_fields(self, ref: ModelRef, fields: EventFields | None) -> None:
        """Says what the events of a model hold: what was refused is tried once more if that changed."""
        line = self.line(ref)
        if line.fields != fields:
            line.fields = fields
            line.fields_generation += 1

    def stepped(self, state: State) -> None:
        """The load under way came to one of `lifecycle.LOAD_STEPS`."""
        if self._loading is not None and self._ended is None:
            line, action = self._loading
            line.advance_load(action.key, state)

    def loaded(self, servable: Servable, took_ms: float) -> None:
        """The load under way ended well."""
        self._ended = _Ended(servable, None, took_ms)

    def failed(self, error: BaseException) -> None:
        """The load under way ended with an error."""
        self._ended = _Ended(None, error, 0.0)

    def failed_live(self, ref: ModelRef, version: ModelVersion, message: str) -> None:
        """A live version fails on what it is given."""
        self._failures.append((ref, version, message))

    def freed(self, ref: ModelRef) -> None:
        """Memory of a model was let go: others that ran out of it are tried again."""
        freed = self.lines.get(ref)
        if freed is not None and freed.is_between:
            return  # its successor takes it; two that ran out of memory would take turns for ever else
        for line in self.lines.values():
            if line.ref != ref:
                line.forgive(OutOfMemoryError.reason)

    # -- what is to be done

    def turn(
        self,
        at: Moment,
        *,
        marks: Mapping[ModelRef, int | Exception],
        stale: Mapping[ModelRef, Stale] | None = None,
    ) -> Turn:
        """Takes every step that can be taken now.

        Args:
            marks: The highest release sequence ever seen of each model, or what keeps it from being known. A model that
                was subscribed to after they were taken waits for the next turn: an old release must not slip through.
            stale: Models of which what is known is older than it may be.
        """
        self._turns += 1
        self._news = []
        for line in self.lines.values():
            self._look(line, marks.get(line.ref), (stale or {}).get(line.ref), at)
        self._settle(at)
        failures, self._failures = self._failures, []
        for failure in failures:
            self._fall_back(*failure, at)
        wants = [(line, want) for line in self.lines.values() if (want := self._advance(line, at)) is not None]
        self._trim(at)
        self._retired = [line for line in self._retired if line.loading is not None or line.slot.quiescing]
        due_s = self._due_s(at)
        load = self._choose(wants, at)  # last: a load that was begun must reach whoever does it
        return Turn(load, tuple(self._news), due_s)

    def line(self, ref: ModelRef) -> Line:
        """Raises ModelNotFoundError if nobody subscribed to `ref`."""
        line = self.lines.get(ref)
        if line is None:
            raise ModelNotFoundError(
                f"nobody subscribed to {str(ref)!r} here", hint="Name it first: client.model(NAME), or models=[NAME]."
            )
        return line

    def slots(self) -> list[tuple[ModelRef, Slot]]:
        """All that may hold something to reap."""
        return [(line.ref, line.slot) for line in (*self.lines.values(), *self._retired)]

    def _follow(self, patterns: tuple[str, ...], image: RegistryImage, before: RegistryImage) -> None:
        for name in appeared(patterns, image.models, before.models):
            ref = ModelRef(name)
            if ref in self.lines or ref in self._left:
                continue
            if len(self.lines) >= MAX_FOLLOWED:
                self.passed_over += 1
                continue
            self.subscribe(ref)

    def _look(self, line: Line, mark: int | Exception | None, stale: Stale | None, at: Moment) -> None:
        line.look_at_uses(at.s)
        if line.is_asked:
            line.used_at_s = at.s
        line.fault = mark if isinstance(mark, Exception) else None
        if isinstance(mark, int):
            line.mark = mark
        known = line.stale
        if stale is None or known is None or (stale.reason, stale.stop) != (known.reason, known.stop):
            line.stale = stale
            if stale is not None:
                self._news.append(Refused(line.ref, line.staleness(stale)))
        if line.is_stopped and (line.slot.live is not None or line.ready is not None):
            line.clear()

    def _settle(self, at: Moment) -> None:
        """Takes in how the load under way ended."""
        ended, self._ended = self._ended, None
        if ended is None or self._loading is None:
            return
        (line, action), self._loading = self._loading, None
        if ended.servable is not None:
            line.end_load(ended.servable, ended.took_ms)
            if line is not self.lines.get(line.ref) or line.is_stopped:
                line.clear()
            return
        if line is not self.lines.get(line.ref):
            line.loading = None
            return
        error = ended.error
        if isinstance(error, OutOfMemoryError):  # what is kept for a rollback goes first
            for other in self.lines.values():
                other.slot.drop_kept()
        # A check that failed fails again on the same bytes. Anything else (broker, disk, permissions) may be mended
        # without a word in the registry. Where the old version was unloaded first, there will be no more memory either,
        # and to try would take what serves in its place down again.
        alone = self._preserve is Preserve.RESOURCES and isinstance(error, OutOfMemoryError)
        final = isinstance(error, ModelRefusedError) and (not error.retriable or alone)
        known = line.refused.get(action.key)
        attempts = known.attempts + 1 if known is not None and known.basis == action.basis else 1
        retry_at_s = None if final else at.s + retry_delay_s(attempts)
        message = str(error) or type(error).__name__
        refused = RefusedVersion(
            action.key, reason_of(error), message, at.ms, action.basis, attempts=attempts, retry_at_s=retry_at_s
        )
        self._refuse(line, refused)

    def _fall_back(self, ref: ModelRef, version: ModelVersion, message: str, at: Moment) -> None:
        line, image = self.lines.get(ref), self._image
        key = None if line is None else line.slot.live_key
        if line is None or image is None or key is None or key.id != version:
            return  # something else took its place meanwhile
        entry = image.models.get(ref.model) or ModelEntry(ref.model)
        view = line.view(busy=False, now_s=at.s, budget=self._budget)
        self._refuse(line, RefusedVersion(key, FAILED_LIVE, message, at.ms, basis_of(entry, key, view)))
        # Not simply the kept one: after a rollback, that is the version somebody went back from.
        match decide(image, replace(view, live=None), self._preserve):
            case Swap(other) if other != key:
                self._swap(line, image, other, at)
            case _:
                line.clear()  # what a rollback would restore is loaded; until then events wait

    def _advance(self, line: Line, at: Moment) -> Load | None:
        """Takes the steps of one model that need no load; the load it needs then."""
        image = self._image
        line.is_settled = line.is_stopped
        if image is None or line.mark is None or line.fault is not None or line.is_stopped:
            return None
        if line.is_evicted and not line.is_asked:
            return None
        decided = line.decided_on(image)
        if decided is None:
            return self._decide(line, image, at)
        return decided.want if self._loading is None else None

    def _decide(self, line: Line, image: RegistryImage, at: Moment) -> Load | None:
        for _ in range(_MAX_STEPS):
            view = line.view(busy=self._loading is not None, now_s=at.s, budget=self._budget)
            match decide(image, view, self._preserve):
                case Load() as action:
                    line.note_decision(image, action)
                    return action
                case Swap(key):
                    self._swap(line, image, key, at)
                case Unload(successor=successor):
                    if successor is not None:
                        line.note_decision(image, successor)
                        return successor
                    line.discard()
                case Refuse(key, reason, message, basis):
                    self._refuse(line, RefusedVersion(key, reason, message, at.ms, basis))
                case Nothing():
                    if self._loading is None:
                        line.short, line.is_evicted = None, False
                        # One that is due and not tried is of no account any more: withdrawn, or of another repository.
                        retries = any((refused.retry_at_s or 0.0) > at.s for refused in line.refused.values())
                        line.is_settled = not retries and view.live is None and not view.loaded
                        if view.live is not None:
                            line.note_decision(image, None)
                    return None
        return None

    def _choose(self, wants: list[tuple[Line, Load]], at: Moment) -> Job | None:
        """Begins the load that comes first and finds room."""
        wants.sort(
            key=lambda want: (not want[0].is_between, not want[0].is_asked, want[0].slot.live is not None, want[0].turn)
        )
        holdings, reserved = self._holdings(at), list[Holding]()
        for line, action in wants:
            manifest = action.record.manifest
            goes_first = self._preserve is Preserve.RESOURCES and line.slot.live is not None
            if goes_first and self._makes_way(at):
                continue  # one model at a time is without a live version
            wanted = line.is_asked or at.s - line.used_at_s < self._budget.idle_s
            others = [
                held for held in holdings if not (goes_first and (held.ref, held.place) == (line.ref, Place.LIVE))
            ]
            match self._budget.plan(manifest, asker=line.ref, wanted=wanted, holdings=[*others, *reserved]):
                case Fits():
                    if not goes_first:
                        return self._begin(line, action)
                    line.make_way(at.s)
                    return None
                case LetGo(victims):
                    self._let_go(victims)
                    holdings = self._holdings(at)
                    reserved.append(Holding(line.ref, Place.READY, self._budget.need(manifest)))
                case Wait():
                    reserved.append(Holding(line.ref, Place.READY, self._budget.need(manifest)))
                case Short(message):
                    refusal = line.find_no_room(action.key.id, message, at.s, at.ms)
                    if refusal is not None:
                        self._news.append(Refused(line.ref, refusal))
        return None

    def _makes_way(self, at: Moment) -> bool:
        """Whether a live version that was let go for its successor is still in use."""
        return any(
            line.is_between and line.slot.quiescing and at.s - line.made_way_at_s < LAST_LEASE_S
            for line in self.lines.values()
        )

    def _begin(self, line: Line, action: Load) -> Job:
        kept = line.slot.kept_key
        if kept is not None and line.slot.loaded()[kept].manifest.size_bytes > KEEP_BESIDE_LOAD_BYTES:
            line.slot.drop_kept()
        line.begin_load(action.key)
        line.turn = self._turns
        self._loading = line, action
        return Job(line.ref, action, line.fields)

    def _let_go(self, victims: tuple[Holding, ...]) -> None:
        for victim in victims:
            line = self.lines[victim.ref]
            live = line.slot.live
            if victim.place is Place.KEPT:
                line.slot.drop_kept()
            elif live is not None:
                self._news.append(Evicted(line.ref, live.id))
                line.is_evicted = True  # first, so that whoever finds nothing live knows to ask
                line.clear()

    def _trim(self, at: Moment) -> None:
        if self._budget.limit_bytes is not None:
            self._let_go(self._budget.overflow(self._holdings(at)))

    def _holdings(self, at: Moment) -> list[Holding]:
        if self._budget.limit_bytes is None:
            return []
        return [holding for line in (*self.lines.values(), *self._retired) for holding in line.holdings(at.s)]

    def _swap(self, line: Line, image: RegistryImage, key: VersionKey, at: Moment) -> None:
        entry = image.models.get(line.ref.model)
        champion = entry.champion if entry is not None and line.ref.version is None else None
        release = champion if champion is not None and champion.version == key.id.version else None
        event = line.swap(key, release, at.ms)
        if event.old is None:
            line.used_at_s = at.s
        self._news.append(event)

    def _refuse(self, line: Line, refused: RefusedVersion) -> None:
        if line.refuse(refused):
            refusal = Refusal(refused.key.id.version, refused.reason, refused.message, refused.at_ms)
            self._news.append(Refused(line.ref, refusal))

    def _due_s(self, at: Moment) -> float | None:
        """When the next retry is due; one that is due already waits for something else."""
        dues = [refused.retry_at_s or 0.0 for line in self.lines.values() for refused in line.refused.values()]
        dues += [line.used_at_s + AWAITED_S for line in self.lines.values() if line.is_awaited]
        return min((due_s for due_s in dues if due_s > at.s), default=None)
