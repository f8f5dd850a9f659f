"""The registry as an immutable image, and the delta that makes the next one. Pure: no I/O, no clock.

Rules:
- Records are replayed in offset order; an image is published only whole (`RegistryDelta.apply`), never changed.
- The first `repository` record names the repository. Payloads of another repository, or whose model and number are not
  those of their key, count for nothing.
- The first record of a version or release number counts. Later ones change nothing, but a *withdrawn* record, which
  takes the place of the version for ever.
- A tombstone changes nothing: only a withdrawn record deletes.
- Whether a record counts at all is for the `Admission` to say, by its signatures, before its payload is parsed. One
  that is not admitted counts for nothing and holds no place: its key may be used by one that is. Its number is not
  given again all the same (`next_version`, `next_sequence`), if it may be one that was given.
- The same version or release again adds its signers to those of the first, and brings newer hints.
- What can't be used is kept as a `RecordFault`, so that it is seen; it never stops the replay.

    delta = RegistryDelta(image)
    for record in records:
        delta.replay(record)
    image = delta.apply()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from modelcast import codec, digest
from modelcast.errors import ModelNotFoundError, NewerFormatError, UsageError, VersionNotFoundError, WireError
from modelcast.log import LogRecord
from modelcast.names import ModelRef, ModelVersion, check_model_name
from modelcast.records import ChunkHint, Manifest, Release, RepositoryIdentity, Withdrawn
from modelcast.topics import REPOSITORY_KEY, RegistryKey
from modelcast.trust.admission import EVERYTHING, Admission, Verdict

K = TypeVar("K")
V = TypeVar("V")

UNTRUSTED_HINT = "See who signed it, and what its policy says, with: modelcast show NAME --trust-policy FILE"

# Faults are for people to read: the latest are enough, and a hostile topic must not fill the memory.
MAX_FAULTS = 100
# … and so much of what each says: a key, or a name in it, may have a megabyte.
MAX_FAULT_CHARS = 500
# So are the records that were not admitted: the latest models and versions that have one.
MAX_UNTRUSTED = 1_000
# Numbers that may be given before a policy counts any: a release every hour for eleven years. One that is further ahead
# of all that count was never given: whoever claims it can move the numbers on by so much, and never to their end.
MAX_AHEAD = 100_000
# Models and kinds whose highest such number is known, the latest of them: more than a repository has of them.
MAX_PASSED = 20_000


@dataclass(frozen=True)
class VersionRecord:
    """A published version.

    One that was replayed stays in the bytes it came in until somebody looks at it (`packed`): of a hundred thousand
    versions an application uses a few, and as objects they took five times the memory, and time at every collection.

    Attributes:
        hints: Where its chunks were; unsigned.
        offset: Where the record stands; the newest, if it was written again with more signatures or other hints.
        signers: Ids of the keys by whose signatures it was admitted; empty where no policy asks for any.
    """

    manifest: Manifest
    hints: tuple[ChunkHint, ...]
    offset: int
    signers: tuple[str, ...] = ()

    @classmethod
    def packed(cls, value: bytes, offset: int, signers: tuple[str, ...]) -> VersionRecord:
        """A record of a registry value that was found to hold a manifest."""
        record = cls.__new__(cls)
        for name, content in (("_value", value), ("offset", offset), ("signers", signers)):
            object.__setattr__(record, name, content)
        return record

    if not TYPE_CHECKING:  # it would have every misspelt attribute pass

        def __getattr__(self, name: str) -> object:
            """Unpacks at the first look; any thread may, since all come to the same."""
            value = self.__dict__.get("_value")
            if name not in {"manifest", "hints"} or value is None:
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
            envelope = codec.decode_envelope(value)
            object.__setattr__(self, "manifest", codec.unseal(envelope))
            object.__setattr__(self, "hints", envelope.hints)
            return self.__dict__[name]

    @cached_property
    def identity(self) -> str:
        """See `identity_of`; computed once: whoever follows the registry asks again and again."""
        return identity_of(self.manifest)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a release stands, and by whose signatures it was admitted."""

    offset: int
    signers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Untrusted:
    """A record that the policy does not admit. Its payload was not parsed: only its key says what it claims to be."""

    key: RegistryKey
    offset: int
    verdict: Verdict

    def __str__(self) -> str:
        what = f"{self.key.model}@{self.key.number}"
        if self.key.kind == "release":
            what = f"release {self.key.number} of {self.key.model!r}"
        return f"{what} is not admitted ({self.verdict.reason}): {self.verdict.message}"


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """Everything the registry says of one model.

    Attributes:
        reserved_version: The highest version number that a record of a newer modelcast holds; 0 if there is none.
        reserved_sequence: The same of release sequences.
    """

    name: str
    versions: Mapping[int, VersionRecord | Withdrawn] = field(default_factory=dict)
    releases: tuple[Release, ...] = ()
    standings: Mapping[int, Standing] = field(default_factory=dict)
    reserved_version: int = 0
    reserved_sequence: int = 0

    @property
    def champion(self) -> Release | None:
        """The release in force: the one with the highest sequence."""
        return self.releases[-1] if self.releases else None

    @property
    def latest_version(self) -> int:
        """The highest number ever given, withdrawn or not; 0 if none."""
        return max(self.reserved_version, *self.versions, 0)

    @property
    def latest_sequence(self) -> int:
        """The highest release sequence ever given; 0 if none."""
        return max(self.reserved_sequence, self.champion.sequence if self.champion else 0)

    @property
    def newest_version(self) -> int:
        """The highest number that is not withdrawn; of a model that has none, the highest ever given."""
        usable = (number for number, record in self.versions.items() if isinstance(record, VersionRecord))
        return max(usable, default=self.latest_version)

    def version(self, number: int) -> VersionRecord:
        """Raises VersionNotFoundError if there is no such version or it was withdrawn."""
        record = self.versions.get(number)
        match record:
            case VersionRecord():
                return record
            case Withdrawn():
                raise VersionNotFoundError(
                    f"{self.name}@{number} was withdrawn: {record.message or 'no reason given'}",
                    hint=f"See the others with: modelcast history {self.name}",
                )
            case None:
                raise VersionNotFoundError(
                    f"model {self.name!r} has no version {number}",
                    hint=f"See those it has with: modelcast history {self.name}",
                )

    def rollback_target(self) -> Release | None:
        """The release a rollback repeats: the last before the live one's place in history with another, usable version.

        A rollback remembers what it restored (`Release.restores`), so rolling back again goes further back.
        """
        live = self.champion
        if live is None:
            return None
        for release in reversed(self.releases):
            usable = isinstance(self.versions.get(release.version), VersionRecord)
            if release.sequence < live.origin and release.version != live.version and usable:
                return release
        return None


