"""What fields events have, as kinds the binding knows: said by a writer's schema, or by the values JSON holds.

Samples are merged: a field that any of them has may be bound, and of two kinds the more general one counts. One odd
event in the sample must refuse no model; what a single event lacks is that event's own fault.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from modelcast.avro import Schema
from modelcast.protobuf import Field, Kind, MessageType

from .binding import EventFields, array_of
from .decode.logical import decimal_scale
from .decode.protobuf import TIMESTAMP, WRAPPERS
from .decode.walk import named, type_name
from .decode.wanted import record_in

# Kinds of fields, as the binding knows them.
OTHER = "other"
_NUMBERS = ("int", "long", "float", "double")  # from the narrowest to the widest
_NUMBER_KINDS = frozenset(_NUMBERS)
_ARRAYS = tuple(array_of(kind) for kind in _NUMBERS)
_AVRO_KINDS = frozenset({*_NUMBERS, "string", "enum", "boolean", "bytes", "fixed"})
_PROTOBUF_KINDS = {
    Kind.INTEGER: "long", Kind.FLOAT: "float", Kind.DOUBLE: "double", Kind.BOOLEAN: "boolean",
    Kind.STRING: "string", Kind.BYTES: "bytes", Kind.ENUM: "enum",
}  # fmt: skip
# Records within records whose fields are told: one that holds itself has no end.
_DEPTH = 8

# Fields told of one event: more are no event's, but a schema may multiply records within records without an end.
MAX_FIELDS = 10_000

_Sample = TypeVar("_Sample")


@dataclass(frozen=True, slots=True)
class Said:
    """What one sample says: fields by kind, and by what."""

    kinds: Mapping[str, str]
    source: str


def event_fields(samples: Iterable[_Sample], said: Callable[[_Sample], Said | None], topic: str) -> EventFields | None:
    """The fields of the events in `samples`.

    Args:
        samples: Events, oldest first.
        said: What one of them says, if anything.
        topic: Where they come from, for messages.

    Returns:
        None if no sample says anything.
    """
    kinds: dict[str, str] = {}
    sources: dict[str, None] = {}
    for sample in samples:
        found = said(sample)
        if found is None or not found.kinds:
            continue
        for name, kind in found.kinds.items():
            kinds[name] = merged(kinds.get(name), kind)
        sources[found.source] = None
    if not kinds:
        return None
    return EventFields(kinds=kinds, source=f"topic {topic!r} ({', '.join(sources)})")


def avro_said(schema: Schema, event_schema: Schema | None = None) -> Said | None:
    """What an Avro event says by its writer's schema, read by the event schema."""
    kinds = schema_kinds(schema, event_schema)
    return Said(kinds, f"Avro schema {schema.definition.get('name', '')!r}") if kinds else None


def json_said(value: bytes | None, event_schema: Schema | None = None) -> Said | None:
    """What a JSON event says by its values, and the event schema by its aliases and defaults."""
    kinds = _json_kinds(value)
    if kinds and event_schema is not None:
        types = named(event_schema.parsed)
        kinds |= dict(_added(kinds, event_schema.parsed, types, "", 0))
    return Said(kinds, "JSON") if kinds else None


def protobuf_said(message: MessageType) -> Said:
    """What a Protobuf event says by the type of its message."""
    return Said(dict(_message_kinds(message, "", 0)), f"Protobuf message {message.name!r}")


