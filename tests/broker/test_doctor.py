"""`doctor` on real brokers, each with something really wrong: it is named, and the line that mends it is there.

Brokers with settings of their own are processes of this machine. What a login may not do, and certificates, are in
`test_doctor_secured.py`.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType

from modelcast import codec
from modelcast.config import Connection
from modelcast.dev.broker import LocalBroker
from modelcast.dev.ports import LOOPBACK, free_ports
from modelcast.doctor import contact, look
from modelcast.doctor.check_connection import check_versions_of_brokers
from modelcast.doctor.examine import findings
from modelcast.doctor.findings import Finding, Level
from modelcast.doctor.look import Looking
from modelcast.doctor.sights import Question, Sight
from modelcast.fleet.watch import StatusWatch
from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from modelcast.records import FORMAT_VERSION, InstanceStatus, RepositoryIdentity
from modelcast.testing.broker import unique_name
from modelcast.testing.repository import Repository
from modelcast.topics import REPOSITORY_KEY, Topics
from tests.brokers import Broker
from tests.publishing import Shell

# What a broker says as its highest TxnOffsetCommit in an answer to ApiVersions, and what Kafka 2.4 said.
TXN_OFFSET_COMMIT, OF_KAFKA_2_4 = struct.pack(">hhh", 28, 0, 5), struct.pack(">hhh", 28, 0, 2)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker here is slow, but the machine may be."""
    monkeypatch.setattr(contact, "STEP_TIMEOUT_S", 60.0)
    monkeypatch.setattr(look, "REGISTRY_TIMEOUT_S", 60.0)


@dataclass(frozen=True)
class Patient:
    """What is looked at: a repository on a broker."""

    shell: Shell

    def json(self, *arguments: str, status: int) -> list[dict[str, Any]]:
        """What `doctor` finds; it must end with `status`."""
        left, out, err = self.shell.call("doctor", "--json", *arguments)
        assert left == status, out + err
        report = json.loads(out)
        assert report["exit_code"] == status
        found: list[dict[str, Any]] = report["findings"]
        return found

    def wrong(self, *arguments: str, status: int = 6) -> dict[str, dict[str, Any]]:
        """What is wrong, by what was looked at."""
        return {
            one["check"]: one for one in self.json(*arguments, status=status) if one["level"] in ("fault", "warning")
        }


@pytest.fixture
def patient(broker: Broker, prefix: str) -> Patient:
    """A repository that is well."""
    Repository.on(broker.bootstrap_servers, prefix=prefix)
    return Patient(Shell(broker.bootstrap_servers, prefix))


def configure(servers: str, topic: str, **configs: str) -> None:
    """Sets something of a topic, and waits until the broker says so."""
    admin = AdminClient({"bootstrap.servers": servers})
    resource = ConfigResource(
        ResourceType.TOPIC,
        topic,
        incremental_configs=[
            ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for name, value in configs.items()
        ],
    )
    admin.incremental_alter_configs([resource])[resource].result(60)
    deadline = time.monotonic() + 60
    with KafkaLog({"bootstrap.servers": servers}) as log:
        while any(log.describe(topic).configs[key.replace("_", ".")] != value for key, value in configs.items()):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_repository_that_is_well(patient: Patient) -> None:
    found = patient.json(status=0)
    assert {one["level"] for one in found} <= {"ok", "unknown"}
    checked = {one["check"] for one in found if one["level"] == "ok"}
    assert checked >= {
        "broker", "login", "broker-version", "clock", "cleanup-policy", "message-limit", "broker-settings",
        "repository", "fleet", "cache", "state", "runtime", "gpu",
    }  # fmt: skip


def test_people_are_told_each_thing_and_what_to_do(patient: Patient) -> None:
    status, out, _ = patient.shell.call("doctor", "--model", "fruad")
    assert status == 6
    assert "✓ broker" in out
    assert "✗ model" in out
    assert "the repository holds no model 'fruad'" in out
    assert f"→ See those it holds with: modelcast models --prefix {patient.shell.prefix}" in out
    assert "1 fault, 0 warnings." in out


def test_doctor_leaves_a_cluster_as_it_was(patient: Patient, broker: Broker) -> None:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        topics = Topics(patient.shell.prefix)

        def state() -> Any:
            own = (topics.registry, topics.schemas, topics.blobs, topics.status)
            return {name: log.end_offsets(name, committed=False) for name in own}, sorted(log.topics())

        before = state()
        arguments = ("--as", "publisher", "--as", "scorer", "--model", "m", "--events", "e", "--predictions", "p")
        patient.json(*arguments, status=6)  # there is no such model, and no such events
        assert {*before[1]} <= {*state()[1]}
        assert "p" not in state()[1]
        assert state()[0] == before[0]


def test_no_broker(prefix: str) -> None:
    shell = Shell(f"{LOOPBACK}:{free_ports(1)[0]}", prefix)
    found = Patient(shell).wrong(status=3)
    assert "nothing listens at" in found["broker"]["message"]
    assert "modelcast dev up" in found["broker"]["mend"]


