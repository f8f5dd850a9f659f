"""Fixtures of all tests. Everything here that needs a broker starts one only when a test asks for it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from modelcast.testing.broker import unique_name
from tests import brokers
from tests.brokers import Broker
from tests.secured import SecuredBroker, secured_broker

# Started in the background, a shell has its children ignore Ctrl-C, and theirs: tests of Ctrl-C would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A machine that is busy elsewhere makes no example wrong: what may take only so long is a test of its own.
hypothesis.settings.register_profile("modelcast", deadline=None)
hypothesis.settings.load_profile("modelcast")

# Nobody waits for it to come back; shut out for want of a processor, it would have no leader of any partition.
NEVER_KILLED = {"broker.session.timeout.ms": "18000"}
TESTS_WITH_A_BROKER = frozenset({"broker", "faults", "large"})  # folders
_ON_A_WORKER = "PYTEST_XDIST_WORKER"
FIXTURES_OF_CHOICE = frozenset({"broker", "own_broker", "large_broker"})
_CHOICE = pytest.StashKey[brokers.Choice]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--broker",
        choices=["auto", "container", "process"],
        default=os.environ.get(brokers.KIND_VARIABLE, "auto"),
        help="what Kafka brokers of tests run in; auto: containers where a Docker engine has or gets their image",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Chooses once a session, before there are workers, and not for unit tests alone."""
    if _ON_A_WORKER in os.environ or all("unit" in Path(argument).parts for argument in config.args):
        return
    try:
        config.stash[_CHOICE] = brokers.choose(config.getoption("broker"))
    except brokers.NoContainersError as error:
        raise pytest.UsageError(f"--broker=container: {error}") from None


def pytest_report_header(config: pytest.Config) -> str | None:
    choice = config.stash.get(_CHOICE, None)
    return None if choice is None else str(choice)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if TESTS_WITH_A_BROKER.intersection(item.path.relative_to(config.rootpath).parts):
            item.add_marker(pytest.mark.broker)
        if FIXTURES_OF_CHOICE.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.any_broker)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The session's broker. Tests share it: leave it running, and take names from `fresh_topic` and `prefix`."""
    with brokers.running_broker(tmp_path_factory.mktemp("broker"), server_properties=NEVER_KILLED) as running:
        yield running


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredBroker]:
    """The session's secured broker. Tests share it: make users and certificates of your own, by unique names."""
    with secured_broker(tmp_path_factory.mktemp("secured")) as running:
        yield running


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker of the test's own, to kill, pause and restart."""
    with brokers.running_broker(tmp_path / "own-broker") as running:
        yield running


@pytest.fixture
def fresh_topic() -> Callable[..., str]:
    """Gives topic names that nobody else uses; `fresh_topic("events")` → `events-4711-3`."""

    def name(stem: str = "topic") -> str:
        return unique_name(stem)

    return name


@pytest.fixture
def prefix() -> str:
    """A repository prefix that nobody else uses."""
    return unique_name("repository")
