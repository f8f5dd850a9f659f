"""What a frame leads to: the schema an event was written with, wherever that is described.

- `SchemaSource` finds the writer of a frame. The schemas topic knows fingerprints, a Schema Registry ids and GUIDs;
  `WriterSchemas` asks whichever is concerned.
- None means: not known so far. What can't be asked at the moment raises, which is another thing: whoever asked waits.
- A schema that is there and is of no use (not one of its language, a reference that leads nowhere) is `UnusableWriter`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from modelcast.avro import SINGLE_OBJECT_MARKER, Schema
from modelcast.protobuf import ProtobufSchema


@dataclass(frozen=True, slots=True)
class AvroWriter:
    """A datum of an Avro schema."""

    schema: Schema


@dataclass(frozen=True, slots=True)
class JsonWriter:
    """JSON, by a JSON Schema: what a model takes is held to the rules of every event, not to that schema."""


@dataclass(frozen=True, slots=True)
class ProtobufWriter:
    """A message of a Protobuf schema, behind the indexes that say which."""

    schema: ProtobufSchema


@dataclass(frozen=True, slots=True)
class UnusableWriter:
    """A schema nothing can be read by."""

    reason: str


WriterSchema = AvroWriter | JsonWriter | ProtobufWriter | UnusableWriter


class SchemaSource(Protocol):
    """Where writers' schemas are found."""

    def find(self, frame: bytes) -> WriterSchema | None:
        """The schema a frame (`modelcast.events.frames`) names, or None if nobody knows it so far.

        Raises:
            BrokerError: It could not be asked for.
        """


class Fingerprints(Protocol):
    """Where single-object records' schemas are found: `SchemaTopic`."""

    def find(self, fingerprint: bytes) -> Schema | None: ...


class WriterSchemas:
    """The schemas topic, and a Schema Registry where there is one, as one source.

    Args:
        topic: Knows fingerprints.
        registry: Knows ids and GUIDs.
    """

    def __init__(self, topic: Fingerprints, registry: SchemaSource | None = None) -> None:
        self._topic = topic
        self._registry = registry

    def find(self, frame: bytes) -> WriterSchema | None:
        """As `SchemaSource.find`."""
        if frame.startswith(SINGLE_OBJECT_MARKER):
            schema = self._topic.find(frame[len(SINGLE_OBJECT_MARKER) :])
            return None if schema is None else AvroWriter(schema)
        return None if self._registry is None else self._registry.find(frame)
