"""What one event must come to, written a second time and as plainly as it goes: no columns, no batches, no shared code.

`fate(value, specs, schemas, event_schema)` gives the values of the fields asked for, or the word for why not.
"""

from __future__ import annotations

import json
import math
import re
import string
import struct
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from modelcast.records import DType
from modelcast.tensors import FieldSpec

MISSING = object()
LIMITS = {DType.UINT8: (0, 255), DType.INT32: (-(2**31), 2**31 - 1), DType.INT64: (-(2**63), 2**63 - 1)}
CODES = {
    DType.UINT8: ("B", 1),
    DType.INT32: ("i", 4),
    DType.INT64: ("q", 8),
    DType.FLOAT32: ("f", 4),
    DType.FLOAT64: ("d", 8),
}
ALPHABET = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"


class PoisonError(Exception):
    """Carries the word."""


def fate(
    value: bytes | None, specs: Sequence[FieldSpec], schemas: Mapping[bytes, Any], event_schema: Any = None
) -> tuple[Any, ...] | str | None:
    """Values, a word of `Fault`, or None where the schema is not known."""
    try:
        if value is None:
            raise PoisonError("Tombstone")
        if not value:
            raise PoisonError("EmptyValue")
        if value[:2] == b"\xc3\x01":
            if len(value) < 10:
                raise PoisonError("InvalidAvro")
            if value[2:10] not in schemas:
                return None
            event = AvroReader(value, 10).event(schemas[value[2:10]])
        else:
            event = json_event(value)
        return tuple(field(event, spec, event_schema) for spec in specs)
    except PoisonError as error:
        return str(error)


class Pairs(list[Any]):
    """An object of JSON."""


class Typed(NamedTuple):
    """What Avro holds, and the type it was written as."""

    value: Any
    schema: Any


class Time(NamedTuple):
    """So many of a unit, of which so many make a millisecond."""

    ticks: int
    per: int


def json_event(value: bytes) -> dict[str, Any]:
    def refuse(_: str) -> None:
        raise ValueError

    try:
        pairs = json.loads(value.decode("utf-8"), object_pairs_hook=Pairs, parse_constant=refuse)
    except ValueError:
        raise PoisonError("InvalidJson") from None
    if not isinstance(pairs, Pairs) or len({key for key, _ in pairs}) < len(pairs):
        raise PoisonError("InvalidJson")
    return dict(pairs)


def field(event: Mapping[str, Any], spec: FieldSpec, event_schema: Any = None) -> Any:
    names: dict[str, Any] = {}
    collect(event_schema, names)
    value = found(event, spec, event_schema, names)
    if value is MISSING or value is None:
        if spec.null is None:
            raise PoisonError("MissingField" if value is MISSING else "NullField")
        if spec.dtype is DType.STRING:
            return spec.null
        if spec.dtype is DType.BOOL:
            return spec.null == "true"
        return as_float(Real(spec.null), spec.dtype) if "float" in spec.dtype else int(spec.null)
    return one_value(value, spec)


def collect(schema: Any, names: dict[str, Any]) -> None:
    """Named types by name; the schemas of these tests have no namespaces."""
    for inner in schema if isinstance(schema, list) else []:
        collect(inner, names)
    if isinstance(schema, dict):
        if "name" in schema:
            names[schema["name"]] = schema
        for inner in (schema.get("items"), schema.get("values"), *(one["type"] for one in schema.get("fields", ()))):
            collect(inner, names)


def record_of(schema: Any, names: Mapping[str, Any]) -> Any:
    options = [names.get(one, one) if isinstance(one, str) else one for one in branches_of(schema)]
    return next((one for one in options if isinstance(one, dict) and one["type"] == "record"), None)


def branches_of(schema: Any) -> list[Any]:
    return schema if isinstance(schema, list) else [schema]


