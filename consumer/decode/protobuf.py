"""Protobuf events to columns, row by row: messages are read by the runtime of google.protobuf, then field by field.

- The fields are those of the message type that the event names. `a.b` is field `b` of the message in field `a`.
- A field that is not in the message has its default value, unless it may be absent (`Field.nullable`): then it is null,
  and so is every field of an absent message.
- int32 … sfixed64 are integers, an enum is its name, a wrapper (google.protobuf.DoubleValue, …) is its value or null,
  a google.protobuf.Timestamp is a time as of any format (`logical`), repeated numbers are an array. Maps and other
  messages feed no input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np

from modelcast.errors import WireError
from modelcast.protobuf import Field, Kind, MessageType, ProtobufSchema, read_indexes
from modelcast.tensors import FieldSpec

from .columns import Choice, Column, Flags, Items, Numbers, Opaque, Raw, Strings, Symbols
from .cursor import Buffer, Rows
from .rules import Fault, Spoiled

_INT64_MAX = 2**63 - 1

# Messages that stand for a value or its absence.
WRAPPERS = frozenset(
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
TIMESTAMP = "google.protobuf.Timestamp"
# Times are counted in microseconds, which 64 bits hold for every year that one can have (1 to 9999).
_MICROS_PER_S = 10**6
_NANOS_PER_MICRO = 10**3
_MICROS_PER_MS = 10**3
_TIMES_S = range(-62_135_596_800, 253_402_300_800)


@dataclass(frozen=True, slots=True)
class MessageRows:
    """Events of one message type: columns over `rows`, and rows (counted within them) that hold no such message."""

    rows: Rows
    columns: Mapping[str, Column]
    spoiled: tuple[Spoiled, ...]


class ProtobufPlan:
    """How events of one schema become columns."""

    def __init__(self, schema: ProtobufSchema, wanted: Sequence[FieldSpec]) -> None:
        self._schema = schema
        self._wanted = tuple(wanted)
        self._types: dict[tuple[int, ...], _TypePlan] = {}

    def read(self, payloads: Sequence[bytes], behind: bytes | None) -> Iterator[MessageRows]:
        """Columns of the wanted fields.

        Args:
            payloads: What stands behind the frames, in events' values.
            behind: The indexes, where they came with the frame in a header; else each payload begins with its own.
        """
        try:
            shared = None if behind is None else read_indexes(behind or b"\0")[0]
        except WireError as error:
            yield _spoiled(np.arange(len(payloads)), str(error))
            return
        groups: dict[tuple[int, ...], tuple[list[int], list[bytes]]] = {}
        for row, payload in enumerate(payloads):
            try:
                indexes, start = (shared, 0) if shared is not None else read_indexes(payload)
            except WireError as error:
                yield _spoiled(np.array([row]), str(error))
                continue
            rows, messages = groups.setdefault(indexes, ([], []))
            rows.append(row)
            messages.append(payload[start:])
        for indexes, (rows, messages) in groups.items():
            try:
                plan = self._type(indexes)
            except WireError as error:
                yield _spoiled(np.array(rows), str(error))
                continue
            yield plan.read(np.array(rows), messages)

    def _type(self, indexes: tuple[int, ...]) -> _TypePlan:
        plan = self._types.get(indexes)
        if plan is None:
            plan = self._types[indexes] = _TypePlan(self._schema.message(indexes), self._wanted)
        return plan


class _TypePlan:
    """The same of one message type."""

    def __init__(self, kind: MessageType, wanted: Sequence[FieldSpec]) -> None:
        self._kind = kind
        paths = {spec: field_path(kind, spec.name) for spec in wanted}
        self._readers = {spec.name: (_getter(path), path, spec) for spec, path in paths.items() if path}

    def read(self, rows: Rows, payloads: Sequence[bytes]) -> MessageRows:
        parse = self._kind.parse
        messages: list[Any] = []
        broken: list[int] = []
        for row, payload in enumerate(payloads):
            try:
                messages.append(parse(payload))
            except WireError:
                messages.append(parse(b""))
                broken.append(row)
        columns = {
            name: _column(list(map(get, messages)), path, spec) for name, (get, path, spec) in self._readers.items()
        }
        spoiled = (Spoiled(np.array(broken), Fault.INVALID_PROTOBUF, f"not a message of type {self._kind.name}"),)
        return MessageRows(rows, columns, spoiled if broken else ())


def field_path(kind: MessageType, path: str) -> tuple[Field, ...]:
    """The fields from a message to the one `path` names, a wrapper's value in its place; empty if there is none."""
    found: list[Field] = []
    within: MessageType | None = kind
    for name in path.split("."):
        field = None if within is None else within.fields.get(name)
        if field is None:
            return ()
        found.append(field)
        within = field.message if field.kind is Kind.MESSAGE and not field.repeated else None
    if within is not None and within.name in WRAPPERS:
        found.append(within.fields["value"])
    return tuple(found)