@dataclass(frozen=True, slots=True)
class RecordFault:
    """A registry record that counts for nothing, and why; `verdict` is the policy's, where it was not admitted."""

    offset: int
    key: str
    message: str
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class RegistryImage:
    """The registry up to `revision` (the next offset to be read).

    Attributes:
        untrusted_releases: By model, the release that was not admitted: of the highest sequence, and before all others
            one that has signatures which count, but not enough.
        untrusted_versions: Versions that were not admitted, and whose place no admitted one took.
        passed: By kind and model, the highest number of a record that was not admitted, no more than `MAX_AHEAD` above
            those that counted when it was read.
    """

    repository: RepositoryIdentity | None = None
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    revision: int = 0
    faults: tuple[RecordFault, ...] = ()
    untrusted_releases: Mapping[str, Untrusted] = field(default_factory=dict)
    untrusted_versions: Mapping[ModelVersion, Untrusted] = field(default_factory=dict)
    passed: Mapping[tuple[str, str], int] = field(default_factory=dict)

    def next_version(self, model: str) -> int:
        """The number to give: above those of all versions, also of such that are not admitted."""
        entry = self.models.get(model) or ModelEntry(model)
        return max(entry.latest_version, self.passed.get(("version", model), 0)) + 1

    def next_sequence(self, model: str) -> int:
        """The same of releases."""
        entry = self.models.get(model) or ModelEntry(model)
        return max(entry.latest_sequence, self.passed.get(("release", model), 0)) + 1

    def model(self, name: str) -> ModelEntry:
        """Raises ModelNotFoundError."""
        entry = self.models.get(name)
        if entry is None:
            refused = self.untrusted_releases.get(name) or next(
                (found for version, found in self.untrusted_versions.items() if version.name == name), None
            )
            if refused is not None:
                raise ModelNotFoundError(f"nothing of model {name!r} counts here: {refused}", hint=UNTRUSTED_HINT)
            known = ", ".join(sorted(self.models)[:10]) or "none yet"
            raise ModelNotFoundError(
                f"no model {name!r} in this repository",
                hint=f"Published so far: {known}. Publish it with: modelcast publish {name} SOURCE --examples FILE",
            )
        return entry

    def resolve(self, ref: ModelRef) -> VersionRecord:
        """The version `ref` names: the pinned one, or the live one.

        Raises:
            ModelNotFoundError: No such model.
            VersionNotFoundError: No such version, or none was released.
        """
        entry = self.model(ref.model)
        if ref.version is not None:
            return self._version(entry, ref.version)
        if entry.champion is None:
            if ref.model in self.untrusted_releases:
                raise VersionNotFoundError(str(self.untrusted_releases[ref.model]), hint=UNTRUSTED_HINT)
            raise VersionNotFoundError(
                f"no version of {ref.model!r} was released",
                hint=f"Release one with: modelcast release {ref.model} {entry.newest_version or 1}",
            )
        return self._version(entry, entry.champion.version)

    def untrusted_release(self, entry: ModelEntry) -> Untrusted | None:
        """The release that would be in force if it were admitted."""
        found = self.untrusted_releases.get(entry.name)
        sequence = entry.champion.sequence if entry.champion is not None else 0
        return found if found is not None and found.key.number > sequence else None

    def untrusted(self, model: str) -> tuple[Untrusted, ...]:
        """What of a model was not admitted: its versions, and the release that would be in force."""
        versions = (found for version, found in self.untrusted_versions.items() if version.name == model)
        releases = (found for name, found in self.untrusted_releases.items() if name == model)
        return *versions, *releases

    def _version(self, entry: ModelEntry, number: int) -> VersionRecord:
        refused = self.untrusted_versions.get(ModelVersion(entry.name, number))
        if refused is not None and number not in entry.versions:
            raise VersionNotFoundError(str(refused), hint=UNTRUSTED_HINT)
        return entry.version(number)


