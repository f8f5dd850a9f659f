"""What the trainer trains: one scikit-learn Pipeline, features and model together, from flights that have landed.

The whole pipeline is published, so events carry raw fields (carrier, airports, minutes), and nothing else has to know
how they become features.
"""

from __future__ import annotations

import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from modelcast.demo import EXTRA_HINT
from modelcast.demo.flights import columns_of
from modelcast.errors import MissingExtraError

CATEGORIES: Final = ("carrier", "origin", "dest")
NUMBERS: Final = ("dep_delay", "distance", "hour", "month", "weekday", "scheduled_minute")
FEATURES: Final = (*CATEGORIES, *NUMBERS)

# The newest flights that have landed are held back to measure a model before it is published.
HELD_BACK: Final = 2_000
# Enough trees for the curve to be flat; a year trains in a second.
_TREES: Final = 60
_SEED: Final = 0


@dataclass(frozen=True)
class Trained:
    """A fitted pipeline.

    Attributes:
        auc: On the newest landed flights, which it was not trained on.
        seconds: What training took.
        examples: Rows it can be tried on, by event field.
    """

    pipeline: Any
    auc: float
    flights: int
    seconds: float
    examples: dict[str, npt.NDArray[Any]]


def warm_up() -> None:
    """Imports what training and publishing take, so that the first release does not wait for it."""
    _pipeline(())
    import pandas  # noqa: F401
    import skl2onnx  # noqa: F401


def train(landed: pl.DataFrame, *, extra: tuple[str, ...] = ()) -> Trained:
    """Trains on all but the newest of the flights that have landed.

    Args:
        landed: Rows with `late`, in the order of departure.
        extra: Names of further number columns to learn from.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """
    pipeline = _pipeline(extra)
    began = time.monotonic()
    held_back = min(HELD_BACK, landed.height // 5)
    known, newest = landed.head(landed.height - held_back), landed.tail(held_back)
    names = (*FEATURES, *extra)
    with _one_thread():
        pipeline.fit(_frame(known, names), known["late"].to_numpy())
    scores = pipeline.predict_proba(_frame(newest, names))[:, 1]
    return Trained(
        pipeline,
        auc=area_under_curve(newest["late"].to_numpy(), scores),
        flights=known.height,
        seconds=time.monotonic() - began,
        examples=columns_of(newest, names),
    )


def area_under_curve(truth: npt.NDArray[np.bool_], scores: npt.NDArray[np.float64]) -> float:
    """Area under the ROC curve: how often a late flight is ranked above one on time, ties counting half.

    By ranks: (sum of the positives' mean ranks - P(P+1)/2) / (P N) (Mann and Whitney 1947). NaN without both kinds.
    """
    positives = int(truth.sum())
    negatives = len(truth) - positives
    if not positives or not negatives:
        return float("nan")
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    mean_ranks = np.cumsum(counts) - (counts - 1) / 2
    return float((mean_ranks[place][truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def _pipeline(extra: tuple[str, ...]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from sklearn.compose import ColumnTransformer
            from sklearn.ensemble import HistGradientBoostingClassifier
            from sklearn.pipeline import Pipeline
            from sklearn.preprocessing import OrdinalEncoder
    except ImportError as error:
        raise MissingExtraError("training takes scikit-learn, which is not installed", hint=EXTRA_HINT) from error
    # An airport that is new this month must not stop the stream: it is a category of its own.
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    features = ColumnTransformer(
        [("categories", encoder, list(CATEGORIES)), ("numbers", "passthrough", [*NUMBERS, *extra])]
    )
    trees = HistGradientBoostingClassifier(max_iter=_TREES, learning_rate=0.15, random_state=_SEED)
    return Pipeline([("features", features), ("trees", trees)])


def _one_thread() -> AbstractContextManager[Any]:
    # OpenMP's threads wait for each other by spinning: with a busy core, two of them take ten times as long as one.
    from threadpoolctl import threadpool_limits

    limits: AbstractContextManager[Any] = threadpool_limits(1, "openmp")
    return limits


def _frame(table: pl.DataFrame, names: tuple[str, ...]) -> Any:
    import pandas

    return pandas.DataFrame(columns_of(table, names))
