"""Avro schemas and single-object encoding; the only module that imports fastavro.

- A single-object record is `C3 01`, the schema's CRC-64-AVRO fingerprint (8 bytes, little-endian), the datum
  (Avro specification 1.12, "Single object encoding").
- fastavro is imported where it is used: loading and running a model takes no Avro.
- Decoding consumes every byte or raises: a datum with bytes behind it is not the datum its writer wrote.
- The fingerprint ignores logical types, documentation and defaults, so the *digest* of a schema (SHA-256 of its text)
  is its identity and the fingerprint only how records point to it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from modelcast import digest
from modelcast.errors import SourceError, WireError

SINGLE_OBJECT_MARKER = b"\xc3\x01"
FINGERPRINT_BYTES = 8
FRAME_BYTES = len(SINGLE_OBJECT_MARKER) + FINGERPRINT_BYTES
# Of one value of a fixed type: no record of Kafka's is larger.
MAX_FIXED_BYTES = 2**31 - 1


@dataclass(frozen=True)
class Schema:
    """One Avro schema, parsed once.

    Attributes:
        definition: The schema as JSON data.
        text: The schema as compact JSON; its digest is the schema's identity.
    """

    definition: Any = field(compare=False, repr=False)
    text: str

    @classmethod
    def parse(cls, definition: str | bytes | Mapping[str, Any]) -> Schema:
        """Parses a schema from its JSON text or data.

        Raises:
            SourceError: Not JSON, or not an Avro schema.
        """
        import fastavro

        try:
            data = json.loads(definition) if isinstance(definition, (str, bytes)) else dict(definition)
            fastavro.parse_schema(data)
            _check(data)
        except (
            ValueError, TypeError, KeyError, AttributeError, RecursionError, fastavro.schema.SchemaParseException
        ) as error:  # fmt: skip
            raise SourceError(
                f"not an Avro schema: {error}", hint="Give a .avsc file as the Avro specification describes it."
            ) from error
        return cls(definition=data, text=json.dumps(data, separators=(",", ":")))

    @cached_property
    def parsed(self) -> Any:
        """What fastavro's readers and writers take."""
        import fastavro

        return fastavro.parse_schema(self.definition)

    @cached_property
    def fingerprint(self) -> bytes:
        """CRC-64-AVRO of the parsing canonical form: 8 bytes, little-endian."""
        from fastavro.schema import fingerprint, to_parsing_canonical_form

        return bytes.fromhex(fingerprint(to_parsing_canonical_form(self.definition), "CRC-64-AVRO"))

    @cached_property
    def digest(self) -> str:
        """`sha256:…` of the text."""
        return digest.of_bytes(self.text.encode())

    @cached_property
    def frame(self) -> bytes:
        """The 10 bytes every single-object record of this schema starts with."""
        return SINGLE_OBJECT_MARKER + self.fingerprint

    def encode(self, datum: Any) -> bytes:
        """Encodes one datum without a frame.

        Raises:
            WireError: The datum does not fit the schema.
        """
        buffer = io.BytesIO()
        self._write(buffer, datum)
        return buffer.getvalue()

    def encode_single_object(self, datum: Any) -> bytes:
        """Encodes one datum behind its frame; raises as `encode`."""
        buffer = io.BytesIO(self.frame)
        buffer.seek(FRAME_BYTES)
        self._write(buffer, datum)
        return buffer.getvalue()

    def decode(self, data: bytes, *, start: int = 0, reader: Schema | None = None) -> Any:
        """Decodes the datum in `data[start:]`, resolved to the schema `reader` if one is given.

        Raises:
            WireError: Not a datum of this schema, or bytes stand behind it.
        """
        import fastavro

        if self._is_endless:
            raise WireError(
                "its schema has arrays of items without bytes: a few bytes may stand for any number of them"
            )
        buffer = io.BytesIO(data)
        buffer.seek(start)
        try:
            datum = fastavro.schemaless_reader(buffer, self.parsed, None if reader is None else reader.parsed)
        except Exception as error:  # fastavro raises whatever its C code met: EOFError, IndexError, MemoryError, …
            raise WireError(f"not a datum of this Avro schema: {type(error).__name__}: {error}") from error
        if buffer.tell() != len(data):
            raise WireError(f"{len(data) - buffer.tell()} bytes stand behind the datum")
        return datum

    @cached_property
    def _is_endless(self) -> bool:
        """Whether a datum of few bytes may be larger than any memory: an array's items, counted, may take no bytes."""
        named: dict[str, Any] = {}
        arrays: list[Any] = []

        def walk(part: Any) -> None:
            if isinstance(part, list):
                for branch in part:
                    walk(branch)
            elif isinstance(part, dict):
                named.setdefault(part.get("name", ""), part)
                if part["type"] == "array":
                    arrays.append(part["items"])
                own = part["type"] if isinstance(part["type"], (dict, list)) else None
                for inner in (own, part.get("items"), part.get("values"), *(f["type"] for f in part.get("fields", ()))):
                    walk(inner)

        def is_empty(part: Any, within: frozenset[str]) -> bool:
            if isinstance(part, str):
                return part == "null" or (part in named and part not in within and is_empty(named[part], within))
            if not isinstance(part, dict):
                return False  # a union has an index
            if part["type"] in ("record", "error"):
                inside = within | {part["name"]}
                return all(is_empty(field["type"], inside) for field in part["fields"])
            if isinstance(part["type"], (dict, list)):
                return is_empty(part["type"], within)
            return bool(part["type"] == "null" or (part["type"] == "fixed" and part["size"] == 0))

        walk(self.parsed)
        return any(is_empty(items, frozenset()) for items in arrays)

    def _write(self, buffer: io.BytesIO, datum: Any) -> None:
        import fastavro

        try:
            fastavro.schemaless_writer(buffer, self.parsed, datum)
        except Exception as error:  # as above: the class depends on the datum
            raise WireError(f"does not fit the Avro schema: {type(error).__name__}: {error}") from error


