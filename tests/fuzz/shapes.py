"""Every shape an event's schema may have, with events of it and the fields a model takes from them."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from modelcast.avro import Schema
from modelcast.consumer.decode.formats import EventFormat, Formats
from modelcast.events.frames import SCHEMA_HEADER
from modelcast.events.writers import AvroWriter, JsonWriter, ProtobufWriter, UnusableWriter, WriterSchema
from modelcast.protobuf import ProtobufSchema
from modelcast.records import DType
from modelcast.tensors import FieldSpec
from tests.unit.protobuf_schemas import class_of, transactions

from .data import datum, random_record, random_spec

# Events of each shape: batches are drawn from them.
POOL = 24
Headers = tuple[tuple[str, bytes | None], ...]
F32, F64, I32, I64 = DType.FLOAT32, DType.FLOAT64, DType.INT32, DType.INT64
TEXT, FLAG, U8 = DType.STRING, DType.BOOL, DType.UINT8


@dataclass(frozen=True)
class Shape:
    """Events of some schemas, and what is taken from them.

    Attributes:
        values: Whole events; most are good for the model.
        headers: Of each event, where its format needs any.
        writers: What each frame stands for.
        endless: A value may hold another of its kind: the product bounds how deep, the plain decoder does not.
    """

    name: str
    specs: tuple[FieldSpec, ...]
    values: tuple[bytes | None, ...]
    writers: Mapping[bytes, WriterSchema]
    formats: Formats = field(default_factory=Formats)
    headers: tuple[Headers, ...] = ()
    endless: bool = False

    def find(self, frame: bytes) -> WriterSchema | None:
        """As a source of schemas."""
        return self.writers.get(frame)


def record(name: str, **fields: Any) -> dict[str, Any]:
    return {
        "type": "record",
        "name": name,
        "fields": [{"name": key.replace("__", "-"), "type": one} for key, one in fields.items()],
    }


ENUM = {"type": "enum", "name": "Kind", "symbols": ["A", "B", "long_symbol"]}
NODE = record("Node", value="long", next=["null", "Node"])
TREE = record(
    "Tree", weight="double", children={"type": "array", "items": "Tree"}, tags={"type": "map", "values": "Tree"}
)

_AVRO: dict[str, tuple[list[Any], list[FieldSpec]]] = {
    "flat": (
        [
            record(
                "Flat",
                id="string",
                amount="float",
                count="int",
                big="long",
                ratio="double",
                flag="boolean",
                raw="bytes",
            )
        ],
        [FieldSpec("id", TEXT), FieldSpec("amount", F32), FieldSpec("big", I64), FieldSpec("flag", FLAG)],
    ),
    "wide": (
        [record("Wide", **{f"f{place}": "double" if place % 3 else "float" for place in range(60)}, id="string")],
        [FieldSpec(f"f{place}", F64) for place in (0, 1, 30, 59)],
    ),
    "unions": (
        [
            record(
                "Unions",
                maybe=["null", "double"],
                either=["long", "string", "null"],
                none="null",
                many=["null", "boolean", "int", "float", "bytes", ENUM],
                last=["string", "null"],
            )
        ],
        [FieldSpec("maybe", F64, null="nan"), FieldSpec("last", TEXT, null="")],
    ),
    "arrays": (
        [
            record(
                "Arrays",
                floats={"type": "array", "items": "float"},
                whole={"type": "array", "items": "long"},
                maybe={"type": "array", "items": ["null", "double"]},
                texts={"type": "array", "items": "string"},
                deep={"type": "array", "items": {"type": "array", "items": ["int", "string"]}},
                nothing={"type": "array", "items": "null"},
                amount="double",
            )
        ],
        [FieldSpec("floats", F32, (3,)), FieldSpec("whole", I64, (3,)), FieldSpec("maybe", F64, (3,))],
    ),
    "maps": (
        [
            record(
                "Maps",
                longs={"type": "map", "values": "long"},
                amount="double",
                more={"type": "map", "values": {"type": "array", "items": record("In", a="int", b=["null", "string"])}},
                nothing={"type": "map", "values": "null"},
            )
        ],
        [FieldSpec("amount", F64)],
    ),
    "fixed": (
        [
            record(
                "Fixed",
                kind=ENUM,
                image={"type": "fixed", "name": "Image", "size": 12},
                pixels="bytes",
                nothing={"type": "fixed", "name": "Nothing", "size": 0},
                code="string",
            )
        ],
        [
            FieldSpec("kind", TEXT),
            FieldSpec("image", U8, (3, 4)),
            FieldSpec("pixels", F32, (3,)),
            FieldSpec("code", U8, (4,)),
        ],
    ),
    "logical": (
        [
            record(
                "Logical",
                at={"type": "long", "logicalType": "timestamp-millis"},
                fine={"type": "long", "logicalType": "timestamp-micros"},
                day={"type": "int", "logicalType": "date"},
                price={"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
                total={
                    "type": "fixed",
                    "name": "Total",
                    "size": 9,
                    "logicalType": "decimal",
                    "precision": 18,
                    "scale": 4,
                },
                id={"type": "string", "logicalType": "uuid"},
                time={"type": "int", "logicalType": "time-millis"},
            )
        ],
        [
            FieldSpec("at", I64),
            FieldSpec("fine", I64),
            FieldSpec("price", F64),
            FieldSpec("total", F64),
            FieldSpec("id", TEXT),
        ],
    ),
    "recursive": (
        [record("List", head=["null", NODE], amount="double", tree=TREE)],
        [FieldSpec("amount", F64)],
    ),
    "nested": (
        [
            record(
                "Nested",
                id="string",
                card=record(
                    "Card",
                    country="string",
                    limit=["null", "double"],
                    issuer=record("Issuer", rank="int"),
                ),
                amount="double",
                deep=["null", record("Deep", inner=record("Inner", values={"type": "array", "items": "float"}))],
            )
        ],
        [FieldSpec("card.country", TEXT), FieldSpec("card.issuer.rank", I32), FieldSpec("amount", F32)],
    ),
    "evolving": (
        [
            record("Event", id="string", amount="float"),
            record("Event", amount="double", id="string", more={"type": "array", "items": "string"}),
            record("Event", note=["null", "string"], amount="long", id=ENUM),
            record("Event", id="string"),
        ],
        [FieldSpec("id", TEXT), FieldSpec("amount", F64)],
    ),
    "empty": ([record("Empty"), record("Nulls", a="null", b="null")], [FieldSpec("a", F32, null="0")]),
}


# What makes events of a shape good for its model, where chance alone would not; all but each so manieth has it.
_FITTING: Mapping[str, Mapping[str, Callable[[random.Random], Any]]] = {
    "arrays": {
        "floats": lambda dice: [dice.randint(0, 9) / 4 for _ in range(3)],
        "whole": lambda dice: [dice.randint(-(2**40), 2**40) for _ in range(3)],
        "maybe": lambda dice: [dice.random() for _ in range(3)],
    },
    "fixed": {
        "pixels": lambda dice: dice.randbytes(12),
        "code": lambda dice: base64.b64encode(dice.randbytes(4)).decode(),
    },
}
_UNFIT = 6


def shapes(seed: int, strange: int = 8) -> list[Shape]:
    """Those of the catalogue, and so many that nobody would write, drawn by `seed`."""
    dice = random.Random(seed)
    found = [_single_object(name, definitions, specs, dice) for name, (definitions, specs) in _AVRO.items()]
    for number in range(strange):
        definition = random_record(dice, f"Strange{number}", 3)
        specs = [random_spec(dice, entry["name"]) for entry in definition["fields"] if dice.random() < 0.6]
        found.append(_single_object(f"strange{number}", [definition], specs or [FieldSpec("f0", F64)], dice))
    return [*found, *_json_shapes(dice), _mixed(found), *_confluent(dice), _raw_avro(dice), _protobuf(dice)]


def _single_object(name: str, definitions: Sequence[Any], specs: Sequence[FieldSpec], dice: random.Random) -> Shape:
    schemas = [Schema.parse(definition) for definition in definitions]
    values = []
    for place in range(POOL):
        schema = schemas[place % len(schemas)]
        event = datum(schema.definition, dice)
        if place % _UNFIT:
            event.update({key: made(dice) for key, made in _FITTING.get(name, {}).items()})
        values.append(schema.encode_single_object(event))
    writers = {schema.frame: AvroWriter(schema) for schema in schemas}
    return Shape(name, tuple(specs), tuple(values), writers, endless=name == "recursive")


def _json_shapes(dice: random.Random) -> Iterator[Shape]:
    def event() -> dict[str, Any]:
        return {
            "id": dice.choice(["a", "ä", "", "\u2028", "x" * 50]),
            "amount": dice.choice([0, -0.0, 1.5, 1e-300, 12345678901, dice.random()]),
            "count": dice.randint(-(2**40), 2**40),
            "flag": dice.random() < 0.5,
            "card": {"country": "DE", "limit": dice.choice([None, 1.5])},
            "vector": [dice.random() for _ in range(3)],
            "image": base64.b64encode(dice.randbytes(4)).decode(),
            "more": dice.choice([None, [], {}, [[1, {"a": None}]], "{}"]),
        }

    def texts() -> tuple[bytes, ...]:
        return tuple(
            json.dumps(event(), ensure_ascii=place % 2 == 0, indent=place % 5 or None).encode() for place in range(POOL)
        )

    flat = (FieldSpec("id", TEXT), FieldSpec("amount", F64), FieldSpec("count", I64), FieldSpec("flag", FLAG))
    yield Shape("json", flat, texts(), {})
    yield Shape("json numbers", (FieldSpec("amount", F32),), texts(), {}, Formats(EventFormat.JSON))
    tensors = (FieldSpec("vector", F32, (3,)), FieldSpec("image", U8, (2, 2)))
    yield Shape("json tensors", (*tensors, FieldSpec("amount", F32)), texts(), {})
    nested = (FieldSpec("card.country", TEXT), FieldSpec("card.limit", F64, null="nan"), FieldSpec("amount", F64))
    yield Shape("json nested", nested, texts(), {})


def _mixed(found: Sequence[Shape]) -> Shape:
    """Two schemas of Avro and JSON on one topic."""
    flat = next(shape for shape in found if shape.name == "flat")
    other = next(shape for shape in found if shape.name == "evolving")
    texts = tuple(b'{"id": "t%d", "amount": %d.5, "big": 1, "flag": true}' % (place, place) for place in range(8))
    values = (*flat.values[:8], *other.values[:8], *texts)
    specs = (FieldSpec("id", TEXT), FieldSpec("amount", F64))
    return Shape("mixed", specs, values, {**flat.writers, **other.writers})


def _confluent(dice: random.Random) -> Iterator[Shape]:
    """Ids in values, GUIDs in values, both in headers; Avro, JSON, and a schema of no use."""
    schema = Schema.parse(record("Paid", id="string", amount="double", count="int"))
    by_id, as_json, useless = b"\x00\x00\x00\x00\x01", b"\x00\x00\x00\x00\x02", b"\x00\x00\x00\x00\x03"
    by_guid = b"\x01" + bytes(range(16))
    writers: dict[bytes, WriterSchema] = {
        by_id: AvroWriter(schema),
        by_guid: AvroWriter(schema),
        as_json: JsonWriter(),
        useless: UnusableWriter("no schema"),
    }
    specs = (FieldSpec("id", TEXT), FieldSpec("amount", F64))
    values: list[bytes] = []
    headers: list[Headers] = []
    for place in range(POOL):
        event = datum(schema.definition, dice)
        body = schema.encode_single_object(event)[len(schema.frame) :]
        text = json.dumps({"id": f"t{place}", "amount": place / 7}).encode()
        frame, payload = ((by_id, body), (by_guid, body), (as_json, text), (useless, body))[
            place % 4 if place % 9 else 3
        ]
        in_header = place % 2 == 1
        values.append(payload if in_header else frame + payload)
        headers.append(((SCHEMA_HEADER, frame),) if in_header else (("other", b"x"),) if place % 3 else ())
    for chosen in (EventFormat.CONFLUENT, EventFormat.AUTO):
        formats = Formats(chosen, registry=True)
        yield Shape(f"registry {chosen}", specs, tuple(values), writers, formats, tuple(headers))


def _raw_avro(dice: random.Random) -> Shape:
    schema = Schema.parse(record("Raw", id="string", amount="double", tags={"type": "map", "values": "long"}))
    values = tuple(
        schema.encode_single_object(datum(schema.definition, dice))[len(schema.frame) :] for _ in range(POOL)
    )
    specs = (FieldSpec("id", TEXT), FieldSpec("amount", F64))
    return Shape("raw avro", specs, values, {}, Formats(EventFormat.AVRO, event_schema=schema))


def _protobuf(dice: random.Random) -> Shape:
    file = transactions()
    message = class_of(file, "Transaction")
    frame, indexes = b"\x00\x00\x00\x00\x07", b"\x02\x02"
    writer = ProtobufWriter(ProtobufSchema.parse(file.SerializeToString(), {}))
    values = tuple(
        frame
        + indexes
        + message(amount=dice.random(), id=f"t{place}", count=place, card={"country": "DE"}).SerializeToString()
        for place in range(POOL)
    )
    specs = (FieldSpec("id", TEXT), FieldSpec("amount", F64), FieldSpec("card.country", TEXT))
    return Shape("protobuf", specs, values, {frame: writer}, Formats(EventFormat.CONFLUENT, registry=True))
