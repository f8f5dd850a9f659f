"""Which brokers tests run on: containers where there is a Docker engine, else processes of this machine.

`--broker` or MODELCAST_TEST_BROKER says `container`, `process` or, by default, `auto`. KAFKA_IMAGE says which image.
The choice is made once, by the process that starts pytest's workers, which find it in their environment.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from modelcast.testing.broker import local_broker

if TYPE_CHECKING:
    from docker import DockerClient

KIND_VARIABLE = "MODELCAST_TEST_BROKER"
IMAGE_VARIABLE = "KAFKA_IMAGE"
OFFICIAL_IMAGE = "apache/kafka:4.3.1"
PULL_SILENCE_S = 60  # of a registry's, before a pull counts as impossible; a slow one says something all the time

_REAPER_VARIABLE = "TESTCONTAINERS_RYUK_DISABLED"
_ENGINE_VARIABLE = "DOCKER_HOST"
_ENGINE_SOCKET = Path("/var/run/docker.sock")


class Broker(Protocol):
    """What tests ask of a broker, whatever it runs in."""

    @property
    def bootstrap_servers(self) -> str: ...
    @property
    def running(self) -> bool: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def kill(self) -> None: ...
    def restart(self) -> None: ...
    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Where brokers run.

    Attributes:
        kind: `container` or `process`.
        reason: Why, where it was not asked for; else empty.
    """

    kind: str
    reason: str = ""

    def __str__(self) -> str:
        what = f"containers of {image()}" if self.kind == "container" else "processes on this machine"
        return f"brokers: {what}{self.reason and f' ({self.reason})'}"


class NoContainersError(Exception):
    """There is no Docker engine, or no image for it."""


def image() -> str:
    """Returns the image that brokers in containers are made of."""
    return os.environ.get(IMAGE_VARIABLE) or OFFICIAL_IMAGE


def in_containers() -> bool:
    """Returns whether this session's brokers are containers."""
    return os.environ.get(KIND_VARIABLE) == "container"


def choose(wanted: str) -> Choice:
    """Decides where brokers run, and tells whatever is started from here.

    Args:
        wanted: `container`, `process` or `auto`.

    Raises:
        NoContainersError: Containers are asked for and can't be had.
    """
    choice = Choice("process")
    if wanted != "process":
        try:
            _prepare_engine()
            choice = Choice("container")
        except NoContainersError as error:
            if wanted == "container":
                raise
            choice = Choice("process", str(error))
    os.environ[KIND_VARIABLE] = choice.kind
    return choice


@contextmanager
def running_broker(folder: Path, *, server_properties: Mapping[str, str] | None = None) -> Iterator[Broker]:
    """Gives a running broker where this session's brokers run; it ends with the context, and its data with it.

    Args:
        folder: Where a process keeps its data.
        server_properties: Broker settings that win over all others.
    """
    if not in_containers():
        with local_broker(folder, server_properties=dict(server_properties or {})) as process:
            yield process
        return
    from .containers import ContainerBroker

    container = ContainerBroker(image(), server_properties=server_properties)
    try:
        container.start()
        yield container
    finally:
        container.remove()


def topic_folders(broker: Broker, scratch: Path) -> Path:
    """Returns where a broker's partitions lie as folders; a container's are copied to `scratch`."""
    return broker.copy_data(scratch) if in_containers() else broker.data_dir / "kafka"


def _prepare_engine() -> None:
    """Finds the engine and the image, and the image that removes what tests leave."""
    if _ENGINE_VARIABLE not in os.environ and not _ENGINE_SOCKET.exists():  # asked first: the client takes long to load
        raise NoContainersError(f"no Docker engine: {_ENGINE_VARIABLE} is not set, and there is no {_ENGINE_SOCKET}")
    engine = _engine()
    try:
        if (problem := _missing(engine, image())) is not None:
            raise NoContainersError(f"{image()} can't be pulled: {problem}; `make image` builds one")
        if _REAPER_VARIABLE not in os.environ:
            from testcontainers.core.config import testcontainers_config

            if _missing(engine, testcontainers_config.ryuk_image) is not None:
                os.environ[_REAPER_VARIABLE] = "true"  # tests remove their containers; nobody does after a kill -9
    finally:
        engine.close()


def _engine() -> DockerClient:
    """A client of an engine that answers."""
    import docker
    from docker.errors import DockerException

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the client leaves the socket open that nobody answered
        try:
            engine = docker.from_env(timeout=PULL_SILENCE_S)
            engine.ping()
            return engine
        except (DockerException, OSError) as error:
            reason = str(error)
        gc.collect()
    raise NoContainersError(f"no Docker engine answers: {reason}")


def _missing(engine: DockerClient, name: str) -> str | None:
    """Why an image is neither there nor can be pulled."""
    from docker.errors import DockerException, ImageNotFound

    try:
        engine.images.get(name)
    except ImageNotFound:
        print(f"pulling {name}", file=sys.stderr)
        try:
            engine.images.pull(name)
        except (DockerException, OSError) as error:
            return str(error)
    return None
