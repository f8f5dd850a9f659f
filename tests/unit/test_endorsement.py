"""Publishing with signatures: what is signed, what a second person adds, and what a publisher goes on from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcast import codec
from modelcast.errors import ModelNotFoundError, UsageError, VersionNotFoundError
from modelcast.log import BEGINNING
from modelcast.names import ModelRef
from modelcast.publisher.change import Author
from modelcast.publisher.endorsement import endorse
from modelcast.publisher.prepare import PreparedModel
from modelcast.publisher.removal import Remover
from modelcast.publisher.session import RegistryWriter
from modelcast.publisher.upload import CHUNK_BYTES
from modelcast.records import Envelope, EnvelopeSignature, Manifest, Release, Withdrawn
from modelcast.registry.envelopes import envelopes_at
from modelcast.registry.image import RegistryImage
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import init
from modelcast.registry.shown import look_up
from modelcast.scan import scan
from modelcast.testing.memory import MemoryLog
from modelcast.topics import RegistryKey, Topics
from modelcast.trust.admission import EVERYTHING, Admission, Reason

from .prepared import prepared
from .registry_records import key_of
from .trust_rig import admission, forged, key, sealed

TOPICS = Topics("test")
AUTHOR = Author("tester", lambda: 1_700_000_000_000)
BOTH = "fraud*: alice bob: 2"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MemoryLog]:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    with MemoryLog() as log:
        init(log, TOPICS)
        yield log


@pytest.fixture
def model(tmp_path: Path) -> PreparedModel:
    return prepared(tmp_path / "a", {"model.onnx": random.Random(1).randbytes(2 * CHUNK_BYTES)})


def writer(log: MemoryLog, *names: str, under: Admission = EVERYTHING) -> RegistryWriter:
    signers = [key(name) for name in names]
    return RegistryWriter(log, TOPICS, author=AUTHOR, sleep=lambda _: None, signers=signers, admission=under)


def writers(*rules: str, **more: str) -> Admission:
    return admission(*rules, one_is_enough=True, **more)


def image(log: MemoryLog, under: Admission) -> RegistryImage:
    reader = RegistryReader(log, TOPICS, admission=under)
    try:
        return reader.catch_up(5)
    finally:
        reader.close()


def put(log: MemoryLog, payload: codec.Payload, envelope: Envelope) -> None:
    value = codec.encode_envelope(envelope)
    log.writer().send(TOPICS.registry, key=key_of(payload), value=value, partition=0)


def count_chunks(log: MemoryLog) -> int:
    ends = log.end_offsets(TOPICS.blobs, committed=False)
    live: dict[bytes | None, bool] = {}
    for record in scan(log, TOPICS.blobs, dict.fromkeys(ends, BEGINNING), ends, timeout_s=5):
        live[record.key] = record.value is not None
    return sum(live.values())


def test_version_and_release_are_signed_by_every_key_given(log: MemoryLog, model: PreparedModel) -> None:
    writer(log, "alice", "bob").publish("fraud", model, release=True)
    found = image(log, admission(BOTH))
    assert found.resolve(ModelRef("fraud")).signers == (key("alice").key_id, key("bob").key_id)


@pytest.mark.parametrize("names", [(), ("mallory",)])
def test_nothing_is_sent_that_the_policy_would_refuse(
    names: tuple[str, ...], log: MemoryLog, model: PreparedModel
) -> None:
    with pytest.raises(UsageError, match="consumers under the trust policy would refuse"):
        writer(log, *names, under=writers(BOTH)).publish("fraud", model, release=True)
    assert count_chunks(log) == 0


def test_a_second_person_makes_it_count(log: MemoryLog, model: PreparedModel) -> None:
    alice, bob = writer(log, "alice", under=writers(BOTH)), writer(log, "bob", under=writers(BOTH))
    alice.publish("fraud", model, release=True)
    with pytest.raises(ModelNotFoundError, match="below-threshold"):
        image(log, admission(BOTH)).resolve(ModelRef("fraud"))
    version = endorse(bob.holder, "fraud", 1)
    assert isinstance(version.payload, Manifest)
    assert (version.verdict.admitted, version.repeated) == (True, False)
    released = endorse(bob.holder, "fraud", None)
    assert isinstance(released.payload, Release)
    found = image(log, admission(BOTH)).resolve(ModelRef("fraud"))
    assert found.signers == (key("alice").key_id, key("bob").key_id)
    assert found.hints  # where the chunks lie is still said


def test_signing_again_writes_nothing(log: MemoryLog, model: PreparedModel) -> None:
    alice = writer(log, "alice", under=writers(BOTH))
    alice.publish("fraud", model, release=True)
    before = image(log, EVERYTHING).revision
    assert endorse(alice.holder, "fraud", 1).repeated
    assert image(log, EVERYTHING).revision == before


def test_a_signature_that_only_bears_ones_name_is_not_taken_for_ones_own(log: MemoryLog, model: PreparedModel) -> None:
    manifest = writer(log, "alice", under=writers(BOTH)).publish("fraud", model, release=True).manifest
    genuine = sealed(manifest, "alice")
    put(log, manifest, forged(genuine, [*genuine.signatures, EnvelopeSignature(key("bob").key_id, b"\0" * 64)]))
    assert endorse(writer(log, "bob", under=writers(BOTH)).holder, "fraud", 1).verdict.admitted
    assert image(log, admission(BOTH)).models["fraud"].version(1)


def test_what_waits_for_a_signature_keeps_its_number(log: MemoryLog, model: PreparedModel) -> None:
    alice = writer(log, "alice", under=writers(BOTH))
    assert [alice.publish("fraud", model, release=True).manifest.version for _ in range(2)] == [1, 2]


def test_nobody_signs_what_a_stranger_put_there(log: MemoryLog, model: PreparedModel) -> None:
    manifest = writer(log, "mallory").publish("fraud", model, release=True).manifest
    with pytest.raises(ModelNotFoundError, match="is not admitted .unknown-key."):
        endorse(writer(log, "bob", under=writers(BOTH)).holder, "fraud", manifest.version)


def test_a_key_takes_over_from_another(log: MemoryLog, model: PreparedModel) -> None:
    writer(log, "alice").publish("fraud", model, release=True)
    new = writer(log, "carol", under=writers("fraud*: alice carol"))
    for version in (1, None):
        endorse(new.holder, "fraud", version)
    left = admission("fraud*: alice carol", alice='revoked = "left"')
    assert image(log, left).resolve(ModelRef("fraud")).signers == (key("carol").key_id,)


def test_signing_needs_a_key(log: MemoryLog, model: PreparedModel) -> None:
    unsigned = writer(log)
    unsigned.publish("fraud", model, release=True)
    with pytest.raises(UsageError, match="no key is named"):
        endorse(unsigned.holder, "fraud", 1)


class TestF14:
    """Row 14, for publishers: they go on from the highest release that is trusted."""

    FAR = (1 << 62, "mallory")

    def leaked(self, log: MemoryLog, model: PreparedModel) -> Manifest:
        manifest = writer(log, "alice").publish("fraud", model, release=True).manifest
        for sequence in (7, 1 << 62):
            release = Release(manifest.repository, "fraud", sequence, 1, 0, "mallory", "")
            put(log, release, sealed(release, "mallory"))
        return manifest

    def test_f14_a_publisher_goes_on_from_the_highest_trusted_sequence_past_what_the_leaked_key_took(
        self, log: MemoryLog, model: PreparedModel
    ) -> None:
        self.leaked(log, model)
        revoked = writers("fraud*: alice")
        published = writer(log, "alice", under=revoked).publish("fraud", model, release=True)
        assert published.release is not None
        assert (published.manifest.version, published.release.sequence) == (2, 8)
        champion = image(log, admission("fraud*: alice")).models["fraud"].champion
        assert champion == published.release

    def test_f14_numbers_are_given_one_after_another_below_one_that_was_run_up(
        self, log: MemoryLog, model: PreparedModel
    ) -> None:
        self.leaked(log, model)
        alice = writer(log, "alice", under=writers("fraud*: alice"))
        assert [alice.publish("fraud", model, release=True).release.sequence for _ in range(7)][-1] == 14  # type: ignore[union-attr]
        assert image(log, admission("fraud*: alice")).models["fraud"].champion.version == 8  # type: ignore[union-attr]


class TestDeleting:
    def test_one_of_two_signers_takes_nothing_off(self, log: MemoryLog, model: PreparedModel) -> None:
        both = writer(log, "alice", "bob", under=writers(BOTH))
        both.publish("fraud", model, release=False)
        alice = Remover(writer(log, "alice", under=writers(BOTH)).holder)
        assert alice.delete("fraud", 1).left
        assert count_chunks(log) == 2
        alice.collect(grace_s=-(10.0**9))
        assert count_chunks(log) == 2
        assert image(log, admission(BOTH)).models["fraud"].version(1)

    def test_the_other_signs_the_withdrawal_only_if_asked_to(self, log: MemoryLog, model: PreparedModel) -> None:
        writer(log, "alice", "bob", under=writers(BOTH)).publish("fraud", model, release=False)
        Remover(writer(log, "alice", under=writers(BOTH)).holder).delete("fraud", 1, message="leaks")
        bob = writer(log, "bob", under=writers(BOTH))
        with pytest.raises(UsageError, match="was withdrawn by tester: leaks"):
            endorse(bob.holder, "fraud", 1)
        signed = endorse(bob.holder, "fraud", 1, withdrawal=True)
        assert isinstance(signed.payload, Withdrawn)
        with pytest.raises(VersionNotFoundError, match="leaks"):
            image(log, admission(BOTH)).models["fraud"].version(1)
        Remover(bob.holder).collect(grace_s=-(10.0**9))
        assert count_chunks(log) == 0

    def test_what_a_version_shares_stays_until_its_withdrawal_counts(
        self, log: MemoryLog, model: PreparedModel
    ) -> None:
        both = writer(log, "alice", "bob", under=writers(BOTH))
        both.publish("fraud", model, release=False)
        both.publish("fraud", model, release=False)
        assert Remover(writer(log, "alice", under=writers(BOTH)).holder).delete("fraud", 1).left
        Remover(both.holder).delete("fraud", 2)
        assert image(log, admission(BOTH)).models["fraud"].version(1)
        assert count_chunks(log) == 2

    def test_who_has_no_key_takes_nothing_off_what_is_signed(self, log: MemoryLog, model: PreparedModel) -> None:
        published = writer(log, "alice").publish("fraud", model, release=False).manifest
        nobody = Remover(writer(log).holder)
        with pytest.raises(UsageError, match="fraud@1 is signed"):
            nobody.delete("fraud", 1, force=True)
        withdrawn = Withdrawn(published.repository, "fraud", 1, 0, "mallory", "")
        put(log, withdrawn, sealed(withdrawn))
        nobody.collect(grace_s=-(10.0**9))
        assert count_chunks(log) == 2
        assert not Remover(writer(log, "alice", under=writers("fraud*: alice")).holder).delete("fraud", 1).repeated
        assert count_chunks(log) == 0

    def test_no_withdrawal_is_signed_where_there_is_none(self, log: MemoryLog, model: PreparedModel) -> None:
        alice = writer(log, "alice", "bob", under=writers(BOTH))
        alice.publish("fraud", model, release=False)
        with pytest.raises(UsageError, match="was not withdrawn"):
            endorse(alice.holder, "fraud", 1, withdrawal=True)


class TestShowing:
    def test_it_says_whose_signatures_are_missing(self, log: MemoryLog, model: PreparedModel) -> None:
        writer(log, "alice").publish("fraud", model, release=True)
        shown = look_up(log, TOPICS, ModelRef("fraud"), writers(BOTH))
        words = dict(shown.trust_in_words())
        assert words["signatures"].startswith("refused (below-threshold): signed by alice;")
        assert (shown.is_live, shown.refused is not None) == (False, True)

    def test_the_live_version_is_shown_beside_the_release_that_waits(
        self, log: MemoryLog, model: PreparedModel
    ) -> None:
        writer(log, "alice", "bob").publish("fraud", model, release=True)
        writer(log, "alice").publish("fraud", model, release=True)
        shown = look_up(log, TOPICS, ModelRef("fraud"), writers(BOTH))
        assert (shown.manifest.version, shown.is_live) == (1, True)
        assert shown.trust_as_dict()["refused_release"]["reason"] == Reason.BELOW_THRESHOLD

    def test_without_a_policy_ids_are_shown_and_not_believed(self, log: MemoryLog, model: PreparedModel) -> None:
        writer(log, "alice").publish("fraud", model, release=True)
        shown = look_up(log, TOPICS, ModelRef("fraud"), EVERYTHING)
        assert shown.version.verdict is None
        assert "not verified" in dict(shown.trust_in_words())["signatures"]
        assert shown.trust_as_dict()["trust"]["key_ids"] == [key("alice").key_id]

    def test_every_envelope_of_a_key_is_found(self, log: MemoryLog, model: PreparedModel) -> None:
        writer(log, "alice").publish("fraud", model, release=True)
        endorse(writer(log, "bob").holder, "fraud", 1)
        found = envelopes_at(log, TOPICS, RegistryKey("version", "fraud", 1))
        assert [len(envelope.signatures) for envelope in found] == [1, 2]


def test_what_consumers_run_is_not_deleted_while_its_successor_waits_for_a_signature(
    log: MemoryLog, model: PreparedModel
) -> None:
    both = writer(log, "alice", "bob", under=writers(BOTH))
    both.publish("fraud", model, release=True)
    alice = writer(log, "alice", under=writers(BOTH))
    alice.publish("fraud", model, release=True)
    for who in (both, alice):
        with pytest.raises(UsageError, match="fraud@1 is live"):
            Remover(who.holder).delete("fraud", 1, force=True)
    endorse(writer(log, "bob", under=writers(BOTH)).holder, "fraud", 2)
    endorse(writer(log, "bob", under=writers(BOTH)).holder, "fraud", None)
    assert not Remover(both.holder).delete("fraud", 1, force=True).repeated


def test_whoever_introduces_a_policy_goes_on_with_the_numbers(log: MemoryLog, model: PreparedModel) -> None:
    for _ in range(5):
        writer(log).publish("fraud", model, release=True)
    for version in (1, 2):
        writer(log).release("fraud", version)
    alice = writer(log, "alice", under=writers("fraud*: alice"))
    rehearsed = alice.rehearse("fraud", model, release=True)
    published = alice.publish("fraud", model, release=True)
    assert published.release is not None
    assert (published.manifest.version, published.release.sequence) == (6, 8)
    assert (rehearsed.manifest.version, rehearsed.release and rehearsed.release.sequence) == (6, 8)
    assert image(log, admission("fraud*: alice")).resolve(ModelRef("fraud")).manifest == published.manifest
