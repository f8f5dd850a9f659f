"""Readers of files: what people write (properties, policies, keys, tables), and what earlier runs left behind."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from modelcast.config import Connection, read_properties
from modelcast.consumer.quarantine import Quarantine
from modelcast.consumer.snapshot import Snapshot, SnapshotStore, image_of
from modelcast.consumer.state import Marks
from modelcast.dev.process import Process
from modelcast.dev.state import STATE_FILE, DevState
from modelcast.errors import BrokerError, ConfigError, SourceError, UsageError
from modelcast.files.notes import Note, Notes
from modelcast.files.pull import MANIFEST_NAME, _check_place
from modelcast.log import LogRecord
from modelcast.publisher.leftovers import Leftovers
from modelcast.registry.describe import describe
from modelcast.tables import read_table
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics
from modelcast.trust.admission import EVERYTHING
from modelcast.trust.clock import FILE_NAME, SteadyClock
from modelcast.trust.keys import PublicKey, generate, load, load_public
from modelcast.trust.policy import read_policy
from modelcast.trust.writing import revoke_key
from tests.unit import trust_rig
from tests.unit.registry_records import REPOSITORY, manifest, records, release

from .reader import Reader

_SCOPE = "modelcast at localhost:9092"
_NOW_MS = 1_700_000_000_000
_NOTE = Note.of(manifest(3))
_CONTENT = "1" * 64


def readers() -> list[Reader]:
    """One for each kind of file."""
    return [
        Reader("client.properties", _PROPERTIES, _properties, (ConfigError,)),
        Reader("trust policy", _POLICIES, _policy, (ConfigError,), share=60),
        Reader("trust policy changed", _POLICIES, _revoked, (ConfigError, UsageError), share=5),
        Reader("public key", [_key(".pub"), _key_pem()], _public_key, (ConfigError, UsageError)),
        Reader("private key", [_key(".key")], _private_key, (ConfigError,), share=60),
        Reader("table.csv", [b"id,amount\na,1\nb,\n", b"x;y\n1.5;NA\n"], _table("table.csv"), (SourceError,), share=4),
        Reader("table.jsonl", [b'{"id": "a", "amount": 1}\n{"id": "b", "more": [1, {"a": null}]}\n'],
               _table("table.jsonl"), (SourceError,), share=4),
        Reader("cache note", [json.dumps(_NOTE_JSON).encode()], _note),
        Reader("snapshot", [_snapshot()], _read_snapshot),
        Reader("snapshot behind its digest", [_snapshot().partition(b"\n")[2]], _sealed_snapshot, share=60),
        Reader("release marks", _MARKS, _marks, (ConfigError,)),
        Reader("crash marker", [b'{"version": "fraud@3"}'], _marker),
        Reader("clock", [b'{"floor_ms": 1700000000000}'], _clock),
        Reader("dev broker", [json.dumps(asdict(_DEV)).encode()], _dev_state),
        Reader("upload mark", [b'{"0": 12, "3": 0}'], _upload_mark, (BrokerError,), share=60),
        Reader("pulled manifest", [json.dumps(describe(manifest(1))).encode()], _pulled, (UsageError,)),
    ]  # fmt: skip


@functools.cache
def _desk() -> Path:
    """A folder of this process's, in memory where there is such a place; gone with the process."""
    shared = Path("/dev/shm")
    _desk_holder.append(tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None))
    return Path(_desk_holder[0].name)


_desk_holder: list[tempfile.TemporaryDirectory[str]] = []


def put(name: str, data: bytes) -> Path:
    """A file of this name that holds `data`."""
    path = _desk() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


_PROPERTIES: Sequence[bytes] = [
    b"bootstrap.servers=localhost:9092\n# a comment\n\n! another\nsasl.password=geheim=\nsecurity.protocol = SSL\n",
    b"ssl.ca.location=/etc/ca.pem\r\nclient.id=\xc3\xa4\r\nschema.registry.url=http://user:pw@localhost:8081\r\n",
]


def _properties(data: bytes) -> None:
    path = put("client.properties", data)
    try:
        found = read_properties(path)
    except ConfigError as error:
        if "geheim" in str(error):
            raise AssertionError("an error shows a password") from error
        raise
    assert all(key == key.strip() and key for key in found)
    assert all(value == value.strip() for value in found.values())
    connection = Connection.resolve("localhost:1", properties_file=path, environment={})
    assert connection.bootstrap_servers == "localhost:1"
    assert "geheim" not in repr(connection)
    assert not any(key.startswith("schema.registry.") for key in connection.settings)


_POLICIES: Sequence[bytes] = [
    trust_rig.policy_text(
        "fraud*: alice bob: 2", "*: carol", alice="expires = 2027-01-01", bob='revoked = "lost"'
    ).encode(),
    b'repository = "0b7a4c1e-0000-4000-8000-000000000001"\n'
    + trust_rig.policy_text(keys=("alice",)).encode()
    + b'max_age = "30d"\nwhen_stale = "stop"\n',
]  # fmt: skip


def _policy(data: bytes) -> None:
    policy = read_policy(put("trust.toml", data))
    for rule in policy.rules:
        assert rule.models
        assert 1 <= rule.threshold <= len(rule.keys)
        assert set(rule.keys) <= set(policy.keys)
        assert rule.max_age_ms is None or rule.max_age_ms > 0
    assert len(policy.by_id) == len(policy.keys), "two keys are one"
    assert policy.rule_for("fraud") in (None, *policy.rules)
    assert policy.expired(2**62) <= set(policy.keys)


