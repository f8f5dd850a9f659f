"""Batches through bound buffers give what plain runs give, whatever their size, shapes and types."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from modelcast.errors import LoadError
from modelcast.runtime.device import Device
from modelcast.runtime.iobinding import BUCKETS, LANES, MAX_BUCKET_ROWS, MAX_PADDING, SMALL_ROWS, BoundSession, parts
from modelcast.runtime.session import PlainSession
from modelcast.runtime.tensors import Array

FLOAT, STRING = TensorProto.FLOAT, TensorProto.STRING
Tensors = Sequence[tuple[str, int, list[object]]]


def sessions(nodes: Sequence[object], inputs: Tensors, outputs: Tensors) -> tuple[PlainSession, BoundSession]:
    """The same graph, run plainly and through buffers."""
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(*entry) for entry in outputs],
    )
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
    native = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    plain = PlainSession(native, Device())
    return plain, BoundSession(onnxruntime, plain, native, Device())


def two_inputs() -> tuple[PlainSession, BoundSession]:
    """A matrix and a column to a column, a matrix and integers."""
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["scaled"]),
        helper.make_node("ReduceMax", ["scaled"], ["total"], axes=[1], keepdims=0),
        helper.make_node("Cast", ["scaled"], ["whole"], to=TensorProto.INT64),
    ]
    return sessions(
        nodes,
        [("x", FLOAT, ["N", 3]), ("w", FLOAT, ["N", 1])],
        [("total", FLOAT, ["N"]), ("scaled", FLOAT, ["N", 3]), ("whole", TensorProto.INT64, ["N", 3])],
    )


def feeds(rows: int, seed: int = 0) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {name: random.normal(0, 9, (rows, width)).astype(np.float32) for name, width in (("x", 3), ("w", 1))}


def assert_same(got: Sequence[Array], want: Sequence[Array]) -> None:
    assert [(array.dtype, array.shape) for array in got] == [(array.dtype, array.shape) for array in want]
    for one, other in zip(got, want, strict=True):
        np.testing.assert_array_equal(one, other)


@given(st.integers(1, 5 * MAX_BUCKET_ROWS))
def test_parts_cover_a_batch_in_buckets_with_little_padding(rows: int) -> None:
    found = parts(rows)
    assert sum(count for count, _ in found) == rows
    for count, bucket in found:
        assert bucket in BUCKETS
        assert 0 < count <= bucket
        assert bucket <= SMALL_ROWS or bucket - count <= bucket * MAX_PADDING
    assert len(found) <= rows // MAX_BUCKET_ROWS + len(BUCKETS)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 700), min_size=1, max_size=8))
def test_batches_of_any_sizes_one_after_the_other_give_what_plain_runs_give(sizes: list[int]) -> None:
    plain, bound = two_inputs()
    kept = []
    for seed, rows in enumerate(sizes):
        batch = feeds(rows, seed)
        got = bound.run(batch)
        assert_same(got, plain.run(batch))
        kept.append((got, [array.copy() for array in got]))
    for got, copies in kept:
        assert_same(got, copies)  # no later run wrote into what an earlier one handed back


@pytest.mark.parametrize("rows", [1, 4, 5, 256, 300, 1024])
def test_outputs_can_be_named_in_any_order(rows: int) -> None:
    plain, bound = two_inputs()
    batch = feeds(rows)
    assert_same(bound.run(batch, ["whole", "total"]), plain.run(batch, ["whole", "total"]))
    assert_same(bound.run(batch, ["scaled"]), plain.run(batch, ["scaled"]))


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"],
)
def test_every_type_with_a_numpy_name_is_bound(dtype: str) -> None:
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)]
    plain, bound = sessions(nodes, [("x", element, ["N", 2])], [("y", element, ["N", 4])])
    assert bound.buckets == BUCKETS
    for rows in (3, 4, 3):
        batch = {"x": np.random.default_rng(rows).integers(0, 2, (rows, 2)).astype(dtype)}
        assert_same(bound.run(batch), plain.run(batch))


def test_strings_are_run_plainly() -> None:
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    _, bound = sessions(nodes, [("x", STRING, ["N"])], [("y", STRING, ["N"])])
    assert bound.buckets == ()
    assert bound.run({"x": np.array(["a", "b", "c"], object)})[0].tolist() == ["a", "b", "c"]


def test_outputs_whose_shape_the_graph_does_not_say_are_allocated_by_each_run() -> None:
    nodes = [helper.make_node("Concat", ["x", "x"], ["y"], axis=1)]
    plain, bound = sessions(nodes, [("x", FLOAT, ["N", "W"])], [("y", FLOAT, ["N", "V"])])
    for rows, width in ((3, 2), (4, 2), (3, 7), (4, 1)):
        batch = {"x": np.random.default_rng(rows).random((rows, width), np.float32)}
        assert_same(bound.run(batch), plain.run(batch))


def test_arrays_in_any_memory_order_are_bound() -> None:
    plain, bound = two_inputs()
    batch = {"x": np.asfortranarray(feeds(4)["x"]), "w": feeds(8)["w"][::2]}
    contiguous = {name: np.ascontiguousarray(array) for name, array in batch.items()}
    assert_same(bound.run(batch), plain.run(contiguous))


def test_what_does_not_fit_the_graph_fails_as_a_plain_run_does() -> None:
    plain, bound = two_inputs()
    good = feeds(4)
    for bad in (
        {"x": good["x"]},
        {**good, "x": good["x"].astype(np.float64)},
        {**good, "w": good["w"][:3]},
        {**good, "x": good["x"][:, :2]},
    ):
        with pytest.raises(LoadError) as want:
            plain.run(bad)
        with pytest.raises(LoadError) as got:
            bound.run(bad)
        assert type(got.value) is type(want.value)
        assert_same(bound.run(good), plain.run(good))  # and leaves nothing behind


def test_an_output_that_is_not_per_row_is_refused() -> None:
    nodes = [helper.make_node("ReduceMax", ["x"], ["y"], axes=[0], keepdims=1)]
    _, bound = sessions(nodes, [("x", FLOAT, ["N", 2])], [("y", FLOAT, [1, 2])])
    with pytest.raises(LoadError, match=r"output 'y' has shape \[1, 2\] for 4 rows"):
        bound.run({"x": np.ones((3, 2), np.float32)})


def test_threads_share_a_session_and_no_buffers() -> None:
    plain, bound = two_inputs()
    batches = [feeds(rows, seed) for seed, rows in enumerate([3, 64, 300, 5, 1, 200, 7, 33] * 8)]
    barrier = threading.Barrier(LANES + 2)

    def work(numbers: range) -> None:
        barrier.wait(60)
        for number in numbers:
            assert_same(bound.run(batches[number]), plain.run(batches[number]))

    with ThreadPoolExecutor(LANES + 2) as pool:
        for done in [pool.submit(work, range(first, len(batches), LANES + 2)) for first in range(LANES + 2)]:
            done.result(60)
    assert bound._lanes.qsize() == LANES
