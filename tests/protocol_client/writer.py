"""Publishes, releases and rolls back (§5)."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.protocol_client.avro import ProtocolError, Schema, frame, unframe
from tests.protocol_client.files import digest_of
from tests.protocol_client.image import (
    ENVELOPE,
    KEY,
    MANIFEST,
    RELEASE,
    TYPES,
    Image,
    key_id,
    original,
    signed_bytes,
)
from tests.protocol_client.topics import Topics

TRANSACTION_TIMEOUT_MS = 10_000  # what §5 advises
ATTEMPTS = 3
CHUNK_BYTES = 900_000  # leaves room for key and frame within the 1,000,000 bytes librdkafka sends by default


@dataclass(frozen=True)
class Writer:
    """Changes one model. `on_attempt` is called once the model is held, before anything is written."""

    servers: str
    prefix: str
    model: str
    key: Ed25519PrivateKey | None = None
    on_attempt: Callable[[int], None] = lambda attempt: None

    def publish(self, files: Mapping[str, bytes], described: Mapping[str, Any], *, release: bool = False) -> int:
        """Publishes files as the next version; `described` gives the manifest's fields that are not derived."""
        entries = [{"path": p, "size": len(files[p]), "digest": digest_of(files[p])} for p in sorted(files)]

        def plan(topics: Topics, image: Image) -> list[tuple[str, bytes]]:
            version = image.next_number(image.versions, self.model)
            numbers = {"version": version, "files": entries, "chunk_bytes": CHUNK_BYTES}
            manifest = MANIFEST[0].completed(self._stamped(image, {**described, **numbers}))
            key = f"version/{self.model}/{version}"
            records = [self._record(key, MANIFEST, manifest, self._upload(topics, image, files))]
            return [*records, self._release(image, version)] if release else records

        return int(self._change(plan)[0][0].rsplit("/")[-1])

    def release(self, version: int) -> None:
        self._change(lambda _, image: [self._release(image, version)])

    def rollback(self) -> None:
        def plan(_: Topics, image: Image) -> list[tuple[str, bytes]]:
            if (target := image.rollback_target(self.model)) is None:
                raise ProtocolError(f"nothing to go back to for {self.model}")
            return [self._release(image, target.value["version"], original(target.value))]

        self._change(plan)

    def _stamped(self, image: Image, value: Mapping[str, Any]) -> dict[str, Any]:
        common = {"repository": image.repository, "model": self.model, "created_ms": time.time_ns() // 1_000_000}
        return {**common, "created_by": "another client", "message": "", **value}

    def _release(self, image: Image, version: int, restores: int | None = None) -> tuple[str, bytes]:
        sequence = image.next_number(image.releases, self.model)
        value = self._stamped(image, {"sequence": sequence, "version": version, "restores": restores})
        return self._record(f"release/{self.model}/{sequence}", RELEASE, value)

    def _record(
        self, key: str, schemas: tuple[Schema, ...], value: Mapping[str, Any], hints: Iterable[Mapping[str, Any]] = ()
    ) -> tuple[str, bytes]:
        kind = next(name for name, known in TYPES.items() if known is schemas)
        payload, signatures = frame(schemas[0], value), []
        if self.key is not None:
            signature = self.key.sign(signed_bytes(kind, payload))
            signatures.append({"key_id": key_id(self.key.public_key()), "signature": signature})
        envelope = {"payload_type": kind, "payload": payload, "signatures": signatures, "hints": list(hints)}
        return key, frame(ENVELOPE[0], envelope)

    def _upload(self, topics: Topics, image: Image, files: Mapping[str, bytes]) -> list[dict[str, Any]]:
        """Sends the chunks that no version has, outside the transaction; gives the hints of all."""
        hints: dict[str, dict[str, Any]] = {}
        there: set[str] = set()
        for (model, _), entry in image.versions.items():
            if model == self.model and entry.value.get("chunk_bytes") == CHUNK_BYTES and entry.value["store"] is None:
                there |= {item["digest"] for item in entry.value["files"]}
                hints |= {hint["digest"]: dict(hint) for hint in entry.envelope["hints"]}

        def landed(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                raise KafkaException(error)
            digest = (message.key() or b"").decode().split("/")[1]
            where = {"digest": digest, "partition": message.partition(), "first_offset": message.offset()}
            hints.setdefault(digest, where)["last_offset"] = message.offset()

        contents = {digest_of(data): data for data in files.values()}
        with Producer({"bootstrap.servers": self.servers, "enable.idempotence": True}) as producer:
            producer.list_topics(timeout=60)
            for digest in contents.keys() - there:
                stem, data = f"{self.model}/{digest}", contents[digest]
                for index, start in enumerate(range(0, len(data), CHUNK_BYTES)):
                    producer.produce(
                        topics.blobs,
                        data[start : start + CHUNK_BYTES],
                        f"{stem}/{CHUNK_BYTES}/{index}",
                        zlib.crc32(stem.encode()) % topics.partitions,
                        on_delivery=landed,
                    )
            if left := producer.flush(60):
                raise TimeoutError(f"{left} chunks were not acknowledged")
        return [hint for digest, hint in hints.items() if digest in contents]

    def _change(self, plan: Callable[[Topics, Image], list[tuple[str, bytes]]]) -> list[tuple[str, bytes]]:
        """One transaction; begins again where another writer took the model, unless the records landed."""
        records: list[tuple[str, bytes]] = []
        settings = {
            "bootstrap.servers": self.servers,
            "transactional.id": f"{self.prefix}.publisher.{self.model}",
            "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
        }
        for attempt in range(ATTEMPTS):
            producer = Producer(settings)  # no context manager: leaving one that was fenced raises SystemError
            with closing(Topics(self.servers, self.prefix)) as topics:
                producer.list_topics(timeout=60)  # connected first: who asks for an id sooner waits half a second
                try:
                    producer.init_transactions(60)
                    image = topics.catch_up()
                    if records and _landed(image, records):
                        return records
                    records = plan(topics, image)
                    self.on_attempt(attempt)
                    producer.begin_transaction()
                    for key, value in records:
                        producer.produce(topics.registry, value, key, 0)
                    producer.commit_transaction(60)
                    return records
                except KafkaException as error:
                    if not error.args[0].fatal() and not error.args[0].txn_requires_abort():
                        raise
        raise ProtocolError(f"others kept changing {self.model}")


def _landed(image: Image, records: list[tuple[str, bytes]]) -> bool:
    named = KEY.fullmatch(records[0][0])
    assert named is not None
    places = image.releases if named[1] == "release" else image.versions
    entry = places.get((named[2], int(named[3])))
    return entry is not None and entry.envelope["payload"] == unframe(records[0][1], ENVELOPE)[1]["payload"]
