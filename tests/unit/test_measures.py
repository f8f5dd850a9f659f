"""Which output is measured, what kind of task it is, and what scikit-learn says of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as of

from modelcast.errors import UsageError
from modelcast.publisher.measures import VALUE_METRICS, Choice, choose, measure
from modelcast.records import DType, OutputSpec

FLOAT, INT, TEXT = DType.FLOAT32, DType.INT64, DType.STRING


def spec(name: str, dtype: DType = FLOAT, *sizes: int) -> OutputSpec:
    return OutputSpec.named(name, dtype, (None, *sizes))


def texts(*values: str) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@pytest.mark.parametrize(
    ("outputs", "named", "chosen"),
    [
        ([spec("variable", FLOAT, 1)], None, Choice("variable", None)),
        ([spec("label", INT), spec("probabilities", FLOAT, 2)], None, Choice("probabilities", "label")),
        ([spec("label", TEXT), spec("scores", FLOAT, 3)], None, Choice("scores", "label")),
        ([spec("hidden", FLOAT, 8), spec("output_probability", FLOAT, 2)], None, Choice("output_probability", None)),
        ([spec("hidden", FLOAT, 8), spec("score")], "score", Choice("score", None)),
        ([spec("a-b")], "a_b", Choice("a-b", None)),  # by the name a prediction gives it
        ([spec("segment", INT), spec("distances", FLOAT, 4)], "segment", Choice(None, "segment")),
        ([spec("label", INT)], None, Choice(None, "label")),
        ([spec("tag", INT), spec("my_label", INT), spec("p")], None, Choice("p", "my_label")),
    ],
)
def test_the_measured_output_is_chosen_by_rule(outputs: list[OutputSpec], named: str | None, chosen: Choice) -> None:
    assert choose(outputs, named) == chosen


def test_what_no_rule_decides_is_asked_for() -> None:
    with pytest.raises(UsageError, match="'a' .float32., 'b' .float32.") as refused:
        choose([spec("a"), spec("b")], None)
    assert "--score-output" in (refused.value.hint or "")
    with pytest.raises(UsageError, match="no output 'c'; it has 'a'"):
        choose([spec("a")], "c")


def test_two_classes_are_measured_as_scikit_learn_does() -> None:
    random = np.random.default_rng(1)
    truth = random.integers(0, 2, 500)
    positive = np.clip(truth * 0.3 + random.random(500) * 0.7, 0.01, 0.99)
    both = np.stack([1 - positive, positive], axis=1).astype(np.float32)
    meant = (both[:, 1] >= 0.5).astype(np.int64)
    found = measure(truth, both, meant)
    assert found.metrics == pytest.approx(
        {
            "auc": of.roc_auc_score(truth, positive),
            "accuracy": of.accuracy_score(truth, meant),
            "f1": of.f1_score(truth, meant),
            "precision": of.precision_score(truth, meant),
            "recall": of.recall_score(truth, meant),
            "log_loss": of.log_loss(truth, positive),
        },
        abs=1e-6,
    )
    assert set(found.missing) == set(VALUE_METRICS)
    # The same as a single probability, without labels of the model's own, with other kinds of labels.
    for labels in (truth, truth.astype(bool), truth.astype(np.float64)):
        for scores in (positive, positive[:, None], both):
            assert measure(labels, scores, None).metrics == pytest.approx(found.metrics, abs=1e-6)


def test_of_two_texts_the_larger_is_positive() -> None:
    truth, meant = texts("no", "yes", "no", "yes"), texts("no", "yes", "yes", "yes")
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]])
    found = measure(truth, scores, meant).metrics
    assert (found["auc"], found["recall"], found["precision"]) == (1.0, 1.0, pytest.approx(2 / 3))


def test_more_classes_are_averaged() -> None:
    random = np.random.default_rng(2)
    truth = random.integers(1, 4, 300)  # numbered from one, as people do
    scores = random.random((300, 3)) + np.eye(3)[truth - 1]
    scores /= scores.sum(axis=1, keepdims=True)
    meant = scores.argmax(axis=1) + 1
    found = measure(truth, scores.astype(np.float32), meant).metrics
    assert found["auc"] == pytest.approx(of.roc_auc_score(truth, scores, multi_class="ovr"), abs=1e-6)
    assert found["f1"] == pytest.approx(of.f1_score(truth, meant, average="macro"))
    assert found["log_loss"] == pytest.approx(of.log_loss(truth, scores), abs=1e-5)


def test_scores_that_are_no_probabilities_have_no_log_loss() -> None:
    truth = np.array([0, 1, 0, 1])
    found = measure(truth, np.array([-2.0, 1.5, 0.3, 4.0]), None)
    assert found.metrics == {"auc": 1.0}
    assert "no probabilities" in found.missing["log_loss"]
    assert "says nothing of labels" in found.missing["accuracy"]
    logits = np.array([[1.0, -1.0, 0.0], [0.0, 5.0, 1.0], [0.0, 0.0, 9.0], [3.0, 0.0, 1.0]])
    found = measure(np.array([0, 1, 2, 0]), logits, None)
    assert found.metrics["accuracy"] == 1.0
    assert "no probabilities" in found.missing["auc"]


def test_probabilities_a_digit_beyond_one_are_probabilities() -> None:
    truth = np.array([0, 1, 0, 1])
    scores = np.array([[1.0000001, -1e-8], [0, 1.0000001], [0.7, 0.3], [0.4, 0.6]], np.float32)
    assert measure(truth, scores, None).metrics["log_loss"] == pytest.approx(0.2169, abs=1e-3)


def test_one_class_alone_has_no_auc_and_says_why() -> None:
    found = measure(np.zeros(4, np.int64), np.array([[0.6, 0.4]] * 4), np.zeros(4, np.int64))
    assert found.metrics["accuracy"] == 1.0
    assert found.missing["auc"] == "of 2 classes the data have 1 only"


def test_columns_that_can_not_be_told_apart_are_not_guessed() -> None:
    # Classes 1, 2 and 3, of which only two occur: the columns are not 0, 1 and 2.
    truth = np.array([1, 2, 1, 2])
    scores = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]] * 2)
    found = measure(truth, scores, truth)
    assert found.metrics["accuracy"] == 1.0
    assert "auc" not in found.metrics
    assert "own label in 0% of the rows" in found.missing["auc"]
    found = measure(texts("a", "b", "a", "b"), scores, None)
    assert "2 classes in the data, and scores for 3" in found.missing["accuracy"]


def test_values_are_measured_as_a_regression() -> None:
    truth, given = np.array([1.5, 2.0, 3.25]), np.array([[1.0], [2.0], [4.0]], np.float32)
    found = measure(truth, given, None)
    assert found.metrics == pytest.approx(
        {
            "rmse": of.root_mean_squared_error(truth, given),
            "mae": of.mean_absolute_error(truth, given),
            "r2": of.r2_score(truth, given),
        }
    )
    assert found.missing["auc"] == "the labels are values, not classes"
    assert "r2" in measure(truth[:1], given[:1], None).missing


def test_counts_are_values_if_the_model_gives_no_labels() -> None:
    assert "rmse" in measure(np.array([3, 7, 12]), np.array([2.5, 8.0, 11.0]), None).metrics


def test_labels_of_another_kind_than_the_models_are_refused() -> None:
    with pytest.raises(UsageError, match=r"are texts such as 'yes', those of the model numbers such as 1"):
        measure(texts("yes", "no"), np.array([[0.1, 0.9], [0.9, 0.1]]), np.array([1, 0]))
    with pytest.raises(UsageError, match=r"values such as 1\.5, and the measured output has 2 columns"):
        measure(np.array([1.5, 2.5]), np.array([[0.1, 0.9], [0.9, 0.1]]), None)
