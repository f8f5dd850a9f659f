"""scikit-learn: real estimators are trained, converted, run in the child process and compared with themselves."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.cluster import KMeans
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    IsolationForest,
    RandomForestClassifier,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier, SGDClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import SVC, LinearSVC

from modelcast import golden
from modelcast.errors import (
    BindingError,
    ConversionError,
    MissingExtraError,
    ModelcastError,
    ParityError,
    SourceError,
    StructureError,
    UsageError,
)
from modelcast.publisher.prepare import PreparedModel, prepare

NUMBERS = ["delay", "distance", "month"]
ROWS = 600


def flights() -> pd.DataFrame:
    random = np.random.default_rng(7)
    frame = pd.DataFrame(
        {
            "carrier": random.choice(["AA", "B6", "UA"], ROWS),
            "delay": random.normal(0, 20, ROWS),
            "distance": random.integers(100, 3000, ROWS),
            "month": random.integers(1, 13, ROWS),
            "night": random.random(ROWS) > 0.5,
            "tail": random.choice(["N1", "N2"], ROWS),
            "when": pd.Timestamp("2013-01-01"),
        }
    )
    frame.loc[::17, "delay"] = np.nan
    return frame


FLIGHTS = flights()
# The rows that become golden examples: a hundred, evenly from all.
GOLDEN = FLIGHTS.iloc[np.linspace(0, len(FLIGHTS) - 1, 100).astype(int)]
LATE = ((FLIGHTS.delay.fillna(0) + 9 * (FLIGHTS.carrier == "UA") + 3 * FLIGHTS.night) > 2).to_numpy()
LABELS = LATE.astype(int)
CODES = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)


def one_hot(**options: Any) -> OneHotEncoder:
    return OneHotEncoder(handle_unknown="ignore", **options)


def columns(estimator: Any, *steps: tuple[Any, list[Any]], **options: Any) -> Pipeline:
    named = [(f"step{index}", step, taken) for index, (step, taken) in enumerate(steps)]
    return make_pipeline(ColumnTransformer(named, **options), estimator)


def scaled() -> Pipeline:
    return make_pipeline(SimpleImputer(), StandardScaler())


def fit(estimator: Any, x: Any = FLIGHTS, y: Any = LABELS) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(x, y)


Prepare = Callable[..., PreparedModel]


@pytest.fixture
def publish(tmp_path: Path) -> Prepare:
    def run(source: Any, examples: Any = FLIGHTS, **options: Any) -> PreparedModel:
        return prepare(source, examples, directory=tmp_path, **options)

    return run


def outputs(prepared: PreparedModel) -> dict[str, np.ndarray]:
    return dict(golden.read(prepared.directory / "examples.npz").outputs)


PIPELINES = {
    "logistic regression": lambda: columns(LogisticRegression(), (one_hot(), ["carrier"]), (scaled(), NUMBERS)),
    "histogram boosting, one-hot": lambda: columns(
        HistGradientBoostingClassifier(max_iter=20),
        (one_hot(sparse_output=False), ["carrier"]),
        ("passthrough", NUMBERS),
    ),
    "histogram boosting, ordinal": lambda: columns(
        HistGradientBoostingClassifier(max_iter=20), (CODES, ["carrier"]), ("passthrough", NUMBERS)
    ),
    "forest": lambda: columns(RandomForestClassifier(10), (one_hot(), ["carrier"]), (SimpleImputer(), NUMBERS)),
    "integers as categories": lambda: columns(
        LogisticRegression(), (one_hot(), ["carrier", "month"]), (scaled(), NUMBERS)
    ),
    "searched": lambda: GridSearchCV(
        columns(LogisticRegression(), (one_hot(), ["carrier"]), (scaled(), NUMBERS)),
        {"logisticregression__C": [0.5, 1.0]},
        cv=2,
    ),
    "support vectors": lambda: columns(SVC(max_iter=200), (one_hot(), ["carrier"]), (scaled(), NUMBERS)),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_take_each_column_they_use_in_its_own_type(publish: Prepare, name: str) -> None:
    prepared = publish(fit(PIPELINES[name]()))
    taken = {binding.name: (str(binding.dtype), binding.shape, binding.fields) for binding in prepared.signature.inputs}
    assert taken == {
        "carrier": ("string", (None, 1), ("carrier",)),
        "delay": ("float32", (None, 1), ("delay",)),
        "distance": ("int64", (None, 1), ("distance",)),
        "month": ("int64", (None, 1), ("month",)),
    }
    assert prepared.signature.outputs[0].field == "label"
    assert prepared.frameworks.keys() >= {"scikit-learn", "skl2onnx", "onnx", "onnxruntime"}


def test_golden_outputs_are_what_the_pipeline_predicts(publish: Prepare) -> None:
    pipeline = fit(PIPELINES["histogram boosting, one-hot"]())
    got = outputs(publish(pipeline))
    np.testing.assert_allclose(got["probabilities"], pipeline.predict_proba(GOLDEN), atol=1e-5)
    np.testing.assert_array_equal(got["label"], pipeline.predict(GOLDEN))


def test_missing_numbers_and_unknown_categories_go_through(publish: Prepare) -> None:
    pipeline = fit(PIPELINES["histogram boosting, one-hot"]())
    rows = FLIGHTS.head(4).assign(carrier=["AA", "??", "", "é"], delay=[np.nan, 1.0, np.nan, 2.0])
    np.testing.assert_allclose(
        outputs(publish(pipeline, rows))["probabilities"], pipeline.predict_proba(rows), atol=1e-5
    )


@pytest.mark.parametrize("step", [one_hot(), "passthrough"])
def test_booleans_stay_booleans(publish: Prepare, step: Any) -> None:
    prepared = publish(fit(columns(LogisticRegression(), (step, ["night"]), (scaled(), NUMBERS))))
    assert {b.name: str(b.dtype) for b in prepared.signature.inputs}["night"] == "bool"


def test_columns_may_be_chosen_by_position(publish: Prepare) -> None:
    prepared = publish(fit(columns(LogisticRegression(), (one_hot(), [0]), (SimpleImputer(), slice(1, 3)))))
    assert set(prepared.signature.fields) == {"carrier", "delay", "distance"}


def test_what_passes_through_is_taken_too(publish: Prepare) -> None:
    known = FLIGHTS.drop(columns=["when", "tail"])
    pipeline = columns(
        make_pipeline(SimpleImputer(), LogisticRegression()), (one_hot(), ["carrier"]), remainder="passthrough"
    )
    prepared = publish(fit(pipeline, known), FLIGHTS)
    assert set(prepared.signature.fields) == {"carrier", "delay", "distance", "month", "night"}


@pytest.mark.parametrize("frame", [pl.DataFrame, pd.DataFrame.from_records, list])
def test_examples_in_any_form_reach_the_original_by_name(publish: Prepare, frame: Callable[[Any], Any]) -> None:
    rows = FLIGHTS.drop(columns="when").head(50).to_dict("records")
    assert publish(fit(PIPELINES["logistic regression"]()), frame(rows)).signature.inputs[0].name == "carrier"


def test_a_missing_column_is_named(publish: Prepare) -> None:
    with pytest.raises(BindingError, match="column 'delay' of the model; they have 'carrier'"):
        publish(fit(PIPELINES["logistic regression"]()), FLIGHTS.drop(columns="delay"))


def test_an_estimator_of_named_numbers_takes_a_matrix_of_these_fields(publish: Prepare) -> None:
    x = FLIGHTS[["month", "distance"]]
    (binding,) = publish(fit(LogisticRegression(), x)).signature.inputs
    assert (binding.name, str(binding.dtype), binding.shape) == ("X", "float32", (None, 2))
    assert binding.fields == ("month", "distance")


def test_fields_in_another_order_than_trained_with_are_refused(publish: Prepare) -> None:
    with pytest.raises(UsageError, match="another order"):
        publish(fit(LogisticRegression(), FLIGHTS[["month", "distance"]]), fields=["distance", "month"])


def test_an_estimator_of_arrays_takes_the_fields_given(publish: Prepare) -> None:
    x = FLIGHTS[["month", "distance"]].to_numpy(float)
    estimator = fit(make_pipeline(StandardScaler(), LogisticRegression()), x)
    with pytest.raises(UsageError, match="2 columns"):
        publish(estimator)
    assert publish(estimator, fields=["month", "distance"]).signature.fields == ("month", "distance")


def test_an_estimator_of_arrays_takes_arrays(publish: Prepare) -> None:
    x = FLIGHTS[["month", "distance"]].to_numpy(float)
    prepared = publish(fit(LogisticRegression(), x), {"features": x}, fields=["a", "b"])
    assert prepared.signature.inputs[0].name == "features"


def test_a_matrix_with_booleans_takes_one_input_per_column(publish: Prepare) -> None:
    prepared = publish(fit(make_pipeline(StandardScaler(), LogisticRegression()), FLIGHTS[["distance", "night"]]))
    assert [(b.name, str(b.dtype)) for b in prepared.signature.inputs] == [("distance", "int64"), ("night", "bool")]


def test_a_matrix_of_texts(publish: Prepare) -> None:
    (binding,) = publish(
        fit(make_pipeline(one_hot(), LogisticRegression()), FLIGHTS[["carrier", "tail"]])
    ).signature.inputs
    assert (str(binding.dtype), binding.fields) == ("string", ("carrier", "tail"))


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("estimator", [SGDClassifier(random_state=0), LinearSVC(), RidgeClassifier()])
def test_decision_values_are_never_called_probabilities(publish: Prepare, estimator: Any, classes: int) -> None:
    y = FLIGHTS.month.to_numpy() % classes
    pipeline = fit(columns(estimator, (one_hot(), ["carrier"]), (scaled(), NUMBERS)), y=y)
    got = outputs(publish(pipeline))
    assert set(got) == {"label", "scores"}
    want = pipeline.decision_function(GOLDEN)
    np.testing.assert_allclose(got["scores"][:, -1], want if classes == 2 else want[:, -1], rtol=1e-3, atol=1e-4)


def test_text_labels_come_out_as_texts(publish: Prepare) -> None:
    pipeline = fit(PIPELINES["logistic regression"](), y=np.where(LATE, "late", "on time"))
    prepared = publish(pipeline)
    assert [str(output.dtype) for output in prepared.signature.outputs] == ["string", "float32"]
    assert outputs(prepared)["label"].tolist() == pipeline.predict(GOLDEN).tolist()


@pytest.mark.parametrize(
    "estimator",
    [
        LinearRegression(),
        HistGradientBoostingRegressor(max_iter=10),
        GradientBoostingRegressor(n_estimators=10),
    ],
)
def test_regressors_give_one_variable(publish: Prepare, estimator: Any) -> None:
    pipeline = fit(
        columns(estimator, (one_hot(sparse_output=False), ["carrier"]), (SimpleImputer(), NUMBERS)),
        y=FLIGHTS.distance * 1.5,
    )
    (output,) = publish(pipeline).signature.outputs
    assert (output.field, output.is_scalar) == ("variable", True)


@pytest.mark.parametrize(
    ("estimator", "names"),
    [
        (KMeans(3, n_init=1, random_state=0), ["label", "scores"]),
        (PCA(1), ["variable"]),
        (IsolationForest(n_estimators=10, random_state=0), ["label", "scores"]),
    ],
)
def test_other_estimators_are_compared_too(publish: Prepare, estimator: Any, names: list[str]) -> None:
    prepared = publish(fit(estimator, FLIGHTS[["month", "distance"]], None))
    assert [output.field for output in prepared.signature.outputs] == names


def test_columns_may_have_the_names_of_outputs(publish: Prepare) -> None:
    x = FLIGHTS[["month", "distance"]].set_axis(["label", "scores"], axis=1)
    prepared = publish(fit(columns(SGDClassifier(random_state=0), (StandardScaler(), ["label", "scores"])), x), x)
    assert prepared.signature.fields == ("label", "scores")
    assert [output.field for output in prepared.signature.outputs] == ["predicted_label", "predicted_scores"]


def test_thresholds_decide_as_scikit_learn_decides_them(publish: Prepare) -> None:
    """Continuous values, of which many are thresholds: rounded otherwise than these they fall on the other side."""
    random = np.random.default_rng(0)
    x = random.normal(size=(3000, 6))
    y = (x[:, 0] + x[:, 1] ** 2 + random.normal(size=3000) * 0.3 > 1).astype(int)
    model = fit(HistGradientBoostingClassifier(max_iter=20, random_state=0), x, y)
    prepared = publish(model, {"X": x}, fields=list("abcdef"))
    assert str(prepared.signature.inputs[0].dtype) == "float32"


def test_a_scaler_before_trees_is_computed_in_float64(publish: Prepare) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 3)) * [1, 100, 1e4] + [0, 1e3, 1e6]
    told: list[str] = []
    y = x[:, 0] + random.normal(size=4000) > 0
    model = fit(make_pipeline(StandardScaler(), RandomForestClassifier(30, random_state=0)), x, y)
    prepared = publish(model, {"X": x}, fields=list("abc"), progress=told.append)
    assert any("float64" in line for line in told)
    assert str(prepared.signature.inputs[0].dtype) == "float64"


def test_what_the_converter_expresses_wrongly_is_refused(publish: Prepare, tmp_path: Path) -> None:
    pipeline = columns(
        HistGradientBoostingClassifier(max_iter=30, categorical_features=[0], random_state=0),
        (CODES, ["carrier"]),
        ("passthrough", NUMBERS),
    )
    with pytest.raises(ParityError, match=r"output '\w+', row \d+ .*original .*, graph .*"):
        publish(fit(pipeline))
    assert list(tmp_path.iterdir()) == []


def test_what_has_no_converter_is_named(publish: Prepare) -> None:
    x = FLIGHTS[["month", "distance"]]
    with pytest.raises(ConversionError, match="TransformedTargetRegressor") as caught:
        publish(fit(TransformedTargetRegressor(LinearRegression()), x, FLIGHTS.distance * 2.0))
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_several_targets_are_a_sequence_and_refused(publish: Prepare) -> None:
    x = FLIGHTS[["month", "distance"]]
    model = fit(MultiOutputClassifier(LogisticRegression()), x, np.stack([LABELS, 1 - LABELS], axis=1))
    with pytest.raises(StructureError, match="sequence") as caught:
        publish(model)
    assert "zipmap" in str(caught.value.hint)


@pytest.mark.parametrize("estimator", [LogisticRegression(), PIPELINES["logistic regression"]()])
def test_an_estimator_that_is_not_fitted(publish: Prepare, estimator: Any) -> None:
    with pytest.raises(SourceError, match="is not fitted") as caught:
        publish(estimator)
    assert "fit" in str(caught.value.hint)


def test_an_original_that_fails_on_the_examples_is_told(publish: Prepare) -> None:
    pipeline = fit(columns(LogisticRegression(), (OneHotEncoder(), ["carrier"])))
    with pytest.raises(ModelcastError, match=r"Pipeline fails on the examples|smoke run failed"):
        publish(pipeline, FLIGHTS.assign(carrier="??"))


def test_a_joblib_file_gives_the_same_files_in_every_process(publish: Prepare, tmp_path: Path) -> None:
    joblib.dump(fit(PIPELINES["histogram boosting, one-hot"]()), tmp_path / "m.joblib")
    FLIGHTS.drop(columns="when").head(50).to_csv(tmp_path / "e.csv", index=False)
    script = (
        "import sys\nfrom pathlib import Path\nfrom modelcast.publisher.prepare import prepare\n"
        "prepared = prepare(sys.argv[1], sys.argv[2], directory=Path(sys.argv[3]))\n"
        "print([entry.digest for entry in prepared.files])\n"
    )
    seen = set()
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(map(str, map(Path, sys.path)))}
        command = [sys.executable, "-c", script, "m.joblib", "e.csv", str(tmp_path / seed)]
        done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stderr == ""  # what converters warn of is not for the user's terminal
        seen.add(done.stdout)
    assert len(seen) == 1


def test_a_missing_converter_names_the_extra(publish: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = fit(LogisticRegression(), FLIGHTS[["month", "distance"]])
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(MissingExtraError, match="skl2onnx, which is not installed") as caught:
        publish(estimator)
    assert "pip install 'modelcast[sklearn]'" in str(caught.value.hint)


class NoPandas:
    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ImportError("not installed", name=name)


def test_pandas_need_not_be_installed(publish: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = fit(PIPELINES["logistic regression"]())
    rows = pl.DataFrame(FLIGHTS.drop(columns="when").head(50).to_dict("list"))
    monkeypatch.delitem(sys.modules, "pandas")
    monkeypatch.setattr(sys, "meta_path", [NoPandas(), *sys.meta_path])
    assert publish(pipeline, rows).signature.inputs[0].name == "carrier"
