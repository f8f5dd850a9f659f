"""Signing envelopes, and the keys and policy that a command or a program names.

Order of precedence: what the caller says, then the environment.

    MODELCAST_SIGNING_KEY      keys to sign with, by name or path, separated by commas
    MODELCAST_TRUST_POLICY     the trust policy
    MODELCAST_KEY_PASSPHRASE   the passphrase of the keys, where nobody can be asked
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from modelcast import folders
from modelcast.records import Envelope
from modelcast.trust import keys
from modelcast.trust.admission import EVERYTHING, Admission, PolicyAdmission
from modelcast.trust.clock import SteadyClock
from modelcast.trust.policy import policy_path, read_policy

ENV_SIGNING_KEY: Final = "MODELCAST_SIGNING_KEY"


def signed(envelope: Envelope, signers: Iterable[keys.Signer]) -> Envelope:
    """The envelope with one signature of each signer more; those of other keys stay."""
    made = [signer.sign(envelope.payload_type, envelope.payload) for signer in signers]
    again = {signature.key_id for signature in made}
    others = (signature for signature in envelope.signatures if signature.key_id not in again)
    return replace(envelope, signatures=(*others, *made))


def key_folder() -> Path:
    """Where this user's keys are kept."""
    return folders.config_folder() / "keys"


def load_signers(
    named: Sequence[str | Path] | None, *, ask: Callable[[str], str] | None = None
) -> tuple[keys.SigningKey, ...]:
    """The keys named, else those of `MODELCAST_SIGNING_KEY`, each once.

    Raises:
        UsageError, ConfigError, MissingExtraError: As `keys.load`.
    """
    if not named:
        named = [part.strip() for part in os.environ.get(ENV_SIGNING_KEY, "").split(",") if part.strip()]
    loaded = (keys.load(name, key_folder(), ask=ask) for name in named)
    return tuple({key.key_id: key for key in loaded}.values())


def writing_admission(policy: Path | str | None) -> Admission:
    """What a publisher goes on from: what has at least one signature that counts. Raises ConfigError."""
    return _admission(policy, one_is_enough=True)


def reading_admission(policy: Path | str | None) -> Admission:
    """What a reader believes: what the policy given admits, or `MODELCAST_TRUST_POLICY`'s. Raises ConfigError."""
    return _admission(policy, one_is_enough=False)


def _admission(given: Path | str | None, *, one_is_enough: bool) -> Admission:
    path = policy_path(given)
    if path is None:
        return EVERYTHING
    clock = SteadyClock(folders.state_folder())
    return PolicyAdmission(read_policy(path), clock.now_ms, one_is_enough=one_is_enough)
