"""Registry and status records to bytes and back; the wire format apart from the types.

- A registry value is a single-object `Envelope` whose payload is, again single-object, one of Manifest, Withdrawn,
  Release or Repository; the payload type in the envelope names which, so that what is signed says what it is.
- An envelope is read without looking into its payload: signatures are checked before payload bytes are parsed.
- `decode_x(encode_x(v)) == v` for every value; bytes that are not such a record raise WireError, never anything else.
- Declared sizes and counts are bounded here, before anyone allocates by them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from modelcast import schemas
from modelcast.avro import FRAME_BYTES, fingerprint_of
from modelcast.digest import is_digest
from modelcast.errors import NewerFormatError, UsageError, WireError
from modelcast.names import check_model_name
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
    NullRule,
    OutputSpec,
    Refusal,
    Release,
    RepositoryIdentity,
    Signature,
    Tolerance,
    Withdrawn,
)

T = TypeVar("T")
Payload = Manifest | Withdrawn | Release | RepositoryIdentity

# Far above any real model (the largest published ones are below 2 TB in some hundred thousand tensors), far below what
# would exhaust a consumer that allocates per file.
MAX_FILES = 200_000
MAX_FILE_BYTES = 1 << 40
MAX_MODEL_BYTES = 1 << 42
# A record can't be larger than the default limit of a broker, so neither can a chunk.
MAX_CHUNK_BYTES = 1_000_000
MAX_FIELDS = 100_000
MAX_STORE_CHARS = 2_000

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

_PAYLOAD_TYPE_PREFIX = "application/vnd.modelcast."
_PAYLOAD_TYPES: dict[type[Payload], str] = {
    RepositoryIdentity: f"{_PAYLOAD_TYPE_PREFIX}repository+avro",
    Manifest: f"{_PAYLOAD_TYPE_PREFIX}manifest+avro",
    Withdrawn: f"{_PAYLOAD_TYPE_PREFIX}withdrawn+avro",
    Release: f"{_PAYLOAD_TYPE_PREFIX}release+avro",
}


def seal(payload: Payload, *, hints: tuple[ChunkHint, ...] = ()) -> Envelope:
    """Wraps a payload in an unsigned envelope."""
    return Envelope(_PAYLOAD_TYPES[type(payload)], _encode_payload(payload), hints=hints)


def unseal(envelope: Envelope) -> Payload:
    """The payload of an envelope whose signatures were checked where they must be.

    Raises:
        WireError: The payload type is unknown, the bytes are not one, or a declared size is out of bounds.
        NewerFormatError: A newer modelcast wrote it.
    """
    reader = _READERS.get(envelope.payload_type)
    if reader is None:
        kind = NewerFormatError if envelope.payload_type.startswith(_PAYLOAD_TYPE_PREFIX) else WireError
        raise kind(f"payload type {envelope.payload_type!r} is not known to this version of modelcast")
    return reader(envelope.payload)


def encode_envelope(envelope: Envelope) -> bytes:
    """An envelope as a registry value."""
    return schemas.load("envelope").encode_single_object(asdict(envelope))


def decode_envelope(data: bytes) -> Envelope:
    """A registry value as an envelope, its payload unread. Raises WireError."""
    datum = _read("envelope", data)
    return Envelope(
        payload_type=datum["payload_type"],
        payload=datum["payload"],
        signatures=tuple(EnvelopeSignature(**entry) for entry in datum["signatures"]),
        hints=tuple(ChunkHint(**entry) for entry in datum["hints"]),
    )


def encode_status(status: InstanceStatus) -> bytes:
    """An instance's status as a value of the status topic."""
    return schemas.load("instance_status").encode_single_object(asdict(status))


def decode_status(data: bytes) -> InstanceStatus:
    """A value of the status topic. Raises WireError."""
    datum = _read("instance_status", data)
    models = tuple(
        ModelStatus(
            **{
                **entry,
                "state": ModelState(entry["state"]),
                "refusals": tuple(Refusal(**refusal) for refusal in entry["refusals"]),
            }
        )
        for entry in datum["models"]
    )
    return InstanceStatus(**{**datum, "models": models})


def _encode_payload(payload: Payload) -> bytes:
    datum = asdict(payload)
    match payload:
        case RepositoryIdentity():
            return schemas.load("repository").encode_single_object(datum)
        case Withdrawn():
            return schemas.load("withdrawn").encode_single_object(datum)
        case Release():
            return schemas.load("release").encode_single_object(datum)
        case Manifest():
            signature = datum.pop("signature")
            return schemas.load("manifest").encode_single_object({**datum, **signature})


