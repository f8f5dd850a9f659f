"""Trust on a real broker: what an attacker who can write to the topics gets done, which is nothing that goes live."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelcast import codec
from modelcast.cli import main
from modelcast.config import Connection
from modelcast.consumer import ModelClient, following
from modelcast.log import BEGINNING, Log, LogRecord
from modelcast.publisher import ModelPublisher
from modelcast.publisher.session import RegistryWriter
from modelcast.records import Envelope, Release
from modelcast.registry.repository import init
from modelcast.scan import scan
from modelcast.testing.broker import unique_name
from modelcast.topics import RegistryKey, Topics
from modelcast.trust.keys import generate, load
from modelcast.trust.signing import key_folder, signed
from modelcast.trust.writing import revoke_key, trust_key
from tests.brokers import Broker
from tests.publishing import Shell, write_model, write_rows
from tests.unit.control_rig import wait_until
from tests.unit.linear_model import linear_model


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"MODELCAST_{variable}_DIR", str(tmp_path / variable.lower()))
    for variable in ("MODELCAST_TRUST_POLICY", "MODELCAST_SIGNING_KEY", "MODELCAST_KEY_PASSPHRASE"):
        monkeypatch.delenv(variable, raising=False)


class World:
    """Repositories on one broker, keys, a policy, and someone who can write wherever they like."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.policy = folder / "trust.toml"
        self.models = 0
        for name in ("alice", "mallory"):
            generate(name, key_folder())
        trust_key(self.policy, "alice", load("alice", key_folder()).public, ["*"])

    def repository(self, *, made: bool = True) -> Connection:
        connection = Connection.resolve(self.broker.bootstrap_servers, prefix=unique_name("repository"))
        with closing(connection.open_log()) as log:
            if made:
                init(log, connection.topics, blob_partitions=2)
            else:  # topics only: the attacker brings the records
                for spec in connection.topics.specs(blob_partitions=2, replication_factor=1):
                    log.create(spec)
        return connection

    def publish(self, connection: Connection, *, model: str = "fraud", by: Sequence[str] = ("alice",)) -> None:
        self.models += 1
        prepared = linear_model(self.folder / f"source-{self.models}", float(self.models))
        with closing(connection.open_log()) as log:
            signers = [load(name, key_folder()) for name in by]
            RegistryWriter(log, connection.topics, signers=signers).publish(model, prepared, release=True)

    def client(self, connection: Connection) -> ModelClient:
        return ModelClient(
            connection=connection,
            cache_dir=self.folder / "cache",
            state_dir=self.folder / "client-state",
            device="cpu",
            trust_policy=self.policy,
        )


@pytest.fixture
def world(broker: Broker, tmp_path: Path) -> World:
    return World(broker, tmp_path)


def registry_records(log: Log, topics: Topics) -> list[LogRecord]:
    ends = log.end_offsets(topics.registry, committed=False)
    return list(scan(log, topics.registry, {0: BEGINNING}, ends, timeout_s=60))


def copy(log: Log, records: Sequence[LogRecord], topic: str) -> None:
    with closing(log.writer()) as writer:
        for record in records:
            writer.send(topic, key=record.key, value=record.value, partition=record.partition)
        writer.flush(60.0)


def copy_chunks(log: Log, one: Topics, other: Topics) -> None:
    ends = log.end_offsets(one.blobs, committed=False)
    copy(log, list(scan(log, one.blobs, dict.fromkeys(ends, BEGINNING), ends, timeout_s=60)), other.blobs)


def test_f11_an_old_release_replayed_on_another_log_with_a_restart_between_is_refused(world: World) -> None:
    """Row 11. Whoever holds the brokers puts up a copy of the log as it was before the last release."""
    genuine, replayed = world.repository(), world.repository(made=False)
    world.publish(genuine)
    with closing(genuine.open_log()) as log:
        old = registry_records(log, genuine.topics)
    world.publish(genuine)
    with world.client(genuine) as client:
        assert client["fraud"].version == 2
    with closing(genuine.open_log()) as log:
        copy(log, old, replayed.topics.registry)
        copy_chunks(log, genuine.topics, replayed.topics)
    with world.client(replayed) as client:
        fraud = client.model("fraud")
        wait_until(lambda: fraud.refusals, "the refusal")
        assert (fraud.version, [refusal.reason for refusal in fraud.refusals]) == (None, ["replayed"])
    with world.client(genuine) as client:  # nothing is spoilt by the attempt
        assert client["fraud"].version == 2


def test_f15_a_manifest_of_another_repository_model_or_number_counts_nowhere_else(world: World) -> None:
    """Row 15. Genuine, signed records, copied to where they were not made for."""
    genuine, other = world.repository(), world.repository()
    world.publish(genuine)
    world.publish(genuine, model="churn")
    with closing(genuine.open_log()) as log:
        records = registry_records(log, genuine.topics)
        by_key = {record.key: record for record in records}
        copy(log, [record for record in records if record.key != b"repository"], other.topics.registry)
        churn = by_key[RegistryKey("version", "churn", 1).encode()]
        moved = [replace(churn, key=RegistryKey("version", "fraud", number).encode()) for number in (1, 2)]
        release = replace(
            by_key[RegistryKey("release", "fraud", 1).encode()], key=RegistryKey("release", "fraud", 2).encode()
        )
        copy(log, [*moved, release], genuine.topics.registry)
        copy_chunks(log, genuine.topics, other.topics)
    with world.client(other) as client:
        fraud = client.model("fraud")
        wait_until(lambda: client._plane.image is not None, "the registry")
        assert (fraud.version, client._plane.image.models) == (None, {})
        assert all("was made for" in fault.message for fault in client._plane.image.faults)
    with world.client(genuine) as client:
        assert client["fraud"].version == 1
        assert list(client._plane.image.models["fraud"].versions) == [1]


