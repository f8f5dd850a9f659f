"""Whether every partition of every group goes on, asked of the groups' committed offsets."""

from __future__ import annotations

import threading
import time

from confluent_kafka import Consumer, KafkaException, TopicPartition

from .ledger import Events
from .stage import EVENTS, PARTITIONS, STREAMS

LOOK_EVERY_S = 2.0
ASK_S = 10.0
# An answer that was lost is missed after 60 s (`socket.timeout.ms`), a commit in doubt after 30 s more, and a member
# that was killed meanwhile after its session; on a machine that does other work too.
STUCK_S = 300.0


class Watch(threading.Thread):
    """Attributes:
    faults: Partitions that stand still although events wait there.
    lag: Events that wait, by the name of the stream; as of the last look.
    """

    def __init__(self, servers: str, events: Events, patience: float) -> None:
        super().__init__(name="watch", daemon=True)
        self.faults: list[str] = []
        self.lag = {stream.name: 0 for stream in STREAMS}
        self.longest_still_s = 0.0
        self._stuck_s = patience * STUCK_S
        self._events = events
        self._readers = {
            stream: Consumer({"bootstrap.servers": servers, "group.id": stream.group, "log_level": 0})
            for stream in STREAMS
        }
        self._moved: dict[tuple[str, int], tuple[int, float]] = {}
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            for stream, reader in self._readers.items():
                asked = [TopicPartition(EVENTS, partition) for partition in range(PARTITIONS)]
                try:
                    found = reader.committed(asked, ASK_S)
                except KafkaException:  # its coordinator is away
                    continue
                ends = [self._events.end(partition) for partition in range(PARTITIONS)]
                reached = [max(0, place.offset) for place in found]
                self.lag[stream.name] = sum(max(0, end - at) for end, at in zip(ends, reached, strict=True))
                for partition, (end, at) in enumerate(zip(ends, reached, strict=True)):
                    self._look(stream.name, partition, end, at)

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)

    def _look(self, name: str, partition: int, end: int, at: int) -> None:
        now = time.monotonic()
        before, since_s = self._moved.get((name, partition), (-1, now))
        if at != before or at >= end:
            self._moved[name, partition] = at, now
            return
        still_s = now - since_s
        self.longest_still_s = max(self.longest_still_s, still_s)
        if still_s > self._stuck_s:
            self.faults.append(f"{name}: partition {partition} stands at {at} of {end} for {still_s:.0f} s")
            self._moved[name, partition] = at, now
