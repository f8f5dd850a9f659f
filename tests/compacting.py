"""Repositories whose topics a broker compacts at once, for tests of what that takes away."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from modelcast.log import BEGINNING, Log
from modelcast.registry.repository import init
from modelcast.scan import scan
from modelcast.topics import Topics

# Compaction comes within a second; on a busy machine the cleaner's thread waits its turn.
_COMPACTED_S = 60.0
# What Kafka takes as the smallest segment, closed after a tenth of a second all the same.
_AT_ONCE = {
    "segment.ms": "100",
    "segment.bytes": str(1 << 20),
    "min.cleanable.dirty.ratio": "0.0",
    "max.compaction.lag.ms": "100",
}
_FILLER = b"filler"


def init_compacting(log: Log, topics: Topics, *, tombstones_kept_ms: int, blob_partitions: int = 2) -> None:
    """A repository whose registry and blobs are compacted whenever there is anything to compact."""
    for spec in topics.specs(blob_partitions=blob_partitions, replication_factor=1):
        at_once = {**_AT_ONCE, "delete.retention.ms": str(tombstones_kept_ms)}
        log.create(replace(spec, configs={**spec.configs, **at_once}))
    init(log, topics)


def roll(log: Log, topic: str) -> None:
    """Appends a record to each partition: only an append closes a segment whose time has come."""
    with closing(log.writer()) as writer:
        for partition in range(log.topics()[topic]):
            writer.send(topic, key=_FILLER, value=b"", partition=partition)
        writer.flush(60)


def until_compacted(log: Log, topic: str, is_done: Callable[[set[tuple[int, int, bytes]]], bool]) -> None:
    """Waits until what is left of a topic, as `standing` tells it, satisfies `is_done`."""
    deadline = time.monotonic() + _COMPACTED_S
    while not is_done(left := standing(log, topic)):
        assert time.monotonic() < deadline, f"{topic} was not compacted: {len(left)} records are left"
        roll(log, topic)
        time.sleep(0.2)  # a segment closes after 0.1 s at the earliest, and the cleaner looks every 0.2 s


def standing(log: Log, topic: str) -> set[tuple[int, int, bytes]]:
    """(partition, offset, key) of every record with a value, fillers left out."""
    ends = log.end_offsets(topic, committed=False)
    return {
        (record.partition, record.offset, record.key)
        for record in scan(log, topic, dict.fromkeys(ends, BEGINNING), ends, timeout_s=60)
        if record.value is not None and record.key not in (None, _FILLER)
    }
