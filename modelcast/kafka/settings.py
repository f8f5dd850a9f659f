"""librdkafka settings: defaults with their reasons, and what the caller may not change.

Three layers, later ones win: defaults for the role < the caller's properties < invariants. An invariant is what a
promise rests on; a caller's property that contradicts one is dropped with a warning, because property files are shared
with other programs and an `acks=1` for those must not weaken this one.

A property that only exists for the other kind of client is dropped, so that one file serves producers and consumers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Final

LOGGER: Final = logging.getLogger("modelcast.kafka")
# Without a handler, Python itself would print librdkafka's errors on the terminal of whoever did not set up logging.
LOGGER.addHandler(logging.NullHandler())
# librdkafka says "connection refused" some ten times a second while a broker is away.
REPEAT_AFTER_S: Final = 30.0


class NoRepetition(logging.Filter):
    """Lets the same line pass once in `REPEAT_AFTER_S`."""

    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[str, list[float]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """True for a line that was not there lately."""
        now, line = time.monotonic(), record.getMessage()
        for known, passed in list(self._passed.items()):
            if now - passed[0] >= REPEAT_AFTER_S:
                self._passed.pop(known, None)
        passed = [now]  # an object of its own: threads that log the same line at once agree whose it is
        return self._passed.setdefault(line, passed) is passed


LOGGER.addFilter(NoRepetition())

Settings = dict[str, str | int | float | bool]  # as librdkafka takes them

# Every client.
_COMMON: Final[Mapping[str, str | int | float | bool]] = {
    # The default of 10 s is how long a client may look away after a broker came back. Half of the first pause (100 ms)
    # is also what a new client rests between its bootstrap connection and the broker's own: 50 ms of every start.
    "reconnect.backoff.ms": 20,
    "reconnect.backoff.max.ms": 500,
    # A client that must say within seconds that nobody answers can't wait 30 s for one connection.
    "socket.connection.setup.timeout.ms": 5_000,
    # Small request-response traffic: commits, metadata, status records.
    "socket.nagle.disable": True,
    # Notices and worse: below that, lines of the client's own background thread bypass the logger and reach stderr.
    "log_level": 5,
    # A connection reaped while idle is no news to anybody.
    "log.connection.close": False,
}

_PRODUCER: Final[Mapping[str, str | int | float | bool]] = {
    # Java's hash, so that keys land where other producers of the same topic put them.
    "partitioner": "murmur2_random",
    # Successful deliveries need no Python callback; failures do.
    "delivery.report.only.error": True,
}

_TRANSACTIONAL: Final[Mapping[str, str | int | float | bool]] = {
    # The first request of a transaction meets CONCURRENT_TRANSACTIONS while the previous one completes; the default of
    # 100 ms made that the latency of every commit (p50 5.7 -> 4.0 ms, p99 147 -> 24 ms; at 2,000/s p50 51 -> 7 ms).
    "retry.backoff.ms": 2,
    "retry.backoff.max.ms": 20,
}

_CONTROL_WRITER: Final[Mapping[str, str | int | float | bool]] = {
    # Chunks fill a request instead of making one each. Whoever awaits a single record flushes or commits, and neither
    # waits for this: 0.1 ms to the acknowledgement either way.
    "linger.ms": 5,
    # What an upload may hold in memory: 32 MiB keeps five requests of 1 MB in flight on several partitions.
    "queue.buffering.max.kbytes": 32_768,
    "queue.buffering.max.messages": 100_000,
    # Callbacks tell offsets of chunks (hints) to the caller.
    "delivery.report.only.error": False,
}

# Of one answer of a broker's. At librdkafka's 100 MB, an event of a topic that takes larger ones is fetched again and
# again, and its partition stands still for ever. Above 352 MB, what a TLS listener says to a client that does not speak
# TLS (15 03 01 00, read as a size) would be waited for and not refused.
RECEIVE_MAX_BYTES: Final = 300_000_000

_CONTROL_READER: Final[Mapping[str, str | int | float | bool]] = {
    # How late the end of a quiet partition is noticed; also how often an idle reader asks (5 requests a second).
    "fetch.wait.max.ms": 200,
    # The default of 1 s is the pause after the queue was full once.
    "fetch.queue.backoff.ms": 5,
    # After a failed fetch (a broker restarting).
    "fetch.error.backoff.ms": 100,
    # Memory: chunks are up to 1 MB; 32 MiB hold enough for reading at the speed of the network.
    "queued.max.messages.kbytes": 32_768,
    "queued.min.messages": 10_000,
    "max.partition.fetch.bytes": 4_194_304,
    "receive.message.max.bytes": RECEIVE_MAX_BYTES,
}

_DATA_PRODUCER: Final[Mapping[str, str | int | float | bool]] = {
    # A few ms fill batches at high rates; at low rates the commit (or flush) does not wait for them.
    "linger.ms": 5,
    # Throughput needs two scoring batches in flight; memory is bounded by the bytes.
    "queue.buffering.max.messages": 500_000,
    "queue.buffering.max.kbytes": 262_144,
    "batch.num.messages": 100_000,
}

_DATA_CONSUMER: Final[Mapping[str, str | int | float | bool]] = {
    # The default of 1 s stalls the stream each time the queue was full (measured: the setting that mattered most).
    "fetch.queue.backoff.ms": 5,
    "fetch.error.backoff.ms": 100,
    # Broker answers as soon as there is anything; this only paces an idle member and its notice of a partition's end.
    "fetch.wait.max.ms": 250,
    # Prefetch: a quarter of a second at 1 M/s, bounded in bytes for large events.
    "queued.min.messages": 200_000,
    "queued.max.messages.kbytes": 131_072,
    "max.partition.fetch.bytes": 10_485_760,
    "receive.message.max.bytes": RECEIVE_MAX_BYTES,
}

# What a topic takes is the topic's to say: a scorer cuts dead letters to that (`consumer.dead_letters`), and a client's
# own limit below it would refuse them for ever.
_DATA_PRODUCER_INVARIANTS: Final[Mapping[str, str | int | float | bool]] = {"message.max.bytes": 100_000_000}

_READER_INVARIANTS: Final[Mapping[str, str | int | float | bool]] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    # A reader whose offset is gone must say so: silently skipping would lose models or events.
    "auto.offset.reset": "error",
    # Ends of partitions move positions past what compaction or aborted transactions left.
    "enable.partition.eof": True,
}

_WRITER_INVARIANTS: Final[Mapping[str, str | int | float | bool]] = {
    "enable.idempotence": True,
    "acks": "all",
}

_CONSUMER_ONLY: Final = frozenset({
    "auto.offset.reset", "auto.commit.interval.ms", "check.crcs", "enable.auto.commit", "enable.auto.offset.store",
    "enable.partition.eof", "fetch.error.backoff.ms", "fetch.max.bytes", "fetch.message.max.bytes", "fetch.min.bytes",
    "fetch.queue.backoff.ms", "fetch.wait.max.ms", "group.id", "group.instance.id", "group.protocol",
    "group.protocol.type", "group.remote.assignor", "heartbeat.interval.ms", "isolation.level",
    "max.partition.fetch.bytes", "max.poll.interval.ms", "partition.assignment.strategy",
    "queued.max.messages.kbytes", "queued.min.messages", "session.timeout.ms",
})  # fmt: skip
_PRODUCER_ONLY: Final = frozenset({
    "acks", "batch.num.messages", "batch.size", "compression.codec", "compression.level", "compression.type",
    "delivery.report.only.error", "delivery.timeout.ms", "enable.gapless.guarantee", "enable.idempotence",
    "linger.ms", "message.send.max.retries", "message.timeout.ms", "partitioner",
    "queue.buffering.backpressure.threshold", "queue.buffering.max.kbytes", "queue.buffering.max.messages",
    "queue.buffering.max.ms", "queuing.strategy", "request.required.acks", "request.timeout.ms", "retries",
    "sticky.partitioning.linger.ms", "transaction.timeout.ms", "transactional.id",
})  # fmt: skip
_ALIASES: Final[Mapping[str, str]] = {"request.required.acks": "acks"}


def admin_settings(user: Mapping[str, str]) -> Settings:
    """For the client that asks about topics."""
    return _merge(user, {}, {}, drop=_CONSUMER_ONLY | _PRODUCER_ONLY)


def reader_settings(user: Mapping[str, str], *, committed: bool) -> Settings:
    """For a reader without a group; librdkafka still wants a group name, which is never joined or written."""
    invariants = {
        **_READER_INVARIANTS,
        "group.id": "modelcast-reader",
        "isolation.level": _isolation(committed=committed),
    }
    of_groups = {"auto.offset.reset", "group.id", "group.instance.id", "group.protocol", "isolation.level"}
    return _merge(user, _CONTROL_READER, invariants, drop=_PRODUCER_ONLY | of_groups)


def group_settings(
    user: Mapping[str, str], *, group: str, instance: str | None, session_timeout_ms: int, committed: bool
) -> Settings:
    """For a member of a group; `group.protocol=consumer` leaves session and assignment to the broker."""
    defaults: Settings = dict(_DATA_CONSUMER)
    drop = set(_PRODUCER_ONLY)
    if user.get("group.protocol", "classic").lower() == "consumer":
        # librdkafka refuses these there: the broker's group configuration decides them.
        drop |= {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy", "group.protocol.type"}
    else:
        defaults["session.timeout.ms"] = session_timeout_ms
        # Three heartbeats in a session, at most the default's 3 s apart.
        defaults["heartbeat.interval.ms"] = min(3_000, session_timeout_ms // 3)
        # Eager: on every rebalance each member finishes its transaction and starts from committed offsets, the one
        # case to get right. Static membership keeps restarts from rebalancing at all.
        defaults["partition.assignment.strategy"] = "range"
    invariants: Settings = {
        **_READER_INVARIANTS,
        "group.id": group,
        "isolation.level": _isolation(committed=committed),
    }
    if instance is not None:
        invariants["group.instance.id"] = instance
    quiet = {"auto.offset.reset"}  # it is honoured, but by the group consumer: see there
    return _merge(user, defaults, invariants, drop=drop, quiet=quiet)


def writer_settings(user: Mapping[str, str]) -> Settings:
    """For an idempotent writer of the control plane."""
    return _merge(user, {**_PRODUCER, **_CONTROL_WRITER}, _WRITER_INVARIANTS, drop=_CONSUMER_ONLY)


def transactional_settings(user: Mapping[str, str], *, transactional_id: str, timeout_ms: int) -> Settings:
    """For a transactional writer of the control plane."""
    defaults = {**_PRODUCER, **_CONTROL_WRITER, **_TRANSACTIONAL}
    return _merge(user, defaults, _transactional(transactional_id, timeout_ms), drop=_CONSUMER_ONLY)


def batch_settings(user: Mapping[str, str]) -> Settings:
    """For an idempotent producer of the data plane."""
    return _merge(
        user, {**_PRODUCER, **_DATA_PRODUCER}, {**_WRITER_INVARIANTS, **_DATA_PRODUCER_INVARIANTS}, drop=_CONSUMER_ONLY
    )


def transactional_batch_settings(user: Mapping[str, str], *, transactional_id: str, timeout_ms: int) -> Settings:
    """For a transactional producer of the data plane."""
    defaults = {**_PRODUCER, **_DATA_PRODUCER, **_TRANSACTIONAL}
    invariants: Settings = {**_transactional(transactional_id, timeout_ms), **_DATA_PRODUCER_INVARIANTS}
    return _merge(user, defaults, invariants, drop=_CONSUMER_ONLY)


def _transactional(transactional_id: str, timeout_ms: int) -> Settings:
    return {**_WRITER_INVARIANTS, "transactional.id": transactional_id, "transaction.timeout.ms": timeout_ms}


def _isolation(*, committed: bool) -> str:
    return "read_committed" if committed else "read_uncommitted"


def _merge(
    user: Mapping[str, str],
    defaults: Mapping[str, str | int | float | bool],
    invariants: Mapping[str, str | int | float | bool],
    *,
    drop: frozenset[str] | set[str],
    quiet: frozenset[str] | set[str] = frozenset(),
) -> Settings:
    merged: Settings = {**_COMMON, **defaults}
    for name, value in user.items():
        if name in drop:
            continue
        invariant = invariants.get(_ALIASES.get(name, name))
        if invariant is None:
            merged[name] = value
        elif str(value).lower() not in _spellings(invariant) and name not in quiet:
            LOGGER.warning("property %s=%s is not used: modelcast needs %s", name, value, invariant)
    return {**merged, **invariants}


def _spellings(value: str | int | float | bool) -> tuple[str, ...]:
    return ("all", "-1") if value == "all" else (str(value).lower(),)
