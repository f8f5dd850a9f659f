"""Stepping over one Avro datum within the bytes of one row: for the types columns are not made from.

As strict as the columns' readers: an index names something, a block that states its size has it, nothing ends beyond
the row. Work is bounded by the row's bytes: items that take no bytes are counted, not visited.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# From a position to the one behind the datum, given the row's end; None if the row does not hold one.
Walk = Callable[[bytes, int, int], "int | None"]
Names = dict[str, Any]

_FIXED_WIDTHS = {"null": 0, "float": 4, "double": 8}
_VARINT_BITS = {"int": 32, "long": 64}
_PRIMITIVES = frozenset({*_FIXED_WIDTHS, *_VARINT_BITS, "boolean", "string", "bytes"})
_MAX_VARINT_BYTES = 10
# Values within values of one event: far beyond what schemas are written for, far within the interpreter's own limit.
_MAX_DEPTH = 100


def type_name(schema: Any) -> str:
    """The kind of a parsed schema: a primitive's name, "record", "union", …; for a reference, the name."""
    if isinstance(schema, list):
        return "union"
    if isinstance(schema, str):
        return schema
    inner = schema["type"]
    return inner if isinstance(inner, str) else type_name(inner)


def named(schema: Any) -> Names:
    """The named types defined anywhere in a parsed schema, by full name."""
    if isinstance(schema, list):
        return {name: entry for branch in schema for name, entry in named(branch).items()}
    if not isinstance(schema, dict):
        return {}
    found: Names = {schema["name"]: schema} if "name" in schema else {}
    for part in (*(field["type"] for field in schema.get("fields", ())), schema.get("items"), schema.get("values")):
        found.update(named(part))
    return found


def walker(schema: Any, names: Mapping[str, Any]) -> Walk:
    """A walk over data of `schema`, whose references are in `names`."""
    known = {**names, **named(schema)}

    def walk(data: bytes, start: int, end: int) -> int | None:
        row = _Row(data, start, end, known)
        try:
            row.step(schema, 0)
        except _BrokenError:
            return None
        return row.position

    return walk


@dataclass(frozen=True, slots=True)
class WalkedArray:
    """One array that was stepped over.

    Attributes:
        stop: The place behind it.
        length: How many items it has; where they are more than were to be kept, more than that.
        starts: Where the first of them begin.
    """

    stop: int
    length: int
    starts: list[int]


# From a position and the row's end to the array there, the starts of so many items kept; None if the row holds none.
ArrayWalk = Callable[[bytes, int, int, int], "WalkedArray | None"]


def array_walker(items: Any, names: Mapping[str, Any]) -> ArrayWalk:
    """A walk over arrays of `items`, whose references are in `names`."""
    known = {**names, **named(items)}

    def walk(data: bytes, start: int, end: int, keep: int) -> WalkedArray | None:
        row = _Row(data, start, end, known)
        starts: list[int] = []
        try:
            length = row.blocks((items,), 1, starts, keep)
        except _BrokenError:
            return None
        return WalkedArray(row.position, min(length, keep + 1), starts)

    return walk


class _BrokenError(Exception):
    """The row does not hold what was to be stepped over."""


@dataclass(slots=True)
class _Row:
    data: bytes
    position: int
    end: int
    names: Mapping[str, Any]

    def step(self, schema: Any, depth: int) -> None:
        """Moves behind one datum of `schema`."""
        if depth > _MAX_DEPTH:
            raise _BrokenError
        schema = self.names.get(schema, schema) if isinstance(schema, str) else schema
        kind = type_name(schema)
        if kind in _PRIMITIVES:
            self.primitive(kind)
            return
        match kind:
            case "fixed":
                self.skip(schema["size"])
            case "enum":
                self.index(len(schema["symbols"]))
            case "union":
                self.step(schema[self.index(len(schema))], depth + 1)
            case "array":
                self.blocks((schema["items"],), depth + 1)
            case "map":
                self.blocks(("string", schema["values"]), depth + 1)
            case _:
                for field in schema["fields"]:
                    self.step(field["type"], depth + 1)

    def primitive(self, kind: str) -> None:
        if kind in _FIXED_WIDTHS:
            self.skip(_FIXED_WIDTHS[kind])
        elif kind in _VARINT_BITS:
            self.varint(_VARINT_BITS[kind])
        elif kind == "boolean":
            self.skip(1)
            if self.data[self.position - 1] > 1:
                raise _BrokenError
        else:
            self.skip(self.varint(64))

    def skip(self, width: int) -> None:
        if not 0 <= width <= self.end - self.position:
            raise _BrokenError
        self.position += width

    def varint(self, bits: int) -> int:
        number, last = 0, min(self.end, self.position + _MAX_VARINT_BYTES)
        for shift, octet in enumerate(self.data[self.position : last]):
            number |= (octet & 0x7F) << (7 * shift)
            if octet < 0x80:
                break
        else:
            raise _BrokenError
        self.position += shift + 1
        if number >> bits:
            raise _BrokenError
        return (number >> 1) ^ -(number & 1)

    def index(self, count: int) -> int:
        index = self.varint(64)
        if not 0 <= index < count:
            raise _BrokenError
        return index

    def blocks(self, items: tuple[Any, ...], depth: int, starts: list[int] | None = None, keep: int = 0) -> int:
        """Steps over the blocks of an array or map; gives its length, and the starts of its first `keep` items."""
        length = 0
        while count := self.varint(64):
            size = self.varint(64) if count < 0 else None
            start = self.position
            for number in range(abs(count)):
                before = self.position
                if starts is not None and len(starts) < keep:
                    starts.append(before)
                for item in items:
                    self.step(item, depth)
                if self.position == before:  # an item without bytes: so are all the others
                    if starts is not None:
                        starts += [before] * min(abs(count) - number - 1, keep - len(starts))
                    break
            if size is not None and self.position - start != size:
                raise _BrokenError
            length += abs(count)
        return length
