"""A secured broker for tests: TLS, SASL/SCRAM-SHA-512, mTLS, and Kafka's own authorizer: what is not allowed is denied.

    with secured_broker(tmp_path) as secured:
        ann = secured.user("ann")                        # User:ann, a password over TLS
        bob = secured.certified("bob")                   # User:CN=bob, a certificate
        secured.allow([topic_acl(ann.principal, "events", AclOperation.READ)])
        KafkaLog(ann.properties)

Its listeners (`SecuredBroker.servers`):

    sasl      SASL_SSL   SCRAM-SHA-512
    mtls      SSL        a client shows a certificate; also what the broker talks to itself over
    expired   SASL_SSL   the broker's certificate ended yesterday
    expiring  SASL_SSL   the broker's certificate ends in `EXPIRING_DAYS`

Certificates are made anew for each broker by an authority of its own. `secured.admin` is a super user.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,  # type: ignore[attr-defined]  # documented there, not marked as exported
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from modelcast.dev.broker import LocalBroker
from modelcast.dev.ports import LOOPBACK, free_ports
from modelcast.errors import BrokerError
from modelcast.testing.broker import unique_name

LISTENERS = ("sasl", "mtls", "expired", "expiring")
EXPIRING_DAYS = 5
PORT_TRIES = 3  # between drawing ports and listening on them, somebody else may take one
SETTLED_S = 60.0  # the broker's authorizer learns of a change within milliseconds, unless the machine is busy
ADMIN_TIMEOUT_S = 60.0
SCRAM_ITERATIONS = 4096  # the least that Kafka takes

_ANY_ACL = AclBindingFilter(
    ResourceType.ANY, None, ResourcePatternType.ANY, None, None, AclOperation.ANY, AclPermissionType.ANY
)


@dataclass(frozen=True)
class Certificate:
    """A certificate with its key, as files.

    Attributes:
        certificate: The certificate alone, PEM.
        key: Its private key, PEM (PKCS #8, not encrypted).
        both: Key and certificate in one file, as the broker takes them.
    """

    certificate: Path
    key: Path
    both: Path


class Authority:
    """Issues certificates for one test cluster.

    Args:
        folder: Where certificates and keys are written.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "modelcast tests")])
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=30))
            .not_valid_after(now + timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.certificate = folder / "authority.pem"
        self.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str, *, days: float = 10, stem: str | None = None) -> Certificate:
        """Issues a certificate for `CN=<name>` and the loopback address.

        Args:
            name: Its common name.
            days: How long it is valid from now; a negative number gives one that ended so long ago.
            stem: What its files are called; by default `name`.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=20))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ip_address(LOOPBACK)), x509.DNSName("localhost")]),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        base = self._folder / (stem or name)
        files = Certificate(base.with_suffix(".pem"), base.with_suffix(".key"), base.with_suffix(".both"))
        public = certificate.public_bytes(serialization.Encoding.PEM)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        files.certificate.write_bytes(public)
        files.key.write_bytes(private)
        files.both.write_bytes(private + public)
        return files


@dataclass(frozen=True)
class Client:
    """Somebody who may connect to a secured broker.

    Attributes:
        principal: As ACLs name them.
        properties: librdkafka's, `bootstrap.servers` among them.
    """

    principal: str
    properties: Mapping[str, str]

    def write(self, path: Path) -> Path:
        """Writes the properties as a `client.properties` file."""
        path.write_text("".join(f"{name}={value}\n" for name, value in self.properties.items()))
        return path


class SecuredBroker:
    """A running secured broker; made by `secured_broker`.

    Attributes:
        broker: Its process.
        authority: What issued its certificates.
        admin: A super user, over mTLS.
    """

    def __init__(self, broker: LocalBroker, authority: Authority, ports: Mapping[str, int]) -> None:
        self.broker = broker
        self.authority = authority
        self._ports = dict(ports)
        self.admin = self.certified("admin")
        # Quiet: the broker ends before its last client does.
        self._kafka = AdminClient({**self.admin.properties, "log_level": 0})

    def servers(self, listener: str = "sasl") -> str:
        """`bootstrap.servers` of one of `LISTENERS`."""
        return f"{LOOPBACK}:{self._ports[listener]}"

    def user(self, name: str, password: str = "a secret of theirs", *, listener: str = "sasl") -> Client:
        """Makes `User:<name>` with a password (SCRAM-SHA-512) and gives what they connect with."""
        change = UserScramCredentialUpsertion(
            name, ScramCredentialInfo(ScramMechanism.SCRAM_SHA_512, SCRAM_ITERATIONS), password.encode()
        )
        for future in self._kafka.alter_user_scram_credentials([change]).values():
            future.result(ADMIN_TIMEOUT_S)
        return self.with_password(name, password, listener=listener)

    def with_password(self, name: str, password: str, *, listener: str = "sasl") -> Client:
        """What somebody connects with who says to be `name`; makes nobody."""
        return Client(
            f"User:{name}",
            {
                "bootstrap.servers": self.servers(listener),
                "security.protocol": "SASL_SSL",
                "ssl.ca.location": str(self.authority.certificate),
                "sasl.mechanism": "SCRAM-SHA-512",
                "sasl.username": name,
                "sasl.password": password,
            },
        )

    def certified(self, name: str, *, days: float = 10) -> Client:
        """`User:CN=<name>` with a certificate that is valid for `days` (of a negative number: that has expired)."""
        issued = self.authority.issue(name, days=days, stem=unique_name(name))
        return Client(
            f"User:CN={name}",
            {
                "bootstrap.servers": self.servers("mtls"),
                "security.protocol": "SSL",
                "ssl.ca.location": str(self.authority.certificate),
                "ssl.certificate.location": str(issued.certificate),
                "ssl.key.location": str(issued.key),
            },
        )

    def acls(self, principal: str | None = None) -> frozenset[AclBinding]:
        """What is allowed now, to everybody or to one."""
        found: Iterable[AclBinding] = self._kafka.describe_acls(_ANY_ACL).result(ADMIN_TIMEOUT_S)
        return frozenset(acl for acl in found if principal is None or acl.principal == principal)

    def allow(self, acls: Collection[AclBinding]) -> None:
        """Adds ACLs and waits until they are in force."""
        for future in self._kafka.create_acls(list(acls)).values():
            future.result(ADMIN_TIMEOUT_S)
        self._await(lambda: self.acls() >= frozenset(acls), "were not added")

    def forbid(self, acls: Collection[AclBinding]) -> None:
        """Takes ACLs away and waits until they are no longer in force."""
        for future in self._kafka.delete_acls([_filter(acl) for acl in acls]).values():
            future.result(ADMIN_TIMEOUT_S)
        self._await(lambda: not self.acls() & frozenset(acls), "were not taken away")

    def forget(self, principal: str) -> None:
        """Takes all ACLs of somebody away."""
        self.forbid(self.acls(principal))

    @contextmanager
    def without(self, acl: AclBinding) -> Iterator[None]:
        """Takes one ACL away for a while."""
        self.forbid([acl])
        try:
            yield
        finally:
            self.allow([acl])

    @staticmethod
    def _await(done: Any, what: str) -> None:
        deadline = time.monotonic() + SETTLED_S
        while not done():
            assert time.monotonic() < deadline, f"ACLs {what} within {SETTLED_S:.0f} s"
            time.sleep(0.005)


def topic_acl(principal: str, topic: str, operation: AclOperation) -> AclBinding:
    """One operation on one topic, from any host."""
    return allowance(principal, ResourceType.TOPIC, topic, operation)


def allowance(principal: str, kind: Any, name: str, operation: AclOperation, *, prefixed: bool = False) -> AclBinding:
    """One operation on one resource (or all whose names begin so), from any host."""
    pattern = ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL
    return AclBinding(kind, name, pattern, principal, "*", operation, AclPermissionType.ALLOW)


@contextmanager
def secured_broker(data_dir: Path, *, server_properties: Mapping[str, str] | None = None) -> Iterator[SecuredBroker]:
    """Gives a running secured broker; it is stopped at the end.

    Args:
        data_dir: Where it keeps its data and its certificates; a temporary folder.
        server_properties: Broker settings that win over these.
    """
    authority = Authority(data_dir / "certificates")
    certificates = {
        "broker": authority.issue("broker"),
        "expired": authority.issue("broker", days=-1, stem="expired"),
        "expiring": authority.issue("broker", days=EXPIRING_DAYS, stem="expiring"),
    }
    for tries_left in reversed(range(PORT_TRIES)):
        ports = dict(zip(LISTENERS, free_ports(len(LISTENERS)), strict=True))
        properties = {**_properties(authority, certificates, ports), **(server_properties or {})}
        broker = LocalBroker(
            data_dir / f"broker-{ports['sasl']}",
            port=ports["sasl"],
            die_with_parent=True,
            server_properties=properties,
        )
        try:
            broker.start()
            break
        except BrokerError as error:
            if tries_left == 0 or "Address already in use" not in error.message:
                raise
    try:
        yield SecuredBroker(broker, authority, ports)
    finally:
        with suppress(BrokerError):
            broker.stop()


def _properties(
    authority: Authority, certificates: Mapping[str, Certificate], ports: Mapping[str, int]
) -> dict[str, str]:
    (controller,) = free_ports(1)
    addresses = ",".join(f"{name.upper()}://{LOOPBACK}:{port}" for name, port in ports.items())
    jaas = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    return {
        "listeners": f"{addresses},CONTROLLER://{LOOPBACK}:{controller}",
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller}",
        "advertised.listeners": addresses,
        "listener.security.protocol.map": ("SASL:SASL_SSL,MTLS:SSL,EXPIRED:SASL_SSL,EXPIRING:SASL_SSL,CONTROLLER:SSL"),
        "inter.broker.listener.name": "MTLS",
        "sasl.enabled.mechanisms": "SCRAM-SHA-512",
        **{f"listener.name.{name}.scram-sha-512.sasl.jaas.config": jaas for name in ("sasl", "expired", "expiring")},
        "listener.name.mtls.ssl.client.auth": "required",
        "listener.name.controller.ssl.client.auth": "required",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates["broker"].both),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(authority.certificate),
        **{
            f"listener.name.{name}.ssl.keystore.location": str(certificates[name].both)
            for name in ("expired", "expiring")
        },
        **{f"listener.name.{name}.ssl.keystore.type": "PEM" for name in ("expired", "expiring")},
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:CN=broker;User:CN=admin",
        "auto.create.topics.enable": "false",
        # Nobody kills it: that a busy machine holds it up for a second must not count as its end.
        "broker.session.timeout.ms": "60000",
    }


def _filter(acl: AclBinding) -> AclBindingFilter:
    return AclBindingFilter(
        acl.restype,
        acl.name,
        acl.resource_pattern_type,
        acl.principal,
        acl.host,
        acl.operation,
        acl.permission_type,
    )
