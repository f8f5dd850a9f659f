"""From a batch of events to what is to be committed: decode, run, encode; no Kafka here.

- One servable of each model scores a batch whole, or not at all.
- A batch is decoded once for the fields of all models. Only where two ask for the same field as different things it is
  decoded for each of these: what an event is worth to one model must not depend on another.
- Each model is run on the events that are good for it (and meant for it, where events are routed). An event is a dead
  letter once, naming the models that could not score it; the others' predictions of it stand.
- A batch on which the model raises is halved until the events it can't take are alone: these are poison, the others are
  scored.
- Where no event of a batch can be scored, the model is tried on one it scored before: if that fails too it is not the
  events but the model (`ModelFaultError`). A version that never scored anything reproduced its golden examples a moment
  ago, so its first events are suspected, until too many have failed in a row.
- An event whose schema is not known (yet) holds its whole batch back, so that the order within its partition is kept:
  the caller waits, then gives its frame up.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelcast.avro import Schema
from modelcast.errors import LoadError, OutOfMemoryError
from modelcast.events.frames import unknown_message
from modelcast.names import ModelVersion
from modelcast.runtime import Array
from modelcast.tensors import FieldSpec

from .batches import EVENTS_MAX, EventBatch, Int64s, records_by_partition
from .carrying import Carrier, Headers
from .dead_letters import MAX_RECORD_BYTES, DeadLetter, DeadLetterBuilder
from .decode.batch import BatchDecoder, DecodedBatch, PoisonEvent, SchemaSource
from .decode.cursor import Mask
from .decode.formats import Formats
from .decode.result import Result
from .decode.rules import Fault
from .parts import Envelope, Part, in_order, together, told_once
from .predictions import PredictionEncoder
from .routing import Routing, routed
from .servable import Servable

# Rows that fail, none ever scored, before the model is to blame; also when halving asks whether to go on.
MODEL_FAULT_ROWS = 16
# Why an event is poison when the model itself can't take it.
MODEL_FAILED = "ModelFailed"
# Frames given up are remembered, so that a stream of foreign events waits once: those of two of the largest batches, or
# a batch of garbage, which may name one an event, would never be done with.
GIVEN_UP_MAX = 2 * EVENTS_MAX
# Versions of a model that are remembered: the live one and the one a rollback would go back to.
_PLANS_MAX = 2


class ModelFaultError(Exception):
    """A model fails, whatever it is given. Caught by the scoring loop, never shown to callers.

    Attributes:
        model: Its place among the models of the scorer.
    """

    model = 0


@dataclass(frozen=True, slots=True)
class Unresolved:
    """The batch has events whose schemas are not known; nothing was scored."""

    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a batch became: every event has a prediction of each model it is for, or a dead letter that says which not.

    Attributes:
        predictions: Records by topic and partition, in order.
        counts: Of each model, how many events it scored and how many it could not.
    """

    predictions: Mapping[tuple[str, int], list[dict[str, Any]]]
    dead_letters: Sequence[DeadLetter]
    counts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """What a model made of some rows.

    Attributes:
        outputs: By ONNX output, over the rows in `good`.
        good: Indices of the rows scored, ascending.
        failed: Index and message of each row the model can't take.
    """

    outputs: Mapping[str, Array]
    good: Int64s
    failed: tuple[tuple[int, str], ...]


@dataclass
class _Version:
    """What one version needs, and what is known of its health."""

    specs: tuple[FieldSpec, ...]
    encoder: PredictionEncoder
    witness: Mapping[str, Array] | None = None  # columns of one row that was scored
    failed_rows: int = 0  # before any was scored


@dataclass(frozen=True)
class _Plan:
    """What the live versions need together.

    Attributes:
        places: Of each model, which decoder reads its fields; at the end, of the field that says which model it is for.
    """

    versions: tuple[_Version, ...]
    decoders: tuple[BatchDecoder, ...]
    places: tuple[int, ...]


