"""The one question of the fuzzers: whatever becomes of some events, what becomes of the others?

A batch is drawn from whole events of one shape, some of them are damaged, and it is scored as a scorer does: decoded,
run, encoded, the rest made into dead letters. Then

- nothing was raised, and every event has a prediction or a dead letter, never both, never twice;
- an event that was left alone comes to the same bytes as in a clean batch;
- a damaged one comes to the same, byte for byte or word for word, as when it is alone;
- where the plain second decoder of the unit tests reads the format, the event is good or bad as it says, for the same
  reason: that a batch of one and a batch of many agree does not make them right;
- a dead letter holds the event's key, value and headers as they were, and says which error, why, and from where.

The model gives back every value it takes, so a prediction holds all that was decoded of its event.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelcast.avro import Schema
from modelcast.consumer.batches import EventBatch
from modelcast.consumer.binding import Binding
from modelcast.consumer.dead_letters import DeadLetter, DeadLetterBuilder, event_headers
from modelcast.consumer.decode.formats import Formats
from modelcast.consumer.scoring import Scored, Scoring, Unresolved
from modelcast.events.writers import AvroWriter
from modelcast.names import ModelVersion
from modelcast.records import DType, InputBinding, NullRule, OutputSpec, Signature
from modelcast.runtime import Array
from modelcast.tensors import FieldSpec
from tests.unit.decode_reference import fate
from tests.unit.registry_records import manifest

from .damage import damaged
from .entropy import Entropy, Tape
from .shapes import Headers, Shape, shapes

TOPIC = "events"
PARTITION = 3
TIMESTAMP_MS = 1_700_000_000_000
# Larger batches find nothing that these do not, and cost more.
MOST_EVENTS = 12
_FINGERPRINT_BYTES = 8

# What an event came to: the bytes of its prediction, or the error and message of its dead letter.
Outcome = bytes | tuple[str, str]


@dataclass(frozen=True)
class Event:
    """One event at its place on the topic."""

    offset: int
    value: bytes | None
    headers: Headers

    def key(self) -> bytes:
        return b"key-%d" % self.offset

    def partition(self) -> int:
        return PARTITION


class _Message:
    """As the client library gives it."""

    def __init__(self, event: Event) -> None:
        self._event = event

    def key(self) -> bytes | None:
        return self._event.key()

    def value(self) -> bytes | None:
        return self._event.value

    def partition(self) -> int:
        return PARTITION

    def offset(self) -> int:
        return self._event.offset

    def timestamp(self) -> tuple[int, int]:
        return 1, TIMESTAMP_MS + self._event.offset

    def headers(self) -> Sequence[tuple[str, bytes | None]] | None:
        return list(self._event.headers) or None


class EchoServable:
    """A version that gives back what it takes."""

    def __init__(self, specs: Sequence[FieldSpec]) -> None:
        inputs = tuple(
            InputBinding(f"i{place}", spec.dtype, (None, *spec.dims), (spec.name,)) for place, spec in enumerate(specs)
        )
        outputs = tuple(
            OutputSpec.named(f"o{place}", DType.INT32 if spec.dtype is DType.UINT8 else spec.dtype, _flat(spec))
            for place, spec in enumerate(specs)
        )
        nulls = tuple(NullRule(spec.name, spec.null) for spec in specs if spec.null is not None)
        self.manifest = replace(manifest(7, model="echo"), signature=Signature(inputs, outputs, nulls))
        self.id = ModelVersion("echo", 7)
        self.binding = Binding(self.manifest.signature)
        self.device = "cpu"
        self._specs = tuple(specs)

    def run(self, columns: Mapping[str, Array]) -> Mapping[str, Array]:
        feeds = self.binding.feeds(columns)
        return {
            f"o{place}": feeds[f"i{place}"].reshape(len(feeds[f"i{place}"]), *_flat(spec)[1:])
            for place, spec in enumerate(self._specs)
        }


def _flat(spec: FieldSpec) -> tuple[Any, ...]:
    return (None,) if spec.shape is None else (None, spec.row_values)


class Harness:
    """Batches of one shape, scored and judged."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self._servable = EchoServable(shape.specs)
        self._scoring = Scoring(TOPIC, ["scores"], shape, _forget, DeadLetterBuilder(TOPIC), formats=shape.formats)
        headers = shape.headers or ((),) * len(shape.values)
        self.whole = [Event(place, value, headers[place]) for place, value in enumerate(shape.values)]
        self.clean = self.outcomes(self.whole)
        self._definitions = {
            frame[-_FINGERPRINT_BYTES:]: writer.schema.definition
            for frame, writer in shape.writers.items()
            if isinstance(writer, AvroWriter)
        }

    def outcomes(self, events: Sequence[Event]) -> dict[int, Outcome]:
        """What each event comes to, by offset; raises AssertionError where one is lost, doubled or misreported."""
        batch = EventBatch.of([_Message(event) for event in events])
        scored = self._scored(batch)
        found: dict[int, Outcome] = {}
        by_key = {event.key(): event for event in events}
        for (topic, partition), records in scored.predictions.items():
            assert (topic, partition) == ("scores", PARTITION)
            for record in records:
                event = by_key[record["key"]]
                assert event.offset not in found, f"event {event.offset} has two predictions"
                found[event.offset] = record["value"]
        order = [event.offset for event in events if event.offset in found]
        assert list(found) == order, "predictions are out of order"
        for letter in scored.dead_letters:
            assert letter.key is not None
            event = by_key[letter.key]
            assert event.offset not in found, f"event {event.offset} has a dead letter beside something else"
            found[event.offset] = _told(letter, event)
        assert len(found) == len(events), f"lost: {set(range(len(events))) - set(found)}"
        return found

    def judge(self, entropy: Entropy) -> int:
        """Damages a batch and raises AssertionError where it should not have mattered; how many were damaged."""
        count = entropy.number(1, min(MOST_EVENTS, len(self.whole)))
        first, step = entropy.number(0, len(self.whole) - 1), entropy.number(0, 3)
        # Steps that have no divisor in common with the pool's size: no event is drawn twice.
        stride = (1, 5, 7, 11)[step]
        batch = [self.whole[(first + place * stride) % len(self.whole)] for place in range(count)]
        broken: dict[int, Event] = {}
        for _ in range(entropy.number(1, 3)):
            place = entropy.number(0, count - 1)
            event = batch[place]
            headers = event.headers
            if self.shape.headers and entropy.number(0, 3) == 0:
                headers = tuple((name, damaged(entropy, value, [b"\x00"])) for name, value in headers)
            value = damaged(entropy, event.value, [other.value for other in batch])
            batch[place] = broken[event.offset] = Event(event.offset, value, headers)
        together = self.outcomes(batch)
        for event in batch:
            outcome = together[event.offset]
            if event.offset not in broken:
                assert outcome == self.clean[event.offset], self._difference(event, outcome, self.clean[event.offset])
        for event in broken.values():
            alone = self.outcomes([event])[event.offset]
            assert together[event.offset] == alone, self._difference(event, together[event.offset], alone)
            self._hold_against_reference(event, alone)
        return len(broken)

    def _hold_against_reference(self, event: Event, outcome: Outcome) -> None:
        if self.shape.formats != Formats() or self.shape.endless:
            return
        try:
            told = fate(event.value, self.shape.specs, self._definitions)
        except RecursionError:  # brackets by the hundred: it has no bound of its own
            return
        wanted = "UnknownSchema" if told is None else told if isinstance(told, str) else "a prediction"
        got = "a prediction" if isinstance(outcome, bytes) else outcome[0]
        assert got == wanted, self._difference(event, outcome, wanted)

    def _scored(self, batch: EventBatch) -> Scored:
        for _ in range(2):
            scored = self._scoring.score([self._servable], batch)  # type: ignore[list-item]
            if not isinstance(scored, Unresolved):
                return scored
            self._scoring.give_up(scored.frames)
        raise AssertionError(f"schemas that were given up are asked for again: {scored.frames}")

    def _difference(self, event: Event, together: Outcome, alone: Outcome | str) -> str:
        return (
            f"shape {self.shape.name!r}: the event {event.value!r} (headers {event.headers}) comes to {together!r} in "
            f"its batch, and else to {alone!r}"
        )


