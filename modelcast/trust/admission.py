"""What counts: an envelope of the registry, a policy and the time → a verdict in words. Pure.

Rules:
- Signatures are checked over the payload's type and bytes as they stand; nothing here looks into the payload.
- The first rule of the policy that matches the model decides; where none matches, nothing is admitted.
- A key counts once, however many signatures it made, and only if it is in the rule, not expired and not revoked.
- A key id is a hint for which key to try. A signature without one is tried with every key of the rule.

    verdict = PolicyAdmission(policy, clock.now_ms).judge("fraud", envelope)
    verdict.admitted, verdict.reason, verdict.message
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol

from modelcast.records import Envelope
from modelcast.trust.policy import Rule, TrustedKey, TrustPolicy, names_of

# A record is signed by a few people. Each check takes some 100 µs, which whoever writes to the topic must not multiply.
MAX_SIGNATURES: Final = 32
MAX_CHECKS: Final = 128


class Reason(StrEnum):
    """Why a record is admitted or not: stable words, for statuses and tests."""

    ADMITTED = "admitted"
    NO_RULE = "no-rule"
    UNSIGNED = "unsigned"
    UNKNOWN_KEY = "unknown-key"
    WRONG_SIGNATURE = "wrong-signature"
    REVOKED = "revoked"
    EXPIRED = "expired"
    BELOW_THRESHOLD = "below-threshold"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a policy says of one record.

    Attributes:
        message: Who signed, and what is missing, in words.
        signers: Ids of the keys whose signatures count, in the rule's order.
    """

    admitted: bool
    reason: Reason
    message: str
    signers: tuple[str, ...] = ()


class Admission(Protocol):
    """Decides which records of a registry count."""

    @property
    def repository(self) -> str | None:
        """The only repository that counts; None if any may."""

    def judge(self, model: str, envelope: Envelope) -> Verdict:
        """Whether a record of `model` counts, by its signatures; its payload is not looked into."""

    def vouch(self, model: str, key_ids: Iterable[str]) -> Verdict:
        """Whether signatures of these keys, checked before, are enough for a record of `model` now."""

    def strictly(self) -> Admission:
        """The same with every rule's threshold in force: what consumers go by."""

    def rule_for(self, model: str) -> Rule | None:
        """The rule that decides for a model; None if there is none, or no policy."""

    def now_ms(self) -> int:
        """The time by which keys expire and releases age, in epoch milliseconds; 0 where nothing does."""


class _Everything:
    """No policy: every record counts, and nothing is known of its signers."""

    repository: str | None = None

    def judge(self, model: str, envelope: Envelope) -> Verdict:  # noqa: ARG002 - the protocol's signature
        return _NO_POLICY

    def vouch(self, model: str, key_ids: Iterable[str]) -> Verdict:  # noqa: ARG002 - the protocol's signature
        return _NO_POLICY

    def strictly(self) -> Admission:
        return self

    def rule_for(self, model: str) -> Rule | None:  # noqa: ARG002 - the protocol's signature
        return None

    def now_ms(self) -> int:
        return 0


_NO_POLICY: Final = Verdict(True, Reason.ADMITTED, "no trust policy is set: everything counts")
EVERYTHING: Final[Admission] = _Everything()


