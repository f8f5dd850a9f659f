"""Reading a known stretch of a topic: from given offsets to given ends, to the last marker."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping

from modelcast.errors import BrokerError
from modelcast.log import Log, LogRecord

# How long one read may wait, so that the deadline is looked at.
_STEP_S = 0.1


def scan(
    log: Log,
    topic: str,
    starts: Mapping[int, int],
    ends: Mapping[int, int],
    *,
    timeout_s: float,
    committed: bool = True,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[LogRecord]:
    """Yields the records of each partition in `starts` from there up to its end in `ends`.

    The end is reached by position, not by records seen: transaction markers and compacted records leave gaps.

    Args:
        starts: First offset by partition, or `log.BEGINNING`.
        ends: One past the last offset by partition; extra partitions are ignored.
        timeout_s: Longest time without getting any further; a topic of many gigabytes takes as long as it takes.

    Raises:
        BrokerError: An end was not reached, and nothing came for `timeout_s`.
    """
    waiting = {partition for partition, start in starts.items() if start < ends[partition]}
    if not waiting:
        return
    reached: Mapping[int, int] = {}
    deadline = clock() + timeout_s
    reader = log.reader(topic, {partition: starts[partition] for partition in waiting}, committed=committed)
    try:
        while waiting:
            for record in reader.poll(_STEP_S):
                if record.offset < ends[record.partition]:
                    yield record
            positions = {partition: reader.position(partition) for partition in waiting}
            waiting = {partition for partition in waiting if positions[partition] < ends[partition]}
            if positions != reached:
                reached, deadline = positions, clock() + timeout_s
            elif clock() >= deadline:
                raise BrokerError(
                    f"topic {topic!r} could not be read to its end: nothing came of partitions {sorted(waiting)} "
                    f"for {timeout_s:g} s",
                    hint="The broker may be slow, or a transaction may be open; try again in a minute.",
                )
    finally:
        reader.close()
