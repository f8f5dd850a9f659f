"""Avro schemas that anybody may write, made to take a scorer's time and memory."""

from __future__ import annotations

import time
from typing import Any

import pytest

from modelcast.avro import Schema
from modelcast.consumer.decode.batch import BatchDecoder
from modelcast.consumer.decode.logical import MAX_SCALE, decimal_scale
from modelcast.events.writers import AvroWriter
from modelcast.records import DType
from modelcast.tensors import FieldSpec


def decimal(scale: int) -> object:
    field = {"type": "bytes", "logicalType": "decimal", "precision": 10**12, "scale": scale}
    schema = Schema.parse({"type": "record", "name": "R", "fields": [{"name": "x", "type": field}]})
    return schema.parsed["fields"][0]["type"]


@pytest.mark.parametrize("scale", [MAX_SCALE + 1, 10**9, 10**12])
def test_f33_a_scale_that_would_take_minutes_and_gigabytes_makes_no_decimal(scale: int) -> None:
    assert decimal_scale(decimal(MAX_SCALE)) == MAX_SCALE
    assert decimal_scale(decimal(scale)) is None


class One:
    """A source of one schema."""

    def __init__(self, schema: Schema) -> None:
        self._writer = AvroWriter(schema)

    def find(self, frame: bytes) -> AvroWriter:
        return self._writer


def halves(depth: int) -> Schema:
    """A record that holds another one twice, which does the same."""
    held: dict[str, Any] = {"type": "record", "name": "R0", "fields": [{"name": "v", "type": "double"}]}
    for level in range(1, depth):
        fields = [{"name": "a", "type": held}, {"name": "b", "type": f"R{level - 1}"}]
        held = {"type": "record", "name": f"R{level}", "fields": fields}
    return Schema.parse(held)


def test_f33_a_schema_that_doubles_with_each_record_is_given_up_soon_and_for_good() -> None:
    schema = halves(40)
    decoder = BatchDecoder([FieldSpec("v", DType.FLOAT64)], One(schema))
    began_s = time.process_time()
    for _ in range(20):
        (poison,) = decoder.decode([schema.frame + bytes(8)]).poison
    assert poison.error == "UnusableSchema"
    assert time.process_time() - began_s < 10


def test_a_wide_schema_of_nullable_numbers_is_none_of_those() -> None:
    fields = [{"name": f"x{place}", "type": ["null", "double"], "default": None} for place in range(10_000)]
    schema = Schema.parse({"type": "record", "name": "Wide", "fields": fields})
    decoder = BatchDecoder([FieldSpec("x9999", DType.FLOAT64)], One(schema))
    batch = decoder.decode([schema.encode_single_object({"x9999": 2.5})])
    assert batch.columns["x9999"].tolist() == [2.5]
