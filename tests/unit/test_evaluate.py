"""Candidate and champion, measured on the same rows; the gate that compares them. Each run is a real child process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from modelcast.errors import GateError, UsageError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.publisher import evaluate
from modelcast.publisher.endorsement import endorse
from modelcast.publisher.evaluate import Champions, Evaluation
from modelcast.publisher.gatekeeper import Gatekeeper
from modelcast.publisher.prepare import PreparedModel, prepare
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

from .prepared import prepared as files
from .trust_rig import admission, key

TOPICS = Topics("test")
ROWS = 400


def table(seed: int = 1) -> pl.DataFrame:
    """Three fields, a label that follows two of them."""
    random = np.random.default_rng(seed)
    columns = {name: random.normal(size=ROWS) for name in ("a", "b", "c")}
    label = columns["a"] + columns["b"] + random.normal(size=ROWS) * 0.3 > 0
    return pl.DataFrame({**columns, "fraud": label.astype(np.int64), "word": ["yes" if x else "no" for x in label]})


TRAINING, HOLDOUT = table(1), table(2)


def trained(folder: Path, *fields: str, label: str = "fraud") -> tuple[PreparedModel, LogisticRegression]:
    folder.mkdir()
    inputs = TRAINING.select(fields).to_numpy()
    model = LogisticRegression().fit(inputs, TRAINING[label].to_numpy())
    return prepare(model, TRAINING.head(50), fields=list(fields), directory=folder), model


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreparedModel, LogisticRegression]:
    return trained(tmp_path_factory.mktemp("models") / "good", "a", "b")


@pytest.fixture(scope="module")
def poor(tmp_path_factory: pytest.TempPathFactory) -> PreparedModel:
    return trained(tmp_path_factory.mktemp("models") / "poor", "a", "c")[0]


@pytest.fixture
def log() -> Iterator[MemoryLog]:
    with MemoryLog() as made:
        init(made, TOPICS)
        yield made


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path / "cache"))


def test_a_model_is_measured_as_its_original_would_be_a_part_at_a_time(
    good: tuple[PreparedModel, LogisticRegression], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, model = good
    HOLDOUT.write_parquet(tmp_path / "holdout.parquet")
    monkeypatch.setattr(evaluate, "PART_ROWS", 250)
    found = Evaluation(tmp_path / "holdout.parquet", "fraud").score(prepared.directory, prepared.signature, "it")
    inputs, truth = HOLDOUT.select("a", "b").to_numpy(), HOLDOUT["fraud"].to_numpy()
    assert found.metrics["auc"] == pytest.approx(roc_auc_score(truth, model.predict_proba(inputs)[:, 1]), abs=1e-6)
    assert found.metrics["accuracy"] == pytest.approx(model.score(inputs, truth))


def test_labels_may_be_texts_and_rows_a_frame(tmp_path: Path) -> None:
    prepared, model = trained(tmp_path / "words", "a", "b", label="word")
    found = Evaluation(HOLDOUT, "word").score(prepared.directory, prepared.signature, "it")
    expected = model.score(HOLDOUT.select("a", "b").to_numpy(), HOLDOUT["word"].to_numpy())
    assert found.metrics["accuracy"] == pytest.approx(expected)
    assert found.metrics["auc"] > 0.9


def test_rows_that_can_not_be_used_are_named(
    good: tuple[PreparedModel, LogisticRegression], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, _ = good

    def score(frame: pl.DataFrame, label: str = "fraud") -> None:
        Evaluation(frame, label).score(prepared.directory, prepared.signature, "the candidate")

    with pytest.raises(UsageError, match="has no column 'truth'; it has a, b, c, fraud, word"):
        score(HOLDOUT, "truth")
    monkeypatch.setattr(evaluate, "PART_ROWS", 3)
    for label, column in (("fraud", [0, 1, 0, 1, None]), ("word", ["a", "b", "a", "b", None])):
        frame = HOLDOUT.head(5).with_columns(pl.Series(label, column))
        with pytest.raises(UsageError, match=f"row 4 of the evaluation data has no label in column '{label}'"):
            score(frame, label)
    with pytest.raises(UsageError, match="can't feed the candidate: .*'b'"):
        score(HOLDOUT.drop("b"))


def keeper(log: MemoryLog, *require: str, told: list[str] | None = None, data: bool = True) -> Gatekeeper:
    champions = Champions(lambda cache: Fetcher(log, TOPICS, cache))
    evaluation = (Evaluation(HOLDOUT, "fraud"), champions) if data else None
    said = [] if told is None else told
    return Gatekeeper(require, {"auc": 0.99}, evaluation, tell=said.append, progress=lambda *_: None)


def test_candidate_and_champion_are_compared_on_the_same_rows(
    log: MemoryLog, good: tuple[PreparedModel, LogisticRegression], poor: PreparedModel
) -> None:
    registry = RegistryWriter(log, TOPICS)
    told: list[str] = []
    first = keeper(log, "auc>=champion-0.01", told=told)
    first.admit(good[0])
    published = registry.publish("fraud", good[0], release=True, gate=first, metrics={"auc": 0.99, "cost": 3.0})
    auc = published.manifest.metrics["auc"]
    assert 0.9 < auc < 0.99, "what was measured goes before what was stated"
    assert published.manifest.metrics["cost"] == 3.0
    assert published.gates == (f"auc {auc:.6g} >= champion-0.01 (no champion yet)",)
    assert told == ["evaluate"]

    second = keeper(log, "auc>=champion-0.01", "accuracy>=0.1", told=told)
    second.admit(poor)
    with pytest.raises(GateError, match="1 of 2 requirements is not met") as failed:
        registry.publish("fraud", poor, release=True, gate=second)
    assert f"fraud@1 has {auc:.6g}" in failed.value.message
    assert "met      accuracy" in failed.value.message
    assert list(registry.holder.view("fraud").entry.versions) == [1]
    assert told[1:] == ["evaluate", "evaluate the champion fraud@1"]

    third = keeper(log, "auc>=champion", "load_ms<champion*100")
    third.admit(good[0])
    assert registry.publish("fraud", good[0], release=True, gate=third).gates[0] == (
        f"auc {auc:.6g} >= {auc:.6g} (champion, fraud@1 has {auc:.6g})"
    )


def test_a_champion_is_measured_once_and_another_one_anew(
    log: MemoryLog, good: tuple[PreparedModel, LogisticRegression], poor: PreparedModel
) -> None:
    registry = RegistryWriter(log, TOPICS)
    registry.publish("fraud", good[0], release=True)
    told: list[str] = []
    gate = keeper(log, "auc>=champion-0.5", told=told)
    gate.admit(poor)
    for _ in range(2):
        gate(lambda: registry.holder.view("fraud"))
    registry.publish("fraud", poor, release=True)
    assert "fraud@2 has" in gate(lambda: registry.holder.view("fraud")).passed[0]
    assert told == ["evaluate", "evaluate the champion fraud@1", "evaluate the champion fraud@2"]


def test_without_rows_the_champions_stated_metric_is_the_measure(
    log: MemoryLog, good: tuple[PreparedModel, LogisticRegression]
) -> None:
    registry = RegistryWriter(log, TOPICS)
    registry.publish("fraud", good[0], release=True, metrics={"auc": 0.995})
    gate = keeper(log, "auc>=champion-0.01", data=False)
    gate.admit(good[0])
    view = registry.holder.view("fraud")
    assert gate(lambda: view).passed == ("auc 0.99 >= 0.985 (champion-0.01, fraud@1 has 0.995)",)
    registry.publish("fraud", good[0], release=True)
    with pytest.raises(UsageError, match="fraud@2 has none in its manifest") as refused:
        gate(lambda: registry.holder.view("fraud"))
    assert "--evaluate" in (refused.value.hint or "")


def test_what_nobody_will_measure_is_refused_before_anything_is_done(log: MemoryLog) -> None:
    with pytest.raises(UsageError, match="'f1', which was neither stated nor measured"):
        keeper(log, "f1>=0.5", data=False)
    keeper(log, "f1>=0.5", "peak_bytes<1e12")  # measured later


def test_the_cache_of_a_fetched_champion_is_left_tidy(
    log: MemoryLog, good: tuple[PreparedModel, LogisticRegression], tmp_path: Path
) -> None:
    registry = RegistryWriter(log, TOPICS)
    registry.publish("fraud", good[0], release=True)
    record = registry.holder.view("fraud").entry.version(1)
    with Champions(lambda cache: Fetcher(log, TOPICS, cache)).fetched(record) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["examples.npz", "model.onnx"]
    assert not folder.exists()
    assert not list((tmp_path / "cache" / "models" / "views").iterdir())
    cache = Cache()
    assert all(cache.has(entry) for entry in record.manifest.files)
    cache.close()


def test_a_champion_released_during_the_upload_is_the_one_to_beat(log: MemoryLog, tmp_path: Path) -> None:
    registry, rival = RegistryWriter(log, TOPICS), RegistryWriter(log, TOPICS)
    registry.publish("fraud", files(tmp_path / "a", {"model.onnx": b"a"}), release=True, metrics={"auc": 0.9})
    registry.publish("fraud", files(tmp_path / "b", {"model.onnx": b"b"}), release=False, metrics={"auc": 0.999})
    gate = keeper(log, "auc>=champion", data=False)  # of the candidate's 0.99
    asked: list[int] = []

    def release_a_better_one(*_: object) -> None:
        if not asked:
            asked.append(rival.release("fraud", 2).version)

    with pytest.raises(GateError, match="fraud@2 has 0.999"):
        registry.publish(
            "fraud",
            files(tmp_path / "c", {"model.onnx": b"c"}),
            release=True,
            metrics={"auc": 0.99},
            gate=gate,
            progress=release_a_better_one,
        )
    entry = registry.holder.view("fraud").entry
    assert list(entry.versions) == [1, 2]
    assert entry.champion is not None
    assert entry.champion.version == 2


class TestUnderAPolicy:
    """The champion to beat is the one that consumers run."""

    BOTH = "fraud: alice bob: 2"

    def writer(self, log: MemoryLog, *names: str) -> RegistryWriter:
        under = admission(self.BOTH, one_is_enough=True)
        return RegistryWriter(log, TOPICS, signers=[key(name) for name in names], admission=under)

    def test_what_waits_for_a_signature_is_not_the_champion(self, log: MemoryLog, tmp_path: Path) -> None:
        first, poor, next_ = (files(tmp_path / name, {"model.onnx": name.encode()}) for name in "abc")
        self.writer(log, "alice", "bob").publish("fraud", first, release=True, metrics={"auc": 0.995})
        alice = self.writer(log, "alice")
        alice.publish("fraud", poor, release=True, metrics={"auc": 0.1})
        gate = keeper(log, "auc>=champion", data=False)  # of the candidate's 0.99
        with pytest.raises(GateError, match=r"fraud@1 has 0\.995"):
            alice.publish("fraud", next_, release=True, gate=gate)
        with pytest.raises(GateError, match=r"fraud@1 has 0\.995"):
            alice.rehearse("fraud", next_, release=True, gate=gate)

    def test_a_champion_whose_manifest_does_not_count_can_not_be_beaten(self, log: MemoryLog, tmp_path: Path) -> None:
        model = files(tmp_path / "a", {"model.onnx": b"a"})
        alice, bob = self.writer(log, "alice"), self.writer(log, "bob")
        alice.publish("fraud", model, release=True, metrics={"auc": 0.995})
        endorse(bob.holder, "fraud", None)  # the release, and not the version
        relative, plain = (keeper(log, text, data=False) for text in ("auc>=champion", "auc>=0.5"))
        with pytest.raises(
            GateError, match=r"'auc>=champion' follows the champion, .*fraud@1 is not admitted"
        ) as failed:
            alice.publish("fraud", model, release=True, gate=relative)
        assert "modelcast show fraud@1" in (failed.value.hint or "")
        assert alice.publish("fraud", model, release=True, gate=plain).manifest.version == 2
