"""Predictions: valid Avro of a schema per signature, the same bytes in whatever batch."""

from __future__ import annotations

import io
import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.avro import FRAME_BYTES, container_header
from modelcast.consumer.predictions import PredictionEncoder, _varint
from modelcast.errors import LoadError
from modelcast.records import DType, Manifest, OutputSpec, Shape, Signature

Output = tuple[str, DType, Shape]
LABEL: Output = ("output:label", DType.STRING, (None,))
SCORE: Output = ("score", DType.FLOAT32, (None, 1))
MATRIX: Output = ("probabilities", DType.FLOAT32, (None, 3))


def encoder_of(*outputs: Output, model: str = "fraud", version: int = 3) -> PredictionEncoder:
    signature = Signature((), tuple(OutputSpec.named(*output) for output in outputs))
    manifest = Manifest("repository", model, version, 0, "", "", (), 1, signature, 8, {})
    return PredictionEncoder(manifest, "transactions")


def encode(encoder: PredictionEncoder, outputs: dict[str, np.ndarray], offset: int = 100) -> list[bytes]:
    count = len(next(iter(outputs.values())))
    return encoder.encode(outputs, np.full(count, 2), offset + np.arange(count), 1_700_000_000_000 + np.arange(count))


def test_a_prediction_says_which_version_scored_which_event() -> None:
    encoder = encoder_of(SCORE)
    (record,) = encode(encoder, {"score": np.float32([[0.25]])})
    assert record.startswith(encoder.schema.frame)
    datum = encoder.schema.decode(record, start=FRAME_BYTES)
    assert (datum["model"], datum["version"], datum["score"]) == ("fraud", 3, 0.25)
    source = datum["source"]
    assert (source["topic"], source["partition"], source["offset"]) == ("transactions", 2, 100)
    assert source["timestamp"] == 1_700_000_000_000


def test_versions_of_one_signature_share_the_schema() -> None:
    first, second = encoder_of(SCORE, version=1), encoder_of(SCORE, version=20)
    assert first.schema.text == second.schema.text
    assert encoder_of(LABEL).schema.fingerprint != first.schema.fingerprint


@pytest.mark.parametrize("model", ["fraud", "a.b-c", "2nd", "x" * 100])
def test_every_model_name_makes_a_schema(model: str) -> None:
    encoder = encoder_of(SCORE, model=model)
    (record,) = encode(encoder, {"score": np.float32([1])})
    assert encoder.schema.decode(record, start=FRAME_BYTES)["model"] == model


NUMBERS = [
    (DType.FLOAT32, np.float32([0, -0.0, 1.5, np.inf, -np.inf, np.nan, 1e-45])),
    (DType.FLOAT64, np.float64([0, -0.0, 1.5, np.inf, -np.inf, np.nan, 5e-324])),
    (DType.INT32, np.int32([0, 1, -1, 63, -64, 64, 2**31 - 1, -(2**31)])),
    (DType.INT64, np.int64([0, 1, -1, 63, -64, 64, 2**63 - 1, -(2**63)])),
    (DType.BOOL, np.array([True, False])),
    (DType.STRING, np.array(["", "cat", "dög", "x" * 1000, "cat"], object)),
]


def same(got: object, want: object) -> bool:
    if isinstance(want, float):
        return isinstance(got, float) and (
            (math.isnan(got) and math.isnan(want)) or (got == want and math.copysign(1, got) == math.copysign(1, want))
        )
    return got == want


@pytest.mark.parametrize(("dtype", "values"), NUMBERS, ids=[str(dtype) for dtype, _ in NUMBERS])
def test_scalars_of_every_type_come_back_bit_for_bit(dtype: DType, values: np.ndarray) -> None:
    for shape, array in (((None,), values), ((None, 1), values[:, None])):
        encoder = encoder_of(("out", dtype, shape), SCORE)
        records = encode(encoder, {"out": array, "score": np.zeros(len(values), np.float32)})
        decoded = [encoder.schema.decode(record, start=FRAME_BYTES)["out"] for record in records]
        assert all(map(same, decoded, values.tolist()))


@pytest.mark.parametrize(("dtype", "values"), NUMBERS, ids=[str(dtype) for dtype, _ in NUMBERS])
@pytest.mark.parametrize("width", [0, 1, 2, 100])
def test_matrices_of_every_type_come_back_as_arrays(dtype: DType, values: np.ndarray, width: int) -> None:
    encoder = encoder_of(("out", dtype, (None, None)), SCORE)
    matrix = np.repeat(values[:, None], width, axis=1)
    records = encode(encoder, {"out": matrix, "score": np.zeros(len(values), np.float32)})
    for record, want in zip(records, matrix.tolist(), strict=True):
        got = encoder.schema.decode(record, start=FRAME_BYTES)["out"]
        assert len(got) == len(want)
        assert all(map(same, got, want))


def test_a_strange_reader_takes_the_padded_varints() -> None:
    encoder = encoder_of(("n", DType.INT64, (None,)), LABEL, MATRIX)
    outputs = {
        "n": np.int64([5, -(2**63)]),
        "output:label": np.array(["a", "bc"], object),
        "probabilities": np.float32([[1, 2, 3], [4, 5, 6]]),
    }
    body = b"".join(record[FRAME_BYTES:] for record in encode(encoder, outputs))
    header, sync = container_header(encoder.schema)
    frame = pl.read_avro(io.BytesIO(header + _varint(2) + _varint(len(body)) + body + sync))
    assert frame["n"].to_list() == [5, -(2**63)]
    assert frame["output_label"].to_list() == ["a", "bc"]
    assert frame["probabilities"].to_list() == [[1, 2, 3], [4, 5, 6]]
    assert [source["offset"] for source in frame["source"]] == [100, 101]


@given(st.data())
def test_an_event_has_the_same_bytes_in_whatever_batch(data: st.DataObject) -> None:
    encoder = encoder_of(LABEL, MATRIX, ("n", DType.INT64, (None,)))
    count = data.draw(st.integers(1, 20))
    integers = st.integers(-(2**63), 2**63 - 1)
    outputs = {
        "output:label": np.array(data.draw(st.lists(st.text(), min_size=count, max_size=count)), object),
        "probabilities": np.array(
            data.draw(st.lists(st.floats(width=32), min_size=count * 3, max_size=count * 3)), np.float32
        ).reshape(count, 3),
        "n": np.array(data.draw(st.lists(integers, min_size=count, max_size=count)), np.int64),
    }
    places = [np.array(data.draw(st.lists(integers, min_size=count, max_size=count)), np.int64) for _ in range(2)]
    partitions = np.arange(count)
    together = encoder.encode(outputs, partitions, *places)
    for row in range(count):
        one = slice(row, row + 1)
        alone = encoder.encode(
            {name: array[one] for name, array in outputs.items()}, partitions[one], *(place[one] for place in places)
        )
        assert alone == [together[row]]
        encoder.schema.decode(
            encode(encoder, {name: array[one] for name, array in outputs.items()})[0], start=FRAME_BYTES
        )


def test_an_empty_batch_makes_nothing() -> None:
    assert encode(encoder_of(SCORE), {"score": np.zeros((0, 1), np.float32)}) == []


def test_outputs_for_another_number_of_events_are_refused() -> None:
    encoder = encoder_of(MATRIX)
    with pytest.raises(LoadError, match=r"'probabilities' has 6 rows for 2 events"):
        encoder.encode({"probabilities": np.zeros((6, 1))}, np.zeros(2, int), np.zeros(2, int), np.zeros(2, int))
