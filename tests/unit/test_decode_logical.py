"""Logical types of hostile schemas."""

from __future__ import annotations

import pytest

from modelcast.avro import Schema
from modelcast.consumer.decode.logical import MAX_SCALE, decimal_scale


def decimal(scale: int) -> object:
    field = {"type": "bytes", "logicalType": "decimal", "precision": 10**12, "scale": scale}
    schema = Schema.parse({"type": "record", "name": "R", "fields": [{"name": "x", "type": field}]})
    return schema.parsed["fields"][0]["type"]


@pytest.mark.parametrize("scale", [MAX_SCALE + 1, 10**9, 10**12])
def test_f33_a_scale_that_would_take_minutes_and_gigabytes_makes_no_decimal(scale: int) -> None:
    assert decimal_scale(decimal(MAX_SCALE)) == MAX_SCALE
    assert decimal_scale(decimal(scale)) is None
