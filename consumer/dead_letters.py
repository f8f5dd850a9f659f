"""Events that can't be scored, as records of the dead-letter topic.

- The original key, value and headers, byte for byte, in the partition the event came from. The event's time is a
  header: the record's own is when it was written, so that no topic refuses or forgets it for the event's time.
- Headers named and written as Kafka Streams does (KIP-1034; texts in UTF-8, numbers in decimal), so that its tools read
  them. There is no stack trace: an event's fault is not in our code.
- A record no broker would take must not loop: the value, then the key are cut to fit, and headers hold the size and
  digest of the whole. Headers of the event that take too much room are left out, and their size is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
# Of several models that can't score an event, with commas between them.
MODEL = "modelcast.model"
VERSION = "modelcast.version"
# The event's time, epoch milliseconds.
TIMESTAMP = "modelcast.timestamp"
# How often the event was sent back already; the one header of this project that an event itself may carry.
REPLAYS = "modelcast.replays"
# For the "value", "key" or "headers" that were cut: how many bytes it had; for the first two also their digest.
CUT_BYTES = "modelcast.{part}.bytes"
CUT_DIGEST = "modelcast.{part}.digest"
PARTS = ("value", "key", "headers")

# Names of headers that say something of the letter, not of the event.
_STREAMS_PREFIX = "__streams.errors."
_OWN_PREFIX = "modelcast."

# Largest record the data plane's producers take (`modelcast.kafka.settings`): what a topic takes is the topic's to say.
PRODUCER_MAX_BYTES = 100_000_000
# A little below Kafka's default max.message.bytes (1,048,588).
MAX_RECORD_BYTES = 1_000_000
# What a batch of one record adds: 61 for the batch, at most 36 for the record (message format 2), rounded up.
_OVERHEAD_BYTES = 128
# Two varint lengths a header.
_HEADER_OVERHEAD_BYTES = 10
# A message names what is wrong: one that quotes the event must not push the event out of its own record.
_MAX_MESSAGE_BYTES = 1024
# The event's headers may take so much of a record, a fraction: the value says more.
_HEADERS_SHARE = 4
# Anyone may write a header; Python refuses to read numbers of thousands of digits.
_MAX_COUNT_DIGITS = 10

Headers = tuple[tuple[str, bytes | None], ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead-letter topic."""

    key: bytes | None
    value: bytes | None
    partition: int
    headers: Headers


def record_limit_bytes(configs: Mapping[str, str]) -> int:
    """How large a record may be on a topic of this configuration, framing counted."""
    return min(int(configs.get("max.message.bytes", MAX_RECORD_BYTES)), PRODUCER_MAX_BYTES)


def event_headers(headers: Iterable[tuple[str, bytes | None]]) -> Headers:
    """The event's own headers among a letter's."""
    return tuple(entry for entry in headers if not entry[0].startswith((_STREAMS_PREFIX, _OWN_PREFIX)))


def replays_of(headers: Iterable[tuple[str, bytes | None]]) -> int:
    """How often the event with these headers was sent back; 0 for a count that is none."""
    counts = [value for name, value in headers if name == REPLAYS and value is not None]
    return int(counts[-1]) if counts and counts[-1].isdigit() and len(counts[-1]) < _MAX_COUNT_DIGITS else 0


class DeadLetterBuilder:
    """Makes dead letters of events of one topic.

    Args:
        topic: Where the events come from.
        max_bytes: What one record may take, headers and framing counted; at least a few kilobytes.
    """

    def __init__(self, topic: str, *, max_bytes: int = MAX_RECORD_BYTES) -> None:
        self._topic = topic
        self._max_bytes = max_bytes

    def build(
        self, batch: EventBatch, poison: Sequence[PoisonEvent], models: Sequence[ModelVersion]
    ) -> list[DeadLetter]:
        """The dead letters of a batch, in the order of `poison`; `models` are the versions that can't score them."""
        return [self._letter(batch, event, models) for event in poison]

    def _letter(self, batch: EventBatch, event: PoisonEvent, models: Sequence[ModelVersion]) -> DeadLetter:
        row = event.index
        partition, timestamp_ms = int(batch.partitions[row]), int(batch.timestamps[row])
        theirs = batch.headers_of(row)
        replays = replays_of(theirs)
        headers: Headers = (
            (ERROR, event.error.encode()),
            (MESSAGE, _cut_text(event.message, _MAX_MESSAGE_BYTES)),
            (TOPIC, self._topic.encode()),
            (PARTITION, b"%d" % partition),
            (OFFSET, b"%d" % int(batch.offsets[row])),
        )
        if models:
            headers += (
                (MODEL, ",".join(model.name for model in models).encode()),
                (VERSION, ",".join(str(model.version) for model in models).encode()),
            )
        if timestamp_ms >= 0:
            headers += ((TIMESTAMP, b"%d" % timestamp_ms),)
        if replays:
            headers += ((REPLAYS, b"%d" % replays),)
        headers = _with_theirs(event_headers(theirs), headers, self._max_bytes // _HEADERS_SHARE)
        key, value, headers = _fitted(batch.keys[row], batch.values[row], headers, self._max_bytes)
        return DeadLetter(key, value, partition, headers)


def _with_theirs(theirs: Headers, ours: Headers, max_bytes: int) -> Headers:
    """The event's headers before the letter's; left out and counted where they take over `max_bytes`."""
    if not theirs:
        return ours
    if _headers_size(theirs) <= max_bytes:
        return theirs + ours
    whole = sum(len(name.encode()) + len(content or b"") for name, content in theirs)
    return (*ours, (CUT_BYTES.format(part="headers"), b"%d" % whole))


def _fitted(
    key: bytes | None, value: bytes | None, headers: Headers, max_bytes: int
) -> tuple[bytes | None, bytes | None, Headers]:
    """Cuts the value, then the key, until the record takes at most `max_bytes`."""
    if record_size(key, value, headers) > max_bytes and value:
        headers += _cut_headers("value", value)
        value = value[: max(0, max_bytes - record_size(key, b"", headers))]
    if record_size(key, value, headers) > max_bytes and key:
        headers += _cut_headers("key", key)
        key = key[: max(0, max_bytes - record_size(b"", value, headers))]
    return key, value, headers


def record_size(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> int:
    """Bytes that one record takes of what its topic allows, rounded up."""
    return _OVERHEAD_BYTES + len(key or b"") + len(value or b"") + _headers_size(headers)


def _headers_size(headers: Iterable[tuple[str, bytes | None]]) -> int:
    return sum(len(name.encode()) + len(content or b"") + _HEADER_OVERHEAD_BYTES for name, content in headers)


def _cut_headers(part: str, whole: bytes) -> Headers:
    return (
        (CUT_BYTES.format(part=part), b"%d" % len(whole)),
        (CUT_DIGEST.format(part=part), digest.of_bytes(whole).encode()),
    )


def _cut_text(text: str, max_bytes: int) -> bytes:
    # Half a character at the cut, or half a surrogate pair quoted from an event, is left out.
    return text.encode(errors="ignore")[:max_bytes].decode(errors="ignore").encode()
