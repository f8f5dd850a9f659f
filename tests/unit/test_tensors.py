"""A field may hold the whole row of an input: how such rows are given, bound, published and predicted on."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import polars as pl
import pytest
from onnx import TensorProto

from modelcast.consumer.binding import Binding, EventFields
from modelcast.consumer.event_fields import event_fields, json_said
from modelcast.consumer.rows import columns_of
from modelcast.errors import BindingError, ModelcastError, StructureError, UsageError
from modelcast.publisher import examples
from modelcast.publisher.prepare import PreparedModel, prepare
from modelcast.records import DType, InputBinding, OutputSpec, Signature
from modelcast.runtime import TensorInfo
from modelcast.tensors import FieldSpec, from_base64, is_row, stack

from .image_models import SIDE, conv_net, digit_classifier, digits

IMAGE = FieldSpec("image", DType.UINT8, (2, 3))
ROWS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


@pytest.mark.parametrize(
    ("dtype", "shape", "said"),
    [
        (DType.UINT8, (), "every size"),
        (DType.UINT8, (None, 3), "every size"),
        (DType.UINT8, (0,), "every size"),
        (DType.STRING, (3,), "no form as bytes"),
        (DType.BOOL, (3,), "no form as bytes"),
        (DType.FLOAT64, (1 << 40,), "at most"),
    ],
)
def test_a_row_that_no_event_could_hold_is_refused(dtype: DType, shape: tuple[int | None, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FieldSpec("x", dtype, shape)
    if shape:
        with pytest.raises(BindingError, match="input 'x'"):
            Binding(Signature((InputBinding("x", dtype, (None, *shape), ("a",)),), ()))


@pytest.mark.parametrize(
    ("shape", "wanted", "fits"),
    [
        ((2, 3), (2, 3), True),
        ((6,), (2, 3), True),
        ((2, 3), (6,), True),
        ((2, 3), (2, 3, 1), True),
        ((2, 3, 1), (1, 2, 3), True),
        ((3, 2), (2, 3), False),
        ((8, 8, 3), (3, 8, 8), False),  # channels last for channels first: as many values of another image
        ((5,), (2, 3), False),
    ],
)
def test_sizes_of_one_and_flat_rows_may_differ_and_nothing_else(
    shape: tuple[int, ...], wanted: tuple[int, ...], fits: bool
) -> None:
    assert is_row(shape, FieldSpec("x", DType.UINT8, wanted)) == fits


FORMS: dict[str, Callable[[], Any]] = {
    "array": lambda: ROWS,
    "flat array": lambda: ROWS.reshape(2, 6),
    "wider integers": lambda: ROWS.astype(np.int64),
    "bytes": lambda: [row.tobytes() for row in ROWS],
    "base64": lambda: [base64.b64encode(row.tobytes()).decode() for row in ROWS],
    "nested lists": ROWS.tolist,
    "flat lists": lambda: ROWS.reshape(2, 6).tolist(),
    "list of arrays": lambda: list(ROWS),
    "mixed": lambda: [ROWS[0].tobytes(), ROWS[1].tolist()],
    "objects": lambda: np.array([row.tobytes() for row in ROWS] + [None], object)[:2],
    "Polars bytes": lambda: pl.Series([row.tobytes() for row in ROWS]),
    "Polars lists": lambda: pl.Series(ROWS.reshape(2, 6).tolist()),
    "Polars arrays": lambda: pl.Series(ROWS, dtype=pl.Array(pl.UInt8, (2, 3))),
    "pandas bytes": lambda: pd.Series([row.tobytes() for row in ROWS]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_same_rows_predicts_the_same(form: str) -> None:
    binding = Binding(Signature((InputBinding("x", DType.UINT8, (None, 2, 3), ("image",)),), ()))
    given = FORMS[form]()
    feeds = binding.feeds(columns_of({"image": given}, binding.specs))
    np.testing.assert_array_equal(feeds["x"], ROWS)
    assert feeds["x"].dtype == np.uint8
    records = [{"image": row} for row in (given if isinstance(given, (list, np.ndarray)) else given.to_list())]
    np.testing.assert_array_equal(binding.feeds(columns_of(records, binding.specs))["x"], ROWS)


def test_one_row_alone_counts_for_every_row() -> None:
    specs = (IMAGE, FieldSpec("id", DType.INT64))
    for one in (ROWS[0], ROWS[0].tobytes()):
        columns = columns_of({"image": one, "id": [1, 2, 3]}, specs)
        assert columns["image"].shape == (3, 2, 3)
        assert columns_of({"image": one}, (IMAGE,))["image"].shape == (1, 2, 3)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0].tobytes(), b"abc"], "'image' has 3 bytes in row 1, the model needs uint8"),
        ([ROWS[0].tobytes(), None], "'image' is null in row 1"),
        ([ROWS[0].tobytes(), "no base64"], "text that is no base64 in row 1"),
        ([[1, 2, 3]], r"shape \[3\] in row 0"),
        ([[[1, 2], [3]]], "in row 0"),
        ([[True] * 6], "in row 0"),
        (np.zeros((2, 3, 2)), r"shape \[2, 3, 2\]"),
        (np.zeros(2), r"shape \[2\]"),
        (pl.Series([b"abcdef", None]), "null in 1 rows"),
        ([[1, 2, 3, 4, 5, 256]], "no uint8"),
        ([[1.5] * 6], "array of float64"),
    ],
)
def test_a_row_that_is_none_is_named(rows: Any, said: str) -> None:
    binding = Binding(Signature((InputBinding("x", DType.UINT8, (None, 2, 3), ("image",)),), ()))
    with pytest.raises(BindingError, match=said):
        binding.feeds(columns_of({"image": rows}, binding.specs))


def test_no_rows_are_no_rows() -> None:
    assert stack([], IMAGE).shape == (0, 2, 3)
    assert from_base64("") == b""


@pytest.mark.parametrize("text", ["AAAA=", "AAAA====", "A===", "AAA", "AA=A", "AAAA\n", "é==="])
def test_text_padded_otherwise_than_base64_is_none(text: str) -> None:
    assert from_base64(text) is None
    assert from_base64(text.encode()) is None


KINDS = ["bytes", "fixed", "string", "array of int", "array of long", "array of float", "array of double"]


@pytest.mark.parametrize("dtype", [DType.UINT8, DType.FLOAT32])
def test_fields_that_can_hold_rows_bind(dtype: DType) -> None:
    bound = Binding(Signature((InputBinding("x", dtype, (None, 2, 3), ("image",)),), ()))
    for kind in [*KINDS, "int", "double", "enum", "boolean", "other"]:
        fields = EventFields({"image": kind}, "the schema")
        if kind in KINDS and not (dtype is DType.UINT8 and kind in ("array of float", "array of double")):
            bound.check(fields)
        else:
            with pytest.raises(BindingError, match=rf"'image' is {kind}, the model needs {dtype}\[2, 3\]"):
                bound.check(fields)


def test_json_events_tell_that_they_hold_arrays() -> None:
    samples = [b'{"a":[1,2],"b":[1,2.5],"c":["x",1],"d":[],"e":[null,1],"f":[[1],[2]]}', b'{"a":[1.5,2]}']
    found = event_fields(samples, json_said, "t")
    assert found is not None
    assert found.kinds == {
        "a": "array of double", "b": "array of double", "c": "other", "d": "other", "e": "array of long",
        "f": "array of array of long",
    }  # fmt: skip


def test_one_field_is_one_tensor_or_one_value() -> None:
    one = InputBinding("x", DType.UINT8, (None, 2, 3), ("a",))
    assert Binding(Signature((one, InputBinding("y", DType.UINT8, (None, 2, 3), ("a",))), ())).specs == (
        FieldSpec("a", DType.UINT8, (2, 3)),
    )
    for other in (
        InputBinding("y", DType.UINT8, (None, 3, 2), ("a",)),
        InputBinding("y", DType.FLOAT32, (None, 2, 3), ("a",)),
        InputBinding("y", DType.UINT8, (None,), ("a",)),
    ):
        with pytest.raises(BindingError, match="'a' feeds both"):
            Binding(Signature((one, other), ()))


def test_an_output_no_prediction_can_hold_is_refused_where_it_would_run() -> None:
    with pytest.raises(BindingError, match="'mask' is uint8"):
        Binding(Signature((), (OutputSpec.named("mask", DType.UINT8, (None,)),)))


def published(source: Any, rows: Any, folder: Path, **options: Any) -> PreparedModel:
    folder.mkdir(exist_ok=True)
    return prepare(source, rows, directory=folder, **options)


def image_forms(folder: Path) -> dict[str, Any]:
    images = digits()[0][:40, :, :, None]
    octets = pl.DataFrame({"image": [image.tobytes() for image in images]})
    lists = pl.DataFrame({"image": images.reshape(40, -1).tolist()})
    octets.write_parquet(folder / "octets.parquet")
    lists.write_parquet(folder / "lists.parquet")
    lists.write_ndjson(folder / "lists.jsonl")
    np.savez(folder / "arrays.npz", image=images)
    return {
        "npz": folder / "arrays.npz",
        "Parquet of bytes": folder / "octets.parquet",
        "Parquet of lists": folder / "lists.parquet",
        "JSON lines": folder / "lists.jsonl",
        "array": {"image": images},
        "without channels": {"image": images[..., 0]},
        "dicts": [{"image": image} for image in images],
        "dicts of bytes": [{"image": image.tobytes()} for image in images],
        "pandas": pd.DataFrame({"image": [image.tobytes() for image in images]}),
    }


def test_every_form_of_examples_feeds_the_same_images(tmp_path: Path) -> None:
    taken = TensorInfo("image", "uint8", (None, SIDE, SIDE, 1))
    for form, source in image_forms(tmp_path).items():
        rows = examples.read(source)
        (bound,) = examples.bind([taken], rows, None)
        assert bound == InputBinding("image", DType.UINT8, (None, SIDE, SIDE, 1), ("image",)), form
        fed = examples.feeds([bound], rows)["image"]
        assert fed.dtype == np.uint8, form
        np.testing.assert_array_equal(fed, digits()[0][:40, :, :, None], err_msg=form)


def test_a_field_of_another_name_may_hold_the_rows(tmp_path: Path) -> None:
    scans = pl.DataFrame({"scan": [image.tobytes() for image in digits()[0][:20]]})
    prepared = published(conv_net(), scans, tmp_path, fields=["scan"])
    assert prepared.signature.inputs[0].fields == ("scan",)


def test_sizes_the_graph_leaves_open_come_from_the_examples(tmp_path: Path) -> None:
    prepared = published(conv_net(open_sizes=True), {"image": digits()[0][:20, :, :, None]}, tmp_path)
    assert prepared.signature.inputs[0].shape == (None, SIDE, SIDE, 1)
    with pytest.raises(StructureError, match="leaves open how large a row is"):
        published(conv_net(open_sizes=True), {"image": [bytes(64)] * 20}, tmp_path / "open")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"image": [bytes(63)] * 20}, BindingError, "63 bytes in row 0"),
        ({"image": [bytes(64)] * 19 + [None]}, BindingError, "null in row 19"),
        ({"image": np.zeros((20, 8, 9, 1))}, BindingError, r"shape \[20, 8, 9, 1\]"),
        ({"image": np.full((20, 64), 256)}, BindingError, "beyond uint8"),
        ({"image": np.full((20, 64), 0.5)}, BindingError, "floats, and the model takes uint8"),
        ({"image": ["x"] * 20}, BindingError, "no base64 in row 0"),
        ({"other": np.zeros((20, 64))}, BindingError, "no field of the examples matches input 'image'"),
    ],
)
def test_examples_that_are_no_rows_are_refused(given: Any, error: type[ModelcastError], said: str) -> None:
    rows = examples.read(given)
    with pytest.raises(error, match=said):
        examples.feeds(examples.bind([TensorInfo("image", "uint8", (None, SIDE, SIDE, 1))], rows, None), rows)


def test_digits_learned_as_numbers_are_scored_from_bytes(tmp_path: Path) -> None:
    images, _ = digits()
    model = digit_classifier()
    prepared = published(model, {"pixels": images[:200]}, tmp_path, fields=["pixels"])
    (taken,) = prepared.signature.inputs
    assert (taken.dtype, taken.shape, taken.fields) == (DType.UINT8, (None, SIDE, SIDE), ("pixels",))
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    outputs = dict(zip([one.name for one in session.get_outputs()], session.run(None, {"pixels": images}), strict=True))
    labels = outputs["label"].reshape(-1)
    np.testing.assert_array_equal(labels, model.predict(images.reshape(-1, SIDE * SIDE)))


def test_a_matrix_of_bytes_is_columns_until_one_field_is_named_for_it(tmp_path: Path) -> None:
    flat = digits()[0][:50].reshape(50, -1)
    with pytest.raises(UsageError, match="or the one field that holds a whole row"):
        published(digit_classifier(), {"pixels": flat}, tmp_path)
    prepared = published(digit_classifier(), {"pixels": flat}, tmp_path, fields=["pixels"])
    assert prepared.signature.inputs[0].shape == (None, 64)
    columns = published(digit_classifier(), {"X": flat}, tmp_path / "columns", fields=[f"p{n}" for n in range(64)])
    assert len(columns.signature.inputs[0].fields) == 64


def test_float_images_keep_their_type(tmp_path: Path) -> None:
    images = digits()[0][:20, :, :, None] / 16
    prepared = published(conv_net(TensorProto.FLOAT), {"image": images}, tmp_path)
    assert prepared.signature.inputs[0].dtype is DType.FLOAT32
