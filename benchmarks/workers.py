"""What `score --workers N` costs: processor time for a million events, events a second, memory.

    python -m benchmarks.workers --json                    1, 2 and 4 workers, and a scorer without a supervisor
    python -m benchmarks.workers --memory --json           a model of 400 MB, its weights shared or not

- Workers are up, have their partitions and have scored some events when the measured ones become visible, all at once:
  they are one open transaction until then. So neither start-up nor joining counts, and nobody sends meanwhile.
- Processor time is that of the supervisor and all workers, user and system, from that moment until the group has
  committed the last event. With as many cores as the machine has, more workers are not faster than it: the time shows
  what each adds.
- Memory is the processes' proportional share (Pss: a page that four map counts a quarter in each) once all are live.

Rounds alternate between the numbers of workers, on one broker; a figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from modelcast.config import Connection
from modelcast.dev.broker import LocalBroker
from modelcast.events.encode import encode_avro
from modelcast.events.schemas import SchemaTopic
from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE
from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from modelcast.registry.repository import init
from modelcast.topics import KEEP_FOR_EVER

from . import transfers, update, workload

DEFAULT_EVENTS = 1_000_000
DEFAULT_ROUNDS = 3
DEFAULT_MB = 400
COUNTS = (1, 2, 4)
WEIGHTS = ("shared", "repacked")
# Without `--workers`: what a supervisor costs is the difference.
ALONE = "alone"
# Every worker has the same share, however many there are.
PARTITIONS = 4

_WARM_EVENTS = 40_000
_TIMEOUT_S = 300.0
_POLL_S = 0.02
_BROKER_HEAP_MB = 1024
_TRANSACTION_TIMEOUT_MS = 600_000
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Waits for what other processes bring about."""
    deadline = time.monotonic() + _TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {_TIMEOUT_S:g} s for {what}")
        time.sleep(_POLL_S)


class Scorers:
    """`modelcast score` with some workers, or alone; ended with the context."""

    def __init__(
        self, stage: Stage, model: str, events: str, predictions: str, workers: int | None, *more: str
    ) -> None:
        self.workers = workers
        self.instances = ["it"] if workers is None else [f"it-{number}" for number in range(workers)]
        self.group = f"workers-{predictions}"
        self.lines: list[Mapping[str, Any]] = []
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "modelcast", "score", model, "-b", stage.servers, "--json", "--device", "cpu"),
                *("--events", events, "--predictions", predictions, "--group", self.group, "--instance", "it"),
                *(() if workers is None else ("--workers", str(workers))),
                *more,
            ],
            env={**os.environ, STATE_VARIABLE: str(stage.folder), CACHE_VARIABLE: str(stage.folder)},
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        self.wait(lambda: len(self.of("live")) == len(self.instances), "every worker to be live")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(_TIMEOUT_S)
        self._reader.join()

    def of(self, event: str) -> Sequence[Mapping[str, Any]]:
        """What was reported of a kind."""
        return [line for line in list(self.lines) if line.get("event") == event]

    def wait(self, condition: Callable[[], bool], what: str) -> None:
        """As `wait_for`, as long as it runs."""

        def holds() -> bool:
            if self._process.poll() is not None:
                raise SystemExit(f"the scorer ended with {self._process.returncode}: {self.lines[-3:]}")
            return condition()

        wait_for(holds, what)

    @property
    def pids(self) -> Sequence[int]:
        """The workers, or the scorer without any."""
        return [int(line["pid"]) for line in self.of("worker_started")] or [self._process.pid]

    def cpu_s(self) -> float:
        """Processor time of all processes so far, the supervisor's too."""
        total = 0
        for pid in {self._process.pid, *self.pids}:
            # Behind the name, in parentheses: user and system time are the 12th and 13th field.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
        return total / _TICKS_PER_S

    def pss_bytes(self) -> Sequence[int]:
        """Each worker's share of memory."""
        return [_smaps(pid, "Pss") for pid in self.pids]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(json.loads(line))
        self._process.stdout.close()