def _message_kinds(message: MessageType, prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    for name, field in message.fields.items():
        within = field.message if field.kind is Kind.MESSAGE and not field.repeated else None
        yield prefix + name, _protobuf_kind(field)
        if within is not None and within.name not in WRAPPERS and depth < _DEPTH:
            yield from _message_kinds(within, f"{prefix}{name}.", depth + 1)


def _protobuf_kind(field: Field) -> str:
    if field.kind is Kind.MESSAGE and field.message is not None and not field.repeated:
        if field.message.name in WRAPPERS:
            return _PROTOBUF_KINDS[field.message.fields["value"].kind]
        return "long" if field.message.name == TIMESTAMP else OTHER
    kind = _PROTOBUF_KINDS.get(field.kind, OTHER)
    return array_of(kind) if field.repeated and kind is not OTHER else kind


def schema_kinds(schema: Schema, event_schema: Schema | None = None) -> dict[str, str]:
    """Field to kind of a record schema, fields of records within as `a.b`; nothing for any other schema.

    With an event schema its names, types and defaults count, and fields it does not name are as they were written.
    """
    if type_name(schema.parsed) != "record":
        return {}
    types = named(schema.parsed)
    reader = None if event_schema is None else event_schema.parsed
    reader_types = {} if event_schema is None else named(reader)
    return dict(islice(_record_kinds((schema.parsed, types), (reader, reader_types), "", 0), MAX_FIELDS))


# A parsed type, or None; and the types that it may name.
_Typed = tuple[Any, Mapping[str, Any]]


def _record_kinds(writer: _Typed, reader: _Typed, prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    """Kinds of the fields of a record, or of the record within a union, by their paths."""
    written = {field["name"]: field for field in _fields(writer)}
    asked = {field["name"]: field for field in _fields(reader)}
    for name, field in asked.items():
        source = next((written[one] for one in (name, *field.get("aliases", ())) if one in written), None)
        if source is not None:
            yield from _field_kinds((source["type"], writer[1]), (field["type"], reader[1]), prefix + name, depth)
        elif "default" in field:
            yield from _field_kinds((field["type"], reader[1]), (None, {}), prefix + name, depth)
    for name, field in written.items():
        if name not in asked:
            yield from _field_kinds((field["type"], writer[1]), (None, {}), prefix + name, depth)


def _field_kinds(writer: _Typed, reader: _Typed, path: str, depth: int) -> Iterator[tuple[str, str]]:
    schema, types = writer if reader[0] is None else reader
    if schema != "null":  # such a field is as good as not there
        yield path, _avro_kind(schema, types)
    if depth < _DEPTH:
        yield from _record_kinds(writer, reader, f"{path}.", depth + 1)


def _fields(typed: _Typed) -> Sequence[Mapping[str, Any]]:
    record = None if typed[0] is None else record_in(*typed)
    return () if record is None else record["fields"]


def _added(
    kinds: Mapping[str, str], schema: Any, types: Mapping[str, Any], prefix: str, depth: int
) -> Iterator[tuple[str, str]]:
    """What the event schema adds to JSON events of these kinds: fields under other names, and defaults."""
    for field in _fields((schema, types)):
        path, aliases = prefix + field["name"], [prefix + alias for alias in field.get("aliases", ())]
        held = next((name for name in (path, *aliases) if name in kinds), None)
        if held is None and "default" in field:
            yield from _field_kinds((field["type"], types), (None, {}), path, depth)
        elif held is not None:
            within = {name: kind for name, kind in kinds.items() if name == held or name.startswith(f"{held}.")}
            moved = {path + name[len(held) :]: kind for name, kind in within.items()}
            yield from moved.items()
            if depth < _DEPTH:
                yield from _added(moved, field["type"], types, f"{path}.", depth + 1)


def _json_kinds(value: bytes | None) -> dict[str, str]:
    try:
        event = json.loads(value or b"")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(event, dict):
        return {}
    # A key at the top goes before the path it looks like.
    found = dict(islice(_object_kinds(event, "", 0), MAX_FIELDS))
    return found | {name: _json_kind(held) for name, held in event.items() if held is not None}


def _object_kinds(event: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    for name, held in event.items():
        if held is not None:
            yield prefix + name, _json_kind(held)
        if isinstance(held, dict) and depth < _DEPTH:
            yield from _object_kinds(held, f"{prefix}{name}.", depth + 1)


def _json_kind(value: object) -> str:
    match value:
        case bool():
            return "boolean"
        case int():
            return "long"
        case float():
            return "double"
        case str():
            return "string"
        case list() if value:
            return _array_kind({_json_kind(item) for item in value if item is not None})
        case _:
            return OTHER


def _array_kind(items: Collection[str]) -> str:
    """Of an array with items of these kinds."""
    if items and _NUMBER_KINDS.issuperset(items):
        return array_of(max(items, key=_NUMBERS.index))
    return array_of(next(iter(items))) if len(items) == 1 else OTHER


def merged(first: str | None, second: str) -> str:
    """Of a field that was of `first` kind (None: not there) and is now of `second`: the more general one."""
    if first is None or first == second:
        return second
    for widening in (_NUMBERS, _ARRAYS):
        if first in widening and second in widening:
            return max(first, second, key=widening.index)
    return second  # the later event is the better witness


def _avro_kind(schema: Any, types: Mapping[str, Any]) -> str:
    schema = types.get(schema, schema) if isinstance(schema, str) else schema
    kind = type_name(schema)
    if kind == "union":
        kinds = [_avro_kind(branch, types) for branch in schema if branch != "null"]
        return functools.reduce(_either, kinds) if kinds else OTHER
    if kind == "array":
        return _array_kind({_avro_kind(schema["items"], types)})
    if kind in ("bytes", "fixed") and decimal_scale(schema) is not None:
        return "double"
    return kind if kind in _AVRO_KINDS else OTHER


def _either(first: str, second: str) -> str:
    """Of a field that is of one of two kinds."""
    return merged(first, second) if first == second or {first, second} <= _NUMBER_KINDS else OTHER
