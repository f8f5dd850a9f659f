"""Protobuf schemas met at run time, as files of descriptors; the only module that imports google.protobuf.

- A schema is one serialized `FileDescriptorProto` and those it imports. Each has a pool of its own: two schemas may
  define the same names.
- Imports every registry takes as known (google/protobuf, google/type, confluent) come from the packages that ship them.
- A message is told by its indexes, from the file down through nested messages (Confluent's wire format).

Example:
    schema = ProtobufSchema.parse(serialized, {})
    kind = schema.message((0,))
    kind.parse(data).amount
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import cached_property
from typing import Any

from modelcast.errors import SourceError, WireError

# Prefix of imports -> the package that holds them as modules.
_SHIPPED = {
    "google/protobuf/": "google.protobuf",
    "google/type/": "google.type",
    "confluent/": "confluent_kafka.schema_registry.confluent",
}
# Files that import each other, deeper than anybody nests them: a registry's answer must end.
_MAX_IMPORTS = 1000
# Messages within messages a frame may name; the wire format has no limit of its own.
_MAX_NESTING = 100


class Kind(Enum):
    """What a field holds."""

    INTEGER = auto()
    FLOAT = auto()
    DOUBLE = auto()
    BOOLEAN = auto()
    STRING = auto()
    BYTES = auto()
    ENUM = auto()
    MESSAGE = auto()
    MAP = auto()


@dataclass(frozen=True)
class Field:
    """One field of a message.

    Attributes:
        nullable: It may be absent, and has no value then: `optional` in proto3, any of proto2 without a default, one of
            a oneof, a message. All others have their default value where they are not in the message.
        symbols: Of an enum: the name of each number.
        message: Of a message: its type.
    """

    name: str
    kind: Kind
    repeated: bool
    nullable: bool
    symbols: Mapping[int, str]
    message: MessageType | None


@dataclass(frozen=True)
class ProtobufSchema:
    """One file of message types, with all it imports."""

    _file: Any
    _pool: Any

    @classmethod
    def parse(cls, serialized: bytes, imports: Mapping[str, bytes]) -> ProtobufSchema:
        """Builds the types.

        Args:
            serialized: A `FileDescriptorProto`.
            imports: The same of what it imports, and of what these import, by the name they are imported by.

        Raises:
            SourceError: Not descriptors, or one that is imported is missing.
        """
        from google.protobuf import descriptor_pb2, descriptor_pool

        pool = descriptor_pool.DescriptorPool()
        try:
            file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
            _add_imports(pool, file.dependency, imports, set())
            # Its own name is the registry's affair; importers know it by another.
            file.name = "modelcast.schema"
            pool.AddSerializedFile(file.SerializeToString())
        except Exception as error:  # protobuf raises TypeError, DecodeError, KeyError, …
            raise SourceError(f"not a Protobuf schema: {error}") from error
        return cls(file, pool)

    def message(self, indexes: Sequence[int]) -> MessageType:
        """The message type at these indexes.

        Raises:
            WireError: The file has none there.
        """
        names: list[str] = [self._file.package] if self._file.package else []
        found: Sequence[Any] = self._file.message_type
        for index in indexes:
            if not 0 <= index < len(found):
                raise WireError(f"the schema has no message at {'.'.join(map(str, indexes))}")
            names.append(found[index].name)
            found = found[index].nested_type
        return MessageType(self._pool.FindMessageTypeByName(".".join(names)))


@dataclass(frozen=True)
class MessageType:
    """A message type, and how its messages are read."""

    _descriptor: Any

    @property
    def name(self) -> str:
        return str(self._descriptor.full_name)

    @cached_property
    def fields(self) -> Mapping[str, Field]:
        """By name, as the schema writes it."""
        return {descriptor.name: _field(descriptor) for descriptor in self._descriptor.fields}

    @cached_property
    def _class(self) -> Any:
        from google.protobuf.message_factory import GetMessageClass

        return GetMessageClass(self._descriptor)

    def parse(self, data: bytes) -> Any:
        """One message.

        Raises:
            WireError: Not a message of this type.
        """
        try:
            return self._class.FromString(data)
        except Exception as error:  # DecodeError; RecursionError-like limits come as it, too
            raise WireError(f"not a message of type {self.name}") from error

    def as_json(self, data: bytes) -> Mapping[str, Any]:
        """One message as JSON data: the fields that are in it, under the names of the schema. Raises WireError."""
        from google.protobuf import json_format

        try:
            shown: Mapping[str, Any] = json_format.MessageToDict(self.parse(data), preserving_proto_field_name=True)
        except Exception as error:  # values that have no JSON: a timestamp out of range, an Any of another schema
            raise WireError(f"a message of type {self.name} can't be shown: {error}") from error
        return shown


def read_indexes(data: bytes) -> tuple[tuple[int, ...], int]:
    """The message indexes that `data` begins with, and how many bytes they take.

    A count and that many numbers, each a zig-zag varint; a lone 0 stands for the first message.

    Raises:
        WireError: Cut short, or no indexes.
    """
    count, at = _varint(data, 0)
    if count == 0:
        return (0,), at
    if not 0 < count <= _MAX_NESTING:
        raise WireError(f"{count} message indexes")
    indexes = []
    for _ in range(count):
        index, at = _varint(data, at)
        indexes.append(index)
    return tuple(indexes), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 64:
        if at >= len(data):
            raise WireError("cut short within the message indexes")
        octet = data[at]
        at += 1
        number |= (octet & 0x7F) << shift
        if octet < 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
    raise WireError("a message index of more than 64 bits")


def _add_imports(pool: Any, names: Sequence[str], imports: Mapping[str, bytes], added: set[str]) -> None:
    from google.protobuf import descriptor_pb2

    for name in names:
        if name in added:
            continue
        added.add(name)
        if len(added) > _MAX_IMPORTS:
            raise ValueError(f"more than {_MAX_IMPORTS} imports")
        serialized = imports[name] if name in imports else _shipped(name)
        file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
        file.name = name
        _add_imports(pool, file.dependency, imports, added)
        pool.AddSerializedFile(file.SerializeToString())


def _shipped(name: str) -> bytes:
    for prefix, package in _SHIPPED.items():
        rest = name.removeprefix(prefix).removesuffix(".proto")
        if name.startswith(prefix) and rest.replace("/", "").replace("_", "").isalnum():
            try:
                module = importlib.import_module(f"{package}.{rest.replace('/', '.')}_pb2")
            except ImportError as error:
                raise ValueError(f"it imports {name}, which is not installed here") from error
            return bytes(module.DESCRIPTOR.serialized_pb)
    raise ValueError(f"it imports {name}, which is not among its references")


def _field(descriptor: Any) -> Field:
    kind = _KINDS.get(descriptor.cpp_type, Kind.INTEGER)
    if kind is Kind.STRING and descriptor.type == descriptor.TYPE_BYTES:
        kind = Kind.BYTES
    symbols: Mapping[int, str] = {}
    message = None
    if kind is Kind.ENUM:
        # An alias is another name of a number: the first one counts, as when the number is printed.
        symbols = {value.number: value.name for value in reversed(descriptor.enum_type.values)}
    elif kind is Kind.MESSAGE:
        message = MessageType(descriptor.message_type)
        if descriptor.message_type.GetOptions().map_entry:
            kind = Kind.MAP
    repeated = _is_repeated(descriptor)
    nullable = not repeated and bool(descriptor.has_presence) and not descriptor.has_default_value
    return Field(descriptor.name, kind, repeated, nullable, symbols, message)


# `cpp_type` of google.protobuf.descriptor.FieldDescriptor; all integers but these are integers.
_KINDS = {5: Kind.DOUBLE, 6: Kind.FLOAT, 7: Kind.BOOLEAN, 8: Kind.ENUM, 9: Kind.STRING, 10: Kind.MESSAGE}


def _is_repeated(descriptor: Any) -> bool:
    # Older runtimes say it by a label, which newer ones deprecate.
    known = getattr(descriptor, "is_repeated", None)
    return bool(descriptor.label == descriptor.LABEL_REPEATED if known is None else known)
