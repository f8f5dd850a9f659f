"""What a publisher is told, looked at before anything is done with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelcast.config import Connection
from modelcast.errors import ExitCode, UsageError
from modelcast.publisher.publisher import ModelPublisher
from modelcast.registry.repository import init
from modelcast.testing.memory import MemoryLog

# What a byte that is no UTF-8 becomes in a command's arguments.
HALF = "told \udcff"

CALLS: dict[str, Callable[[ModelPublisher], object]] = {
    "publish": lambda publisher: publisher.publish("fraud", "absent.onnx", examples="absent.csv", message=HALF),
    "publish a metric": lambda publisher: publisher.publish(
        "fraud", "absent.onnx", examples="absent.csv", metrics={HALF: 1.0}
    ),
    "release": lambda publisher: publisher.release("fraud", 1, message=HALF),
    "rollback": lambda publisher: publisher.rollback("fraud", message=HALF),
    "delete": lambda publisher: publisher.delete("fraud", 1, message=HALF),
}


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelPublisher]:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    connection = Connection({"bootstrap.servers": "memory"})
    with MemoryLog() as log:
        init(log, connection.topics)
        monkeypatch.setattr(Connection, "open_log", lambda _: log)
        with ModelPublisher.connect(connection) as made:
            yield made


def test_a_renewal_that_nobody_signs_is_refused(publisher: ModelPublisher) -> None:
    with pytest.raises(UsageError, match="nobody signs the renewal of 'fraud'") as refused:
        publisher.release("fraud", 1, renew=True)
    assert "--sign" in (refused.value.hint or "")


@pytest.mark.parametrize("call", CALLS)
def test_words_that_are_no_utf_8_are_refused_before_the_model_is_looked_at(
    publisher: ModelPublisher, call: str
) -> None:
    with pytest.raises(UsageError, match=r"'told \\udcff' is not valid UTF-8") as refused:
        CALLS[call](publisher)
    assert refused.value.exit_code == ExitCode.USAGE
    assert str(refused.value).encode(), "can be printed"
