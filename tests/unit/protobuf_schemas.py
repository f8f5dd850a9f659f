"""Protobuf files built in tests, without a compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, timestamp_pb2, wrappers_pb2
from google.protobuf.message_factory import GetMessageClass

F: Any = descriptor_pb2.FieldDescriptorProto


def transactions(*, package: str = "shop", change: Callable[[Any], None] = lambda _: None) -> Any:
    """A file of proto3: an unused message, then `Transaction` with one field of every kind; `change` edits it."""
    file = descriptor_pb2.FileDescriptorProto(name="transactions.proto", package=package, syntax="proto3")
    file.dependency.extend(["google/protobuf/wrappers.proto", "google/protobuf/timestamp.proto"])
    file.message_type.add(name="Unused")
    message = file.message_type.add(name="Transaction")
    card = message.nested_type.add(name="Card")
    card.field.add(name="country", number=1, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
    card.field.add(name="limit", number=2, type=F.TYPE_INT64, label=F.LABEL_OPTIONAL)
    card.field.add(name="limits", number=3, type=F.TYPE_DOUBLE, label=F.LABEL_REPEATED)
    kind = message.enum_type.add(name="Kind")
    for number, name in enumerate(("CARD", "CASH")):
        kind.value.add(name=name, number=number)
    entry = message.nested_type.add(name="TagsEntry")
    entry.field.add(name="key", number=1, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=F.TYPE_STRING, label=F.LABEL_OPTIONAL)
    entry.options.map_entry = True
    message.oneof_decl.add(name="_maybe")
    named = f".{package}.Transaction"
    for number, (name, options) in enumerate(
        {
            "amount": {"type": F.TYPE_DOUBLE},
            "ratio": {"type": F.TYPE_FLOAT},
            "count": {"type": F.TYPE_INT32},
            "large": {"type": F.TYPE_UINT64},
            "flag": {"type": F.TYPE_BOOL},
            "id": {"type": F.TYPE_STRING},
            "raw": {"type": F.TYPE_BYTES},
            "kind": {"type": F.TYPE_ENUM, "type_name": f"{named}.Kind"},
            "vector": {"type": F.TYPE_FLOAT, "label": F.LABEL_REPEATED},
            "card": {"type": F.TYPE_MESSAGE, "type_name": f"{named}.Card"},
            "maybe": {"type": F.TYPE_DOUBLE, "oneof_index": 0, "proto3_optional": True},
            "wrapped": {"type": F.TYPE_MESSAGE, "type_name": ".google.protobuf.DoubleValue"},
            "at": {"type": F.TYPE_MESSAGE, "type_name": ".google.protobuf.Timestamp"},
            "tags": {"type": F.TYPE_MESSAGE, "type_name": f"{named}.TagsEntry", "label": F.LABEL_REPEATED},
        }.items(),
        start=1,
    ):
        message.field.add(name=name, number=number, **{"label": F.LABEL_OPTIONAL, **options})
    change(file)
    return file


def class_of(file: Any, name: str) -> Any:
    """The class of a message of `file`, for whoever writes events."""
    pool = descriptor_pool.DescriptorPool()
    for module in (wrappers_pb2, timestamp_pb2):
        pool.AddSerializedFile(module.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{name}"))
