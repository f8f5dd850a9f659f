"""How fast something wrote to a topic, seen from outside: by the records themselves.

The rate is that of the records after the first millisecond's, over the time from the first record's timestamp to the
last one's: start-up and group joins do not count, and every side is measured alike. Timestamps are set by the producer
when a record is queued.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelcast.log import BEGINNING, Log
from modelcast.scan import scan

_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """Committed records of a topic, and how many a second were written."""

    records: int
    records_per_s: float


def throughput(log: Log, topic: str) -> Throughput:
    """Reads the whole topic, committed records only. Raises BrokerError."""
    ends = log.end_offsets(topic, committed=False)
    counts: dict[int, int] = {}
    for record in scan(log, topic, dict.fromkeys(ends, BEGINNING), ends, timeout_s=_TIMEOUT_S):
        counts[record.timestamp_ms] = counts.get(record.timestamp_ms, 0) + 1
    records = sum(counts.values())
    if len(counts) < 2:
        return Throughput(records, float("nan"))
    first, last = min(counts), max(counts)
    return Throughput(records, (records - counts[first]) * 1000 / (last - first))
