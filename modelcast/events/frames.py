"""Frames: the bytes that name the schema an event was written with.

    C3 01 + 8 bytes    the CRC-64-AVRO fingerprint, little-endian (Avro specification 1.12, "Single object encoding")
    00 + 4 bytes       the id a Schema Registry gave the schema, big-endian
    01 + 16 bytes      the schema's GUID, which is the same in every registry

- The first stands at the beginning of a value. The other two (Confluent's wire format; `SchemaId` of its Python client)
  stand there too, or in the header `__value_schema_id`: then nothing of them is in the value.
- Behind a registry's frame, Protobuf has the indexes of the message within its file: they follow the frame wherever
  that stands, in a header too.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from modelcast.avro import FRAME_BYTES, SINGLE_OBJECT_MARKER

SCHEMA_HEADER = "__value_schema_id"
ID_MAGIC = 0
GUID_MAGIC = 1
ID_FRAME_BYTES = 1 + 4
GUID_FRAME_BYTES = 1 + 16
# Registries count in Java's ints: what is larger was never given to a schema, and none could be asked for it.
MAX_SCHEMA_ID = 2**31 - 1

_WIDTHS = {ID_MAGIC: ID_FRAME_BYTES, GUID_MAGIC: GUID_FRAME_BYTES}

# As the client library gives them: names may come twice, values may be null.
Headers = Iterable[tuple[str, bytes | None]]


@dataclass(frozen=True, slots=True)
class Framed:
    """A frame, and where what it frames begins.

    Attributes:
        frame: The frame alone.
        skip: Bytes of the value before its payload (for Protobuf: before the indexes).
        behind: What stood in a header behind the frame: Protobuf's indexes. None: the frame came in the value.
    """

    frame: bytes
    skip: int
    behind: bytes | None = None


def registry_frame(data: bytes) -> bytes | None:
    """The frame of a Schema Registry that `data` begins with, or None."""
    width = _WIDTHS.get(data[0]) if data else None
    return None if width is None or len(data) < width else data[:width]


def single_object_frame(value: bytes) -> bytes | None:
    """The frame of a single-object record, or None if `value` begins otherwise or ends within it."""
    return value[:FRAME_BYTES] if value.startswith(SINGLE_OBJECT_MARKER) and len(value) >= FRAME_BYTES else None


def header_of(headers: Headers | None) -> tuple[bool, bytes | None]:
    """Whether an event's headers have one for its schema, and that header's value: the first, as other readers do."""
    for name, value in headers or ():
        if name == SCHEMA_HEADER:
            return True, value
    return False, None


def framed(value: bytes | None, headers: Headers | None, *, registry: bool) -> Framed | None:
    """The frame of one event, or None if it has none; frames of a registry count only where there is one."""
    if registry:
        there, named = header_of(headers)
        if there:
            frame = registry_frame(named or b"")
            return None if frame is None else Framed(frame, 0, (named or b"")[len(frame) :])
    frame = single_object_frame(value or b"")
    if frame is None and registry:
        frame = registry_frame(value or b"")
    return None if frame is None else Framed(frame, len(frame))


def schema_id_of(frame: bytes) -> int | None:
    """The id in a registry's frame; None in any other."""
    return int.from_bytes(frame[1:]) if len(frame) == ID_FRAME_BYTES and frame[0] == ID_MAGIC else None


def guid_of(frame: bytes) -> str | None:
    """The GUID in a registry's frame, as text; None in any other."""
    named = len(frame) == GUID_FRAME_BYTES and frame[0] == GUID_MAGIC
    return str(uuid.UUID(bytes=frame[1:])) if named else None


def describe_frame(frame: bytes) -> str:
    """Which schema a frame names, for messages."""
    if frame.startswith(SINGLE_OBJECT_MARKER):
        return f"fingerprint {frame[len(SINGLE_OBJECT_MARKER) :].hex()}"
    schema_id = schema_id_of(frame)
    return f"GUID {guid_of(frame)}" if schema_id is None else f"id {schema_id}"


def unknown_message(frame: bytes) -> str:
    """What is said of an event whose schema nobody knows."""
    if frame.startswith(SINGLE_OBJECT_MARKER):
        return f"no schema with {describe_frame(frame)} is described on the schemas topic"
    return f"the Schema Registry has no schema with {describe_frame(frame)}"
