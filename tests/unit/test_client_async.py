"""What `ModelClient` promises an event loop: it is never blocked, and what is cancelled is gone."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelcast.consumer import ModelClient, aside, model
from modelcast.consumer.model import Model, Prediction
from modelcast.consumer.servable import Servable
from modelcast.errors import BindingError, LoadError, ModelNotFoundError, UsageError

from .client_rig import ROWS, Repository
from .control_rig import DEADLINE_S

BATCH = {"amount": np.zeros(64, np.float32), "age": np.zeros(64, np.float32)}
# A tick of the loop that came later than this waited for a computation that does not end.
LONGEST_TICK_S = DEADLINE_S / 2
WAITING = 50


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    made = Repository(tmp_path)
    made.publish(100.0)
    return made


class SlowRun:
    """Models that wait, each time they run, until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.runs = 0
        run = Servable.run

        def slow(servable: Servable, columns: Any) -> Any:
            self.runs += 1
            self.entered.release()
            assert self.gate.wait(DEADLINE_S)
            return run(servable, columns)

        monkeypatch.setattr(Servable, "run", slow)

    async def wait_entered(self) -> None:
        """Waits until one more run has begun."""
        assert await asyncio.to_thread(self.entered.acquire, timeout=DEADLINE_S)


def with_client(repository: Repository, body: Callable[[ModelClient], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    async def main() -> Any:
        async with repository.client(**options) as client:
            return await body(client)

    return asyncio.run(main())


def test_a_model_is_got_and_predicts(repository: Repository) -> None:
    async def body(client: ModelClient) -> list[Prediction]:
        fraud = await client.get("fraud")
        return [await fraud.predict_async(ROWS), await fraud.run_async({"x": np.ones((2, 2), np.float32)})]

    by_fields, by_inputs = with_client(repository, body)
    assert by_fields["score"].tolist() == [111.0, 122.0]
    assert by_inputs["score"].tolist() == [102.0, 102.0]
    assert (by_fields.version, by_inputs.version) == (1, 1)


def test_what_is_not_there_is_told_as_without_a_loop(repository: Repository) -> None:
    repository.publish(1.0, model="wrong", golden_off_by=1.0)

    async def body(client: ModelClient) -> None:
        with pytest.raises(ModelNotFoundError, match="no model 'churn'"):
            await client.get("churn")
        with pytest.raises(LoadError, match=r"version 1 \(golden\)"):
            await client.get("wrong")
        with pytest.raises(LoadError, match=r"version 1 \(golden\)"):
            await client.model("wrong").predict_async(ROWS)
        with pytest.raises(UsageError, match="not a model name"):
            await client.get("../fraud")
        with pytest.raises(BindingError, match="field 'age' is missing"):
            await (await client.get("fraud")).predict_async({"amount": [1.0]})
        with pytest.raises(ModelNotFoundError):
            await client.wait_live_async(["churn"], 0.01)

    with_client(repository, body)


def test_what_is_published_later_is_waited_for(repository: Repository) -> None:
    async def body(client: ModelClient) -> int | None:
        waiting = asyncio.create_task(client.wait_live_async(["churn"], DEADLINE_S))
        await asyncio.sleep(0)
        await asyncio.to_thread(repository.publish, 1.0, model="churn")
        await waiting
        return client.model("churn").version

    assert with_client(repository, body) == 1


def test_a_slow_model_blocks_neither_the_loop_nor_another_model(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = SlowRun(monkeypatch)

    async def body(client: ModelClient) -> float:
        fraud = await client.get("fraud")
        pending = asyncio.create_task(fraud.predict_async(BATCH))
        await slow.wait_entered()
        longest = 0.0
        for _ in range(20):
            start = time.monotonic()
            assert (await fraud.run_async({"x": np.ones((1, 2), np.float32)})).version == 1
            longest = max(longest, time.monotonic() - start)
        assert not pending.done()
        slow.gate.set()
        assert (await pending).version == 1
        return longest

    assert with_client(repository, body) < LONGEST_TICK_S


def test_a_cancelled_prediction_ends_at_once_and_one_that_waited_never_runs(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "_MAX_THREADS", 1)
    slow = SlowRun(monkeypatch)

    async def body(client: ModelClient) -> None:
        fraud = await client.get("fraud")
        running = asyncio.create_task(fraud.predict_async(BATCH))
        await slow.wait_entered()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fraud.predict_async(BATCH), 0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        slow.gate.set()
        assert (await fraud.predict_async(BATCH)).version == 1

    with_client(repository, body)
    assert slow.runs == 2


def test_quick_batches_run_on_the_loop_and_slow_ones_never(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    run = Servable.run

    def watched(servable: Servable, columns: Any) -> Any:
        threads.append(threading.get_ident())
        return run(servable, columns)

    monkeypatch.setattr(Servable, "run", watched)

    async def body(client: ModelClient, inline_s: float) -> set[int]:
        monkeypatch.setattr(aside, "INLINE_S", inline_s)
        monkeypatch.setattr(aside, "_MISJUDGED_S", 10 * inline_s)
        fraud = await client.get("fraud")
        threads.clear()
        for _ in range(10):
            await fraud.predict_async(BATCH)
        return set(threads[1:])

    here = threading.get_ident()
    assert with_client(repository, lambda client: body(client, DEADLINE_S)) == {here}
    assert here not in with_client(repository, lambda client: body(client, 0.0))


def test_a_closed_client_says_so_to_those_who_wait_too(repository: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aside, "_MAX_THREADS", 1)
    slow = SlowRun(monkeypatch)

    async def body(client: ModelClient) -> None:
        fraud = await client.get("fraud")
        running, waiting = (asyncio.create_task(fraud.predict_async(BATCH)) for _ in range(2))
        looking = asyncio.create_task(client.wait_live_async(["churn"], DEADLINE_S))
        await slow.wait_entered()
        closing = asyncio.create_task(client.aclose())
        for task in (looking, asyncio.create_task(_until_closed(fraud))):
            with pytest.raises(UsageError, match="closed"):
                await task
        slow.gate.set()
        assert (await running).version == 1
        with pytest.raises(UsageError, match="closed"):
            await waiting
        await closing

    with_client(repository, body)


async def _until_closed(fraud: Model) -> None:
    while True:
        await fraud.wait_live_async(0.0)
        await asyncio.sleep(0.001)


def test_one_client_serves_several_loops(repository: Repository) -> None:
    with repository.client() as client:
        fraud = client["fraud"]
        versions = [asyncio.run(fraud.predict_async(ROWS)).version for _ in range(3)]
        assert len(client._aside._places) == 1, "loops that ended are let go"
    assert versions == [1, 1, 1]


def test_coroutines_look_for_a_model_without_a_thread_each(repository: Repository) -> None:
    async def body(client: ModelClient) -> tuple[int, int]:
        before = threading.active_count()
        waiting = [asyncio.create_task(client.wait_live_async(["churn"], DEADLINE_S)) for _ in range(WAITING)]
        await asyncio.sleep(4 * model._LOOK_S)
        during = threading.active_count()
        for task in waiting:
            task.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*waiting, return_exceptions=True)
        )
        return before, during

    before, during = with_client(repository, body)
    assert during < before + WAITING // 2  # the client may just have started one of its own
