"""XGBoost: estimators alone or as a Pipeline's step, and boosters; through onnxmltools.

- Outputs are those of every estimator: `label` and `probabilities`, or `variable`. A booster of a `binary:logistic` or
  `multi:` objective counts as a classifier of the classes 0, 1, …; one of any other objective gives what it predicts.
- After early stopping an estimator predicts with the best iteration and a booster with all its trees; so do the graphs.
- A missing number is NaN, as in training. Features are known by their names where the model was trained with names.
- XGBoost compares and adds in float32, as ONNX's trees do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelcast.errors import ConversionError

from ..candidate import Candidate
from ..examples import Rows
from . import estimators, origins

EXTRA: Final = "xgboost"

_PACKAGES = ("sklearn", "skl2onnx", "onnxmltools", "xgboost")
# What the converter writes with the function that turns the trees' sum into a prediction.
_CLASSIFIERS = ("binary:logistic", "multi:softprob", "multi:softmax")
_REGRESSORS = (
    "reg:squarederror",
    "reg:squaredlogerror",
    "reg:absoluteerror",
    "reg:pseudohubererror",
    "reg:quantileerror",
    "reg:gamma",
    "reg:tweedie",
    "count:poisson",
    "rank:pairwise",
    "rank:ndcg",
    "rank:map",
)
_HINT = (
    "Train it with another objective or booster, or publish an ONNX file of your own; objectives that convert: "
    f"{', '.join((*_CLASSIFIERS, *_REGRESSORS))}."
)


def recognises(value: object) -> bool:
    """Whether this is a Booster; XGBoost's estimators are estimators like others."""
    return origins.is_a(value, "xgboost", "Booster")


def convert(value: Any, rows: Rows, fields: Sequence[str] | None, *, precise: bool = False) -> Candidate:
    """Converts a Booster; see `converters.convert`."""
    origins.load("an XGBoost booster", EXTRA, *_PACKAGES)
    wrapped, versions = _wrapped(value), _register()
    candidate = estimators.convert(wrapped, rows, fields, precise=precise, extra=EXTRA)
    return estimators.with_frameworks(candidate, versions)


def _register() -> dict[str, str]:
    _, _, onnxmltools, xgboost = origins.load("an XGBoost model", EXTRA, *_PACKAGES)
    from . import booster

    booster.register(
        [xgboost.XGBRegressor, xgboost.XGBRFRegressor, xgboost.XGBRanker],
        [xgboost.XGBClassifier, xgboost.XGBRFClassifier],
        "XGBoost",
        _write,
    )
    return {"xgboost": str(xgboost.__version__), "onnxmltools": str(onnxmltools.__version__)}


def _write(scope: Any, operator: Any, container: Any) -> None:
    from onnxmltools.convert.xgboost.operator_converters.XGBoost import convert_xgboost

    from .booster import Container

    convert_xgboost(scope, operator, Container(container, scope, operator))


def _prepare(model: Any) -> None:
    """Of a copy: its features lose their names, which the converter takes for numbers; its objective is checked."""
    booster = model.get_booster()
    objective = _objective(booster, type(model).__name__)
    booster.feature_names = None
    if objective == "multi:softmax":  # the same trees; the converter leaves the softmax out
        model.objective = "multi:softprob"


def _wrapped(original: Any) -> Any:
    from xgboost import DMatrix

    from .booster import BoosterClassifier, BoosterRegressor

    booster = original.copy()
    objective = _objective(booster, "Booster")
    if objective == "multi:softmax":
        booster.set_param({"objective": "multi:softprob"})
        objective = "multi:softprob"
    names, width = booster.feature_names, booster.num_features()
    booster.feature_names = None
    classes = max(2, int(_learner(booster)["learner_model_param"].get("num_class", 0)))
    parameters = {"objective": objective}
    node = SimpleNamespace(
        kwargs=parameters,
        get_xgb_params=parameters.copy,
        get_booster=lambda: booster,
        operator_name="XGBRegressor" if objective not in _CLASSIFIERS else "XGBClassifier",
        classes_=np.arange(classes),
    )

    def ask(matrix: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return np.asarray(booster.predict(DMatrix(matrix)))

    if objective in _CLASSIFIERS:
        return BoosterClassifier(node, ask, _write, names, width, classes=classes)
    return BoosterRegressor(node, ask, _write, names, width)


def _learner(booster: Any) -> Any:
    return json.loads(booster.save_config())["learner"]


def _objective(booster: Any, what: str) -> str:
    """The objective.

    Raises:
        ConversionError: The converter would leave something out, without saying so.
    """
    learner = _learner(booster)
    objective, kind = str(learner["objective"]["name"]), str(learner["gradient_booster"]["name"])
    if objective not in (*_CLASSIFIERS, *_REGRESSORS):
        raise ConversionError(f"the {what} has the objective {objective}, which has no converter", hint=_HINT)
    if kind != "gbtree":
        raise ConversionError(f"the {what} is a {kind} booster, and only trees (gbtree) have a converter", hint=_HINT)
    return objective


PLUGIN: Final = estimators.Plugin(
    "xgboost", lambda part: origins.is_a(part, "xgboost", "XGBModel"), _register, _prepare
)
