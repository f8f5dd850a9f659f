"""pytest fixtures for suites of applications built on modelcast. In the `conftest.py` at the root of your tests:

    pytest_plugins = ["modelcast.testing.fixtures"]

- `modelcast_repository`: a new repository for the test. In memory; on a real broker where the test names
  `modelcast_broker`; where it is parametrised with `"memory"` or `"broker"` (indirectly), on that.
- `published_model("fraud", source, examples=…)` publishes to it, `model_client` is a `ModelClient` of it.
- `modelcast_log` is the log of a repository in memory, a `FaultyLog`: let it fail with `faults` and `away()`.
- `modelcast_broker`: one real local broker for the whole session.

Caches and state lie in the test's own folder, and no setting of the environment is in force.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE
from modelcast.names import ModelVersion

if TYPE_CHECKING:
    from modelcast.consumer import ModelClient
    from modelcast.dev.broker import LocalBroker

    from .faulty import FaultyLog
    from .repository import Repository


class PublishModel(Protocol):
    """What `published_model` is: publishes and releases a model, and says which version it became."""

    def __call__(
        self, model: str, source: Any, *, examples: Any = None, release: bool = True, **options: Any
    ) -> ModelVersion: ...


@pytest.fixture(scope="session")
def modelcast_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """A real Kafka broker on this machine for the whole session; it ends with it.

    Tests that can't have it fail with what to install: one that was skipped would look like one that passed.
    """
    from .broker import local_broker

    with local_broker(tmp_path_factory.mktemp("modelcast-broker")) as running:
        yield running


@pytest.fixture
def modelcast_log() -> FaultyLog:
    """The log of a repository in memory, without faults until you set some."""
    from .faulty import FaultyLog
    from .group import MemoryGroupLog

    return FaultyLog(MemoryGroupLog())


@pytest.fixture
def modelcast_repository(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """A new repository for the test; see the module for where it is."""
    from .broker import unique_name
    from .repository import Repository

    default = "broker" if "modelcast_broker" in request.fixturenames else "memory"
    place = getattr(request, "param", default)
    if place not in {"memory", "broker"}:
        raise pytest.UsageError(f"modelcast_repository can be in 'memory' or on a 'broker', not {place!r}")
    # Before the settings change: the broker finds its programs in the user's cache.
    broker: LocalBroker | None = request.getfixturevalue("modelcast_broker") if place == "broker" else None
    for name in [name for name in os.environ if name.startswith("MODELCAST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "modelcast-cache"))
    monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / "modelcast-state"))
    if broker is not None:
        return Repository.on(broker.bootstrap_servers, prefix=unique_name("test"))
    return Repository.in_memory(request.getfixturevalue("modelcast_log"))


@pytest.fixture
def published_model(modelcast_repository: Repository) -> PublishModel:
    """Publishes to the test's repository: an estimator, an ONNX model, or a Python function of event fields."""
    return modelcast_repository.publish


@pytest.fixture
def model_client(modelcast_repository: Repository) -> Iterator[ModelClient]:
    """A client of the test's repository, on the CPU; closed when the test ends."""
    from modelcast.consumer import ModelClient

    with ModelClient(connection=modelcast_repository, device="cpu") as client:
        yield client
