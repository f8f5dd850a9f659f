"""How soon a published model is live in an application that is there already."""

from __future__ import annotations

import queue
import statistics
import time
from pathlib import Path

import pytest

from modelcast.config import Connection
from modelcast.consumer import ModelClient
from modelcast.publisher.prepare import prepare
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from tests.brokers import Broker
from tests.machine import Stopwatch
from tests.publishing import FIELDS, wide_model

RELEASES = 12
EXAMPLES = [{"amount": 1.0, "age": 2.0}, {"amount": 3.0, "age": 4.0}]
LONGEST_S = 60.0


def test_a_small_model_is_live_within_a_second_of_its_publication(
    broker: Broker, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    connection = Connection.resolve(broker.bootstrap_servers, prefix=prefix)
    live: queue.Queue[tuple[float, int]] = queue.Queue()
    took_ms, in_time = [], 0
    with connection.open_log() as log:
        init(log, connection.topics, blob_partitions=2)
    with (
        connection.open_log() as log,
        ModelClient(connection=connection, cache_dir=tmp_path / "cache", device="cpu") as models,
    ):
        registry = RegistryWriter(log, connection.topics)
        models.model("fraud").on_swap(lambda swap: live.put((time.monotonic(), swap.new.version)))
        for version in range(1, RELEASES + 1):
            folder = tmp_path / f"v{version}"
            folder.mkdir()
            source = wide_model(1_000, bias=version).SerializeToString()
            content = prepare(source, EXAMPLES, fields=FIELDS, directory=folder)
            watch, started = Stopwatch(), time.monotonic()
            registry.publish("fraud", content, release=True)
            at, went_live = live.get(timeout=LONGEST_S)
            assert went_live == version
            took_ms.append((at - started) * 1_000)
            in_time += watch.allows(at - started, 1.0)
            assert models["fraud"].predict({"amount": [0.0], "age": [0.0]})["score"].tolist() == [version]
    print(
        f"publish to live, {RELEASES} releases: median {statistics.median(took_ms):.0f} ms, "
        f"least {min(took_ms):.0f}, most {max(took_ms):.0f} ms"
    )
    assert in_time > RELEASES / 2, "not in the median"
