"""Reads the topics: the registry to its true end (§4), and files by their chunks (§6)."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from tests.protocol_client.avro import ProtocolError
from tests.protocol_client.files import digest_of
from tests.protocol_client.image import TYPES, WITHDRAWN, Entry, Image, check_files

# Longer than a transaction that somebody left open takes to be ended: its timeout of 10 s, the broker's sweep of 10 s.
SETTLED_S = 90.0
ENDLESS = 2**63 - 1  # above every offset


class _Partition:
    """One partition read from an offset on."""

    def __init__(self, consumer: Consumer, topic: str, partition: int, start: int) -> None:
        self._consumer, self._position = consumer, start
        consumer.assign([TopicPartition(topic, partition, start)])

    def until(self, stop: int, timeout_s: float) -> Iterator[Message]:
        """Messages below `stop`, until the position is there.

        Transaction markers and what compaction took away have no messages: the event at the end tells the position.
        """
        deadline = time.monotonic() + timeout_s
        while self._position < stop:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the log ends at {stop}, readable to {self._position}: a transaction is open")
            if (message := self._consumer.poll(0.05)) is None:
                continue
            if (error := message.error()) and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            offset = message.offset() or 0
            self._position = offset if error else offset + 1
            if not error:
                yield message


class Topics:
    """Reads the topics of one repository."""

    def __init__(self, servers: str, prefix: str, trusted: tuple[Ed25519PublicKey, ...] = ()) -> None:
        self.image = Image(trusted)
        self.registry, self.blobs = f"{prefix}.registry", f"{prefix}.blobs"
        base = {"bootstrap.servers": servers, "group.id": "unused", "enable.auto.commit": False}
        base |= {"enable.partition.eof": True, "auto.offset.reset": "error", "fetch.wait.max.ms": 10}
        self._committed = Consumer({**base, "isolation.level": "read_committed"})
        self._uncommitted = Consumer({**base, "isolation.level": "read_uncommitted"})
        self._registry = _Partition(self._committed, self.registry, 0, self.span(self.registry, 0)[0])
        self.partitions = len(self._uncommitted.list_topics(self.blobs, 10).topics[self.blobs].partitions)

    def close(self) -> None:
        self._committed.close()
        self._uncommitted.close()

    def span(self, topic: str, partition: int) -> tuple[int, int]:
        """The first offset, and the end whatever transaction is open."""
        # A node that was just back may have said that there is no such partition, and a client believes it for minutes.
        self._uncommitted.list_topics(topic, 10)
        low, high = self._uncommitted.get_watermark_offsets(TopicPartition(topic, partition), 10)
        return low, high

    def catch_up(self, *, timeout_s: float = SETTLED_S) -> Image:
        """Reads on to the true end; raises TimeoutError while a transaction of anybody's is open there."""
        for message in self._registry.until(self.span(self.registry, 0)[1], timeout_s):
            self.image.apply(message.key() or b"", message.value())
        return self.image

    def records(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Message]:
        """Records at start ≤ offset < stop, of open and ended transactions and of none."""
        low, high = self.span(topic, partition)
        start, stop = max(start, low), min(stop, high)
        if start < stop:
            read = _Partition(self._uncommitted, topic, partition, start).until(stop, SETTLED_S)
            yield from (message for message in read if (message.offset() or 0) < stop)

    def fetch(self, version: Entry) -> dict[str, bytes]:
        """Every file of a version by its path, each verified."""
        if TYPES[version.kind] is WITHDRAWN or version.value["store"] is not None:
            raise ProtocolError("withdrawn, or in a store that this client was not configured to use")
        check_files(version.value)
        hints = {hint["digest"]: hint for hint in version.envelope["hints"]}
        return {item["path"]: self._fetch(version.value, item, hints) for item in version.value["files"]}

    def _fetch(self, manifest: Mapping[str, Any], item: Mapping[str, Any], hints: Mapping[str, Any]) -> bytes:
        size, chunk_bytes = item["size"], manifest["chunk_bytes"]
        stem = f"{manifest['model']}/{item['digest']}"
        places = [(zlib.crc32(stem.encode()) % self.partitions, 0, ENDLESS)]
        if (hint := hints.get(item["digest"])) and 0 <= hint["partition"] < self.partitions:
            places.insert(0, (hint["partition"], hint["first_offset"], hint["last_offset"] + 1))
        for place in places:
            records = self.records(self.blobs, *place) if size else ()
            data = _assembled(records, f"{stem}/{chunk_bytes}/", size, chunk_bytes)
            if len(data) == size and digest_of(data) == item["digest"]:
                return data
        raise ProtocolError(f"{item['path']} is not whole on {self.blobs}")


def _assembled(records: Iterable[Message], stem: str, size: int, chunk_bytes: int) -> bytes:
    chunks: dict[int, bytes] = {}
    sizes = [min(chunk_bytes, size - start) for start in range(0, size, chunk_bytes)]
    names = {f"{stem}{index}".encode(): index for index in range(len(sizes))}
    for record in records:
        index, value = names.get(record.key() or b""), record.value()
        if index is not None and value is not None and len(value) == sizes[index]:
            chunks[index] = value
    return b"".join(chunks[index] for index in sorted(chunks))
