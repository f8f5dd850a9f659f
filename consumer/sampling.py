"""What fields the events of a topic have, from a look at its latest ones: a model that can't be bound is then refused
when it is loaded, not by a dead letter for every event.

- An Avro event says it by its writer's schema; a JSON event by the values it happens to hold (`event_fields`).
- A topic without events says nothing, and then no model is refused for its inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from modelcast.errors import SchemaRegistryError, WireError
from modelcast.events.frames import Headers
from modelcast.events.writers import AvroWriter, JsonWriter, ProtobufWriter, SchemaSource
from modelcast.log import Log, LogRecord
from modelcast.protobuf import read_indexes

from .binding import EventFields
from .decode.formats import EventFormat, Formats
from .event_fields import Said, avro_said, event_fields, json_said, merged, protobuf_said

# Enough to see every optional field of JSON events of one kind, few enough to be read in milliseconds.
SAMPLES_PER_PARTITION = 50
# A topic may have hundreds of partitions, and the loader waits for this look.
SAMPLED_PARTITIONS_MAX = 16
SAMPLE_TIMEOUT_S = 5.0
# More formats and schemas than this on one topic are garbage, and are not worth another look at it.
FORMATS_MAX = 64
_POLL_S = 0.1

_Sample = tuple[bytes | None, Headers]


def sample_events(log: Log, topic: str, *, clock: Callable[[], float] = time.monotonic) -> list[LogRecord]:
    """The latest committed events of a topic, the latest last within each partition.

    Raises:
        TopicNotFoundError: There is no such topic.
        BrokerError: Kafka did not answer.
    """
    ends = log.end_offsets(topic, committed=True)
    begins = log.begin_offsets(topic)
    filled = sorted(partition for partition, end in ends.items() if end > begins[partition])[:SAMPLED_PARTITIONS_MAX]
    if not filled:
        return []
    starts = {partition: max(begins[partition], ends[partition] - SAMPLES_PER_PARTITION) for partition in filled}
    reader = log.reader(topic, starts)
    found: list[LogRecord] = []
    deadline = clock() + SAMPLE_TIMEOUT_S
    try:
        while clock() < deadline and any(reader.position(partition) < ends[partition] for partition in filled):
            found.extend(reader.poll(_POLL_S))
    finally:
        reader.close()
    return found


class EventFieldsSource:
    """Keeps what is known about a topic's fields. For one thread.

    Args:
        log: The connection.
        topic: The events.
        schemas: Where writers' schemas are found.
        formats: What the events are.
    """

    def __init__(self, log: Log, topic: str, schemas: SchemaSource, formats: Formats | None = None) -> None:
        self._log = log
        self._topic = topic
        self._schemas = schemas
        self._formats = Formats() if formats is None else formats
        self._frames: set[bytes | None] = set()
        self.known: EventFields | None = None

    def sample(self) -> bool:
        """Looks at the latest events; True if more is known now. Raises BrokerError."""
        return self._learn([(record.value, record.headers) for record in sample_events(self._log, self._topic)])

    def meet(self, value: bytes | None, headers: Headers = ()) -> bool:
        """Looks at the topic again where this event is of a format or schema not met before; True as `sample`."""
        if self._frame(value, headers) in self._frames:
            return False
        grown = self._learn([(value, headers)])
        return (self.sample() if len(self._frames) <= FORMATS_MAX else False) or grown

    def _frame(self, value: bytes | None, headers: Headers) -> bytes | None:
        framed = self._formats.frame_of(value, headers)
        return None if framed is None else framed.frame

    def _learn(self, samples: Sequence[_Sample]) -> bool:
        missed: set[bytes | None] = set()

        def said(sample: _Sample) -> Said | None:
            try:
                return self._said(sample)
            except SchemaRegistryError:  # it says nothing now; what can't be bound is told by dead letters then
                missed.add(self._frame(*sample))
                return None

        found = event_fields(samples, said, self._topic)
        # What could not be looked up is looked at again.
        self._frames.update({self._frame(*sample) for sample in samples} - missed)
        if found is None:
            return False
        if self.known is not None:
            kinds = dict(self.known.kinds)
            for name, kind in found.kinds.items():
                kinds[name] = merged(kinds.get(name), kind)
            if kinds == self.known.kinds:
                return False
            found = EventFields(kinds=kinds, source=found.source)
        self.known = found
        return True

    def _said(self, sample: _Sample) -> Said | None:
        value, headers = sample
        framed = self._formats.frame_of(value, headers)
        if framed is None:
            return self._said_unframed(value)
        payload = (value or b"")[framed.skip :]
        match self._schemas.find(framed.frame):
            case AvroWriter(schema):
                return avro_said(schema, self._formats.event_schema)
            case JsonWriter():
                return json_said(payload, self._formats.event_schema)
            case ProtobufWriter(schema):
                try:
                    indexes, _ = read_indexes(payload if framed.behind is None else framed.behind or b"\0")
                    return protobuf_said(schema.message(indexes))
                except WireError:
                    return None
            case _:
                return None

    def _said_unframed(self, value: bytes | None) -> Said | None:
        schema = self._formats.event_schema
        if self._formats.format is EventFormat.JSON or (self._formats.format is EventFormat.AUTO and schema is None):
            return json_said(value)
        unframed = self._formats.format in (EventFormat.AUTO, EventFormat.AVRO)
        return avro_said(schema, self._formats.event_schema) if schema is not None and unframed else None
