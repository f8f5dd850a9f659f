"""How fast something wrote to a topic, seen from outside: by the records' own timestamps.

A share of the records is passed over as warming up. The rate is that of the records after the millisecond in which
that share was reached, over the time from then to the last record's: start-up and group joins do not count, and every
side is measured alike. On a topic with `message.timestamp.type=LogAppendTime` timestamps are the broker's; else they
are set by the producer when a record is queued, or are whatever time the producer gives its records.
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


def throughput(log: Log, topic: str, *, warm_up: float = 0.0) -> Throughput:
    """Reads the whole topic, committed records only; `warm_up` is the share passed over. Raises BrokerError."""
    ends = log.end_offsets(topic, committed=False)
    counts: dict[int, int] = {}
    for record in scan(log, topic, dict.fromkeys(ends, BEGINNING), ends, timeout_s=_TIMEOUT_S):
        counts[record.timestamp_ms] = counts.get(record.timestamp_ms, 0) + 1
    records = sum(counts.values())
    if len(counts) < 2:
        return Throughput(records, float("nan"))
    passed, last = 0, max(counts)
    for first in sorted(counts):
        passed += counts[first]
        if passed >= warm_up * records:
            break
    return Throughput(records, (records - passed) * 1000 / (last - first) if last > first else float("nan"))
