"""Schemas and single-object encoding, as the Avro specification has them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import avro
from modelcast.errors import SourceError, WireError

POINT = avro.Schema.parse(
    {"type": "record", "name": "Point", "fields": [{"name": "x", "type": "double"}, {"name": "tag", "type": "string"}]}
)


def test_the_fingerprint_is_that_of_the_specification() -> None:
    # Avro specification, "Schema Fingerprints": CRC-64-AVRO of "null" is 7195948357588979594.
    assert avro.Schema.parse({"type": "null"}).fingerprint == (7195948357588979594).to_bytes(8, "little")


@given(x=st.floats(allow_nan=False), tag=st.text())
def test_a_datum_survives_encoding_and_decoding(x: float, tag: str) -> None:
    data = POINT.encode_single_object({"x": x, "tag": tag})
    assert data.startswith(b"\xc3\x01" + POINT.fingerprint)
    assert avro.fingerprint_of(data) == POINT.fingerprint
    assert POINT.decode(data, start=avro.FRAME_BYTES) == {"x": x, "tag": tag}


@given(st.binary(min_size=1, max_size=5))
def test_bytes_behind_a_datum_are_refused(extra: bytes) -> None:
    with pytest.raises(WireError, match="behind the datum"):
        POINT.decode(POINT.encode({"x": 1.0, "tag": "a"}) + extra)


@given(st.binary(max_size=60))
def test_garbage_is_a_wire_error_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(WireError):
        POINT.decode(data)


def test_a_datum_that_does_not_fit_is_refused() -> None:
    with pytest.raises(WireError, match="does not fit"):
        POINT.encode({"x": "far", "tag": "a"})


def test_logical_types_share_a_fingerprint_but_not_a_digest() -> None:
    two, four = (
        avro.Schema.parse({"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": scale})
        for scale in (2, 4)
    )
    assert two.fingerprint == four.fingerprint
    assert two.digest != four.digest


@pytest.mark.parametrize("text", ["{", '{"type": "recrod"}', "3"])
def test_what_is_no_schema_is_a_source_error(text: str) -> None:
    with pytest.raises(SourceError, match="not an Avro schema"):
        avro.Schema.parse(text)


def test_a_schema_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="missing.avsc"):
        avro.load(tmp_path / "missing.avsc")


def test_a_file_that_holds_no_schema_is_named(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(SourceError, match=r"rows\.csv: not an Avro schema"):
        avro.load(tmp_path / "rows.csv")


@pytest.mark.parametrize("data", [b"", b"\xc3", b"\xc3\x01short", b'{"a": 1}'])
def test_what_is_not_framed_has_no_fingerprint(data: bytes) -> None:
    assert avro.fingerprint_of(data) is None


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "fixed", "name": "f", "size": -1},
        {"type": "fixed", "name": "f", "size": "4"},
        {"type": "array", "items": [{"type": "fixed", "name": "f", "size": 1.5}]},
        {
            "type": "record",
            "name": "r",
            "fields": [{"name": "a", "type": {"type": "fixed", "name": "f", "size": 1 << 40}}],
        },
        {"type": "enum", "name": "e", "symbols": [1]},
        {"type": "record", "name": 5, "fields": []},
        {"type": "record", "name": "r", "fields": 5},
    ],
)
def test_what_readers_would_stumble_over_is_no_schema(definition: Any) -> None:
    with pytest.raises(SourceError, match="not an Avro schema"):
        avro.Schema.parse(definition)


def test_a_schema_without_a_bottom_is_refused_as_any_other() -> None:
    text = '{"type":"array","items":' * 5000 + '"long"' + "}" * 5000
    with pytest.raises(SourceError, match="not an Avro schema"):
        avro.Schema.parse(text)


@pytest.mark.parametrize(
    "items",
    ["null", {"type": "fixed", "name": "Nothing", "size": 0}, {"type": "record", "name": "Empty", "fields": []}],
)
def test_items_without_bytes_are_not_counted_out(items: object) -> None:
    array = {"type": "array", "items": items}
    schema = avro.Schema.parse(
        json.dumps({"type": "record", "name": "R", "fields": [{"name": "a", "type": ["null", array]}]})
    )
    with pytest.raises(WireError, match="without bytes"):
        schema.decode(b"\2\xfe\xff\xff\xff\xff\xff\xff\x01\0")
