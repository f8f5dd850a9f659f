"""What fields the events of a topic have, from a look at its latest ones: a model that can't be bound is then refused
when it is loaded, not by a dead letter for every event.

- An Avro event says it by its writer's schema; a JSON event by the values it happens to hold (`event_fields`).
- A topic without events says nothing, and then no model is refused for its inputs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from modelcast.avro import fingerprint_of
from modelcast.log import Log

from .binding import EventFields
from .decode.batch import SchemaSource
from .event_fields import event_fields, merged

# Enough to see every optional field of JSON events of one kind, few enough to be read in milliseconds.
SAMPLES_PER_PARTITION = 50
# A topic may have hundreds of partitions, and the loader waits for this look.
SAMPLED_PARTITIONS_MAX = 16
SAMPLE_TIMEOUT_S = 5.0
# More formats and schemas than this on one topic are garbage, and are not worth another look at it.
FORMATS_MAX = 64
_POLL_S = 0.1


def sample_events(log: Log, topic: str, *, clock: Callable[[], float] = time.monotonic) -> list[bytes | None]:
    """Values of the latest committed events of a topic, the latest last within each partition.

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
    values: list[bytes | None] = []
    deadline = clock() + SAMPLE_TIMEOUT_S
    try:
        while clock() < deadline and any(reader.position(partition) < ends[partition] for partition in filled):
            values.extend(record.value for record in reader.poll(_POLL_S))
    finally:
        reader.close()
    return values


class EventFieldsSource:
    """Keeps what is known about a topic's fields. For one thread."""

    def __init__(self, log: Log, topic: str, schemas: SchemaSource) -> None:
        self._log = log
        self._topic = topic
        self._schemas = schemas
        self._frames: set[bytes | None] = set()
        self.known: EventFields | None = None

    def sample(self) -> bool:
        """Looks at the latest events; True if more is known now. Raises BrokerError."""
        return self._learn(sample_events(self._log, self._topic))

    def meet(self, value: bytes | None) -> bool:
        """Looks at the topic again where this event is of a format or schema not met before; True as `sample`."""
        if fingerprint_of(value or b"") in self._frames:
            return False
        grown = self._learn([value])
        return (self.sample() if len(self._frames) <= FORMATS_MAX else False) or grown

    def _learn(self, samples: Sequence[bytes | None]) -> bool:
        self._frames.update(fingerprint_of(value or b"") for value in samples)
        found = event_fields(samples, self._schemas.find, self._topic)
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
