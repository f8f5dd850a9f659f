"""Which format each event of a batch has.

| `--event-format` | an event is |
|---|---|
| `auto` | framed, if it is: `C3 01` always, a Schema Registry's frame where one is named; else Avro of the given schema; else JSON |
| `json` | JSON, whatever it begins with |
| `avro` | Avro of the given schema, whatever it begins with |
| `single-object` | Avro behind `C3 01` and a fingerprint |
| `confluent` | what its schema in the registry says, framed in its value or a header |

Pure: a batch is split into rows of one frame each, and what its format forbids is told. A frame in a header outweighs
what the value begins with, and its value may be empty (a message whose fields all have their defaults has no bytes).
"""  # noqa: E501 - a table

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

import numpy as np

from modelcast import avro
from modelcast.avro import FRAME_BYTES, SINGLE_OBJECT_MARKER, Schema
from modelcast.errors import UsageError
from modelcast.events.frames import (
    GUID_FRAME_BYTES,
    GUID_MAGIC,
    ID_FRAME_BYTES,
    ID_MAGIC,
    SCHEMA_HEADER,
    Framed,
    Headers,
    framed,
    header_of,
    registry_frame,
)

from .cursor import Buffer, Mask, Rows
from .rules import Fault, Spoiled

# The marker's two bytes as one number, as numpy reads them from the buffer.
_MARKER = np.frombuffer(SINGLE_OBJECT_MARKER, "<u2")[0]


class EventFormat(StrEnum):
    """What events are, as a user says it."""

    AUTO = "auto"
    JSON = "json"
    AVRO = "avro"
    SINGLE_OBJECT = "single-object"
    CONFLUENT = "confluent"


@dataclass(frozen=True, slots=True)
class FrameGroup:
    """Rows of one frame.

    Attributes:
        framed: The frame, and where the payloads begin.
        rows: Ascending.
    """

    framed: Framed
    rows: Rows


@dataclass(frozen=True, slots=True)
class Split:
    """A batch by format; no row is in two of these, and empty values without a frame are in none."""

    groups: tuple[FrameGroup, ...] = ()
    avro: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    json: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    spoiled: tuple[Spoiled, ...] = ()


@dataclass(frozen=True, slots=True)
class Formats:
    """How events are told apart.

    Attributes:
        event_schema: The schema of Avro without a frame, and the reader's schema of Avro with one.
        registry: There is a Schema Registry to look ids up in.
    """

    format: EventFormat = EventFormat.AUTO
    event_schema: Schema | None = None
    registry: bool = False

    @classmethod
    def of(cls, event_format: str, event_schema: Schema | Path | str | None, *, registry: bool) -> Formats:
        """From what a user says.

        Raises:
            UsageError: There is no such format, or what it needs is not given.
            SourceError: The schema's file can't be read, or holds none.
        """
        if event_format not in list(EventFormat):
            raise UsageError(f"there is no event format {event_format!r}", hint=f"Use {', '.join(EventFormat)}.")
        chosen = EventFormat(event_format)
        if chosen is EventFormat.AVRO and event_schema is None:
            raise UsageError(
                "Avro without a frame does not name its schema",
                hint="Give it with --event-schema FILE (event_schema=…), or name another format.",
            )
        if chosen is EventFormat.CONFLUENT and not registry:
            raise UsageError(
                "events framed for a Schema Registry need one to be read",
                hint="Name it with --schema-registry URL (schema_registry=…) or MODELCAST_SCHEMA_REGISTRY.",
            )
        given = event_schema is None or isinstance(event_schema, Schema)
        return cls(chosen, event_schema if given else avro.load(Path(event_schema)), registry)  # type: ignore[arg-type]

    @property
    def needs_headers(self) -> bool:
        """Whether an event's headers may say what it is."""
        return self.format is EventFormat.CONFLUENT or (self.format is EventFormat.AUTO and self.registry)

    def frame_of(self, value: bytes | None, headers: Headers | None = None) -> Framed | None:
        """The frame of one event; None if it has none, or if its format knows none."""
        if self.format in (EventFormat.JSON, EventFormat.AVRO):
            return None
        found = framed(value, headers, registry=self.needs_headers)
        if found is not None and self.format is EventFormat.CONFLUENT and len(found.frame) == FRAME_BYTES:
            return None
        return found

    def split(self, buffer: Buffer, headers: Sequence[Headers | None] | None = None) -> Split:
        """Splits a batch.

        Args:
            buffer: The values; null ones as empty ones.
            headers: Each event's, where `needs_headers`.
        """
        there: Mask = buffer.ends > buffer.starts
        groups: list[FrameGroup] = []
        spoiled: list[Spoiled] = []
        if headers is not None and self.needs_headers:
            _by_header(headers, there, groups, spoiled)
        match self.format:
            case EventFormat.JSON:
                return Split(json=np.flatnonzero(there))
            case EventFormat.AVRO:
                return Split(avro=np.flatnonzero(there))
            case EventFormat.CONFLUENT:
                self._take_registry(buffer, there, groups)
                spoiled += _refused(
                    there, "does not begin with a Schema Registry's frame, nor is there one in its headers"
                )
                return Split(tuple(groups), spoiled=tuple(spoiled))
            case EventFormat.SINGLE_OBJECT:
                _take_single_object(buffer, there, groups, spoiled)
                spoiled += _refused(there, "does not begin with the frame of a single-object record")
                return Split(tuple(groups), spoiled=tuple(spoiled))
        _take_single_object(buffer, there, groups, spoiled)
        if self.registry:
            self._take_registry(buffer, there, groups)
        left = np.flatnonzero(there)
        if self.event_schema is not None:
            return Split(tuple(groups), avro=left, spoiled=tuple(spoiled))
        return Split(tuple(groups), json=left, spoiled=tuple(spoiled))

    @staticmethod
    def _take_registry(buffer: Buffer, there: Mask, groups: list[FrameGroup]) -> None:
        for magic, width in ((ID_MAGIC, ID_FRAME_BYTES), (GUID_MAGIC, GUID_FRAME_BYTES)):
            lengths = buffer.ends - buffer.starts
            rows = np.flatnonzero(there & (lengths >= width))
            rows = rows[buffer.octets[buffer.starts[rows]] == magic]
            there[rows] = False
            for frame, same in _by_frame(buffer, rows, width):
                groups.append(FrameGroup(Framed(frame, width), same))