def test_a_property_that_the_client_does_not_know(patient: Patient) -> None:
    found = patient.wrong("-X", "no.such.property=1", status=3)
    assert "no.such.property" in found["properties"]["message"]


def test_tls_where_there_is_none_and_a_login_where_none_is_taken(patient: Patient) -> None:
    assert "does not speak TLS" in patient.wrong("-X", "security.protocol=SSL", status=3)["tls"]["message"]
    login = ("security.protocol=SASL_PLAINTEXT", "sasl.mechanism=PLAIN", "sasl.username=ann", "sasl.password=secret")
    found = patient.wrong(*(word for one in login for word in ("-X", one)), status=3)
    assert "takes no login" in found["login"]["message"]


def test_no_repository(broker: Broker, prefix: str) -> None:
    found = Patient(Shell(broker.bootstrap_servers, prefix)).wrong()
    assert found["repository"]["mend"] == f"modelcast init --prefix {prefix}"


def test_a_wrong_cleanup_policy_and_too_small_limits_of_topics(patient: Patient, broker: Broker) -> None:
    topics, scores = Topics(patient.shell.prefix), unique_name("scores")
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        log.create(TopicSpec(scores, 1, configs={"cleanup.policy": "compact"}))
    configure(broker.bootstrap_servers, topics.registry, cleanup_policy="delete")
    configure(broker.bootstrap_servers, topics.blobs, max_message_bytes="10000")
    found = [one for one in patient.json("--predictions", scores, status=6) if one["level"] == "fault"]
    told = {
        (one["check"], name)
        for one in found
        for name in (topics.registry, topics.blobs, scores)
        if name in one["message"]
    }
    assert told == {("cleanup-policy", topics.registry), ("message-limit", topics.blobs), ("cleanup-policy", scores)}
    (mend,) = (one["mend"] for one in found if topics.blobs in one["message"])
    setting, value = mend.rpartition(" ")[2].split("=")
    configure(broker.bootstrap_servers, topics.blobs, **{setting.replace(".", "_"): value})
    assert not any(topics.blobs in one["message"] for one in patient.json(status=6) if one["level"] == "fault")


def test_limits_of_the_client(patient: Patient) -> None:
    found = patient.json("-X", "message.max.bytes=100000", status=6)
    assert ["message.max.bytes=100000" in one["message"] for one in found if one["level"] == "fault"] == [True]
    small = ("fetch.max.bytes=500000", "message.max.bytes=500000", "receive.message.max.bytes=600000")
    found = patient.json(*(word for one in small for word in ("-X", one)), status=6)
    assert any("receive.message.max.bytes=600000" in one["message"] for one in found if one["level"] == "fault")


def test_a_trust_policy_that_can_not_be_read(patient: Patient, tmp_path: Path) -> None:
    (tmp_path / "trust.toml").write_text("[keys")
    found = patient.wrong("--trust-policy", str(tmp_path / "trust.toml"))
    assert str(tmp_path / "trust.toml") in found["trust-policy"]["message"]


def test_a_cache_that_can_not_be_written(patient: Patient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path / "cache"))
    found = patient.wrong()
    assert "Not a directory" in found["cache"]["message"]
    assert "MODELCAST_CACHE_DIR" in found["cache"]["mend"]


def test_a_repository_of_a_newer_modelcast(broker: Broker, prefix: str) -> None:
    topics = Topics(prefix)
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        for spec in topics.specs(blob_partitions=1, replication_factor=1):
            log.create(spec)
        newer = RepositoryIdentity("0b7a4c1e-0000-4000-8000-000000000000", 1, FORMAT_VERSION + 1)
        with closing(log.writer()) as writer:
            writer.send(
                topics.registry, key=REPOSITORY_KEY, value=codec.encode_envelope(codec.seal(newer)), partition=0
            )
            writer.flush(60)
    found = Patient(Shell(broker.bootstrap_servers, prefix)).wrong()
    assert f"format {FORMAT_VERSION + 1}" in found["version"]["message"]


def test_an_instance_that_a_newer_modelcast_runs(patient: Patient, broker: Broker) -> None:
    producer = Producer({"bootstrap.servers": broker.bootstrap_servers})
    producer.produce(Topics(patient.shell.prefix).status, key=b"web-0", value=b"\xc3\x01" + bytes(20))
    assert producer.flush(60) == 0
    found = patient.wrong(status=0)
    assert "'web-0'" in found["version"]["message"] or "web-0" in found["version"]["message"]
    assert patient.wrong("--strict", status=6) == found


