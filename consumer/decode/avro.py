"""Avro events to columns, a whole batch at a time, by a plan made once per writer schema.

- The plan steps over the writer's fields in their order: runs of fixed-width fields as one window, everything else as
  one read down the column (`readers`). A record within a record is stepped into, so runs go on through it.
- Maps, records that contain themselves, and arrays no tensor is made from are stepped over row by row (`walk`), but
  for what is wanted of them. Arrays a tensor is made from are read by `arrays`.
- The specification is kept to where common readers are lax, so that an event's fate does not depend on the reader:
  a boolean is 0 or 1, an int fits 32 bits, an index names a symbol or branch, a varint fits 64 bits. Varints may be
  padded: the predictions of modelcast are.
- With an event schema, a wanted field is resolved to it as the specification says ("Schema Resolution"): by name or
  alias, by the promotions, an unknown symbol to the enum's default, a field the writer lacks to its own. What can't be
  resolved is the wrong type. Names of types matter only where a union has several records, enums or fixed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from modelcast.avro import Schema
from modelcast.errors import SourceError
from modelcast.records import DType
from modelcast.tensors import FieldSpec

from .arrays import Arrays, Reader
from .columns import Column, Numbers
from .cursor import MAX_WINDOW_BYTES, Cursor
from .logical import decimal_scale, logical_type, per_ms
from .readers import (
    PRIMITIVES,
    Absent,
    Branches,
    Bytes,
    Changed,
    Decimal,
    Enum,
    Field,
    Fixed,
    KnownSymbols,
    Mismatched,
    RecordReader,
    Run,
    Several,
    Step,
    Union,
    Walked,
    Within,
)
from .walk import Names, named, type_name, walker
from .wanted import Wanted, wanted_of

# A record is read where it is referred to, each time anew: two dozen that hold the next one twice take minutes and
# gigabytes. A record of ten thousand nullable numbers has some 40,000 types; so many as these take about a second.
MAX_TYPES = 100_000

# Types read as part of a window: numpy's code and the width.
_REALS = {"float": ("<f4", 4), "double": ("<f8", 8)}
# What may be read as what (Avro specification 1.12, "Schema Resolution"); a symbol is a text to every model.
_PROMOTIONS: Mapping[str, tuple[str, ...]] = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
    "string": ("bytes", "enum"),
    "bytes": ("string",),
    "enum": ("string",),
}


@dataclass(frozen=True, slots=True)
class AvroPlan:
    """How events of one writer schema become columns."""

    root: RecordReader

    @classmethod
    def of(cls, schema: Schema, specs: Sequence[FieldSpec], reader_schema: Schema | None = None) -> AvroPlan:
        """Plans for the fields of `specs`, resolved to `reader_schema`. A schema that is no record has none.

        Raises:
            SourceError: As `wanted_of`.
        """
        return cls.to(schema, wanted_of(specs, reader_schema))

    @classmethod
    def to(cls, schema: Schema, wanted: Sequence[Wanted]) -> AvroPlan:
        """As `of`, for fields that are looked up already."""
        return cls(_Compiler().record(schema.parsed, [_Target(one, 0) for one in wanted]))

    def read(self, cursor: Cursor) -> Mapping[str, Column]:
        """Columns of the wanted fields. Afterwards rows short of their end have bytes left over."""
        return self.root.fields(cursor)


@dataclass(frozen=True, slots=True)
class _Target:
    """A wanted field, from one level of its path on."""

    wanted: Wanted
    level: int

    @property
    def names(self) -> tuple[str, ...]:
        return self.wanted.steps[self.level].names

    @property
    def is_last(self) -> bool:
        return self.level == len(self.wanted.steps) - 1

    def below(self) -> _Target:
        return _Target(self.wanted, self.level + 1)


@dataclass(frozen=True, slots=True)
class _Real:
    """A float or double, to become part of a run; for the wanted fields of these names."""

    names: tuple[str, ...]
    code: str
    width: int


class _Compiler:
    """Turns a parsed schema (full names, as fastavro gives it) into readers."""

    def __init__(self) -> None:
        self._names: Names = {}
        self._open: set[str] = set()  # records being compiled: a reference to one is recursion
        self._visited = 0

    def record(self, schema: Any, targets: Sequence[_Target]) -> RecordReader:
        """For the root, or a branch of a union: all of a record."""
        if type_name(schema) != "record":
            return RecordReader((Field(None, self._reader(schema)),))
        return RecordReader(tuple(_in_runs(self._steps(schema, targets))))

    def _steps(self, schema: Any, targets: Sequence[_Target]) -> Iterator[_Real | Step]:
        self._names.update(named(schema))
        entered = schema["name"] not in self._open
        self._open.add(schema["name"])
        found, absent = _found(schema["fields"], targets)
        for field in schema["fields"]:
            yield from self._field(self._resolved(field["type"]), found.get(field["name"], ()))
        yield from (Absent(target.wanted, target.level) for target in absent)
        if entered:
            self._open.discard(schema["name"])

    def _field(self, schema: Any, targets: Sequence[_Target]) -> Iterator[_Real | Step]:
        kind = type_name(schema)
        whole = [target for target in targets if target.is_last]
        inner = [target.below() for target in targets if not target.is_last]
        if kind in _REALS and not inner and all(_is_plain(kind, target) for target in whole):
            yield _Real(tuple(target.wanted.name for target in whole), *_REALS[kind])
        elif kind == "record" and not whole and (inner or schema["name"] not in self._open):
            yield from self._steps(schema, inner)
        else:
            ways: list[Step] = [Field(one.wanted.name, self._leaf(schema, one)) for one in whole]
            ways += [self._inner(schema, inner)] if inner else []
            if len(ways) > 1:
                yield Several(tuple(ways))
            else:
                yield ways[0] if ways else Field(None, self._reader(schema))

    def _inner(self, schema: Any, targets: Sequence[_Target]) -> Step:
        """For a type of which fields below are wanted."""
        names = tuple(target.wanted.name for target in targets)
        match type_name(schema):
            case "record":
                return self.record(schema, targets)
            case "union":
                return Branches(names, tuple(self._inner(self._resolved(branch), targets) for branch in schema))
            case _:
                return Within(names, self._reader(schema))

    def _leaf(self, schema: Any, target: _Target) -> Reader:
        """For the type of a wanted field."""
        wanted, step = target.wanted, target.wanted.steps[target.level]
        return self._resolution(schema, step.type, wanted)

    def _resolution(self, schema: Any, reader: Any, wanted: Wanted) -> Reader:
        """Reads `schema` as the event schema's type `reader` (None: as it is)."""
        schema = self._resolved(schema)
        kind = type_name(schema)
        if kind == "union":
            return Union(tuple(self._resolution(branch, reader, wanted) for branch in schema))
        if kind == "null":
            return PRIMITIVES[kind]
        asked, reader = reader, _matching(schema, reader, wanted.types)
        if asked is not None and reader is None:
            return Mismatched(self._reader(schema), kind, type_name(asked))
        return self._value(schema, kind, reader, wanted)

    def _value(self, schema: Any, kind: str, reader: Any, wanted: Wanted) -> Reader:
        """Reads what is neither a union nor null, as a type it can be read as."""
        spec, read_as = wanted.spec, kind if reader is None else type_name(reader)
        match kind:
            case "int" | "long" | "float":
                change = _change(schema, reader)
                return PRIMITIVES[kind] if change is None else Changed(PRIMITIVES[kind], change)
            case "enum" if read_as == "enum" and reader is not None:
                return _enum(schema["symbols"], reader)
            case "bytes" | "fixed" if _is_decimal(schema, reader, spec):
                raw = Bytes(text=False) if kind == "bytes" else Fixed(schema["size"])
                return Decimal(raw, decimal_scale(schema) or 0)
            case "bytes" | "string" if read_as in ("bytes", "string"):
                return Bytes(text=read_as == "string")
            case "array" if spec.shape is not None:
                return self._array(schema, reader, wanted)
            case _:
                return self._reader(schema)

    def _array(self, schema: Any, reader: Any, wanted: Wanted) -> Reader:
        items = self._resolved(schema["items"])
        one = replace(wanted, spec=FieldSpec(wanted.name, wanted.spec.dtype))
        read_as = None if reader is None else reader["items"]
        item = self._resolution(items, read_as, one)
        if read_as is None:
            plain = self._number_of(items)
            return Arrays.of(items, item, self._names, wanted.spec.row_values, _change(plain, None))
        plain = self._number_of(items)
        matched = _matching(plain, read_as, wanted.types)
        quick = matched is not None
        return Arrays.of(items, item, self._names, wanted.spec.row_values, _change(plain, matched), quick=quick)

    def _number_of(self, items: Any) -> Any:
        """The items that are not null."""
        if isinstance(items, list) and len(items) == 2 and "null" in items:
            return self._resolved(items[1 - items.index("null")])
        return items

    def _reader(self, schema: Any) -> Reader:
        """For what no model takes: read to be stepped over."""
        schema = self._resolved(schema)
        kind = type_name(schema)
        match kind:
            case "enum":
                return Enum(tuple(schema["symbols"]))
            case "fixed":
                return Fixed(schema["size"])
            case "union":
                return Union(tuple(self._reader(branch) for branch in schema))
            case "record" if schema["name"] not in self._open:
                return self.record(schema, ())
            case _:
                return PRIMITIVES.get(kind) or Walked(f"of type {kind}", walker(schema, self._names))

    def _resolved(self, schema: Any) -> Any:
        self._visited += 1
        if self._visited > MAX_TYPES:
            raise SourceError(f"it holds more than {MAX_TYPES:,} types, records within records counted each time")
        self._names.update(named(schema))
        return self._names.get(schema, schema) if isinstance(schema, str) else schema


