"""Sends events at a rate that changes, poison among them; pauses when asked, with everything acknowledged."""

from __future__ import annotations

import json
import random
import threading

from confluent_kafka import Producer

from .stage import EVENTS, PARTITIONS, Stage

TICK_S = 0.1
# Of a thousand events, so many that nobody can score.
POISON_PER_MILLE = 5
FLUSH_S = 240.0


class Feeder(threading.Thread):
    """Events of `{"amount": …, "age": …}`.

    Attributes:
        per_second: The rate; change it at any time.
        sent: How many were handed to the client so far.
        failed: What the client could not deliver: an event of nobody's, and the end of the soak.
    """

    def __init__(self, stage: Stage, seed: int, per_second: float) -> None:
        super().__init__(name="feeder", daemon=True)
        self.per_second = per_second
        self.sent = 0
        self.failed: list[str] = []
        self._servers = stage.servers
        self._flush_s = stage.patience * FLUSH_S
        self._chance = random.Random(seed)
        self._stopping = threading.Event()
        self._wanted = threading.Event()
        self._wanted.set()
        self._idle = threading.Event()

    def pause(self) -> None:
        """Returns when everything that was sent is there."""
        self._wanted.clear()
        assert self._idle.wait(self._flush_s + 10), "the feeder does not come to rest"

    def resume(self) -> None:
        self._idle.clear()
        self._wanted.set()

    def stop(self) -> None:
        self._stopping.set()
        self._wanted.set()
        self.join(self._flush_s)

    def run(self) -> None:
        producer = Producer({
            "bootstrap.servers": self._servers, "enable.idempotence": True, "linger.ms": 5, "log_level": 0,
            "delivery.timeout.ms": 3_600_000,
        })  # fmt: skip
        due = 0.0
        while not self._stopping.wait(TICK_S):
            if not self._wanted.is_set():
                left = producer.flush(self._flush_s)
                if left:
                    self.failed.append(f"{left} events could not be sent in {self._flush_s:g} s")
                self._idle.set()
                self._wanted.wait()
                continue
            due += self.per_second * TICK_S
            while due >= 1:
                due -= 1
                self._send(producer)
            producer.poll(0)
        producer.flush(self._flush_s)

    def _send(self, producer: Producer) -> None:
        if self._chance.randrange(1000) < POISON_PER_MILLE:
            value = b'{"amount": "poison"'
        else:
            row = {"amount": round(self._chance.uniform(-50, 50), 3), "age": round(self._chance.uniform(0, 90), 1)}
            value = json.dumps(row).encode()
        producer.produce(EVENTS, value=value, partition=self._chance.randrange(PARTITIONS), on_delivery=self._delivered)
        self.sent += 1

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self.failed.append(str(error))
