"""Registry records for tests: small, valid values and the log records that carry them."""

from __future__ import annotations

from modelcast import codec
from modelcast.log import LogRecord
from modelcast.records import (
    ChunkHint,
    DType,
    FileEntry,
    InputBinding,
    Manifest,
    OutputSpec,
    Release,
    RepositoryIdentity,
    Signature,
    Withdrawn,
)
from modelcast.topics import REPOSITORY_KEY, RegistryKey

REPOSITORY = RepositoryIdentity("0b7a4c1e-0000-4000-8000-000000000001", 1_700_000_000_000, 1)
SIGNATURE = Signature(
    (InputBinding("x", DType.FLOAT32, (None, 2), ("amount", "age")),),
    (OutputSpec.named("score", DType.FLOAT32, (None,)),),
)


def manifest(version: int, *, model: str = "fraud", repository: str = REPOSITORY.uuid) -> Manifest:
    return Manifest(
        repository=repository,
        model=model,
        version=version,
        created_ms=1_700_000_000_000 + version,
        created_by="test",
        message=f"version {version}",
        files=(
            FileEntry("examples.npz", 10, "sha256:" + "e" * 64),
            FileEntry("model.onnx", 20 + version, "sha256:" + f"{version:064x}"),
        ),
        chunk_bytes=1024,
        signature=SIGNATURE,
        ir_version=10,
        opsets={"": 21},
        metrics={"auc": 0.9},
    )


def release(sequence: int, version: int, *, model: str = "fraud", restores: int | None = None) -> Release:
    return Release(REPOSITORY.uuid, model, sequence, version, 1_700_000_000_000 + sequence, "test", "", restores)


def withdrawn(version: int, *, model: str = "fraud") -> Withdrawn:
    return Withdrawn(REPOSITORY.uuid, model, version, 1_700_000_000_000, "test", "trained on the wrong data")


def records(*payloads: codec.Payload, hints: tuple[ChunkHint, ...] = ()) -> list[LogRecord]:
    """The payloads as consecutive records of the registry topic, from offset 0."""
    return [
        LogRecord("r", 0, offset, 0, key_of(payload), codec.encode_envelope(codec.seal(payload, hints=hints)))
        for offset, payload in enumerate(payloads)
    ]


def key_of(payload: codec.Payload) -> bytes:
    match payload:
        case RepositoryIdentity():
            return REPOSITORY_KEY
        case Release():
            return RegistryKey("release", payload.model, payload.sequence).encode()
        case Manifest() | Withdrawn():
            return RegistryKey("version", payload.model, payload.version).encode()