def _found(
    fields: Sequence[Mapping[str, Any]], targets: Sequence[_Target]
) -> tuple[dict[str, list[_Target]], list[_Target]]:
    """Which targets are wanted of which of a writer's fields, and those it has no field for."""
    names = {field["name"] for field in fields}
    found: dict[str, list[_Target]] = {}
    absent = []
    for target in targets:
        name = next((name for name in target.names if name in names), None)
        if name is None:
            absent.append(target)
        else:
            found.setdefault(name, []).append(target)
    return found, absent


def _in_runs(steps: Iterator[_Real | Step]) -> Iterator[Step]:
    """Neighbouring floats and doubles as runs, none wider than a window."""
    for is_real, group in groupby(steps, lambda step: isinstance(step, _Real)):
        if not is_real:
            yield from group  # type: ignore[misc]  # groupby does not narrow
            continue
        width, wanted = 0, dict[str, tuple[int, str]]()
        for real in group:
            assert isinstance(real, _Real)  # noqa: S101  narrows for the type checker
            if width + real.width > MAX_WINDOW_BYTES:
                yield Run(width, wanted)
                width, wanted = 0, {}
            wanted |= dict.fromkeys(real.names, (width, real.code))
            width += real.width
        yield Run(width, wanted)


def _is_plain(kind: str, target: _Target) -> bool:
    """Whether a float or double can be read as the target wants it without a change."""
    step = target.wanted.steps[target.level]
    return step.type is None or _matching(kind, step.type, target.wanted.types) is not None


