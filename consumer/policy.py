"""Which version should be live, and the next step towards it. Pure: no I/O, no clock, no state.

Rules, first to last:
- A model follows its champion: the release of the highest sequence. A pinned reference follows nothing.
- A release that the trust policy does not admit counts for nothing, and is said to be refused.
- A champion whose sequence is below the mark (the highest ever seen) was replayed: refused, and nothing older either.
- A champion that names a withdrawn, unknown or untrusted version is refused; so is one that never fits into memory.
- What was refused is tried again only when what the refusal rests on (`Basis`) changed, or its retry is due.
- A refused champion leaves the live version alone. If nothing is live (a start, or memory was freed first), the release
  that a rollback would restore serves until the champion can.
- A version still loaded goes live by a swap; nothing is loaded twice.
- One load at a time. When it ends, the newest release counts: a burst costs one more load, not one each. A version that
  was overtaken meanwhile still goes live if that is a step forward, or releases faster than loads would never serve.
- Nothing is unloaded because the registry says less than it did: only something better takes its place.

    match decide(image, view):
        case Load(record=record): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from modelcast.errors import (
    BrokerError,
    CacheError,
    ModelcastError,
    ModelRefusedError,
    StoreError,
    UsageError,
)
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import Release, Withdrawn
from modelcast.registry.image import ModelEntry, RegistryImage, VersionRecord

from .budget import UNLIMITED, Budget
from .lifecycle import VersionKey

# Reasons of refusals decided here; all others are those of `reason_of`.
REPLAYED = "replayed"
UNKNOWN_VERSION = "unknown-version"
WITHDRAWN = "withdrawn"
UNTRUSTED = "untrusted"
# A version that needs more than the whole memory budget, or more than what is left of it.
MEMORY = "memory"
# These are decided anew each time: a version refused for one of them is free once it no longer holds.
_DECIDED_HERE = frozenset({REPLAYED, UNKNOWN_VERSION, WITHDRAWN, UNTRUSTED, MEMORY})
# A version that was live, and then failed on whatever it was given.
FAILED_LIVE = "failed-live"

# Stands in a refusal for the version of a release that is not there.
NO_VERSION = 0

# A broker restarts in seconds, and a disk is emptied in minutes; asking every half minute costs nothing.
FIRST_RETRY_S = 0.5
MAX_RETRY_S = 30.0
# A champion that may load at the next try is waited for this often before an older version serves instead.
PATIENT_ATTEMPTS = 3


class Preserve(StrEnum):
    """What a swap keeps at all cost."""

    AVAILABILITY = "availability"  # the new version is loaded beside the old one
    RESOURCES = "resources"  # the old version is unloaded first; events wait meanwhile

    @classmethod
    def of(cls, word: str) -> Preserve:
        """Raises UsageError if that is neither."""
        if word not in list(cls):
            raise UsageError(f"a swap can't preserve {word!r}", hint="Use availability or resources.")
        return cls(word)


@dataclass(frozen=True, slots=True)
class Basis:
    """What a decision on a version rests on.

    Attributes:
        sequence: Of the release that names the version; 0 for a pinned one.
        offset: Where its version record stands; None if there is none.
        fields: Generation of what is known about the events' fields.
    """

    sequence: int
    offset: int | None
    fields: int


@dataclass(frozen=True, slots=True)
class RefusedVersion:
    """A version that was refused, on what basis, and when it is worth another try (None: when the basis changes)."""

    key: VersionKey
    reason: str
    message: str
    at_ms: int
    basis: Basis
    attempts: int = 1
    retry_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class View:
    """What one slot holds and what is known about its versions.

    Attributes:
        loaded: Could be live by a swap: kept, or quiescing.
        ready: Loaded by the last load and not live yet.
        busy: Whether the loader is at work, for this slot or another.
        mark: The highest release sequence ever seen of the model in this repository.
        fields: Generation of what is known about the events' fields.
        now_s: The monotonic clock.
        budget: What the instance may hold in memory.
    """

    ref: ModelRef
    live: VersionKey | None = None
    loaded: frozenset[VersionKey] = frozenset()
    ready: VersionKey | None = None
    busy: bool = False
    refused: Mapping[VersionKey, RefusedVersion] = field(default_factory=dict)
    mark: int = 0
    fields: int = 0
    now_s: float = 0.0
    budget: Budget = UNLIMITED


@dataclass(frozen=True, slots=True)
class Load:
    """Fetch, check and load this version."""

    key: VersionKey
    record: VersionRecord
    basis: Basis


@dataclass(frozen=True, slots=True)
class Swap:
    """Make this version live: it is ready, or still loaded."""

    key: VersionKey


@dataclass(frozen=True, slots=True)
class Unload:
    """Let go of this version: overtaken, or live and in the way of its `successor`."""

    key: VersionKey
    successor: Load | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Note that this version will not be live, and why."""

    key: VersionKey
    reason: str
    message: str
    basis: Basis