def _revoked(data: bytes) -> None:
    """What `keys revoke` writes is again a policy, with that key revoked and all else as it was."""
    path = put("trust.toml", data)
    before = read_policy(path)
    after = revoke_key(path, "alice", "stolen")
    assert after == read_policy(path)
    assert after.keys["alice"].revoked == "stolen"
    assert (after.rules, after.repository, set(after.keys)) == (before.rules, before.repository, set(before.keys))


@functools.cache
def _key(suffix: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        generate("alice", Path(folder))
        return (Path(folder) / f"alice{suffix}").read_bytes()


def _key_pem() -> bytes:
    body = b"MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
    return b"-----BEGIN PUBLIC KEY-----\n" + body + b"\n-----END PUBLIC KEY-----\n"


def _public_key(data: bytes) -> None:
    path = put("alice.pub", data)
    name, public = load_public(path, _desk())
    assert name.isascii()
    assert name.isprintable()
    assert PublicKey.parse(str(public)) == public
    assert len(public.key_id) == 64
    assert not public.verifies("type", b"payload", bytes(64))


def _private_key(data: bytes) -> None:
    path = put("alice.key", data)
    path.chmod(0o600)
    key = load(path, _desk(), ask=lambda _: "a passphrase")
    assert key.public.verifies("type", b"payload", key.sign("type", b"payload").signature)


def _table(name: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        assert read_table(put(name, data)).height > 0

    return read


_NOTE_JSON = {
    "repository": _NOTE.repository,
    "model": _NOTE.model,
    "version": _NOTE.version,
    "files": [[entry.path, entry.size, entry.digest] for entry in _NOTE.files],
}


def _note(data: bytes) -> None:
    path = put("notes/one.json", data)
    notes = Notes(path.parent)
    for note, used_ms in notes.all():
        assert len(note.key) == 32
        assert used_ms > 0
    notes.keep_only({entry.digest for entry in _NOTE.files})


def _snapshot() -> bytes:
    store = SnapshotStore(_desk() / "scopes", _SCOPE)
    kept = tuple(records(REPOSITORY, manifest(1), manifest(2), release(1, 1), release(2, 2)))
    store.save(Snapshot("fraud", 5, tuple(LogRecord("", 0, r.offset, 0, r.key, r.value) for r in kept)))
    return _snapshot_path().read_bytes()


def _snapshot_path() -> Path:
    return _desk() / "scopes" / hashlib.sha256(_SCOPE.encode()).hexdigest()[:32] / "fraud.json"


def _read_snapshot(data: bytes) -> None:
    _snapshot_path().write_bytes(data)
    store = SnapshotStore(_desk() / "scopes", _SCOPE)
    for snapshot in store.load(["fraud"]):
        image = image_of([snapshot], EVERYTHING)
        assert image is None or set(image.models) <= {"fraud"} or snapshot.records
        assert snapshot.model == "fraud"


def _sealed_snapshot(data: bytes) -> None:
    """Somebody who can write the cache can make the digest fit too."""
    _read_snapshot(hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


_MARKS: Sequence[bytes] = [
    b'{"fraud": 12, "churn": 1}',
    b'{"fraud": [{"sequence": 12, "signers": ["a", "b"]}, {"sequence": 9, "signers": []}], "churn": 4}',
]


def _marks(data: bytes) -> None:
    path = put("state/marks/0b7a4c1e.json", data)
    marks = Marks(path.parent.parent)
    for model in ("fraud", "churn", "other"):
        assert isinstance(marks.get("0b7a4c1e", model), int)
        assert marks.get("0b7a4c1e", model, lambda signers: "a" not in signers) <= marks.get("0b7a4c1e", model)


def _marker(data: bytes) -> None:
    put(f"quarantine/crashes/{_CONTENT}.1", data)
    (suspect,) = Quarantine(_desk() / "quarantine").suspects()
    assert suspect.content == f"sha256:{_CONTENT}"
    assert len(suspect.name) <= 1024


def _clock(data: bytes) -> None:
    path = put(f"clock/{FILE_NAME}", data)
    now_ms = SteadyClock(path.parent, system_ms=lambda: _NOW_MS, monotonic_s=lambda: 0.0).now_ms()
    assert now_ms >= _NOW_MS


_DEV = DevState(9092, Process(12, "boot 34"), "2026-01-01T00:00:00Z", True)


def _dev_state(data: bytes) -> None:
    state = DevState.load(put(f"dev/{STATE_FILE}", data).parent)
    assert state is None or state.bootstrap_servers.startswith("127.0.0.1:")
    assert state is None or state.alive() in (True, False)


def _upload_mark(data: bytes) -> None:
    log = MemoryLog()
    topics = Topics()
    for spec in topics.specs(blob_partitions=4, replication_factor=1):
        log.create(spec)
    leftovers = Leftovers(log, topics, "fraud", REPOSITORY.uuid, 1024)
    leftovers._mark = put("uploads/mark.json", data)
    assert not leftovers.find(_desk(), [], {0, 1, 2, 3})


def _pulled(data: bytes) -> None:
    folder = put(f"pulled/{MANIFEST_NAME}", data).parent
    (folder / "model.onnx").write_bytes(b"")
    _check_place(folder, force=True)
