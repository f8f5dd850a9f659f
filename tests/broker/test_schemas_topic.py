"""The schemas topic on a real broker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelcast.avro import Schema
from modelcast.errors import UsageError
from modelcast.events.schemas import SchemaTopic
from modelcast.kafka import KafkaLog
from modelcast.log import BEGINNING, Log, TopicSpec
from modelcast.topics import Topics
from tests.brokers import Broker


@pytest.fixture
def log(broker: Broker) -> Iterator[Log]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as made:
        yield made


@pytest.fixture
def topics(log: Log, prefix: str) -> Topics:
    made = Topics(prefix)
    for spec in made.specs(blob_partitions=1, replication_factor=1):
        log.create(spec)
    return made


def decimal(scale: int) -> Schema:
    kind = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": scale}
    return Schema.parse({"type": "record", "name": "r", "fields": [{"name": "a", "type": kind}]})


def test_what_one_client_registers_another_finds(log: Log, topics: Topics) -> None:
    reader = SchemaTopic(log, topics)
    assert reader.find(decimal(2).fingerprint) is None
    SchemaTopic(log, topics).register(decimal(2))
    assert SchemaTopic(log, topics).find(decimal(2).fingerprint) == decimal(2)
    reader.close()


def test_a_registered_schema_stands_on_the_topic_once(log: Log, topics: Topics) -> None:
    for _ in range(2):
        SchemaTopic(log, topics).register(decimal(2))
    assert log.end_offsets(topics.schemas, committed=False) == {0: 1}
    (record,) = log.reader(topics.schemas, {0: BEGINNING}).poll(60)
    assert (record.key, record.value) == (decimal(2).digest.encode(), decimal(2).text.encode())


def test_another_meaning_of_the_same_fingerprint_is_refused(log: Log, topics: Topics) -> None:
    SchemaTopic(log, topics).register(decimal(2))
    with pytest.raises(UsageError, match="logical types"):
        SchemaTopic(log, topics).register(decimal(4))
    assert log.end_offsets(topics.schemas, committed=False) == {0: 1}


def test_a_topic_of_transaction_markers_is_read_to_its_end(log: Log, topics: Topics) -> None:
    writer = log.transactional_writer(f"{topics.prefix}.foreign", timeout_ms=10_000)
    writer.begin()
    writer.send(topics.schemas, key=b"k", value=b"no schema", partition=0)
    writer.abort()
    writer.close()
    SchemaTopic(log, topics).register(decimal(2))
    assert SchemaTopic(log, topics).find(decimal(2).fingerprint) == decimal(2)


def test_a_repository_without_a_schemas_topic_knows_no_schema(log: Log, prefix: str) -> None:
    log.create(TopicSpec(f"{prefix}.other", 1))
    assert SchemaTopic(log, Topics(prefix)).find(bytes(8)) is None