def _decode_repository(data: bytes) -> RepositoryIdentity:
    identity = RepositoryIdentity(**_read("repository", data))
    # It becomes a part of paths in the state folders of publishers and consumers.
    _require(_UUID.fullmatch(identity.uuid) is not None, f"repository {identity.uuid[:100]!r}")
    return identity


def _decode_withdrawn(data: bytes) -> Withdrawn:
    withdrawn = Withdrawn(**_read("withdrawn", data))
    _check_scope(withdrawn.model, withdrawn.version)
    return withdrawn


def _decode_release(data: bytes) -> Release:
    release = Release(**_read("release", data))
    _check_scope(release.model, release.version)
    _require(release.sequence >= 1, f"release sequence {release.sequence}")
    _require(release.restores is None or 1 <= release.restores < release.sequence, f"restores {release.restores}")
    return release


def _decode_manifest(data: bytes) -> Manifest:
    datum = _read("manifest", data)
    inputs, outputs, nulls = datum.pop("inputs"), datum.pop("outputs"), datum.pop("nulls")
    manifest = Manifest(
        **{
            **datum,
            "files": tuple(FileEntry(**entry) for entry in datum["files"]),
            "gates": tuple(datum["gates"]),
            "tolerance": Tolerance(**datum["tolerance"]),
            "probe": None if datum["probe"] is None else LoadProbe(**datum["probe"]),
            "signature": Signature(
                tuple(InputBinding(**_tensor(entry), fields=tuple(entry["fields"])) for entry in inputs),
                tuple(OutputSpec(**_tensor(entry), field=entry["field"]) for entry in outputs),
                tuple(NullRule(**entry) for entry in nulls),
            ),
        }
    )
    _check_manifest(manifest)
    return manifest


_READERS: dict[str, Callable[[bytes], Payload]] = {
    _PAYLOAD_TYPES[RepositoryIdentity]: _decode_repository,
    _PAYLOAD_TYPES[Manifest]: _decode_manifest,
    _PAYLOAD_TYPES[Withdrawn]: _decode_withdrawn,
    _PAYLOAD_TYPES[Release]: _decode_release,
}


def _tensor(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {"name": entry["name"], "dtype": DType(entry["dtype"]), "shape": tuple(entry["shape"])}


def _check_manifest(manifest: Manifest) -> None:
    _check_scope(manifest.model, manifest.version)
    _require(1 <= manifest.chunk_bytes <= MAX_CHUNK_BYTES, f"chunk size {manifest.chunk_bytes}")
    _require(1 <= len(manifest.files) <= MAX_FILES, f"{len(manifest.files)} files")
    _require(manifest.store is None or len(manifest.store) <= MAX_STORE_CHARS, "a store's URL too long")
    named = sum(len(binding.fields) for binding in manifest.signature.inputs)
    if named > MAX_FIELDS:  # each field counts once
        _require(len(manifest.signature.fields) <= MAX_FIELDS, f"{len(manifest.signature.fields)} fields")
    ruled = [rule.field for rule in manifest.signature.nulls]
    if ruled:
        _require(len(set(ruled)) == len(ruled), "what null counts as, twice for a field")
        _require(
            set(ruled) <= set(manifest.signature.fields), "what null counts as, for a field the model does not take"
        )
    told = manifest.tolerance
    # One that is no number agrees with every output.
    for allowed in (told.relative, told.absolute):
        _require(0 <= allowed < math.inf, f"a tolerance of {allowed}")
    paths = [entry.path for entry in manifest.files]
    _require(len(set(paths)) == len(paths), "a path twice")
    _require(paths == sorted(paths), "paths out of order")
    for entry in manifest.files:
        _require(0 <= entry.size <= MAX_FILE_BYTES, f"{entry.size} bytes for file {entry.path!r}")
        _require(is_digest(entry.digest), f"digest {entry.digest!r} of file {entry.path!r}")
    _require(manifest.size_bytes <= MAX_MODEL_BYTES, f"{manifest.size_bytes} bytes in all")


def _check_scope(model: str, version: int) -> None:
    try:
        check_model_name(model)
    except UsageError as error:
        raise WireError(f"declares model {model!r}") from error
    _require(version >= 1, f"version {version}")


def _require(condition: bool, declared: str) -> None:
    if not condition:
        raise WireError(f"declares {declared}, which is out of bounds")


def _read(name: str, data: bytes) -> Any:
    today = schemas.load(name)
    for schema in schemas.versions(name):
        if data.startswith(schema.frame):
            return schema.decode(data, start=FRAME_BYTES, reader=None if schema is today else today)
    if fingerprint_of(data) is not None:
        raise NewerFormatError(f"not a {name} record, or one written by a newer modelcast")
    raise WireError(f"not a {name} record")