def found(event: Mapping[str, Any], spec: FieldSpec, schema: Any, names: Mapping[str, Any]) -> Any:
    """The value at a path as the event schema has it; None, or MISSING."""
    path = spec.name.split(".")
    if len(path) > 1 and spec.name in event:
        return event[spec.name]
    holder: Any = event
    for level, name in enumerate(path):
        record = None if schema is None else record_of(schema, names)
        told = next((one for one in record["fields"] if one["name"] == name), None) if record else None
        schema = told["type"] if told else None
        held = next((one for one in [name, *(told or {}).get("aliases", [])] if one in holder), None)
        if held is None:
            return defaulted(told, path[level + 1 :], names) if told and "default" in told else MISSING
        value = holder[held]
        if level == len(path) - 1:
            return resolved(value, schema, names, spec)
        if value is None:
            return None
        if isinstance(value, Pairs):
            if len({key for key, _ in value}) < len(value):
                raise PoisonError("WrongType")
            value = dict(value)
        if not isinstance(value, dict):
            raise PoisonError("WrongType")
        holder = value
    raise AssertionError


def defaulted(told: Any, path: list[str], names: Mapping[str, Any]) -> Any:
    value, schema = told["default"], told["type"]
    for name in path:
        record = record_of(schema, names)
        if value is None:
            return None
        if not isinstance(value, dict) or record is None:
            raise PoisonError("WrongType")
        inner = next((one for one in record["fields"] if one["name"] == name), None)
        if inner is None or (name not in value and "default" not in inner):
            return MISSING
        value, schema = value.get(name, inner.get("default")), inner["type"]
    return constant(value, schema, names)


def constant(value: Any, schema: Any, names: Mapping[str, Any]) -> Any:  # noqa: PLR0911  (a case a line)
    """A default of a schema as a value of an event."""
    for named in branches_of(schema):
        branch = names.get(named, named) if isinstance(named, str) else named
        kind = branch if isinstance(branch, str) else branch["type"]
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is None and kind == "null":
            return None
        if kind in ("int", "long") and number and isinstance(value, int):
            return logical(value, branch)
        if kind in ("float", "double") and number:
            return Real(np.float32(value) if kind == "float" else value)
        if (kind == "boolean" and isinstance(value, bool)) or (kind == "string" and isinstance(value, str)):
            return value
        if kind == "enum" and value in branch["symbols"]:
            return Symbol(value)
        if kind in ("bytes", "fixed") and isinstance(value, str):
            return logical(value.encode("latin-1"), branch)
        if kind == "array" and isinstance(value, list):
            return [constant(item, branch["items"], names) for item in value]
        if kind in ("map", "record") and isinstance(value, dict):
            return Pairs()
    raise AssertionError


PER_MS = {"timestamp-millis": 1, "timestamp-micros": 1000, "timestamp-nanos": 10**6, "time-micros": 1000}


def logical(value: Any, schema: Any) -> Any:
    kind = schema.get("logicalType") if isinstance(schema, dict) else None
    per = PER_MS.get(str(kind).removeprefix("local-"))
    if isinstance(value, int) and per is not None:
        return Time(value, per)
    if isinstance(value, bytes) and kind == "decimal":
        return Decimal(value, schema.get("scale", 0))
    return value


class Decimal(NamedTuple):
    """Bytes, and how many of the digits they stand for are behind the point."""

    data: bytes
    scale: int


LADDER = ["int", "long", "float", "double"]


def resolved(value: Any, asked: Any, names: Mapping[str, Any], spec: FieldSpec) -> Any:  # noqa: PLR0911  (a case a line)
    """A value written as one type, read as another: Avro's own words, one after the other."""
    if not isinstance(value, Typed):
        return value  # JSON, null, or a record
    value, written = value
    kind = written if isinstance(written, str) else written["type"]
    if kind == "array" and spec.shape is None:
        return value
    if asked is None:
        if kind == "array":
            return [resolved(item, None, names, spec) for item in value]
        return logical(value, written)
    options = [names.get(one, one) if isinstance(one, str) else one for one in branches_of(asked)]
    kinds = [one if isinstance(one, str) else one["type"] for one in options]
    match = best(written, kind, options, kinds)
    if match is None:
        raise PoisonError("WrongType")
    option, read_as = options[match], kinds[match]
    has_logical = isinstance(option, dict) and "logicalType" in option
    if kind == "array":
        return [resolved(item, option["items"], names, spec) for item in value]
    if kind in ("int", "long") and read_as in ("float", "double"):
        return Real(np.float32(float(value)) if read_as == "float" else float(value))
    if kind == "string" and read_as == "bytes":
        return value.encode(errors="surrogateescape")
    if kind == "bytes" and read_as == "string":
        return value.decode(errors="surrogateescape")
    if kind == "enum" and read_as == "enum":
        if value not in option["symbols"] and "default" not in option:
            raise PoisonError("WrongType")
        return value if value in option["symbols"] else Symbol(option["default"])
    return logical(value, written) if has_logical else value


