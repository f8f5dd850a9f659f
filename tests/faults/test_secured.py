"""A secured broker on which one ACL of a role is missing: whoever has the role is told which it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from modelcast.access.acl import Operation, ResourceKind
from modelcast.access.roles import Role
from modelcast.access.tasks import Tasks, permissions
from modelcast.config import Connection
from modelcast.consumer import Scorer
from modelcast.errors import AuthorizationError, ModelcastError
from modelcast.kafka.acls import binding
from modelcast.topics import Topics
from tests.secured import SecuredBroker
from tests.secured_roles import GOOD, LONGEST_S, MODEL, WORK, Stage, missing_acl, needed
from tests.unit.control_rig import wait_until

# Before whoever waits gives up; some 2 s on an idle machine, 10 for a scorer that may not read its group.
TOLD_WITHIN_S = 50.0
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

    began_s = time.monotonic()
    ended = WORK[role](who, stage)
    took_s = time.monotonic() - began_s

    assert ended.status == 3, f"without {taken}: {ended}"
    missing = missing_acl(ended)
    assert taken.operation is operation
    assert (missing.operation, taken.allows(missing.kind, missing.name)) == (taken.operation, True), ended.err
    assert f"--operation {missing.operation} --{_option(str(missing.kind))} {missing.name}" in ended.err
    assert "Traceback" not in ended.err
    assert took_s < TOLD_WITHIN_S


def _option(kind: str) -> str:
    return {"Topic": "topic", "Group": "group", "TransactionalId": "transactional-id"}[kind]


class Running:
    """A scorer on a thread, with a principal of its own."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.who = stage.somebody(Role.SCORER)
        self.events = stage.topic("events")
        self.who = replace(self.who, tasks=replace(self.who.tasks, events=(self.events,)))
        stage.allow(self.who, needed(Role.SCORER, self.who))
        self.errors: list[ModelcastError] = []
        self.scorer = Scorer(
            MODEL,
            self.events,
            self.predictions,
            dead_letters=self.who.tasks.dead_letters,
            group=self.who.tasks.group,
            cache_dir=self.who.folder / "cache",
            state_dir=self.who.folder / "state",
            connection=Connection.resolve(properties=self.who.client.properties, prefix=self.who.prefix),
        )
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    @property
    def predictions(self) -> str:
        return self.who.tasks.predictions[0]

    def _run(self) -> None:
        try:
            self.scorer.run()
        except ModelcastError as error:
            self.errors.append(error)

    def forbid(self, topic: str) -> None:
        """Takes all ACLs on one topic away."""
        mine = [acl for acl in needed(Role.SCORER, self.who) if acl.allows(ResourceKind.TOPIC, topic)]
        self.stage.secured.forbid([binding(acl, self.who.client.principal) for acl in mine])

    def score(self) -> None:
        """Sends an event and waits for its prediction."""
        (before,) = self.stage.log.end_offsets(self.predictions, committed=True).values()
        self.stage.write(self.events, GOOD)
        wait_until(
            lambda: self.stage.log.end_offsets(self.predictions, committed=True)[0] > before,
            "a prediction",
            LONGEST_S,
        )

    def stop(self) -> None:
        self.scorer.stop()
        self.thread.join(LONGEST_S)


@pytest.fixture
def running(stage: Stage) -> Iterator[Running]:
    made = Running(stage)
    yield made
    made.stop()


def test_f36_a_scorer_that_may_no_longer_read_the_registry_scores_on(running: Running) -> None:
    running.score()
    for topic in (f"{running.who.prefix}.registry", f"{running.who.prefix}.blobs"):
        running.forbid(topic)
    running.score()
    assert not running.errors
    assert running.thread.is_alive()


def test_f36_a_scorer_that_may_no_longer_write_predictions_ends_and_says_what_is_missing(running: Running) -> None:
    running.score()
    running.forbid(running.predictions)
    running.stage.write(running.events, GOOD)
    running.thread.join(LONGEST_S)
    (error,) = running.errors
    assert isinstance(error, AuthorizationError)
    assert f"the ACL Write on topic '{running.predictions}' is missing" in error.message
