"""What each role does on a secured broker, with the ACLs that `modelcast acl` prints for it, or all but one."""

from __future__ import annotations

import io
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

from modelcast.access.acl import Acl, Operation, ResourceKind
from modelcast.access.roles import Role
from modelcast.access.tasks import Tasks, permissions
from modelcast.cli import main
from modelcast.consumer import ModelClient
from modelcast.errors import BrokerError
from modelcast.kafka import KafkaLog
from modelcast.kafka.acls import add_acls, binding
from modelcast.log import BEGINNING, LogRecord, TopicSpec
from modelcast.publisher.leftovers import Leftovers
from modelcast.publisher.session import RegistryWriter
from modelcast.publisher.upload import CHUNK_BYTES
from modelcast.registry.repository import init
from modelcast.scan import scan
from modelcast.testing.broker import unique_name
from modelcast.topics import Topics
from tests.publishing import write_model, write_rows
from tests.secured import Client, SecuredBroker
from tests.unit.linear_model import linear_model

LONGEST_S = 60.0
MODEL = "fraud"
_biases = itertools.count(3)
# Avro, single-object encoding: a fingerprint that only the schemas topic could explain.
OF_UNKNOWN_SCHEMA = b"\xc3\x01unknown!\x02"
GOOD, POISON = b'{"amount": 1, "age": 2}', b"garbage"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> dict[str, Any]:
        """What it says of its error to programs."""
        last = json.loads(self.out.splitlines()[-1])["error"]
        assert isinstance(last, dict)
        return last


@dataclass(frozen=True)
class Somebody:
    """A principal with what they may use: a repository's prefix, topics, and a folder of their own."""

    client: Client
    prefix: str
    tasks: Tasks
    folder: Path

    def run(self, *words: str) -> Ended:
        """Runs a command as them, in this process."""
        properties = self.client.write(self.folder / "client.properties")
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["modelcast", *words, "-F", str(properties), "--prefix", self.prefix, "--json"])
            patch.setenv("MODELCAST_CACHE_DIR", str(self.folder / "cache"))
            patch.setenv("MODELCAST_STATE_DIR", str(self.folder / "state"))
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
                main()
        return Ended(int(left.value.code or 0), out.getvalue(), err.getvalue())

    def commands(self, *lines: Sequence[str]) -> Ended:
        """Runs one after another, up to the first that fails."""
        ended = Ended(0, "", "")
        for line in lines:
            ended = self.run(*line)
            if ended.status != 0:
                break
        return ended


class Stage:
    """A repository on a secured broker, with a live version of `fraud`, events, and dead letters."""

    def __init__(self, secured: SecuredBroker, folder: Path) -> None:
        self.secured = secured
        self.folder = folder
        self.prefix = unique_name("secured")
        self.log = KafkaLog(secured.admin.properties)
        self.rows = write_rows(folder / "rows.csv")
        self.prepared = [linear_model(folder / f"prepared-{bias:g}", bias) for bias in (1.0, 2.0)]
        self.fill(self.prefix)
        self.events = self.topic("events")
        self.write(self.events, GOOD, POISON, GOOD)

    def fill(self, prefix: str) -> None:
        """Makes a repository with two versions of the model; the second is live."""
        topics = Topics(prefix)
        init(self.log, topics, blob_partitions=1)
        writer = RegistryWriter(self.log, topics)
        for prepared in self.prepared:
            writer.publish(MODEL, prepared, release=True)

    def topic(self, stem: str) -> str:
        """Makes a topic of one partition."""
        spec = TopicSpec(unique_name(stem), 1, configs={"retention.ms": "-1"})
        deadline = time.monotonic() + LONGEST_S
        while True:
            try:
                self.log.create(spec)
            except BrokerError as error:  # a busy machine's broker answers late
                if not error.retriable or time.monotonic() > deadline:
                    raise
            else:
                return spec.name

    def write(self, topic: str, *values: bytes) -> None:
        """Writes records."""
        with closing(self.log.writer()) as writer:
            for value in values:
                writer.send(topic, key=None, value=value)
            writer.flush(LONGEST_S)

    def somebody(self, role: Role, *, topics_exist: bool = True, certified: bool = False) -> Somebody:
        """Makes a principal for a role, who is allowed nothing yet, with topics of their own.

        Args:
            role: What they are to do.
            topics_exist: Whether the topics they write to are there.
            certified: By a certificate, not by a password.
        """
        name = unique_name(str(role))
        client = self.secured.certified(name) if certified else self.secured.user(name)
        folder = self.folder / name
        folder.mkdir()
        made = self.topic if topics_exist else unique_name
        tasks = Tasks(models=(MODEL,), events=(self.events,), group=unique_name("group"))
        match role:
            case Role.SCORER:
                tasks = replace(tasks, predictions=(made("predictions"),), dead_letters=made("letters"))
            case Role.PRODUCER:
                tasks = replace(tasks, events=(made("sent"),))
            case Role.DLQ:
                tasks = replace(tasks, events=(self.topic("returned"),), dead_letters=self.some_letters())
            case Role.READER:
                tasks = replace(tasks, events=(), models=(), predictions=self.scored.predictions)
            case _:
                pass
        prefix = unique_name("made") if role is Role.OPERATOR else self.prefix
        return Somebody(client, prefix, tasks, folder)

    def some_letters(self) -> str:
        """A topic with the dead letters that a scorer made."""
        topic = self.topic("letters")
        with closing(self.log.writer()) as writer:
            for record in self._letters:
                for value in (record.value, OF_UNKNOWN_SCHEMA):
                    writer.send(topic, key=record.key, value=value, headers=record.headers)
            writer.flush(LONGEST_S)
        return topic

    @cached_property
    def scored(self) -> Tasks:
        """Topics with the predictions and the dead letters of the events."""
        scorer = replace(self.somebody(Role.SCORER), client=self.secured.admin)
        assert scored(scorer, self).status == 0
        return scorer.tasks

    @cached_property
    def _letters(self) -> list[LogRecord]:
        letters = self.scored.letters or ""
        ends = self.log.end_offsets(letters, committed=False)
        found = list(scan(self.log, letters, dict.fromkeys(ends, BEGINNING), ends, timeout_s=LONGEST_S))
        assert len(found) == 1
        return found

    def allow(self, who: Somebody, acls: Sequence[Acl]) -> None:
        """Allows what is listed, as `modelcast acl --apply` does."""
        add_acls(self.secured.admin.properties, acls, principal=who.client.principal)
        self.secured.allow([binding(acl, who.client.principal) for acl in acls])

    def close(self) -> None:
        self.log.close()


