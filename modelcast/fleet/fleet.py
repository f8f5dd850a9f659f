"""Who runs what: the statuses of a repository's instances as one value, and what is wrong with it. No I/O, no clock.

- The last status of a key is what its instance says. A tombstone takes an instance away; what can't be read is kept by
  name only, because a newer modelcast may have written it.
- An instance that said it ended is *stopped*; one that missed `HEARTBEATS_MISSED` heartbeats is *lost*, however it came
  to that; every other is *running*. When an instance was heard of is told by the reader's clock.
- An instance that does not run is forgotten after a while: each start of a client is an instance of its own.

    >>> Roster().fleet(now_ms=0).instances
    ()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase

from modelcast import codec
from modelcast.errors import ModelRefusedError, WireError
from modelcast.log import LogRecord
from modelcast.names import ModelVersion
from modelcast.records import InstanceStatus, ModelState, ModelStatus, Refusal

# One may be late by a long pause of a process, two by a broker that restarts.
HEARTBEATS_MISSED = 3
# On its way a heartbeat is queued, committed and fetched; and two hosts' clocks differ.
LOST_GRACE_MS = 2_000
# What a status may claim of its heartbeat: an instance that says "once a year" would never be missed.
MAX_HEARTBEAT_MS = 600_000
# Instances that do not run are worth a look for about as long as somebody is still busy with their end.
FORGET_AFTER_MS = 3_600_000
# A registry that can't be followed for a moment is a restarting broker.
STALE_TOLERATED_MS = 60_000
# The control plane's word where staleness keeps a version from being live.
STALE = "stale"


class Presence(StrEnum):
    """Whether an instance is there."""

    RUNNING = "running"
    LOST = "lost"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Instance:
    """One instance as it was last heard of.

    Attributes:
        heard_ms: When that was, by the reader's clock.
    """

    status: InstanceStatus
    heard_ms: int
    presence: Presence

    @property
    def name(self) -> str:
        return self.status.instance

    @property
    def is_running(self) -> bool:
        return self.presence is Presence.RUNNING


@dataclass(frozen=True, slots=True)
class Problem:
    """Something a person should look at.

    Attributes:
        kind: `lost`, `refused`, `waiting`, `stale` or `unreadable`.
        model: None where the whole instance is concerned.
        version: The version that was refused, if one was.
    """

    kind: str
    instance: str
    message: str
    model: str | None = None
    version: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Fleet:
    """The instances at a moment, by name.

    Attributes:
        at_ms: The moment.
        unreadable: Instances whose status this version of modelcast can't read.
    """

    at_ms: int
    instances: tuple[Instance, ...] = ()
    unreadable: tuple[str, ...] = ()

    def select(self, *, models: Sequence[str] = (), instances: Sequence[str] = ()) -> Fleet:
        """Only instances, and only models of them, that match one of these globs; all where there are none."""
        found = []
        for instance in self.instances:
            if instances and not _matches(instance.name, instances):
                continue
            kept = tuple(model for model in instance.status.models if not models or _matches(model.model, models))
            if models and not kept:
                continue
            found.append(replace(instance, status=replace(instance.status, models=kept)))
        unreadable = tuple(name for name in self.unreadable if not instances or _matches(name, instances))
        return Fleet(self.at_ms, tuple(found), () if models else unreadable)

    def count(self, presence: Presence) -> int:
        return sum(instance.presence is presence for instance in self.instances)

    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, instance by instance."""
        unreadable = (
            Problem("unreadable", name, "its status can't be read here: it may run a newer modelcast")
            for name in self.unreadable
        )
        return (*(problem for instance in self.instances for problem in self._problems_of(instance)), *unreadable)

    def _problems_of(self, instance: Instance) -> Iterator[Problem]:
        status = instance.status
        if instance.presence is Presence.LOST:
            silent_s = (self.at_ms - instance.heard_ms) // 1000
            yield Problem("lost", instance.name, f"not heard of for {silent_s} s")
        if not instance.is_running:
            return
        if status.stale_ms is not None and status.stale_ms >= STALE_TOLERATED_MS:
            yield Problem("stale", instance.name, f"could not follow the registry for {status.stale_ms // 1000} s")
        for model in status.models:
            yield from _problems_of_model(instance.name, model)


def _problems_of_model(instance: str, model: ModelStatus) -> Iterator[Problem]:
    refusals = [entry for entry in model.refusals if _matters(entry, model)]
    for refusal in refusals:
        if refusal.reason != STALE:  # told below
            yield Problem("refused", instance, refusal.message, model.model, refusal.version, refusal.reason)
    if model.stale:
        told = [refusal.message for refusal in refusals if refusal.reason == STALE]
        message = told[-1] if told else "what is known of it is older than it may be"
        yield Problem("stale", instance, message, model.model, model.live_version)
    elif model.state is ModelState.WAITING and not refusals:
        yield Problem("waiting", instance, "no version is live, and none is on its way", model.model)


