"""The delta that makes the next image of the registry from records. Pure: no I/O, no clock.

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
- Whoever wants some models only has the records of others passed over unread: all that is known of these is the name.
- What can't be used is kept as a `RecordFault`, so that it is seen; it never stops the replay.

    delta = RegistryDelta(image)
    for record in records:
        delta.replay(record)
    image = delta.apply()
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from modelcast import codec
from modelcast.errors import NewerFormatError, UsageError, WireError
from modelcast.log import LogRecord
from modelcast.names import ModelVersion, check_model_name
from modelcast.records import ChunkHint, Manifest, Release, RepositoryIdentity, Withdrawn
from modelcast.registry.image import ModelEntry, RecordFault, RegistryImage, Standing, Untrusted, VersionRecord
from modelcast.topics import REPOSITORY_KEY, RegistryKey
from modelcast.trust.admission import EVERYTHING, Admission, Verdict

K = TypeVar("K")
V = TypeVar("V")

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


class RegistryDelta:
    """Records on top of an image. Replay in offset order, then `apply` once.

    Args:
        admission: Says which records count; must be the one the base was made with.
        wanted: Says of which models; of all if it is None. As with the base.
    """

    def __init__(
        self,
        base: RegistryImage,
        admission: Admission = EVERYTHING,
        *,
        wanted: Callable[[str], bool] | None = None,
    ) -> None:
        self._base = base
        self._admission = admission
        self._wanted = wanted
        self._others: set[str] = set()
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
            self._base.others | self._others if self._others else self._base.others,
        )

    def _replay(self, raw_key: bytes, value: bytes, offset: int) -> None:
        key = RegistryKey.decode(raw_key)
        if key is not None and self._wanted is not None and not self._wanted(key.model):
            self._pass_over(key.model)
            return
        envelope = codec.decode_envelope(value)
        if raw_key == REPOSITORY_KEY:
            self._add_repository(codec.unseal(envelope))
            return
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

    def _pass_over(self, model: str) -> None:
        if model not in self._others and model not in self._base.others:
            self._others.add(check_model_name(model))

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


def _claim(record: Untrusted) -> tuple[bool, int]:
    return bool(record.verdict.signers), record.key.number


def _united(known: tuple[str, ...], more: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*known, *more)))


def _forget_early(records: dict[K, V], most: int) -> None:
    if len(records) > most:
        del records[next(iter(records))]
