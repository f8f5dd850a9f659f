"""LightGBM: models are trained, converted, run in the child process and compared with themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

from modelcast import golden
from modelcast.errors import ConversionError
from modelcast.publisher.convert.lightgbm import _rounded_down
from modelcast.publisher.prepare import PreparedModel, prepare

ROWS = 500
RANDOM = np.random.default_rng(5)
RIDES = pd.DataFrame(
    {
        "wait": RANDOM.normal(5, 3, ROWS),
        "miles": RANDOM.gamma(2, 3, ROWS),
        "riders": RANDOM.integers(0, 5, ROWS),
        "zone": RANDOM.choice(["north", "south", "west"], ROWS),
    }
)
RIDES.loc[::9, "wait"] = np.nan
NUMBERS = RIDES[["wait", "miles", "riders"]]
TIPPED = ((RIDES.miles + 3 * (RIDES.riders == 2) + RANDOM.normal(size=ROWS)) > 7).to_numpy().astype(int)
GRADE = TIPPED + (RIDES.riders > 3).to_numpy()
FARE = (RIDES.miles * 2.5 + 3).to_numpy()
SMALL: dict[str, Any] = {"n_estimators": 12, "verbose": -1}
QUIET = {"verbose": -1}

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


@pytest.mark.parametrize("y", [TIPPED, GRADE, np.where(TIPPED, "tip", "none")])
def test_classifiers_take_the_fields_they_were_trained_with(publish: Prepare, y: Any) -> None:
    model = lightgbm.LGBMClassifier(**SMALL).fit(NUMBERS, y)
    prepared = publish(model)
    (binding,) = prepared.signature.inputs
    assert (binding.fields, str(binding.dtype)) == (("wait", "miles", "riders"), "float32")
    assert names(prepared) == ["label", "probabilities"]
    rows = NUMBERS.iloc[np.linspace(0, ROWS - 1, 100).astype(int)]  # values are missing in some of them
    np.testing.assert_allclose(outputs(prepared)["probabilities"], model.predict_proba(rows), atol=1e-5)
    assert prepared.frameworks["lightgbm"] == lightgbm.__version__


@pytest.mark.parametrize("objective", ["regression", "regression_l1", "huber", "poisson", "tweedie"])
def test_regressors_give_one_variable(publish: Prepare, objective: str) -> None:
    assert names(publish(lightgbm.LGBMRegressor(objective=objective, **SMALL).fit(NUMBERS, FARE))) == ["variable"]


def test_a_model_of_arrays_takes_the_fields_given(publish: Prepare) -> None:
    model = lightgbm.LGBMRegressor(**SMALL).fit(NUMBERS.to_numpy(), FARE)
    assert publish(model, fields=list(NUMBERS)).signature.fields == tuple(NUMBERS)


@pytest.mark.parametrize("as_booster", [False, True])
def test_early_stopping_keeps_the_best_iteration(publish: Prepare, as_booster: bool) -> None:
    model = lightgbm.LGBMClassifier(n_estimators=200, learning_rate=0.5, verbose=-1).fit(
        NUMBERS[:250],
        TIPPED[:250],
        eval_X=NUMBERS[250:],
        eval_y=TIPPED[250:],
        callbacks=[lightgbm.early_stopping(3, verbose=False)],
    )
    assert 0 < model.best_iteration_ < 200
    publish(model.booster_ if as_booster else model)  # parity would tell


@pytest.mark.parametrize(
    ("params", "y", "given"),
    [
        ({"objective": "binary"}, TIPPED, ["label", "probabilities"]),
        ({"objective": "multiclass", "num_class": 3}, GRADE, ["label", "probabilities"]),
        ({"objective": "regression"}, FARE, ["variable"]),
    ],
)
def test_boosters_without_their_estimator(publish: Prepare, params: Any, y: Any, given: list[str]) -> None:
    booster = lightgbm.train({**params, **QUIET}, lightgbm.Dataset(NUMBERS, y), 10)
    prepared = publish(booster)
    assert names(prepared) == given
    assert prepared.signature.fields == tuple(NUMBERS)


def test_integers_as_categories(publish: Prepare) -> None:
    """Of riders 0 … 4 those with 2 and 4 tip: no single threshold tells them apart."""
    tipped = RIDES.riders.isin([2, 4]).astype(int)
    model = lightgbm.LGBMClassifier(**SMALL).fit(NUMBERS, tipped, categorical_feature=["riders"])
    assert "'decision_type': '=='" in str(model.booster_.dump_model())
    publish(model)


def test_the_last_step_of_a_pipeline(publish: Prepare) -> None:
    columns = ColumnTransformer(
        [("zone", OneHotEncoder(handle_unknown="ignore"), ["zone"]), ("as it is", "passthrough", list(NUMBERS))]
    )
    prepared = publish(make_pipeline(columns, lightgbm.LGBMClassifier(**SMALL)).fit(RIDES, TIPPED))
    assert {b.name for b in prepared.signature.inputs} == {"wait", "miles", "riders", "zone"}


def test_numbers_that_float32_cannot_tell_apart_are_compared_as_float64(publish: Prepare) -> None:
    """Identifiers and times: 1e9 and 1e9 + 1 are one float32."""
    x = pd.DataFrame({"at": 1e9 + np.arange(ROWS), "miles": RIDES.miles})
    told: list[str] = []
    model = lightgbm.LGBMClassifier(**SMALL).fit(x, (x["at"] % 100 > 50).astype(int))
    prepared = publish(model, x, progress=told.append)
    assert any("float64" in line for line in told)
    assert str(prepared.signature.inputs[0].dtype) == "float64"
    rows = x.iloc[np.linspace(0, ROWS - 1, 100).astype(int)]
    np.testing.assert_allclose(outputs(prepared)["probabilities"], model.predict_proba(rows), atol=1e-5)


def test_thresholds_are_rounded_so_that_float32_numbers_are_decided_alike() -> None:
    exact = RANDOM.normal(size=2000)
    rounded = np.asarray(_rounded_down(exact.tolist(), ["BRANCH_LEQ"] * len(exact)))
    near = exact.astype(np.float32)
    for numbers in (near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))):
        np.testing.assert_array_equal(numbers.astype(float) <= exact, numbers <= rounded.astype(np.float32))


def test_texts_as_categories_are_refused_with_the_way_out(publish: Prepare) -> None:
    frame = RIDES.astype({"zone": "category"})
    with pytest.raises(ConversionError, match="LGBMClassifier takes texts .*'zone'") as caught:
        publish(lightgbm.LGBMClassifier(**SMALL).fit(frame, TIPPED))
    assert "OrdinalEncoder" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lightgbm.LGBMRegressor(objective="mape", **SMALL), "objective mape, which has no converter"),
        (lightgbm.LGBMRegressor(reg_sqrt=True, **SMALL), "objective regression sqrt"),
        (lightgbm.LGBMRegressor(linear_tree=True, **SMALL), "linear models in its leaves"),
        (lightgbm.LGBMRegressor(zero_as_missing=True, **SMALL), "zeros for missing values"),
        (lightgbm.LGBMClassifier(sigmoid=0.5, **SMALL), "objective binary sigmoid:0.5"),
        (lightgbm.LGBMClassifier(boosting_type="rf", subsample=0.5, subsample_freq=1, **SMALL), "random forest"),
    ],
)
def test_what_the_converter_would_express_wrongly_is_refused(publish: Prepare, model: Any, said: str) -> None:
    with pytest.raises(ConversionError, match=f"the LGBM\\w+ .*{said}") as caught:
        publish(model.fit(NUMBERS, TIPPED))
    assert caught.value.hint
