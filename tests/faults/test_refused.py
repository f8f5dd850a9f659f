"""Whoever may not come in, or finds nobody: scorers and publishers end with the remedy, applications use their cache.

The one permission that is missing is looked for elsewhere, with one test for each; here a principal has none at all.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from confluent_kafka.admin import AclBinding, AclOperation, ResourceType

from modelcast.config import Connection
from modelcast.consumer import ModelClient
from modelcast.dev.ports import LOOPBACK, free_ports
from modelcast.errors import ExitCode
from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from modelcast.topics import Topics
from tests.secured import Client, SecuredBroker, allowance, secured_broker
from tests.unit.linear_model import linear_model

from .scorer_processes import ROOT, wait_for

PREFIX, EVENTS = "guarded", "guarded-events"
ROWS = {"amount": [1.0], "age": [10.0]}
ENDED_S = 180.0
# What each way of being refused must tell people to look at.
REMEDIES = {
    "password": "sasl.",
    "broker's certificate": "ssl.",
    "own certificate": "ssl.certificate.location",
    "permission": "ACL",
    "nobody": "Is it running",
}


@dataclass(frozen=True)
class House:
    """A secured broker with a repository, and a version of fraud in it."""

    secured: SecuredBroker

    def allowed(self, way: str) -> Client:
        """Somebody at the same address who may come in."""
        secured = self.secured
        if way == "password":
            return self._permitted(secured.user("ann", "the right one"))
        if way == "broker's certificate":
            bob = self._permitted(secured.user("bob", listener="expired"))
            return replace(bob, properties={**bob.properties, "enable.ssl.certificate.verification": "false"})
        if way == "own certificate":
            return secured.admin
        return self._permitted(secured.user("eve"))

    def comer(self, way: str) -> Client:
        """Somebody who is refused in that way."""
        secured = self.secured
        if way == "password":
            secured.user("ann", "the right one")
            return secured.with_password("ann", "a wrong one")
        if way == "broker's certificate":
            return secured.user("bob", listener="expired")
        if way == "own certificate":
            return secured.certified("admin", days=-1)
        if way == "permission":
            eve = secured.user("eve")
            if secured.acls(eve.principal):
                secured.forget(eve.principal)
            return eve
        (port,) = free_ports(1)
        return replace(
            secured.admin, properties={**secured.admin.properties, "bootstrap.servers": f"{LOOPBACK}:{port}"}
        )

    def _permitted(self, user: Client) -> Client:
        self.secured.allow([everything(user)])
        return user


def everything(user: Client) -> AclBinding:
    """All operations on the repository's topics."""
    return allowance(user.principal, ResourceType.TOPIC, PREFIX, AclOperation.ALL, prefixed=True)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    with secured_broker(folder / "broker") as secured:
        with KafkaLog(dict(secured.admin.properties)) as log:
            init(log, Topics(PREFIX), blob_partitions=1)
            log.create(TopicSpec(EVENTS, 1))
            RegistryWriter(log, Topics(PREFIX)).publish("fraud", linear_model(folder / "one", 100.0), release=True)
        yield House(secured)


def tells(house: House, comer: Client, folder: Path, *arguments: str) -> str:
    """What a command of theirs says to people, which must fail as broker's errors do."""
    done = subprocess.run(
        [sys.executable, "-m", "modelcast", *arguments, "--prefix", PREFIX, "-F", str(comer.write(folder / "client"))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MODELCAST_STATE_DIR": str(folder / "state")},
        capture_output=True,
        text=True,
        timeout=ENDED_S,
        check=False,
    )
    assert done.returncode == ExitCode.BROKER, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: "), done.stderr
    return done.stderr


@pytest.mark.parametrize("way", REMEDIES)
def test_f36_scorers_and_publishers_that_are_refused_end_with_the_remedy(
    house: House, way: str, tmp_path: Path
) -> None:
    comer = house.comer(way)
    linear_model(tmp_path / "next", 200.0)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"amount": 1.0, "age": 2.0}\n{"amount": 3.0, "age": 4.0}\n')
    source = [str(tmp_path / "next" / "model.onnx"), "--examples", str(rows), "--fields", "amount,age"]
    for arguments in (
        ("score", "fraud", "--events", EVENTS, "--predictions", "guarded-scores"),
        ("publish", "fraud", *source),
    ):
        said = tells(house, comer, tmp_path, *arguments)
        assert REMEDIES[way] in said, f"{arguments[0]} said {said}"


@pytest.mark.parametrize("way", [way for way in REMEDIES if way != "nobody"])
def test_f36_an_application_that_is_refused_starts_from_its_cache_and_says_so(
    house: House, way: str, tmp_path: Path
) -> None:
    here = {"prefix": PREFIX, "models": ["fraud"], "cache_dir": tmp_path / "cache", "state_dir": tmp_path / "state"}
    with ModelClient(properties=house.allowed(way).properties, **here) as client:
        client.model("fraud").wait_live(ENDED_S)
    with ModelClient(properties=house.comer(way).properties, **here) as client:
        fraud = client.model("fraud").wait_live(ENDED_S)
        assert fraud.predict(ROWS)["score"].tolist() == [111.0]
        assert client.stale_s > 0


def test_f36_who_is_no_longer_allowed_keeps_the_model_and_follows_again_once_allowed(
    house: House, tmp_path: Path
) -> None:
    secured = house.secured
    user = secured.user("fay")
    secured.allow([everything(user)])
    connection = Connection.resolve(properties=user.properties, prefix=PREFIX)
    folders = {"cache_dir": tmp_path / "cache", "state_dir": tmp_path / "state"}
    with ModelClient(connection=connection, models=["fraud"], **folders) as client:
        fraud = client.model("fraud").wait_live(ENDED_S)
        live = fraud.version
        assert client.stale_s == 0
        secured.forbid([everything(user)])
        wait_for(lambda: client.stale_s > 0, "the client to notice", ENDED_S)
        assert fraud.predict(ROWS).version == live
        secured.allow([everything(user)])
        wait_for(lambda: client.stale_s == 0, "the registry to be followed again", ENDED_S)
        assert fraud.predict(ROWS).version == live
