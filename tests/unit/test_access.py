"""Which role needs which ACLs, and the lines that add them."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from modelcast.access import roles
from modelcast.access.acl import Acl, Operation, ResourceKind, add_command, add_commands, principal_of, topic
from modelcast.access.roles import Role
from modelcast.access.tasks import Tasks, permissions
from modelcast.cli import main
from modelcast.errors import AuthorizationError, UsageError
from modelcast.kafka.faults import Faults, reading, writing
from modelcast.topics import Topics

TOPICS = Topics("shop")
TASKS = Tasks(models=("fraud",), events=("payments",), predictions=("scores",))
OWN = {TOPICS.registry, TOPICS.schemas, TOPICS.blobs, TOPICS.status}


def may(acls: tuple[Acl, ...], operation: Operation) -> set[str]:
    """Topics on which an operation is allowed."""
    return {acl.name for acl in acls if acl.kind is ResourceKind.TOPIC and acl.operation is operation}


@pytest.mark.parametrize(
    ("role", "written"),
    [
        (Role.PUBLISHER, {"shop.registry", "shop.blobs"}),
        (Role.OPERATOR, {"shop.registry", "shop.blobs"}),
        (Role.PRODUCER, {"payments", "shop.schemas"}),
        (Role.SCORER, {"scores", "scores.dead-letters", "shop.schemas", "shop.status"}),
        (Role.CLIENT, {"shop.status"}),
        (Role.READER, set()),
        (Role.OBSERVER, set()),
        (Role.DLQ, {"payments"}),
    ],
)
def test_a_role_writes_to_its_own_topics_only(role: Role, written: set[str]) -> None:
    assert may(permissions([role], TASKS, TOPICS), Operation.WRITE) == written


def test_only_publishers_and_operators_can_change_the_registry() -> None:
    able = {role for role in Role if TOPICS.registry in may(permissions([role], TASKS, TOPICS), Operation.WRITE)}
    assert able == {Role.PUBLISHER, Role.OPERATOR}


def test_nobody_may_use_the_transactional_ids_of_another_role() -> None:
    ids = {
        role: {acl.name for acl in permissions([role], TASKS, TOPICS) if acl.kind is ResourceKind.TRANSACTIONAL_ID}
        for role in Role
    }
    assert ids[Role.PUBLISHER] == {"shop.publisher.fraud"}
    assert ids[Role.SCORER] == {"shop.scorer.shop.fraud.scores."}
    assert ids[Role.DLQ] == {"shop.dlq.scores.dead-letters"}
    assert ids[Role.OPERATOR] == {"shop.repository", "shop.publisher."}
    assert not any(ids[role] for role in (Role.PRODUCER, Role.CLIENT, Role.READER, Role.OBSERVER))


def test_a_publisher_is_of_the_models_that_are_named_by_name_or_by_how_they_begin() -> None:
    ids = [acl for acl in roles.publisher(TOPICS, ["fraud", "churn-*"]) if acl.kind is ResourceKind.TRANSACTIONAL_ID]
    assert [(acl.name, acl.prefixed) for acl in ids] == [
        ("shop.publisher.fraud", False),
        ("shop.publisher.churn-", True),
    ]
    (everything,) = [acl for acl in roles.publisher(TOPICS) if acl.kind is ResourceKind.TRANSACTIONAL_ID]
    assert (everything.name, everything.prefixed) == ("shop.publisher.", True)


def test_a_scorer_gets_the_group_and_topics_that_score_takes_by_itself() -> None:
    acls = permissions([Role.SCORER], TASKS, TOPICS)
    assert Acl(ResourceKind.GROUP, "shop.fraud.scores", Operation.READ) in acls
    each = Tasks(models=("fraud", "churn"), events=("payments",), predictions=("{model}-scores",))
    assert may(permissions([Role.SCORER], each, TOPICS), Operation.WRITE) - OWN == {
        *("fraud-scores", "churn-scores", "payments.dead-letters"),
    }


def test_only_what_is_done_is_allowed() -> None:
    plain = replace(TASKS, exactly_once=False, create=False)
    acls = permissions([Role.SCORER], plain, TOPICS)
    assert not [acl for acl in acls if acl.kind is ResourceKind.TRANSACTIONAL_ID]
    assert not may(acls, Operation.CREATE)
    assert may(permissions([Role.SCORER], TASKS, TOPICS), Operation.CREATE) == {"scores", "scores.dead-letters"}
    assert may(permissions([Role.OPERATOR], TASKS, TOPICS), Operation.CREATE) == OWN


def test_an_acl_of_two_roles_is_named_once() -> None:
    both = permissions([Role.CLIENT, Role.SCORER], TASKS, TOPICS)
    assert len(both) == len(set(both))
    assert set(both) == {acl for role in (Role.CLIENT, Role.SCORER) for acl in permissions([role], TASKS, TOPICS)}


@pytest.mark.parametrize(
    ("role", "tasks", "option"),
    [
        (Role.PRODUCER, Tasks(), "--events"),
        (Role.SCORER, Tasks(), "--events"),
        (Role.SCORER, Tasks(events=("e",)), "--predictions"),
        (Role.SCORER, Tasks(events=("e",), predictions=("p",)), "--model (or --group)"),
        (Role.SCORER, Tasks(events=("e", "f"), predictions=("p",)), "--events TOPIC"),
        (Role.READER, Tasks(), "--events or --predictions"),
        (Role.DLQ, Tasks(events=("e",)), "--dead-letters"),
        (Role.DLQ, Tasks(predictions=("p",)), "--events"),
        ("boss", Tasks(), "publisher, operator"),
    ],
)
def test_what_a_role_is_about_has_to_be_said(role: str, tasks: Tasks, option: str) -> None:
    with pytest.raises(UsageError) as refused:
        permissions([role], tasks, TOPICS)
    assert option in (refused.value.hint or "")


def test_a_line_names_everything_about_one_resource() -> None:
    acls = (*topic("my events", Operation.READ, Operation.WRITE), Acl(ResourceKind.GROUP, "g.", Operation.READ, True))
    first, second = add_commands(acls, principal="User:CN=x,O=A B", servers="h:1")
    assert shlex.split(first) == [
        *("kafka-acls.sh", "--bootstrap-server", "h:1", "--add", "--allow-principal", "User:CN=x,O=A B"),
        *("--operation", "Read", "--operation", "Write", "--topic", "my events"),
    ]
    assert second.endswith("--operation Read --group g. --resource-pattern-type prefixed")
    with pytest.raises(UsageError, match="for one resource, not for 2"):
        add_command(acls)


def test_an_acl_reads_as_a_sentence_and_knows_what_it_is_about() -> None:
    literal = Acl(ResourceKind.TRANSACTIONAL_ID, "a.b", Operation.WRITE)
    prefixed = Acl(ResourceKind.TOPIC, "a.", Operation.READ, prefixed=True)
    assert str(literal) == "Write on transactional id 'a.b'"
    assert str(prefixed) == "Read on every topic that begins with 'a.'"
    assert str(Acl(ResourceKind.CLUSTER, "kafka-cluster", Operation.CREATE)) == "Create on the cluster"
    assert literal.allows(ResourceKind.TRANSACTIONAL_ID, "a.b")
    assert not literal.allows(ResourceKind.TRANSACTIONAL_ID, "a.bc")
    assert not literal.allows(ResourceKind.TOPIC, "a.b")
    assert prefixed.allows(ResourceKind.TOPIC, "a.b")
    assert not prefixed.allows(ResourceKind.TOPIC, "b")


def test_a_principal_is_known_from_a_user_name_and_from_nothing_else() -> None:
    assert principal_of({"security.protocol": "SASL_SSL", "sasl.username": "ann"}) == "User:ann"
    assert principal_of({"security.protocol": "SSL", "sasl.username": "ann"}) == "User:NAME"
    assert principal_of({}) == "User:NAME"


@pytest.mark.parametrize(
    ("code", "needs", "missing"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, reading("t"), "Read on topic 't'"),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, writing("t"), "Write on topic 't'"),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, reading("t"), "Read on group 'g'"),
        (KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, writing("t"), "Write on transactional id 'id'"),
        # What a producer that may write nowhere is told.
        (KafkaError.CLUSTER_AUTHORIZATION_FAILED, writing("t"), "Write on topic 't'"),
    ],
)
def test_a_refusal_names_the_acl_and_the_line_that_adds_it(code: int, needs: Acl, missing: str) -> None:
    faults = Faults("h:1", principal="User:ann", group="g", transactional_id="id")
    error = faults.explain(KafkaError(code), "can't do it", needs)
    assert isinstance(error, AuthorizationError)
    assert error.message == f"can't do it: not allowed, the ACL {missing} is missing"
    operation, _, kind, name = missing.replace("transactional id", "transactional-id").split()
    assert f"--allow-principal User:ann --operation {operation} --{kind} {name[1:-1]}" in (error.hint or "")
    assert error.details["missing_acl"]["principal"] == "User:ann"


def test_a_refusal_of_something_unknown_names_the_command_that_lists_what_is_needed() -> None:
    error = Faults("h:1").explain(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), "can't do it")
    assert isinstance(error, AuthorizationError)
    assert "modelcast acl ROLE" in (error.hint or "")


def _run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["modelcast", "acl", *words])
    with pytest.raises(SystemExit) as left:
        main()
    return int(left.value.code or 0)


def test_the_command_prints_one_line_a_resource(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["scorer", "--model", "fraud", "--events", "payments", "--predictions", "scores", "--principal", "User:ann"]
    assert _run(monkeypatch, *words, "-b", "h:1", "--prefix", "shop") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == add_commands(permissions([Role.SCORER], TASKS, TOPICS), principal="User:ann", servers="h:1")


def test_the_command_tells_programs_each_acl(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(monkeypatch, "observer", "-b", "h:1", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["applied"] is False
    assert told["acls"][0] == {
        "resource_type": "Topic",
        "resource": "modelcast.registry",
        "pattern_type": "literal",
        "operation": "Read",
        "principal": "User:NAME",
        "add": "kafka-acls.sh --bootstrap-server h:1 --add --allow-principal User:NAME --operation Read "
        "--topic modelcast.registry",
    }


def test_nothing_is_added_for_nobody(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(monkeypatch, "observer", "-b", "h:1", "--apply") == 2
    assert "--principal" in capsys.readouterr().err


def test_the_page_on_security_says_what_each_role_needs() -> None:
    tasks = Tasks(models=("MODEL",), events=("EVENTS",), predictions=("PREDICTIONS",))
    needed: dict[tuple[str, str], list[str]] = {}
    for role in Role:
        for acl in permissions([role], tasks, Topics("PREFIX")):
            kind = {"TransactionalId": "transactional id"}.get(acl.kind, acl.kind.lower())
            needed.setdefault((role, f"{kind} `{acl.name}{'*' if acl.prefixed else ''}`"), []).append(acl.operation)
    rows = [f"| `{role}` | {resource} | {', '.join(operations)} |" for (role, resource), operations in needed.items()]
    page = (Path(__file__).parents[2] / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    assert "\n".join(["|---|---|---|", *rows, ""]) in page
