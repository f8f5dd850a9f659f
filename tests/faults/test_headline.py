"""The figure to reach first: Kafka's own test of exactly-once, with versions that swap every second meanwhile.

    MODELCAST_HEADLINE_EVENTS=100000 pytest tests/faults/test_headline.py -s        (`make headline`)

100,000 events, transactions of up to 750, three scorers killed hard and clean a dozen times, a broker three times:
nothing lost, doubled or out of order, and every prediction is that of the one version it names, to the bit. Some of it
by default.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from modelcast.config import Connection
from modelcast.dev.broker import LocalBroker
from modelcast.errors import BrokerError, ExitCode, ModelcastError
from modelcast.publisher.session import RegistryWriter
from modelcast.records import GRAPH_PATH

from . import oracle
from .models import open_graph, wavy_model
from .rescoring import Floats, rescore
from .scorer_processes import Feeder, ScoreProcess, Stage, wait_for

EVENTS = int(os.environ.get("MODELCAST_HEADLINE_EVENTS", "12000"))
CLIENT_KILLS = max(4, EVENTS * 12 // 100_000)
BROKER_KILLS = max(1, EVENTS * 3 // 100_000)
EVENTS_PER_S = 2_000
TRANSACTION_EVENTS = 750
SCORERS = 3
VERSIONS = 3
SWAP_EVERY_S = 1.0
# A scorer killed at the end has to be back, and others may have to wait for its session.
SETTLED_S = 180.0
LIMITS: Mapping[str, object] = {
    "modelcast.consumer.targets:EVENTS_MAX": TRANSACTION_EVENTS,
    "modelcast.consumer.commit:MERGED_EVENTS_MAX": TRANSACTION_EVENTS,
}


class Releases:
    """Releases one version after the other, once a second, on a thread of its own."""

    def __init__(self, stage: Stage) -> None:
        self._connection = Connection.resolve(stage.servers, prefix=stage.prefix)
        self._log = self._connection.open_log()
        self._writer = RegistryWriter(self._log, self._connection.topics)
        self.graphs: dict[int, Path] = {}
        for seed in range(VERSIONS):
            prepared = wavy_model(stage.folder / f"wavy-{seed}", seed)
            version = self._writer.publish("fraud", prepared, release=seed == 0).manifest.version
            self.graphs[version] = prepared.directory / GRAPH_PATH
        self.made = 1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def model(self, version: int) -> Callable[[Floats], Floats]:
        """What a version scores, by the graph it was published from."""
        session = open_graph(self.graphs[version])
        return lambda rows: np.asarray(session.run(None, {"x": rows})[0], np.float32)

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            self._thread.join(60)
            self._log.close()

    def _run(self) -> None:
        versions = sorted(self.graphs)
        while not self._stopping.wait(SWAP_EVERY_S):
            try:
                self._writer.release("fraud", versions[self.made % VERSIONS])
            except ModelcastError:  # the broker is down: the next one comes
                continue
            self.made += 1


class Crew:
    """The scorers, each at its place; who is killed is started again."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.running = [self._start(number) for number in range(SCORERS)]
        self.ended: list[ScoreProcess] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        for scorer in (*self.running, *self.ended):
            scorer.__exit__()

    def await_live(self, number: int) -> ScoreProcess:
        """The one at that place, once it scores; started while the broker was down, it ended and is started again."""
        while True:
            scorer = self.running[number]
            wait_for(lambda: scorer.said("live") or scorer.process.poll() is not None, "a scorer to be live")  # noqa: B023
            if scorer.process.poll() is None:
                return scorer
            assert scorer.process.returncode == ExitCode.BROKER, scorer.last_words()
            assert not scorer.said("live"), scorer.last_words()
            self.ended.append(scorer)
            self.running[number] = self._start(number)

    def replace(self, number: int, signal_number: signal.Signals) -> None:
        """Kills one and starts another at its place."""
        victim = self.running[number]
        if signal_number is signal.SIGKILL:
            victim.kill()
        else:
            assert victim.end(signal_number) == 0, victim.last_words()
        self.ended.append(victim)
        self.running[number] = self._start(number)

    def end(self) -> None:
        """All of them, in order."""
        for scorer in [self.await_live(number) for number in range(SCORERS)]:
            assert scorer.end() == 0, scorer.last_words()

    def count(self, event: str) -> int:
        """How many reports of a kind all of them made."""
        return sum(len(scorer.said(event)) for scorer in (*self.running, *self.ended))

    def _start(self, number: int) -> ScoreProcess:
        return self._stage.score("--instance", f"crew-{number}", limits=LIMITS)


@pytest.mark.timeout(300 + EVENTS // 50)
def test_headline_nothing_is_lost_doubled_or_out_of_order_while_all_of_it_is_killed_and_versions_swap(
    own_broker: LocalBroker, prefix: str, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    stage = Stage(own_broker.bootstrap_servers, prefix, tmp_path)
    releases = Releases(stage)
    kills = [("client", number) for number in range(CLIENT_KILLS)] + [("broker", n) for n in range(BROKER_KILLS)]
    chance.shuffle(kills)
    started_s = time.monotonic()
    with releases.running(), Crew(stage) as crew, stage.feeding(EVENTS_PER_S, count=0) as feeder:
        for done, (what, number) in enumerate(kills):
            victim = chance.randrange(SCORERS)
            crew.await_live(victim)
            feeder.count = EVENTS * (done + 1) // (len(kills) + 1)
            _await_sent(feeder, (feeder.count + feeder.sent) // 2)
            time.sleep(chance.random() * 0.3)  # anywhere in a transaction
            is_hard = number % 2 == 0
            if what == "client":
                crew.replace(victim, signal.SIGKILL if is_hard else signal.SIGTERM)
            else:
                with suppress(BrokerError):  # it was slow to stop: a hard kill more
                    own_broker.kill() if is_hard else own_broker.stop()
                own_broker.start()
        feeder.count = EVENTS
        _await_sent(feeder, EVENTS)
        # By scorers with these limits: what is left over is scored without.
        wait_for(lambda: sum(stage.committed().values()) >= EVENTS, "the last events to be scored", SETTLED_S)
        crew.end()
        swaps, recoveries = crew.count("swapped"), crew.count("recovering")
    stage.finish()
    seconds = time.monotonic() - started_s
    judged = stage.judge()
    again = rescore(
        stage.servers,
        events=stage.events,
        predictions=stage.predictions,
        schemas=stage.schemas,
        fields=("amount", "age"),
        model=releases.model,
    )
    print(
        f"{judged.events} events in {seconds:.0f} s, {CLIENT_KILLS} client and {BROKER_KILLS} broker kills, "
        f"{releases.made} releases, {swaps} swaps, {recoveries} batches dropped: lost {len(judged.lost)}, "
        f"doubled {len(judged.doubled)}, out of order {len(judged.out_of_order)}, other bits {len(again.other_bits)}; "
        f"longest run {again.longest_run}, by version {again.by_version}"
    )
    assert judged.is_whole
    assert judged.predictions == judged.events >= EVENTS
    assert stage.committed() == oracle.end_offsets(stage.servers, stage.events, committed=False), "a lag is left"
    assert again.other_bits == []
    assert set(again.by_version) <= set(releases.graphs)
    assert len(again.by_version) > 1, "no swap fell among the events"
    assert again.longest_run <= TRANSACTION_EVENTS


def _await_sent(feeder: Feeder, count: int) -> None:
    wait_for(lambda: feeder.sent >= count, f"{count} events to be sent", 60 + 20 * count / EVENTS_PER_S)