def best(written: Any, kind: str, options: list[Any], kinds: list[str]) -> int | None:
    """Which of the event schema's branches a value is read as."""

    def fits(place: int) -> bool:
        return kinds[place] == kind and (kind != "fixed" or options[place]["size"] == written["size"])

    alike = [place for place in range(len(options)) if fits(place)]
    if alike:
        own = written.get("name") if isinstance(written, dict) else None
        named = [place for place in alike if own in (None, options[place].get("name"))] if own else alike
        return (named or alike)[0]
    wider = LADDER[LADDER.index(kind) + 1 :] if kind in LADDER else []
    wider += {"string": ["bytes", "enum"], "bytes": ["string"], "enum": ["string"]}.get(kind, [])
    return next((kinds.index(one) for one in wider if one in kinds), None)


def one_value(value: Any, spec: FieldSpec) -> Any:
    """A value that is there, held to what the model takes."""
    if isinstance(value, Decimal):
        value = value.data if spec.shape is not None or spec.dtype is DType.STRING else exact(value)
    if isinstance(value, Time) and "int" in spec.dtype:
        value = value.ticks // value.per
    if isinstance(value, Time) and "float" in spec.dtype:
        value = float(value.ticks) if value.per == 1 else value.ticks // value.per + value.ticks % value.per / value.per
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if spec.shape is not None:
        return tensor(value, spec)
    match spec.dtype:
        case DType.FLOAT32 | DType.FLOAT64 if number:
            return as_float(value, spec.dtype)
        case DType.INT32 | DType.INT64 | DType.UINT8 if number and isinstance(value, int):
            least, most = LIMITS[spec.dtype]
            if not least <= value <= most:
                raise PoisonError("OutOfRange")
            return value
        case DType.BOOL if isinstance(value, bool):
            return value
        case DType.STRING if isinstance(value, str) and is_unicode(value):
            return value
    raise PoisonError("WrongType")


def exact(decimal: Decimal) -> float:
    try:
        return float(Fraction(int.from_bytes(decimal.data, "big", signed=True), 10**decimal.scale))
    except OverflowError:
        raise PoisonError("OutOfRange") from None


def tensor(value: Any, spec: FieldSpec) -> tuple[Any, ...]:
    """The row's values, flat."""
    code, size = CODES[spec.dtype]
    count = math.prod(spec.dims)
    if type(value) is list:
        if len(value) != count:
            raise PoisonError("WrongLength")
        return tuple(item_of(item, FieldSpec(spec.name, spec.dtype)) for item in value)
    if type(value) is str:
        value = unpacked(value)
    if type(value) is not bytes:
        raise PoisonError("WrongType")
    if len(value) != count * size:
        raise PoisonError("WrongLength")
    items = struct.unpack(f"<{count}{code}", value)
    if spec.dtype not in (DType.FLOAT32, DType.FLOAT64):
        return items
    octets = [value[place : place + size] for place in range(0, len(value), size)]
    return tuple(b"nan" if math.isnan(item) else one for item, one in zip(items, octets, strict=True))


def item_of(item: Any, spec: FieldSpec) -> Any:
    if item is None:
        raise PoisonError("NullField")
    return one_value(item, spec)


