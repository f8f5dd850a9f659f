"""Events per second on one core: events to columns, outputs to predictions. No Kafka, no model.

    python -m benchmarks.decode [--json]

Events hold a text and 30 floats, or a text and a whole row of 784 values; the predictions one float and their lineage.
Each figure is the best of several runs over one batch in memory; of whole rows and of the forms a Schema Registry's
serializers write, batches hold 10,000 events at most. `POLARS_MAX_THREADS=1` keeps the reader of JSON on one core and
is set here.
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
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from modelcast.avro import Schema
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.consumer.decode.formats import EventFormat, Formats
from modelcast.consumer.predictions import PredictionEncoder
from modelcast.events.frames import SCHEMA_HEADER
from modelcast.events.writers import AvroWriter, ProtobufWriter
from modelcast.protobuf import ProtobufSchema
from modelcast.records import DType, Manifest, OutputSpec, Signature
from modelcast.tensors import FieldSpec

FLOATS = 30
BATCHES = (1, 100, 1_000, 10_000, 50_000)
REPEATS = 7
# Whole rows are 28 by 28 values; so many of them fill what a batch may hold.
SIDE = 28
ROWS = 10_000
# Frames as a Schema Registry's serializers write them.
BY_ID, PROTOBUF_ID, BY_GUID = b"\0\0\0\0\1", b"\0\0\0\0\2", b"\1" + bytes(16)
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


class Registry:
    """Knows an Avro schema by two frames, and a Protobuf file by one."""

    def __init__(self, avro: Schema, file: bytes) -> None:
        protobuf = ProtobufWriter(ProtobufSchema.parse(file, {}))
        self._writers: Mapping[bytes, AvroWriter | ProtobufWriter] = {
            BY_ID: AvroWriter(avro),
            BY_GUID: AvroWriter(avro),
            PROTOBUF_ID: protobuf,
        }

    def find(self, frame: bytes) -> AvroWriter | ProtobufWriter | None:
        return self._writers.get(frame)


def messages(rows: Sequence[Mapping[str, Any]]) -> tuple[bytes, list[bytes]]:
    """A file of one message type that holds the same as `schema`, and the rows as such messages."""
    kinds: Any = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="transaction.proto", syntax="proto3")
    message = file.message_type.add(name="Transaction")
    for number, name in enumerate(rows[0], start=1):
        kind = kinds.TYPE_STRING if name == "id" else kinds.TYPE_FLOAT
        message.field.add(name=name, number=number, type=kind, label=kinds.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    made = GetMessageClass(pool.FindMessageTypeByName("Transaction"))
    return file.SerializeToString(), [made(**row).SerializeToString() for row in rows]


def registry_forms(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Callable[[int], object]]:
    """Decoding of the same events in the forms that a Schema Registry's serializers write."""
    writer = schema()
    file, protobuf = messages(rows)
    floats = [FieldSpec(f"v{n}", DType.FLOAT32) for n in range(FLOATS)]
    decoder = BatchDecoder(floats, Registry(writer, file), Formats(EventFormat.CONFLUENT, registry=True))
    payloads = [writer.encode(row) for row in rows]
    by_id = [BY_ID + payload for payload in payloads]
    # The indexes of the first message are one byte.
    by_id_too = [PROTOBUF_ID + b"\0" + message for message in protobuf]
    none: list[Any] = [None] * len(rows)
    named = [[(SCHEMA_HEADER, BY_GUID)] for _ in rows]
    return {
        "avro by id": lambda n: decoder.decode(by_id[:n], none[:n]),
        "avro by a header": lambda n: decoder.decode(payloads[:n], named[:n]),
        "protobuf": lambda n: decoder.decode(by_id_too[:n], none[:n]),
    }


def field_forms(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Callable[[int], object]]:
    """Decoding of the same numbers inside a record, of numbers every tenth of which is null, and by an event schema."""
    names = [f"v{n}" for n in range(FLOATS)]
    numbers = [{"name": name, "type": "float"} for name in names]
    record = {"type": "record", "name": "Measured", "fields": numbers}
    nested = _record({"name": "m", "type": record})
    nullable = _record(*({"name": name, "type": ["null", "float"], "default": None} for name in names))
    promoted = _record(
        *({"name": name, "type": "double"} for name in names), {"name": "new", "type": "int", "default": 7}
    )
    inside = [{"id": row["id"], "m": {name: row[name] for name in names}} for row in rows]
    sparse = [
        {"id": row["id"], **{name: None if (n + k) % 10 == 0 else row[name] for k, name in enumerate(names)}}
        for n, row in enumerate(rows)
    ]
    paths = [FieldSpec(f"m.{name}", DType.FLOAT32) for name in names]
    ruled = [FieldSpec(name, DType.FLOAT32, null="nan") for name in names]
    floats = [*(FieldSpec(name, DType.FLOAT32) for name in names), FieldSpec("new", DType.INT32)]
    by_path, by_rule = BatchDecoder(paths, OneSchema(nested)), BatchDecoder(ruled, OneSchema(nullable))
    resolved = BatchDecoder(floats, OneSchema(schema()), Formats(EventFormat.SINGLE_OBJECT, promoted))
    forms: list[tuple[str, BatchDecoder, list[bytes]]] = [
        ("avro, nested", by_path, [nested.encode_single_object(row) for row in inside]),
        ("json, nested", by_path, [json.dumps(row).encode() for row in inside]),
        ("avro, a tenth null", by_rule, [nullable.encode_single_object(row) for row in sparse]),
        ("json, a tenth null", by_rule, [json.dumps(row).encode() for row in sparse]),
        ("avro by an event schema", resolved, [schema().encode_single_object(row) for row in rows]),
    ]
    return {name: partial(_decode_some, decoder, values) for name, decoder, values in forms}


def _decode_some(decoder: BatchDecoder, values: Sequence[bytes], count: int) -> None:
    decoder.decode(values[:count])


def _record(*fields: Mapping[str, Any]) -> Schema:
    return Schema.parse(
        {"type": "record", "name": "Transaction", "fields": [{"name": "id", "type": "string"}, *fields]}
    )


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
    few = {**field_forms(rows[:ROWS]), **registry_forms(rows[:ROWS]), **whole_rows()}
    return figures | {name: {n: rate(n, partial(work, n)) for n in BATCHES if n <= ROWS} for name, work in few.items()}


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