class Scoring:
    """Scores batches with whatever servables the caller has a lease on. For one thread at a time.

    Args:
        topic: Where the events come from.
        targets: Where the predictions of each model go.
        schemas: Where writers' schemas are found.
        register: Describes the predictions' schema before the first record that uses it is produced.
        letters: Makes dead letters.
        routing: Which model an event is for; None where all score every event.
        carrier: Which headers go along to predictions.
        formats: What the events are.
        limits: How large a record may be, by topic of predictions; `MAX_RECORD_BYTES` where it is not said.
    """

    def __init__(
        self,
        topic: str,
        targets: Sequence[str],
        schemas: SchemaSource,
        register: Callable[[Schema], None],
        letters: DeadLetterBuilder,
        *,
        routing: Routing | None = None,
        carrier: Carrier | None = None,
        formats: Formats | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> None:
        self._topic = topic
        self._limits = limits or {}
        self._targets = tuple(targets)
        self._schemas = schemas
        self._register = register
        self._letters = letters
        self._routing = routing
        self._carrier = carrier or Carrier()
        self._formats = Formats() if formats is None else formats
        self._versions: dict[tuple[str, ModelVersion], _Version] = {}
        self._plans: dict[tuple[tuple[str, ModelVersion], ...], _Plan] = {}
        self._given_up: dict[bytes, None] = {}

    def give_up(self, frames: Sequence[bytes]) -> None:
        """Events of these frames are poison from now on, until their schemas are found after all."""
        for frame in frames:
            self._given_up[frame] = None
        _forget(self._given_up, GIVEN_UP_MAX)

    def score(
        self, servables: Sequence[Servable], batch: EventBatch, excused: Collection[int] = ()
    ) -> Scored | Unresolved:
        """Scores one batch with one version of each model.

        Args:
            servables: In the order of `targets`.
            excused: Places of models whose fault is told by dead letters, as if it were the events'.

        Raises:
            ModelFaultError: A model fails, and not because of the events.
            BrokerError: The predictions' schema could not be described, or an event's can't be looked up.
        """
        plan = self._plan(servables)
        headers = batch.headers() if self._formats.needs_headers else None
        results = [decoder.collect(batch.values, headers) for decoder in plan.decoders]
        unresolved = tuple(frame for frame in results[0].unknown if frame not in self._given_up)
        if unresolved:
            return Unresolved(unresolved)
        lost = [*results[0].broken, *self._unknown_events(results[0], batch)]
        masks: Sequence[Mask | None] = [None] * len(servables)
        if self._routing is not None:
            masks, unrouted = routed(results[plan.places[-1]], self._routing, len(batch), len(servables))
            lost += unrouted
        parts = []
        envelope = Envelope.of(batch.keys, self._carrier.of(batch))
        for index, (servable, version) in enumerate(zip(servables, plan.versions, strict=True)):
            events = results[plan.places[index]].part(version.specs, among=masks[index])
            try:
                part = self._score_one(servable, version, events, batch)
                target = self._targets[index]
                parts.append(envelope.fitting(part, target, self._limits.get(target, MAX_RECORD_BYTES)))
            except ModelFaultError as error:
                if index not in excused:
                    error.model = index
                    raise
                failed = [PoisonEvent(int(row), MODEL_FAILED, str(error)) for row in events.rows]
                parts.append(Part(events.rows[:0], [], [*events.poison, *failed]))
        # What is wrong with an event for everybody is told of all models, but where nobody can say which it was for.
        ids = tuple(servable.id for servable in servables)
        everybody = () if self._routing is not None else ids
        poison = told_once(lost, everybody, [(part.poison, id_) for part, id_ in zip(parts, ids, strict=True)])
        letters = [letter for event, models in poison for letter in self._letters.build(batch, [event], models)]
        counts = tuple((part.rows.size, len(part.poison) + (len(lost) if everybody else 0)) for part in parts)
        return Scored(self._records(parts, batch, envelope.headers), letters, counts)

    def _score_one(self, servable: Servable, version: _Version, events: DecodedBatch, batch: EventBatch) -> Part:
        """Runs one model on the events that are good for it."""
        rows, poison = events.rows, list(events.poison)
        if not rows.size:
            return Part(rows, [], poison)
        outcome = self._run(servable, version, events.columns, int(rows.size))
        if outcome.failed:
            poison += [PoisonEvent(int(rows[row]), MODEL_FAILED, message) for row, message in outcome.failed]
            rows = rows[outcome.good]
        whole = rows.size == len(batch)
        places = (batch.partitions, batch.offsets, batch.timestamps)
        try:
            values = version.encoder.encode(
                outcome.outputs, *(places if whole else (column[rows] for column in places))
            )
        except LoadError as error:  # outputs of another shape than the signature's: no event asked for that
            raise ModelFaultError(error.message) from error
        return Part(rows, values, poison, version.encoder.longest_bytes(values))

    def _records(
        self, parts: Sequence[Part], batch: EventBatch, carried: Sequence[Headers] | None
    ) -> Mapping[tuple[str, int], list[dict[str, Any]]]:
        records: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for topic in dict.fromkeys(self._targets):
            own = [part for part, target in zip(parts, self._targets, strict=True) if target == topic]
            rows, values = (own[0].rows, own[0].values) if len(own) == 1 else in_order(own)
            whole = len(own) == 1 and rows.size == len(batch)
            partitions = batch.partitions if whole else batch.partitions[rows]
            keys = batch.keys if whole else [batch.keys[row] for row in rows.tolist()]
            headers = None if carried is None else [carried[row] for row in rows.tolist()]
            for partition, found in records_by_partition(keys, values, partitions, headers).items():
                records[topic, partition] = found
        return records

    def _run(self, servable: Servable, version: _Version, columns: Mapping[str, Array], count: int) -> RowOutcome:
        try:
            outcome = run_halving(servable.run, columns, count)
        except ModelFaultError:
            if version.witness is None:
                version.failed_rows += count
                if version.failed_rows >= MODEL_FAULT_ROWS:
                    raise
            else:
                run_halving(servable.run, version.witness, 1)  # raises if the model fails on this too
            return run_halving(servable.run, columns, count, blame_rows=True)
        if version.witness is None:
            row = int(outcome.good[0])
            version.witness = {name: column[row : row + 1].copy() for name, column in columns.items()}
        return outcome

    def _plan(self, servables: Sequence[Servable]) -> _Plan:
        key = tuple((servable.manifest.repository, servable.id) for servable in servables)
        plan = self._plans.get(key)
        if plan is None:
            versions = tuple(self._version(servable) for servable in servables)
            route = () if self._routing is None else ((self._routing.spec,),)
            wanted, places = together([*(version.specs for version in versions), *route])
            decoders = tuple(BatchDecoder(specs, self._schemas, self._formats) for specs in wanted)
            plan = self._plans[key] = _Plan(versions, decoders, places)
            _forget(self._plans, _PLANS_MAX)
        return plan

    def _version(self, servable: Servable) -> _Version:
        key = (servable.manifest.repository, servable.id)
        version = self._versions.pop(key, None)
        if version is None:
            version = _Version(servable.binding.specs, PredictionEncoder(servable.manifest, self._topic))
            self._register(version.encoder.schema)
        self._versions[key] = version  # the last, so that what was not used for longest is forgotten first
        _forget(self._versions, _PLANS_MAX * len(self._targets))
        return version

    def _unknown_events(self, result: Result, batch: EventBatch) -> list[PoisonEvent]:
        found = []
        for row in result.undecided().tolist() if result.unknown else ():
            framed = self._formats.frame_of(batch.values[row], batch.headers_of(row))
            message = "" if framed is None else unknown_message(framed.frame)
            found.append(PoisonEvent(row, Fault.UNKNOWN_SCHEMA.value, message))
        return found


def _forget(known: dict[Any, Any], most: int) -> None:
    while len(known) > most:
        del known[next(iter(known))]


def _run(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]], columns: Mapping[str, Array]
) -> Mapping[str, Array]:
    try:
        return run(columns)
    except OutOfMemoryError as error:  # not even for one row: servables try smaller parts themselves. No event's fault
        raise ModelFaultError(error.message) from error


