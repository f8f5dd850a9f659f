"""What fields events have, as kinds the binding knows: said by a writer's schema, or by the values JSON holds.

Samples are merged: a field that any of them has may be bound, and of two kinds the more general one counts. One odd
event in the sample must refuse no model; what a single event lacks is that event's own fault.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from modelcast.avro import Schema
from modelcast.protobuf import Field, Kind, MessageType

from .binding import EventFields, array_of
from .decode.protobuf import TIMESTAMP, WRAPPERS

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
# Messages within messages whose fields are told: one that holds itself has no end.
_MESSAGE_DEPTH = 8

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


def avro_said(schema: Schema) -> Said | None:
    """What an Avro event says by its writer's schema."""
    kinds = schema_kinds(schema)
    return Said(kinds, f"Avro schema {schema.definition.get('name', '')!r}") if kinds else None


def json_said(value: bytes | None) -> Said | None:
    """What a JSON event says by its values."""
    kinds = _json_kinds(value)
    return Said(kinds, "JSON") if kinds else None


def protobuf_said(message: MessageType) -> Said:
    """What a Protobuf event says by the type of its message."""
    return Said(dict(_message_kinds(message, "", 0)), f"Protobuf message {message.name!r}")


def _message_kinds(message: MessageType, prefix: str, depth: int) -> Iterator[tuple[str, str]]:
    for name, field in message.fields.items():
        within = field.message if field.kind is Kind.MESSAGE and not field.repeated else None
        yield prefix + name, _protobuf_kind(field)
        if within is not None and within.name not in WRAPPERS and depth < _MESSAGE_DEPTH:
            yield from _message_kinds(within, f"{prefix}{name}.", depth + 1)


def _protobuf_kind(field: Field) -> str:
    if field.kind is Kind.MESSAGE and field.message is not None and not field.repeated:
        if field.message.name in WRAPPERS:
            return _PROTOBUF_KINDS[field.message.fields["value"].kind]
        return "long" if field.message.name == TIMESTAMP else OTHER
    kind = _PROTOBUF_KINDS.get(field.kind, OTHER)
    return array_of(kind) if field.repeated and kind is not OTHER else kind


def schema_kinds(schema: Schema) -> Mapping[str, str]:
    """Field to kind of a record schema; nothing for any other schema."""
    definition = schema.definition
    if not isinstance(definition, dict) or definition.get("type") != "record":
        return {}
    named: dict[str, Any] = {}
    _collect_names(definition, definition.get("namespace"), named)
    return {field["name"]: _avro_kind(field["type"], named) for field in definition["fields"]}


def _json_kinds(value: bytes | None) -> Mapping[str, str]:
    try:
        event = json.loads(value or b"")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(event, dict):
        return {}
    return {name: _json_kind(field) for name, field in event.items() if field is not None}


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


def _avro_kind(schema: Any, named: Mapping[str, Any]) -> str:
    if isinstance(schema, str) and schema not in _AVRO_KINDS:
        schema = named.get(schema, schema)
    if isinstance(schema, list):
        branches = [_avro_kind(branch, named) for branch in schema if branch != "null"]
        if not branches:
            return OTHER
        kind = branches[0]
        for branch in branches[1:]:
            if kind != branch and not {kind, branch} <= set(_NUMBERS):
                return OTHER
            kind = merged(kind, branch)
        return kind
    if isinstance(schema, dict) and schema.get("type") == "array":
        return _array_kind({_avro_kind(schema["items"], named)})
    if isinstance(schema, dict):
        inner = schema.get("type")
        return _avro_kind(inner, named) if isinstance(inner, (dict, list)) else _known_kind(inner)
    return _known_kind(schema)


def _known_kind(name: object) -> str:
    return name if isinstance(name, str) and name in _AVRO_KINDS else OTHER


def _collect_names(schema: Any, namespace: str | None, named: dict[str, Any]) -> None:
    if isinstance(schema, list):
        for branch in schema:
            _collect_names(branch, namespace, named)
    elif isinstance(schema, dict):
        if "name" in schema:
            space = schema.get("namespace", namespace)
            named[schema["name"]] = schema
            if space:
                named[f"{space}.{schema['name']}"] = schema
            namespace = space
        for key in ("type", "items", "values"):
            _collect_names(schema.get(key), namespace, named)
        for field in schema.get("fields", ()):
            _collect_names(field.get("type"), namespace, named)
