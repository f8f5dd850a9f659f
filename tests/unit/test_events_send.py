"""Sending frames: what is written in which order, what is refused before anything is, how a rate is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from modelcast.avro import FRAME_BYTES, Schema
from modelcast.errors import RepositoryNotFoundError, TopicConfigError, UsageError
from modelcast.events.infer import infer_schema_of
from modelcast.events.schemas import SchemaTopic
from modelcast.events.send import EventSender, Sent, send_table
from modelcast.log import BEGINNING, LogRecord, TopicSpec
from modelcast.tables import open_table
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

TOPICS = Topics("p")
NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
FRAME = pl.DataFrame({"id": ["a", "b", "c"], "n": [1, 2, 3], "t": [NOW_MS - 3, NOW_MS - 2, NOW_MS - 1]})
SCHEMA = infer_schema_of("events", FRAME)


@pytest.fixture
def log() -> MemoryLog:
    made = MemoryLog()
    for spec in TOPICS.specs(blob_partitions=1, replication_factor=1):
        made.create(spec)
    return made


def records(log: MemoryLog, topic: str = "events") -> list[LogRecord]:
    start = dict.fromkeys(range(log.topics()[topic]), BEGINNING)
    return sorted(log.reader(topic, start).poll(0), key=lambda record: record.timestamp_ms)


def sender(log: MemoryLog, **options: Any) -> EventSender:
    return EventSender(log, TOPICS, "events", **{"schema": SCHEMA, "now_ms": lambda: NOW_MS, **options})


def test_a_row_is_a_record_with_its_key_and_timestamp(log: MemoryLog) -> None:
    with sender(log, key="id", timestamp="t") as sending:
        sending.send(FRAME)
        sending.flush()
    got = [
        (r.key, r.timestamp_ms, SCHEMA.decode(r.value, start=FRAME_BYTES)) for r in records(log) if r.value is not None
    ]
    assert got == [(row["id"].encode(), row["t"], row) for row in FRAME.to_dicts()]
    assert sending.events == 3
    assert sending.bytes == sum(len(r.key or b"") + len(r.value or b"") for r in records(log))


def test_the_schema_is_described_where_readers_look(log: MemoryLog) -> None:
    sender(log).send(FRAME)
    assert SchemaTopic(log, TOPICS).find(SCHEMA.fingerprint) == SCHEMA


def test_a_missing_topic_is_created_to_keep_events_for_ever_and_said(log: MemoryLog) -> None:
    said: list[str] = []
    sender(log, partitions=7, say=said.append).send(FRAME)
    sender(log, partitions=9, say=said.append).send(FRAME)
    assert said == ["created topic 'events' with 7 partitions, keeping events for ever"]
    assert (log.describe("events").partitions, log.describe("events").configs["retention.ms"]) == (7, "-1")


def test_json_needs_no_repository() -> None:
    log = MemoryLog()
    sender(log, schema=None, timestamp="t").send(FRAME)
    assert records(log)[0].value == b'{"id":"a","n":1,"t":%d}' % FRAME["t"][0]


def test_without_a_repository_avro_sends_nothing() -> None:
    log = MemoryLog()
    with pytest.raises(RepositoryNotFoundError):
        sender(log).send(FRAME)
    assert log.topics() == {}


@pytest.mark.parametrize(
    ("options", "frame"),
    [
        ({}, FRAME.with_columns(n=pl.Series([1, None, 3]))),
        ({"key": "absent"}, FRAME),
        ({"timestamp": "id"}, FRAME),
        ({"timestamp": "t"}, FRAME.with_columns(t=pl.Series([1, 2, NOW_MS + 2 * DAY_MS]))),
    ],
)
def test_a_first_frame_that_is_refused_leaves_nothing_on_any_topic(
    log: MemoryLog, options: Mapping[str, Any], frame: pl.DataFrame
) -> None:
    with pytest.raises(UsageError):
        sender(log, **options).send(frame)
    assert "events" not in log.topics()
    assert records(log, TOPICS.schemas) == []


def test_a_later_frame_that_is_refused_says_how_many_went_before(log: MemoryLog) -> None:
    sending = sender(log)
    sending.send(FRAME)
    with pytest.raises(UsageError, match=r"row 5, field 'n': null is not a long \(3 events before it were sent"):
        sending.send(FRAME.with_columns(n=pl.Series([1, None, 3])))
    assert len(records(log)) == 3


def test_a_time_the_broker_would_refuse_is_named_by_row(log: MemoryLog) -> None:
    late = FRAME.with_columns(t=pl.Series([NOW_MS, NOW_MS + DAY_MS, NOW_MS]))
    with pytest.raises(UsageError, match=r"row 2, field 't': \d+ lies further ahead"):
        sender(log, timestamp="t").send(late)


@pytest.mark.parametrize(
    ("configs", "warned"),
    [
        ({}, True),  # Kafka's default is a week
        ({"retention.ms": "-1"}, False),
        ({"cleanup.policy": "compact"}, False),
        ({"cleanup.policy": "compact,delete"}, True),
        ({"message.timestamp.type": "LogAppendTime"}, False),
    ],
)
def test_a_topic_that_would_delete_old_events_is_warned_of_once(
    log: MemoryLog, configs: Mapping[str, str], warned: bool
) -> None:
    log.create(TopicSpec("events", 1, configs=configs))
    warnings: list[str] = []
    old = FRAME.with_columns(t=pl.Series([NOW_MS - 8 * DAY_MS, NOW_MS, NOW_MS]))
    sending = sender(log, key="id", timestamp="t", warn=warnings.append)
    sending.send(old)
    sending.send(old)
    assert len(warnings) == warned
    assert all("'events' deletes events 7 days after" in text and "retention.ms=-1" in text for text in warnings)


@pytest.mark.parametrize("policy", ["compact", "compact,delete"])
def test_events_without_a_key_are_not_sent_to_a_compacted_topic(log: MemoryLog, policy: str) -> None:
    log.create(TopicSpec("events", 1, configs={"cleanup.policy": policy}))
    with pytest.raises(TopicConfigError, match=f"'events' has cleanup.policy={policy}.*--key"):
        sender(log).send(FRAME)
    assert records(log) == records(log, TOPICS.schemas) == []
    sender(log, key="id").send(FRAME)
    assert len(records(log)) == 3


@pytest.mark.parametrize("name", [TOPICS.registry, TOPICS.schemas, TOPICS.blobs, TOPICS.status])
def test_no_events_are_sent_to_a_topic_of_the_repository(log: MemoryLog, name: str) -> None:
    with pytest.raises(UsageError, match=f"{name!r} belongs to the repository"):
        EventSender(log, TOPICS, name, schema=None, key="id")


def test_events_that_are_young_enough_are_not_warned_of(log: MemoryLog) -> None:
    log.create(TopicSpec("events", 1))
    warnings: list[str] = []
    sender(log, timestamp="t", warn=warnings.append).send(FRAME)
    assert warnings == []


class Clock:
    """Time that passes only by sleeping."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(("rate", "rows"), [(0.5, 4), (10, 25), (1000, 5000), (100_000, 50_000)])
