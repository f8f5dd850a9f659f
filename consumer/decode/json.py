"""JSON events to columns, one by one: what every event of a batch must come to, however it is read.

One event is one JSON object in UTF-8 (RFC 8259: no NaN, no second value behind it), no key twice at its top, and no
deeper than `_MAX_DEPTH`. An integer is a number without fraction or exponent. A field `a.b` is the key `a.b` at the
top; where there is none, the key `b` of the object under `a`, which has no key twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from modelcast.tensors import FieldSpec

from .columns import Choice, Column, Flags, Items, Numbers, Opaque, Strings, inside
from .rules import Fault, Spoiled
from .wanted import Lacking, Wanted

# Brackets within brackets; fixed, because the interpreter's own limit depends on who called.
_MAX_DEPTH = 100
_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
# Of what holds no fields, as it is called; objects do, and nothing is said of what is inside null.
_HOLDERS = {int: "an integer", float: "a float", bool: "a boolean", str: "a string", list: "an array"}


def decode_each(values: Sequence[bytes], wanted: Sequence[Wanted]) -> tuple[dict[str, Column], tuple[Spoiled, ...]]:
    """Columns of the fields over all values, and the rows that are no JSON object."""
    spoiled: list[Spoiled] = []
    nothing = [one.lacking[0] for one in wanted]
    # Fields at the top are looked up without a call for each.
    plain = [(one.name, one.lacking[0]) for one in wanted if one.is_plain]
    found: list[Sequence[Any]] = []
    for row, value in enumerate(values):
        try:
            event = parse(value)
        except ValueError as error:
            found.append(nothing)
            spoiled.append(Spoiled(np.array([row]), Fault.INVALID_JSON, str(error)))
            continue
        if len(plain) == len(wanted):
            found.append([event.get(name, lacking) for name, lacking in plain])
        else:
            opened: dict[int, Mapping[str, Any]] = {}
            found.append([_find(one, event, opened) for one in wanted])
    fields = zip(*found, strict=True) if found else ((),) * len(wanted)
    columns = {one.name: _column(field, one.spec) for one, field in zip(wanted, fields, strict=True)}
    return columns, tuple(spoiled)


@dataclass(frozen=True, slots=True)
class _Inside:
    """Stands for a field of what has no fields."""

    kind: str


_DOUBLED = _Inside("inside an object that has a key twice")


def _find(wanted: Wanted, event: Mapping[str, Any], opened: dict[int, Mapping[str, Any]]) -> Any:
    """A field's value, or what stands for it; `opened` keeps the event's objects that were looked into."""
    if wanted.name in event:
        return event[wanted.name]
    holder, last = event, len(wanted.steps) - 1
    for level, step in enumerate(wanted.steps):
        name = next((name for name in step.names if name in holder), None)
        if name is None:
            return wanted.lacking[level]
        held = holder[name]
        if level == last or held is None:
            break
        if not isinstance(held, tuple):
            return _Inside(inside(_HOLDERS[type(held)]))
        holder = opened[id(held)] = opened.get(id(held)) or dict(held)
        if len(holder) < len(held):
            return _DOUBLED
    return held


def parse(value: bytes) -> Mapping[str, Any]:
    """One event as a mapping; nested objects come as tuples of pairs.

    Raises:
        ValueError: Not one JSON object in UTF-8, too deep, or a key is there twice.
    """
    if value.count(b"[") + value.count(b"{") > _MAX_DEPTH and _is_too_deep(value):
        raise ValueError(f"nested deeper than {_MAX_DEPTH}")
    # Pairs as a tuple: JSON itself never gives one, so it stands for an object, and no pair is lost.
    pairs = _DECODER.decode(value.decode())
    if not isinstance(pairs, tuple):
        raise ValueError(f"a JSON {type(pairs).__name__} is no event: an object is")
    event = dict(pairs)
    if len(event) != len(pairs):
        raise ValueError("a key stands twice in the object")
    return event


def _is_too_deep(value: bytes) -> bool:
    depth, quoted, escaped = 0, False, False
    for octet in value:
        if quoted:
            quoted = escaped or octet != ord('"')
            escaped = not escaped and octet == ord("\\")
        elif octet == ord('"'):
            quoted = True
        else:
            depth += (octet in b"[{") - (octet in b"]}")
            if depth > _MAX_DEPTH:
                return True
    return False


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_constant=_no_constant)


def _column(values: Sequence[Any], spec: FieldSpec | None = None) -> Column:
    """Values as JSON gave them, by kind; arrays as what `spec` wants."""
    if all(type(value) is float for value in values):
        return _part("float", values, spec)
    rows: dict[str | Lacking, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(_kind(value), []).append(row)
    parts = [(np.array(where), _part(kind, [values[row] for row in where], spec)) for kind, where in rows.items()]
    return parts[0][1] if len(parts) == 1 else Choice(tuple(parts), len(values))


def _kind(value: Any) -> str | Lacking:
    if isinstance(value, Lacking):
        return value
    if isinstance(value, _Inside):
        return value.kind
    if isinstance(value, int) and not isinstance(value, bool):
        return "int" if _INT64_MIN <= value <= _INT64_MAX else "huge"
    if isinstance(value, str) and not _is_unicode(value):
        return "a string with half a surrogate pair"
    return _KINDS[type(value)]


_KINDS: dict[type, str] = {
    float: "float", bool: "bool", str: "str", type(None): "null",
    tuple: "an object", list: "an array",
}  # fmt: skip


def _is_unicode(text: str) -> bool:
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _part(kind: str | Lacking, values: Sequence[Any], spec: FieldSpec | None) -> Column:
    if isinstance(kind, Lacking):
        return kind.column(len(values))
    column: Column = Opaque(kind, len(values))
    match kind:
        case "int":
            column = Numbers(np.array(values, np.int64))
        case "huge":
            column = Numbers(np.array([_as_float(value) for value in values]), whole=True, finite=True)
        case "float":
            column = Numbers(np.array(values, np.float64), finite=True)
        case "bool":
            column = Flags(np.array(values, np.bool_))
        case "str":
            strings = np.empty(len(values), np.object_)
            strings[:] = values
            column = Strings(strings)
        case "an array" if spec is not None and spec.shape is not None:
            lengths = np.array([len(value) for value in values])
            rows = np.flatnonzero(lengths == spec.row_values)
            items = [item for row in rows.tolist() for item in values[row]]
            column = Items(lengths, rows, _column(items))
    return column


def _as_float(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf")