@dataclass(frozen=True, slots=True)
class Nothing:
    """All is as it should be, or something is under way."""


Action = Load | Swap | Unload | Refuse | Nothing


def retry_delay_s(attempts: int) -> float:
    """How long to wait after so many failed attempts: doubling, bounded."""
    return min(FIRST_RETRY_S * 2.0 ** min(attempts - 1, 16), MAX_RETRY_S)


def reason_of(error: BaseException | None) -> str:
    """A stable word for why a version is not live: the check that refused it, or what kept it from being checked."""
    match error:
        case ModelRefusedError():
            return error.reason
        case BrokerError():
            return "broker"
        case StoreError():
            return "store"
        case CacheError() | OSError():
            return "disk"
        case ModelcastError():
            return "setup"
        case _:
            return "internal"


def decide(image: RegistryImage, view: View, preserve: Preserve = Preserve.AVAILABILITY) -> Action:
    """The next step for one slot. Deciding again after each step leads to `Nothing`."""
    if image.repository is None:
        return Nothing()
    entry = image.models.get(view.ref.model) or ModelEntry(view.ref.model)
    for candidate in _candidates(image, image.repository.uuid, entry, view):
        match candidate:
            case Load():
                return _towards(candidate, entry, view, preserve)
            case Refuse():
                return candidate
    return Unload(view.ready) if view.ready is not None else Nothing()


def basis_of(entry: ModelEntry, key: VersionKey, view: View) -> Basis:
    """What the choice of a version that is live rests on: refused on this basis, it is not chosen again."""
    release = next((found for found in _releases(entry, view) if found and found.version == key.id.version), None)
    record = entry.versions.get(key.id.version)
    return Basis(
        release.sequence if release is not None else 0,
        record.offset if isinstance(record, VersionRecord) else None,
        view.fields,
    )


def _candidates(image: RegistryImage, repository: str, entry: ModelEntry, view: View) -> Iterator[Load | Refuse]:
    """What may serve, best first; a refusal that is not on record yet comes before what it leads to."""
    if view.ref.version is None:
        refuse = _no_release(image, repository, entry, view)
        if refuse is not None and not _on_record(refuse, view):
            yield refuse
        if entry.champion is None:
            return
    for release in _releases(entry, view):
        version = view.ref.version if release is None else release.version
        if version is None or not entry.versions:
            continue  # a model nobody published yet is waited for
        record = entry.versions.get(version)
        content = record.identity if isinstance(record, VersionRecord) else ""
        key = VersionKey(repository, ModelVersion(entry.name, version), content)
        basis = Basis(
            release.sequence if release is not None else 0,
            record.offset if isinstance(record, VersionRecord) else None,
            view.fields,
        )
        fault = _fault(image, entry, key, record, release, view)
        known = view.refused.get(key)
        if fault is not None:
            refuse = Refuse(key, *fault, basis)
            if not _on_record(refuse, view):
                yield refuse
            if fault[0] == REPLAYED:
                return
        elif isinstance(record, VersionRecord) and not _blocked(known, basis, view.now_s):
            yield Load(key, record, basis)
        if view.live is not None or (known is not None and _soon(known)):
            return


