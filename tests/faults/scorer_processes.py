"""Real `modelcast` processes on a real broker, to be really killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, MemberDescription

from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from tests.reliability.figures import counted
from tests.unit.linear_model import linear_model

from . import oracle

ROOT = Path(__file__).resolve().parents[2]
DEADLINE_S = 60.0
# A broker killed on a busy machine starts for a minute, and its coordinators load after that.
BROKER_BACK_S = 240.0
# A client that asked while its broker died may wait for an answer that does not come: another one is asked.
ATTEMPT_S = 5.0


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = DEADLINE_S) -> None:
    """Waits for what other processes bring about."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s for {what}"
        time.sleep(0.02)


class Stage:
    """One repository with one model, one stream, and the processes that score it."""

    def __init__(self, servers: str, prefix: str, folder: Path, *, partitions: int = 4) -> None:
        self.servers = servers
        self.prefix = prefix
        self.folder = folder
        self.partitions = partitions
        self.events, self.predictions = f"{prefix}-events", f"{prefix}-scores"
        self.dead_letters = f"{self.predictions}.dead-letters"
        self.schemas = f"{prefix}.schemas"
        self._admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
        self._group_reader = self._open_group_reader()
        with KafkaLog({"bootstrap.servers": servers}) as log:
            log.create(TopicSpec(self.events, partitions))
            for topic in (self.predictions, self.dead_letters):
                log.create(TopicSpec(topic, partitions, configs={"retention.ms": "-1"}))
        self.run("init")

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MODELCAST_BOOTSTRAP_SERVERS": self.servers,
            "MODELCAST_PREFIX": self.prefix,
            "MODELCAST_STATE_DIR": str(self.folder / "state"),
            "MODELCAST_CACHE_DIR": str(self.folder / "cache"),
        }

    def run(self, *arguments: str) -> Mapping[str, Any]:
        """A command to its end; its last JSON line."""
        done = subprocess.run(
            [sys.executable, "-m", "modelcast", *arguments, "--json"],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        lines = done.stdout.splitlines()
        parsed = json.loads(lines[-1]) if lines else {}
        assert isinstance(parsed, dict)
        return parsed

    def publish(self, bias: float, *, fields: str = "amount,age") -> int:
        """Publishes and releases `amount + age + bias`; returns its version."""
        folder = self.folder / f"model-{bias}-{fields}"
        linear_model(folder, bias)
        first, second = fields.split(",")
        rows = folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({first: float(n), second: n / 3}) + "\n" for n in range(20)))
        published = self.run(
            "publish", "fraud", str(folder / "model.onnx"), "--examples", str(rows), "--fields", fields, "--release"
        )
        return int(published["version"])

    def send(self, count: int, *, start: int = 0) -> None:
        """Sends JSON events, spread evenly over the partitions."""
        producer = Producer({"bootstrap.servers": self.servers, "linger.ms": 20})
        for number in range(start, start + count):
            producer.produce(
                self.events,
                value=b'{"amount": %d, "age": 1}' % number,
                key=b"%d" % number,
                partition=number % self.partitions,
            )
            if number % 10_000 == 0:
                producer.poll(0)
        assert producer.flush(60) == 0

    @contextmanager
    def feeding(self, per_second: int, *, count: int | None = None) -> Iterator[Feeder]:
        """Sends events at a steady rate meanwhile; up to `count`, which may be raised."""
        feeder = Feeder(self, per_second, count)
        feeder.start()
        try:
            yield feeder
        finally:
            feeder.stop()

    def score(
        self, *options: str, servers: str | None = None, limits: Mapping[str, object] = MappingProxyType({})
    ) -> ScoreProcess:
        """Starts a scorer; `servers` other than the stage's, `limits` (`MODULE:NAME`) other than its own."""
        return ScoreProcess(self, options if servers is None else ("-b", servers, *options), limits)

    @property
    def group(self) -> str:
        """The scorers' group, by its default name."""
        return f"{self.prefix}.fraud.{self.predictions}"

    def _open_group_reader(self) -> Consumer:
        return Consumer({"bootstrap.servers": self.servers, "group.id": self.group, "log_level": 0})

    def committed(self) -> dict[int, int]:
        """The group's next offset of each partition that has one; a broker that is down is waited for."""
        asked = [TopicPartition(self.events, partition) for partition in range(self.partitions)]
        deadline = time.monotonic() + BROKER_BACK_S
        while True:
            try:
                found = self._group_reader.committed(asked, ATTEMPT_S)
            except KafkaException:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
                self._group_reader = self._open_group_reader()
            else:
                return {place.partition: place.offset for place in found if place.offset >= 0}

    def reset(self, places: Sequence[TopicPartition]) -> None:
        """Sets the group's offsets, once its last member is gone."""

        def done() -> bool:
            try:
                self._group_reader.commit(offsets=list(places), asynchronous=False)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_MEMBER_ID:
                    raise
                return False
            return True

        wait_for(done, "the group to be empty")

    def await_scored(self, count: int = 1, timeout_s: float = DEADLINE_S) -> None:
        """Waits until that many more events were scored and committed."""
        before = sum(self.committed().values())
        wait_for(lambda: sum(self.committed().values()) >= before + count, f"{count} more events scored", timeout_s)

    def partitions_of(self, instance: str) -> set[int]:
        """The partitions that the group's member of that instance has."""
        return {place.partition for member in self._members(instance) for place in member.assignment.topic_partitions}

    def member_of(self, instance: str) -> Sequence[str]:
        """The id that the group gave the member of that instance: another one after every new start in the group."""
        return [member.member_id for member in self._members(instance)]

    def _members(self, instance: str) -> list[MemberDescription]:
        described = self._admin.describe_consumer_groups([self.group])[self.group].result()
        return [member for member in described.members if member.group_instance_id == instance]

    def judge(self) -> oracle.Verdict:
        """What the oracle finds, printed."""
        verdict = oracle.judge(
            self.servers,
            events=self.events,
            predictions=self.predictions,
            dead_letters=self.dead_letters,
            schemas=self.schemas,
        )
        print(verdict)
        counted(
            events=verdict.events,
            lost=len(verdict.lost),
            doubled=len(verdict.doubled),
            out_of_order=len(verdict.out_of_order),
        )
        return verdict

    def finish(self, *options: str) -> Mapping[str, Any]:
        """Scores what is left, to the end."""
        return self.run(
            "score", "fraud", "--events", self.events, "--predictions", self.predictions, "--until-end", *options
        )


