"""Readers of what stands on the repository's own topics: registry records, statuses, schemas."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from modelcast import codec, digest, schemas
from modelcast.avro import FRAME_BYTES, Schema, inlined
from modelcast.consumer.binding import Binding
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.errors import ModelRefusedError, SourceError, UsageError, WireError
from modelcast.events.writers import AvroWriter
from modelcast.files.notes import Note
from modelcast.fleet.describe import describe_fleet, describe_rollout
from modelcast.fleet.fleet import Roster, rollout
from modelcast.fleet.table import fleet_table, problem_lines, summary, versions
from modelcast.log import LogRecord
from modelcast.names import ModelRef, ModelVersion
from modelcast.protobuf import ProtobufSchema
from modelcast.records import (
    DType,
    Envelope,
    InstanceStatus,
    Manifest,
    ModelState,
    ModelStatus,
    Refusal,
    Release,
    RepositoryIdentity,
    Withdrawn,
)
from modelcast.registry.delta import MAX_FAULT_CHARS, MAX_FAULTS, RegistryDelta
from modelcast.registry.describe import describe
from modelcast.registry.image import RegistryImage
from modelcast.tensors import FieldSpec
from modelcast.topics import ChunkKey, RegistryKey
from modelcast.trust.admission import EVERYTHING, Admission
from tests.unit import trust_rig
from tests.unit.protobuf_schemas import transactions
from tests.unit.registry_records import REPOSITORY, key_of, manifest, records, release, withdrawn

from .damage import damaged
from .data import Forger
from .entropy import Entropy, pick
from .reader import Reader, check_told
from .shapes import ENUM, NODE, TREE, record

_RELEASES = (release(1, 1), release(2, 2), release(3, 1, restores=1))
_PAYLOADS = (REPOSITORY, manifest(1), manifest(2), *_RELEASES, withdrawn(2))
_STATUS = InstanceStatus(
    REPOSITORY.uuid,
    "host.1",
    "host",
    7,
    "scorer",
    "cpu",
    1_700_000_000_000,
    {"onnxruntime": "1.23.0"},
    (
        ModelStatus("fraud", None, ModelState.LIVE, 3, 1_700_000_000_000, 12.5, 99.0, 2),
        ModelStatus("churn", 2, ModelState.LOADING, refusals=(Refusal(2, "golden", "not reproduced", 5),), lag=9),
    ),
)
# Of both, behind each record of a packed topic.
_LENGTHS = struct.Struct("<HH")
_ABSENT = 0xFFFF
_MOST_RECORDS = 8


def readers() -> list[Reader]:
    """Envelopes, the payloads in them, whole registries under a policy and without one, statuses, schemas."""
    return [
        _avro_reader("envelope", "envelope", [r.value or b"" for r in records(*_PAYLOADS)], _envelope),
        _payload_reader("manifest", Manifest, _check_manifest),
        _payload_reader("release", Release, _check_release),
        _payload_reader("withdrawn", Withdrawn, lambda payload: ModelVersion(payload.model, payload.version)),
        _payload_reader("repository", RepositoryIdentity, lambda payload: RegistryDelta(RegistryImage())),
        _avro_reader("status", "instance_status", [codec.encode_status(_STATUS)], _status),
        Reader("fleet", [_packed([(b"host.1", codec.encode_status(_STATUS))])], _fleet, draw=_fleet_drawn, share=20),
        Reader("registry", [_REGISTRY], _registry, draw=_drawn_from(_REGISTRY), share=60),
        Reader("signed registry", [_SIGNED], _signed_registry, draw=_drawn_from(_SIGNED), share=20),
        Reader("keys", [b"version/fraud/1", b"release/fraud/12", _CHUNK_KEY.encode()], _keys),
        Reader("model reference", [b"fraud", b"fraud@12"], lambda data: ModelRef.parse(_text(data)), (UsageError,)),
        Reader("avro schema", _SCHEMAS, _schema, (SourceError,), share=20),
        Reader("avro schema of parts", [_packed([(_PARTS[0], _PARTS[1])])], _parts, (SourceError,), share=60),
        Reader("protobuf schema", [transactions().SerializeToString()], _protobuf, (SourceError, WireError), share=60),
    ]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _avro_reader(name: str, schema: str, seeds: Sequence[bytes], read: Callable[[bytes], object]) -> Reader:
    """Seeds damaged, some of their values tampered with, and data of the schema that nobody would write."""
    written = schemas.load(schema)
    whole = [written.decode(seed, start=FRAME_BYTES) for seed in seeds]

    def draw(entropy: Entropy) -> bytes:
        how = entropy.number(0, 7)
        if how < 3:
            return damaged(entropy, pick(entropy, seeds), seeds) or b""
        forger = Forger(written.definition, random.Random(entropy.number(0, 2**32 - 1)))
        return written.encode_single_object(forger.made_up() if how == 7 else forger.tampered(pick(entropy, whole)))

    return Reader(name, seeds, read, (WireError,), draw)


def _payload_reader(name: str, kind: type[codec.Payload], check: Callable[[Any], object]) -> Reader:
    seeds = [codec.seal(payload) for payload in _PAYLOADS if isinstance(payload, kind)]

    def read(data: bytes) -> None:
        payload = codec.unseal(Envelope(seeds[0].payload_type, data))
        assert isinstance(payload, kind)
        again = codec.seal(payload)
        assert codec.seal(codec.unseal(again)) == again
        check(payload)

    return _avro_reader(name, name, [seed.payload for seed in seeds], read)


def _envelope(data: bytes) -> None:
    envelope = codec.decode_envelope(data)
    again = codec.encode_envelope(envelope)
    assert codec.encode_envelope(codec.decode_envelope(again)) == again
    for model in ("fraud", "other"):
        assert not _ADMISSION.judge(model, envelope).admitted, "nobody signed it"


def _check_manifest(found: Manifest) -> None:
    """What a consumer does with one before it fetches anything."""
    assert 0 <= found.size_bytes <= codec.MAX_MODEL_BYTES
    assert len(found.files) <= codec.MAX_FILES
    assert found.version >= 1
    json.dumps(describe(found), allow_nan=False)
    assert len(Note.of(found).key) == 32
    try:
        for entry in found.files:
            _take_file(entry, found.chunk_bytes)
        Binding(found.signature)
    except ModelRefusedError as error:
        check_told(str(error))


def _take_file(entry: Any, chunk_bytes: int) -> None:
    from modelcast.blobs import FileAssembly, check_path

    check_path(entry.path)
    assert FileAssembly(entry, chunk_bytes).missing >= 0


def _check_release(found: Release) -> None:
    assert found.sequence >= 1
    assert found.version >= 1
    assert found.origin <= found.sequence


def _status(data: bytes) -> None:
    again = codec.encode_status(codec.decode_status(data))
    assert codec.encode_status(codec.decode_status(again)) == again


def _fleet(data: bytes) -> None:
    """A status as `status` and `top` show it: what they print is for a terminal, whatever a status says."""
    roster = Roster()
    for key, value in _unpacked(data):
        roster.replay(LogRecord("s", 0, 0, 0, key, value), 1_700_000_000_000)
    fleet = roster.fleet(1_700_000_001_000)
    json.dumps(describe_fleet(fleet))
    json.dumps(describe_rollout(rollout(fleet, ModelVersion("fraud", 3))))
    fleet.select(models=["fr*"], instances=["h*"]).problems()
    _CONSOLE.begin_capture()
    for shown in (fleet_table(fleet, 100), summary(fleet), *versions(fleet), *problem_lines(fleet.problems())):
        _CONSOLE.print(shown)
    text = _CONSOLE.end_capture()
    assert "\x1b" not in text, "a status steers the terminal"


def _fleet_drawn(entropy: Entropy) -> bytes:
    schema = schemas.load("instance_status")
    forger = Forger(schema.definition, random.Random(entropy.number(0, 2**32 - 1)))
    whole = schema.decode(codec.encode_status(_STATUS), start=FRAME_BYTES)
    status = forger.tampered(whole) if entropy.number(0, 3) else forger.made_up()
    key = str(status["instance"]).encode()
    value = schema.encode_single_object(status)
    return _packed([(key if entropy.number(0, 7) else damaged(entropy, key, [b"host"]), value)])


_CONSOLE = Console(width=100, force_terminal=False, color_system=None)
_CHUNK_KEY = ChunkKey("fraud", "sha256:" + "1" * 64, 1024, 12)


def _packed(pairs: Sequence[tuple[bytes | None, bytes | None]]) -> bytes:
    """Records as bytes: a key, a value, and behind each the lengths of both."""
    return b"".join(
        _LENGTHS.pack(*(_ABSENT if part is None else min(len(part), _ABSENT - 1) for part in pair))
        + b"".join((part or b"")[: _ABSENT - 1] for part in pair)
        for pair in pairs
    )


def _unpacked(data: bytes) -> list[tuple[bytes | None, bytes | None]]:
    """The records; what is cut short is as long as what is there."""
    found: list[tuple[bytes | None, bytes | None]] = []
    at = 0
    while at + _LENGTHS.size <= len(data) and len(found) < 4 * _MOST_RECORDS:
        lengths = _LENGTHS.unpack_from(data, at)
        at += _LENGTHS.size
        parts: list[bytes | None] = []
        for length in lengths:
            size = 0 if length == _ABSENT else length
            parts.append(None if length == _ABSENT else data[at : at + size])
            at += size
        found.append((parts[0], parts[1]))
    return found


def _drawn_from(whole: bytes) -> Callable[[Entropy], bytes]:
    """Records of a topic, some damaged, some doubled, some elsewhere."""
    pairs = _unpacked(whole)

    def draw(entropy: Entropy) -> bytes:
        chosen = list(pairs) if entropy.number(0, 3) else [pick(entropy, pairs) for _ in range(_MOST_RECORDS)]
        for _ in range(entropy.number(1, 4)):
            place = entropy.number(0, len(chosen) - 1)
            key, value = chosen[place]
            match entropy.number(0, 3):
                case 0:
                    chosen[place] = (damaged(entropy, key, [other for other, _ in chosen]), value)
                case 1:
                    chosen[place] = (pick(entropy, chosen)[0], value)
                case _:
                    chosen[place] = (key, damaged(entropy, value, [other for _, other in chosen]))
        return _packed(chosen)

    return draw


def _image(data: bytes, admission: Admission) -> RegistryImage:
    pairs = _unpacked(data)
    delta = RegistryDelta(RegistryImage(), admission)
    for offset, (key, value) in enumerate(pairs):
        delta.replay(LogRecord("r", 0, offset, 0, key, value))
    image = delta.apply()
    assert image.revision == len(pairs)
    assert len(image.faults) <= MAX_FAULTS
    assert all(len(fault.message) <= MAX_FAULT_CHARS for fault in image.faults)
    for name, entry in image.models.items():
        assert image.next_version(name) > max(entry.versions, default=0)
        assert image.next_sequence(name) > max((one.sequence for one in entry.releases), default=0)
        for number, version in entry.versions.items():
            assert isinstance(version, Withdrawn) or version.manifest.id == ModelVersion(name, number)
        assert entry.champion is None or entry.champion.model == name
        assert entry.rollback_target() in (None, *entry.releases)
    return image


def _registry(data: bytes) -> None:
    _image(data, EVERYTHING)


def _signed_registry(data: bytes) -> None:
    """Nothing counts that the key's owner did not sign, wherever it stands."""
    image = _image(data, _ADMISSION)
    for entry in image.models.values():
        for version in entry.versions.values():
            assert (version if isinstance(version, Withdrawn) else version.manifest) in _SIGNED_PAYLOADS
        for one in entry.releases:
            assert one in _SIGNED_PAYLOADS