def inlined(text: str, parts: Sequence[str]) -> Schema:
    """A schema whose named types are defined elsewhere, as one text that holds them all.

    Args:
        text: The schema.
        parts: Schemas of the types it refers to, and of those they refer to, each behind what it needs itself.

    Raises:
        SourceError: One is not an Avro schema, or a type is defined nowhere.
    """
    try:
        named: dict[str, Any] = {}
        for part in parts:
            _define(json.loads(part), "", named)
        return Schema.parse(json.dumps(_put_in(json.loads(text), "", named)))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise SourceError(
            f"not an Avro schema: {error}", hint="Give a .avsc file as the Avro specification describes it."
        ) from error


def _define(schema: Any, space: str, named: dict[str, Any]) -> None:
    """Adds a part's own type under its full name; of an array or union of types, each."""
    if isinstance(schema, list):
        for branch in schema:
            _define(branch, space, named)
    elif isinstance(schema, dict) and "name" in schema:
        named[_full_name(schema["name"], schema.get("namespace", space))] = schema


def _put_in(schema: Any, space: str, named: dict[str, Any]) -> Any:
    """A schema with the definition of each type in `named` where it is first referred to; it is taken out of there."""
    match schema:
        case str() if schema not in _TYPES:
            full = _full_name(schema, space)
            found = named.pop(full, None)
            if found is None:
                return schema
            # Written out with its full name, as it stands in somebody else's namespace now.
            home = full.rpartition(".")[0]
            return _put_in({**found, "name": full.rpartition(".")[2], "namespace": home}, home, named)
        case list():
            return [_put_in(branch, space, named) for branch in schema]
        case dict():
            if "name" in schema:
                space = _full_name(schema["name"], schema.get("namespace", space)).rpartition(".")[0]
            put = {key: _put_in(schema[key], space, named) for key in ("type", "items", "values") if key in schema}
            if "fields" in schema:
                put["fields"] = [{**field, "type": _put_in(field["type"], space, named)} for field in schema["fields"]]
            return {**schema, **put}
        case _:
            return schema


def _check(schema: Any) -> None:
    """What fastavro takes from anybody and readers stumble over. Raises ValueError, TypeError, KeyError."""
    if isinstance(schema, list):
        if not schema:
            raise ValueError("a union of no types has no value")
        for branch in schema:
            _check(branch)
    if not isinstance(schema, dict):
        return
    match schema["type"]:
        case "fixed":
            size = schema["size"]
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_FIXED_BYTES:
                raise ValueError(f"{size!r:.40} is no size of fixed {schema['name']!r}")
        case "enum":
            _check_texts(schema["symbols"], f"the symbols of enum {schema['name']!r}")
        case inner:
            _check(inner)
    for named in (schema, *schema.get("fields", ())):
        if "name" in named:
            _check_texts([named["name"]], "the name of a type or field")
        _check_texts(named.get("aliases") or [], "aliases")
    for part in (*(entry["type"] for entry in schema.get("fields", ())), schema.get("items"), schema.get("values")):
        _check(part)


def _check_texts(texts: object, what: str) -> None:
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{what}: {texts!r:.40} is no text")
    "".join(texts).encode()  # half a surrogate pair has no fingerprint


# Words of the specification, which are nobody's names.
_TYPES = frozenset({
    "null", "boolean", "int", "long", "float", "double", "bytes", "string",
    "record", "error", "enum", "array", "map", "fixed",
})  # fmt: skip


def _full_name(name: str, space: str | None) -> str:
    return name if "." in name or not space else f"{space}.{name}"


def load(path: Path) -> Schema:
    """Reads a `.avsc` file.

    Raises:
        SourceError: The file can't be read, or is not an Avro schema.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise SourceError(f"can't read schema file {path}: {error.strerror}", hint="Check the path.") from error
    try:
        return Schema.parse(text)
    except SourceError as error:
        raise SourceError(f"schema file {path}: {error.message}", hint=error.hint) from error


def fingerprint_of(data: bytes) -> bytes | None:
    """The fingerprint a single-object record names, or None if `data` is not framed as one."""
    if len(data) < FRAME_BYTES or not data.startswith(SINGLE_OBJECT_MARKER):
        return None
    return data[len(SINGLE_OBJECT_MARKER) : FRAME_BYTES]


def container_header(schema: Schema) -> tuple[bytes, bytes]:
    """The header of an Avro object container file of `schema`, and its 16-byte sync marker."""
    import fastavro

    buffer = io.BytesIO()
    fastavro.writer(buffer, schema.parsed, [])
    header = buffer.getvalue()
    return header, header[-16:]