def looked(broker: Broker | Ill, prefix: str, *, ahead_ms: int = 0, listen_s: float = 0, **more: Any) -> list[Finding]:
    """What an examination by a clock that is so far ahead finds."""
    connection = Connection({"bootstrap.servers": broker.bootstrap_servers}, prefix)
    question = Question(broker.bootstrap_servers, connection.settings, prefix=prefix, **more)
    looking = Looking(question, connection, now_ms=lambda: time.time_ns() // 1_000_000 + ahead_ms, listen_s=listen_s)
    return list(findings(question, looking.look()))


def test_a_clock_that_is_not_the_clusters(patient: Patient, broker: Broker) -> None:
    (found,) = (one for one in looked(broker, patient.shell.prefix, ahead_ms=18_000_000) if one.check == "clock")
    assert "the cluster's clock is 5 hours behind ours" in found.message
    (found,) = (one for one in looked(broker, patient.shell.prefix, ahead_ms=-18_000_000) if one.check == "clock")
    assert "the cluster's clock is 5 hours ahead of ours" in found.message


def test_the_clock_of_an_instance_that_is_not_ours(
    patient: Patient, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    status_topic = Topics(patient.shell.prefix).status
    with (
        KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log,
        closing(log.writer()) as writer,
    ):

        def speak() -> None:
            at_ms = time.time_ns() // 1_000_000 - 18_000_000
            status = InstanceStatus("", "web-0", "web", 1, "scorer", "cpu", at_ms, {}, (), heartbeat_ms=600_000)
            writer.send(status_topic, key=b"web-0", value=codec.encode_status(status), partition=0)
            writer.flush(60)

        speak()
        original = StatusWatch.look

        def look_and_hear(watch: StatusWatch) -> None:
            original(watch)
            speak()  # once it listens

        monkeypatch.setattr(StatusWatch, "look", look_and_hear)
        found = [one for one in looked(broker, patient.shell.prefix, listen_s=60) if "web-0" in one.message]
    assert ["the clock of instance 'web-0' is 5 hours behind ours" in one.message for one in found] == [True]


@contextmanager
def as_kafka_2_4(broker: Broker) -> Iterator[str]:
    """The broker behind a relay that has it say of transactions what Kafka 2.4 said."""
    host, port = contact.parts(broker.bootstrap_servers)

    def relay(client: socket.socket) -> None:
        with client, socket.create_connection((host, port), timeout=60) as upstream:
            client.settimeout(60)
            while request := client.recv(65_536):
                upstream.sendall(request)
                size = _exactly(upstream, 4)
                answer = _exactly(upstream, struct.unpack(">i", size)[0])
                client.sendall(size + answer.replace(TXN_OFFSET_COMMIT, OF_KAFKA_2_4))

    with socket.create_server((LOOPBACK, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                    relay(client)
                except OSError:
                    if listener.fileno() < 0:
                        return

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"{LOOPBACK}:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
    thread.join(60)
    assert not thread.is_alive()


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError("closed")
        data += piece
    return data


def test_an_old_broker(patient: Patient, broker: Broker) -> None:
    with as_kafka_2_4(broker) as address:
        seen = contact.Caller(Question(address, {}).security).call(address)
    assert seen.obstacle is None
    assert seen.versions is not None
    assert seen.versions.apis[28] == (0, 2)
    (found,) = check_versions_of_brokers(Question(address, {}), Sight(0, (seen,)))
    assert "older than Kafka 2.5" in found.message


@dataclass(frozen=True)
class Ill:
    """A broker with a second listener, whose clients are told to connect where nobody is."""

    bootstrap_servers: str
    misleading: str
    away: str


@pytest.fixture(scope="module")
def ill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ill]:
    """One node with settings for three, small records, and an address that leads nowhere."""
    port, second, away, controller = free_ports(4)
    settings = {
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},SECOND://{LOOPBACK}:{second},CONTROLLER://{LOOPBACK}:{controller}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port},SECOND://{LOOPBACK}:{away}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SECOND:PLAINTEXT,CONTROLLER:PLAINTEXT",
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "inter.broker.listener.name": "PLAINTEXT",
        "transaction.state.log.replication.factor": "3",
        "transaction.state.log.min.isr": "2",
        "message.max.bytes": "100000",
        # On a busy machine heartbeats are late: a broker that is taken for lost leads nothing for a while.
        "broker.session.timeout.ms": "30000",
    }
    broker = LocalBroker(tmp_path_factory.mktemp("ill"), port=port, die_with_parent=True, server_properties=settings)
    with broker:
        yield Ill(broker.bootstrap_servers, f"{LOOPBACK}:{second}", f"{LOOPBACK}:{away}")


def test_an_address_that_clients_are_told_and_can_not_reach(ill: Ill, prefix: str) -> None:
    found = Patient(Shell(ill.misleading, prefix)).wrong(status=3)
    assert f"tells its clients to connect to {ill.away}" in found["advertised"]["message"]
    assert "advertised.listeners" in found["advertised"]["mend"]


def test_a_broker_with_settings_that_let_nothing_work(ill: Ill, prefix: str) -> None:
    topics = Topics(prefix)
    with KafkaLog({"bootstrap.servers": ill.bootstrap_servers}) as log:
        log.create(TopicSpec(topics.blobs, 1, 1, {"cleanup.policy": "compact", "min.insync.replicas": "2"}))
    found = looked(ill, prefix, chunk_bytes=525_312)
    faults = {one.check: one.message for one in found if one.level is Level.FAULT}
    assert "no transaction can begin" in faults["broker-settings"]
    assert f"topic {topics.blobs!r} takes no more than max.message.bytes=100000" in faults["message-limit"]
    assert f"topic {topics.blobs!r} asks for min.insync.replicas=2 and has 1" in faults["replicas"]
