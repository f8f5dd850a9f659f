"""A signature more on a record that stands: how a second person approves, and how a new key takes over from an old one.

- The bytes that stand are kept as they are, with every signature made over them: each is over these bytes.
- Under a trust policy, what stands is what at least one trusted key signed; anything else at that key is passed by.
- Doing it again changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelcast.errors import UsageError, VersionNotFoundError
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import Manifest, Release, Withdrawn
from modelcast.registry.envelopes import envelopes_at, united
from modelcast.registry.image import UNTRUSTED_HINT, VersionRecord
from modelcast.trust.admission import Verdict

from .change import Record
from .hold import Holder, ModelHold, check_admitted


@dataclass(frozen=True, slots=True)
class Endorsed:
    """A record with the signatures it has now, and what the trust policy says of it.

    Attributes:
        repeated: It had these signatures before; nothing was written.
        verdict: Of the policy with its threshold in force.
    """

    payload: Manifest | Withdrawn | Release
    key_ids: tuple[str, ...]
    repeated: bool
    verdict: Verdict


def endorse(holder: Holder, model: str, version: int | None, *, withdrawal: bool = False) -> Endorsed:
    """Signs what stands for a version, or the release in force, with the holder's keys.

    Args:
        version: The version; None signs the release in force.
        withdrawal: Sign the record that withdraws the version: it is never signed in its place unasked.

    Raises:
        UsageError: There is no key to sign with, or none that the policy trusts with this model; or the version was
            withdrawn, or was not, the other way round than `withdrawal` says.
        ModelNotFoundError, VersionNotFoundError: There is no such version, or no release.
        FencedError, BrokerError: As for a release.
    """
    if not holder.signers:
        raise UsageError("no key is named to sign with", hint="Name one: --sign KEY, or MODELCAST_SIGNING_KEY")

    check_admitted(model, holder.admission.vouch(model, [signer.key_id for signer in holder.signers]))

    def attempt(hold: ModelHold) -> Endorsed:
        payload, signers = _release(hold) if version is None else _version(hold, version, withdrawal=withdrawal)
        key = Record(payload).key
        sealed = united(envelopes_at(holder.log, holder.topics, key), payload, signers)
        if sealed is None:  # compacted away since it was read: another record took its place
            raise VersionNotFoundError(f"what stood at {key.encode().decode()} is gone", hint="Try again.")
        record = Record(payload, sealed=sealed)
        envelope = record.envelope(holder.signers)
        # By their bytes: a signature that only bears a key's id proves nothing.
        repeated = set(envelope.signatures) <= set(sealed.signatures)
        if not repeated:
            hold.commit([record])
        key_ids = tuple(dict.fromkeys(signature.key_id for signature in envelope.signatures))
        return Endorsed(payload, key_ids, repeated, holder.admission.strictly().judge(model, envelope))

    return holder.holding(model, attempt)


def _release(hold: ModelHold) -> tuple[Release, tuple[str, ...]]:
    entry = hold.image.model(hold.model)
    if entry.champion is None:
        refused = hold.image.untrusted_releases.get(hold.model)
        if refused is not None:
            raise VersionNotFoundError(str(refused), hint=UNTRUSTED_HINT)
        raise VersionNotFoundError(
            f"no version of {hold.model!r} was released", hint=f"Sign a version: modelcast sign {hold.model}@NUMBER"
        )
    standing = entry.standings.get(entry.champion.sequence)
    return entry.champion, standing.signers if standing is not None else ()


def _version(hold: ModelHold, number: int, *, withdrawal: bool) -> tuple[Manifest | Withdrawn, tuple[str, ...]]:
    stands = hold.image.model(hold.model).versions.get(number)
    name = ModelVersion(hold.model, number)
    if isinstance(stands, Withdrawn):
        if not withdrawal:
            raise UsageError(
                f"{name} was withdrawn by {stands.created_by}: {stands.message or 'no reason given'}",
                hint="To sign its withdrawal, add --withdrawal",
            )
        return stands, ()
    record: VersionRecord = hold.image.resolve(ModelRef(hold.model, number))
    if withdrawal:
        raise UsageError(f"{name} was not withdrawn", hint=f"Sign the version: modelcast sign {name}")
    return record.manifest, record.signers
