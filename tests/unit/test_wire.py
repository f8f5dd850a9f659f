"""The wire format as committed bytes: what was once written is read by every later version, and written alike.

A file is never changed. A new form of a record adds a file with the next number, and `schemas/earlier/` its old schema.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from modelcast import codec, schemas
from modelcast.records import (
    ChunkHint,
    DType,
    Envelope,
    FileEntry,
    InputBinding,
    InstanceStatus,
    LoadProbe,
    Manifest,
    ModelState,
    ModelStatus,
    NullRule,
    OutputSpec,
    Refusal,
    Release,
    RepositoryIdentity,
    Signature,
    Tolerance,
    Withdrawn,
)
from modelcast.topics import REPOSITORY_KEY, ChunkKey, RegistryKey, blob_partition

WIRE = Path(__file__).parent / "wire"

REPOSITORY = RepositoryIdentity("0b5f8a52-6d0e-4c53-9d2b-6a1f0c9e7d11", 1_700_000_000_000, 1)
MANIFEST_1 = Manifest(
    repository=REPOSITORY.uuid,
    model="fraud",
    version=3,
    created_ms=1_700_000_000_001,
    created_by="ada@lovelace",
    message="größer: ≥ 0.9",
    files=(
        FileEntry("examples.npz", 1_234, "sha256:" + "0" * 64),
        FileEntry("model.onnx", 0, "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
        FileEntry("tensors/" + "ab" * 32, 1 << 33, "sha256:" + "ab" * 32),
    ),
    chunk_bytes=262_144,
    signature=Signature(
        inputs=(
            InputBinding("amount", DType.FLOAT32, (None,), ("amount",)),
            InputBinding("x", DType.FLOAT64, (None, 2), ("a", "b")),
            InputBinding("país", DType.STRING, (None, 1), ("country",)),
        ),
        outputs=(
            OutputSpec("label", DType.INT64, (None,), "label"),
            OutputSpec("probabilities:0", DType.FLOAT32, (None, 2), "probabilities_0"),
        ),
    ),
    ir_version=10,
    opsets={"": 21, "ai.onnx.ml": 3},
    tolerance=Tolerance(1e-4, 1e-5),
    probe=LoadProbe(12.5, 0.25, 55 << 20),
    frameworks={"scikit-learn": "1.9.1"},
    metrics={"auc": 0.9125},
)
WITHDRAWN = Withdrawn(REPOSITORY.uuid, "fraud", 2, 1_700_000_000_002, "ada@lovelace", "trained on leaked labels")
RELEASE = Release(REPOSITORY.uuid, "fraud", 5, 3, 1_700_000_000_003, "ada@lovelace", "better", None)
ROLLBACK = Release(REPOSITORY.uuid, "fraud", 6, 1, 1_700_000_000_004, "ada@lovelace", "", 4)
HINTS = (ChunkHint("sha256:" + "0" * 64, 3, 17, 20), ChunkHint("sha256:" + "ab" * 32, 0, 0, 1 << 40))
STATUS = InstanceStatus(
    repository=REPOSITORY.uuid,
    instance="host-0",
    host="host",
    pid=4711,
    role="scorer",
    device="cpu",
    at_ms=1_700_000_000_005,
    runtime={"onnxruntime": "1.31.1"},
    models=(
        ModelStatus(
            "fraud",
            None,
            ModelState.LIVE,
            3,
            1_700_000_000_004,
            43.5,
            251.0,
            7,
            (Refusal(2, "golden", "output 'score' is NaN", 1_700_000_000_000),),
        ),
        ModelStatus("churn", 2, ModelState.WAITING),
    ),
)

STATUS_2 = replace(
    STATUS,
    models=(
        replace(
            STATUS.models[0],
            wanted_version=5,
            next_version=4,
            next_state="fetching",
            events=9_000_000_000,
            events_per_s=12_500.5,
            lag=17,
            dead_letters=3,
            stale=True,
        ),
        replace(STATUS.models[1], state=ModelState.IDLE),
    ),
    started_ms=1_700_000_000_000,
    heartbeat_ms=10_000,
    stale_ms=61_000,
    ended=True,
)

MANIFEST_2 = replace(
    MANIFEST_1,
    signature=replace(
        MANIFEST_1.signature,
        inputs=(*MANIFEST_1.signature.inputs, InputBinding("image", DType.UINT8, (None, 28, 28, 1), ("pixels",))),
    ),
    gates=("auc 0.9125 >= 0.8",),
    store="s3://models/prod",
)

MANIFEST_3 = replace(
    MANIFEST_2,
    signature=replace(MANIFEST_2.signature, nulls=(NullRule("amount", "nan"), NullRule("country", ""))),
)

# What each file holds: the payload and the hints beside it.
PAYLOADS = {
    "repository.1.bin": (REPOSITORY, ()),
    "manifest.1.bin": (MANIFEST_1, HINTS),
    "manifest.2.bin": (MANIFEST_2, ()),
    "manifest.3.bin": (MANIFEST_3, ()),
    "withdrawn.1.bin": (WITHDRAWN, ()),
    "release.1.bin": (RELEASE, ()),
    "rollback.1.bin": (ROLLBACK, ()),
}
STATUSES = {"instance_status.1.bin": STATUS, "instance_status.2.bin": STATUS_2}
# The newest form of each record: written today byte for byte as it was.
TODAY = sorted(PAYLOADS.keys() - {"manifest.1.bin", "manifest.2.bin"})


@pytest.mark.parametrize("name", PAYLOADS)
def test_what_was_written_is_read(name: str) -> None:
    payload, hints = PAYLOADS[name]
    envelope = codec.decode_envelope((WIRE / name).read_bytes())
    assert codec.unseal(envelope) == payload
    assert envelope.hints == hints
    assert envelope.signatures == ()


@pytest.mark.parametrize("name", TODAY)
def test_it_is_written_alike_today(name: str) -> None:
    payload, hints = PAYLOADS[name]
    assert codec.encode_envelope(codec.seal(payload, hints=hints)) == (WIRE / name).read_bytes()


@pytest.mark.parametrize("name", STATUSES)
def test_what_instances_said_is_read(name: str) -> None:
    assert codec.decode_status((WIRE / name).read_bytes()) == STATUSES[name]


def test_a_status_is_written_alike_today() -> None:
    assert codec.encode_status(STATUS_2) == (WIRE / "instance_status.2.bin").read_bytes()


def test_no_file_of_the_wire_format_goes_unread() -> None:
    assert {path.name for path in WIRE.iterdir()} == {*PAYLOADS, *STATUSES, "signed.1.bin"}


def test_every_schema_ever_written_has_a_file() -> None:
    """A schema that changes without a new file here would leave its records unproven."""
    read = {(WIRE / name).read_bytes() for name in (*PAYLOADS, *STATUSES)}
    payloads = [codec.decode_envelope(data).payload for data in read if data.startswith(schemas.load("envelope").frame)]
    for name in schemas.NAMES:
        for schema in schemas.versions(name):
            assert any(data.startswith(schema.frame) for data in (*read, *payloads)), (name, schema.fingerprint.hex())


# The published test key of RFC 8032, section 7.1, test 1.
PUBLIC_KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


def pre_authentication_encoding(envelope: Envelope) -> bytes:
    """As docs/PROTOCOL.md says it, not as the package does it."""
    kind = envelope.payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(envelope.payload), envelope.payload)


def test_a_signature_is_over_the_pre_authentication_encoding() -> None:
    envelope = codec.decode_envelope((WIRE / "signed.1.bin").read_bytes())
    assert codec.unseal(envelope) == RELEASE
    (signature,) = envelope.signatures
    Ed25519PublicKey.from_public_bytes(PUBLIC_KEY).verify(signature.signature, pre_authentication_encoding(envelope))


def test_keys_and_partitions() -> None:
    digest = "sha256:" + "ab" * 32
    assert REPOSITORY_KEY == b"repository"
    assert RegistryKey("version", "fraud", 3).encode() == b"version/fraud/3"
    assert RegistryKey("release", "fraud", 5).encode() == b"release/fraud/5"
    assert ChunkKey("fraud", digest, 262_144, 7).encode() == f"fraud/{digest}/262144/7".encode()
    assert blob_partition("fraud", digest, 4) == zlib.crc32(f"fraud/{digest}".encode()) % 4 == 1


def test_the_digest_of_a_version_is_over_its_files() -> None:
    lines = "".join(f"{entry.path}\0{entry.size}\0{entry.digest}\n" for entry in MANIFEST_1.files)
    assert MANIFEST_1.digest == f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert MANIFEST_1.digest == "sha256:de8947f639f6e7bbd8da034c353ed3a6bedd1be31549ac612ddaab3ac5987b32"
