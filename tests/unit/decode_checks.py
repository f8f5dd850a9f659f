"""What the tests of decoding share: sources of schemas, and the comparison of a batch with the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from modelcast.avro import SINGLE_OBJECT_MARKER, Schema
from modelcast.consumer.decode.batch import BatchDecoder, DecodedBatch
from modelcast.consumer.decode.formats import EventFormat, Formats
from modelcast.events.writers import AvroWriter
from modelcast.records import DType
from modelcast.tensors import LAYOUTS, FieldSpec

from .decode_reference import fate

DTYPES: Mapping[DType, Any] = {
    DType.FLOAT32: np.float32,
    DType.FLOAT64: np.float64,
    DType.INT32: np.int32,
    DType.INT64: np.int64,
    DType.BOOL: np.bool_,
    DType.STRING: np.object_,
    DType.UINT8: np.uint8,
}


class Schemas:
    """Schemas at hand, counting what was looked up."""

    def __init__(self, *schemas: Schema) -> None:
        self.by_fingerprint = {schema.fingerprint: schema for schema in schemas}
        self.lookups = 0

    def find(self, frame: bytes) -> AvroWriter | None:
        self.lookups += 1
        schema = self.by_fingerprint.get(frame[2:])
        return None if schema is None else AvroWriter(schema)


SHAPES = [(3,), (1, 1), (2, 2), (4,)]


# What null may count as, for each type.
NULLS: Mapping[DType, Sequence[str]] = {
    **dict.fromkeys((DType.FLOAT32, DType.FLOAT64), ("nan", "0", "-1.5")),
    **dict.fromkeys((DType.INT32, DType.INT64, DType.UINT8), ("0", "7")),
    DType.BOOL: ("true", "false"),
    DType.STRING: ("", "none"),
}


def spec_of(name: str) -> st.SearchStrategy[FieldSpec]:
    """A field of one value of any type, or the whole row of a tensor."""
    ruled = st.sampled_from([(dtype, null) for dtype, texts in NULLS.items() for null in texts])
    values = st.builds(FieldSpec, st.just(name), st.sampled_from(DType)) | ruled.map(
        lambda rule: FieldSpec(name, rule[0], null=rule[1])
    )
    return values | st.builds(FieldSpec, st.just(name), st.sampled_from(list(LAYOUTS)), st.sampled_from(SHAPES))


def specs_of(names: Sequence[str]) -> st.SearchStrategy[list[FieldSpec]]:
    """Some of the fields, each as some type; one of them may be a field nobody has."""
    several = st.lists(st.sampled_from([*names, "nobody's"]), min_size=1, max_size=len(names), unique=True)
    return several.flatmap(lambda chosen: st.tuples(*map(spec_of, chosen)).map(list))


def bits(value: Any, dtype: DType) -> Any:
    """A value so that equal means the same bits; NaNs are one."""
    if isinstance(value, np.ndarray):
        return tuple(bits(item, dtype) for item in value.reshape(-1))
    if dtype not in (DType.FLOAT32, DType.FLOAT64):
        return value if isinstance(value, str) else value.item()
    return b"nan" if np.isnan(value) else value.tobytes()


def check(
    values: Sequence[bytes | None], specs: Sequence[FieldSpec], schemas: Schemas, event_schema: Schema | None = None
) -> DecodedBatch:
    """Decodes a batch and holds every event against the reference. With `event_schema` all are of one format."""
    formats = Formats()
    if event_schema is not None:
        framed = any(value is not None and value[:2] == SINGLE_OBJECT_MARKER for value in values)
        formats = Formats(EventFormat.SINGLE_OBJECT if framed else EventFormat.JSON, event_schema)
    batch = BatchDecoder(specs, schemas, formats).decode(values)
    definitions = {mark: schema.definition for mark, schema in schemas.by_fingerprint.items()}
    event_definition = None if event_schema is None else event_schema.definition
    want = [fate(value, specs, definitions, event_definition) for value in values]
    rows = [row for row, one in enumerate(want) if isinstance(one, tuple)]
    assert batch.rows.tolist() == rows
    poison = [(row, one) for row, one in enumerate(want) if isinstance(one, str)]
    assert [(event.index, event.error) for event in batch.poison] == poison
    unknown = {values[row][:10] for row, one in enumerate(want) if one is None}  # type: ignore[index]
    assert len(batch.unknown) == len(unknown)
    assert set(batch.unknown) == unknown
    for place, spec in enumerate(specs):
        column = batch.columns[spec.name]
        assert column.dtype == DTYPES[spec.dtype]
        assert column.shape == (len(rows), *spec.dims)
        assert column.flags.c_contiguous
        got = [bits(value, spec.dtype) for value in column]
        assert got == [want[row][place] for row in rows]  # type: ignore[index]
    return batch


@st.composite
def damaged(draw: st.DrawFn, value: bytes, octets: st.SearchStrategy[int] | None = None) -> bytes | None:
    """A value with something wrong with it, or nothing after all."""
    octets = st.integers(0, 255) if octets is None else octets
    place = draw(st.integers(0, len(value)))
    some = bytes(draw(st.lists(octets, min_size=1, max_size=4)))
    kind = draw(st.sampled_from(["replace", "replace", "cut", "insert", "append", "drop", "null", "empty", "other"]))
    return {
        "replace": value[:place] + some + value[place + len(some) :],
        "cut": value[:place],
        "insert": value[:place] + some + value[place:],
        "append": value + some,
        "drop": value[:place] + value[place + 1 :],
        "null": None,
        "empty": b"",
        "other": some,
    }[kind]
