"""Parity: every output is compared, the worst row is named, and only ties may differ."""

from __future__ import annotations

import numpy as np
import pytest

from modelcast.errors import ParityError
from modelcast.publisher.parity import Expected, check


def test_float32_results_agree_with_float64_ones() -> None:
    want = np.random.default_rng(0).normal(size=(50, 3))
    check(Expected({"y": want}), {"y": want.astype(np.float32)})


def test_sums_that_cancel_are_judged_by_the_size_of_the_output() -> None:
    want = np.array([1e6, 1e-3])
    check(Expected({"y": want}), {"y": (want + np.array([0, 0.5])).astype(np.float32)})
    with pytest.raises(ParityError):
        check(Expected({"y": want[1:]}), {"y": (want[1:] + 0.5).astype(np.float32)})


def test_the_worst_row_is_named_with_both_values() -> None:
    with pytest.raises(ParityError, match=r"output 'p', row 2 .*original 0\.5, graph 0\.75 \(2 of 3 rows disagree\)"):
        check(Expected({"p": np.array([0.1, 0.2, 0.5])}), {"p": np.float32([0.1, 0.25, 0.75])})


def test_an_output_the_original_knows_nothing_of_is_refused() -> None:
    with pytest.raises(ParityError, match="nothing to compare output 'z' with"):
        check(Expected({"y": np.zeros(1)}), {"y": np.zeros(1), "z": np.zeros(1)})


def test_columns_and_rows_of_one_value_compare() -> None:
    check(Expected({"y": np.array([1.0, 2.0])}), {"y": np.float32([[1.0], [2.0]])})


def test_one_decision_value_may_come_as_two() -> None:
    check(Expected({"y": np.array([1.0, -2.0])}), {"y": np.float32([[-1.0, 1.0], [2.0, -2.0]])})
    with pytest.raises(ParityError):
        check(Expected({"y": np.array([1.0, -2.0])}), {"y": np.float32([[1.0, -1.0], [-2.0, 2.0]])})


def test_labels_of_any_kind_compare() -> None:
    check(Expected({"a": np.array(["x", "y"])}), {"a": np.array(["x", "y"], dtype=object)})
    check(Expected({"a": np.array([True, False])}), {"a": np.array([1, 0])})
    check(Expected({"a": np.array([2.0, 3.0])}), {"a": np.array([2, 3])})
    with pytest.raises(ParityError, match="original x, graph y"):
        check(Expected({"a": np.array(["x"])}), {"a": np.array(["y"], dtype=object)})


def test_labels_may_differ_on_ties_only() -> None:
    want, got = np.array([0, 1, 0]), np.array([1, 1, 0])
    check(Expected({"a": want}, {"a": np.array([True, False, False])}), {"a": got})
    with pytest.raises(ParityError, match="row 0"):
        check(Expected({"a": want}, {"a": np.array([False, True, True])}), {"a": got})


@pytest.mark.parametrize("want", [np.zeros((2, 3)), np.zeros(3), np.array(["a", "b"])])
def test_other_shapes_and_types_are_told(want: np.ndarray) -> None:
    with pytest.raises(ParityError, match="output 'y'"):
        check(Expected({"y": want}), {"y": np.zeros(2, np.float32)})
