"""Data that fits any Avro schema, and schemas nobody would write."""

from __future__ import annotations

import base64
import math
import random
import struct
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from modelcast.records import DType
from modelcast.tensors import FieldSpec

# Deeper than this, what may be left out is: recursion ends.
_DEEP = 4


def datum(schema: Any, dice: random.Random, depth: int = 0, names: dict[str, Any] | None = None) -> Any:
    """Something that fits a schema."""
    names = {} if names is None else names
    if isinstance(schema, list):
        return datum(dice.choice(["null"] if depth > _DEEP and "null" in schema else schema), dice, depth, names)
    if isinstance(schema, str):
        return _PRIMITIVES[schema](dice) if schema in _PRIMITIVES else datum(names[schema], dice, depth, names)
    if "name" in schema:
        names[schema["name"]] = schema
    if "logicalType" in schema:
        return _LOGICAL[schema["logicalType"]](schema, dice)
    few = range(0 if depth >= _DEEP else dice.choice([0, 1, 3, 3, 3]))
    made: dict[str, Callable[[], Any]] = {
        "record": lambda: {entry["name"]: datum(entry["type"], dice, depth + 1, names) for entry in schema["fields"]},
        "enum": lambda: dice.choice(schema["symbols"]),
        "fixed": lambda: dice.randbytes(schema["size"]),
        "array": lambda: [datum(schema["items"], dice, depth + 1, names) for _ in few],
        "map": lambda: {f"k{place}": datum(schema["values"], dice, depth + 1, names) for place in few},
    }
    return made[schema["type"]]() if schema["type"] in made else datum(schema["type"], dice, depth, names)


def _moment(schema: Mapping[str, Any], dice: random.Random) -> datetime:
    return datetime(2013, 1, 1, tzinfo=UTC) + timedelta(microseconds=dice.randint(0, 2**40))


_PRIMITIVES: Mapping[str, Callable[[random.Random], Any]] = {
    "null": lambda _: None,
    "boolean": lambda dice: dice.random() < 0.5,
    "int": lambda dice: dice.choice([0, -1, 2**31 - 1, -(2**31), dice.randint(-1000, 1000)]),
    "long": lambda dice: dice.choice([0, -1, 2**63 - 1, -(2**63), dice.randint(-(2**40), 2**40)]),
    "float": lambda dice: struct.unpack("<f", struct.pack("<f", dice.uniform(-1e6, 1e6)))[0],
    "double": lambda dice: dice.choice([0.0, -0.0, math.inf, math.nan, dice.uniform(-1e9, 1e9)]),
    "string": lambda dice: dice.choice(["", "a", "grün", base64.b64encode(dice.randbytes(4)).decode(), "x" * 90]),
    "bytes": lambda dice: dice.choice([b"", dice.randbytes(12), dice.randbytes(dice.randint(0, 90))]),
}
_LOGICAL: Mapping[str, Callable[[Mapping[str, Any], random.Random], Any]] = {
    "timestamp-millis": _moment,
    "timestamp-micros": _moment,
    "date": lambda _, dice: date(2013, 1, 1) + timedelta(days=dice.randint(0, 5000)),
    "time-millis": lambda schema, dice: _moment(schema, dice).time(),
    "decimal": lambda schema, dice: Decimal(dice.randint(-(10**9), 10**9)).scaleb(-schema["scale"]),
    "uuid": lambda _, dice: str(UUID(bytes=dice.randbytes(16), version=4)),
}


def random_record(dice: random.Random, name: str, depth: int) -> dict[str, Any]:
    """A record of one to six fields, at most so deep."""
    fields = [
        {"name": f"f{place}", "type": _random_type(dice, f"{name}_{place}", depth - 1)}
        for place in range(dice.randint(1, 6))
    ]
    return {"type": "record", "name": name, "fields": fields}


def random_spec(dice: random.Random, name: str) -> FieldSpec:
    """A field as anything a model may take, fitting or not."""
    if dice.random() < 0.3:
        numbers = [DType.FLOAT32, DType.FLOAT64, DType.INT32, DType.INT64, DType.UINT8]
        return FieldSpec(name, dice.choice(numbers), dice.choice([(3,), (1, 3), (12,)]))
    return FieldSpec(name, dice.choice(list(DType)))


