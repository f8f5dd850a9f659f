"""`doctor` on a secured broker: certificates, logins and permissions that are really wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, ResourceType  # type: ignore[attr-defined]

from modelcast.access.acl import Acl, Operation, ResourceKind
from modelcast.access.tasks import Tasks, permissions
from modelcast.doctor import contact, look
from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from modelcast.registry.repository import init
from modelcast.testing.broker import unique_name
from modelcast.topics import Topics
from tests.publishing import Shell
from tests.secured import Client, SecuredBroker, allowance


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No broker here is slow, but the machine may be."""
    monkeypatch.setattr(contact, "STEP_TIMEOUT_S", 60.0)
    monkeypatch.setattr(look, "REGISTRY_TIMEOUT_S", 60.0)


@pytest.fixture(scope="module")
def prefix(secured: SecuredBroker) -> str:
    """Of a repository on the secured broker."""
    name = unique_name("repository")
    with KafkaLog(secured.admin.properties) as log:
        init(log, Topics(name))
    return name


def diagnosis(client: Client, prefix: str, tmp_path: Path, *arguments: str, status: int) -> list[dict[str, Any]]:
    """What `doctor` finds for somebody; it must end with `status`."""
    file = client.write(tmp_path / f"{unique_name('client')}.properties")
    shell = Shell(client.properties["bootstrap.servers"], prefix)
    left, out, err = shell.call("doctor", "-F", str(file), "--json", *arguments)
    assert left == status, out + err
    found: list[dict[str, Any]] = json.loads(out)["findings"]
    return found


