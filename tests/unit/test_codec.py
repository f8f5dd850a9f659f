"""Registry and status records: what is written is what is read, and what is not such a record is refused."""

from __future__ import annotations

import contextlib
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import codec
from modelcast.errors import WireError
from modelcast.records import (
    ChunkHint,
    DType,
    Envelope,
    EnvelopeSignature,
    FileEntry,
    InputBinding,
    InstanceStatus,
    LoadProbe,
    Manifest,
    ModelState,
    ModelStatus,
    OutputSpec,
    Refusal,
    Release,
    Signature,
    Tolerance,
)

from .registry_records import REPOSITORY, manifest, release, withdrawn

# Avro strings are UTF-8: lone surrogates have no encoding.
texts = st.text(st.characters(codec="utf-8"), max_size=20)
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
digests = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
longs = st.integers(0, 2**53)
# Half of them as publishers write them, or hardly any would be.
int64s = st.integers(0, 1_000_000) | st.integers(-(2**63), 2**63 - 1)
shapes = st.lists(st.none() | st.integers(0, 1000), max_size=3).map(tuple)
dtypes = st.sampled_from(DType)
floats = st.floats(allow_nan=False)
tolerances = st.floats(0, allow_infinity=False)
signatures = st.builds(
    Signature,
    st.lists(st.builds(InputBinding, texts, dtypes, shapes, st.lists(texts, max_size=4).map(tuple)), max_size=3).map(
        tuple
    ),
    st.lists(st.builds(OutputSpec, texts, dtypes, shapes, texts), max_size=3).map(tuple),
)
files = st.lists(
    st.builds(FileEntry, texts, st.integers(0, 2**39), digests), min_size=1, max_size=4, unique_by=lambda e: e.path
).map(lambda entries: tuple(sorted(entries, key=lambda e: e.path)))
manifests = st.builds(
    Manifest,
    repository=texts,
    model=names,
    version=st.integers(1, 2**31 - 1),
    created_ms=longs,
    created_by=texts,
    message=texts,
    files=files,
    chunk_bytes=st.integers(1, codec.MAX_CHUNK_BYTES),
    signature=signatures,
    ir_version=st.integers(0, 100),
    opsets=st.dictionaries(texts, st.integers(0, 100), max_size=3),
    tolerance=st.builds(Tolerance, tolerances, tolerances),
    probe=st.none() | st.builds(LoadProbe, floats, floats, longs),
    frameworks=st.dictionaries(texts, texts, max_size=3),
    metrics=st.dictionaries(texts, floats, max_size=3),
)
envelopes = st.builds(
    Envelope,
    texts,
    st.binary(max_size=50),
    st.lists(st.builds(EnvelopeSignature, texts, st.binary(max_size=64)), max_size=2).map(tuple),
    st.lists(st.builds(ChunkHint, digests, st.integers(0, 1000), longs, longs), max_size=2).map(tuple),
)


@given(manifests)
def test_a_manifest_survives_the_wire(value: Manifest) -> None:
    assert codec.unseal(codec.decode_envelope(codec.encode_envelope(codec.seal(value)))) == value


@pytest.mark.parametrize("value", [REPOSITORY, withdrawn(3), release(4, 2), release(5, 1, restores=2)])
def test_every_other_payload_survives_the_wire(value: codec.Payload) -> None:
    assert codec.unseal(codec.decode_envelope(codec.encode_envelope(codec.seal(value)))) == value


@given(envelopes)
def test_an_envelope_survives_with_its_payload_unread(value: Envelope) -> None:
    assert codec.decode_envelope(codec.encode_envelope(value)) == value


def test_a_status_survives_the_wire() -> None:
    refusal = Refusal(2, "golden", "differs in row 3", 1_700_000_000_000)
    status = InstanceStatus(
        REPOSITORY.uuid, "host-0", "host", 7, "scorer", "cpu", 1, {"onnxruntime": "1"},
        (
            ModelStatus(
                "fraud", None, ModelState.LIVE, 1, 2, 3.5, 4.5, 1, (refusal,), 2, 2, "warming", 1 << 40, 0.5, 7, 1, True
            ),
            ModelStatus("churn", 2, ModelState.IDLE),
        ),
        started_ms=1, heartbeat_ms=1_000, stale_ms=0, ended=True,
    )  # fmt: skip
    assert codec.decode_status(codec.encode_status(status)) == status


