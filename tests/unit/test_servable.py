"""A servable scores columns of events by output name, any number of rows, until it is closed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from modelcast.consumer.binding import Binding
from modelcast.consumer.probe import memory_allowed
from modelcast.consumer.servable import MAX_RUN_ROWS, MAX_RUN_VALUES, SHORT_S, Servable, memory_need
from modelcast.errors import BindingError, LoadError, OutOfMemoryError
from modelcast.records import DType, FileEntry, LoadProbe, OutputSpec, Signature
from modelcast.runtime import Array, TensorInfo

from .registry_records import SIGNATURE, manifest


class SumSession:
    """Adds the columns of `x`, and remembers the batches it saw."""

    inputs = (TensorInfo("x", "float32", (None, 2)),)
    outputs = (TensorInfo("score", "float32", (None,)),)
    device = "cpu"
    buckets = ()

    def __init__(self, *, lost_rows: int = 0) -> None:
        self.batches: list[int] = []
        self._lost_rows = lost_rows

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        assert outputs == ["score"]
        self.batches.append(len(feeds["x"]))
        return [feeds["x"].sum(axis=1)[self._lost_rows :]]


def servable(session: SumSession, **kwargs: object) -> Servable:
    return Servable(manifest(3), Binding(SIGNATURE), session, **kwargs)


def columns(rows: int) -> dict[str, Array]:
    return {"amount": np.arange(rows, dtype=np.float32), "age": np.ones(rows, np.float32)}


def test_columns_become_outputs_by_name() -> None:
    outputs = servable(SumSession()).run(columns(3))
    np.testing.assert_array_equal(outputs["score"], np.float32([1, 2, 3]))


def test_large_batches_are_run_in_parts_in_order() -> None:
    session = SumSession()
    rows = MAX_RUN_ROWS * 2 + 5
    outputs = servable(session).run(columns(rows))
    assert session.batches == [MAX_RUN_ROWS, MAX_RUN_ROWS, 5]
    np.testing.assert_array_equal(outputs["score"], np.arange(rows, dtype=np.float32) + 1)


def test_batches_of_large_rows_are_run_in_parts_of_as_many_values() -> None:
    session = SumSession()
    wide = MAX_RUN_VALUES // 100
    servable(session).run_feeds({"x": np.zeros((250, wide), np.float32)})
    assert session.batches == [100, 100, 50]


def test_no_rows_give_empty_outputs_without_a_run() -> None:
    session = SumSession()
    wide = Signature(SIGNATURE.inputs, (OutputSpec.named("p", DType.FLOAT32, (None, 3)),
                                        OutputSpec.named("s", DType.STRING, (None,))))  # fmt: skip
    empty = Servable(replace(manifest(1), signature=wide), Binding(wide), session).run(columns(0))
    assert (empty["p"].shape, empty["s"].dtype, session.batches) == ((0, 3), object, [])


def test_an_output_of_another_number_of_rows_is_refused() -> None:
    with pytest.raises(LoadError, match=r"output 'score' of fraud@3 has shape \[4\] for 5 rows"):
        servable(SumSession(lost_rows=1)).run(columns(5))


class SmallMemorySession(SumSession):
    """Has memory for so many rows at once."""

    def __init__(self, fits: int) -> None:
        super().__init__()
        self.fits = fits

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> list[Array]:
        if len(feeds["x"]) > self.fits:
            raise OutOfMemoryError("there is not enough memory on cuda:0")
        return super().run(feeds, outputs)


def test_batches_are_run_in_smaller_parts_while_memory_is_short(caplog: pytest.LogCaptureFixture) -> None:
    session = SmallMemorySession(fits=30)
    now_s = 100.0
    short = servable(session, clock=lambda: now_s)
    for _ in range(2):
        np.testing.assert_array_equal(short.run(columns(100))["score"], np.arange(100, dtype=np.float32) + 1)
    assert session.batches == [25, 25, 25, 25] * 2
    assert [record.message.split(":")[0] for record in caplog.records] == [
        f"fraud@3 runs in smaller parts for {SHORT_S:g} s"
    ]
    session.fits, now_s = 100, now_s + SHORT_S
    short.run(columns(100))
    assert session.batches[8:] == [100]


def test_no_memory_for_one_row_is_said() -> None:
    with pytest.raises(OutOfMemoryError):
        servable(SmallMemorySession(fits=0)).run(columns(3))


def test_columns_that_do_not_fit_are_refused_by_field() -> None:
    with pytest.raises(BindingError, match="'age' is missing"):
        servable(SumSession()).run({"amount": np.zeros(1, np.float32)})


def test_closing_releases_once_and_ends_running() -> None:
    released: list[bool] = []
    closing = servable(SumSession(), release=lambda: released.append(True))
    closing.close()
    closing.close()
    assert released == [True]
    with pytest.raises(RuntimeError, match="fraud@3 was closed"):
        closing.run(columns(1))


def test_a_version_needs_what_was_measured_within_what_can_be_true() -> None:
    files = (FileEntry("model.onnx", 100 << 20, "sha256:" + "1" * 64), FileEntry("examples.npz", 1 << 20, "sha256:e"))
    unmeasured = replace(manifest(1), files=files)
    assert memory_need(unmeasured) > 200 << 20

    def need(peak_bytes: int) -> int:
        return memory_need(replace(unmeasured, probe=LoadProbe(1.0, 1.0, peak_bytes)))

    process = 60 << 20
    assert 300 << 20 < need(process + (300 << 20)) < 310 << 20
    assert 100 << 20 < need(process) < 110 << 20  # files are mapped whatever a measurement says
    assert need(1 << 60) < memory_allowed(unmeasured.size_bytes) + (10 << 20)
    assert servable(SumSession()).memory_bytes == memory_need(manifest(3))
