"""Scores every event of a stream again, each with the version its prediction names; shares no code with the product.

A prediction holds if the model of its version gives the very bits of its score for the event of its source.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import oracle

Floats = npt.NDArray[np.float32]
# One call of a model for each version; takes a matrix [N, fields], gives [N] scores.
Model = Callable[[Floats], Floats]


@dataclass(frozen=True)
class Rescored:
    """What became of the predictions; the largest run of one partition's predictions between two transaction ends."""

    by_version: Mapping[int, int]
    other_bits: Sequence[tuple[oracle.Source, int, float, float]]
    longest_run: int


def rescore(
    servers: str,
    *,
    events: str,
    predictions: str,
    schemas: str,
    fields: Sequence[str],
    model: Callable[[int], Model],
) -> Rescored:
    """Reads both topics; `model` gives that of a version. `other_bits`: source, version, predicted, scored again."""
    rows = {
        (message.partition(), message.offset()): [json.loads(message.value())[field] for field in fields]
        for message in oracle.read(servers, events)
    }
    known = oracle.writer_schemas(servers, schemas)
    found: dict[int, list[dict[str, Any]]] = {}
    places: list[tuple[int, int]] = []
    for message in oracle.read(servers, predictions):
        datum = oracle.decode(message.value(), known)
        found.setdefault(datum["version"], []).append(datum)
        places.append((message.partition(), message.offset()))
    other: list[tuple[oracle.Source, int, float, float]] = []
    for version, data in found.items():
        again = model(version)(np.array([rows[oracle.source_of(datum)] for datum in data], np.float32))
        predicted = np.array([datum["score"] for datum in data], np.float32)
        other.extend(
            (oracle.source_of(data[index]), version, float(predicted[index]), float(again[index]))
            for index in np.flatnonzero(predicted.view(np.uint32) != again.view(np.uint32))
        )
    return Rescored(
        by_version=dict(sorted(Counter({version: len(data) for version, data in found.items()}).items())),
        other_bits=other[:10],
        longest_run=_longest_run(places),
    )


def _longest_run(places: Sequence[tuple[int, int]]) -> int:
    """The most records of one partition in a row: where a transaction ends, a marker takes an offset."""
    longest = run = 0
    before = (-1, -1)
    for partition, offset in places:
        run = run + 1 if (partition, offset - 1) == before else 1
        longest = max(longest, run)
        before = (partition, offset)
    return longest