_ADMISSION = trust_rig.admission("fraud*: alice", "churn: alice bob: 2")
_SIGNED_PAYLOADS = (manifest(1), manifest(2), release(1, 1), release(2, 2), withdrawn(2), manifest(1, model="churn"))
_REGISTRY = _packed([(entry.key, entry.value) for entry in records(*_PAYLOADS)])
_SIGNED = _packed([
    (key_of(payload), codec.encode_envelope(trust_rig.sealed(payload, *names)))
    for payload, names in [
        (REPOSITORY, ()),
        *((payload, ("alice",)) for payload in _SIGNED_PAYLOADS[:-1]),
        (_SIGNED_PAYLOADS[-1], ("alice", "bob")),
        (release(9, 1), ("carol",)),
        (manifest(9), ()),
    ]
])  # fmt: skip


def _keys(data: bytes) -> None:
    found = RegistryKey.decode(data)
    assert found is None or (found.encode() == data.decode("utf-8", "replace").encode() and found.number < 2**64)
    chunk = ChunkKey.decode(data)
    assert chunk is None or chunk.encode() == data.decode("utf-8", "replace").encode()
    assert digest.is_digest(_text(data)) in (True, False)


_DECIMAL = {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2}
_SCHEMAS: Sequence[bytes] = [
    json.dumps(definition).encode()
    for definition in (
        record("Flat", id="string", amount="float", kind=ENUM, price=_DECIMAL, maybe=["null", "double"]),
        record("List", head=["null", NODE], tree=TREE, more={"type": "array", "items": "null"}),
        {"type": "record", "name": "a.b.C", "aliases": ["d"], "doc": "…", "fields": [
            {"name": "x", "type": {"type": "fixed", "name": "F", "size": 12}, "default": "", "order": "ignore"},
        ]},
    )
]  # fmt: skip
_PARTS = (
    json.dumps(record("Event", card="shop.Card", other=["null", "shop.Card"])).encode(),
    json.dumps({**record("Card", limit="double"), "namespace": "shop"}).encode(),
)
_SPECS = (FieldSpec("amount", DType.FLOAT64), FieldSpec("id", DType.STRING))
_HUGE = b"\x80\x80\x80\x80\x80\x80\x80\x80\x20"
_SAMPLES = (b"", bytes(40), b"\x02a\x00\x00\x80?\x00\x04\x01\x02", b"\xff" * 30, _HUGE * 4)


class _Known:
    """A source of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._writer = AvroWriter(schema)

    def find(self, frame: bytes) -> AvroWriter:
        return self._writer


def _schema(data: bytes) -> None:
    """A schema from a topic, and events by it: what it makes of them is a prediction's input or a reason."""
    schema = Schema.parse(data)
    assert len(schema.frame) == 10
    decoder = BatchDecoder(_SPECS, _Known(schema))
    decoded = decoder.decode([schema.frame + sample for sample in _SAMPLES])
    assert len(decoded.poison) + len(decoded.columns["amount"]) == len(_SAMPLES)
    for sample in _SAMPLES:
        try:
            schema.decode(sample)
        except WireError as error:
            check_told(str(error))


def _parts(data: bytes) -> None:
    texts = [part.decode("utf-8", "replace") for pair in _unpacked(data) for part in pair if part is not None]
    if texts:
        assert inlined(texts[0], texts[1:]).frame


def _protobuf(data: bytes) -> None:
    schema = ProtobufSchema.parse(data, {})
    kind = schema.message((0,))
    assert all(field.name == name for name, field in kind.fields.items())
    assert isinstance(kind.as_json(b""), Mapping)
    assert not math.isnan(len(kind.name))