def _smaps(pid: int, what: str) -> int:
    found = re.search(rf"^{what}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) << 10


class Stage:
    """One broker with one repository."""

    def __init__(self, folder: Path, broker: LocalBroker) -> None:
        self.folder = folder
        self.servers = broker.bootstrap_servers
        self.connection = Connection.resolve(self.servers, environment={})
        self.log = KafkaLog(self.connection.settings)
        init(self.log, self.connection.topics)
        self._admin = AdminClient({"bootstrap.servers": self.servers})
        self._runs = 0

    def topics(self) -> tuple[str, str]:
        """New topics of events and of predictions."""
        self._runs += 1
        names = f"events-{self._runs}", f"out-{self._runs}"
        for name in names:
            self.log.create(TopicSpec(name, PARTITIONS, 1, KEEP_FOR_EVER))
        return names

    def measure(self, values: Sequence[bytes], workers: int | None) -> Mapping[str, float]:
        """Has some workers score `values`; processor time and wall time of that."""
        events, predictions = self.topics()
        settings = {
            "bootstrap.servers": self.servers,
            "linger.ms": 20,
            "queue.buffering.max.messages": 2_000_000,
            "log_level": 0,  # of the broker's end, behind the last round
        }
        warming = Producer(settings)
        _produce(warming, events, values[:_WARM_EVENTS])
        with Scorers(self, workload.MODEL, events, predictions, workers) as scorers:
            scorers.wait(lambda: self._shares(scorers) == len(scorers.instances), "every worker's partitions")
            done = _Committed(self.servers, scorers.group, events)
            scorers.wait(lambda: done.reached(self.log.end_offsets(events, committed=False)), "the first events")
            producer = Producer(
                {**settings, "transactional.id": events, "transaction.timeout.ms": _TRANSACTION_TIMEOUT_MS}
            )
            producer.init_transactions()
            producer.begin_transaction()
            _produce(producer, events, values)
            # Behind the last event of a partition stands the marker of the transaction.
            ends = {partition: end + 1 for partition, end in self.log.end_offsets(events, committed=False).items()}
            cpu_s, began_s = scorers.cpu_s(), time.monotonic()
            producer.commit_transaction()
            scorers.wait(lambda: done.reached(ends), "the last event")
            figures = {"cpu_s": scorers.cpu_s() - cpu_s, "wall_s": time.monotonic() - began_s}
            done.close()
        scored = int(scorers.of("stopped")[-1]["events"])
        if scored != len(values) + len(values[:_WARM_EVENTS]):
            raise SystemExit(f"{scored} events were scored for {len(values)}")
        return figures

    def memory(self, workers: int, weights: str) -> Mapping[str, float]:
        """What a large model takes in some workers, in MB, and how long it took to load, in seconds."""
        events, predictions = self.topics()
        with Scorers(self, transfers.MODEL, events, predictions, workers, "--weights", weights) as scorers:
            shares = scorers.pss_bytes()
            loads = [float(line["load_ms"]) / 1e3 for line in scorers.of("live")]
        return {
            "all_mb": round(sum(shares) / 1e6),
            "each_mb": round(statistics.mean(shares) / 1e6),
            "longest_load_s": round(max(loads), 2),
        }

    def _shares(self, scorers: Scorers) -> int:
        """How many members of the group have their partitions."""
        described = self._admin.describe_consumer_groups([scorers.group])[scorers.group].result()
        return sum(bool(member.assignment.topic_partitions) for member in described.members)


class _Committed:
    """How far a group has come."""

    def __init__(self, servers: str, group: str, topic: str) -> None:
        self._consumer = Consumer({"bootstrap.servers": servers, "group.id": group})
        self._partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]

    def reached(self, ends: Mapping[int, int]) -> bool:
        committed = self._consumer.committed(self._partitions, _TIMEOUT_S)
        return all(found.offset >= ends[found.partition] for found in committed)

    def close(self) -> None:
        self._consumer.close()


def _produce(producer: Producer, topic: str, values: Sequence[bytes]) -> None:
    for number, value in enumerate(values):
        producer.produce(topic, value, b"%012d" % number, partition=number % PARTITIONS)
        if number % 10_000 == 0:
            producer.poll(0)
    if producer.flush(_TIMEOUT_S):
        raise SystemExit("the events could not be sent")


def rates(stage: Stage, count: int, rounds: int, say: Callable[[str], None]) -> Mapping[str, object]:
    """Every number of workers in turn, `rounds` times."""
    work = workload.workloads("avro")["fraud"]()
    work.publish(stage.connection)
    assert work.schema is not None
    with closing(SchemaTopic(stage.log, stage.connection.topics)) as schemas:
        schemas.register(work.schema)
    values = [value for frame in work.frames(count) for value in encode_avro(frame, work.schema)]
    sides: Mapping[str, int | None] = {ALONE: None, **{str(workers): workers for workers in COUNTS}}
    measured: dict[str, list[Mapping[str, float]]] = {side: [] for side in sides}
    for number in range(1, rounds + 1):
        for side, workers in sides.items():
            found = stage.measure(values, workers)
            measured[side].append(found)
            say(f"round {number}/{rounds}  workers {side:>5}  {found['cpu_s']:.2f} s CPU in {found['wall_s']:.2f} s")
    cpu_s = {side: statistics.median(one["cpu_s"] for one in found) for side, found in measured.items()}
    wall_s = {side: statistics.median(one["wall_s"] for one in found) for side, found in measured.items()}
    return {
        "events": count,
        "rounds": rounds,
        "partitions": PARTITIONS,
        "cores": os.cpu_count(),
        "cpu_s_per_million_events": {side: round(took * 1e6 / count, 3) for side, took in cpu_s.items()},
        "events_per_s": {side: round(count / took) for side, took in wall_s.items()},
        "cpu_to_one_worker": {side: round(took / cpu_s["1"], 3) for side, took in cpu_s.items()},
    }


def footprints(stage: Stage, size: int, say: Callable[[str], None]) -> Mapping[str, object]:
    """A large model in every number of workers, with weights shared and repacked."""
    prepared, _ = update.make("dense", size, stage.folder)
    update.publish(stage.servers, stage.connection.prefix, prepared)
    found: dict[str, dict[str, Mapping[str, float]]] = {weights: {} for weights in WEIGHTS}
    for weights in WEIGHTS:
        for workers in COUNTS:
            found[weights][str(workers)] = taken = stage.memory(workers, weights)
            say(f"{weights:<8}  {workers} workers  {taken}")
    return {"model_mb": round(size / 1e6), "memory": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=DEFAULT_EVENTS)
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS)
    parser.add_argument("--memory", action="store_true", help="what a large model takes, instead of rates")
    parser.add_argument("--mb", type=int, default=DEFAULT_MB, help="size of that model")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    arguments = parser.parse_args()

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    with tempfile.TemporaryDirectory(prefix="modelcast-benchmark-") as name:
        folder = Path(name)
        with LocalBroker(
            folder / "broker", heap_mb=_BROKER_HEAP_MB, full_compiler=True, die_with_parent=True
        ) as broker:
            stage = Stage(folder, broker)
            with closing(stage.log):
                if arguments.memory:
                    result = footprints(stage, arguments.mb * 1_000_000, say)
                else:
                    result = rates(stage, arguments.events, arguments.rounds, say)
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