def needed(role: Role, who: Somebody) -> tuple[Acl, ...]:
    """What `modelcast acl` prints for them."""
    return permissions([role], who.tasks, Topics(who.prefix))


def break_off_an_upload(who: Somebody, stage: Stage) -> None:
    """Leaves what an upload that was broken off leaves: a mark on the host, and chunks behind it."""
    topics = Topics(who.prefix)
    identity = init(stage.log, topics, blob_partitions=1).repository.uuid
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELCAST_STATE_DIR", str(who.folder / "state"))
        Leftovers(stage.log, topics, MODEL, identity, CHUNK_BYTES).find(who.folder, (), {0})
    with closing(stage.log.writer()) as writer:
        writer.send(topics.blobs, key=b"a chunk", value=b"of somebody's", partition=0)
        writer.flush(LONGEST_S)


def published(who: Somebody, stage: Stage) -> Ended:
    break_off_an_upload(who, stage)
    # Of other content than all before: what is there already is neither looked for nor uploaded.
    source = write_model(who.folder / "model.onnx", bias=float(next(_biases)))
    return who.commands(
        ["publish", MODEL, source, "--examples", stage.rows, "--fields", "amount,age", "--release"],
        ["release", MODEL, "1"],
        ["rollback", MODEL],
    )


def operated(who: Somebody, stage: Stage) -> Ended:
    ended = who.run("init", "--blob-partitions", "1")
    if ended.status != 0:
        return ended
    stage.fill(who.prefix)
    return who.commands(["delete", f"{MODEL}@1", "--force"], ["gc", "--grace", "0s"])


def produced(who: Somebody, stage: Stage) -> Ended:
    return who.run("send", who.tasks.events[0], stage.rows)


def scored(who: Somebody, stage: Stage) -> Ended:
    outputs = ["--predictions", who.tasks.predictions[0], "--dead-letters", who.tasks.dead_letters or ""]
    guarantee = "exactly-once" if who.tasks.exactly_once else "at-least-once"
    return who.run(
        *["score", MODEL, "--events", who.tasks.events[0], *outputs, "--group", who.tasks.group or ""],
        *["--guarantee", guarantee, "--until-end"],
    )


def used(who: Somebody, stage: Stage) -> Ended:
    pulled = who.run("pull", MODEL, "--output", str(who.folder / unique_name("pulled")))
    if pulled.status != 0:
        return pulled
    with ModelClient(
        properties=who.client.properties,
        prefix=who.prefix,
        models=[MODEL],
        cache_dir=who.folder / "cache",
        state_dir=who.folder / "state",
    ) as client:
        scores = client.model(MODEL).wait_live(LONGEST_S).predict({"amount": [1.0], "age": [2.0]})["score"]
    return Ended(0, json.dumps(scores.tolist()), "")


def tailed(who: Somebody, stage: Stage) -> Ended:
    return who.run("tail", who.tasks.predictions[0], "--from-beginning", "--until-end")


def observed(who: Somebody, stage: Stage) -> Ended:
    return who.commands(["models"], ["show", MODEL], ["history", MODEL], ["status"])


def replayed(who: Somebody, stage: Stage) -> Ended:
    letters = who.tasks.letters or ""
    return who.commands(["dlq", "show", letters, "--values"], ["dlq", "replay", letters, "--to", who.tasks.events[0]])


WORK: Mapping[Role, Callable[[Somebody, Stage], Ended]] = {
    Role.PUBLISHER: published,
    Role.OPERATOR: operated,
    Role.PRODUCER: produced,
    Role.SCORER: scored,
    Role.CLIENT: used,
    Role.READER: tailed,
    Role.OBSERVER: observed,
    Role.DLQ: replayed,
}


def missing_acl(ended: Ended) -> Acl:
    """The ACL that a command says is missing."""
    told = ended.error["missing_acl"]
    kind, operation = ResourceKind(told["resource_type"]), Operation(told["operation"])
    return Acl(kind, told["resource"], operation, prefixed=told["pattern_type"] == "prefixed")
