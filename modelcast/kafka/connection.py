"""Making clients that talk at once: the first request, and what a connection says in between."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from .faults import Faults, error_of, explain_construction
from .settings import LOGGER, Settings

# Long enough for a TLS and SASL handshake over a slow link, short enough for somebody waiting at a prompt.
METADATA_TIMEOUT_S: Final = 6.0
# The library waits on when credentials are refused; asking in pieces lets that be reported at once.
_METADATA_ATTEMPT_S: Final = 1.0
_UNREACHED: Final = "can't reach Kafka"


def make_admin(settings: Settings, faults: Faults) -> AdminClient:
    """An admin client, not connected yet; raises ConfigError."""
    properties: dict[str, Any] = {**settings, "error_cb": faults.on_error}
    try:
        return AdminClient(properties, logger=LOGGER)
    except KafkaException as error:
        raise explain_construction(error) from error


def make_producer(settings: Mapping[str, Any], faults: Faults) -> Producer:
    """A connected producer.

    Connecting first is also ten times faster to the first acknowledgement (0.06 s, not 0.5 s): a producer that has no
    connection yet asks for its id again only after half a second. Asked twice, because the first answer may be the last
    thing to come over the bootstrap connection, which the client then gives up (one start in ten took half a second).

    Raises:
        ConfigError: A property is wrong.
        BrokerError: No broker answers.
        AuthorizationError: The credentials are refused.
    """
    try:
        producer = Producer({**settings, "error_cb": faults.on_error}, logger=LOGGER)
    except KafkaException as error:
        raise explain_construction(error) from error
    try:
        for _ in range(2):
            metadata(producer, faults)
    except BaseException:
        producer.close()
        raise
    return producer


def make_consumer(settings: Settings, faults: Faults) -> Consumer:
    """A connected consumer; raises as `make_producer`."""
    try:
        consumer = Consumer({**settings, "error_cb": faults.on_error}, logger=LOGGER)
    except KafkaException as error:
        raise explain_construction(error) from error
    try:
        metadata(consumer, faults)
    except BaseException:
        consumer.close()
        raise
    return consumer


def metadata(client: AdminClient | Producer | Consumer, faults: Faults) -> Mapping[str, Any]:
    """All topics by name, in one request that creates none; raises BrokerError when nobody answers."""
    deadline = time.monotonic() + METADATA_TIMEOUT_S
    while True:
        try:
            topics: Mapping[str, Any] = client.list_topics(timeout=_METADATA_ATTEMPT_S).topics
        except KafkaException as exception:
            error = error_of(exception)
        else:
            return topics
        serve(client, faults)
        is_late = time.monotonic() + _METADATA_ATTEMPT_S > deadline
        if is_late or not faults.explain(error, _UNREACHED).retriable:
            # Made anew: one that this frame knew would make a circle with its traceback, and keep the client.
            raise faults.explain(error, _UNREACHED)


def leaderless(client: AdminClient | Producer | Consumer, topics: Collection[str]) -> tuple[str, ...]:
    """The partitions of these topics that no broker serves now, in words; none where nobody answers."""
    try:
        found = client.list_topics(timeout=METADATA_TIMEOUT_S).topics
    except KafkaException:
        return ()
    return tuple(
        f"partition {number} of topic {topic!r}"
        for topic in sorted(topics)
        if topic in found
        for number, partition in sorted(found[topic].partitions.items())
        if partition.leader < 0
    )


def serve(client: AdminClient | Producer | Consumer, faults: Faults, timeout_s: float = 0.0) -> None:
    """Runs waiting callbacks (deliveries, log lines, errors of the connection), which would pile up otherwise.

    Of a consumer only before it has an assignment. A client that is beyond help says so here too; `faults` keeps it.
    Not to be called while an exception is handled: see `faults.failure_of`.
    """
    try:
        client.poll(timeout_s)
    except KafkaException as error:
        faults.on_error(error_of(error))


def close_producer(producer: Producer, faults: Faults) -> None:
    """Ends a producer at once, dropping what it still holds: `close` alone would wait for an absent broker.

    One that is beyond help is left to its last reference: closing it would try, and loudly fail, to abort.
    """
    try:
        producer.purge()
        producer.flush(0)
    except KafkaException as error:
        faults.on_error(error_of(error))
    if faults.fatal() is None:
        producer.close()
