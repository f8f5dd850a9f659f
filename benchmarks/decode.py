"""Events per second on one core: events to columns, outputs to predictions. No Kafka, no model.

    python -m benchmarks.decode [--json]

Events hold a text and 30 floats, or a text and a whole row of 784 values; the predictions one float and their lineage.
Each figure is the best of several runs
over one batch in memory; `POLARS_MAX_THREADS=1` keeps the reader of JSON on one core and is set here.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

os.environ.setdefault("POLARS_MAX_THREADS", "1")

import numpy as np

from modelcast.avro import Schema
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.consumer.predictions import PredictionEncoder
from modelcast.events.writers import AvroWriter
from modelcast.records import DType, Manifest, OutputSpec, Signature
from modelcast.tensors import FieldSpec

FLOATS = 30
BATCHES = (1, 100, 1_000, 10_000, 50_000)
REPEATS = 7
# Whole rows are 28 by 28 values; so many of them fill what a batch may hold.
SIDE = 28
ROWS = 10_000
# One event in so many is cut short, is null, has bytes behind it or lacks a field.
POISON_EVERY = 100


class OneSchema:
    """Knows one schema."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema

    def find(self, frame: bytes) -> AvroWriter | None:
        return AvroWriter(self._schema) if frame == self._schema.frame else None


def schema() -> Schema:
    fields = [{"name": "id", "type": "string"}, *({"name": f"v{n}", "type": "float"} for n in range(FLOATS))]
    return Schema.parse({"type": "record", "name": "Transaction", "fields": fields})


def events(count: int) -> list[dict[str, Any]]:
    source = np.random.default_rng(0)
    rows = source.random((count, FLOATS), np.float32).astype(float).tolist()
    return [{"id": f"t-{n}", **{f"v{k}": value for k, value in enumerate(row)}} for n, row in enumerate(rows)]


def rows_of(kind: Any, data: Sequence[Any]) -> tuple[Schema, list[bytes]]:
    """Events of a text and a whole row, as `kind` holds it."""
    fields = [{"name": "id", "type": "string"}, {"name": "row", "type": kind}]
    writer = Schema.parse({"type": "record", "name": "Image", "fields": fields})
    return writer, [writer.encode_single_object({"id": f"t-{n}", "row": row}) for n, row in enumerate(data)]


def whole_rows() -> Mapping[str, Callable[[int], object]]:
    """Decoding of events whose one field holds 784 values, by their form."""
    pixels = np.random.default_rng(0).integers(0, 256, (ROWS, SIDE * SIDE), np.uint8)
    floats = (pixels / 255).astype(np.float32)
    image = FieldSpec("row", DType.UINT8, (SIDE, SIDE))
    vector = FieldSpec("row", DType.FLOAT32, (SIDE * SIDE,))
    works: dict[str, Callable[[int], object]] = {}

    def add(name: str, spec: FieldSpec, writer: Schema | None, values: list[bytes]) -> None:
        decoder = BatchDecoder([spec], OneSchema(writer or schema()))
        works[name] = lambda n: decoder.decode(values[:n])

    add("784 uint8 as bytes", image, *rows_of("bytes", [row.tobytes() for row in pixels]))
    add("784 float32 as bytes", vector, *rows_of("bytes", [row.tobytes() for row in floats]))
    add("784 float32 as array", vector, *rows_of({"type": "array", "items": "float"}, floats.tolist()))
    add("784 uint8 as array", image, *rows_of({"type": "array", "items": "int"}, pixels.tolist()))
    texts = [json.dumps({"row": base64.b64encode(row.tobytes()).decode()}).encode() for row in pixels]
    add("784 uint8 as base64, json", image, None, texts)
    add("784 uint8 as array, json", image, None, [json.dumps({"row": row}).encode() for row in pixels.tolist()])
    return works


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
    figures = {name: {n: rate(n, partial(work, n)) for n in BATCHES} for name, work in works.items()}
    whole = whole_rows()
    return figures | {
        name: {n: rate(n, partial(work, n)) for n in BATCHES if n <= ROWS} for name, work in whole.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    options = parser.parse_args()
    figures = measure()
    if options.json:
        json.dump(figures, sys.stdout)
        return
    print(f"{'events/s at batches of':26}", *(f"{n:>12,}" for n in BATCHES))
    for name, by_size in figures.items():
        print(f"{name:26}", *(f"{rate:12,.0f}" for rate in by_size.values()))


if __name__ == "__main__":
    main()