class Feeder(threading.Thread):
    """Produces events at a steady rate, and knows the next offset of each partition.

    Attributes:
        count: How many it sends; None for no end.
    """

    def __init__(self, stage: Stage, per_second: int, count: int | None) -> None:
        super().__init__(daemon=True)
        self.count = count
        self._stage = stage
        self._pause_s = stage.partitions / per_second
        self._stopping = threading.Event()
        self.sent = 0
        self.next_offsets = dict.fromkeys(range(stage.partitions), 0)

    def run(self) -> None:
        producer = Producer({"bootstrap.servers": self._stage.servers, "linger.ms": 0, "log_level": 0})

        def delivered(error: object, message: Any) -> None:
            assert error is None, error
            self.next_offsets[message.partition()] = message.offset() + 1

        while not self._stopping.wait(self._pause_s):
            if self.count is not None and self.sent >= self.count:
                continue
            for partition in range(self._stage.partitions):
                producer.produce(
                    self._stage.events,
                    value=b'{"amount": %d, "age": 2}' % self.sent,
                    partition=partition,
                    on_delivery=delivered,
                )
                self.sent += 1
            producer.poll(0)
        assert producer.flush(60) == 0

    def stop(self) -> None:
        self._stopping.set()
        self.join(70)


class ScoreProcess:
    """A running `modelcast score --json`; kills what is left of it at the end."""

    def __init__(self, stage: Stage, options: Sequence[str], limits: Mapping[str, object]) -> None:
        self.lines: list[dict[str, Any]] = []
        limited = [f"{place}={value}" for place, value in limits.items()]
        program = ["tests.faults.limited_scorer", *limited, "--"] if limits else ["modelcast"]
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", *program, "score", "fraud", "--events", stage.events,
                "--predictions", stage.predictions, "--json", *options,
            ],
            env=stage.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        self._errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> ScoreProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None = None, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        self.process.wait(60)
        for reader in self._readers:
            reader.join(60)
        if kind is not None:
            print(self.last_words())
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def wait_line(self, event: str, timeout_s: float = DEADLINE_S, **fields: object) -> dict[str, Any]:
        """The first report of that kind with these values."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            found.extend(
                line
                for line in list(self.lines)
                if line.get("event") == event and all(line.get(name) == value for name, value in fields.items())
            )
            ended = self.process.poll() is not None and not any(reader.is_alive() for reader in self._readers)
            assert found or not ended, self.last_words()
            return bool(found)

        wait_for(there, f"{event} {fields}; it said {self.lines} {''.join(self._errors)}", timeout_s)
        return found[0]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its reports of that kind so far."""
        return [line for line in list(self.lines) if line.get("event") == event]

    def last_words(self) -> str:
        """How it ended, and what it said to people."""
        return f"the scorer ended with {self.process.returncode}: {''.join(self._errors)}\n{self.lines[-8:]}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(60)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Asks it to end; returns its exit status."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self._errors.extend(self.process.stderr)
