"""Avro's binary encoding, driven by the JSON of a schema, and single-object encoding (§3)."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any


class ProtocolError(Exception):
    """Something on a topic is not as the protocol says."""


SINGLE_OBJECT = b"\xc3\x01"
PRIMITIVES = frozenset(("null", "boolean", "int", "long", "float", "double", "bytes", "string"))
CANONICAL_ORDER = ("name", "type", "fields", "symbols", "items", "values")  # of Avro's Parsing Canonical Form
_EMPTY = 0xC15D213AA4D7A795  # Avro 1.12, "Schema Fingerprints"


def _fingerprint_row(row: int) -> int:
    for _ in range(8):
        row = (row >> 1) ^ (_EMPTY if row & 1 else 0)
    return row


_ROWS = tuple(_fingerprint_row(row) for row in range(256))


def fingerprint(data: bytes) -> bytes:
    """CRC-64-AVRO, as single-object encoding has it: 8 bytes, little-endian."""
    value = _EMPTY
    for byte in data:
        value = (value >> 8) ^ _ROWS[(value ^ byte) & 0xFF]
    return value.to_bytes(8, "little")


class Schema:
    """An Avro schema: reads and writes data, and knows its canonical form."""

    def __init__(self, text: bytes) -> None:
        self._named: dict[str, dict[str, Any]] = {}
        self._defaults: dict[tuple[str, str], Any] = {}
        self.root = self._canonical(json.loads(text), "")
        self.canonical = json.dumps(self.root, separators=(",", ":"), ensure_ascii=False)
        self.fingerprint = fingerprint(self.canonical.encode())

    def _canonical(self, schema: Any, namespace: str) -> Any:
        if isinstance(schema, list):
            return [self._canonical(branch, namespace) for branch in schema]
        if isinstance(schema, str):
            return schema if schema in PRIMITIVES or "." in schema or not namespace else f"{namespace}.{schema}"
        kept = {key: schema[key] for key in CANONICAL_ORDER if key in schema}
        if "name" in kept:
            namespace = schema.get("namespace", namespace)
            kept["name"] = self._canonical(kept["name"], namespace)
            self._named[kept["name"]] = kept
        for part in ("items", "values"):
            if part in kept:
                kept[part] = self._canonical(kept[part], namespace)
        if "fields" in kept:
            for entry in kept["fields"]:
                if "default" in entry:
                    self._defaults[kept["name"], entry["name"]] = entry["default"]
            kept["fields"] = [
                {"name": entry["name"], "type": self._canonical(entry["type"], namespace)} for entry in kept["fields"]
            ]
        return kept if len(kept) > 1 else kept["type"]

    def read(self, data: bytes) -> Any:
        """The datum that takes every byte of `data`."""
        stream = io.BytesIO(data)
        value = self._read(self.root, stream)
        if stream.tell() != len(data):
            raise ProtocolError(f"{len(data) - stream.tell()} bytes behind the datum")
        return value

    def _read(self, schema: Any, stream: io.BytesIO) -> Any:
        if isinstance(schema, list):
            return self._read(_at(schema, _read_long(stream)), stream)
        if isinstance(schema, str) and schema in PRIMITIVES:
            return _read_primitive(schema, stream)
        schema = self._named.get(schema, schema) if isinstance(schema, str) else schema
        match schema["type"]:
            case "record":
                return {entry["name"]: self._read(entry["type"], stream) for entry in schema["fields"]}
            case "enum":
                return _at(schema["symbols"], _read_long(stream))
            case "array":
                return [self._read(schema["items"], stream) for _ in _read_blocks(stream)]
            case "map":
                entries = ((_read_text(stream), self._read(schema["values"], stream)) for _ in _read_blocks(stream))
                return dict(entries)
        raise ProtocolError(f"no Avro type here: {schema['type']}")

    def write(self, value: Any) -> bytes:
        return b"".join(self._write(self.root, value))

    def _write(self, schema: Any, value: Any) -> Iterator[bytes]:
        if isinstance(schema, list):
            index = next(i for i, branch in enumerate(schema) if (branch == "null") == (value is None))
            yield _long(index)
            yield from self._write(schema[index], value)
            return
        if isinstance(schema, str) and schema in PRIMITIVES:
            yield _primitive(schema, value)
            return
        schema = self._named[schema] if isinstance(schema, str) else schema
        match schema["type"]:
            case "record":
                for entry in schema["fields"]:
                    yield from self._write(entry["type"], value[entry["name"]])
            case "enum":
                yield _long(schema["symbols"].index(value))
            case "array":
                yield from [_long(len(value))] if value else []
                for item in value:
                    yield from self._write(schema["items"], item)
                yield _long(0)
            case "map":
                yield from [_long(len(value))] if value else []
                for key, item in value.items():
                    yield _primitive("string", key)
                    yield from self._write(schema["values"], item)
                yield _long(0)

    def completed(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """A record that an earlier schema wrote, as one of this: what it lacks takes its default (here never bytes)."""
        name = self.root["name"]
        return {
            entry["name"]: value[entry["name"]] if entry["name"] in value else self._defaults[name, entry["name"]]
            for entry in self.root["fields"]
        }


def _at(choices: list[Any], index: int) -> Any:
    if not 0 <= index < len(choices):
        raise ProtocolError(f"index {index} of {len(choices)}")
    return choices[index]


def take(stream: io.BytesIO, size: int) -> bytes:
    data = stream.read(size) if size >= 0 else b""
    if len(data) != size:
        raise ProtocolError(f"the datum ends early: {size} bytes wanted, {len(data)} there")
    return data


def read_varint(stream: io.BytesIO) -> int:
    """An unsigned integer of 7 bits a byte, the lowest first; Protocol Buffers have the same."""
    value = 0
    for shift in range(0, 70, 7):
        byte = take(stream, 1)[0]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value
    raise ProtocolError("an integer of more than 10 bytes")


def _read_long(stream: io.BytesIO) -> int:
    value = read_varint(stream)
    return (value >> 1) ^ -(value & 1)


def _read_blocks(stream: io.BytesIO) -> Iterator[None]:
    while count := _read_long(stream):
        if count < 0:  # a block that says how many bytes it has
            _read_long(stream)
        yield from (None for _ in range(abs(count)))


def _read_text(stream: io.BytesIO) -> str:
    return take(stream, _read_long(stream)).decode()


def _read_primitive(kind: str, stream: io.BytesIO) -> Any:
    match kind:
        case "null":
            return None
        case "boolean":
            return take(stream, 1) == b"\1"
        case "float" | "double":
            form = "<f" if kind == "float" else "<d"
            return struct.unpack(form, take(stream, struct.calcsize(form)))[0]
        case "bytes":
            return take(stream, _read_long(stream))
        case "string":
            return _read_text(stream)
    value = _read_long(stream)
    if kind == "int" and not -(2**31) <= value < 2**31:
        raise ProtocolError(f"{value} is no int")
    return value


def _long(value: int) -> bytes:
    value = (value << 1) ^ (value >> 63)
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*data, value))


def _primitive(kind: str, value: Any) -> bytes:
    data: bytes
    match kind:
        case "null":
            return b""
        case "boolean":
            return b"\1" if value else b"\0"
        case "float" | "double":
            return struct.pack("<f" if kind == "float" else "<d", value)
        case "bytes" | "string":
            data = value.encode() if kind == "string" else value
            return _long(len(data)) + data
    return _long(value)


def unframe(data: bytes, schemas: tuple[Schema, ...]) -> tuple[Schema, dict[str, Any]]:
    """The writer's schema and the datum as it was written."""
    for schema in schemas:
        if data.startswith(SINGLE_OBJECT + schema.fingerprint):
            return schema, schema.read(data[10:])
    raise ProtocolError(f"no schema for {data[:10].hex()}: of a newer protocol, or none of it")


def frame(schema: Schema, value: Mapping[str, Any]) -> bytes:
    return SINGLE_OBJECT + schema.fingerprint + schema.write(value)
