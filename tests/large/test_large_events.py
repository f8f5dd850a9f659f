"""Events of 50 MB and more: refused to their sender, by name; on a topic that takes them, scored or dead letters."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelcast.consumer.dead_letters import CUT_BYTES, ERROR, OFFSET
from modelcast.dev.broker import LocalBroker
from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE
from modelcast.log import BEGINNING, TopicSpec
from modelcast.scan import scan
from modelcast.testing import Repository
from modelcast.testing.broker import local_broker

from .processes import Memory, Program

MB = 1_000_000
LARGE_BYTES = 50 * MB
# Above librdkafka's own limit for an answer, and what a producer of predictions and letters may send.
HUGE_BYTES = 150 * MB
TOPIC_BYTES = {LARGE_BYTES: 60 * MB, HUGE_BYTES: 200 * MB}
LONGEST_S = 300.0
MODEL, EVENTS, PREDICTIONS = "fraud", "events", "scores"
# Interpreter, runtime and client; some of the largest events fetched ahead, the one being decoded several times over,
# and letters on their way. Measured: about a gigabyte with the default limits.
SCORER_BYTES = 2_500 * MB


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A broker that takes requests of 400 MB; 100 MB are its default."""
    settings = {"socket.request.max.bytes": str(400 * MB)}
    with local_broker(tmp_path_factory.mktemp("broker"), server_properties=settings) as running:
        yield running


@pytest.fixture
def repository(broker: LocalBroker, prefix: str) -> Repository:
    repository = Repository.on(broker.bootstrap_servers, prefix=prefix)
    repository.publish(MODEL, lambda amount, age: amount + age)
    return repository


def event(amount: float, size: int = 0) -> bytes:
    return json.dumps({"amount": amount, "age": 1.0, "note": "x" * size}).encode()


def run(folder: Path, repository: Repository, *arguments: str) -> tuple[int, str, Memory]:
    """A command to its end: exit status, what it said, and its memory."""
    environment = {**os.environ, CACHE_VARIABLE: str(folder / "cache"), STATE_VARIABLE: str(folder / "state")}
    at = ("-b", repository.bootstrap_servers, "--prefix", repository.prefix)
    with Program("-m", "modelcast", *arguments, *at, output=folder / "said.log", environment=environment) as program:
        return program.process.wait(LONGEST_S), program.said, program.memory


def rows(folder: Path, *sizes: int) -> str:
    path = folder / "rows.jsonl"
    path.write_bytes(b"".join(event(float(number), size) + b"\n" for number, size in enumerate(sizes)))
    return str(path)


def headers_of(repository: Repository, topic: str) -> list[dict[str, bytes | None]]:
    with repository.open_log() as log:
        ends = log.end_offsets(topic, committed=False)
        found = scan(log, topic, dict.fromkeys(ends, BEGINNING), ends, timeout_s=LONGEST_S)
        return [dict(record.headers) for record in found]


@pytest.mark.timeout(900)
def test_send_names_the_row_that_is_too_large_and_what_lets_it_through(repository: Repository, tmp_path: Path) -> None:
    topic = f"{repository.prefix}-{EVENTS}"
    send = ("send", topic, rows(tmp_path, 1, LARGE_BYTES, 1), "--format", "json")
    status, said, _ = run(tmp_path, repository, *send)
    assert status == 3
    assert "row 2: can't send to topic" in said
    assert "-X message.max.bytes=500" in said
    raised = ("-X", f"message.max.bytes={60 * MB}", "-X", f"queue.buffering.max.kbytes={120_000}")
    status, said, _ = run(tmp_path, repository, *send, *raised)
    assert status == 3
    assert "the largest, row 2, has 50,000,0" in said
    assert "max.message.bytes of the topic" in said
    with repository.open_log() as log:
        log.create(TopicSpec(f"{topic}-2", 1, configs={"max.message.bytes": str(60 * MB)}))
    status, said, memory = run(tmp_path, repository, "send", f"{topic}-2", *send[2:], *raised)
    assert status == 0, said
    print(f"\na file with a row of 50 MB sent: {memory}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("size", "options"),
    [
        (LARGE_BYTES, ()),
        (LARGE_BYTES, ("--max-memory", "64MiB")),
        (LARGE_BYTES, ("--guarantee", "at-least-once")),
        (HUGE_BYTES, ()),
    ],
    ids=["50 MB", "50 MB, 64 MiB to hold them", "50 MB, at least once", "150 MB"],
)
def test_a_topic_of_large_events_is_scored_to_its_end_whatever_they_hold(
    repository: Repository, tmp_path: Path, size: int, options: tuple[str, ...]
) -> None:
    topics = [f"{repository.prefix}-{name}" for name in (EVENTS, PREDICTIONS)]
    events = {
        0: event(0.0),
        1: event(1.0, size),
        2: b"[" * size,
        3: b'{"amount": ' + b"1" * size,
        4: event(4.0, size),
        5: b"\x00" * size,
        6: event(6.0),
    }
    properties = {"message.max.bytes": str(2 * size), "queue.buffering.max.kbytes": str(len(events) * size // 1000)}
    with repository.open_log() as log:
        log.create(TopicSpec(topics[0], 1, configs={"max.message.bytes": str(TOPIC_BYTES[size])}))
    sending = Repository({**repository.settings, **properties}, repository.prefix)
    with sending.open_log() as log, closing(log.writer()) as writer:
        for value in events.values():
            writer.send(topics[0], key=None, value=value, partition=0)
        writer.flush(LONGEST_S)
    score = ("score", MODEL, "--events", topics[0], "--predictions", topics[1], "--until-end", *options)
    status, said, memory = run(tmp_path, repository, *score)
    print(f"\n{size // MB} MB {' '.join(options)}: {memory}")
    assert status == 0, said
    assert {found.value["source"]["offset"]: found.value["score"] for found in repository.read(topics[1])} == {
        0: 1.0,
        1: 2.0,
        4: 5.0,
        6: 7.0,
    }
    letters = {headers[OFFSET]: headers for headers in headers_of(repository, f"{topics[1]}.dead-letters")}
    assert letters.keys() == {b"2", b"3", b"5"}
    for headers in letters.values():
        assert headers[ERROR]
        # More than the producer may send, or hold.
        assert (CUT_BYTES.format(part="value") in headers) == (size == HUGE_BYTES or "--max-memory" in options)
    assert memory.own < SCORER_BYTES
