"""What `ModelClient` promises an application: real models, published for real onto an in-memory log."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from modelcast import consumer
from modelcast.consumer import ModelClient
from modelcast.errors import (
    BindingError,
    LoadError,
    MissingExtraError,
    ModelNotFoundError,
    RepositoryNotFoundError,
    UsageError,
    VersionNotFoundError,
)
from modelcast.records import ModelState

from .client_rig import ROWS, Repository
from .control_rig import DEADLINE_S, wait_until


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    return Repository(tmp_path)


@pytest.fixture
def client(repository: Repository) -> Iterator[ModelClient]:
    with repository.client() as made:
        yield made


def test_predict_gives_the_outputs_and_says_which_version(repository: Repository, client: ModelClient) -> None:
    repository.publish(100.0)
    prediction = client["fraud"].predict(ROWS)
    assert dict(prediction).keys() == {"score"}
    assert prediction["score"].tolist() == [111.0, 122.0]
    assert (prediction.version, str(prediction.id)) == (1, "fraud@1")


def test_the_graphs_own_inputs_are_run_as_they_are(repository: Repository, client: ModelClient) -> None:
    repository.publish(100.0)
    prediction = client["fraud"].run({"x": np.array([[1, 10], [2, 20]], np.float32)})
    assert prediction["score"].tolist() == [111.0, 122.0]
    assert prediction.version == 1
    assert client["fraud"].run({"x": np.empty((0, 2), np.float32)})["score"].tolist() == []


def test_inputs_the_graph_does_not_take_are_named(repository: Repository, client: ModelClient) -> None:
    repository.publish(100.0)
    for feeds, message in (
        ({}, "input 'x' is missing"),
        ({"x": 1.0}, "input 'x' is a float"),
        ({"x": np.ones((1, 2))}, "input 'x' is an array of float64, the model needs an array of float32"),
        ({"x": np.ones((1, 3), np.float32)}, r"input 'x' has shape \[1, 3\], the model needs \[N, 2\]"),
    ):
        with pytest.raises(BindingError, match=message):
            client["fraud"].run(feeds)


@pytest.mark.parametrize(
    "rows", [[{"amount": 1.0, "age": 10}, {"amount": 2.0, "age": 20}], pl.DataFrame(ROWS), {**ROWS, "other": "x"}]
)
def test_rows_come_in_the_shape_the_application_has(repository: Repository, client: ModelClient, rows: object) -> None:
    repository.publish(100.0)
    assert client["fraud"].predict(rows)["score"].tolist() == [111.0, 122.0]


def test_one_event_of_scalars_is_one_row(repository: Repository, client: ModelClient) -> None:
    repository.publish(100.0)
    assert client["fraud"].predict({"amount": 1, "age": 2})["score"].tolist() == [103.0]


def test_a_release_is_live_without_anyone_asking(repository: Repository, client: ModelClient) -> None:
    repository.publish(100.0)
    fraud = client["fraud"]
    swaps: list[tuple[int | None, int]] = []
    fraud.on_swap(lambda event: swaps.append((event.old and event.old.version, event.new.version)))
    repository.publish(200.0)
    wait_until(lambda: fraud.version == 2, "version 2 to be live")
    assert fraud.predict(ROWS)["score"].tolist() == [211.0, 222.0]
    repository.writer.rollback("fraud")
    wait_until(lambda: fraud.version == 1, "version 1 to be back")
    assert fraud.predict(ROWS)["score"].tolist() == [111.0, 122.0]
    wait_until(lambda: len(swaps) == 2, "both swaps to be told")
    assert swaps == [(1, 2), (2, 1)]


def test_a_pin_stays_what_it_is(repository: Repository, client: ModelClient) -> None:
    repository.publish(100.0)
    pinned = client["fraud@1"]
    repository.publish(200.0)
    wait_until(lambda: client["fraud"].version == 2, "version 2 to be live")
    assert pinned.predict(ROWS).version == 1


def test_a_version_that_was_not_released_can_be_pinned(repository: Repository, client: ModelClient) -> None:
    repository.publish(100.0)
    repository.publish(200.0, release=False)
    assert client["fraud@2"].predict(ROWS)["score"].tolist() == [211.0, 222.0]
    assert client["fraud"].version == 1


def test_f23_a_version_whose_golden_examples_are_off_leaves_the_old_one(
    repository: Repository, client: ModelClient
) -> None:
    repository.publish(100.0)
    fraud = client["fraud"]
    repository.publish(200.0, golden_off_by=1.0)
    wait_until(lambda: fraud.refusals, "the refusal")
    assert [(refusal.version, refusal.reason) for refusal in fraud.refusals] == [(2, "golden")]
    assert fraud.predict(ROWS).version == 1
    repository.publish(300.0)
    wait_until(lambda: fraud.version == 3, "version 3 to be live")


def test_whoever_asks_is_told_of_swaps_and_refusals_in_order(repository: Repository, client: ModelClient) -> None:
    told: list[str] = []
    client.on_swap(lambda event: told.append(f"any {event.new}"))
    client.model("fraud").on_swap(lambda event: told.append(f"fraud {event.new}"))
    client.model("fraud").on_refused(lambda refusal: told.append(f"fraud {refusal.version} {refusal.reason}"))
    client.on_refused(lambda ref, refusal: told.append(f"any {ref} {refusal.version}"))
    repository.publish(1.0, model="churn")
    client.model("churn").wait_live(DEADLINE_S)
    repository.publish(100.0)
    client.model("fraud").wait_live(DEADLINE_S)
    repository.publish(200.0, golden_off_by=1.0)
    wait_until(lambda: len(told) == 5, "all to be told")
    assert told == ["any churn@1", "any fraud@1", "fraud fraud@1", "fraud 2 golden", "any fraud 2"]


def test_a_callback_that_waits_for_a_model_holds_up_none(repository: Repository, client: ModelClient) -> None:
    repository.publish(100.0)
    seen: list[int | None] = []

    def wait_for_the_next(event: object) -> None:
        client.wait_live(["churn"], DEADLINE_S)
        seen.append(client["churn"].version)

    client.model("fraud").on_swap(wait_for_the_next)
    client["fraud"].predict(ROWS)
    repository.publish(1.0, model="churn")
    wait_until(lambda: seen == [1], "the callback to see the other model live")


def test_models_named_at_the_start_are_loaded_without_being_asked_for(repository: Repository) -> None:
    repository.publish(100.0)
    with repository.client(models=["fraud"]) as client:
        wait_until(lambda: client.status.models[0].state is ModelState.LIVE, "fraud to be live")


def test_wait_live_waits_for_what_is_not_published_yet(repository: Repository, client: ModelClient) -> None:
    timer = threading.Timer(0.1, lambda: repository.publish(100.0))
    timer.start()
    client.wait_live(["fraud"], DEADLINE_S)
    assert client["fraud"].version == 1
    timer.join()


def test_whoever_is_not_patient_is_told_as_soon_as_waiting_can_not_help(
    repository: Repository, client: ModelClient
) -> None:
    fraud = client.model("fraud")
    started = time.monotonic()
    with pytest.raises(ModelNotFoundError, match="no model 'fraud'"):
        fraud.wait_live(DEADLINE_S, patient=False)
    with pytest.raises(ModelNotFoundError, match="no model 'fraud'"):
        asyncio.run(fraud.wait_live_async(DEADLINE_S, patient=False))
    assert time.monotonic() - started < DEADLINE_S
    repository.publish(100.0)
    assert fraud.wait_live(DEADLINE_S).wait_live(DEADLINE_S, patient=False).version == 1


@pytest.mark.parametrize("name", consumer.__all__)
def test_everything_offered_is_there_and_says_what_it_is(name: str) -> None:
    assert (getattr(consumer, name).__doc__ or "").strip()


class TestErrors:
    def test_an_unknown_model_is_named_at_once(self, client: ModelClient) -> None:
        started = time.monotonic()
        with pytest.raises(ModelNotFoundError, match="no model 'fraud'"):
            client["fraud"]
        assert time.monotonic() - started < 20  # who waits for a model has 30 s

    def test_a_model_found_missing_once_is_found_when_it_is_there(
        self, repository: Repository, client: ModelClient
    ) -> None:
        with pytest.raises(ModelNotFoundError):
            client["fraud"]
        repository.publish(100.0)
        wait_until(lambda: client.model("fraud").version == 1, "fraud to be live")
        assert client["fraud"].predict(ROWS).version == 1

    def test_an_unreleased_model_is_told_how_to_release_it(self, repository: Repository, client: ModelClient) -> None:
        repository.publish(100.0, release=False)
        with pytest.raises(VersionNotFoundError, match="modelcast release fraud 1"):
            client["fraud"]

    def test_an_unknown_version_is_named(self, repository: Repository, client: ModelClient) -> None:
        repository.publish(100.0)
        with pytest.raises(VersionNotFoundError, match="has no version 7") as raised:
            client["fraud@7"]
        assert "modelcast history fraud" in (raised.value.hint or "")

    def test_a_model_of_which_no_version_can_serve_says_why(self, repository: Repository, client: ModelClient) -> None:
        repository.publish(100.0, golden_off_by=1.0)
        with pytest.raises(LoadError, match=r"version 1 \(golden\)"):
            client["fraud"]

    def test_a_missing_field_is_named(self, repository: Repository, client: ModelClient) -> None:
        repository.publish(100.0)
        with pytest.raises(BindingError, match="field 'age' is missing"):
            client["fraud"].predict({"amount": [1.0]})

    def test_predicting_before_anything_is_live_says_so(self, client: ModelClient) -> None:
        with pytest.raises(ModelNotFoundError, match="no version of 'fraud' is live"):
            client.model("fraud").predict(ROWS)

    def test_no_repository_is_told(self, tmp_path: Path) -> None:
        with (
            Repository(tmp_path, initialised=False).client() as client,
            pytest.raises(RepositoryNotFoundError, match="modelcast init"),
        ):
            client["fraud"]

    def test_a_name_that_is_none_is_refused(self, client: ModelClient) -> None:
        with pytest.raises(UsageError, match="not a model name"):
            client["../fraud"]

    def test_no_runtime_is_told_when_the_client_is_made(
        self, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "onnxruntime", None)
        with pytest.raises(MissingExtraError, match=r"modelcast\[cpu\]"):
            repository.client()


def test_folders_may_be_named_as_text(repository: Repository) -> None:
    repository.publish(100.0)
    folder = repository.folder
    with ModelClient(connection=repository, cache_dir=str(folder / "c"), state_dir=str(folder / "s")) as client:
        assert client["fraud"].version == 1
    assert (folder / "c" / "blobs").is_dir()


class TestEnding:
    def test_a_closed_client_says_so(self, repository: Repository) -> None:
        repository.publish(100.0)
        client = repository.client()
        fraud = client["fraud"]
        client.close()
        client.close()
        for use in (lambda: client["fraud"], lambda: fraud.predict(ROWS), client.__enter__):
            with pytest.raises(UsageError, match="closed"):
                use()

    def test_threads_end_with_the_client(self, repository: Repository) -> None:
        before = threading.active_count()
        repository.publish(100.0)
        with repository.client() as client:
            client["fraud"].predict(ROWS)
        wait_until(lambda: threading.active_count() <= before, "the client's threads to end")

    def test_a_fork_is_told_to_make_its_own(self, repository: Repository, client: ModelClient) -> None:
        repository.publish(100.0)
        fraud = client["fraud"]
        answer, mine = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # later Pythons warn of forks beside threads
            child = os.fork()
        if child == 0:
            _use_in_fork(fraud.predict, mine)
        os.close(mine)
        os.waitpid(child, 0)
        with os.fdopen(answer) as text:
            assert "fork" in text.read()
        assert fraud.predict(ROWS).version == 1


def _use_in_fork(predict: Callable[[object], object], answer: int) -> None:
    try:
        predict(ROWS)
    except UsageError as error:
        os.write(answer, str(error).encode())
    finally:
        os._exit(0)


def test_predictions_of_many_threads_never_mix_versions_nor_miss_one(
    repository: Repository, client: ModelClient
) -> None:
    repository.publish(1000.0)
    fraud = client["fraud"]
    stop = threading.Event()
    wrong: list[object] = []
    versions: list[set[int]] = [set(), set(), set()]

    def use(seen: set[int]) -> None:
        rows = {"amount": np.zeros(64, np.float32), "age": np.zeros(64, np.float32)}
        while not stop.is_set():
            try:
                prediction = fraud.predict(rows)
            except Exception as error:
                wrong.append(error)
                return
            seen.add(prediction.version)
            if set(prediction["score"].tolist()) != {1000.0 * prediction.version}:
                wrong.append(prediction)

    threads = [threading.Thread(target=use, args=(seen,)) for seen in versions]
    for thread in threads:
        thread.start()
    for version in range(2, 9):
        repository.publish(1000.0 * version)
        wait_until(lambda v=version: fraud.version == v, f"version {version} to be live")
    wait_until(lambda: wrong or all(8 in seen for seen in versions), "every thread to see version 8")
    stop.set()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert not wrong
