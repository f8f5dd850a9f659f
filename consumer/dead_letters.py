"""Events that can't be scored, as records of the dead-letter topic.

- The original key and value, byte for byte, in the partition the event came from.
- Headers named and written as Kafka Streams does (KIP-1034; texts in UTF-8, numbers in decimal), so that its tools read
  them. There is no stack trace: an event's fault is not in our code.
- A record no broker would take must not loop: the value, then the key are cut to fit, and headers hold the size and
  digest of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from modelcast import digest
from modelcast.names import ModelVersion

from .batches import EventBatch
from .decode.rules import PoisonEvent

ERROR = "__streams.errors.exception"
MESSAGE = "__streams.errors.message"
TOPIC = "__streams.errors.topic"
PARTITION = "__streams.errors.partition"
OFFSET = "__streams.errors.offset"
MODEL = "modelcast.model"
VERSION = "modelcast.version"
# For the "value" or "key" that was cut: how many bytes it had, and their digest.
CUT_BYTES = "modelcast.{part}.bytes"
CUT_DIGEST = "modelcast.{part}.digest"

# Default message.max.bytes of librdkafka, which is less than what brokers and topics take by default (1,048,588).
MAX_RECORD_BYTES = 1_000_000
# What a batch of one record adds: 61 for the batch, at most 36 for the record (message format 2), rounded up.
_OVERHEAD_BYTES = 128
# Two varint lengths a header.
_HEADER_OVERHEAD_BYTES = 10
# A message names what is wrong: one that quotes the event must not push the event out of its own record.
_MAX_MESSAGE_BYTES = 1024

Headers = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead-letter topic."""

    key: bytes | None
    value: bytes | None
    partition: int
    headers: Headers


class DeadLetterBuilder:
    """Makes dead letters of events of one topic.

    Args:
        topic: Where the events come from.
        max_bytes: What one record may take, headers and framing counted; at least a few kilobytes.
    """

    def __init__(self, topic: str, *, max_bytes: int = MAX_RECORD_BYTES) -> None:
        self._topic = topic
        self._max_bytes = max_bytes

    def build(self, batch: EventBatch, poison: Sequence[PoisonEvent], model: ModelVersion) -> list[DeadLetter]:
        """The dead letters of a batch, in the order of `poison`; `model` is the version that was to score it."""
        return [self._letter(batch, event, model) for event in poison]

    def _letter(self, batch: EventBatch, event: PoisonEvent, model: ModelVersion) -> DeadLetter:
        row = event.index
        partition = int(batch.partitions[row])
        headers: Headers = (
            (ERROR, event.error.encode()),
            (MESSAGE, _cut_text(event.message, _MAX_MESSAGE_BYTES)),
            (TOPIC, self._topic.encode()),
            (PARTITION, b"%d" % partition),
            (OFFSET, b"%d" % int(batch.offsets[row])),
            (MODEL, model.name.encode()),
            (VERSION, b"%d" % model.version),
        )
        key, value, headers = _fitted(batch.keys[row], batch.values[row], headers, self._max_bytes)
        return DeadLetter(key, value, partition, headers)


def _fitted(
    key: bytes | None, value: bytes | None, headers: Headers, max_bytes: int
) -> tuple[bytes | None, bytes | None, Headers]:
    """Cuts the value, then the key, until the record takes at most `max_bytes`."""
    if _size(key, value, headers) > max_bytes and value:
        headers += _cut_headers("value", value)
        value = value[: max(0, max_bytes - _size(key, b"", headers))]
    if _size(key, value, headers) > max_bytes and key:
        headers += _cut_headers("key", key)
        key = key[: max(0, max_bytes - _size(b"", value, headers))]
    return key, value, headers


def _size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    held = sum(len(name) + len(content) + _HEADER_OVERHEAD_BYTES for name, content in headers)
    return _OVERHEAD_BYTES + len(key or b"") + len(value or b"") + held


def _cut_headers(part: str, whole: bytes) -> Headers:
    return (
        (CUT_BYTES.format(part=part), b"%d" % len(whole)),
        (CUT_DIGEST.format(part=part), digest.of_bytes(whole).encode()),
    )


def _cut_text(text: str, max_bytes: int) -> bytes:
    # Half a character at the cut, or half a surrogate pair quoted from an event, is left out.
    return text.encode(errors="ignore")[:max_bytes].decode(errors="ignore").encode()
