"""scikit-learn, kind by kind: each is trained, converted, run in the child process and compared with itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans, MeanShift
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesRegressor, RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer, TfidfVectorizer
from sklearn.feature_selection import SelectFromModel, SelectKBest, VarianceThreshold
from sklearn.impute import KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression, PoissonRegressor
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler, OneHotEncoder, RobustScaler, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from modelcast import golden
from modelcast.errors import ConversionError, ParityError, UsageError
from modelcast.publisher.prepare import PreparedModel, prepare

ROWS = 300
RANDOM = np.random.default_rng(11)
WORDS = ["the", "parcel", "Arrived", "late", "BROKEN", "good", "nice", "refund", "Éclair", "thanks"]
REVIEWS = pd.DataFrame(
    {
        "price": RANDOM.gamma(3, 10, ROWS),
        "weight": RANDOM.normal(5, 1, ROWS),
        "stars": RANDOM.integers(1, 6, ROWS).astype(float),
        "shop": RANDOM.choice(["a", "b", "c"], ROWS),
        "text": [" ".join(RANDOM.choice(WORDS, 6)) for _ in range(ROWS)],
    }
)
NUMBERS = ["price", "weight", "stars"]
X = REVIEWS[NUMBERS]
GOOD = REVIEWS.text.str.contains("good|nice").to_numpy().astype(int)
COST = (REVIEWS.price * 1.2 + REVIEWS.weight).to_numpy()
DEAR = (np.median(COST) < COST).astype(int)

Prepare = Callable[..., PreparedModel]


@pytest.fixture
def publish(tmp_path: Path) -> Prepare:
    def run(source: Any, examples: Any = REVIEWS, **options: Any) -> PreparedModel:
        return prepare(source, examples, directory=tmp_path, **options)

    return run


def fit(estimator: Any, x: Any, y: Any = None) -> Any:
    with warnings.catch_warnings(action="ignore"):
        return estimator.fit(x, y)


def names(prepared: PreparedModel) -> list[str]:
    return [output.field for output in prepared.signature.outputs]


def outputs(prepared: PreparedModel) -> dict[str, np.ndarray]:
    return dict(golden.read(prepared.directory / "examples.npz").outputs)


def of_text(vectorizer: Any, model: Any | None = None) -> Pipeline:
    return make_pipeline(ColumnTransformer([("text", vectorizer, "text")]), model or LogisticRegression())


@pytest.mark.parametrize(
    "estimator",
    [
        DecisionTreeClassifier(max_depth=5, random_state=0),
        make_pipeline(StandardScaler(), SVC(probability=True, random_state=0)),
        KNeighborsClassifier(3),
    ],
)
def test_classifiers_with_probabilities(publish: Prepare, estimator: Any) -> None:
    prepared = publish(fit(estimator, X, DEAR))
    assert names(prepared) == ["label", "probabilities"]
    assert prepared.signature.fields == tuple(NUMBERS)


@pytest.mark.parametrize(
    "estimator",
    [
        PoissonRegressor(),
        ExtraTreesRegressor(10, random_state=0),
        make_pipeline(StandardScaler(), SVR()),
        KNeighborsRegressor(3),
    ],
)
def test_regressors(publish: Prepare, estimator: Any) -> None:
    assert names(publish(fit(estimator, X, COST))) == ["variable"]


@pytest.mark.parametrize(
    "selection",
    [
        SelectKBest(k=2),
        VarianceThreshold(0.5),
        SelectFromModel(DecisionTreeRegressor(random_state=0), threshold=-np.inf),
    ],
)
def test_feature_selection_travels_with_the_model(publish: Prepare, selection: Any) -> None:
    pipeline = fit(make_pipeline(StandardScaler(), selection, LogisticRegression()), X, DEAR)
    assert publish(pipeline).signature.fields == tuple(NUMBERS)


@pytest.mark.parametrize("step", [PCA(2), MinMaxScaler(), RobustScaler(), KNNImputer(), SimpleImputer()])
def test_transformers_give_their_features(publish: Prepare, step: Any) -> None:
    pipeline = fit(make_pipeline(step, LogisticRegression()), X, DEAR)
    assert names(publish(pipeline)) == ["label", "probabilities"]


def test_segments_come_with_the_distances_to_each(publish: Prepare) -> None:
    pipeline = fit(make_pipeline(StandardScaler(), KMeans(4, n_init=1, random_state=0)), X)
    prepared = publish(pipeline)
    assert [(output.field, output.shape) for output in prepared.signature.outputs] == [
        ("label", (None,)),
        ("scores", (None, 4)),
    ]
    rows = X.iloc[np.linspace(0, ROWS - 1, 100).astype(int)]
    np.testing.assert_allclose(outputs(prepared)["scores"], pipeline.transform(rows), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "vectorizer",
    [
        TfidfVectorizer(),
        TfidfVectorizer(ngram_range=(1, 2)),
        TfidfVectorizer(analyzer="char", ngram_range=(1, 2)),
        CountVectorizer(lowercase=False, binary=True),
    ],
)
def test_texts_of_a_field(publish: Prepare, vectorizer: Any) -> None:
    pipeline = fit(of_text(vectorizer), REVIEWS, GOOD)
    prepared = publish(pipeline)
    (binding,) = prepared.signature.inputs
    assert (binding.name, str(binding.dtype), binding.fields) == ("text", "string", ("text",))
    rows = REVIEWS.iloc[np.linspace(0, ROWS - 1, 100).astype(int)]
    np.testing.assert_allclose(outputs(prepared)["probabilities"], pipeline.predict_proba(rows), atol=1e-4)


def test_a_pipeline_trained_on_texts_alone(publish: Prepare) -> None:
    """As text classifiers are mostly written: `fit(texts, y)`, without any column's name."""
    pipeline = fit(make_pipeline(TfidfVectorizer(), LinearSVC()), REVIEWS.text, GOOD)
    examples = REVIEWS[["price", "text"]]
    assert publish(pipeline, examples).signature.fields == ("text",)
    assert publish(pipeline, examples.rename(columns={"text": "review"})).signature.fields == ("review",)