def _getter(path: Sequence[Field]) -> Callable[[Any], Any]:
    """From a message to the value of a field; None where it is absent."""
    if not _may_be_absent(path):
        return attrgetter(".".join(field.name for field in path))
    steps = [(field.name, field.nullable) for field in path]

    def get(message: Any) -> Any:
        for name, nullable in steps:
            if nullable and not type(message).HasField(message, name):  # a field may have the method's name
                return None
            message = getattr(message, name)
        return message

    return get


def _column(values: Sequence[Any], path: Sequence[Field], spec: FieldSpec) -> Column:
    """Values of the field at the end of a path; None where there is none."""
    field = path[-1]
    # By identity: a message compares all its fields with what it is compared to.
    absent = np.fromiter((value is None for value in values), np.bool_, len(values)) if _may_be_absent(path) else None
    if absent is None or not absent.any():
        return _present(values, field, spec)
    there = np.flatnonzero(~absent)
    nulls = np.flatnonzero(absent)
    parts: list[tuple[Rows, Column]] = [(nulls, Opaque("null", len(nulls)))]
    if there.size:
        parts.append((there, _present([values[row] for row in there.tolist()], field, spec)))
    return Choice(tuple(parts), len(values))


def _may_be_absent(path: Sequence[Field]) -> bool:
    return any(field.nullable for field in path)


def _present(values: Sequence[Any], field: Field, spec: FieldSpec) -> Column:
    if not field.repeated:
        return _part(values, field)
    if spec.shape is None or field.kind in (Kind.MESSAGE, Kind.MAP):
        return Opaque("a map" if field.kind is Kind.MAP else "an array", len(values))
    lengths = np.fromiter(map(len, values), np.int64, len(values))
    rows = np.flatnonzero(lengths == spec.row_values)
    return Items(lengths, rows, _part([item for row in rows.tolist() for item in values[row]], field))


def _part(values: Sequence[Any], field: Field) -> Column:  # noqa: PLR0911 - one a kind
    match field.kind:
        case Kind.INTEGER:
            return _integers(values)
        case Kind.FLOAT:
            return Numbers(np.array(values, np.float32))
        case Kind.DOUBLE:
            return Numbers(np.array(values, np.float64))
        case Kind.BOOLEAN:
            return Flags(np.array(values, np.bool_))
        case Kind.STRING:
            return _strings(values)
        case Kind.BYTES:
            buffer = Buffer(values)
            return Raw("bytes", buffer, buffer.starts, buffer.ends)
        case Kind.ENUM:
            return _symbols(values, field)
        case _ if field.message is not None and field.message.name == TIMESTAMP:
            return _times(values)
        case _:
            return Opaque("a record", len(values))


def _times(values: Sequence[Any]) -> Column:
    foreign = np.fromiter((value.seconds not in _TIMES_S for value in values), np.bool_, len(values))
    micros = np.fromiter(
        (
            0 if beyond else value.seconds * _MICROS_PER_S + value.nanos // _NANOS_PER_MICRO
            for value, beyond in zip(values, foreign.tolist(), strict=True)
        ),
        np.int64,
        len(values),
    )
    if not foreign.any():
        return Numbers(micros, per=_MICROS_PER_MS)
    return _either(
        foreign,
        lambda rows: Opaque("a time no calendar has", len(rows)),
        lambda rows: Numbers(micros[rows], per=_MICROS_PER_MS),
    )


def _integers(values: Sequence[int]) -> Column:
    try:
        return Numbers(np.array(values, np.int64))
    except OverflowError:  # of uint64 only
        large = np.fromiter((value > _INT64_MAX for value in values), np.bool_, len(values))
    return _either(
        large,
        lambda rows: Numbers(np.array([float(values[row]) for row in rows]), whole=True, finite=True),
        lambda rows: Numbers(np.array([values[row] for row in rows], np.int64)),
    )


def _strings(values: Sequence[Any]) -> Column:
    strings = np.empty(len(values), np.object_)
    strings[:] = values
    # The runtime hands out bytes where a string of proto2 is not UTF-8.
    broken = np.fromiter((not isinstance(value, str) for value in values), np.bool_, len(values))
    if not broken.any():
        return Strings(strings)
    return _either(
        broken, lambda rows: Opaque("a string that is not UTF-8", len(rows)), lambda rows: Strings(strings[rows])
    )


def _symbols(values: Sequence[int], field: Field) -> Column:
    place = {number: index for index, number in enumerate(field.symbols)}
    indices = np.fromiter((place.get(value, -1) for value in values), np.int64, len(values))
    symbols = tuple(field.symbols.values())
    foreign = indices < 0
    if not foreign.any():
        return Symbols(indices, symbols)
    return _either(
        foreign,
        lambda rows: Opaque("an enum's number without a name", len(rows)),
        lambda rows: Symbols(indices[rows], symbols),
    )


def _either(mask: Any, chosen: Callable[[Any], Column], others: Callable[[Any], Column]) -> Column:
    first, second = np.flatnonzero(mask), np.flatnonzero(~mask)
    parts = ((first, chosen(first)), (second, others(second)))
    return Choice(tuple((rows, column) for rows, column in parts if rows.size), len(mask))


def _spoiled(rows: Rows, message: str) -> MessageRows:
    return MessageRows(rows, {}, (Spoiled(np.arange(len(rows)), Fault.INVALID_PROTOBUF, message),))
