"""A secured broker: each role works with the ACLs that `modelcast acl` prints for it, by password or certificate."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import pytest

from modelcast.access.acl import Operation, ResourceKind
from modelcast.access.roles import Role
from modelcast.consumer import ModelClient
from modelcast.errors import AuthorizationError
from modelcast.kafka import KafkaLog
from modelcast.log import BEGINNING
from tests.secured import SecuredBroker
from tests.secured_roles import LONGEST_S, MODEL, WORK, Stage, missing_acl, needed, scored


@pytest.fixture(scope="module")
def stage(secured: SecuredBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(secured, tmp_path_factory.mktemp("stage"))
    yield made
    made.close()


@pytest.mark.parametrize("role", Role)
def test_a_role_works_with_the_acls_that_are_printed_for_it(role: Role, stage: Stage) -> None:
    who = stage.somebody(role)
    stage.allow(who, needed(role, who))
    ended = WORK[role](who, stage)
    assert ended.status == 0, ended.err


def test_a_scorer_works_by_its_certificate_and_makes_its_topics(stage: Stage) -> None:
    who = stage.somebody(Role.SCORER, topics_exist=False, certified=True)
    stage.allow(who, needed(Role.SCORER, who))
    ended = scored(who, stage)
    assert ended.status == 0, ended.err
    for topic, records in ((who.tasks.predictions[0], 2), (who.tasks.letters or "", 1)):
        with closing(stage.log.reader(topic, {0: BEGINNING})) as reader:
            deadline, found = time.monotonic() + LONGEST_S, 0
            while found < records and time.monotonic() < deadline:
                found += len(reader.poll(0.1))
        assert found == records


def test_a_scorer_at_least_once_needs_no_transactional_id(stage: Stage) -> None:
    who = stage.somebody(Role.SCORER)
    who = replace(who, tasks=replace(who.tasks, exactly_once=False, create=False))
    acls = needed(Role.SCORER, who)
    assert not [acl for acl in acls if acl.kind is ResourceKind.TRANSACTIONAL_ID or acl.operation is Operation.CREATE]
    stage.allow(who, acls)
    ended = scored(who, stage)
    assert ended.status == 0, ended.err


def test_who_is_allowed_nothing_is_told_the_first_acl_and_the_line_that_adds_it(stage: Stage) -> None:
    who = stage.somebody(Role.SCORER)
    ended = scored(who, stage)
    assert ended.status == 3
    missing = missing_acl(ended)
    assert str(missing) == f"Read on topic '{stage.prefix}.registry'"
    line = (
        f"kafka-acls.sh --bootstrap-server {stage.secured.servers()} --add --allow-principal {who.client.principal} "
        f"--operation Read --topic {stage.prefix}.registry"
    )
    assert line in ended.err
    assert ended.error["missing_acl"]["principal"] == who.client.principal


def test_acls_are_added_by_the_command_once_and_again(stage: Stage) -> None:
    who = stage.somebody(Role.OBSERVER)
    admin = replace(who, client=stage.secured.admin)
    refused = who.run("acl", "observer", "--principal", who.client.principal, "--apply")
    assert (refused.status, "Alter on the cluster" in refused.err) == (3, True)
    for _ in range(2):
        added = admin.run("acl", "observer", "--principal", who.client.principal, "--apply")
        assert added.status == 0, added.err
        assert json.loads(added.out)["applied"] is True
        assert len(stage.secured.acls(who.client.principal)) == len(needed(Role.OBSERVER, who))


def test_a_client_that_may_not_say_what_it_runs_works_and_says_which_acl_is_missing(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    who = stage.somebody(Role.CLIENT)
    stage.allow(who, [acl for acl in needed(Role.CLIENT, who) if acl.operation is not Operation.WRITE])
    with caplog.at_level(logging.WARNING, logger="modelcast"):
        ended = WORK[Role.CLIENT](who, stage)
    assert ended.status == 0, ended.err
    assert f"the ACL Write on topic '{stage.prefix}.status' is missing" in caplog.text


def test_an_embedded_client_is_refused_by_name(stage: Stage) -> None:
    who = stage.somebody(Role.CLIENT)
    registry = f"{stage.prefix}.registry"
    acls = [acl for acl in needed(Role.CLIENT, who) if acl.name != registry or acl.operation is not Operation.READ]
    stage.allow(who, acls)
    with (
        ModelClient(
            properties=who.client.properties,
            prefix=who.prefix,
            models=[MODEL],
            cache_dir=who.folder / "cache",
            state_dir=who.folder / "state",
        ) as models,
        pytest.raises(AuthorizationError, match=rf"the ACL Read on topic '{registry}' is missing"),
    ):
        models[MODEL]


def test_a_wrong_password_an_expired_certificate_and_a_stranger_are_told_apart_from_a_broker_that_is_away(
    stage: Stage,
) -> None:
    secured = stage.secured
    known = secured.user("known", "a password")
    strangers = {
        "wrong password": secured.with_password("known", "another one"),
        "expired broker": secured.with_password("known", "a password", listener="expired"),
        "expired certificate": secured.certified("late", days=-1),
    }
    with KafkaLog(known.properties) as log:
        assert stage.events not in log.topics()  # known, and allowed nothing
    told = {}
    for what, client in strangers.items():
        with KafkaLog(client.properties) as log, pytest.raises(AuthorizationError) as refused:
            log.topics()
        assert refused.value.hint, what
        told[what] = refused.value.message
    assert "invalid credentials" in told["wrong password"]
    assert "certificate verify failed" in told["expired broker"]
    assert "refuses our certificate" in told["expired certificate"]
