"""The registry as an immutable image, and the delta that makes the next one. Pure: no I/O, no clock.

Rules:
- Records are replayed in offset order; an image is published only whole (`RegistryDelta.apply`), never changed.
- The first `repository` record names the repository. Payloads of another repository, or whose model and number are not
  those of their key, count for nothing.
- The first record of a version or release number counts. Later ones change nothing, but a *withdrawn* record, which
  takes the place of the version for ever.
- A tombstone changes nothing: only a withdrawn record deletes.
- What can't be used is kept as a `RecordFault`, so that it is seen; it never stops the replay.

    delta = RegistryDelta(image)
    for record in records:
        delta.replay(record)
    image = delta.apply()
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelcast import codec
from modelcast.errors import ModelNotFoundError, UsageError, VersionNotFoundError, WireError
from modelcast.log import LogRecord
from modelcast.names import ModelRef, check_model_name
from modelcast.records import ChunkHint, Manifest, Release, RepositoryIdentity, Withdrawn
from modelcast.topics import REPOSITORY_KEY, RegistryKey

# Faults are for people to read: the latest are enough, and a hostile topic must not fill the memory.
MAX_FAULTS = 100


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """A published version: its manifest, where its chunks were, and the offset it stands at."""

    manifest: Manifest
    hints: tuple[ChunkHint, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """Everything the registry says of one model."""

    name: str
    versions: Mapping[int, VersionRecord | Withdrawn] = field(default_factory=dict)
    releases: tuple[Release, ...] = ()

    @property
    def champion(self) -> Release | None:
        """The release in force: the one with the highest sequence."""
        return self.releases[-1] if self.releases else None

    @property
    def latest_version(self) -> int:
        """The highest number ever given, withdrawn or not; 0 if none."""
        return max(self.versions, default=0)

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
    """A registry record that counts for nothing, and why."""

    offset: int
    key: str
    message: str


@dataclass(frozen=True, slots=True)
class RegistryImage:
    """The registry up to `revision` (the next offset to be read)."""

    repository: RepositoryIdentity | None = None
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    revision: int = 0
    faults: tuple[RecordFault, ...] = ()

    def model(self, name: str) -> ModelEntry:
        """Raises ModelNotFoundError."""
        entry = self.models.get(name)
        if entry is None:
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
            return entry.version(ref.version)
        if entry.champion is None:
            raise VersionNotFoundError(
                f"no version of {ref.model!r} was released",
                hint=f"Release one with: modelcast release {ref.model} {entry.latest_version or 1}",
            )
        return entry.version(entry.champion.version)


class RegistryDelta:
    """Records on top of an image. Replay in offset order, then `apply` once."""

    def __init__(self, base: RegistryImage) -> None:
        self._base = base
        self._repository = base.repository
        self._revision = base.revision
        self._versions: dict[str, dict[int, VersionRecord | Withdrawn]] = {}
        self._releases: dict[str, dict[int, Release]] = {}
        self._faults = list(base.faults)

    def replay(self, record: LogRecord) -> None:
        """Takes one record; what is wrong with it becomes a fault, never an exception."""
        self._revision = max(self._revision, record.offset + 1)
        if record.value is None or record.key is None:
            return
        try:
            self._replay(record.key, record.value, record.offset)
        except (WireError, UsageError) as error:
            self._faults.append(RecordFault(record.offset, record.key.decode("utf-8", "replace"), str(error)))

    def apply(self) -> RegistryImage:
        """The next image. Models no record touched are shared with the base."""
        models = dict(self._base.models)
        for name in self._versions.keys() | self._releases.keys():
            base = models.get(name) or ModelEntry(name)
            releases = {release.sequence: release for release in base.releases} | self._releases.get(name, {})
            models[name] = ModelEntry(
                name,
                {**base.versions, **self._versions.get(name, {})},
                tuple(releases[sequence] for sequence in sorted(releases)),
            )
        return RegistryImage(self._repository, models, self._revision, tuple(self._faults[-MAX_FAULTS:]))

    def _replay(self, raw_key: bytes, value: bytes, offset: int) -> None:
        envelope = codec.decode_envelope(value)
        payload = codec.unseal(envelope)
        if raw_key == REPOSITORY_KEY:
            if not isinstance(payload, RepositoryIdentity):
                raise WireError("the repository record holds something else")
            self._repository = self._repository or payload
            return
        key = RegistryKey.decode(raw_key)
        if key is None:
            raise WireError("not a key of the registry")
        check_model_name(key.model)
        match key.kind, payload:
            case "version", Manifest() | Withdrawn():
                self._check_scope(key, payload.repository, payload.model, payload.version)
                self._add_version(key, payload, envelope.hints, offset)
            case "release", Release():
                self._check_scope(key, payload.repository, payload.model, payload.sequence)
                self._add_release(key, payload)
            case _:
                raise WireError(f"a {key.kind} record holds {type(payload).__name__}")

    def _check_scope(self, key: RegistryKey, repository: str, model: str, number: int) -> None:
        if self._repository is None:
            raise WireError("stands before the repository record")
        if (repository, model, number) != (self._repository.uuid, key.model, key.number):
            raise WireError(f"was made for {model}, number {number} of repository {repository}")

    def _add_version(
        self, key: RegistryKey, payload: Manifest | Withdrawn, hints: tuple[ChunkHint, ...], offset: int
    ) -> None:
        base = self._base.models.get(key.model)
        known = self._versions.get(key.model, {}).get(key.number) or (base and base.versions.get(key.number))
        if known is None or (isinstance(payload, Withdrawn) and not isinstance(known, Withdrawn)):
            value = VersionRecord(payload, hints, offset) if isinstance(payload, Manifest) else payload
            self._versions.setdefault(key.model, {})[key.number] = value

    def _add_release(self, key: RegistryKey, release: Release) -> None:
        base = self._base.models.get(key.model)
        known = key.number in self._releases.get(key.model, {}) or (
            base is not None and any(r.sequence == key.number for r in base.releases)
        )
        if not known:
            self._releases.setdefault(key.model, {})[key.number] = release
