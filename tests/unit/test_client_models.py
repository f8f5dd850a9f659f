"""What `ModelClient` promises with several models: patterns, a budget of memory, staleness, loads that stall nobody."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelcast.consumer import ModelClient, following
from modelcast.consumer.loader import Loader
from modelcast.consumer.servable import memory_need
from modelcast.errors import BrokerError, LoadError, ModelNotFoundError, UsageError
from modelcast.log import Log

from .client_rig import ROWS, Repository
from .control_rig import DEADLINE_S, wait_until


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    return Repository(tmp_path)


def live(client: ModelClient) -> dict[str, int | None]:
    return {name: model.version for name, model in client.models.items()}


class TestPatterns:
    def test_names_pins_and_patterns_are_loaded_from_the_start_and_later_ones_as_they_appear(
        self, repository: Repository
    ) -> None:
        for model in ("fraud-de", "churn", "churn", "other"):
            repository.publish(100.0, model=model)
        with repository.client(models=["fraud-*", "churn@1"]) as client:
            wait_until(lambda: live(client) == {"churn@1": 1, "fraud-de": 1}, "what was asked for")
            repository.publish(100.0, model="fraud-fr")
            wait_until(lambda: live(client).get("fraud-fr") == 1, "a model that is new")
            assert client.models["fraud-fr"].predict(ROWS)["score"].tolist() == [111.0, 122.0]
            assert client.models["fraud-fr"] is client["fraud-fr"]
            client.follow("oth?r")
            wait_until(lambda: live(client).get("other") == 1, "a pattern that was added")
            client.wait_live(timeout_s=DEADLINE_S)

    def test_what_is_subscribed_to_is_a_mapping_that_never_waits(self, repository: Repository) -> None:
        with repository.client(models=["churn", "fraud@3"]) as client:
            models = client.models
            assert list(models) == ["churn", "fraud@3"]
            assert len(models) == 2
            assert repr(models) == "[<Model churn, live version None>, <Model fraud@3, live version None>]"
            for name in ("fraud", "fraud-*", "../x"):
                with pytest.raises(KeyError, match=name.replace("*", r"\*")):
                    models[name]
            client.model("fraud")
            assert "fraud" in models

    def test_a_name_nobody_published_leaves_nothing_unless_it_is_waited_for(self, repository: Repository) -> None:
        with repository.client(models=["fraud-*"]) as client:
            for name in ("fraud-x", "fraud-x@3"):
                with pytest.raises(ModelNotFoundError):
                    client[name]
                with pytest.raises(ModelNotFoundError):
                    asyncio.run(client.get(name))
            assert not client.models
            patient = client.model("fraud-y")
            with pytest.raises(ModelNotFoundError):
                client["fraud-y"]
            repository.publish(100.0, model="fraud-x")
            repository.publish(100.0, model="fraud-y")
            assert patient.wait_live(DEADLINE_S).version == 1
            wait_until(lambda: live(client) == {"fraud-x": 1, "fraud-y": 1}, "what the pattern means")

    def test_a_model_that_is_no_longer_wanted_is_let_go(self, repository: Repository) -> None:
        repository.publish(100.0)
        with repository.client() as client:
            fraud = client["fraud"]
            client.unsubscribe("fraud")
            assert not client.models
            with pytest.raises(ModelNotFoundError, match="nobody subscribed to 'fraud'"):
                fraud.predict(ROWS)
            with pytest.raises(ModelNotFoundError):
                client.unsubscribe("fraud")
            assert client["fraud"].predict(ROWS).version == 1
            assert fraud.predict(ROWS).version == 1, "whoever kept the model is not left behind"

    def test_a_model_that_was_kept_while_it_was_unsubscribed_is_awaited_again(self, repository: Repository) -> None:
        repository.publish(100.0)

        async def use() -> None:
            async with repository.client() as client:
                kept = await client.get("fraud")
                client.unsubscribe("fraud")
                client.model("fraud")
                assert (await kept.wait_live_async(DEADLINE_S)).version == 1
                client.unsubscribe("fraud")
                await client.get("fraud")
                assert (await kept.predict_async(ROWS)).version == 1

        asyncio.run(use())

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"models": ["fraud/*"]}, "not a pattern"),
            ({"models": ["../x"]}, "not a model name"),
            ({"keep": 2}, "keep can't be 2"),
            ({"memory_budget_bytes": 0}, "a memory budget of 0 bytes"),
            ({"memory_budget_bytes": "4GB"}, "a memory budget of '4GB' bytes"),
            ({"idle_s": -1.0}, "idle_s can't be -1"),
            ({"max_stale_s": 0.0}, "after 0 s"),
            ({"when_stale": "panic"}, "when_stale can't be 'panic'"),
            ({"preserve": "both"}, "can't preserve 'both'"),
        ],
    )
    def test_options_that_are_none_are_refused(
        self, repository: Repository, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(UsageError, match=message):
            repository.client(**options)

    def test_a_pattern_is_not_one_model(self, repository: Repository) -> None:
        with repository.client() as client, pytest.raises(UsageError, match=r"'fraud-\*' is a pattern.*follow"):
            client["fraud-*"]


class TestMemory:
    @pytest.fixture
    def one_model_bytes(self, repository: Repository) -> int:
        """A budget that two models exceed."""
        for model in ("churn", "fraud"):
            repository.publish(100.0, model=model)
        return memory_need(repository.manifests[-1]) * 3 // 2

    def test_idle_models_make_room_and_come_back_when_they_are_asked_for(
        self, repository: Repository, one_model_bytes: int
    ) -> None:
        with repository.client(memory_budget_bytes=one_model_bytes, idle_s=0.0, keep=0) as client:
            churn = client["churn"]
            fraud = client["fraud"]
            assert (churn.is_idle, fraud.is_idle) == (True, False)
            assert churn.predict(ROWS)["score"].tolist() == [111.0, 122.0]
            assert fraud.is_idle
            assert asyncio.run(fraud.predict_async(ROWS)).version == 1
            assert churn.is_idle
            assert client["churn"].version == 1

    def test_a_model_that_is_in_use_stays_and_the_other_is_told_why_it_can_not_come(
        self, repository: Repository, one_model_bytes: int
    ) -> None:
        with repository.client(memory_budget_bytes=one_model_bytes, idle_s=3600.0, timeout_s=0.1) as client:
            client.wait_live(["churn"], DEADLINE_S)

            def told(ask: Callable[[], object]) -> str:
                with pytest.raises((LoadError, ModelNotFoundError)) as caught:
                    ask()
                return str(caught.value)

            for ask in (lambda: client.model("fraud").predict(ROWS), lambda: client["fraud"]):
                wait_until(lambda ask=ask: "version 1 (memory): " in told(ask), "the model to find no room")
            assert client["churn"].predict(ROWS).version == 1


class Away:
    """A repository whose log can be away."""

    def __init__(self, repository: Repository) -> None:
        self.topics = repository.topics
        self.down = False
        self._log = repository.log

    def open_log(self) -> Log:
        return self  # type: ignore[return-value]

    def __getattr__(self, name: str) -> object:
        if self.down:
            raise BrokerError("no broker answers")
        return getattr(self._log, name)


def test_a_client_that_must_not_be_stale_stops_and_goes_on_when_it_is_not(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "PROBE_S", 0.05)
    repository.publish(100.0)
    away = Away(repository)
    with ModelClient(
        connection=away, cache_dir=repository.folder / "cache", state_dir=repository.folder / "state", device="cpu",
        max_stale_s=2.0, when_stale="stop",
    ) as client:  # fmt: skip
        fraud = client["fraud"]
        assert (client.is_stale, fraud.stale) == (False, None)
        away.down = True
        wait_until(lambda: fraud.stale, "the registry to be away for too long")
        wait_until(lambda: fraud.version is None, "the model to be let go")
        assert client.is_stale
        assert fraud.stale is not None
        assert fraud.stale.stop
        with pytest.raises(LoadError, match="stale"):
            fraud.predict(ROWS)
        away.down = False
        wait_until(lambda: fraud.version == 1, "the model to be back")
        assert fraud.predict(ROWS).version == 1


def test_a_load_stalls_no_predictions_of_other_models(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, gate = threading.Event(), threading.Event()
    load = Loader.load

    def held_up(loader: Loader, record: Any, *rest: Any) -> Any:
        if record.manifest.model == "large":
            entered.set()
            assert gate.wait(DEADLINE_S)
        return load(loader, record, *rest)

    monkeypatch.setattr(Loader, "load", held_up)
    repository.publish(100.0)
    repository.publish(200.0, model="large")
    with repository.client(models=["fraud"]) as client:
        fraud = client["fraud"]
        large = client.model("large")
        assert entered.wait(DEADLINE_S)
        for _ in range(100):
            assert fraud.predict(ROWS)["score"].tolist() == [111.0, 122.0]
        assert large.version is None
        with pytest.raises(ModelNotFoundError, match="no version of 'large' is live yet"):
            large.predict(ROWS)
        assert asyncio.run(fraud.predict_async(ROWS)).version == 1
        gate.set()
        assert large.wait_live(DEADLINE_S).predict(ROWS)["score"].tolist() == [211.0, 222.0]


def test_f24_predictions_wait_while_the_old_version_is_unloaded_first(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, entered, load = threading.Event(), threading.Event(), Loader.load

    def held_up(loader: Loader, record: Any, *rest: Any) -> Any:
        if record.manifest.version == 2:
            entered.set()
            assert gate.wait(DEADLINE_S)
        return load(loader, record, *rest)

    monkeypatch.setattr(Loader, "load", held_up)
    repository.publish(100.0)
    with repository.client(models=["fraud"], preserve="resources") as client:
        fraud = client["fraud"]
        repository.publish(200.0)
        assert entered.wait(DEADLINE_S)
        assert fraud.version is None
        answers: list[Any] = []
        waiting = threading.Thread(target=lambda: answers.append(fraud.predict(ROWS)))
        waiting.start()
        gate.set()
        waiting.join(DEADLINE_S)
        assert [(answer.version, answer["score"].tolist()) for answer in answers] == [(2, [211.0, 222.0])]
