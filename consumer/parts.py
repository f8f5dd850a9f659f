"""What several models make of one batch, put together: fields to decode, dead letters, a topic's predictions. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelcast.names import ModelVersion
from modelcast.tensors import FieldSpec

from .batches import Int64s
from .carrying import Headers
from .dead_letters import record_size
from .decode.rules import PoisonEvent

# Why an event is poison whose prediction no record of its topic can hold.
TOO_LARGE = "PredictionTooLarge"


@dataclass(frozen=True, slots=True)
class Part:
    """What one model made of a batch: a prediction for each of `rows`, and what is wrong with the others.

    Attributes:
        longest_bytes: No prediction has more.
    """

    rows: Int64s
    values: list[bytes]
    poison: list[PoisonEvent]
    longest_bytes: int = 0


def together(each: Sequence[Sequence[FieldSpec]]) -> tuple[list[tuple[FieldSpec, ...]], tuple[int, ...]]:
    """Fields that can be decoded together, for as few decoders as may be.

    Args:
        each: The fields that are wanted, by whoever wants them.

    Returns:
        The fields of each decoder, none of them as two different things; and for each of `each` which one reads it.
    """
    groups: list[dict[str, FieldSpec]] = []
    places = []
    for specs in each:
        fits = (all(group.get(spec.name, spec) == spec for spec in specs) for group in groups)
        place = next((index for index, fit in enumerate(fits) if fit), len(groups))
        if place == len(groups):
            groups.append({})
        groups[place].update({spec.name: spec for spec in specs})
        places.append(place)
    return [tuple(group.values()) for group in groups], tuple(places)


def told_once(
    lost: Sequence[PoisonEvent],
    everybody: tuple[ModelVersion, ...],
    each: Sequence[tuple[Sequence[PoisonEvent], ModelVersion]],
) -> list[tuple[PoisonEvent, tuple[ModelVersion, ...]]]:
    """Events in their order, each once, with the models it is poison for.

    Args:
        lost: What is wrong whatever the model.
        everybody: The models that concerns.
        each: What is wrong for one model.
    """
    told = [(event, everybody) for event in lost]
    by_index: dict[int, list[tuple[PoisonEvent, ModelVersion]]] = {}
    for poison, model in each:
        for event in poison:
            by_index.setdefault(event.index, []).append((event, model))
    for faults in by_index.values():
        first = faults[0][0]
        if any(event != first for event, _ in faults):
            messages = "; ".join(f"{model.name}: {event.message}" for event, model in faults)
            first = PoisonEvent(first.index, first.error, messages)
        told.append((first, tuple(model for _, model in faults)))
    return sorted(told, key=lambda entry: entry[0].index)


@dataclass(frozen=True, slots=True)
class Envelope:
    """What goes along from a batch's events to their predictions, by which anybody may make these as large as he likes.

    Attributes:
        headers: Of each event; None if nothing goes along from any.
        largest_bytes: No event's key and headers take more.
    """

    keys: Sequence[bytes | None]
    headers: Sequence[Headers] | None
    largest_bytes: int

    @classmethod
    def of(cls, keys: Sequence[bytes | None], headers: Sequence[Headers] | None) -> Envelope:
        largest = max(map(len, filter(None, keys)), default=0)
        if headers is not None:
            largest += max(record_size(None, None, own) for own in headers)
        return cls(keys, headers, largest)

    def fitting(self, part: Part, topic: str, limit_bytes: int) -> Part:
        """Without the predictions that are too large for their topic: a broker would refuse them again and again."""
        if record_size(None, None, ()) + part.longest_bytes + self.largest_bytes <= limit_bytes:
            return part
        sizes = [
            record_size(self.keys[row], value, () if self.headers is None else self.headers[row])
            for row, value in zip(part.rows.tolist(), part.values, strict=True)
        ]
        poison = [
            PoisonEvent(row, TOO_LARGE, f"its prediction takes {size:,} bytes, and topic {topic!r} {limit_bytes:,}")
            for row, size in zip(part.rows.tolist(), sizes, strict=True)
            if size > limit_bytes
        ]
        good = [place for place, size in enumerate(sizes) if size <= limit_bytes]
        return Part(part.rows[good], [part.values[place] for place in good], [*part.poison, *poison])


def in_order(parts: Sequence[Part]) -> tuple[Int64s, list[bytes]]:
    """Predictions of several models for one topic, in the order of their events."""
    rows = np.concatenate([part.rows for part in parts])
    values = [value for part in parts for value in part.values]
    order = np.argsort(rows, kind="stable")
    return rows[order], [values[place] for place in order.tolist()]