def _matters(refusal: Refusal, model: ModelStatus) -> bool:
    """Whether a refusal is why something is not as it should be now."""
    if refusal.reason == STALE:
        return model.stale
    if refusal.version == model.next_version:
        return False  # it is being tried again
    if model.wanted_version is not None and refusal.version:
        return refusal.version == model.wanted_version != model.live_version
    # Where nobody knows what is wanted, all that was refused before the live version went live is settled.
    return model.since_ms is None or refusal.at_ms >= model.since_ms


class Roster:
    """Statuses as they come in; `fleet` is what they amount to. Not thread-safe."""

    def __init__(self) -> None:
        self._values: dict[str, tuple[bytes | None, int]] = {}
        # Statuses are decoded when somebody looks: most records of a topic are overtaken by a later one.
        self._decoded: dict[str, InstanceStatus | None] = {}

    def replay(self, record: LogRecord, heard_ms: int) -> None:
        """Takes a record of the status topic; `heard_ms` is when its instance said so, by the reader's clock."""
        name = (record.key or b"").decode("utf-8", "replace")
        self._decoded.pop(name, None)
        self._values[name] = record.value, heard_ms

    def put_under(self, earlier: Roster) -> None:
        """Takes what `earlier` knows of instances that this one has not met."""
        self._values = {**earlier._values, **self._values}

    def excuse(self, silent_ms: int) -> None:
        """Counts nobody's silence of the last `silent_ms`: it was the reader who heard nothing."""
        self._values = {name: (value, heard_ms + silent_ms) for name, (value, heard_ms) in self._values.items()}

    def fleet(self, now_ms: int, *, forget_after_ms: int | None = FORGET_AFTER_MS) -> Fleet:
        """The instances now; those that have not run for `forget_after_ms` (None: a status's whole life) left out."""
        instances, unreadable = [], []
        for name, (value, heard_ms) in sorted(self._values.items()):
            if value is None:
                continue  # somebody took it off
            forgotten = forget_after_ms is not None and now_ms - heard_ms > forget_after_ms
            status = self._status(name, value)
            if status is None:
                if not forgotten:
                    unreadable.append(name)
                continue
            presence = presence_of(status, now_ms - heard_ms)
            if presence is Presence.RUNNING or not forgotten:
                instances.append(Instance(status, heard_ms, presence))
        return Fleet(now_ms, tuple(instances), tuple(unreadable))

    def _status(self, name: str, value: bytes) -> InstanceStatus | None:
        if name not in self._decoded:
            try:
                status: InstanceStatus | None = codec.decode_status(value)
            except WireError:
                status = None
            self._decoded[name] = status if status is not None and status.instance == name else None
        return self._decoded[name]


def presence_of(status: InstanceStatus, silent_ms: int) -> Presence:
    """What an instance is that said this, and nothing for `silent_ms` since."""
    # Before there was a word for it, an instance that ended told so by its models.
    if status.ended or (status.models and all(model.state is ModelState.STOPPED for model in status.models)):
        return Presence.STOPPED
    heartbeat_ms = min(max(status.heartbeat_ms, 0), MAX_HEARTBEAT_MS)
    return Presence.LOST if silent_ms > HEARTBEATS_MISSED * heartbeat_ms + LOST_GRACE_MS else Presence.RUNNING


@dataclass(frozen=True, slots=True)
class Rollout:
    """How far a version has come in a fleet.

    Attributes:
        live: Running instances that run it.
        pending: Running instances that follow the model and do not run it yet, with what each does.
        refused: Of these, those that will not: the check that refused it says the same of the same bytes again.
        aside: Running instances that need not: pinned to another version, or idle until somebody asks for the model.
    """

    version: ModelVersion
    live: tuple[str, ...]
    pending: tuple[tuple[str, ModelStatus], ...]
    refused: tuple[Problem, ...]
    aside: tuple[str, ...]

    @property
    def is_done(self) -> bool:
        return bool(self.live) and not self.pending


def rollout(fleet: Fleet, version: ModelVersion) -> Rollout:
    """How far `version` has come among the instances that run now."""
    live, pending, refused, aside = [], [], [], []
    for instance in fleet.instances:
        if not instance.is_running:
            continue
        for model in instance.status.models:
            if model.model != version.name:
                continue
            if model.state is ModelState.LIVE and model.live_version == version.version:
                live.append(instance.name)
            elif model.pinned not in (None, version.version) or model.state is ModelState.IDLE:
                aside.append(instance.name)
            else:
                pending.append((instance.name, model))
                refused += [
                    problem
                    for problem in _problems_of_model(instance.name, model)
                    if problem.version == version.version and problem.reason in FINAL_REASONS
                ]
    return Rollout(version, tuple(live), tuple(pending), tuple(refused), tuple(aside))


def _final_reasons(of: type[ModelRefusedError] = ModelRefusedError) -> Iterator[str]:
    if not of.retriable:
        yield of.reason
    for kind in of.__subclasses__():
        yield from _final_reasons(kind)


# A failure on live events and a withdrawal are the control plane's own words: nothing but another release mends them.
FINAL_REASONS = frozenset(_final_reasons()) | {"failed-live", "withdrawn"}


def _matches(name: str, globs: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in globs)