def test_f14_after_a_leak_revoking_the_key_is_enough_for_consumers_and_publishers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 14, end to end: mallory's key is trusted, leaks, runs the sequence up, and is revoked while all run."""
    monkeypatch.setattr(following, "PROBE_S", 0.2)
    trust_key(world.policy, "mallory", load("mallory", key_folder()).public, ["*"])
    connection = world.repository()
    world.publish(connection)
    with closing(connection.open_log()) as log, world.client(connection) as client:
        fraud = client["fraud"]
        uuid = client.status.repository
        far = Release(uuid, "fraud", 1 << 60, 1, 0, "mallory", "")
        put_envelope(log, connection.topics, far, signed(codec.seal(far), [load("mallory", key_folder())]))
        wait_until(lambda: client._plane.image.models["fraud"].champion.sequence == 1 << 60, "the leaked key's release")
        world.publish(connection, by=("mallory",))
        wait_until(lambda: fraud.version == 2, "mallory's version")
        revoke_key(world.policy, "mallory", "leaked")
        wait_until(lambda: fraud.version == 1, "the last genuine version")
        with ModelPublisher.connect(connection, signing_keys=["alice"], trust_policy=world.policy) as publisher:
            made = publisher.release("fraud", 1)
            assert made.sequence == 1
        world_model = write_model(world.folder / "fresh.onnx", bias=9.0)
        rows = write_rows(world.folder / "rows.csv")
        with ModelPublisher.connect(connection, signing_keys=["alice"], trust_policy=world.policy) as publisher:
            published = publisher.publish("fraud", world_model, examples=rows, fields=["amount", "age"], release=True)
        assert published.release is not None
        # Her version 2 may lie in somebody's logs under that number.
        assert (published.manifest.version, published.release.sequence) == (3, 2)
        wait_until(lambda: fraud.version == 3, "the genuine version 3")
    with world.client(connection) as client:  # and after a restart
        assert client["fraud"].version == 3


def put_envelope(log: Log, topics: Topics, release: Release, envelope: Envelope) -> None:
    key = RegistryKey("release", release.model, release.sequence).encode()
    with closing(log.writer()) as writer:
        writer.send(topics.registry, key=key, value=codec.encode_envelope(envelope), partition=0)
        writer.flush(60.0)


def test_two_people_on_the_command_line(world: World, tmp_path: Path) -> None:
    connection = world.repository()
    shell = Shell(connection.bootstrap_servers, connection.prefix)
    source, rows = write_model(tmp_path / "model.onnx"), write_rows(tmp_path / "rows.csv")
    keys("new", "carol")
    policy = str(tmp_path / "two.toml")
    for name in ("alice", "carol"):
        keys("trust", name, "--models", "fraud*", "--policy", policy)
    (rule,) = keys("trust", "carol", "--models", "fraud*", "--threshold", "2", "--policy", policy)["rules"]
    assert (rule["models"], rule["keys"], rule["threshold"]) == (["fraud*"], ["alice", "carol"], 2)
    publish = ("publish", "fraud", source, "--examples", rows, "--fields", "amount,age", "--release")
    trusting = ("--trust-policy", policy)
    assert "--sign KEY" in shell.fails(*publish, *trusting, status=2)
    assert shell.json(*publish, "--sign", "alice", *trusting)["admitted"] is False
    shown = shell.json("show", "fraud", *trusting)
    assert (shown["live"], shown["trust"]["reason"]) == (False, "below-threshold")
    assert "is not admitted" in shell.fails("pull", "fraud", "-o", str(tmp_path / "out"), *trusting, status=4)
    for what in ("fraud@1", "fraud"):
        assert shell.json("sign", what, "--sign", "carol", *trusting)["admitted"] is True
    shown = shell.json("show", "fraud", *trusting)
    assert (shown["live"], shown["trust"]["admitted"], shown["release"]["admitted"]) == (True, True, True)
    assert "accepted: signed by alice, carol" in shell.says("show", "fraud", *trusting)
    shell.json(*publish, "--sign", "alice", "--sign", "carol", *trusting)
    withdrawn = ("delete", "fraud@1", "--force", "--sign", "alice", *trusting)
    assert shell.json(*withdrawn)["admitted"] is False
    shown = shell.json("show", "fraud@1", *trusting)
    assert (shown["trust"]["admitted"], shown["pending_record"]["reason"]) == (True, "below-threshold")
    assert "agree with: modelcast sign fraud@1 --withdrawal" in shell.says("show", "fraud@1", *trusting)
    assert "fraud@1 is not admitted (below-threshold)" in shell.says("history", "fraud", *trusting)
    assert shell.json("sign", "fraud@1", "--withdrawal", "--sign", "carol", *trusting)["admitted"] is True
    assert "was withdrawn" in shell.fails("show", "fraud@1", *trusting, status=4)
    keys("revoke", "carol", "--reason", "laptop stolen", "--policy", policy)
    assert "laptop stolen" in shell.says("show", "fraud", *trusting)


def keys(*arguments: str) -> dict[str, Any]:
    """The JSON object that a `keys` command prints."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["modelcast", "keys", *arguments, "--json"]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = argv
    assert not left.value.code, err.getvalue()
    found: dict[str, Any] = json.loads(out.getvalue())
    return found