def _matching(writer: Any, reader: Any, types: Mapping[str, Any]) -> Any:
    """The type, `reader` or a branch of it, that `writer` (no union) is read as; None if there is none."""
    if reader is None:
        return None
    branches = [types.get(one, one) if isinstance(one, str) else one for one in _branches(reader, types)]
    kind = type_name(writer)
    alike = [branch for branch in branches if type_name(branch) == kind and _is_alike(writer, branch)]
    if alike:
        return next((branch for branch in alike if _is_named_alike(writer, branch)), alike[0])
    promoted = (branch for to in _PROMOTIONS.get(kind, ()) for branch in branches if type_name(branch) == to)
    return next(promoted, None)


def _branches(reader: Any, types: Mapping[str, Any]) -> Sequence[Any]:
    reader = types.get(reader, reader) if isinstance(reader, str) else reader
    return reader if isinstance(reader, list) else [reader]


def _is_alike(writer: Any, reader: Any) -> bool:
    return type_name(writer) != "fixed" or writer["size"] == reader["size"]


def _is_named_alike(writer: Any, reader: Any) -> bool:
    if not isinstance(writer, dict) or "name" not in writer:
        return True
    last = writer["name"].rpartition(".")[2]
    return any(last == name.rpartition(".")[2] for name in (reader["name"], *reader.get("aliases", ())))


@dataclass(frozen=True, slots=True)
class _Change:
    """What makes a writer's numbers a model's: times in milliseconds, and the rounding of a promotion."""

    per: int
    real: str | None

    def __call__(self, numbers: Numbers) -> Numbers:
        if self.real is None:
            return replace(numbers, per=self.per)
        return Numbers(numbers.values.astype(np.float64).astype(self.real))


def _change(writer: Any, reader: Any) -> _Change | None:
    kind, read_as = type_name(writer), None if reader is None else type_name(reader)
    if kind in ("int", "long") and read_as in _REALS:
        return _Change(1, _REALS[read_as][0])
    per = per_ms(writer) or 1
    return _Change(per, None) if per != 1 and (reader is None or logical_type(reader)) else None


def _is_decimal(schema: Any, reader: Any, spec: FieldSpec) -> bool:
    if decimal_scale(schema) is None or spec.shape is not None or spec.dtype is DType.STRING:
        return False
    return reader is None or decimal_scale(reader) is not None


def _enum(symbols: Sequence[str], reader: Any) -> Enum | KnownSymbols:
    if set(symbols) <= set(reader["symbols"]):
        return Enum(tuple(symbols))
    known = set(reader["symbols"])
    return KnownSymbols(tuple(symbol if symbol in known else reader.get("default") for symbol in symbols))
