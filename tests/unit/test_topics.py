"""Topics: keys are what the protocol says, and settings that would lose models are found."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.log import TopicDescription
from modelcast.topics import ChunkKey, RegistryKey, Topics, blob_partition, config_faults

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


@given(names, st.integers(1, 10**9), st.sampled_from(["version", "release"]))
def test_a_registry_key_survives(model: str, number: int, kind: str) -> None:
    key = RegistryKey(kind, model, number)  # type: ignore[arg-type]
    assert RegistryKey.decode(key.encode()) == key
    assert key.encode() == f"{kind}/{model}/{number}".encode()


@given(names, st.integers(0, 10**6))
def test_a_chunk_key_survives(model: str, index: int) -> None:
    key = ChunkKey(model, "sha256:" + "0" * 64, 262144, index)
    assert ChunkKey.decode(key.encode()) == key


@given(st.binary(max_size=40))
def test_any_bytes_decode_to_a_key_or_none(data: bytes) -> None:
    for kind in (RegistryKey, ChunkKey):
        key = kind.decode(data)
        assert key is None or isinstance(key, kind)


@pytest.mark.parametrize(
    "key",
    [
        b"repository", b"version/fraud/0", b"version/fraud/01", b"release/a/b/1", b"",
        b"version/fraud/" + b"9" * 5000,  # more digits than Python reads
    ],
)  # fmt: skip
def test_what_is_not_a_version_or_release_key_is_none(key: bytes) -> None:
    assert RegistryKey.decode(key) is None


@pytest.mark.parametrize(
    "key",
    [
        b"", b"fraud/d/262144", b"fraud/d/262144/1/2", b"fraud/d/262144/x", b"fraud/d/-1/0", b"fraud/d/262144/01",
        "fraud/d/262144/\N{ARABIC-INDIC DIGIT ONE}".encode(), b"fraud/d/262144/" + b"9" * 5000,
        b"fraud/d/" + b"9" * 5000 + b"/0",
    ],
)  # fmt: skip
def test_what_is_not_a_chunks_key_is_none(key: bytes) -> None:
    assert ChunkKey.decode(key) is None


def test_a_files_partition_never_changes() -> None:
    # On the wire for ever: clients in other languages compute the same.
    digest = "sha256:" + "ab" * 32
    assert [blob_partition("fraud", digest, n) for n in (1, 2, 4, 50)] == [0, 1, 1, 17]


@pytest.mark.parametrize(
    ("policy", "fault"),
    [("compact", False), ("delete", True), ("compact,delete", True), ("delete, compact", True), ("", False)],
)
def test_a_policy_that_deletes_would_lose_models(policy: str, fault: bool) -> None:
    faults = config_faults(TopicDescription("p.registry", 1, {"cleanup.policy": policy}))
    assert bool(faults) is fault


def test_a_repositorys_topics_keep_old_records_whatever_their_timestamps() -> None:
    specs = {spec.name: spec for spec in Topics("p").specs(blob_partitions=7, replication_factor=3)}
    assert {name: spec.partitions for name, spec in specs.items()} == {
        "p.registry": 1, "p.schemas": 1, "p.blobs": 7, "p.status": 1,
    }  # fmt: skip
    for name in ("p.registry", "p.schemas", "p.blobs"):
        assert specs[name].configs["cleanup.policy"] == "compact"
        assert specs[name].configs["retention.ms"] == "-1"
    assert all(spec.replication_factor == 3 for spec in specs.values())


def test_what_is_written_all_the_time_or_read_whole_is_compacted_nearly_whole() -> None:
    specs = {spec.name: spec for spec in Topics("p").specs(blob_partitions=7, replication_factor=3)}
    for name in ("p.registry", "p.schemas", "p.status"):
        assert int(specs[name].configs["segment.bytes"]) <= 16 << 20
