"""`modelcast.testing.Repository`: what is sent is what is read, and models go both ways, in memory."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from modelcast.errors import BrokerError, SourceError, UsageError
from modelcast.names import ModelVersion
from modelcast.testing import Faults, FaultyLog, MemoryGroupLog, Repository

ROWS = [{"card": 7, "amount": 12.5}, {"card": 8, "amount": 99.0}]


@pytest.fixture
def repository() -> Repository:
    return Repository.in_memory()


def test_events_are_read_as_they_were_sent(repository: Repository) -> None:
    repository.send("as-json", [*ROWS, b"no event", None], key="card")
    repository.send("as-avro", pl.DataFrame(ROWS), key="card")
    json, avro = repository.read("as-json"), repository.read("as-avro")
    assert [event.value for event in json] == [*ROWS, {"base64": "bm8gZXZlbnQ="}, None]
    assert [event.key for event in json] == ["7", "8", None, None]
    assert [(event.key, event.value) for event in avro] == [("7", ROWS[0]), ("8", ROWS[1])]


def test_a_topic_that_is_not_there_holds_nothing_and_one_that_is_made_has_its_partitions(
    repository: Repository,
) -> None:
    assert repository.read("events") == []
    repository.send("events", ROWS, key="card", partitions=3)
    assert repository.open_log().topics()["events"] == 3
    assert len(repository.read("events")) == 2


def test_everything_is_read_from_a_log_that_is_late(repository: Repository) -> None:
    repository = Repository.in_memory(FaultyLog(MemoryGroupLog(), Faults(delay=0.8, reorder=0.5)))
    repository.send("events", [{"n": n} for n in range(200)], partitions=3)
    found = repository.read("events")
    assert sorted(event.value["n"] for event in found) == list(range(200))
    assert [(event.partition, event.offset) for event in found] == sorted((e.partition, e.offset) for e in found)


def test_what_can_not_be_sent_or_published_says_so(repository: Repository) -> None:
    with pytest.raises(UsageError, match="can't branch on a value"):
        repository.publish("fraud", lambda amount: 1.0 if amount > 1 else 0.0)
    with pytest.raises(SourceError, match="object"):
        repository.publish("fraud", object(), examples=ROWS)
    away = FaultyLog(MemoryGroupLog())
    other = Repository.in_memory(away)
    with away.away(), pytest.raises(BrokerError, match="no broker answers"):
        other.send("events", ROWS)


def test_versions_count_from_one(repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path))
    assert repository.publish("fraud", lambda amount: amount * 2) == ModelVersion("fraud", 1)
    assert repository.publish("fraud", abs_of, release=False) == ModelVersion("fraud", 2)


def abs_of(amount: float) -> float:
    """A function of a module, as well as a lambda."""
    return abs(amount)