class Player:
    """Plays tapes: the first byte says which shape, the rest what becomes of its events."""

    # Tapes are kept, so the shapes must stay: of this seed, for ever.
    SEED = 0

    def __init__(self) -> None:
        self.harnesses = [Harness(shape) for shape in shapes(self.SEED)]

    def play(self, data: bytes) -> None:
        """Raises AssertionError, or whatever else was found."""
        if data:
            self.harnesses[data[0] % len(self.harnesses)].judge(Tape(data[1:]))


def _told(letter: DeadLetter, event: Event) -> tuple[str, str]:
    headers = dict(letter.headers)
    assert (letter.key, letter.value, letter.partition) == (event.key(), event.value, PARTITION)
    assert event_headers(letter.headers) == event.headers
    assert headers["__streams.errors.topic"] == TOPIC.encode()
    assert headers["__streams.errors.partition"] == b"%d" % PARTITION
    assert headers["__streams.errors.offset"] == b"%d" % event.offset
    assert headers["modelcast.timestamp"] == b"%d" % (TIMESTAMP_MS + event.offset)
    error, message = headers["__streams.errors.exception"], headers["__streams.errors.message"]
    assert error
    assert message
    return error.decode(), message.decode()


def _forget(schema: Schema) -> None:
    """Predictions are compared as bytes here: nobody reads them by their schema."""
