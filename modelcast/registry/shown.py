"""A version as `show` tells of it: what it is, whether it is live, who signed it and whether that is enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from modelcast.errors import NotFoundError
from modelcast.log import Log
from modelcast.names import ModelRef
from modelcast.records import Envelope, Manifest, Release
from modelcast.registry.envelopes import envelopes_at, united
from modelcast.registry.image import ModelEntry, RegistryImage, Untrusted, VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S, check_topics
from modelcast.topics import RegistryKey, Topics
from modelcast.trust.admission import EVERYTHING, Admission, Verdict


@dataclass(frozen=True, slots=True)
class Trusted:
    """A record's signatures, by key id, and the policy's verdict on them; `verdict` is None without a policy."""

    key_ids: tuple[str, ...]
    verdict: Verdict | None


@dataclass(frozen=True, slots=True)
class Shown:
    """What `show` says of a version.

    Attributes:
        release: The one in force, if it is of this version.
        refused: The release of the model that would be in force if the policy admitted it.
        pending: What would take the version's place if the policy admitted it: its withdrawal, most likely.
    """

    manifest: Manifest
    version: Trusted
    release: tuple[Release, Trusted] | None
    refused: Untrusted | None = None
    pending: Untrusted | None = None

    @property
    def is_live(self) -> bool:
        """Whether it is live wherever the policy, if there is one, is in force."""
        return self.release is not None and all(
            trusted.verdict is None or trusted.verdict.admitted for trusted in (self.version, self.release[1])
        )

    def trust_as_dict(self) -> dict[str, Any]:
        """As JSON data."""
        release = None
        if self.release is not None:
            release = {"sequence": self.release[0].sequence, **_as_dict(self.release[1])}
        refused = None if self.refused is None else {"sequence": self.refused.key.number, **_why(self.refused)}
        pending = None if self.pending is None else _why(self.pending)
        return {
            "trust": _as_dict(self.version),
            "release": release,
            "refused_release": refused,
            "pending_record": pending,
        }

    def trust_in_words(self) -> Iterator[tuple[str, str]]:
        """Lines for people, as label and text."""
        yield "signatures", _in_words(self.version)
        if self.release is not None:
            yield "release", f"{self.release[0].sequence}: {_in_words(self.release[1])}"
        if self.refused is not None and (self.release is None or self.release[0].sequence != self.refused.key.number):
            yield "refused", str(self.refused)
        if self.pending is not None:
            agree = f"modelcast sign {self.manifest.id} --withdrawal --sign KEY"
            yield (
                "pending",
                f"another record of it {_verdict(self.pending)}. If it is its withdrawal, agree with: {agree}",
            )


def look_up(log: Log, topics: Topics, ref: ModelRef, admission: Admission) -> Shown:
    """Finds a version: one that consumers with the policy see; else one with a signature that counts; else any.

    Args:
        admission: For writers: what has one signature that counts.

    Raises:
        NotFoundError: No repository, model or version of that name.
        TopicConfigError, BrokerError: The repository can't be read.
    """
    check_topics(log, topics)
    strict = admission.strictly()
    image = believed = _read(log, topics, strict, ref)
    for wider in (admission, EVERYTHING):
        if wider is not strict and not _resolves(image, ref):
            image = _read(log, topics, wider, ref)
    refused = believed.untrusted_release(believed.models.get(ref.model) or ModelEntry(ref.model))
    entry = image.model(ref.model)
    if ref.version is None and entry.champion is None:
        ref = ModelRef(ref.model, entry.newest_version)
    record = image.resolve(ref)
    manifest, champion = record.manifest, entry.champion
    version = _trusted(log, topics, RegistryKey("version", ref.model, manifest.version), record, strict)
    pending = believed.untrusted_versions.get(manifest.id) if _resolves(believed, _pinned(manifest)) else None
    if champion is None or champion.version != manifest.version:
        return Shown(manifest, version, None, refused, pending)
    key = RegistryKey("release", ref.model, champion.sequence)
    return Shown(manifest, version, (champion, _trusted(log, topics, key, champion, strict)), refused, pending)


def _read(log: Log, topics: Topics, admission: Admission, ref: ModelRef) -> RegistryImage:
    wanted = {ref.model}.__contains__
    with closing(RegistryReader(log, topics, admission=admission, wanted=wanted)) as reader:
        return reader.catch_up(CATCH_UP_TIMEOUT_S)


def _pinned(manifest: Manifest) -> ModelRef:
    return ModelRef(manifest.model, manifest.version)


def _resolves(image: RegistryImage, ref: ModelRef) -> bool:
    try:
        image.resolve(ref)
    except NotFoundError:
        return False
    return True


def _trusted(
    log: Log, topics: Topics, key: RegistryKey, record: VersionRecord | Release, admission: Admission
) -> Trusted:
    payload = record.manifest if isinstance(record, VersionRecord) else record
    signers = record.signers if isinstance(record, VersionRecord) else ()
    envelope = united(envelopes_at(log, topics, key), payload, signers) or Envelope("", b"")
    key_ids = tuple(dict.fromkeys(signature.key_id for signature in envelope.signatures))
    return Trusted(key_ids, None if admission is EVERYTHING else admission.judge(key.model, envelope))


def _why(untrusted: Untrusted) -> dict[str, str]:
    return {"reason": str(untrusted.verdict.reason), "message": untrusted.verdict.message}


def _verdict(untrusted: Untrusted) -> str:
    return f"is not admitted ({untrusted.verdict.reason}): {untrusted.verdict.message}"


def _as_dict(trusted: Trusted) -> dict[str, Any]:
    verdict = trusted.verdict
    return {
        "key_ids": list(trusted.key_ids),
        "admitted": None if verdict is None else verdict.admitted,
        "reason": None if verdict is None else str(verdict.reason),
        "message": None if verdict is None else verdict.message,
    }


def _in_words(trusted: Trusted) -> str:
    if trusted.verdict is None:
        bearers = ", ".join(f"{key_id[:12]}…" for key_id in trusted.key_ids)
        return f"by {bearers}; not verified: name a policy with --trust-policy FILE" if bearers else "none"
    word = "accepted" if trusted.verdict.admitted else f"refused ({trusted.verdict.reason})"
    return f"{word}: {trusted.verdict.message}"
