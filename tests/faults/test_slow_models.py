"""Models slower than Kafka's patience: the member stays in its group, and what waits is lag, not memory."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Producer

from modelcast.config import Connection
from modelcast.publisher.session import RegistryWriter
from modelcast.records import GRAPH_PATH
from tests.brokers import Broker, running_broker
from tests.reliability.figures import figure

from .models import lazy_model, open_graph
from .scorer_processes import ScoreProcess, Stage, wait_for

# Not shorter than a member of a busy machine may be without a beat of its heart.
MAX_POLL_S = 6.0
RUN_S = 1.5 * MAX_POLL_S
SCORED_S = 240.0
IMPATIENT = (
    "-X", f"session.timeout.ms={MAX_POLL_S * 1000:.0f}",
    "-X", "heartbeat.interval.ms=500",
    "-X", f"max.poll.interval.ms={MAX_POLL_S * 1000:.0f}",
)  # fmt: skip

EVENT_BYTES = 4_000
BACKLOG_BYTES = 256 << 20
# What the client fetches ahead, beside the batch in hand and those behind it (32 MiB each at most, and their columns).
PREFETCH_KIB = 16 << 10
GROWTH_MOST_KIB = 160 << 10


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    settings = {"group.min.session.timeout.ms": "1000"}
    with running_broker(tmp_path_factory.mktemp("impatient"), server_properties=settings) as running:
        yield running


@pytest.fixture
def stage(broker: Broker, prefix: str, tmp_path: Path) -> Stage:
    """One partition, and a model that takes as long as an event asks for."""
    stage = Stage(broker.bootstrap_servers, prefix, tmp_path, partitions=1)
    connection = Connection.resolve(stage.servers, prefix=stage.prefix)
    with closing(connection.open_log()) as log:
        RegistryWriter(log, connection.topics).publish("fraud", lazy_model(tmp_path / "lazy"), release=True)
    return stage


def turns_of(seconds: float, graph: Path) -> int:
    """What an event's amount has to be for the model to take that long."""
    session, tried = open_graph(graph), 50_000

    def once() -> float:
        started_s = time.thread_time()  # a session has one thread, its caller's; others may run in between
        session.run(None, {"x": np.array([[tried, 0]], np.float32)})
        return time.thread_time() - started_s

    return int(tried * seconds / min(once() for _ in range(5)))


@pytest.mark.timeout(3 * SCORED_S)
def test_f32_a_model_slower_than_max_poll_interval_ms_is_not_evicted(stage: Stage) -> None:
    turns = turns_of(RUN_S, stage.folder / "lazy" / GRAPH_PATH)
    producer = Producer({"bootstrap.servers": stage.servers})
    with stage.score("--instance", "a", *IMPATIENT) as scorer:
        scorer.wait_line("live")
        wait_for(lambda: stage.partitions_of("a"), "the partition")
        member = stage.member_of("a")
        for count in (3, 1):  # a version whose speed is not known, and one known to be slow
            for _ in range(count):
                producer.produce(stage.events, json.dumps({"amount": turns, "age": 0}), partition=0)
            assert producer.flush(60) == 0
            started_s = time.monotonic()
            stage.await_scored(count, SCORED_S)
            took_s = time.monotonic() - started_s
            figure(f"{count} events in {took_s:.1f} s, max.poll.interval.ms {MAX_POLL_S:g} s")
            assert took_s > MAX_POLL_S, "the model was too quick to tell"
        assert stage.member_of("a") == member, "it had to join again"
        assert scorer.end() == 0, scorer.last_words()
    assert not [line for line in scorer.lines if line["event"] == "recovering"]
    assert stage.judge().is_whole


@pytest.mark.timeout(3 * SCORED_S)
def test_f32_what_waits_for_a_slow_model_is_lag_and_not_memory(stage: Stage) -> None:
    turns = turns_of(RUN_S, stage.folder / "lazy" / GRAPH_PATH)
    note = "x" * EVENT_BYTES
    count = BACKLOG_BYTES // EVENT_BYTES
    with stage.score("--instance", "a", "-X", f"queued.max.messages.kbytes={PREFETCH_KIB}") as scorer:
        scorer.wait_line("live")
        before_kib = memory_kib(scorer, "VmRSS")
        producer = Producer({"bootstrap.servers": stage.servers, "linger.ms": 20})
        producer.produce(stage.events, json.dumps({"amount": turns, "age": 0}), partition=0)
        assert producer.flush(60) == 0
        for number in range(count):
            producer.produce(stage.events, json.dumps({"amount": number % 3, "age": 0, "note": note}), partition=0)
            if number % 1_000 == 0:
                producer.flush(60)
        assert producer.flush(60) == 0
        wait_for(lambda: sum(stage.committed().values()) == count + 1, "the backlog to be scored", SCORED_S)
        peak_kib = memory_kib(scorer, "VmHWM")
        assert scorer.end() == 0, scorer.last_words()
    lag = max(line["lag"] or 0 for line in scorer.lines if line["event"] == "progress")
    figure(f"{BACKLOG_BYTES >> 20} MiB, lag up to {lag:,}: from {before_kib >> 10} to {peak_kib >> 10} MiB resident")
    assert lag > count // 10
    assert peak_kib - before_kib < GROWTH_MOST_KIB
    assert stage.judge().is_whole


def memory_kib(scorer: ScoreProcess, figure: str) -> int:
    lines = Path(f"/proc/{scorer.process.pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{figure}:"))
