"""docs/CLIENT.md's examples, executed as they stand, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from modelcast.config import Connection
from modelcast.registry.repository import init
from tests.brokers import Broker
from tests.documented import blocks

BLOCKS = blocks("docs/CLIENT.md")
_TIMEOUT_S = 240


@pytest.fixture
def python(broker: Broker, prefix: str, tmp_path: Path) -> Callable[[str], str]:
    """Runs a block with warnings as errors, and gives what it prints."""
    connection = Connection.resolve(broker.bootstrap_servers, prefix=prefix)
    with connection.open_log() as log:
        init(log, connection.topics, blob_partitions=2)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MODELCAST_", "PYTEST_"))}
    environment |= {
        "MODELCAST_BOOTSTRAP_SERVERS": broker.bootstrap_servers,
        "MODELCAST_PREFIX": prefix,
        "MODELCAST_CACHE_DIR": str(tmp_path / "cache"),
    }

    def run(code: str) -> str:
        # A state folder of its own: what another block remembered of the registry would stand in for a slow answer.
        state = {"MODELCAST_STATE_DIR": tempfile.mkdtemp(dir=tmp_path)}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            cwd=tmp_path, env=environment | state, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{code}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def test_the_examples_run_as_they_stand(python: Callable[[str], str]) -> None:
    examples = dict(BLOCKS)
    python(examples.pop("before"))
    printed = {name: python(code).splitlines() for name, code in examples.items()}
    assert printed.pop("one model") == ["1 variable (2, 1)"]
    assert printed.pop("rows") == [*["[(2, 1)]"] * 2, "[(1, 1)]", *["[(2, 1)]"] * 2, "1"]
    assert printed.pop("asyncio") == ["{1}"]
    told = " ".join(printed.pop("hooks"))  # by two threads, in any order
    assert all(words in told for words in ("fraud@1 is live after None, loaded in ", "fraud changed", "()"))
    assert printed.pop("many models") == ["churn-de 1 False", "churn-fr 1 False", "fraud@1 1 False"]
    assert printed.pop("stale") == ["False 0 None"]
    assert not printed
