"""XGBoost: models are trained, converted, run in the child process and compared with themselves."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xgboost
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from modelcast import golden
from modelcast.errors import ConversionError, MissingExtraError
from modelcast.publisher.prepare import PreparedModel, prepare

ROWS = 500
RANDOM = np.random.default_rng(5)
RIDES = pd.DataFrame(
    {
        "wait time": RANDOM.normal(5, 3, ROWS),
        "miles": RANDOM.gamma(2, 3, ROWS),
        "riders": RANDOM.integers(1, 5, ROWS),
        "zone": RANDOM.choice(["north", "south", "west"], ROWS),
    }
)
RIDES.loc[::9, "wait time"] = np.nan
NUMBERS = RIDES[["wait time", "miles", "riders"]]
TIPPED = ((RIDES.miles + RIDES.riders + RANDOM.normal(size=ROWS)) > 8).to_numpy().astype(int)
GRADE = TIPPED + (RIDES.riders > 3).to_numpy()
FARE = (RIDES.miles * 2.5 + 3).to_numpy()
SMALL = {"n_estimators": 12, "max_depth": 4}

Prepare = Callable[..., PreparedModel]


@pytest.fixture
def publish(tmp_path: Path) -> Prepare:
    def run(source: Any, examples: Any = RIDES, **options: Any) -> PreparedModel:
        return prepare(source, examples, directory=tmp_path, **options)

    return run


def outputs(prepared: PreparedModel) -> dict[str, np.ndarray]:
    return dict(golden.read(prepared.directory / "examples.npz").outputs)


def names(prepared: PreparedModel) -> list[str]:
    return [output.field for output in prepared.signature.outputs]


@pytest.mark.parametrize(
    ("model", "y"),
    [
        (xgboost.XGBClassifier(**SMALL), TIPPED),
        (xgboost.XGBClassifier(**SMALL), GRADE),
        (xgboost.XGBClassifier(objective="multi:softmax", **SMALL), GRADE),
        (xgboost.XGBRFClassifier(**SMALL), TIPPED),
    ],
)
def test_classifiers_take_the_fields_they_were_trained_with(publish: Prepare, model: Any, y: Any) -> None:
    prepared = publish(model.fit(NUMBERS, y))
    (binding,) = prepared.signature.inputs
    assert (binding.fields, str(binding.dtype)) == (("wait time", "miles", "riders"), "float32")
    assert names(prepared) == ["label", "probabilities"]
    rows = NUMBERS.iloc[np.linspace(0, ROWS - 1, 100).astype(int)]  # values are missing in some of them
    np.testing.assert_allclose(outputs(prepared)["probabilities"], model.predict_proba(rows), atol=1e-5)
    assert {"xgboost", "onnxmltools", "skl2onnx", "onnx"} <= set(prepared.frameworks)
    assert prepared.frameworks["xgboost"] == xgboost.__version__
    assert model.get_booster().feature_names == list(NUMBERS)  # the caller's model is as it was


@pytest.mark.parametrize("objective", ["reg:squarederror", "reg:gamma", "count:poisson", "reg:absoluteerror"])
def test_regressors_give_one_variable(publish: Prepare, objective: str) -> None:
    prepared = publish(xgboost.XGBRegressor(objective=objective, **SMALL).fit(NUMBERS, FARE))
    assert names(prepared) == ["variable"]


def test_a_model_of_arrays_takes_the_fields_given(publish: Prepare) -> None:
    model = xgboost.XGBRegressor(**SMALL).fit(NUMBERS.to_numpy(), FARE)
    assert publish(model, fields=list(NUMBERS)).signature.fields == tuple(NUMBERS)


@pytest.mark.parametrize("y", [TIPPED, GRADE])
def test_early_stopping_keeps_the_best_iteration(publish: Prepare, y: Any) -> None:
    model = xgboost.XGBClassifier(n_estimators=200, learning_rate=0.8, early_stopping_rounds=3)
    model.fit(NUMBERS[:250], y[:250], eval_set=[(NUMBERS[250:], y[250:])], verbose=False)
    assert model.best_iteration + 1 < model.get_booster().num_boosted_rounds()
    publish(model)  # parity would tell


@pytest.mark.parametrize(
    ("params", "y", "given"),
    [
        ({"objective": "binary:logistic"}, TIPPED, ["label", "probabilities"]),
        ({"objective": "multi:softprob", "num_class": 3}, GRADE, ["label", "probabilities"]),
        ({"objective": "multi:softmax", "num_class": 3}, GRADE, ["label", "probabilities"]),
        ({}, FARE, ["variable"]),
    ],
)
def test_boosters_without_their_estimator(publish: Prepare, params: Any, y: Any, given: list[str]) -> None:
    data = xgboost.DMatrix(NUMBERS, y)
    booster = xgboost.train({"max_depth": 4, **params}, data, 10)
    prepared = publish(booster)
    assert names(prepared) == given
    assert prepared.signature.fields == tuple(NUMBERS)
    if params.get("objective") == "binary:logistic":
        rows = np.linspace(0, ROWS - 1, 100).astype(int)
        np.testing.assert_allclose(outputs(prepared)["probabilities"][:, 1], booster.predict(data)[rows], atol=1e-5)


def test_the_last_step_of_a_pipeline(publish: Prepare) -> None:
    columns = ColumnTransformer(
        [
            ("zone", OneHotEncoder(handle_unknown="ignore"), ["zone"]),
            ("imputed", SimpleImputer(), ["miles"]),
            ("as it is", "passthrough", ["wait time", "riders"]),
        ]
    )
    prepared = publish(make_pipeline(columns, xgboost.XGBClassifier(**SMALL)).fit(RIDES, TIPPED))
    found = {b.name: str(b.dtype) for b in prepared.signature.inputs}
    assert found == {"wait time": "float32", "miles": "float32", "riders": "int64", "zone": "string"}
    assert "xgboost" in prepared.frameworks


def test_categories_of_its_own_are_refused_with_the_way_out(publish: Prepare) -> None:
    frame = RIDES.astype({"zone": "category"})
    with pytest.raises(ConversionError, match="XGBClassifier takes texts .*'zone'") as caught:
        publish(xgboost.XGBClassifier(enable_categorical=True, **SMALL).fit(frame, TIPPED))
    assert "OrdinalEncoder" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"objective": "binary:hinge"}, "objective binary:hinge, which has no converter"),
        ({"booster": "gblinear"}, "gblinear booster"),
        ({"booster": "dart"}, "dart booster"),
        ({"missing": -1.0}, "missing values are not nan"),
    ],
)
def test_what_the_converter_would_express_wrongly_is_refused(publish: Prepare, params: Any, said: str) -> None:
    model = xgboost.XGBClassifier(n_estimators=3, **params).fit(NUMBERS.fillna(0), TIPPED)
    with pytest.raises(ConversionError, match=f"XGBClassifier.*{said}") as caught:
        publish(model)
    assert caught.value.hint


def test_a_missing_converter_names_the_extra(publish: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    model = xgboost.XGBClassifier(n_estimators=2).fit(NUMBERS, TIPPED)
    monkeypatch.setitem(sys.modules, "onnxmltools", None)
    with pytest.raises(MissingExtraError, match="onnxmltools, which is not installed") as caught:
        publish(model)
    assert "pip install 'modelcast[xgboost]'" in str(caught.value.hint)
