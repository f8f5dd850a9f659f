"""Events per second on one core: events to columns, outputs to predictions. No Kafka, no model.

    python -m benchmarks.decode [--json]

Events hold a text and 30 floats, the predictions one float and their lineage. Each figure is the best of several runs
over one batch in memory; `POLARS_MAX_THREADS=1` keeps the reader of JSON on one core and is set here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np

from modelcast.avro import Schema
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.consumer.predictions import PredictionEncoder
from modelcast.records import DType, Manifest, OutputSpec, Signature
from modelcast.tensors import FieldSpec

FLOATS = 30
BATCHES = (1, 100, 1_000, 10_000, 50_000)
REPEATS = 7
# One event in so many is cut short, is null, has bytes behind it or lacks a field.
POISON_EVERY = 100


class OneSchema:
    """Knows one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def find(self, fingerprint: bytes) -> Schema | None:
        return self._schema if fingerprint == self._schema.fingerprint else None


def schema() -> Schema:
    fields = [{"name": "id", "type": "string"}, *({"name": f"v{n}", "type": "float"} for n in range(FLOATS))]
    return Schema.parse({"type": "record", "name": "Transaction", "fields": fields})


def events(count: int) -> list[dict[str, Any]]:
    source = np.random.default_rng(0)
    rows = source.random((count, FLOATS), np.float32).astype(float).tolist()
    return [{"id": f"t-{n}", **{f"v{k}": value for k, value in enumerate(row)}} for n, row in enumerate(rows)]


def poisoned(values: list[bytes]) -> list[bytes | None]:
    damaged: list[bytes | None] = list(values)
    for n, row in enumerate(range(0, len(values), POISON_EVERY)):
        damaged[row] = (values[row][:-3], values[row] + b"x", None, b"{}")[n % 4]
    return damaged


def rate(count: int, work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return count / best


def measure() -> Mapping[str, Mapping[int, float]]:
    """Events per second by what was done and the size of the batch."""
    writer, rows = schema(), events(max(BATCHES))
    avro = [writer.encode_single_object(row) for row in rows]
    plain = [json.dumps(row).encode() for row in rows]
    floats = [FieldSpec(f"v{n}", DType.FLOAT32) for n in range(FLOATS)]
    decoder = BatchDecoder(floats, OneSchema(writer))
    with_text = BatchDecoder([FieldSpec("id", DType.STRING), *floats], OneSchema(writer))
    signature = Signature((), (OutputSpec.named("score", DType.FLOAT32, (None, 1)),))
    encoder = PredictionEncoder(Manifest("", "fraud", 3, 0, "", "", (), 1, signature, 8, {}), "transactions")
    numbers = np.arange(max(BATCHES)) + 10**9
    scores = np.random.default_rng(0).random((max(BATCHES), 1), np.float32)
    works: Mapping[str, Callable[[int], object]] = {
        "avro": lambda n: decoder.decode(avro[:n]),
        "avro with text": lambda n: with_text.decode(avro[:n]),
        "avro, 1 % poison": lambda n: decoder.decode(poisoned(avro[:n])),
        "json": lambda n: decoder.decode(plain[:n]),
        "json, 1 % poison": lambda n: decoder.decode(poisoned(plain[:n])),
        "predictions": lambda n: encoder.encode({"score": scores[:n]}, numbers[:n] % 12, numbers[:n], numbers[:n]),
    }
    return {name: {n: rate(n, partial(work, n)) for n in BATCHES} for name, work in works.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    figures = measure()
    if options.json:
        json.dump(figures, sys.stdout)
        return
    print(f"{'events/s at batches of':24}", *(f"{n:>12,}" for n in BATCHES))
    for name, by_size in figures.items():
        print(f"{name:24}", *(f"{by_size[n]:12,.0f}" for n in BATCHES))


if __name__ == "__main__":
    main()
