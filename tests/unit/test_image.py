"""The registry image: what counts, what does not, and what a rollback means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import codec
from modelcast.errors import ModelNotFoundError, VersionNotFoundError
from modelcast.log import LogRecord
from modelcast.names import ModelRef
from modelcast.records import ChunkHint, Release, Withdrawn
from modelcast.registry.delta import RegistryDelta
from modelcast.registry.image import RegistryImage, VersionRecord

from .registry_records import REPOSITORY, key_of, manifest, records, release, withdrawn


def image(*payloads: codec.Payload, base: RegistryImage | None = None) -> RegistryImage:
    return replayed(records(*payloads), base)


def replayed(log: list[LogRecord], base: RegistryImage | None = None) -> RegistryImage:
    delta = RegistryDelta(base or RegistryImage())
    for record in log:
        delta.replay(record)
    return delta.apply()


def champion(image: RegistryImage, model: str = "fraud") -> int | None:
    live = image.models[model].champion
    return live.version if live else None


def test_a_version_is_there_once_published_and_live_once_released() -> None:
    published = image(REPOSITORY, manifest(1))
    assert published.models["fraud"].champion is None
    with pytest.raises(VersionNotFoundError, match="no version of 'fraud' was released"):
        published.resolve(ModelRef("fraud"))
    live = image(REPOSITORY, manifest(1), release(1, 1))
    assert live.resolve(ModelRef("fraud")).manifest == manifest(1)
    assert live.revision == 3


def test_the_highest_sequence_is_live_whatever_its_version() -> None:
    log = (REPOSITORY, manifest(1), manifest(2), release(1, 1), release(2, 2), release(3, 1, restores=1))
    assert champion(image(*log)) == 1


def test_an_image_never_changes() -> None:
    before = image(REPOSITORY, manifest(1), release(1, 1))
    log = records(REPOSITORY, manifest(1), release(1, 1), manifest(2), release(2, 2))
    after = replayed(log[3:], before)
    assert champion(before) == 1
    assert list(before.models["fraud"].versions) == [1]
    assert champion(after) == 2


@given(st.integers(0, 8))
def test_replaying_in_two_steps_gives_what_one_step_gives(cut: int) -> None:
    log = records(
        REPOSITORY, manifest(1), release(1, 1), manifest(1, model="spam"), manifest(2), release(2, 2), withdrawn(1),
        release(1, 1, model="spam"),
    )  # fmt: skip
    assert replayed(log[cut:], replayed(log[:cut])) == replayed(log)


def test_a_tombstone_changes_nothing() -> None:
    log = records(REPOSITORY, manifest(1), release(1, 1))
    tombstones = [LogRecord("r", 0, 3 + i, 0, record.key, None) for i, record in enumerate(log)]
    after = replayed(log + tombstones)
    assert champion(after) == 1
    assert after.revision == 6


def test_a_number_is_never_used_again() -> None:
    other = LogRecord(
        "r", 0, 9, 0, key_of(manifest(1)), codec.encode_envelope(codec.seal(manifest(1, repository=REPOSITORY.uuid)))
    )
    changed = image(REPOSITORY, manifest(1))
    again = replayed([other], changed)
    assert again.models["fraud"].versions == changed.models["fraud"].versions


@pytest.mark.parametrize("newer", ["schema", "payload type"])
def test_what_a_newer_version_wrote_counts_for_nothing_here_and_keeps_its_number(newer: str) -> None:
    log = records(REPOSITORY, manifest(1), release(1, 1))
    for offset, payload in enumerate((manifest(2), release(7, 2)), start=3):
        sealed = codec.seal(payload)
        if newer == "schema":
            sealed = replace(sealed, payload=b"\xc3\x01" + bytes(8) + sealed.payload[10:])
        else:
            sealed = replace(sealed, payload_type="application/vnd.modelcast.ensemble+avro")
        log.append(LogRecord("r", 0, offset, 0, key_of(payload), codec.encode_envelope(sealed)))
    after = replayed(log)
    assert champion(after) == 1
    assert [fault.offset for fault in after.faults] == [3, 4]
    assert (after.models["fraud"].latest_version, after.models["fraud"].latest_sequence) == (2, 7)
    assert replayed(log[3:], replayed(log[:3])) == after


def test_withdrawn_is_for_ever() -> None:
    after = image(REPOSITORY, manifest(1), withdrawn(1), manifest(1))
    assert isinstance(after.models["fraud"].versions[1], Withdrawn)
    assert after.models["fraud"].latest_version == 1
    with pytest.raises(VersionNotFoundError, match="trained on the wrong data"):
        after.resolve(ModelRef("fraud", 1))


def test_f15_payloads_of_another_repository_model_or_number_count_for_nothing() -> None:
    foreign = manifest(1, repository="somewhere-else")
    borrowed = manifest(2)
    log = records(REPOSITORY, foreign)
    value = codec.encode_envelope(codec.seal(borrowed))
    log.append(LogRecord("r", 0, 2, 0, key_of(manifest(3)), value))
    log.append(LogRecord("r", 0, 3, 0, key_of(manifest(2, model="spam")), value))
    log.append(LogRecord("r", 0, 4, 0, key_of(release(1, 1)), value))
    after = replayed(log)
    assert after.models == {}
    assert [fault.offset for fault in after.faults] == [1, 2, 3, 4]


def test_records_before_the_repository_count_for_nothing() -> None:
    after = image(manifest(1), REPOSITORY, manifest(2))
    assert list(after.models["fraud"].versions) == [2]


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_garbage_becomes_a_fault_and_stops_nothing(key: bytes, value: bytes) -> None:
    after = replayed([*records(REPOSITORY), LogRecord("r", 0, 1, 0, key, value)])
    assert len(after.faults) == 1
    assert after.models == {}


def test_hints_are_kept_with_the_version() -> None:
    hint = ChunkHint("sha256:" + "e" * 64, 2, 10, 11)
    after = replayed(records(REPOSITORY) + records(manifest(1), manifest(1), hints=(hint,))[1:])
    record = after.models["fraud"].versions[1]
    assert isinstance(record, VersionRecord)
    assert record.hints == (hint,)


def test_a_version_stays_in_its_bytes_until_somebody_looks_at_it_and_is_the_same_then() -> None:
    hint = ChunkHint("sha256:" + "e" * 64, 2, 10, 11)
    record = (
        replayed(records(REPOSITORY) + records(REPOSITORY, manifest(1), hints=(hint,))[1:]).models["fraud"].version(1)
    )
    assert record.offset == 1
    assert "manifest" not in vars(record), "a hundred thousand of them would not fit"
    assert record == VersionRecord(manifest(1), (hint,), 1)
    assert replace(record, offset=7) == VersionRecord(manifest(1), (hint,), 7)
    with pytest.raises(AttributeError, match="'VersionRecord' object has no attribute 'manifset'"):
        assert record.manifset  # type: ignore[attr-defined]


def test_unknown_names_are_answered_with_what_there_is() -> None:
    after = image(REPOSITORY, manifest(1))
    with pytest.raises(ModelNotFoundError, match="fraud"):
        after.resolve(ModelRef("froud"))
    with pytest.raises(VersionNotFoundError, match="no version 9"):
        after.resolve(ModelRef("fraud", 9))


def rolled_back(current: RegistryImage) -> RegistryImage:
    """The image after a rollback of `fraud`, as a publisher writes it."""
    entry = current.models["fraud"]
    target = entry.rollback_target()
    assert target is not None
    assert entry.champion is not None
    made: Release = release(entry.champion.sequence + 1, target.version, restores=target.origin)
    return replayed([LogRecord("r", 0, current.revision, 0, key_of(made), records(made)[0].value)], current)


def test_rolling_back_again_goes_further_back() -> None:
    current = image(REPOSITORY, *(manifest(n) for n in (1, 2, 3)), *(release(n, n) for n in (1, 2, 3)))
    current = rolled_back(current)
    assert champion(current) == 2
    current = rolled_back(current)
    assert champion(current) == 1
    assert current.models["fraud"].rollback_target() is None


def test_after_a_new_release_a_rollback_goes_to_what_was_live_before_it() -> None:
    current = image(REPOSITORY, *(manifest(n) for n in (1, 2, 3)), release(1, 1), release(2, 2))
    current = rolled_back(current)
    made = release(4, 3)
    current = replayed([LogRecord("r", 0, current.revision, 0, key_of(made), records(made)[0].value)], current)
    assert champion(current) == 3
    assert champion(rolled_back(current)) == 1


def test_a_rollback_passes_over_withdrawn_versions_and_the_live_one_itself() -> None:
    current = image(
        REPOSITORY, *(manifest(n) for n in (1, 2, 3)), release(1, 1), release(2, 2), release(3, 3), release(4, 3),
        withdrawn(2),
    )  # fmt: skip
    target = current.models["fraud"].rollback_target()
    assert target is not None
    assert target.version == 1


def test_the_newest_version_is_one_that_can_be_released() -> None:
    entry = image(REPOSITORY, manifest(1), manifest(2), manifest(3), withdrawn(3)).models["fraud"]
    assert (entry.newest_version, entry.latest_version) == (2, 3)
    with pytest.raises(VersionNotFoundError) as raised:
        image(REPOSITORY, manifest(1), manifest(2), withdrawn(2)).resolve(ModelRef("fraud"))
    assert raised.value.hint == "Release one with: modelcast release fraud 1"


def test_a_key_of_thousands_of_digits_is_a_fault_and_stops_no_reader() -> None:
    log = records(REPOSITORY, manifest(1), release(1, 1))
    hostile = replace(log[-1], offset=len(log), key=b"release/fraud/" + b"9" * 5000)
    found = replayed([*log, hostile])
    assert champion(found) == 1
    assert [fault.offset for fault in found.faults] == [hostile.offset]


def test_a_fault_keeps_as_much_of_a_key_as_people_read() -> None:
    log = records(REPOSITORY, manifest(1))
    name = b"x" * 900_000
    found = replayed([*log, replace(log[-1], offset=len(log), key=b"version/" + name + b"/1")])
    (fault,) = found.faults
    assert "is not a model name" in fault.message
    assert len(fault.key) + len(fault.message) < 2_000
