"""The schemas topic: described once, found by fingerprint, deaf to garbage."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import digest
from modelcast.avro import Schema
from modelcast.errors import RepositoryNotFoundError, UsageError
from modelcast.events.schemas import REREAD_INTERVAL_S, SchemaTopic
from modelcast.log import BEGINNING
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

TOPICS = Topics("p")


def made_log() -> MemoryLog:
    log = MemoryLog()
    for spec in TOPICS.specs(blob_partitions=1, replication_factor=1):
        log.create(spec)
    return log


def schema(field: str = "a", **attributes: Any) -> Schema:
    return Schema.parse({"type": "record", "name": "r", "fields": [{"name": field, "type": "long", **attributes}]})


def decimal(scale: int) -> Schema:
    kind = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": scale}
    return Schema.parse({"type": "record", "name": "r", "fields": [{"name": "a", "type": ["null", kind]}]})


def values(log: MemoryLog) -> list[bytes | None]:
    return [record.value for record in log.reader(TOPICS.schemas, {0: BEGINNING}).poll(0)]


def append(log: MemoryLog, key: bytes | None, value: bytes | None) -> None:
    log.writer().send(TOPICS.schemas, key=key, value=value, partition=0)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_registered_schema_is_found_by_everybody() -> None:
    log = made_log()
    SchemaTopic(log, TOPICS).register(schema())
    assert SchemaTopic(log, TOPICS).find(schema().fingerprint) == schema()


def test_the_key_is_the_digest_of_the_text() -> None:
    log = made_log()
    SchemaTopic(log, TOPICS).register(schema())
    (record,) = log.reader(TOPICS.schemas, {0: BEGINNING}).poll(0)
    assert (record.key, record.value) == (schema().digest.encode(), schema().text.encode())


def test_registering_again_writes_nothing() -> None:
    log = made_log()
    topic = SchemaTopic(log, TOPICS)
    topic.register(schema())
    topic.register(schema())
    SchemaTopic(log, TOPICS).register(schema())
    assert len(values(log)) == 1


def test_two_meanings_of_one_fingerprint_are_refused() -> None:
    log = made_log()
    topic = SchemaTopic(log, TOPICS)
    topic.register(decimal(2))
    assert decimal(2).fingerprint == decimal(4).fingerprint
    with pytest.raises(UsageError, match=r"'r' differs in its logical types .* CRC-64 fingerprint") as caught:
        topic.register(decimal(4))
    assert caught.value.hint == "Give the record another name or namespace."
    assert values(log) == [decimal(2).text.encode()]


def test_texts_that_mean_the_same_both_stand_and_the_first_is_found() -> None:
    log = made_log()
    topic = SchemaTopic(log, TOPICS)
    documented = schema(doc="what a is", default=0)
    topic.register(schema())
    topic.register(documented)
    assert values(log) == [schema().text.encode(), documented.text.encode()]
    assert topic.find(documented.fingerprint) == schema()


def test_of_two_that_register_at_once_one_is_refused() -> None:
    log = made_log()
    late = SchemaTopic(log, TOPICS)
    late._read_to_end()
    read_to_end, calls = late._read_to_end, iter([lambda: SchemaTopic(log, TOPICS).register(decimal(2))])

    def read_then_be_overtaken() -> None:
        read_to_end()
        next(calls, lambda: None)()

    late._read_to_end = read_then_be_overtaken  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="logical types"):
        late.register(decimal(4))
    assert SchemaTopic(log, TOPICS).find(decimal(4).fingerprint) == decimal(2)


def test_without_a_repository_registering_says_how_to_make_one() -> None:
    topic = SchemaTopic(MemoryLog(), TOPICS)
    with pytest.raises(RepositoryNotFoundError, match=r"p\.schemas") as caught:
        topic.register(schema())
    assert caught.value.hint is not None
    assert "modelcast init" in caught.value.hint
    assert topic.find(schema().fingerprint) is None


def test_an_unknown_fingerprint_is_looked_for_again_but_not_at_every_record() -> None:
    log, clock = made_log(), Clock()
    topic = SchemaTopic(log, TOPICS, clock=clock)
    assert topic.find(schema().fingerprint) is None
    SchemaTopic(log, TOPICS).register(schema())
    clock.now += REREAD_INTERVAL_S * 0.9
    assert topic.find(schema().fingerprint) is None
    clock.now += REREAD_INTERVAL_S * 0.2
    assert topic.find(schema().fingerprint) == schema()


def test_an_open_transaction_does_not_hide_a_schema() -> None:
    log = made_log()
    foreign = log.transactional_writer("foreign", timeout_ms=1000)
    foreign.begin()
    foreign.send(TOPICS.schemas, key=b"x", value=b"y", partition=0)
    SchemaTopic(log, TOPICS).register(schema())
    assert SchemaTopic(log, TOPICS).find(schema().fingerprint) == schema()


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{", b"null", b"1", b"\xff", b'{"type": "record"}', b'{"type": 5}',
        b'{"type": "record", "name": "r", "fields": [{}]}', b'{"a":' * 100_000,
        b'{"type": "record", "name": "r", "fields": [{"name": "a", "type": "nothing"}]}',
    ],
)  # fmt: skip
def test_a_text_that_is_no_schema_is_passed_over(text: bytes, caplog: pytest.LogCaptureFixture) -> None:
    log = made_log()
    append(log, digest.of_bytes(text).encode(), text)
    SchemaTopic(log, TOPICS).register(schema())
    assert SchemaTopic(log, TOPICS).find(schema().fingerprint) == schema()
    assert "offset 0 is passed over" in caplog.text


@given(key=st.none() | st.binary(max_size=80), value=st.none() | st.binary(max_size=80))
def test_no_record_ends_the_reading(key: bytes | None, value: bytes | None) -> None:
    log = made_log()
    append(log, key, value)
    append(log, digest.of_bytes(value or b"").encode(), value)
    SchemaTopic(log, TOPICS).register(schema())
    assert SchemaTopic(log, TOPICS).find(schema().fingerprint) == schema()


def test_a_schema_under_a_key_that_is_not_its_digest_is_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    log = made_log()
    append(log, decimal(2).digest.encode(), decimal(4).text.encode())
    topic = SchemaTopic(log, TOPICS)
    assert topic.find(decimal(4).fingerprint) is None
    assert "is not the digest of its value" in caplog.text
    topic.register(decimal(2))
    assert topic.find(decimal(2).fingerprint) == decimal(2)


def test_a_text_laid_out_by_another_client_keeps_its_identity() -> None:
    log = made_log()
    text = json.dumps(schema().definition, indent=2).encode()
    append(log, digest.of_bytes(text).encode(), text)
    found = SchemaTopic(log, TOPICS).find(schema().fingerprint)
    assert found is not None
    assert found.digest == digest.of_bytes(text)
    assert found.decode(found.encode({"a": 5})) == {"a": 5}


def test_many_threads_may_ask_at_once() -> None:
    log = made_log()
    schemas = [schema(f"f{number}") for number in range(20)]
    topic = SchemaTopic(log, TOPICS)
    found: list[bool] = []

    def ask(one: Schema) -> None:
        topic.register(one)
        found.append(topic.find(one.fingerprint) == one)

    threads = [threading.Thread(target=ask, args=(one,)) for one in schemas for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40
    assert len(values(log)) == 20