def test_which_of_several_texts_it_takes_is_asked(publish: Prepare) -> None:
    pipeline = fit(make_pipeline(TfidfVectorizer(), LogisticRegression()), REVIEWS.text, GOOD)
    with pytest.raises(UsageError, match="one text, and the examples have 2 columns of texts") as caught:
        publish(pipeline)
    assert "--fields text" in str(caught.value.hint)
    assert publish(pipeline, fields=["text"]).signature.fields == ("text",)


def test_lower_case_is_made_by_a_locale_that_containers_have(publish: Prepare) -> None:
    prepared = publish(fit(of_text(TfidfVectorizer()), REVIEWS, GOOD))
    assert b"C.UTF-8" in (prepared.directory / "model.onnx").read_bytes()


def test_numbers_categories_and_texts_in_one_pipeline(publish: Prepare) -> None:
    columns = ColumnTransformer(
        [
            ("numbers", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
            ("categories", OneHotEncoder(handle_unknown="ignore"), ["shop"]),
            ("text", TfidfVectorizer(), "text"),
        ]
    )
    prepared = publish(fit(make_pipeline(columns, LogisticRegression()), REVIEWS, GOOD))
    found = {b.name: str(b.dtype) for b in prepared.signature.inputs}
    assert found == {"price": "float32", "weight": "float32", "stars": "float32", "shop": "string", "text": "string"}


def test_imputed_and_scaled_numbers_before_trees_can_be_float64(publish: Prepare) -> None:
    random = np.random.default_rng(0)
    x = pd.DataFrame(random.normal(size=(4000, 3)) * [1, 100, 1e4] + [0, 1e3, 1e6], columns=list("abc"))
    y = x.a + random.normal(size=4000) > 0
    x.loc[::11, "b"] = np.nan
    told: list[str] = []
    model = make_pipeline(SimpleImputer(), StandardScaler(), RandomForestClassifier(30, random_state=0))
    prepared = publish(fit(model, x, y), x, progress=told.append)
    assert any("float64" in line for line in told)
    assert str(prepared.signature.inputs[0].dtype) == "float64"


@pytest.mark.parametrize(
    ("pipeline", "said"),
    [
        (of_text(TfidfVectorizer(analyzer=str.split)), "TfidfVectorizer splits texts by a function"),
        (of_text(TfidfVectorizer(ngram_range=(1, 2), stop_words=["the"])), "TfidfVectorizer joins words across"),
        (of_text(TfidfVectorizer(sublinear_tf=True)), "TfidfVectorizer takes logarithms"),
        (of_text(TfidfVectorizer(tokenizer=str.split)), "Custom tokenizer"),
        (of_text(TfidfVectorizer(analyzer="char_wb")), "TfidfVectorizer.*only tokenizer='word'"),
        (of_text(TfidfVectorizer(strip_accents="unicode")), "TfidfVectorizer.*strip_accents"),
        (of_text(HashingVectorizer(n_features=64)), "no converter for HashingVectorizer"),
    ],
)
def test_texts_that_cannot_be_converted_name_the_step(publish: Prepare, pipeline: Any, said: str) -> None:
    with pytest.raises(ConversionError, match=said) as caught:
        publish(fit(pipeline, REVIEWS, GOOD))
    assert caught.value.hint
    assert "http" not in str(caught.value)


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (make_pipeline(FunctionTransformer(np.abs), LogisticRegression()), "FunctionTransformer is not supported"),
        (MeanShift(), "no converter for MeanShift"),
        (make_pipeline(SelectKBest(k=1), LogisticRegression()), "SelectKBest keeps the first column only"),
    ],
)
def test_steps_that_cannot_be_converted_are_named(publish: Prepare, estimator: Any, said: str) -> None:
    with pytest.raises(ConversionError, match=said) as caught:
        publish(fit(estimator, X, DEAR))
    assert caught.value.hint


def test_what_is_converted_wrongly_without_a_word_is_seen(publish: Prepare) -> None:
    """An example that was trained on has the distance 0, which the converted graph weighs otherwise."""
    with pytest.raises(ParityError, match="disagrees with its original") as caught:
        publish(fit(KNeighborsRegressor(weights="distance"), X, COST))
    assert "Replace that step" in str(caught.value.hint)