@given(st.binary(max_size=200))
def test_bytes_that_are_no_record_are_a_wire_error_and_nothing_else(data: bytes) -> None:
    for decode in (codec.decode_envelope, codec.decode_status):
        with pytest.raises(WireError):
            decode(data)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_record_is_a_wire_error_or_another_valid_record(position: int, byte: int) -> None:
    data = bytearray(codec.encode_envelope(codec.seal(manifest(1))))
    data[position % len(data)] = byte
    with contextlib.suppress(WireError):
        codec.unseal(codec.decode_envelope(bytes(data)))


@pytest.mark.parametrize("uuid", ["", "../../home", REPOSITORY.uuid.upper(), REPOSITORY.uuid + "\n", "a" * 36])
def test_a_repository_is_named_by_a_uuid_which_paths_are_made_of(uuid: str) -> None:
    with pytest.raises(WireError, match="declares repository"):
        codec.unseal(codec.seal(replace(REPOSITORY, uuid=uuid)))


@pytest.mark.parametrize(
    "change",
    [
        {"files": (FileEntry("a", 1 << 50, "sha256:" + "0" * 64),)},
        {"files": (FileEntry("a", -1, "sha256:" + "0" * 64),)},
        {"files": ()},
        {"files": (FileEntry("a", 1, "md5:0"),)},
        {"files": (FileEntry("a", 1, "sha256:" + "0" * 64),) * 2},
        {"files": (FileEntry("b", 1, "sha256:" + "0" * 64), FileEntry("a", 1, "sha256:" + "0" * 64))},
        {"chunk_bytes": 0},
        {"chunk_bytes": 2_000_000_000},
        {"version": 0},
        {"model": "../etc"},
    ],
)
def test_f08_what_a_manifest_declares_is_bounded_before_anyone_allocates(change: dict[str, object]) -> None:
    envelope = codec.seal(replace(manifest(1), **change))  # type: ignore[arg-type]
    with pytest.raises(WireError, match="out of bounds|declares model"):
        codec.unseal(envelope)


@given(st.lists(int64s, min_size=1, max_size=5), int64s)
def test_f08_whatever_sizes_are_declared_what_is_taken_is_within_bounds(sizes: list[int], chunk_bytes: int) -> None:
    entries = tuple(FileEntry(f"{n}", size, "sha256:" + "0" * 64) for n, size in enumerate(sizes))
    envelope = codec.seal(replace(manifest(1), files=entries, chunk_bytes=chunk_bytes))
    tracemalloc.start()
    try:
        taken = codec.unseal(envelope)
    except WireError:
        taken = None
    finally:
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak_bytes < 1 << 20
    within = all(0 <= size <= codec.MAX_FILE_BYTES for size in sizes) and sum(sizes) <= codec.MAX_MODEL_BYTES
    assert (taken is not None) == (within and 1 <= chunk_bytes <= codec.MAX_CHUNK_BYTES)


@pytest.mark.parametrize("bad", [replace(release(2, 1), sequence=0), replace(release(2, 1), restores=2)])
def test_a_release_goes_forward_and_restores_only_what_came_before(bad: Release) -> None:
    with pytest.raises(WireError):
        codec.unseal(codec.seal(bad))


def test_the_payload_type_is_part_of_what_is_read() -> None:
    sealed = codec.seal(manifest(1))
    with pytest.raises(WireError, match="not known"):
        codec.unseal(replace(sealed, payload_type="application/json"))
    with pytest.raises(WireError, match="not a release record"):
        codec.unseal(replace(sealed, payload_type="application/vnd.modelcast.release+avro"))


def test_the_same_content_has_the_same_digest_whatever_the_number() -> None:
    first, second = manifest(1), manifest(2)
    assert replace(second, files=first.files).digest == first.digest
    assert second.digest != first.digest