def _take_single_object(buffer: Buffer, there: Mask, groups: list[FrameGroup], spoiled: list[Spoiled]) -> None:
    lengths = buffer.ends - buffer.starts
    # Windows reach into the next value where one is short: two bytes of a marker must be its own.
    marked = there & (lengths >= len(SINGLE_OBJECT_MARKER))
    marked &= buffer.window(buffer.starts, 2).view("<u2") == _MARKER
    rows = np.flatnonzero(marked)
    if not rows.size:
        return
    there[rows] = False
    cut = lengths[rows] < FRAME_BYTES
    if cut.any():
        spoiled.append(Spoiled(rows[cut], Fault.INVALID_AVRO, f"cut short within the {FRAME_BYTES} bytes of its frame"))
        rows = rows[~cut]
    for frame, same in _by_frame(buffer, rows, FRAME_BYTES):
        groups.append(FrameGroup(Framed(frame, FRAME_BYTES), same))


def _by_frame(buffer: Buffer, rows: Rows, width: int) -> Iterator[tuple[bytes, Rows]]:
    """Rows by the `width` bytes they begin with."""
    if not rows.size:
        return
    starts = buffer.starts[rows]
    # What all frames of one width begin with says nothing: their last 8 bytes (16 of a GUID, 4 of an id) do.
    names = buffer.window(starts + width % 4, width - width % 4).view("<u4").reshape(len(rows), -1)
    if (names == names[0]).all():
        yield buffer.value(int(rows[0]))[:width], rows
        return
    whole = names.view(f"V{names.shape[1] * 4}").reshape(-1)
    distinct, place = np.unique(whole, return_inverse=True)
    for number in range(len(distinct)):
        same = rows[place == number]
        yield buffer.value(int(same[0]))[:width], same


def _by_header(
    headers: Sequence[Headers | None], there: Mask, groups: list[FrameGroup], spoiled: list[Spoiled]
) -> None:
    named: dict[bytes, list[int]] = {}
    for row, own in enumerate(headers):
        if own:
            found, value = header_of(own)
            if found:
                named.setdefault(value or b"", []).append(row)
    for value, rows in named.items():
        there[rows] = False
        frame = registry_frame(value)
        if frame is None:
            message = f"its header {SCHEMA_HEADER!r} holds no schema id"
            spoiled.append(Spoiled(np.array(rows), Fault.INVALID_FRAME, message))
        else:
            groups.append(FrameGroup(Framed(frame, 0, value[len(frame) :]), np.array(rows)))


def _refused(there: Mask, message: str) -> list[Spoiled]:
    rows = np.flatnonzero(there)
    return [Spoiled(rows, Fault.INVALID_FRAME, message)] if rows.size else []
