"""One transfer of a model's files in a process of its own, and what it cost: modelcast's and the bare client's.

- The bare producer has every record ready in memory before its clock starts and hears of failures only; the bare
  consumer counts bytes and drops them. Neither hashes, writes or knows what it moves.
- modelcast's clock runs over everything: reading the files, resuming, hints; hashing, writing and checking the cache.
- No side's clock runs while it connects: a client's first answer takes as long for all, whatever it moves.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ParamSpec

from modelcast.blobs import chunk_count, cut
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.kafka import KafkaLog
from modelcast.publisher.upload import Upload, Uploader
from modelcast.records import FileEntry, Manifest, Signature
from modelcast.registry.image import ModelEntry, VersionRecord
from modelcast.topics import ChunkKey, Topics, blob_partition

P = ParamSpec("P")

MODEL = "benchmark"
REPOSITORY = "benchmark"
_FLUSH_S = 120.0
_READ_S = 120.0
_POLL_S = 0.1

# The best of what was tried on two shared cores (queues of 16 to 256 MiB, batches of 1 to 4 MB, linger 0 to 50 ms).
_BARE_PRODUCER = {
    "enable.idempotence": True,
    "acks": "all",
    "delivery.report.only.error": True,
    "linger.ms": 5,
    "queue.buffering.max.kbytes": 65_536,
}
# As above (queues of 16 to 256 MiB, fetches of 1 to 16 MB a partition); the default pause of a full queue is 1 s.
_BARE_CONSUMER = {
    "group.id": "benchmark",
    "enable.auto.commit": False,
    "fetch.queue.backoff.ms": 5,
    "queued.max.messages.kbytes": 65_536,
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a transfer took.

    Attributes:
        seconds: Of wall time.
        cpu_s: Of processor time of the side's own process, all threads, user and system.
        peak_bytes: The process's peak resident memory, what it imported included.
    """

    seconds: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a side finds what it moves.

    Attributes:
        servers: The broker.
        topic: The topic of a bare side.
        prefix: The repository of modelcast's.
        partitions: Of either.
    """

    servers: str
    topic: str
    prefix: str
    partitions: int


@dataclass(frozen=True, slots=True)
class Payload:
    """The files of a model, in `directory`, and the size of their chunks."""

    directory: Path
    files: tuple[FileEntry, ...]
    chunk_bytes: int

    @property
    def size_bytes(self) -> int:
        return sum(entry.size for entry in self.files)


def apart(work: Callable[P, Any], *arguments: P.args, **keywords: P.kwargs) -> Any:
    """Runs `work` in a fresh process, which neither inherits memory nor leaves any."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments, **keywords).result()


def bare_produce(place: Place, payload: Payload) -> Cost:
    """The plain client's producer, sending the same records as `upload` would."""
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": place.servers, **_BARE_PRODUCER})
    producer.list_topics(timeout=_FLUSH_S)
    records = [
        (home, key, chunk)
        for entry in payload.files
        for home in (blob_partition(MODEL, entry.digest, place.partitions),)
        for key, chunk in _chunks(payload, entry)
    ]
    with measured() as cost:
        for home, key, chunk in records:
            while True:
                try:
                    producer.produce(place.topic, value=chunk, key=key, partition=home)
                except BufferError:
                    producer.poll(_POLL_S)
                else:
                    break
        if producer.flush(_FLUSH_S):
            raise SystemExit("the bare producer's records were not all acknowledged")
    return cost()


def bare_consume(place: Place, size: int) -> Cost:
    """The plain client's consumer, reading so many bytes of a topic and dropping them."""
    from confluent_kafka import Consumer, TopicPartition

    consumer = Consumer({"bootstrap.servers": place.servers, **_BARE_CONSUMER})
    consumer.list_topics(timeout=_FLUSH_S)
    left = size
    with measured() as cost:
        consumer.assign([TopicPartition(place.topic, number, 0) for number in range(place.partitions)])
        deadline = time.monotonic() + _READ_S
        while left > 0:
            for message in consumer.consume(32, _POLL_S):
                left -= len(message.value() or b"")
            if time.monotonic() > deadline:
                raise SystemExit(f"{left} of {size} bytes of {place.topic} were not read in {_READ_S:g} s")
    consumer.close()
    return cost()


def upload(place: Place, payload: Payload) -> tuple[Cost, Upload]:
    """modelcast's uploader, to a topic that holds none of the files."""
    with KafkaLog({"bootstrap.servers": place.servers}) as log:
        log.topics()
        uploader = Uploader(log, Topics(place.prefix), MODEL, REPOSITORY, chunk_bytes=payload.chunk_bytes)
        with measured() as cost:
            done = uploader.upload(payload.directory, payload.files, ModelEntry(MODEL))
        uploader.done()
    if done.bytes_sent != payload.size_bytes:
        raise SystemExit(f"{done.bytes_sent} bytes were sent of {payload.size_bytes}")
    return cost(), done


def fetch(place: Place, payload: Payload, uploaded: Upload, cache_dir: Path) -> Cost:
    """modelcast's fetcher, into an empty cache."""
    manifest = Manifest(
        REPOSITORY, MODEL, 1, 0, "benchmark", "", payload.files, payload.chunk_bytes, Signature((), ()), 8, {"": 17}
    )
    with KafkaLog({"bootstrap.servers": place.servers}) as log:
        log.topics()
        cache = Cache(cache_dir)
        with measured() as cost:
            view = Fetcher(log, Topics(place.prefix), cache).fetch(VersionRecord(manifest, uploaded.hints, 1))
        found = sum(path.stat().st_size for path in view.rglob("*") if path.is_file())
        cache.close()
    if found != payload.size_bytes:
        raise SystemExit(f"{found} bytes were fetched of {payload.size_bytes}")
    return cost()


@contextlib.contextmanager
def measured() -> Iterator[Callable[[], Cost]]:
    """The cost of the block, once it has ended."""
    costs: list[Cost] = []
    spent, began = os.times(), time.monotonic()
    yield lambda: costs[0]
    seconds, now = time.monotonic() - began, os.times()
    costs.append(Cost(seconds, now.user + now.system - spent.user - spent.system, peak_bytes()))


def peak_bytes() -> int:
    """Peak resident memory of this process since it was started (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


def median(costs: Sequence[Cost]) -> Cost:
    """The one of the median time."""
    return sorted(costs, key=lambda cost: cost.seconds)[len(costs) // 2]


def with_chunks(payload: Payload, chunk_bytes: int) -> Payload:
    return replace(payload, chunk_bytes=chunk_bytes)


def _chunks(payload: Payload, entry: FileEntry) -> Iterator[tuple[bytes, bytes]]:
    chunks = cut(payload.directory / entry.path, payload.chunk_bytes)
    for index in range(chunk_count(entry.size, payload.chunk_bytes)):
        yield ChunkKey(MODEL, entry.digest, payload.chunk_bytes, index).encode(), next(chunks)
