"""What the registry's image is under a trust policy: only what is admitted counts, and nothing else holds a place."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import codec
from modelcast.errors import ModelNotFoundError, RepositoryNotFoundError, VersionNotFoundError
from modelcast.log import TopicSpec
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import ChunkHint, Envelope, RepositoryIdentity
from modelcast.registry.delta import MAX_AHEAD, MAX_FAULTS, MAX_UNTRUSTED
from modelcast.registry.image import RegistryImage, VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.testing.memory import MemoryLog
from modelcast.topics import RegistryKey, Topics
from modelcast.trust.admission import PolicyAdmission, Reason
from modelcast.trust.policy import parse_policy

from .registry_records import REPOSITORY, key_of, manifest, release, withdrawn
from .trust_rig import NOW_MS, admission, image, key, log_of, policy_text, record, sealed

FRAUD = ModelRef("fraud")
ALICE = admission("fraud*: alice")
ROOT = record(REPOSITORY)


def version(found: RegistryImage, number: int) -> VersionRecord:
    return found.models["fraud"].version(number)


def test_signed_records_count_and_say_who_signed() -> None:
    found = image(ROOT, record(manifest(1), "alice"), record(release(1, 1), "alice"), under=ALICE)
    assert found.resolve(FRAUD).signers == (key("alice").key_id,)
    assert found.models["fraud"].standings[1].signers == (key("alice").key_id,)
    assert not found.faults


class TestF09:
    """Row 9, at the registry: refused before the payload is parsed."""

    def test_f09_garbage_nobody_signed_never_reaches_the_parser(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parsed: list[Envelope] = []
        unseal = codec.unseal
        monkeypatch.setattr(codec, "unseal", lambda envelope: parsed.append(envelope) or unseal(envelope))
        garbage = Envelope(codec.seal(manifest(1)).payload_type, b"\xc3\x01" + b"\xff" * 60)
        found = image(ROOT, (key_of(manifest(1)), garbage), under=ALICE)
        assert [fault.verdict.reason for fault in found.faults if fault.verdict] == [Reason.UNSIGNED]
        assert [envelope.payload_type for envelope in parsed] == [ROOT[1].payload_type]

    @pytest.mark.parametrize("signer", [(), ("mallory",), ("bob",)])
    def test_f09_what_is_not_admitted_is_no_version_and_says_why(self, signer: tuple[str, ...]) -> None:
        found = image(ROOT, record(manifest(1), *signer), record(release(1, 1), *signer), under=ALICE)
        assert "fraud" not in found.models
        assert found.untrusted_releases["fraud"].key == RegistryKey("release", "fraud", 1)
        assert ModelVersion("fraud", 1) in found.untrusted_versions
        with pytest.raises(ModelNotFoundError, match="release 1 of 'fraud' is not admitted"):
            found.resolve(FRAUD)

    def test_f09_a_version_asked_for_by_number_says_why_it_does_not_count(self) -> None:
        found = image(ROOT, record(manifest(1), "alice"), record(manifest(2)), under=ALICE)
        with pytest.raises(VersionNotFoundError, match="fraud@2 is not admitted .unsigned."):
            found.resolve(ModelRef("fraud", 2))


def test_an_unsigned_record_squats_on_no_number() -> None:
    squatted = replace(manifest(1), message="mine")
    found = image(ROOT, record(squatted), record(manifest(1), "alice"), under=ALICE)
    assert version(found, 1).manifest == manifest(1)
    assert not found.untrusted_versions


def test_stripping_the_signatures_of_a_record_takes_nothing_from_it() -> None:
    found = image(ROOT, record(manifest(1), "alice"), record(manifest(1)), under=ALICE)
    assert version(found, 1).signers == (key("alice").key_id,)


@pytest.mark.parametrize("signer", [(), ("mallory",)])
def test_a_version_is_not_withdrawn_by_whoever_may_not(signer: tuple[str, ...]) -> None:
    found = image(ROOT, record(manifest(1), "alice"), record(withdrawn(1), *signer), under=ALICE)
    assert version(found, 1).manifest == manifest(1)
    found = image(record(withdrawn(1), "alice"), base=found, under=ALICE)
    with pytest.raises(VersionNotFoundError, match="was withdrawn"):
        version(found, 1)


def test_a_second_signature_makes_a_version_count() -> None:
    both = admission("fraud*: alice bob: 2")
    waiting = image(ROOT, record(manifest(1), "alice"), record(release(1, 1), "alice"), under=both)
    assert waiting.untrusted_releases["fraud"].verdict.reason is Reason.BELOW_THRESHOLD
    found = image(record(manifest(1), "alice", "bob"), record(release(1, 1), "alice", "bob"), base=waiting, under=both)
    assert found.resolve(FRAUD).signers == (key("alice").key_id, key("bob").key_id)
    assert found.untrusted_release(found.models["fraud"]) is None


def test_the_same_payload_again_unites_signers_and_takes_the_newest_hints() -> None:
    old, new = ChunkHint("sha256:" + "a" * 64, 0, 1, 2), ChunkHint("sha256:" + "a" * 64, 0, 8, 9)
    either = admission("fraud*: alice bob")
    at = key_of(manifest(1))
    first = image(ROOT, (at, sealed(manifest(1), "alice", hints=(old,))), under=either)
    found = image((at, sealed(manifest(1), "bob", hints=(new,))), base=first, under=either)
    assert version(found, 1).signers == (key("alice").key_id, key("bob").key_id)
    assert (version(found, 1).hints, version(found, 1).offset) == ((new,), 2)


def test_the_very_same_record_again_changes_nothing() -> None:
    # Or whoever repeats a record that was refused would make everyone try it again.
    first = image(ROOT, record(manifest(1), "alice"), record(release(1, 1), "alice"), under=ALICE)
    again = image(record(manifest(1), "alice"), record(release(1, 1), "alice"), base=first, under=ALICE)
    assert again.models == first.models


def test_another_payload_under_a_number_that_counts_changes_nothing() -> None:
    other = replace(manifest(1), message="another")
    found = image(ROOT, record(manifest(1), "alice"), record(other, "alice"), under=ALICE)
    assert version(found, 1).manifest == manifest(1)


def test_hints_are_unsigned_and_say_nothing_but_where_to_look_first() -> None:
    anywhere = ChunkHint("sha256:" + "f" * 64, 99, -5, 1 << 60)
    at = key_of(manifest(1))
    found = image(ROOT, (at, sealed(manifest(1), "alice", hints=(anywhere,))), under=ALICE)
    assert version(found, 1).manifest == manifest(1)


@given(st.data())
def test_f13_no_mixture_of_two_signed_records_counts(data: st.DataObject) -> None:
    """Row 13: key, payload type, payload and signatures taken from different records, each of them genuine."""
    originals = [
        record(manifest(1), "alice"),
        record(manifest(2), "alice"),
        record(release(1, 1), "alice"),
        record(manifest(1, model="fraud-eu"), "alice"),
        record(withdrawn(3), "alice"),
    ]
    drawn = st.sampled_from(originals)
    (at, _), (_, typed), (_, bodied), (_, signer) = (data.draw(drawn) for _ in range(4))
    mixed = (at, Envelope(typed.payload_type, bodied.payload, signer.signatures))
    found = image(ROOT, mixed, under=ALICE)
    assert bool(found.models and any(e.versions or e.releases for e in found.models.values())) == (mixed in originals)
    assert bool(found.faults) == (mixed not in originals)


class TestF15:
    """Row 15: a manifest of another model, repository or number."""

    @pytest.mark.parametrize(
        ("made_for", "at"),
        [
            (manifest(1, model="fraud-eu"), key_of(manifest(1))),
            (manifest(2), key_of(manifest(1))),
            (manifest(1, repository="0b7a4c1e-0000-4000-8000-00000000000f"), key_of(manifest(1))),
        ],
        ids=["model", "number", "repository"],
    )
    def test_f15_a_signed_manifest_counts_nowhere_but_where_it_was_made_for(
        self, made_for: codec.Payload, at: bytes
    ) -> None:
        found = image(ROOT, record(made_for, "alice", at=at), under=ALICE)
        assert not found.models.get("fraud") or not found.models["fraud"].versions
        assert "was made for" in found.faults[0].message

    def test_f15_a_pinned_repository_is_the_only_one(self) -> None:
        pinned = PolicyAdmission(
            parse_policy(policy_text("*: alice", top=f'repository = "{REPOSITORY.uuid}"')), lambda: NOW_MS
        )
        other = RepositoryIdentity("0b7a4c1e-0000-4000-8000-00000000000f", 1, 1)
        found = image(record(other), ROOT, record(manifest(1), "alice"), under=pinned)
        assert found.repository == REPOSITORY
        assert version(found, 1)
        log, topics = MemoryLog(), Topics("t")
        log.create(TopicSpec(topics.registry, 1))
        entry = log_of([record(other)])[0]
        log.writer().send(topics.registry, key=entry.key, value=entry.value, partition=0)
        with pytest.raises(RepositoryNotFoundError, match="which the trust policy pins"):
            RegistryReader(log, topics, admission=pinned).catch_up(5.0)


def test_a_hostile_topic_does_not_fill_the_memory() -> None:
    flood = [record(release(1, 1, model=f"m{n}")) for n in range(2 * MAX_UNTRUSTED)]
    found = image(ROOT, *flood, under=ALICE)
    assert len(found.untrusted_releases) == MAX_UNTRUSTED
    assert len(found.faults) == MAX_FAULTS


def test_a_release_that_counts_by_now_hides_none_that_does_not() -> None:
    both = admission("fraud*: alice bob: 2")
    waiting = image(ROOT, record(release(1, 1), "alice"), under=both)
    admitted = image(record(release(1, 1), "alice", "bob"), base=waiting, under=both)
    assert not admitted.untrusted_releases
    found = image(record(release(1, 1), "alice"), record(release(2, 2)), base=admitted, under=both)
    assert found.untrusted_releases["fraud"].key.number == 2


def test_the_release_that_waits_for_a_signature_is_named_before_a_higher_one_nobody_knows() -> None:
    both = admission("fraud*: alice bob: 2")
    found = image(ROOT, record(release(2, 1), "alice"), record(release(9000, 1), "mallory"), under=both)
    assert found.untrusted_releases["fraud"].key.number == 2


class TestNumbers:
    """A policy says what counts; a number that was given once stays given."""

    def test_what_was_given_before_the_policy_is_not_given_again(self) -> None:
        history = [*(record(manifest(n)) for n in range(1, 6)), *(record(release(n, 1)) for n in range(1, 8))]
        found = image(ROOT, *history, under=ALICE)
        assert (found.next_version("fraud"), found.next_sequence("fraud")) == (6, 8)
        after = image(record(manifest(6), "alice"), record(release(8, 6), "alice"), base=found, under=ALICE)
        assert (after.next_version("fraud"), after.next_sequence("fraud")) == (7, 9)
        assert (after.next_version("other"), after.next_sequence("other")) == (1, 1)

    @pytest.mark.parametrize("signer", [(), ("mallory",)])
    def test_a_number_far_ahead_is_nobodys(self, signer: tuple[str, ...]) -> None:
        history = [*(record(manifest(n)) for n in range(1, 6)), *(record(release(n, 1)) for n in range(1, 8))]
        last = RegistryKey("release", "fraud", 2**63 - 1).encode()
        attack = (record(manifest(2**31 - 1), *signer), record(release(1, 1), *signer, at=last))
        found = image(ROOT, *history, *attack, under=ALICE)
        assert (found.next_version("fraud"), found.next_sequence("fraud")) == (6, 8)

    def test_the_numbers_are_moved_on_by_a_bounded_step_at_most(self) -> None:
        counted = (ROOT, record(manifest(3), "alice"))
        near, far = record(manifest(3 + MAX_AHEAD)), record(manifest(4 + MAX_AHEAD))
        assert image(*counted, near, far, under=ALICE).next_version("fraud") == 4 + MAX_AHEAD
        assert image(*counted, far, under=ALICE).next_version("fraud") == 4

    def test_they_survive_more_refused_records_than_are_kept(self) -> None:
        flood = [record(manifest(1, model=f"m{n}")) for n in range(2 * MAX_UNTRUSTED)]
        assert image(ROOT, record(manifest(5)), *flood, under=ALICE).next_version("fraud") == 6
