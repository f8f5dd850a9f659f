"""The registry as an immutable image: what it says of models, and what it answers. Pure: no I/O, no clock.

An image is published only whole and never changed; `delta.py` says what counts, and makes the next one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from modelcast import codec, digest
from modelcast.errors import ModelNotFoundError, VersionNotFoundError
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import ChunkHint, Manifest, Release, RepositoryIdentity, Withdrawn
from modelcast.topics import RegistryKey
from modelcast.trust.admission import Verdict

UNTRUSTED_HINT = "See who signed it, and what its policy says, with: modelcast show NAME --trust-policy FILE"


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


@dataclass(frozen=True)
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

    @cached_property
    def last_dated(self) -> Release | None:
        """The release of the latest date, whatever its sequence; found once: its age is asked for all the time."""
        return max(self.releases, key=lambda release: release.created_ms, default=None)

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
        others: Names of models that were not wanted, and whose records were passed over.
    """

    repository: RepositoryIdentity | None = None
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    revision: int = 0
    faults: tuple[RecordFault, ...] = ()
    untrusted_releases: Mapping[str, Untrusted] = field(default_factory=dict)
    untrusted_versions: Mapping[ModelVersion, Untrusted] = field(default_factory=dict)
    passed: Mapping[tuple[str, str], int] = field(default_factory=dict)
    others: frozenset[str] = frozenset()

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
            known = ", ".join(sorted(self.others.union(self.models))[:10]) or "none yet"
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


def identity_of(manifest: Manifest) -> str:
    """What tells a version from another under the same number: files, signature and all else its manifest says."""
    return digest.of_bytes(repr(manifest).encode())