class RegistryDelta:
    """Records on top of an image. Replay in offset order, then `apply` once.

    Args:
        admission: Says which records count; must be the one the base was made with.
    """

    def __init__(self, base: RegistryImage, admission: Admission = EVERYTHING) -> None:
        self._base = base
        self._admission = admission
        self._repository = base.repository
        self._revision = base.revision
        self._versions: dict[str, dict[int, VersionRecord | Withdrawn]] = {}
        self._releases: dict[str, dict[int, Release]] = {}
        self._standings: dict[str, dict[int, Standing]] = {}
        self._champions: dict[str, int] = {}
        self._highest: dict[tuple[str, str], int] = {}
        self._reserved: dict[str, dict[str, int]] = {}
        self._untrusted_releases = dict(base.untrusted_releases)
        self._untrusted_versions = dict(base.untrusted_versions)
        self._passed = dict(base.passed)
        self._faults = list(base.faults)

    def replay(self, record: LogRecord) -> None:
        """Takes one record; what is wrong with it becomes a fault, never an exception."""
        self._revision = max(self._revision, record.offset + 1)
        if record.value is None or record.key is None:
            return
        try:
            self._replay(record.key, record.value, record.offset)
        except (WireError, UsageError) as error:
            self._fault(record.offset, record.key, str(error))

    def apply(self) -> RegistryImage:
        """The next image. Models no record touched are shared with the base."""
        models = dict(self._base.models)
        for name in self._versions.keys() | self._standings.keys() | self._reserved.keys():
            base = models.get(name) or ModelEntry(name)
            releases = {release.sequence: release for release in base.releases} | self._releases.get(name, {})
            models[name] = ModelEntry(
                name,
                {**base.versions, **self._versions.get(name, {})},
                tuple(releases[sequence] for sequence in sorted(releases)),
                {**base.standings, **self._standings.get(name, {})},
                max(base.reserved_version, self._reserved.get(name, {}).get("version", 0)),
                max(base.reserved_sequence, self._reserved.get(name, {}).get("release", 0)),
            )
        return RegistryImage(
            self._repository,
            models,
            self._revision,
            tuple(self._faults[-MAX_FAULTS:]),
            self._untrusted_releases,
            self._untrusted_versions,
            self._passed,
        )

    def _replay(self, raw_key: bytes, value: bytes, offset: int) -> None:
        envelope = codec.decode_envelope(value)
        if raw_key == REPOSITORY_KEY:
            self._add_repository(codec.unseal(envelope))
            return
        key = RegistryKey.decode(raw_key)
        if key is None:
            raise WireError("not a key of the registry")
        check_model_name(key.model)
        verdict = self._admission.judge(key.model, envelope)
        if not verdict.admitted:
            self._set_aside(Untrusted(key, offset, verdict))
            return
        try:
            payload = codec.unseal(envelope)
        except NewerFormatError:
            # Whoever can't read a record must not give its number again: it would take the record's place.
            held = self._reserved.setdefault(key.model, {})
            held[key.kind] = max(key.number, held.get(key.kind, 0))
            self._count(key)
            raise
        match key.kind, payload:
            case "version", Manifest() | Withdrawn():
                self._check_scope(key, payload.repository, payload.model, payload.version)
                self._add_version(key, payload, _Found(value, envelope.hints, offset, verdict.signers))
            case "release", Release():
                self._check_scope(key, payload.repository, payload.model, payload.sequence)
                self._add_release(key, payload, Standing(offset, verdict.signers))
            case _:
                raise WireError(f"a {key.kind} record holds {type(payload).__name__}")

    def _add_repository(self, payload: codec.Payload) -> None:
        if not isinstance(payload, RepositoryIdentity):
            raise WireError("the repository record holds something else")
        pinned = self._admission.repository
        if pinned is not None and payload.uuid != pinned:
            raise WireError(f"names repository {payload.uuid}, and the trust policy pins {pinned}")
        self._repository = self._repository or payload

    def _set_aside(self, record: Untrusted) -> None:
        key = record.key
        self._fault(record.offset, key.encode(), str(record), record.verdict)
        if key.number <= self._counted(key) + MAX_AHEAD:
            before = self._passed.pop((key.kind, key.model), 0)
            self._passed[key.kind, key.model] = max(before, key.number)
            _forget_early(self._passed, MAX_PASSED)
        if key.kind == "version":
            version = ModelVersion(key.model, key.number)
            self._untrusted_versions.pop(version, None)
            self._untrusted_versions[version] = record
            _forget_early(self._untrusted_versions, MAX_UNTRUSTED)
            return
        if key.number <= self._champion(key.model):
            return  # it would not be in force anyway, and must not hide one that would
        known = self._untrusted_releases.pop(key.model, None)
        self._untrusted_releases[key.model] = record if known is None else max(known, record, key=_claim)
        _forget_early(self._untrusted_releases, MAX_UNTRUSTED)

    def _champion(self, model: str) -> int:
        base = self._base.models.get(model)
        before = base.champion.sequence if base is not None and base.champion is not None else 0
        return max(before, self._champions.get(model, 0))

    def _count(self, key: RegistryKey) -> None:
        self._highest[key.kind, key.model] = max(key.number, self._counted(key))

    def _counted(self, key: RegistryKey) -> int:
        """The highest number of the key's kind and model that counts so far."""
        known = self._highest.get((key.kind, key.model))
        if known is not None:
            return known
        base = self._base.models.get(key.model)
        if base is None:
            return 0
        return base.latest_version if key.kind == "version" else base.latest_sequence

    def _fault(self, offset: int, key: bytes, message: str, verdict: Verdict | None = None) -> None:
        told = key[:MAX_FAULT_CHARS].decode("utf-8", "replace")
        self._faults.append(RecordFault(offset, told, message[:MAX_FAULT_CHARS], verdict))
        if len(self._faults) > 2 * MAX_FAULTS:  # a hostile topic is read to its end before an image is made
            del self._faults[:-MAX_FAULTS]

    def _check_scope(self, key: RegistryKey, repository: str, model: str, number: int) -> None:
        if self._repository is None:
            raise WireError("stands before the repository record")
        if (repository, model, number) != (self._repository.uuid, key.model, key.number):
            raise WireError(f"was made for {model}, number {number} of repository {repository}")

    def _add_version(self, key: RegistryKey, payload: Manifest | Withdrawn, record: _Found) -> None:
        versions = self._versions.setdefault(key.model, {})
        base = self._base.models.get(key.model)
        known = versions.get(key.number) or (base and base.versions.get(key.number))
        self._untrusted_versions.pop(ModelVersion(key.model, key.number), None)
        self._count(key)
        match known, payload:
            case None, Manifest():
                versions[key.number] = VersionRecord.packed(record.value, record.offset, record.signers)
            case None | VersionRecord(), Withdrawn():
                versions[key.number] = payload
            case VersionRecord(), Manifest() if known.manifest == payload:
                hints = record.hints or known.hints
                signers = _united(known.signers, record.signers)
                # Where it says nothing new it changes nothing: whoever repeats a record must not cause another try.
                if (hints, signers) != (known.hints, known.signers):
                    versions[key.number] = replace(known, hints=hints, signers=signers, offset=record.offset)

    def _add_release(self, key: RegistryKey, release: Release, standing: Standing) -> None:
        releases = self._releases.setdefault(key.model, {})
        standings = self._standings.setdefault(key.model, {})
        base = self._base.models.get(key.model) or ModelEntry(key.model)
        if key.number not in standings and key.number not in base.standings:
            releases[key.number] = release
            standings[key.number] = standing
            self._champions[key.model] = max(key.number, self._champions.get(key.model, 0))
            self._count(key)
            refused = self._untrusted_releases.get(key.model)
            if refused is not None and refused.key.number <= key.number:
                del self._untrusted_releases[key.model]
            return
        stands = releases.get(key.number) or next(r for r in base.releases if r.sequence == key.number)
        if stands == release:
            known = standings.get(key.number) or base.standings[key.number]
            signers = _united(known.signers, standing.signers)
            if signers != known.signers:
                standings[key.number] = Standing(standing.offset, signers)


@dataclass(frozen=True, slots=True)
class _Found:
    """A record of the registry, and what its envelope says beside the payload."""

    value: bytes
    hints: tuple[ChunkHint, ...]
    offset: int
    signers: tuple[str, ...]


def identity_of(manifest: Manifest) -> str:
    """What tells a version from another under the same number: files, signature and all else its manifest says."""
    return digest.of_bytes(repr(manifest).encode())


def _claim(record: Untrusted) -> tuple[bool, int]:
    return bool(record.verdict.signers), record.key.number


def _united(known: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *more)))


def _forget_early(records: dict[K, V], most: int) -> None:
    if len(records) > most:
        del records[next(iter(records))]
