"""Judges a scored stream from the topics alone; shares no code with the product: raw client, raw Avro.

A stream is whole if every committed event has exactly one prediction or dead letter, in the partition it came from, in
the order of its partition. Judged only once no transaction is open on the outputs (last stable offset = end offset).
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fastavro
from confluent_kafka import Consumer, IsolationLevel, KafkaError, KafkaException, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec
from fastavro.schema import fingerprint, to_parsing_canonical_form

MARKER = b"\xc3\x01"
# A dead process's transaction ends after its timeout and the broker's sweep.
SETTLED_TIMEOUT_S = 90.0
READ_TIMEOUT_S = 60.0

Source = tuple[int, int]  # partition and offset of an event


@dataclass(frozen=True)
class Verdict:
    """What became of the events; lists name the first few."""

    events: int
    predictions: int
    dead_letters: int
    lost: Sequence[Source]
    doubled: Sequence[Source]
    invented: Sequence[Source]
    out_of_order: Sequence[tuple[Source, Source]]
    moved: Sequence[Source]

    @property
    def is_whole(self) -> bool:
        return not (self.lost or self.doubled or self.invented or self.out_of_order or self.moved)


def judge(servers: str, *, events: str, predictions: str, dead_letters: str, schemas: str) -> Verdict:
    """Reads all topics to their ends and compares."""
    for topic in (predictions, dead_letters):
        await_settled(servers, topic)
    wanted = [(message.partition(), message.offset()) for message in read(servers, events)]
    known = writer_schemas(servers, schemas)
    found: list[tuple[int, Source]] = []
    scored = 0
    for message in read(servers, predictions):
        scored += 1
        found.append((message.partition(), source_of(decode(message.value(), known))))
    letters = 0
    lettered: list[tuple[int, Source]] = []
    for message in read(servers, dead_letters):
        letters += 1
        headers = dict(message.headers() or ())
        source = (int(headers["__streams.errors.partition"]), int(headers["__streams.errors.offset"]))
        lettered.append((message.partition(), source))
    counts = Counter(source for _, source in (*found, *lettered))
    missing = sorted(set(wanted) - set(counts))
    return Verdict(
        events=len(wanted),
        predictions=scored,
        dead_letters=letters,
        lost=missing[:10],
        doubled=sorted(source for source, count in counts.items() if count > 1)[:10],
        invented=sorted(set(counts) - set(wanted))[:10],
        out_of_order=[*_disorder(found), *_disorder(lettered)][:10],
        moved=[source for place, source in (*found, *lettered) if place != source[0]][:10],
    )


def _disorder(found: Sequence[tuple[int, Source]]) -> Iterator[tuple[Source, Source]]:
    last: dict[int, Source] = {}
    for place, source in found:  # in the order of the output's partitions
        before = last.get(place)
        if before is not None and before[1] >= source[1]:
            yield before, source
        last[place] = source


def read(servers: str, topic: str) -> list[Message]:
    """Every committed record, each partition in order."""
    ends = end_offsets(servers, topic, committed=True)
    consumer = Consumer({
        "bootstrap.servers": servers,
        "group.id": "oracle",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
    })  # fmt: skip
    try:
        consumer.assign([TopicPartition(topic, partition, 0) for partition in ends])
        left = set(ends)
        found: list[Message] = []
        deadline = time.monotonic() + READ_TIMEOUT_S
        while left:
            assert time.monotonic() < deadline, f"{topic} could not be read to its end"
            for message in consumer.consume(10_000, 0.2):
                error = message.error()
                if error is None:
                    found.append(message)
                elif error.code() == KafkaError._PARTITION_EOF:
                    if message.offset() >= ends[message.partition()]:
                        left.discard(message.partition())
                else:
                    raise AssertionError(f"{topic}: {error}")
    finally:
        consumer.close()
    return sorted(found, key=lambda message: (message.partition(), message.offset()))


def await_settled(servers: str, topic: str) -> None:
    """Waits until no transaction is open on the topic."""
    deadline = time.monotonic() + SETTLED_TIMEOUT_S
    while end_offsets(servers, topic, committed=True) != end_offsets(servers, topic, committed=False):
        assert time.monotonic() < deadline, f"a transaction stays open on {topic}"
        time.sleep(0.1)


def writer_schemas(servers: str, topic: str) -> Mapping[bytes, Any]:
    """Parsed schemas by their CRC-64-AVRO fingerprint as records carry it."""
    known = {}
    for message in read(servers, topic):
        if message.value() is not None:
            schema = json.loads(message.value())
            print_ = bytes.fromhex(fingerprint(to_parsing_canonical_form(schema), "CRC-64-AVRO"))
            known[print_] = fastavro.parse_schema(schema)
    return known


def decode(value: bytes, schemas: Mapping[bytes, Any]) -> dict[str, Any]:
    """A single-object record; it has to be consumed to its last byte."""
    assert value.startswith(MARKER), "not a single-object record"
    buffer = io.BytesIO(value[10:])
    datum = fastavro.schemaless_reader(buffer, schemas[value[2:10]], None)
    assert not buffer.read(), "bytes behind the datum"
    assert isinstance(datum, dict)
    return datum


def source_of(datum: Mapping[str, Any]) -> Source:
    return datum["source"]["partition"], datum["source"]["offset"]


def end_offsets(servers: str, topic: str, *, committed: bool) -> dict[int, int]:
    """One past the last record of each partition, or the last stable offset; a broker that starts is waited for."""
    deadline = time.monotonic() + SETTLED_TIMEOUT_S
    while True:
        try:
            return _ask_offsets(servers, topic, committed=committed)
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _ask_offsets(servers: str, topic: str, *, committed: bool) -> dict[int, int]:
    admin = AdminClient({"bootstrap.servers": servers})
    partitions = admin.list_topics(topic, timeout=60).topics[topic].partitions
    wanted = {TopicPartition(topic, partition): OffsetSpec.latest() for partition in partitions}
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    return {
        asked.partition: future.result().offset
        for asked, future in admin.list_offsets(wanted, isolation_level=level).items()
    }


class Watch:
    """Notes when predictions become visible to a read_committed reader, and of which events."""

    def __init__(self, servers: str, topic: str, schemas: str) -> None:
        self._servers, self._topic, self._schemas = servers, topic, schemas
        self._known: Mapping[bytes, Any] = {}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._seen: dict[int, list[tuple[float, int]]] = {}

    def first_seen(self, partition: int, *, from_offset: int) -> float | None:
        """When the first prediction of an event at or behind `from_offset` was seen (monotonic seconds)."""
        with self._lock:
            return next((at for at, offset in self._seen.get(partition, ()) if offset >= from_offset), None)

    def count(self) -> int:
        with self._lock:
            return sum(map(len, self._seen.values()))

    def run(self) -> None:
        consumer = Consumer({
            "bootstrap.servers": self._servers,
            "group.id": "watch",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 50,
        })  # fmt: skip
        partitions = end_offsets(self._servers, self._topic, committed=False)
        consumer.assign([TopicPartition(self._topic, partition, 0) for partition in partitions])
        while not self._stop.is_set():
            messages = [message for message in consumer.consume(1000, 0.05) if message.error() is None]
            now = time.monotonic()
            for message in messages:
                if message.value()[2:10] not in self._known:
                    self._known = writer_schemas(self._servers, self._schemas)
                partition, offset = source_of(decode(message.value(), self._known))
                with self._lock:
                    self._seen.setdefault(partition, []).append((now, offset))
        consumer.close()

    def stop(self) -> None:
        self._stop.set()


@contextmanager
def watching(servers: str, topic: str, schemas: str) -> Iterator[Watch]:
    """A watch on a thread of its own."""
    watch = Watch(servers, topic, schemas)
    thread = threading.Thread(target=watch.run, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        watch.stop()
        thread.join(60)
