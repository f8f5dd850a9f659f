"""What `trust/admission.py` promises: who signed decides, in words, and nothing of a payload is looked at before."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import codec
from modelcast.records import Envelope, EnvelopeSignature
from modelcast.trust.admission import EVERYTHING, MAX_SIGNATURES, Reason
from modelcast.trust.policy import parse_policy

from .registry_records import manifest, release
from .trust_rig import NOW_MS, admission, forged, key, policy_text, sealed

V1 = manifest(1)


def test_without_a_policy_everything_counts_and_nothing_is_known_of_signers() -> None:
    verdict = EVERYTHING.judge("fraud", codec.seal(V1))
    assert (verdict.admitted, verdict.signers) == (True, ())


def test_a_record_signed_by_a_key_of_the_rule_is_admitted_and_says_by_whom() -> None:
    verdict = admission("fraud*: alice").judge("fraud", sealed(V1, "alice"))
    assert (verdict.admitted, verdict.reason, verdict.signers) == (True, Reason.ADMITTED, (key("alice").key_id,))
    assert verdict.message == "signed by alice"


class TestF09:
    """Row 9: unsigned, wrong key, revoked key, below threshold, expired."""

    def test_f09_an_unsigned_record_is_refused(self) -> None:
        verdict = admission("fraud*: alice").judge("fraud", codec.seal(V1))
        assert (verdict.admitted, verdict.reason) == (False, Reason.UNSIGNED)
        assert "wants 1 more of: alice" in verdict.message

    def test_f09_a_key_nobody_knows_is_refused(self) -> None:
        verdict = admission("fraud*: alice").judge("fraud", sealed(V1, "mallory"))
        assert (verdict.admitted, verdict.reason) == (False, Reason.UNKNOWN_KEY)

    def test_f09_a_known_key_is_refused_for_models_it_may_not_sign(self) -> None:
        rules = admission("fraud*: alice", "churn: bob")
        assert rules.judge("churn", sealed(manifest(1, model="churn"), "bob")).admitted
        verdict = rules.judge("fraud", sealed(V1, "bob"))
        assert (verdict.admitted, verdict.reason) == (False, Reason.UNKNOWN_KEY)
        assert "bob may not sign for it" in verdict.message

    def test_f09_a_signature_that_is_not_the_keys_is_refused(self) -> None:
        stolen = [EnvelopeSignature(key("alice").key_id, sealed(V1, "mallory").signatures[0].signature)]
        verdict = admission("fraud*: alice").judge("fraud", forged(codec.seal(V1), stolen))
        assert (verdict.admitted, verdict.reason) == (False, Reason.WRONG_SIGNATURE)
        assert "the signature of alice is not over this record" in verdict.message

    @pytest.mark.parametrize("length", [0, 1, 63, 65, 10_000])
    def test_f09_bytes_that_are_no_signature_are_refused(self, length: int) -> None:
        junk = [EnvelopeSignature(key("alice").key_id, b"\x01" * length)]
        verdict = admission("fraud*: alice").judge("fraud", forged(codec.seal(V1), junk))
        assert (verdict.admitted, verdict.reason) == (False, Reason.WRONG_SIGNATURE)

    def test_f09_a_revoked_key_is_refused_also_for_what_it_signed_before(self) -> None:
        revoked = admission("fraud*: alice", alice='revoked = "laptop stolen"')
        verdict = revoked.judge("fraud", sealed(V1, "alice"))
        assert (verdict.admitted, verdict.reason) == (False, Reason.REVOKED)
        assert "laptop stolen" in verdict.message
        assert "none is left that may sign" in verdict.message

    def test_f09_an_expired_key_is_refused_from_the_moment_it_expires(self) -> None:
        until = 'expires = "2027-01-15T08:00:00Z"'  # = NOW_MS
        assert admission("fraud*: alice", alice=until, now_ms=NOW_MS - 1).judge("fraud", sealed(V1, "alice")).admitted
        verdict = admission("fraud*: alice", alice=until).judge("fraud", sealed(V1, "alice"))
        assert (verdict.admitted, verdict.reason) == (False, Reason.EXPIRED)

    def test_f09_too_few_signatures_are_refused_and_it_says_whose_are_missing(self) -> None:
        both = admission("fraud*: alice bob carol: 2")
        verdict = both.judge("fraud", sealed(V1, "alice"))
        assert (verdict.admitted, verdict.reason) == (False, Reason.BELOW_THRESHOLD)
        assert "signed by alice" in verdict.message
        assert "wants 1 more of: bob, carol" in verdict.message
        assert both.judge("fraud", sealed(V1, "alice", "carol")).admitted

    def test_f09_a_key_counts_once_however_many_signatures_it_made(self) -> None:
        mine = sealed(V1, "alice").signatures
        nameless = EnvelopeSignature("", mine[0].signature)
        for signatures in ([*mine, *mine], [*mine, nameless], [nameless, nameless]):
            verdict = admission("fraud*: alice bob: 2").judge("fraud", forged(codec.seal(V1), signatures))
            assert (verdict.admitted, verdict.reason) == (False, Reason.BELOW_THRESHOLD)

    def test_f09_a_revoked_signature_does_not_fill_a_threshold(self) -> None:
        rules = admission("fraud*: alice bob: 2", bob='revoked = "left"')
        verdict = rules.judge("fraud", sealed(V1, "alice", "bob"))
        assert (verdict.reason, verdict.signers) == (Reason.BELOW_THRESHOLD, (key("alice").key_id,))

    def test_f09_a_model_no_rule_is_for_is_refused_whoever_signed(self) -> None:
        verdict = admission("fraud*: alice").judge("churn", sealed(manifest(1, model="churn"), "alice"))
        assert (verdict.admitted, verdict.reason) == (False, Reason.NO_RULE)


def test_f10_a_signature_over_another_payload_type_is_refused() -> None:
    envelope = sealed(V1, "alice")
    retyped = replace(envelope, payload_type=codec.seal(release(1, 1)).payload_type)
    verdict = admission("fraud*: alice").judge("fraud", retyped)
    assert (verdict.admitted, verdict.reason) == (False, Reason.WRONG_SIGNATURE)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_f10_one_byte_changed_anywhere_is_refused(at: int, by: int) -> None:
    envelope = sealed(V1, "alice")
    payload = bytearray(envelope.payload)
    payload[at % len(payload)] ^= by
    assert not admission("fraud*: alice").judge("fraud", replace(envelope, payload=bytes(payload))).admitted


def test_the_first_rule_that_matches_decides() -> None:
    rules = admission("fraud-eu: alice bob: 2", "fraud*: alice")
    assert rules.judge("fraud-us", sealed(manifest(1, model="fraud-us"), "alice")).admitted
    assert not rules.judge("fraud-eu", sealed(manifest(1, model="fraud-eu"), "alice")).admitted


def test_patterns_tell_capitals_apart() -> None:
    assert admission("fraud*: alice").judge("Fraud", sealed(V1, "alice")).reason is Reason.NO_RULE


def test_more_signatures_than_anyone_needs_are_not_even_checked() -> None:
    junk = [EnvelopeSignature(f"{n:064x}", os.urandom(64)) for n in range(MAX_SIGNATURES)]
    many = forged(codec.seal(V1), [*junk, *sealed(V1, "alice").signatures])
    verdict = admission("fraud*: alice").judge("fraud", many)
    assert (verdict.admitted, verdict.reason) == (False, Reason.WRONG_SIGNATURE)


def test_others_signatures_beside_those_that_count_do_no_harm() -> None:
    assert admission("fraud*: alice").judge("fraud", sealed(V1, "mallory", "alice")).admitted


def test_for_a_writer_one_signature_of_the_rule_holds_the_place() -> None:
    writers = admission("fraud*: alice bob: 2", one_is_enough=True)
    assert writers.judge("fraud", sealed(V1, "alice")).admitted
    assert not writers.judge("fraud", sealed(V1, "mallory")).admitted
    assert not writers.strictly().judge("fraud", sealed(V1, "alice")).admitted


@given(st.sets(st.sampled_from(["alice", "bob", "carol", "mallory"])))
def test_vouching_for_keys_says_what_judging_their_signatures_says(names: set[str]) -> None:
    rules = admission("fraud*: alice bob carol: 2", bob='revoked = "left"')
    judged = rules.judge("fraud", sealed(V1, *sorted(names)))
    vouched = rules.vouch("fraud", [key(name).key_id for name in names])
    assert (vouched.admitted, vouched.reason, vouched.signers) == (judged.admitted, judged.reason, judged.signers)


def test_an_empty_policy_admits_nothing() -> None:
    from modelcast.trust.admission import PolicyAdmission

    empty = PolicyAdmission(parse_policy(""), lambda: NOW_MS)
    assert empty.judge("fraud", sealed(V1, "alice")).reason is Reason.NO_RULE


def test_a_policy_text_of_the_rig_is_a_policy() -> None:
    assert [rule.threshold for rule in parse_policy(policy_text("a: alice bob: 2", "*: carol")).rules] == [2, 1]


def test_an_envelope_without_payload_type_is_judged_like_any_other() -> None:
    assert not admission("fraud*: alice").judge("fraud", Envelope("", b"", sealed(V1, "alice").signatures)).admitted
