"""Reads events and all that came of them, committed records only, into the ledgers; a raw client and raw Avro."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from tests.faults import oracle

from .ledger import Events, Ledger, Model, Row
from .stage import EVENTS, MODEL, PARTITIONS, PREFIX, STREAMS

POLL_S = 0.2
POLL_RECORDS = 5_000
RESCORE_EVERY_S = 1.0
# Of what stands on the topics, once nobody writes any more.
READ_S = 240.0


class Judge(threading.Thread):
    """Judges all streams from the beginning of their topics.

    Args:
        model: Of a version; None while it is not known.

    Attributes:
        ledgers: One a stream, by its name.
    """

    def __init__(self, servers: str, model: Callable[[int], Model | None], patience: float) -> None:
        super().__init__(name="judge", daemon=True)
        self.events = Events()
        self.ledgers = {stream.name: Ledger(stream.name, self.events) for stream in STREAMS}
        self._servers = servers
        self._model = model
        self._read_s = patience * READ_S
        self._known: Mapping[bytes, Any] = {}
        self._reached: dict[tuple[str, int], int] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._broken: list[str] = []

    @property
    def faults(self) -> list[str]:
        """Broken promises so far."""
        return [*self._broken, *(fault for ledger in self.ledgers.values() for fault in ledger.faults)]

    def run(self) -> None:
        try:
            self._read()
        except Exception as error:
            self._broken.append(f"the judge ended: {error!r}")

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)

    def settle(self) -> None:
        """Reads all topics to their ends, where nobody writes any more, and asks for every event's outcome."""
        topics = [EVENTS, *(topic for stream in STREAMS for topic in (stream.predictions, stream.dead_letters))]
        deadline = time.monotonic() + self._read_s
        while (ends := self._ends(topics, committed=True)) != self._ends(topics, committed=False) or not ends:
            assert time.monotonic() < deadline, f"a transaction stays open for {self._read_s:g} s, or no node answers"
            time.sleep(0.5)
        while behind := self._behind(ends):
            assert not self._broken, self._broken
            assert time.monotonic() < deadline, f"could not be read or scored again in {self._read_s:g} s: {behind}"
            time.sleep(0.1)
        with self._lock:
            for ledger in self.ledgers.values():
                ledger.settle(ends[EVENTS])
            self.events.forget(ends[EVENTS])

    def _ends(self, topics: Sequence[str], *, committed: bool) -> Mapping[str, Mapping[int, int]]:
        """By topic and partition; nothing where nobody answers."""
        try:
            return {topic: oracle.end_offsets(self._servers, topic, committed=committed) for topic in topics}
        except KafkaException:
            return {}

    def _behind(self, ends: Mapping[str, Mapping[int, int]]) -> Sequence[str]:
        with self._lock:
            unread = [
                f"{topic}-{partition} at {self._reached.get((topic, partition), 0)} of {end}"
                for topic, partitions in ends.items()
                for partition, end in partitions.items()
                if self._reached.get((topic, partition), 0) < end
            ]
            unscored = [f"{ledger.waiting} of {ledger.name}" for ledger in self.ledgers.values() if ledger.waiting]
        return [*unread, *unscored]

    def _read(self) -> None:
        consumer = Consumer({
            "bootstrap.servers": self._servers,
            "group.id": "judge",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "log_level": 0,
        })  # fmt: skip
        takers: dict[str, Callable[[Message], None]] = {EVENTS: self._event}
        for stream in STREAMS:
            ledger = self.ledgers[stream.name]
            takers[stream.predictions] = lambda message, ledger=ledger: self._prediction(ledger, message)  # type: ignore[misc]
            takers[stream.dead_letters] = lambda message, ledger=ledger: self._letter(ledger, message)  # type: ignore[misc]
        consumer.assign([TopicPartition(topic, partition, 0) for topic in takers for partition in range(PARTITIONS)])
        rescored_s = 0.0
        try:
            while not self._stopping.is_set():
                for message in consumer.consume(POLL_RECORDS, POLL_S):
                    self._take(takers, message)
                if time.monotonic() - rescored_s > RESCORE_EVERY_S:
                    rescored_s = time.monotonic()
                    with self._lock:
                        for ledger in self.ledgers.values():
                            ledger.rescore(self._model)
        finally:
            consumer.close()

    def _take(self, takers: Mapping[str, Callable[[Message], None]], message: Message) -> None:
        error = message.error()
        if error is not None and error.code() != KafkaError._PARTITION_EOF:
            if error.retriable() or error.code() in _PASSING:
                return
            raise KafkaException(error)
        place = message.topic(), message.partition()
        with self._lock:
            if error is None:
                takers[message.topic()](message)
            self._reached[place] = message.offset() + (error is None)

    def _event(self, message: Message) -> None:
        self.events.add(message.partition(), message.offset(), _row(message.value()))

    def _prediction(self, ledger: Ledger, message: Message) -> None:
        if message.value()[2:10] not in self._known:
            self._known = self._schemas()
        datum = oracle.decode(message.value(), self._known)
        if (datum["model"], datum["source"]["topic"]) != (MODEL, EVENTS):
            self._broken.append(f"{ledger.name}: a prediction names {datum['model']} and {datum['source']['topic']}")
        partition, offset = oracle.source_of(datum)
        ledger.predicted(message.partition(), partition, offset, datum["version"], datum["score"])

    def _schemas(self) -> Mapping[bytes, Any]:
        deadline = time.monotonic() + self._read_s
        while True:
            try:
                return oracle.writer_schemas(self._servers, f"{PREFIX}.schemas")
            except (KafkaException, AssertionError):  # a node that is away
                if time.monotonic() > deadline:
                    raise

    def _letter(self, ledger: Ledger, message: Message) -> None:
        headers = dict(message.headers() or ())
        source = int(headers["__streams.errors.partition"]), int(headers["__streams.errors.offset"])
        ledger.lettered(message.partition(), *source)


# A node that is away, or is not what it was to a partition.
_PASSING = frozenset({
    KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._TIMED_OUT, KafkaError._RESOLVE,
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION,
})  # fmt: skip


def _row(value: bytes) -> Row:
    try:
        event = json.loads(value)
    except json.JSONDecodeError:
        return None
    return event["amount"], event["age"]
