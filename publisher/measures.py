"""What labels say of a model's outputs. Pure: arrays in, metrics by name out; the formulas are scikit-learn's.

Which output is measured (`choose`):
- The scores are the output named by the caller; else the only output of floats; else the only one with `prob` in its
  name. The labels a model gives itself are its only `[N]` output of texts, integers or booleans, else the only one of
  those with `label` in its name.

What kind of task it is (`measure`):
- True labels that are texts or booleans are classes. Whole numbers are classes if the model gives labels itself or a
  score for each of several classes, or if they are 0 and 1 only. All other numbers are values of a regression.
- Columns of scores `[N, K]` are the classes in order (as scikit-learn sorts them), if there are K of them in the data
  and in the model's own labels, or else the numbers 0 … K-1. Of `[N, 2]`, column 1 is the score of the positive class,
  as the larger of two classes always is.
- Without labels of its own a model is taken to mean the class of the highest score; a single score between 0 and 1, the
  positive class from 0.5.

What is measured: of two classes `auc`, `accuracy`, `f1`, `log_loss`, `precision`, `recall`; of more the same, averaged
over the classes (auc: one against the rest); of a regression `rmse`, `mae`, `r2`. What makes no sense for the given
data is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelcast.errors import MissingExtraError, UsageError
from modelcast.records import DType, OutputSpec

Array = npt.NDArray[Any]

CLASS_METRICS: Final = ("auc", "accuracy", "f1", "log_loss", "precision", "recall")
VALUE_METRICS: Final = ("mae", "r2", "rmse")

_FLOATS = (DType.FLOAT32, DType.FLOAT64)
# Scores of a row are probabilities if they sum to one; those of float32 do within some digits.
_SUM_TOLERANCE = 1e-3
# … and one of them may be beyond 0 or 1 by a digit.
_EDGE_TOLERANCE = 1e-5
# A model's own labels are those of its highest scores but for ties and calibrated classifiers (an SVM's may differ).
_MIN_AGREEMENT = 0.9
_POSITIVE_FROM = 0.5
_OUTPUT_HINT = "Name the output to be measured: --score-output NAME (from Python: score_output=...)."


@dataclass(frozen=True, slots=True)
class Choice:
    """The outputs to be measured; at least one is there."""

    scores: str | None
    labels: str | None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.scores, self.labels) if name is not None)


@dataclass(frozen=True, slots=True)
class Measured:
    """Metrics by name, all finite; and why others could not be measured."""

    metrics: Mapping[str, float]
    missing: Mapping[str, str] = field(default_factory=dict)


def choose(outputs: Sequence[OutputSpec], named: str | None) -> Choice:
    """Which outputs are measured; see above.

    Args:
        named: The ONNX or Avro name of an output, if the caller named one.

    Raises:
        UsageError: There is no such output, or nothing says which it is.
    """
    labels = [spec.name for spec in outputs if spec.dtype not in _FLOATS and spec.is_scalar]
    own = labels[0] if len(labels) == 1 else _only(labels, "label")
    if named is not None:
        spec = next((spec for spec in outputs if named in (spec.name, spec.field)), None)
        if spec is None:
            raise UsageError(f"the model has no output {named!r}; it has {_listed(outputs)}", hint=_OUTPUT_HINT)
        return Choice(spec.name, own) if spec.dtype in _FLOATS else Choice(None, spec.name)
    floats = [spec.name for spec in outputs if spec.dtype in _FLOATS]
    scores = floats[0] if len(floats) == 1 else _only(floats, "prob")
    if scores is None and (floats or own is None):
        raise UsageError(f"nothing says which output is measured: {_listed(outputs)}", hint=_OUTPUT_HINT)
    return Choice(scores, own)


def measure(truth: Array, scores: Array | None, labels: Array | None) -> Measured:
    """Compares what is true with what a model gave.

    Args:
        truth: `[N]`: bool, int64, float or object array of str; no value is missing.
        scores: `[N]`, `[N, 1]` or `[N, K]` floats, all finite; None if the model gives labels only.
        labels: `[N]` or `[N, 1]`: the labels the model gives itself; None if it gives none.

    Raises:
        UsageError: What is true and what the model gives are of different kinds.
        MissingExtraError: scikit-learn is not installed.
    """
    check_installed()
    truth, labels = _plain(truth), None if labels is None else _plain(labels)
    if scores is not None:
        if scores.ndim > 2:
            raise UsageError(
                f"the measured output has shape [N, {', '.join(map(str, scores.shape[1:]))}]", hint=_OUTPUT_HINT
            )
        scores = scores.astype(np.float64)
        scores = scores[:, 0] if scores.ndim == 2 and scores.shape[1] == 1 else scores
    if _is_classes(truth, scores, labels):
        return _measure_classes(_Classes(truth, scores, labels))
    return _measure_values(truth, scores, labels)


def check_installed() -> None:
    """Raises MissingExtraError if scikit-learn is not there."""
    try:
        import sklearn.metrics  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "metrics are measured by scikit-learn, which is not installed",
            hint="Install it: pip install 'modelcast[sklearn]'.",
        ) from error


class _Classes:
    """What a classifier gave, with its classes in the order of its columns."""

    def __init__(self, truth: Array, scores: Array | None, labels: Array | None) -> None:
        if labels is not None and (labels.dtype.kind == "O") != (truth.dtype.kind == "O"):
            kinds = {True: "texts", False: "numbers"}
            raise UsageError(
                f"the labels of the data are {kinds[truth.dtype.kind == 'O']} such as {_first(truth)}, "
                f"those of the model {kinds[labels.dtype.kind == 'O']} such as {_first(labels)}",
                hint="Write both alike, or name an output of scores with --score-output.",
            )
        self.truth = truth
        self.scores = scores
        self.present = np.unique(truth)
        self.reason = ""  # why scores say nothing of classes
        self.classes = self._order(labels)
        self.labels = labels if labels is not None else self._highest()

    @property
    def known(self) -> Array:
        """All classes there are, in order."""
        if self.classes is not None:
            return self.classes
        return np.unique(np.concatenate([self.truth, self.labels])) if self.labels is not None else self.present

    @property
    def positive(self) -> Array | None:
        """`[N]`: scores of the larger of two classes."""
        if self.scores is None or self.classes is None or len(self.classes) != 2:
            return None
        return self.scores if self.scores.ndim == 1 else self.scores[:, 1]

    @property
    def probabilities(self) -> Array | None:
        """`[N, K]`, rows summing to one, if that is what the scores are."""
        if self.scores is None or self.classes is None:
            return None
        if self.scores.min() < -_EDGE_TOLERANCE or self.scores.max() > 1 + _EDGE_TOLERANCE:
            return None
        scores = self.scores.clip(0, 1)
        if scores.ndim == 1:
            return np.stack([1 - scores, scores], axis=1)
        sums = scores.sum(axis=1, keepdims=True)
        return scores / sums if np.abs(sums - 1).max() <= _SUM_TOLERANCE else None

    def _order(self, labels: Array | None) -> Array | None:
        if self.scores is None:
            self.reason = "the model gives labels only"
            return None
        width = 2 if self.scores.ndim == 1 else self.scores.shape[1]
        seen = np.unique(self.truth if labels is None else np.concatenate([self.truth, labels]))
        if len(seen) == width:
            classes = seen
        elif seen.dtype.kind == "i" and seen[0] >= 0 and seen[-1] < width:
            classes = np.arange(width)
        else:
            self.reason = f"there are {len(seen)} classes in the data, and scores for {width}"
            return None
        if labels is not None and self.scores.ndim == 2:
            agreeing = float((classes[self.scores.argmax(axis=1)] == labels).mean())
            if agreeing < _MIN_AGREEMENT:
                self.reason = f"the highest score is the model's own label in {agreeing:.0%} of the rows only"
                return None
        return classes

    def _highest(self) -> Array | None:
        if self.scores is None or self.classes is None:
            return None
        if self.scores.ndim == 2:
            best: Array = self.classes[self.scores.argmax(axis=1)]
            return best
        if self.probabilities is None:
            return None
        meant: Array = self.classes[(self.scores >= _POSITIVE_FROM).astype(np.int64)]
        return meant


def _is_classes(truth: Array, scores: Array | None, labels: Array | None) -> bool:
    if truth.dtype.kind != "i":
        return truth.dtype.kind == "O"
    several = scores is not None and scores.ndim == 2
    return labels is not None or several or bool(np.isin(truth, (0, 1)).all())


def _measure_classes(given: _Classes) -> Measured:
    metrics: dict[str, float] = {}
    missing: dict[str, str] = {}
    _measure_labels(given, metrics, missing)
    _measure_auc(given, metrics, missing)
    _measure_log_loss(given, metrics, missing)
    missing |= dict.fromkeys(VALUE_METRICS, "the labels are classes")
    return Measured(metrics, missing)


def _measure_labels(given: _Classes, metrics: dict[str, float], missing: dict[str, str]) -> None:
    from sklearn import metrics as of

    if given.labels is None:
        reason = given.reason or "a score that is no probability says nothing of labels"
        missing |= dict.fromkeys(("accuracy", "f1", "precision", "recall"), reason)
        return
    metrics["accuracy"] = float(of.accuracy_score(given.truth, given.labels))
    classes = given.known
    options: dict[str, Any] = {"average": "macro", "labels": classes, "zero_division": 0}
    if len(classes) == 2:
        options = {"average": "binary", "pos_label": classes[1], "zero_division": 0}
    for name, formula in (("f1", of.f1_score), ("precision", of.precision_score), ("recall", of.recall_score)):
        metrics[name] = float(formula(given.truth, given.labels, **options))


def _measure_auc(given: _Classes, metrics: dict[str, float], missing: dict[str, str]) -> None:
    from sklearn import metrics as of

    if given.classes is None:
        missing["auc"] = given.reason
    elif len(given.present) < len(given.classes):
        missing["auc"] = f"of {len(given.classes)} classes the data have {len(given.present)} only"
    elif given.positive is not None:
        metrics["auc"] = float(of.roc_auc_score(given.truth == given.classes[1], given.positive))
    elif (probabilities := given.probabilities) is not None:
        metrics["auc"] = float(of.roc_auc_score(given.truth, probabilities, multi_class="ovr", labels=given.classes))
    else:
        missing["auc"] = "the scores of several classes are no probabilities"


def _measure_log_loss(given: _Classes, metrics: dict[str, float], missing: dict[str, str]) -> None:
    from sklearn import metrics as of

    if given.classes is None:
        missing["log_loss"] = given.reason
    elif (probabilities := given.probabilities) is None:
        missing["log_loss"] = "the scores are no probabilities"
    else:
        metrics["log_loss"] = float(of.log_loss(given.truth, probabilities, labels=given.classes))


def _measure_values(truth: Array, scores: Array | None, labels: Array | None) -> Measured:
    from sklearn import metrics as of

    given = labels if scores is None else scores
    if given is None or given.dtype.kind == "O":
        raise UsageError("the labels of the data are numbers, and the model gives texts", hint=_OUTPUT_HINT)
    if given.ndim != 1:
        raise UsageError(
            f"the labels of the data are values such as {_first(truth)}, and the measured output has "
            f"{given.shape[1]} columns",
            hint=_OUTPUT_HINT,
        )
    metrics = {
        "rmse": float(of.root_mean_squared_error(truth, given)),
        "mae": float(of.mean_absolute_error(truth, given)),
    }
    missing = dict.fromkeys(CLASS_METRICS, "the labels are values, not classes")
    if len(truth) > 1 and np.ptp(truth) > 0:
        metrics["r2"] = float(of.r2_score(truth, given))
    else:
        missing["r2"] = "the labels of the data are all the same"
    return Measured(metrics, missing)


def _plain(labels: Array) -> Array:
    """Texts as they are, whole numbers as int64, the rest as float64."""
    labels = labels.reshape(len(labels))
    if labels.dtype.kind == "O":
        return labels
    if labels.dtype.kind == "f":
        is_whole = bool((np.abs(labels) < 1 << 53).all() and (labels == np.trunc(labels)).all())
        return labels.astype(np.int64 if is_whole else np.float64)
    return labels.astype(np.int64)


def _first(labels: Array) -> str:
    return repr(labels[:1].tolist()[0])


def _only(names: Sequence[str], part: str) -> str | None:
    found = [name for name in names if part in name.lower()]
    return found[0] if len(found) == 1 else None


def _listed(outputs: Sequence[OutputSpec]) -> str:
    return ", ".join(f"{spec.name!r} ({spec.dtype})" for spec in outputs)
