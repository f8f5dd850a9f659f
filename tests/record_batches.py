"""Which transactions a topic's records came in, read from the broker's own files: clients are not told.

Source: the record batch format, version 2 (Kafka's `DefaultRecordBatch`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Base offset, length, leader epoch, magic, CRC, attributes, last offset's delta, two timestamps, producer's id, its
# epoch, base sequence, count of records.
_HEADER = struct.Struct(">qiibIhiqqqhii")
_TRANSACTIONAL, _CONTROL = 0x10, 0x20
# What the length does not count: itself and the base offset.
_LEAD_BYTES = 12


@dataclass(frozen=True)
class RecordBatch:
    """One batch as the broker keeps it."""

    first_offset: int
    records: int
    producer: int
    transactional: bool
    marker: bool


def record_batches(data_dir: Path, topic: str, partition: int) -> list[RecordBatch]:
    """The batches of a partition, in order; `data_dir` is where the broker keeps its topics."""
    segments = sorted((data_dir / f"{topic}-{partition}").glob("*.log"))
    return [batch for segment in segments for batch in _parsed(segment.read_bytes())]


def transactions(data_dir: Path, topic: str, partition: int) -> list[tuple[int, int]]:
    """The committed transactions of a partition: (producer's id, records), in order. Everything has to be in one."""
    found, records = [], 0
    for batch in record_batches(data_dir, topic, partition):
        assert batch.transactional, f"{topic}-{partition} holds records outside of transactions"
        if batch.marker:
            found.append((batch.producer, records))
            records = 0
        else:
            records += batch.records
    assert records == 0, f"a transaction is open on {topic}-{partition}"
    return found


def _parsed(data: bytes) -> Iterator[RecordBatch]:
    at = 0
    while at + _HEADER.size <= len(data):
        first, length, _, magic, _, attributes, _, _, _, producer, _, _, count = _HEADER.unpack_from(data, at)
        if magic != 2 or length <= 0:  # what the broker allocated ahead
            return
        yield RecordBatch(first, count, producer, bool(attributes & _TRANSACTIONAL), bool(attributes & _CONTROL))
        at += length + _LEAD_BYTES
