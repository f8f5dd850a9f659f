"""Readers of the application's topics beside the scorer: dead letters read back, values shown, what events have."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from modelcast.avro import FINGERPRINT_BYTES, SINGLE_OBJECT_MARKER, Schema
from modelcast.cli.output import to_json
from modelcast.consumer.dead_letters import (
    CUT_BYTES,
    ERROR,
    MESSAGE,
    MODEL,
    OFFSET,
    PARTITION,
    PARTS,
    REPLAYS,
    TIMESTAMP,
    TOPIC,
    VERSION,
)
from modelcast.consumer.dlq import NOTE_MAX_BYTES, Sent, StoredLetter
from modelcast.consumer.event_fields import MAX_FIELDS, json_said, schema_kinds
from modelcast.consumer.letter_text import format_of, moment, preview
from modelcast.errors import SourceError, UsageError, WireError
from modelcast.events.frames import describe_frame, framed
from modelcast.events.tail import ValueDecoder
from modelcast.events.writers import AvroWriter, WriterSchema
from modelcast.group import Progress
from modelcast.log import LogRecord
from modelcast.protobuf import read_indexes

from .damage import damaged
from .entropy import Entropy, pick
from .reader import Reader
from .records import _SCHEMAS
from .shapes import Headers, Shape, shapes

_NOTE = b'{"MissingField":12,"NotAvro":3}'
_PREVIEW_CHARS = 60
# The shapes of tapes: of this seed, for ever.
_SEED = 0


def readers() -> list[Reader]:
    """Letters, marks of replays, values as `tail` shows them, kinds of fields."""
    shown = _Shown()
    return [
        Reader("dead letter", [_packed(_LETTER)], _letter, draw=_letter_drawn),
        Reader("replay note", [_NOTE, b"{}", b""], _note, (UsageError,)),
        Reader("value shown", shown.seeds, shown.read, draw=shown.drawn),
        Reader("message indexes", [b"\x00", b"\x04\x02\x04", b"\x02\x02rest"], _indexes, (WireError,)),
        Reader("fields of JSON", [b'{"id": "a", "card": {"limit": 1.5, "tags": [1, 2]}, "at": null}'], _kinds_of_json),
        Reader("fields of Avro", _SCHEMAS, _kinds_of_avro, (SourceError,), share=20),
    ]


_LETTER: Headers = (
    ("trace", b"\x00\x01"),
    (ERROR, b"MissingField: amount"),
    (MESSAGE, b"field amount is not there"),
    (TOPIC, b"events"),
    (PARTITION, b"3"),
    (OFFSET, b"123456"),
    (MODEL, b"fraud,churn"),
    (VERSION, b"3,1"),
    (TIMESTAMP, b"1700000000000"),
    (REPLAYS, b"2"),
)
_NAMES = (*(name for name, _ in _LETTER), *(CUT_BYTES.format(part=part) for part in PARTS), "")
_NUMBERS = (b"-1", b"", b"9" * 19, b"9" * 25, b"1e3", "²".encode(), "٣".encode(), b"\xff\xfe", b"0x1", b" 1", b"1_0")
# Of a header: which name, and how long its value is; 255 stands for none.
_HEADER = struct.Struct("<BB")
_NONE = 255


def _packed(headers: Headers) -> bytes:
    return b"".join(
        _HEADER.pack(_NAMES.index(name), _NONE if value is None else min(len(value), _NONE - 1))
        + (value or b"")[: _NONE - 1]
        for name, value in headers
    )


def _unpacked(data: bytes) -> Headers:
    found: list[tuple[str, bytes | None]] = []
    at = 0
    while at + _HEADER.size <= len(data):
        name, length = _HEADER.unpack_from(data, at)
        at += _HEADER.size
        size = 0 if length == _NONE else length
        found.append((_NAMES[name % len(_NAMES)], None if length == _NONE else data[at : at + size]))
        at += size
    return tuple(found)


def _letter_drawn(entropy: Entropy) -> bytes:
    headers = list(_LETTER)
    for _ in range(entropy.number(1, 4)):
        place = entropy.number(0, len(headers) - 1)
        name, value = headers[place]
        if entropy.number(0, 1):
            headers[place] = (name, pick(entropy, _NUMBERS))
        else:
            headers[place] = (pick(entropy, _NAMES), damaged(entropy, value, [other for _, other in headers]))
    return _packed(tuple(headers))


def _letter(data: bytes) -> None:
    headers = _unpacked(data)
    value = headers[0][1] if headers else None
    letter = StoredLetter.of(LogRecord("d", 1, 2, 3, None, value, headers))
    assert letter.word
    assert letter.place == "1:2"
    assert letter.replays >= 0
    if letter.source is not None:
        assert letter.source.offset >= 0
        assert letter.source.partition >= 0
        assert (letter.source.timestamp_ms or 0) < 10**19
        assert moment(letter.source.timestamp_ms or 0)
    assert set(letter.cut) <= set(PARTS)
    assert all(name not in {ERROR, REPLAYS} for name, _ in letter.headers)
    shown = preview(value, _PREVIEW_CHARS)
    assert shown.isprintable()
    assert len(shown) <= _PREVIEW_CHARS
    assert format_of(value) in {"none", "empty", "avro", "confluent", "json", "text", "bytes"}


def _note(data: bytes) -> None:
    sent = Sent.read(Progress(7, data.decode("utf-8", "replace")))
    assert sent.before == 7
    again = sent.plus("NotAvro", 9)
    assert again.start("NotAvro") >= 9
    assert len(again.note().encode()) <= NOTE_MAX_BYTES
    assert Sent.read(Progress(7, again.note())) == again


class _Shown:
    """Values of every shape of events as a person sees them; an input's first byte says which shape."""

    def __init__(self) -> None:
        self._shapes = shapes(_SEED)
        self._decoders = [ValueDecoder(_Fingerprints(shape), shape, sleep=_no_rest) for shape in self._shapes]  # type: ignore[arg-type]
        self.seeds: Sequence[bytes] = [
            bytes([number]) + (shape.values[1] or b"") for number, shape in enumerate(self._shapes)
        ]

    def drawn(self, entropy: Entropy) -> bytes:
        number = entropy.number(0, len(self._shapes) - 1)
        values = self._shapes[number].values
        return bytes([number]) + (damaged(entropy, pick(entropy, values), values) or b"")

    def read(self, data: bytes) -> None:
        number = data[0] % len(self._shapes) if data else 0
        value = data[1:]
        to_json(self._decoders[number].value(value))
        found = framed(value, (), registry=True)
        assert found is None or describe_frame(found.frame)


class _Fingerprints:
    """A schemas topic that describes one shape's schemas."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def find(self, fingerprint: bytes) -> Schema | None:
        assert len(fingerprint) == FINGERPRINT_BYTES
        writer: WriterSchema | None = self._shape.writers.get(SINGLE_OBJECT_MARKER + fingerprint)
        return writer.schema if isinstance(writer, AvroWriter) else None


def _no_rest(seconds: float) -> None:
    assert seconds >= 0


def _indexes(data: bytes) -> None:
    indexes, at = read_indexes(data)
    assert 0 < at <= len(data)
    assert 0 < len(indexes) <= 100


def _kinds_of_json(data: bytes) -> None:
    said = json_said(data)
    assert said is None or 0 < len(said.kinds) <= MAX_FIELDS + len(data)


def _kinds_of_avro(data: bytes) -> None:
    kinds = schema_kinds(Schema.parse(data))
    assert len(kinds) <= MAX_FIELDS
    assert all(kinds.values())