class PolicyAdmission:
    """Admits what a policy admits.

    Args:
        policy: The policy.
        now_ms: Epoch milliseconds that never go back (`trust.clock`): by it, keys expire.
        one_is_enough: Whether a single signature of the rule's keys counts, whatever the threshold: whoever writes
            must not give the number of a record away that waits for its second signature.
    """

    def __init__(self, policy: TrustPolicy, now_ms: Callable[[], int], *, one_is_enough: bool = False) -> None:
        self.policy = policy
        self._now_ms = now_ms
        self._one_is_enough = one_is_enough

    @property
    def repository(self) -> str | None:
        """The repository the policy pins, if it pins one."""
        return self.policy.repository

    def judge(self, model: str, envelope: Envelope) -> Verdict:
        """Checks the signatures; see the module's rules."""
        rule = self.policy.rule_for(model)
        if rule is None:
            return self._no_rule(model)
        if not envelope.signatures:
            return Verdict(False, Reason.UNSIGNED, f"it is not signed; {self._needs(rule)}")
        if len(envelope.signatures) > MAX_SIGNATURES:
            count = len(envelope.signatures)
            return Verdict(False, Reason.WRONG_SIGNATURE, f"it has {count} signatures; {MAX_SIGNATURES} are enough")
        keys = {self.policy.keys[name].public.key_id: self.policy.keys[name] for name in rule.keys}
        signed: set[str] = set()
        wrong: list[str] = []
        strangers: list[str] = []
        checks = 0
        for signature in envelope.signatures:
            hinted = signature.key_id
            tries = [hinted] if hinted in keys else [] if hinted else list(keys)
            found = False
            for key_id in tries[: MAX_CHECKS - checks]:
                checks += 1
                public = keys[key_id].public
                if public.verifies(envelope.payload_type, envelope.payload, signature.signature):
                    signed.add(key_id)
                    found = True
                    break
            if not found:
                (wrong if tries else strangers).append(hinted)
        return self._weigh(rule, signed, wrong, strangers)

    def vouch(self, model: str, key_ids: Iterable[str]) -> Verdict:
        """As `judge`, for keys whose signatures were checked before."""
        rule = self.policy.rule_for(model)
        if rule is None:
            return self._no_rule(model)
        keys = {self.policy.keys[name].public.key_id for name in rule.keys}
        given = set(key_ids)
        if not given:
            return Verdict(False, Reason.UNSIGNED, f"nobody signed it; {self._needs(rule)}")
        return self._weigh(rule, given & keys, [], sorted(given - keys))

    def strictly(self) -> PolicyAdmission:
        """The same with every rule's threshold in force."""
        return PolicyAdmission(self.policy, self._now_ms)

    def rule_for(self, model: str) -> Rule | None:
        """The first rule that matches."""
        return self.policy.rule_for(model)

    def now_ms(self) -> int:
        """The latest time ever seen."""
        return self._now_ms()

    def _weigh(self, rule: Rule, signed: set[str], wrong: list[str], strangers: list[str]) -> Verdict:
        now_ms = self._now_ms()
        keys = [self.policy.keys[name] for name in rule.keys if self.policy.keys[name].public.key_id in signed]
        revoked = [key for key in keys if key.revoked is not None]
        expired = [key for key in keys if key.revoked is None and key.expired(now_ms)]
        good = [key for key in keys if key.counts(now_ms)]
        signers = tuple(key.public.key_id for key in good)
        words = "; ".join(self._words(good, revoked, expired, wrong, strangers))
        if len(good) >= (1 if self._one_is_enough else rule.threshold):
            return Verdict(True, Reason.ADMITTED, words, signers)
        reason = (
            Reason.BELOW_THRESHOLD
            if good
            else Reason.REVOKED
            if revoked
            else Reason.EXPIRED
            if expired
            else Reason.WRONG_SIGNATURE
            if wrong
            else Reason.UNKNOWN_KEY
        )
        return Verdict(False, reason, f"{words}; {self._needs(rule, good)}", signers)

    def _words(
        self,
        good: list[TrustedKey],
        revoked: list[TrustedKey],
        expired: list[TrustedKey],
        wrong: list[str],
        strangers: list[str],
    ) -> Iterable[str]:
        if good:
            yield f"signed by {', '.join(key.name for key in good)}"
        for key in revoked:
            yield f"the key of {key.name} was revoked ({key.revoked})"
        for key in expired:
            yield f"the key of {key.name} has expired"
        if wrong:
            yield f"the signature of {', '.join(_named(self.policy, wrong))} is not over this record"
        if strangers:
            yield f"{', '.join(_named(self.policy, strangers))} may not sign for it"

    def _needs(self, rule: Rule, good: Iterable[TrustedKey] = ()) -> str:
        have, now_ms = {key.name for key in good}, self._now_ms()
        usable = (key for key in map(self.policy.keys.__getitem__, rule.keys) if key.counts(now_ms))
        others = ", ".join(key.name for key in usable if key.name not in have)
        wants = f"{rule} of {self.policy.source} wants {rule.threshold - len(have)} more of"
        return f"{wants}: {others}" if others else f"{wants} its keys, and none is left that may sign"

    def _no_rule(self, model: str) -> Verdict:
        return Verdict(False, Reason.NO_RULE, f"no rule of {self.policy.source} is for a model named {model!r}")


def _named(policy: TrustPolicy, key_ids: list[str]) -> tuple[str, ...]:
    return names_of(policy, [key_id or "nobody's key" for key_id in dict.fromkeys(key_ids)])
