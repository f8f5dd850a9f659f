"""Keys, policies and signed records for tests of trust."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace

from securesystemslib.signer import CryptoSigner

from modelcast import codec
from modelcast.log import LogRecord
from modelcast.records import ChunkHint, Envelope, EnvelopeSignature
from modelcast.registry.delta import RegistryDelta
from modelcast.registry.image import RegistryImage
from modelcast.trust.admission import EVERYTHING, Admission, PolicyAdmission
from modelcast.trust.keys import SigningKey
from modelcast.trust.policy import TrustPolicy, parse_policy
from modelcast.trust.signing import signed

from .registry_records import key_of

NOW_MS = 1_800_000_000_000


@functools.cache
def key(name: str) -> SigningKey:
    """The key of that name, the same all session."""
    return SigningKey(name, CryptoSigner.generate_ed25519())


def policy_text(*rules: str, keys: Sequence[str] = ("alice", "bob", "carol"), top: str = "", **more: str) -> str:
    """A policy file: `more` adds lines to a key; a rule is `models: keys: threshold`."""
    tables = [f'[keys.{name}]\npublic = "{key(name).public}"\n{more.get(name, "")}' for name in keys]
    for rule in rules or ("fraud*: alice",):
        models, names, threshold = (*(part.strip() for part in rule.split(":")), "1")[:3]
        tables.append(f"[[rules]]\nmodels = {models.split()!r}\nkeys = {names.split()!r}\nthreshold = {threshold}\n")
    return "\n".join([top, *tables])


def policy(*rules: str, **more: str) -> TrustPolicy:
    return parse_policy(policy_text(*rules, **more))


def admission(*rules: str, now_ms: int = NOW_MS, one_is_enough: bool = False, **more: str) -> PolicyAdmission:
    return PolicyAdmission(policy(*rules, **more), lambda: now_ms, one_is_enough=one_is_enough)


def sealed(payload: codec.Payload, *names: str, hints: tuple[ChunkHint, ...] = ()) -> Envelope:
    """The payload's envelope, signed by the keys of these names."""
    return signed(codec.seal(payload, hints=hints), [key(name) for name in names])


def record(payload: codec.Payload, *names: str, at: bytes | None = None) -> tuple[bytes, Envelope]:
    """A registry record: its key (or another, `at`) and its envelope."""
    return at or key_of(payload), sealed(payload, *names)


def log_of(found: Iterable[tuple[bytes, Envelope]], *, start: int = 0) -> list[LogRecord]:
    return [
        LogRecord("r", 0, offset, 0, raw_key, codec.encode_envelope(envelope))
        for offset, (raw_key, envelope) in enumerate(found, start=start)
    ]


def image(
    *found: tuple[bytes, Envelope], under: Admission = EVERYTHING, base: RegistryImage | None = None
) -> RegistryImage:
    """What these records come to under a policy."""
    before = base or RegistryImage()
    delta = RegistryDelta(before, under)
    for entry in log_of(found, start=before.revision):
        delta.replay(entry)
    return delta.apply()


def forged(envelope: Envelope, signatures: Sequence[EnvelopeSignature]) -> Envelope:
    """The envelope with other signatures."""
    return replace(envelope, signatures=tuple(signatures))
