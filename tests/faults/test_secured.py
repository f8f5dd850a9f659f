"""A secured broker on which one ACL of a role is missing: whoever has the role is told which it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from modelcast.access.acl import Operation
from modelcast.access.roles import Role
from modelcast.access.tasks import Tasks, permissions
from modelcast.topics import Topics
from tests.secured import SecuredBroker
from tests.secured_roles import WORK, Stage, missing_acl, needed

# What a role can do without, and says so: `tests/broker/test_secured.py`.
NOT_NEEDED_TO_WORK = {(Role.CLIENT, "Write on topic 'status'")}


def one_by_one() -> Iterator[object]:
    """Each ACL of each role by its place in the list, and what it says with names that are readable."""
    topics = Topics("repository")
    tasks = Tasks(("fraud",), ("events",), ("predictions",), "dead-letters", "group")
    for role in Role:
        mine = replace(tasks, events=(), dead_letters=None) if role is Role.READER else tasks
        for place, acl in enumerate(permissions([role], mine, topics)):
            says = str(acl).replace("repository.", "")
            if (role, says) not in NOT_NEEDED_TO_WORK:
                yield pytest.param(role, place, acl.operation, id=f"{role}-{says}".replace("'", "").replace(" ", "-"))


@pytest.fixture(scope="module")
def stage(secured: SecuredBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    made = Stage(secured, tmp_path_factory.mktemp("stage"))
    yield made
    made.close()


@pytest.mark.parametrize(("role", "place", "operation"), list(one_by_one()))
def test_f36_a_role_that_lacks_one_acl_is_told_which_and_the_line_that_adds_it(
    role: Role, place: int, operation: Operation, stage: Stage
) -> None:
    who = stage.somebody(role, topics_exist=operation is not Operation.CREATE)
    acls = needed(role, who)
    taken = acls[place]
    stage.allow(who, [acl for acl in acls if acl is not taken])

    ended = WORK[role](who, stage)

    assert ended.status == 3, f"without {taken}: {ended}"
    missing = missing_acl(ended)
    assert taken.operation is operation
    assert (missing.operation, taken.allows(missing.kind, missing.name)) == (taken.operation, True), ended.err
    assert f"--operation {missing.operation} --{_option(str(missing.kind))} {missing.name}" in ended.err
    assert "Traceback" not in ended.err


def _option(kind: str) -> str:
    return {"Topic": "topic", "Group": "group", "TransactionalId": "transactional-id"}[kind]
