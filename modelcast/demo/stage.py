"""Where the demonstration plays: a broker, a repository, topics and a folder of its own; all gone afterwards.

- Without a broker given it starts one of its own, in a temporary folder, which dies with this process at the latest.
- On a broker that was given, every name has a prefix nobody else uses, and topics and group are deleted at the end.
- Model caches, release marks and instance ids go to the temporary folder, not to the user's.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelcast.config import BOOTSTRAP, Connection
from modelcast.demo.interrupts import Interrupts
from modelcast.dev.broker import LocalBroker
from modelcast.errors import ModelcastError
from modelcast.folders import STATE_VARIABLE
from modelcast.registry.repository import init

MODEL: Final = "delays"
# Order is kept within a partition, and more than one is what users have.
EVENT_PARTITIONS: Final = 4
_BLOB_PARTITIONS: Final = 1  # a dozen models of 150 KB


@dataclass(frozen=True)
class Stage:
    """What everybody in the play needs to know."""

    connection: Connection
    folder: Path

    @property
    def events(self) -> str:
        return f"{self.connection.prefix}.flights"

    @property
    def predictions(self) -> str:
        return f"{self.connection.prefix}.{MODEL}"

    @property
    def dead_letters(self) -> str:
        return f"{self.predictions}.dead-letters"

    @property
    def group(self) -> str:
        return f"{self.connection.prefix}.scorer"

    @property
    def cache_dir(self) -> Path:
        return self.folder / "cache"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"


@contextmanager
def set_up(
    given: Connection | None,
    interrupts: Interrupts,
    *,
    warn: Callable[[str], None],
    on_download: Callable[[int, int], None] | None = None,
) -> Iterator[Stage]:
    """Makes the stage, and takes everything away at the end.

    Args:
        given: A broker to play on, and the beginning of the prefix; None starts one.
        interrupts: What may cut the making short.
        warn: Told what could not be taken away.
        on_download: Told about the download of Kafka, at the first start on a machine.

    Raises:
        BrokerError: There is no broker, or none could be started.
        MissingExtraError: A broker is to be started and what that takes is not installed.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="modelcast-demo-")))
        prefix = f"{given.prefix if given else 'demo'}-{secrets.token_hex(4)}"
        if given is None:
            broker = LocalBroker(folder / "broker", die_with_parent=True)
            stack.push(lambda kind, _error, _trace: _end(broker, in_order=kind is None))
            with interrupts.at_once():
                broker.start(on_progress=on_download)
            connection = Connection({BOOTSTRAP: broker.bootstrap_servers}, prefix)
        else:
            connection = Connection(given.settings, prefix)
        stage = Stage(connection, folder)
        if given is not None:
            stack.callback(_remove_from, stage, warn)
        stack.enter_context(_variable(STATE_VARIABLE, str(stage.state_dir)))
        with stage.connection.open_log() as log:
            init(log, stage.connection.topics, blob_partitions=_BLOB_PARTITIONS)
        yield stage


def _end(broker: LocalBroker, *, in_order: bool) -> None:
    if in_order:
        broker.stop()  # keeps what makes the next start faster
    else:
        broker.kill()


def _remove_from(stage: Stage, warn: Callable[[str], None]) -> None:
    from modelcast.kafka.removal import remove

    repository = stage.connection.topics
    own = (repository.registry, repository.schemas, repository.blobs, repository.status)
    applications = (stage.events, stage.predictions, stage.dead_letters)
    try:
        remove(stage.connection.settings, topics=[*own, *applications], groups=[stage.group])
    except ModelcastError as error:
        warn(f"what begins with {stage.connection.prefix} on the broker was not all deleted: {error}")


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
