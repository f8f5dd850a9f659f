"""`modelcast send` and `modelcast tail` as people run them: a process, a real broker, real files."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from modelcast.cli import main
from modelcast.kafka import KafkaLog
from modelcast.log import Log, TopicSpec
from modelcast.topics import Topics
from tests.brokers import Broker

CSV = "id,amount,note,at\na,1.5,x,2013-01-01T00:00:00Z\nb,2,,2013-01-02T00:00:00Z\n"
ROWS = [
    {"id": "a", "amount": 1.5, "note": "x", "at": "2013-01-01T00:00:00Z"},
    {"id": "b", "amount": 2.0, "note": None, "at": "2013-01-02T00:00:00Z"},
]
# Longer than any command here takes; a command that hangs fails its test instead of the session.
TIMEOUT_S = 180


@dataclass(frozen=True)
class Shell:
    """Runs modelcast against one broker and one repository."""

    broker: str
    prefix: str

    def line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "modelcast", *arguments, "-b", self.broker, "--prefix", self.prefix]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.line(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False, encoding="utf-8"
        )

    def json(self, *arguments: str) -> list[dict[str, Any]]:
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line, parse_constant=pytest.fail) for line in done.stdout.splitlines()]

    def fails(self, *arguments: str, status: int) -> str:
        """What is said on standard error; in this process, because there are many ways to fail."""
        out, err, argv = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = self.line(*arguments)[2:]
        try:
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
                main()
        finally:
            sys.argv = argv
        assert left.value.code == status, err.getvalue()
        assert out.getvalue() == ""
        assert "Traceback" not in err.getvalue()
        assert "error:" in err.getvalue()
        assert "→" in err.getvalue()  # what to do
        return err.getvalue()


@pytest.fixture
def log(broker: Broker) -> Iterator[Log]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as made:
        yield made


@pytest.fixture
def shell(broker: Broker, log: Log, prefix: str) -> Shell:
    for spec in Topics(prefix).specs(blob_partitions=1, replication_factor=1):
        log.create(spec)
    return Shell(broker.bootstrap_servers, prefix)


@pytest.fixture
def csv(tmp_path: Path) -> str:
    path = tmp_path / "events.csv"
    path.write_text(CSV)
    return str(path)


def nothing_was_done(log: Log, shell: Shell, topic: str) -> bool:
    schemas = Topics(shell.prefix).schemas
    return topic not in log.topics() and log.end_offsets(schemas, committed=False) == {0: 0}


@pytest.mark.parametrize("form", ["avro", "json"])
def test_what_is_sent_is_shown(shell: Shell, csv: str, fresh_topic: Callable[..., str], form: str) -> None:
    topic = fresh_topic("events")
    (sent,) = shell.json("send", topic, csv, "--format", form, "--key", "id", "--timestamp", "at")
    assert (sent["topic"], sent["events"]) == (topic, 2)
    assert (sent["schema"] or "").startswith("sha256:") is (form == "avro")
    assert list(sent) == ["topic", "events", "bytes", "schema", "seconds", "events_per_s"]
    shown = shell.json("tail", topic, "--from-beginning", "--until-end")
    assert all(list(event) == ["key", "partition", "offset", "timestamp", "value"] for event in shown)
    shown.sort(key=lambda event: str(event["key"]))
    assert [event["value"] for event in shown] == ROWS
    assert [event["key"] for event in shown] == ["a", "b"]
    assert [event["timestamp"] for event in shown] == [1356998400000, 1357084800000]


def test_parquet_and_json_lines_give_the_same_events(
    shell: Shell, tmp_path: Path, fresh_topic: Callable[..., str]
) -> None:
    at = [datetime(2013, 1, day, tzinfo=UTC) for day in (1, 2)]
    frame = pl.DataFrame({"id": ["a", "b"], "amount": [1.5, 2.0], "note": ["x", None], "at": at})
    frame.write_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name in ("t.parquet", "t.jsonl"):
        topic = fresh_topic("events")
        shell.json("send", topic, str(tmp_path / name), "--partitions", "1", "--timestamp", "at")
        shown = shell.json("tail", topic, "--from-beginning", "--until-end")
        assert [(event["timestamp"], event["value"]) for event in shown] == list(
            zip([1356998400000, 1357084800000], ROWS, strict=True)
        )


def test_a_given_schema_is_used_and_keeps_digits_as_text(
    shell: Shell, tmp_path: Path, fresh_topic: Callable[..., str]
) -> None:
    fields = [{"name": "zip", "type": "string"}, {"name": "n", "type": "float"}]
    (tmp_path / "e.avsc").write_text(json.dumps({"type": "record", "name": "e", "fields": fields}))
    (tmp_path / "t.csv").write_text("zip,n,extra\n01234,1,9\n")
    topic = fresh_topic("events")
    done = shell.run("send", "--schema", str(tmp_path / "e.avsc"), topic, str(tmp_path / "t.csv"))
    assert done.returncode == 0
    assert "left out: extra" in done.stderr
    (event,) = shell.json("tail", topic, "--from-beginning", "--limit", "1")
    assert event["value"] == {"zip": "01234", "n": 1.0}


def test_a_topic_that_is_made_is_said_and_keeps_old_events(
    shell: Shell, csv: str, log: Log, fresh_topic: Callable[..., str]
) -> None:
    topic = fresh_topic("events")
    done = shell.run("send", topic, csv, "--timestamp", "at", "--partitions", "3")
    assert f"created topic '{topic}' with 3 partitions" in done.stderr
    assert "warning" not in done.stderr
    description = log.describe(topic)
    assert (description.partitions, description.configs["retention.ms"]) == (3, "-1")


def test_a_topic_that_would_delete_what_is_sent_is_warned_of(
    shell: Shell, csv: str, log: Log, fresh_topic: Callable[..., str]
) -> None:
    topic = fresh_topic("events")
    log.create(TopicSpec(topic, 1, configs={"retention.ms": "86400000"}))
    done = shell.run("send", topic, csv, "--timestamp", "at")
    assert done.returncode == 0
    assert f"topic '{topic}' deletes events 1 days after their timestamp" in done.stderr
    assert "retention.ms=-1" in done.stderr


def test_tail_for_people_is_a_line_a_record_and_harmless(
    shell: Shell, log: Log, fresh_topic: Callable[..., str]
) -> None:
    topic = fresh_topic("events")
    log.create(TopicSpec(topic, 1, configs={"retention.ms": "-1"}))  # the times are of long ago
    writer = log.writer()
    writer.send(topic, key=b"\x1b[2J", value='{"a": "\x9b[red]"}'.encode(), timestamp_ms=1356998400000)
    writer.flush(60)
    writer.close()
    done = shell.run("tail", topic, "--from-beginning", "--until-end")
    assert done.stdout == '2013-01-01T00:00:00.000Z  0:0  "\\u001b[2J"  {"a": "\\u009b[red]"}\n'


def test_a_send_that_is_interrupted_says_how_far_it_came(
    shell: Shell, csv: str, log: Log, fresh_topic: Callable[..., str]
) -> None:
    topic = fresh_topic("events")
    log.create(TopicSpec(topic, 1, configs={"retention.ms": "-1"}))
    send = subprocess.Popen(
        shell.line("send", topic, csv, "--rate", "0.01"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while log.end_offsets(topic, committed=True)[0] == 0 and time.monotonic() < deadline:
            time.sleep(0.05)
        send.send_signal(signal.SIGINT)
        stdout, stderr = send.communicate(timeout=TIMEOUT_S)
    finally:
        send.kill()
    assert (send.returncode, stdout) == (130, "")
    assert f"the first 1 were sent to {topic}" in stderr
    assert log.end_offsets(topic, committed=True) == {0: 1}


def test_tail_follows_until_it_is_interrupted(
    shell: Shell, csv: str, log: Log, fresh_topic: Callable[..., str]
) -> None:
    topic = fresh_topic("events")
    log.create(TopicSpec(topic, 1, configs={"retention.ms": "-1"}))  # the times are of long ago
    tail = subprocess.Popen(shell.line("tail", topic, "--from-beginning", "--json"), stdout=subprocess.PIPE, text=True)
    assert tail.stdout is not None
    try:
        shell.json("send", topic, csv)
        assert [json.loads(tail.stdout.readline())["value"]["id"] for _ in range(2)] == ["a", "b"]
        tail.send_signal(signal.SIGINT)
        assert tail.wait(TIMEOUT_S) == 0
    finally:
        tail.kill()
        tail.stdout.close()


def test_tail_ends_quietly_when_its_reader_has_enough(shell: Shell, csv: str, fresh_topic: Callable[..., str]) -> None:
    topic = fresh_topic("events")
    shell.json("send", topic, csv)
    tail = subprocess.Popen(
        shell.line("tail", topic, "--from-beginning", "--until-end", "--json"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert tail.stdout is not None
    assert tail.stderr is not None
    tail.stdout.close()
    assert tail.wait(TIMEOUT_S) == 0
    assert tail.stderr.read() == ""
    tail.stderr.close()


def test_a_missing_topic_is_not_found_by_tail_nor_made(shell: Shell, log: Log, fresh_topic: Callable[..., str]) -> None:
    topic = fresh_topic("absent")
    assert topic in shell.fails("tail", topic, "--from-beginning", "--until-end", status=4)
    assert topic not in log.topics()


@pytest.mark.parametrize(
    ("name", "content"),
    [("absent.csv", None), ("e.parquet", b"PAR1 but no"), ("e.csv", b""), ("e.jsonl", b"{"), ("e.xlsx", b"PK")],
)
def test_an_unreadable_file_sends_nothing(
    shell: Shell, log: Log, tmp_path: Path, fresh_topic: Callable[..., str], name: str, content: bytes | None
) -> None:
    topic = fresh_topic("events")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert name in shell.fails("send", topic, str(tmp_path / name), status=2)
    assert nothing_was_done(log, shell, topic)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (None, "can't read schema file"),
        ("{", "e.avsc: not an Avro schema"),
        ('"string"', "e.avsc: the schema of events must be a record"),
        ('{"type": "record", "name": "e", "fields": [{"name": "note", "type": "string"}]}', "row 2, field 'note'"),
        ('{"type": "record", "name": "e", "fields": [{"name": "id", "type": "long"}]}', "row 1, field 'id'"),
        ('{"type": "record", "name": "e", "fields": [{"name": "b", "type": "long"}]}', "a field 'b', but the data has"),
    ],
)
def test_a_wrong_schema_sends_nothing(
    shell: Shell, log: Log, csv: str, tmp_path: Path, fresh_topic: Callable[..., str], schema: str | None, said: str
) -> None:
    topic = fresh_topic("events")
    if schema is not None:
        (tmp_path / "e.avsc").write_text(schema)
    assert said in shell.fails("send", topic, csv, "--schema", str(tmp_path / "e.avsc"), status=2)
    assert nothing_was_done(log, shell, topic)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--key", "nothing"], "no field 'nothing' for --key"),
        (["--timestamp", "id"], "row 1, field 'id': 'a' is not an ISO 8601 time"),
        (["--rate", "0"], "--rate 0"),
        (["--format", "json", "--schema", "e.avsc"], "--schema describes Avro"),
    ],
)
def test_a_wrong_option_sends_nothing(
    shell: Shell, log: Log, csv: str, fresh_topic: Callable[..., str], options: list[str], said: str
) -> None:
    topic = fresh_topic("events")
    assert said in shell.fails("send", topic, csv, *options, status=2)
    assert nothing_was_done(log, shell, topic)


def test_without_a_repository_send_says_how_to_make_one(
    broker: Broker, log: Log, prefix: str, csv: str, fresh_topic: Callable[..., str]
) -> None:
    topic = fresh_topic("events")
    said = Shell(broker.bootstrap_servers, prefix).fails("send", topic, csv, status=4)
    assert "modelcast init" in said
    assert topic not in log.topics()


@pytest.mark.parametrize("command", ["send", "tail"])
def test_a_broker_that_is_not_there_is_said(csv: str, prefix: str, command: str) -> None:
    # Port 9 is the discard service's, which nothing offers.
    arguments = ["send", "t", csv] if command == "send" else ["tail", "t"]
    assert "127.0.0.1:9" in Shell("127.0.0.1:9", prefix).fails(*arguments, status=3)
