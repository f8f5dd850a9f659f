"""Following the registry: nothing is published before the true end was passed, and nothing read is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from modelcast import codec
from modelcast.errors import BrokerError, ConfigError, RepositoryNotFoundError
from modelcast.log import TransactionalWriter
from modelcast.registry.reader import RegistryReader
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

from .registry_records import REPOSITORY, key_of, manifest, release

TOPICS = Topics("test")


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    with MemoryLog() as log:
        for spec in TOPICS.specs(blob_partitions=1, replication_factor=1):
            log.create(spec)
        yield log


def write(log: MemoryLog, *payloads: codec.Payload) -> None:
    writer = log.writer()
    for payload in payloads:
        send(writer, payload)
    writer.flush(5)
    writer.close()


def send(writer: object, payload: codec.Payload) -> None:
    writer.send(  # type: ignore[attr-defined]
        TOPICS.registry, key=key_of(payload), value=codec.encode_envelope(codec.seal(payload)), partition=0
    )


def open_transaction(log: MemoryLog, payload: codec.Payload) -> TransactionalWriter:
    writer = log.transactional_writer(TOPICS.publisher_id("spam"), timeout_ms=10_000)
    writer.begin()
    send(writer, payload)
    return writer


def test_the_image_is_published_at_the_end(log: MemoryLog) -> None:
    write(log, REPOSITORY, manifest(1), release(1, 1))
    image = RegistryReader(log, TOPICS).catch_up(5)
    assert image.models["fraud"].champion == release(1, 1)
    assert image.revision == 3


def test_a_topic_without_a_repository_is_named(log: MemoryLog) -> None:
    with pytest.raises(RepositoryNotFoundError, match="modelcast init"):
        RegistryReader(log, TOPICS).catch_up(5)


def test_a_repository_of_a_newer_format_is_not_guessed_at(log: MemoryLog) -> None:
    write(log, replace(REPOSITORY, format_version=2), manifest(1))
    with pytest.raises(ConfigError, match="is of format 2, and this modelcast knows 1. Upgrade"):
        RegistryReader(log, TOPICS).catch_up(5)


def test_f42_catching_up_waits_for_an_open_transaction_but_not_for_ever(log: MemoryLog) -> None:
    write(log, REPOSITORY, manifest(1))
    writer = open_transaction(log, manifest(1, model="spam"))
    reader = RegistryReader(log, TOPICS)
    with pytest.raises(BrokerError, match="Another publisher.s transaction"):
        reader.catch_up(0.2)
    writer.commit()
    image = reader.catch_up(5)
    assert sorted(image.models) == ["fraud", "spam"]


def test_what_was_read_before_a_timeout_is_kept(log: MemoryLog) -> None:
    write(log, REPOSITORY, manifest(1))
    open_transaction(log, manifest(1, model="spam"))
    reader = RegistryReader(log, TOPICS)
    with pytest.raises(BrokerError):
        reader.catch_up(0.2)
    assert list(reader.image.models) == ["fraud"]


def test_after_catching_up_each_burst_makes_one_image(log: MemoryLog) -> None:
    write(log, REPOSITORY)
    reader = RegistryReader(log, TOPICS)
    reader.catch_up(5)
    assert reader.poll(0) is None
    write(log, manifest(1), manifest(2), release(1, 2))
    image = reader.poll(5)
    assert image is not None
    assert sorted(image.models["fraud"].versions) == [1, 2]
    assert image.models["fraud"].champion == release(1, 2)


def test_a_record_of_an_aborted_transaction_is_never_seen(log: MemoryLog) -> None:
    write(log, REPOSITORY)
    open_transaction(log, manifest(1)).abort()
    assert RegistryReader(log, TOPICS).catch_up(5).models == {}