def _releases(entry: ModelEntry, view: View) -> Iterator[Release | None]:
    """The champion, then what a row of rollbacks would restore, each version once; None for a pinned one."""
    if view.ref.version is not None:
        yield None
        return
    seen: set[int] = set()
    current = entry.champion
    while current is not None:
        if current.version not in seen:
            yield current
        seen.add(current.version)
        origin = current.origin
        current = next((release for release in reversed(entry.releases) if release.sequence < origin), None)


def _no_release(image: RegistryImage, repository: str, entry: ModelEntry, view: View) -> Refuse | None:
    """Why a release that was there, or claims to be, is none."""
    nothing = VersionKey(repository, ModelVersion(entry.name, NO_VERSION))
    untrusted = image.untrusted_release(entry)
    if untrusted is not None:
        basis = Basis(untrusted.key.number, untrusted.offset, view.fields)
        return Refuse(nothing, UNTRUSTED, str(untrusted), basis)
    if entry.champion is None and view.mark > 0:
        return Refuse(nothing, REPLAYED, _lost(entry, 0, view.mark), Basis(0, None, view.fields))
    return None


def _on_record(refuse: Refuse, view: View) -> bool:
    known = view.refused.get(refuse.key)
    return known is not None and (known.reason, known.basis) == (refuse.reason, refuse.basis)


def _fault(
    image: RegistryImage,
    entry: ModelEntry,
    key: VersionKey,
    record: VersionRecord | Withdrawn | None,
    release: Release | None,
    view: View,
) -> tuple[str, str] | None:
    if release is not None and release is entry.champion and release.sequence < view.mark:
        return REPLAYED, _lost(entry, release.sequence, view.mark)
    if isinstance(record, Withdrawn):
        return WITHDRAWN, f"{key} was withdrawn: {record.message or 'no reason given'}"
    untrusted = image.untrusted_versions.get(key.id)
    if record is None and untrusted is not None:
        return UNTRUSTED, str(untrusted)
    if record is None:
        return UNKNOWN_VERSION, f"the registry holds no usable record of {key}"
    too_large = view.budget.too_large(record.manifest)
    return (MEMORY, too_large) if too_large is not None else None


def _lost(entry: ModelEntry, sequence: int, mark: int) -> str:
    newest = (
        f"the newest release of {entry.name!r} has sequence {sequence}"
        if sequence
        else (f"there is no release of {entry.name!r} any more")
    )
    return f"{newest}, but {mark} was seen before: the registry lost records, or an old one is replayed"


def _blocked(known: RefusedVersion | None, basis: Basis, now_s: float) -> bool:
    if known is None or known.basis != basis or known.reason in _DECIDED_HERE:
        return False
    return known.retry_at_s is None or now_s < known.retry_at_s


def _soon(known: RefusedVersion) -> bool:
    return known.retry_at_s is not None and known.attempts < PATIENT_ATTEMPTS


def _towards(target: Load, entry: ModelEntry, view: View, preserve: Preserve) -> Action:
    if view.ready is not None and view.ready != target.key:
        return Swap(view.ready) if _is_progress(view.ready, target.key, entry, view) else Unload(view.ready)
    if target.key == view.live:
        return Nothing()
    if target.key == view.ready or target.key in view.loaded:
        return Swap(target.key)
    if view.busy:
        return Nothing()
    if preserve is Preserve.RESOURCES and (view.live is not None or view.loaded):
        return Unload(view.live, target) if view.live is not None else Nothing()  # until the last lease on it ends
    return target


def _is_progress(ready: VersionKey, target: VersionKey, entry: ModelEntry, view: View) -> bool:
    """Whether an overtaken version lies between the live one and the wanted one, all of one repository."""
    record = entry.versions.get(ready.id.version)
    if ready.repository != target.repository or not isinstance(record, VersionRecord):
        return False
    if record.identity != ready.content:
        return False
    behind = view.live is None or (view.live.repository == ready.repository and view.live.id.version < ready.id.version)
    return behind and ready.id.version < target.id.version