def _random_type(dice: random.Random, name: str, depth: int) -> Any:
    kinds = ["primitive"] * 4 + ["enum", "fixed", "optional", "union"] + ["array", "map", "record"] * 2 * (depth > 0)
    made: dict[str, Callable[[], Any]] = {
        "primitive": lambda: dice.choice(list(_PRIMITIVES)),
        "enum": lambda: {"type": "enum", "name": name, "symbols": ["A", "B"]},
        "fixed": lambda: {"type": "fixed", "name": name, "size": dice.choice([0, 1, 12, 40])},
        "optional": lambda: dice.sample(["null", dice.choice(list(_PRIMITIVES)[1:])], 2),
        "union": lambda: dice.sample(list(_PRIMITIVES), dice.randint(1, 5)),
        "array": lambda: {"type": "array", "items": _random_type(dice, name, depth - 1)},
        "map": lambda: {"type": "map", "values": _random_type(dice, name, depth - 1)},
        "record": lambda: random_record(dice, name, depth),
    }
    return made[dice.choice(kinds)]()


# What a writer of records may put in the place of a number or text, to see who believes it.
_LONGS = (0, 1, -1, 2**31 - 1, -(2**31), 2**31, 2**40, 2**62, 2**63 - 1, -(2**63), 1024, 1_000_000)
_INTS = (0, 1, -1, 7, 2**31 - 1, -(2**31), 65_536)
_TEXTS = (
    "", "fraud", "fraud@3", "sha256:" + "0" * 64, "sha256:" + "f" * 63, "model.onnx", "examples.npz", "../.env",
    "/etc/passwd", "tensors/0.bin", "a\x00b", "\x1b[2J", "\u202efdp", "[bold]x[/", "nan", "1e999", "x" * 300, "ä\ud7ff",
    "s3://bucket/prefix", "0b7a4c1e-0000-4000-8000-000000000001", "host.1", "*", "\n",
)  # fmt: skip
_DOUBLES = (0.0, -0.0, 1.5, -1.0, 1e308, 5e-324, math.inf, -math.inf, math.nan)
# Of the values of a record; it has twenty or so.
_TAMPERED = 0.06
_HOSTILE: Mapping[str, Callable[[random.Random], Any]] = {
    **_PRIMITIVES,
    "int": lambda dice: dice.choice(_INTS),
    "long": lambda dice: dice.choice(_LONGS),
    "float": lambda dice: dice.choice((0.0, 1.5, math.inf, math.nan)),
    "double": lambda dice: dice.choice(_DOUBLES),
    "string": lambda dice: dice.choice(_TEXTS),
}


def _named(schema: Any) -> dict[str, Any]:
    """The types of a schema that have a name."""
    if isinstance(schema, list):
        return {name: found for branch in schema for name, found in _named(branch).items()}
    if not isinstance(schema, dict):
        return {}
    found = {schema["name"]: schema} if "name" in schema else {}
    parts = [entry["type"] for entry in schema.get("fields", ())]
    for part in (*parts, schema["type"], schema.get("items"), schema.get("values")):
        found |= _named(part)
    return found


class Forger:
    """Makes data of one schema that fits it, and that no honest writer writes."""

    def __init__(self, schema: Any, dice: random.Random) -> None:
        self._schema = schema
        self._named = _named(schema)
        self._dice = dice

    def made_up(self) -> Any:
        """All of it."""
        return self._hostile(self._schema)

    def tampered(self, whole: Any) -> Any:
        """Some values of a datum, most of it as it was."""
        return self._tampered(self._schema, whole)

    def _hostile(self, schema: Any) -> Any:  # noqa: PLR0911 - a row for each kind of type
        match schema:
            case list():
                return self._hostile(self._dice.choice(schema))
            case str():
                return _HOSTILE[schema](self._dice) if schema in _HOSTILE else self._hostile(self._named[schema])
            case {"type": "record", "fields": fields}:
                return {entry["name"]: self._hostile(entry["type"]) for entry in fields}
            case {"type": "enum", "symbols": symbols}:
                return self._dice.choice(symbols)
            case {"type": "array", "items": items}:
                return [self._hostile(items) for _ in range(self._dice.choice((0, 1, 1, 2, 3)))]
            case {"type": "map", "values": values}:
                return {self._dice.choice(_TEXTS): self._hostile(values) for _ in range(self._dice.choice((0, 1, 3)))}
        return self._hostile(schema["type"])

    def _tampered(self, schema: Any, whole: Any) -> Any:
        match schema:
            case {"type": "record", "fields": fields}:
                return {entry["name"]: self._tampered(entry["type"], whole[entry["name"]]) for entry in fields}
            case {"type": "array", "items": items} if whole and self._dice.random() >= _TAMPERED:
                kept = [self._tampered(items, one) for one in whole]
                return kept if self._dice.random() >= _TAMPERED else self._dice.choices(kept, k=len(kept) + 1)
        return self._hostile(schema) if self._dice.random() < _TAMPERED else whole