def faults(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {one["check"]: one for one in found if one["level"] == "fault"}


def test_a_super_user_over_a_certificate_of_its_own(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    found = diagnosis(secured.admin, prefix, tmp_path, "--as", "publisher", "--as", "operator", status=0)
    assert [one["level"] for one in found if one["check"] == "acl"] == ["ok"]
    assert [one["level"] for one in found if one["check"] == "clock"] == ["ok"]


def test_a_bad_password(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    name = unique_name("ann")
    secured.user(name, "the right one")
    told = faults(diagnosis(secured.with_password(name, "a wrong one"), prefix, tmp_path, status=3))
    assert f"refuses user {name!r} or the password" in told["login"]["message"]
    assert f"--entity-type users --entity-name {name}" in told["login"]["mend"]


def test_a_mechanism_that_is_not_offered(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    client = secured.with_password("ann", "secret")
    plain = Client(client.principal, {**client.properties, "sasl.mechanism": "PLAIN"})
    told = faults(diagnosis(plain, prefix, tmp_path, status=3))
    assert told["login"]["mend"] == "-X sasl.mechanism=SCRAM-SHA-512"


def test_no_login_where_one_is_asked_for(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    client = secured.with_password("ann", "secret")
    nobody = Client(client.principal, {**client.properties, "security.protocol": "SSL"})
    told = faults(diagnosis(nobody, prefix, tmp_path, status=3))
    assert "-X security.protocol=SASL_SSL" in told["login"]["mend"]


def test_no_tls_where_it_is_spoken(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    told = faults(diagnosis(Client("User:ann", {"bootstrap.servers": secured.servers()}), prefix, tmp_path, status=3))
    assert told["tls"]["mend"].startswith("-X security.protocol=SSL")


def test_an_expired_certificate_of_the_broker(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    client = secured.user(unique_name("ann"), listener="expired")
    told = faults(diagnosis(client, prefix, tmp_path, status=3))
    assert set(told) == {"certificate"}
    assert "has expired" in told["certificate"]["message"]
    assert "ssl.keystore.location" in told["certificate"]["mend"]


def test_a_certificate_of_the_broker_that_ends_soon(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    client = secured.user(unique_name("ann"), listener="expiring")
    secured.allow(bindings(client, permissions(["client"], Tasks(), Topics(prefix))))
    found = diagnosis(client, prefix, tmp_path, "--as", "client", status=0)
    (told,) = (one for one in found if one["level"] == "warning")
    assert told["check"] == "certificate"
    assert "expires in" in told["message"]
    diagnosis(client, prefix, tmp_path, "--as", "client", "--strict", status=6)


def test_an_authority_that_is_not_trusted(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    client = secured.with_password("ann", "secret")
    unsure = Client(client.principal, {k: v for k, v in client.properties.items() if k != "ssl.ca.location"})
    told = faults(diagnosis(unsure, prefix, tmp_path, status=3))
    assert told["certificate"]["mend"].startswith("-X ssl.ca.location=")


def test_an_expired_certificate_of_our_own_and_none_at_all(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    told = faults(diagnosis(secured.certified("bob", days=-1), prefix, tmp_path, status=3))
    assert "ssl.certificate.location" in told["certificate"]["message"]
    assert "has expired" in told["certificate"]["message"]
    nobody = {k: v for k, v in secured.admin.properties.items() if "certificate" not in k and "key" not in k}
    told = faults(diagnosis(Client("User:bob", nobody), prefix, tmp_path, status=3))
    assert "asks for a certificate" in told["certificate"]["message"]


def bindings(client: Client, acls: tuple[Acl, ...]) -> list[AclBinding]:
    """As the broker takes them."""
    kinds = {
        ResourceKind.TOPIC: ResourceType.TOPIC,
        ResourceKind.GROUP: ResourceType.GROUP,
        ResourceKind.TRANSACTIONAL_ID: ResourceType.TRANSACTIONAL_ID,
        ResourceKind.CLUSTER: ResourceType.BROKER,
    }
    words = {operation: AclOperation[operation.name] for operation in Operation}
    return [
        allowance(client.principal, kinds[acl.kind], acl.name, words[acl.operation], prefixed=acl.prefixed)
        for acl in acls
    ]


def test_each_permission_that_is_missing_is_named_with_the_line_that_adds_it(
    secured: SecuredBroker, prefix: str, tmp_path: Path
) -> None:
    ann, events, scores = secured.user(unique_name("ann")), unique_name("events"), unique_name("scores")
    with KafkaLog(secured.admin.properties) as log:
        for name in (events, scores, f"{scores}.dead-letters"):
            log.create(TopicSpec(name, 1, configs={"retention.ms": "-1"}))
    tasks = Tasks(group=unique_name("scorers"), events=(events,), predictions=(scores,), create=False)
    needed = permissions(["scorer"], tasks, Topics(prefix))
    arguments = ("--as", "scorer", "--events", events, "--predictions", scores, "--group", str(tasks.group))
    secured.allow(bindings(ann, needed))
    assert not faults(diagnosis(ann, prefix, tmp_path, *arguments, status=0))
    for acl, binding in zip(needed, bindings(ann, needed), strict=True):
        if acl.kind is ResourceKind.GROUP:
            continue  # below: it says nothing while nobody is in it
        with secured.without(binding):
            found = [one for one in diagnosis(ann, prefix, tmp_path, *arguments, status=6) if one["check"] == "acl"]
        told = [one for one in found if one["level"] == "fault"]
        assert [str(acl) in one["message"] for one in told] == [True]
        assert f"--add --allow-principal {ann.principal}" in told[0]["mend"]
        assert f"--operation {acl.operation}" in told[0]["mend"]


def test_a_group_that_may_not_be_joined(secured: SecuredBroker, prefix: str, tmp_path: Path) -> None:
    ann, events, scores = secured.user(unique_name("ann")), unique_name("events"), unique_name("scores")
    arguments = ("--as", "scorer", "--events", events, "--predictions", scores, "--group", unique_name("scorers"))
    found = diagnosis(ann, prefix, tmp_path, *arguments, status=6)
    told = [one["mend"] for one in found if one["check"] == "acl" and one["level"] == "fault"]
    assert any(f"--group {arguments[-1]}" in mend for mend in told)
    assert any("--transactional-id" in mend for mend in told)