def test_a_rate_is_kept_to_the_slice(log: MemoryLog, tmp_path: Path, rate: float, rows: int) -> None:
    path = tmp_path / "t.parquet"
    pl.DataFrame({"n": range(rows)}).write_parquet(path)
    clock = Clock()
    progress: list[tuple[float, int]] = []
    with open_table(path) as table:
        send_table(
            sender(log, schema=None),
            table,
            rate_per_s=rate,
            on_progress=lambda events: progress.append((clock.now, events)),
            clock=clock,
            sleep=clock.sleep,
        )
    slice_rows = max(1, rate / 20)
    assert all(events <= at * rate + 2 * slice_rows + 1 for at, events in progress)
    assert clock.now == pytest.approx(rows / rate, abs=slice_rows / rate + 1e-6)
    assert progress[-1][1] == rows == len(log_values(log))


def log_values(log: MemoryLog) -> list[bytes | None]:
    start = dict.fromkeys(range(log.topics()["events"]), BEGINNING)
    reader = log.reader("events", start)
    found: list[bytes | None] = []
    while batch := reader.poll(0):
        found += [record.value for record in batch]
    return found


def test_a_file_of_many_batches_arrives_whole_and_in_order(log: MemoryLog, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    pl.DataFrame({"n": range(45_000)}).write_csv(path)
    log.create(TopicSpec("events", 1))
    with open_table(path) as table:
        schema: Schema = infer_schema_of("events", table.read())
        send_table(sender(log, schema=schema), table)
    numbers = [schema.decode(value, start=FRAME_BYTES)["n"] for value in log_values(log) if value is not None]
    assert numbers == list(range(45_000))


def test_what_was_sent_as_json_data() -> None:
    assert Sent("t", 10, 100, "sha256:0", 2.0).describe() == {
        "topic": "t", "events": 10, "bytes": 100, "schema": "sha256:0", "seconds": 2.0, "events_per_s": 5.0,
    }  # fmt: skip