def run_halving(
    run: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    columns: Mapping[str, Array],
    count: int,
    *,
    blame_rows: bool = False,
) -> RowOutcome:
    """Runs a model on `count` rows, leaving out those it fails on.

    Args:
        blame_rows: That no row can be scored is the rows' fault, not the model's.

    Raises:
        ModelFaultError: No row could be scored, or there is no memory to score with.
    """
    try:
        return RowOutcome(_run(run, columns), np.arange(count), ())
    except LoadError as error:
        first = error
    parts: list[Mapping[str, Array]] = []
    good: list[Int64s] = []
    failed: list[tuple[int, str]] = []
    ranges = [(count // 2, count), (0, count // 2)] if count > 1 else []
    if count == 1:
        failed.append((0, first.message))
    while ranges:
        start, stop = ranges.pop()
        if not parts and not blame_rows and len(failed) >= MODEL_FAULT_ROWS:
            break
        try:
            parts.append(_run(run, {name: column[start:stop] for name, column in columns.items()}))
        except LoadError as error:
            if stop - start == 1:
                failed.append((start, error.message))
            else:
                middle = (start + stop) // 2
                ranges += [(middle, stop), (start, middle)]
        else:
            good.append(np.arange(start, stop))
    if not parts:
        if blame_rows:
            return RowOutcome({}, np.arange(0), tuple(failed))
        raise ModelFaultError(first.message) from first
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return RowOutcome(outputs, np.concatenate(good), tuple(failed))