def unpacked(text: str) -> bytes:
    """Base64, six bits after six bits."""
    if not re.fullmatch(r"([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", text, re.ASCII):
        raise PoisonError("WrongType")
    bits = "".join(f"{ALPHABET.index(letter):06b}" for letter in text.rstrip("="))
    return bytes(int(bits[place : place + 8], 2) for place in range(0, len(bits) - 7, 8))


def as_float(value: float, dtype: DType) -> bytes:
    """The bits of the number; a float of Avro may be infinite, one of JSON was too large."""
    try:
        wide = float(value)
    except OverflowError:
        raise PoisonError("OutOfRange") from None
    with np.errstate(over="ignore", invalid="ignore"):
        result = np.float32(wide) if dtype is DType.FLOAT32 else np.float64(wide)
    if math.isinf(result) and not (isinstance(value, Real) and math.isinf(wide)):
        raise PoisonError("OutOfRange")
    return result.tobytes() if not math.isnan(result) else b"nan"


def is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class Symbol(str):
    """A text as an enum holds it: never raw bytes in disguise."""

    __slots__ = ()


class Real(float):
    """A float as Avro holds it: infinities are values."""


class AvroReader:
    """The specification's types, one after the other."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at

    def event(self, schema: Any) -> dict[str, Any]:
        names: dict[str, Any] = {}
        event: dict[str, Any] = self.read(schema, names)
        event = event if isinstance(event, dict) else {}
        if self.at != len(self.data):
            raise PoisonError("TrailingBytes")
        return event

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            raise PoisonError("InvalidAvro")
        self.at += size
        return self.data[self.at - size : self.at]

    def integer(self, bits: int) -> int:
        raw = 0
        for place in range(10):
            (octet,) = self.take(1)
            raw |= (octet & 127) << (7 * place)
            if octet < 128:
                break
        else:
            raise PoisonError("InvalidAvro")
        if raw >= 2**bits:
            raise PoisonError("InvalidAvro")
        return raw // 2 if raw % 2 == 0 else -(raw // 2) - 1

    def choice(self, count: int) -> int:
        index = self.integer(64)
        if not 0 <= index < count:
            raise PoisonError("InvalidAvro")
        return index

    def boolean(self) -> bool:
        octet = self.take(1)[0]
        if octet > 1:
            raise PoisonError("InvalidAvro")
        return octet == 1

    def read(self, schema: Any, names: dict[str, Any]) -> Any:
        if isinstance(schema, list):
            return self.read(schema[self.choice(len(schema))], names)
        kind = schema if isinstance(schema, str) else schema["type"]
        if isinstance(schema, dict) and "name" in schema:
            names[schema["name"]] = schema
        readers = {
            "null": lambda: None,
            "boolean": self.boolean,
            "int": lambda: self.integer(32),
            "long": lambda: self.integer(64),
            "float": lambda: Real(struct.unpack("<f", self.take(4))[0]),
            "double": lambda: Real(struct.unpack("<d", self.take(8))[0]),
            "string": lambda: self.take(self.integer(64)).decode(errors="surrogateescape"),
            "bytes": lambda: self.take(self.integer(64)),
            "fixed": lambda: self.take(schema["size"]),
            "enum": lambda: Symbol(schema["symbols"][self.choice(len(schema["symbols"]))]),
            "record": lambda: {entry["name"]: self.read(entry["type"], names) for entry in schema["fields"]},
            "array": lambda: self.blocks(lambda: self.read(schema["items"], names)),
            "map": lambda: tuple(self.blocks(lambda: (self.read("string", names), self.read(schema["values"], names)))),
        }
        if kind not in readers:
            return self.read(names[kind], names)
        value = readers[kind]()
        return value if kind in ("null", "record") else Typed(value, schema)

    def blocks(self, item: Any) -> list[Any]:
        items = []
        while count := self.integer(64):
            size = self.integer(64) if count < 0 else None
            start = self.at
            for _ in range(abs(count)):
                items.append(item())
                if self.at == start:  # items without bytes: more of them than any test wants are as good as all
                    items += items[-1:] * min(abs(count) - 1, 1000)
                    break
            if size is not None and self.at - start != size:
                raise PoisonError("InvalidAvro")
        return items
