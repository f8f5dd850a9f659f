"""A real broker for tests: one for a whole session, made to start fast and to die with the test process."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from modelcast.dev.broker import LocalBroker
from modelcast.errors import BrokerError

_serial = itertools.count(1)


@contextmanager
def local_broker(data_dir: Path, *, server_properties: dict[str, str] | None = None) -> Iterator[LocalBroker]:
    """Gives a running broker on a free port; it is stopped at the end, whatever state it was left in.

    Args:
        data_dir: Where it keeps its data; a temporary folder.
        server_properties: Broker settings that win over modelcast's own.

    Raises:
        BrokerError: Kafka can't be fetched or started. Tests fail on it: a skipped test would look like a passed one.
    """
    broker = LocalBroker(data_dir, die_with_parent=True, server_properties=server_properties)
    broker.start()
    try:
        yield broker
    finally:
        with suppress(BrokerError):  # it was slow to stop and was killed: nobody wants its data any more
            broker.stop()


def unique_name(stem: str) -> str:
    """Returns a name no other test of this or another process uses, fit for topics, groups and prefixes."""
    return f"{stem}-{os.getpid()}-{next(_serial)}"
