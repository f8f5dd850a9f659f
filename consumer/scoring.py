"""From a batch of events to what is to be committed: decode, run, encode; no Kafka here.

- One servable scores a batch whole, or not at all.
- A batch on which the model raises is halved until the events it can't take are alone: these are poison, the others are
  scored.
- Where no event of a batch can be scored, the model is tried on one it scored before: if that fails too it is not the
  events but the model (`ModelFaultError`). A version that never scored anything reproduced its golden examples a moment
  ago, so its first events are suspected, until too many have failed in a row.
- An event whose schema is not known (yet) holds its whole batch back, so that the order within its partition is kept:
  the caller waits, then gives its frame up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from modelcast.avro import Schema
from modelcast.errors import LoadError, OutOfMemoryError
from modelcast.events.frames import unknown_message
from modelcast.names import ModelVersion
from modelcast.runtime import Array

from .batches import EventBatch, Int64s, records_by_partition
from .dead_letters import DeadLetter, DeadLetterBuilder
from .decode.batch import BatchDecoder, DecodedBatch, PoisonEvent, SchemaSource
from .decode.formats import Formats
from .decode.rules import Fault
from .predictions import PredictionEncoder
from .servable import Servable

# Rows that fail, none ever scored, before the model is to blame; also when halving asks whether to go on.
MODEL_FAULT_ROWS = 16
# Why an event is poison when the model itself can't take it.
MODEL_FAILED = "ModelFailed"
# Frames given up are remembered, so that a stream of foreign events waits once; more than this is garbage.
GIVEN_UP_MAX = 1024
# Versions whose decoders are kept: the live one and the one a rollback would go back to.
_PLANS_MAX = 2


class ModelFaultError(Exception):
    """The model fails, whatever it is given. Caught by the scoring loop, never shown to callers."""


@dataclass(frozen=True, slots=True)
class Unresolved:
    """The batch has events whose schemas are not known; nothing was scored."""

    frames: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Scored:
    """What a batch became. Every event is in one of the two."""

    predictions: Mapping[tuple[str, int], list[dict[str, Any]]]
    dead_letters: Sequence[DeadLetter]


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
class _Plan:
    """What one version needs, and what is known of its health."""

    decoder: BatchDecoder
    encoder: PredictionEncoder
    witness: Mapping[str, Array] | None = None  # columns of one row that was scored
    failed_rows: int = 0  # before any was scored


class Scoring:
    """Scores batches with whatever servable the caller has a lease on. For one thread at a time.

    Args:
        topic: Where the events come from.
        target: Where predictions go.
        schemas: Where writers' schemas are found.
        register: Describes the predictions' schema before the first record that uses it is produced.
        letters: Makes dead letters.
        formats: What the events are.
    """

    def __init__(
        self,
        topic: str,
        target: str,
        schemas: SchemaSource,
        register: Callable[[Schema], None],
        letters: DeadLetterBuilder,
        formats: Formats | None = None,
    ) -> None:
        self._topic = topic
        self._target = target
        self._schemas = schemas
        self._register = register
        self._letters = letters
        self._formats = Formats() if formats is None else formats
        self._plans: dict[tuple[str, ModelVersion], _Plan] = {}
        self._given_up: dict[bytes, None] = {}

    def give_up(self, frames: Sequence[bytes]) -> None:
        """Events of these frames are poison from now on, until their schemas are found after all."""
        for frame in frames:
            self._given_up[frame] = None
        while len(self._given_up) > GIVEN_UP_MAX:
            del self._given_up[next(iter(self._given_up))]

    def score(self, servable: Servable, batch: EventBatch) -> Scored | Unresolved:
        """Scores one batch with one version.

        Raises:
            ModelFaultError: The model fails, and not because of the events.
            BrokerError: The predictions' schema could not be described.
        """
        plan = self._plan(servable)
        headers = batch.headers() if self._formats.needs_headers else None
        decoded = plan.decoder.decode(batch.values, headers)
        unresolved = tuple(frame for frame in decoded.unknown if frame not in self._given_up)
        if unresolved:
            return Unresolved(unresolved)
        poison = [*decoded.poison, *self._unknown_events(decoded, batch)]
        rows = decoded.rows
        predictions: Mapping[tuple[str, int], list[dict[str, Any]]] = {}
        if rows.size:
            outcome = self._run(servable, plan, decoded.columns, int(rows.size))
            poison += [PoisonEvent(int(rows[row]), MODEL_FAILED, message) for row, message in outcome.failed]
            if outcome.failed:
                rows = rows[outcome.good]
            if rows.size:
                predictions = self._encode(plan.encoder, outcome.outputs, batch, rows)
        return Scored(
            predictions, self._letters.build(batch, sorted(poison, key=lambda event: event.index), servable.id)
        )

    def _run(self, servable: Servable, plan: _Plan, columns: Mapping[str, Array], count: int) -> RowOutcome:
        try:
            outcome = run_halving(servable.run, columns, count)
        except ModelFaultError:
            if plan.witness is None:
                plan.failed_rows += count
                if plan.failed_rows >= MODEL_FAULT_ROWS:
                    raise
            else:
                run_halving(servable.run, plan.witness, 1)  # raises if the model fails on this too
            return run_halving(servable.run, columns, count, blame_rows=True)
        if plan.witness is None:
            row = int(outcome.good[0])
            plan.witness = {name: column[row : row + 1].copy() for name, column in columns.items()}
        return outcome

    def _encode(
        self, encoder: PredictionEncoder, outputs: Mapping[str, Array], batch: EventBatch, rows: Int64s
    ) -> Mapping[tuple[str, int], list[dict[str, Any]]]:
        whole = rows.size == len(batch)
        partitions = batch.partitions if whole else batch.partitions[rows]
        offsets = batch.offsets if whole else batch.offsets[rows]
        timestamps = batch.timestamps if whole else batch.timestamps[rows]
        keys = batch.keys if whole else [batch.keys[row] for row in rows.tolist()]
        try:
            values = encoder.encode(outputs, partitions, offsets, timestamps)
        except LoadError as error:  # outputs of another shape than the signature's: no event asked for that
            raise ModelFaultError(error.message) from error
        found = records_by_partition(keys, values, partitions)
        return {(self._target, partition): records for partition, records in found.items()}

    def _plan(self, servable: Servable) -> _Plan:
        key = (servable.manifest.repository, servable.id)
        plan = self._plans.get(key)
        if plan is None:
            plan = _Plan(
                BatchDecoder(servable.binding.specs, self._schemas, self._formats),
                PredictionEncoder(servable.manifest, self._topic),
            )
            self._register(plan.encoder.schema)
            self._plans[key] = plan
            while len(self._plans) > _PLANS_MAX:
                del self._plans[next(iter(self._plans))]
        return plan

    def _unknown_events(self, decoded: DecodedBatch, batch: EventBatch) -> list[PoisonEvent]:
        if not decoded.unknown:
            return []
        left: npt.NDArray[np.bool_] = np.ones(len(batch), np.bool_)
        left[decoded.rows] = False
        left[[event.index for event in decoded.poison]] = False
        found = []
        for row in np.flatnonzero(left).tolist():
            framed = self._formats.frame_of(batch.values[row], batch.headers_of(row))
            message = "" if framed is None else unknown_message(framed.frame)
            found.append(PoisonEvent(row, Fault.UNKNOWN_SCHEMA.value, message))
        return found


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
