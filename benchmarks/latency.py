"""How long one event takes, from `produce` to its prediction in a reader's hands, at a steady rate.

    python -m benchmarks.latency --json

Three programs: this one sends events at the rate and reads what comes of them (read_committed), a process of its own
passes them on (`benchmarks.forward`: no decode, no model, no transaction) or scores them (`modelcast score`, as it is
without an option). Sides take turns, several rounds, once the broker has warmed up; figures are in milliseconds, the
medians of the rounds. Prints
`{"rates": {"200": {"pass_through": {"p50": …, "p99": …}, …}}, "over_pass_through_ms": {…}}`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, Producer, TopicPartition

from modelcast.config import Connection
from modelcast.dev.broker import LocalBroker
from modelcast.events.encode import encode_avro
from modelcast.events.infer import infer_schema_of
from modelcast.events.schemas import SchemaTopic
from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from modelcast.registry.repository import init
from modelcast.topics import KEEP_FOR_EVER

from . import workload

RATES = (200, 2_000)
DEFAULT_SECONDS = 10.0
DEFAULT_ROUNDS = 3
PARTITIONS = 4

_EVENTS = "events"
# Start, first swap, warm caches: not what a stream sees.
_WARM_UP_S = 2.0
# A broker's first half minute is its compiler's: p50 exactly once was 13 to 24 ms there, and 5 to 6 after it.
_BROKER_WARM_UP_S = 20.0
_START_TIMEOUT_S = 60.0
_DRAIN_TIMEOUT_S = 30.0
_POLL_S = 0.05
_END_TIMEOUT_S = 30.0
_DISTINCT = 2_000
_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}

Latencies = np.ndarray[tuple[int], np.dtype[np.float64]]


class Stage:
    """The broker, the model and the events of every side."""

    def __init__(self, folder: Path, bootstrap_servers: str) -> None:
        self.folder = folder
        self.connection = Connection.resolve(bootstrap_servers, environment={})
        self.log = KafkaLog(self.connection.settings)
        init(self.log, self.connection.topics)
        frame = workload.events(_DISTINCT)
        schema = infer_schema_of(_EVENTS, frame)
        SchemaTopic(self.log, self.connection.topics).register(schema)
        self.values = encode_avro(frame, schema)
        workload.publish_model(self.connection)
        self._runs = 0

    def measure(self, side: str, rate: int, seconds: float) -> Latencies:
        """One side at one rate: the milliseconds of each event but the first."""
        self._runs += 1
        source, target = f"{_EVENTS}-{self._runs}", f"out-{self._runs}"
        for topic in (source, target):
            self.log.create(TopicSpec(topic, PARTITIONS, 1, KEEP_FOR_EVER))
        with self._running(side, source, target):
            return Probe(self.connection.bootstrap_servers, source, target, self.values).run(rate, seconds)

    @contextmanager
    def _running(self, side: str, source: str, target: str) -> Iterator[None]:
        environment = {**os.environ, "MODELCAST_STATE_DIR": str(self.folder), "MODELCAST_CACHE_DIR": str(self.folder)}
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(
                [sys.executable, *self._command(side, source, target)], env=environment, stdout=said, stderr=said
            )
            try:
                yield
            except BaseException:
                said.seek(0)
                sys.stderr.write(said.read().decode(errors="replace"))
                raise
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(_END_TIMEOUT_S)

    def _command(self, side: str, source: str, target: str) -> Sequence[str]:
        servers = self.connection.bootstrap_servers
        if side == "pass_through":
            return ("-m", "benchmarks.forward", "--bootstrap-servers", servers, "--source", source, "--target", target)
        return (
            *("-m", "modelcast", "score", workload.MODEL, "-b", servers, "--events", source, "--predictions", target),
            *("--guarantee", side.replace("_", "-"), "--device", "cpu"),
        )


class Probe:
    """Sends events at a rate and times what comes of them; keys tell which is which."""

    def __init__(self, bootstrap_servers: str, source: str, target: str, values: Sequence[bytes]) -> None:
        self._source = source
        self._values = values
        self._producer = Producer(
            {"bootstrap.servers": bootstrap_servers, "linger.ms": 0, "socket.nagle.disable": True, "acks": "all"}
        )
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": f"probe-{target}",
                "isolation.level": "read_committed",
                "enable.auto.commit": False,
                "socket.nagle.disable": True,
            }
        )
        self._consumer.assign([TopicPartition(target, partition, 0) for partition in range(PARTITIONS)])
        self._sent_s: list[float] = []
        self._got_s: dict[int, float] = {}

    def run(self, rate: int, seconds: float) -> Latencies:
        """Milliseconds by event, those of the warm-up left out."""
        reader_ended = threading.Event()
        reader = threading.Thread(target=self._read, args=(reader_ended,), name="probe-reader")
        reader.start()
        try:
            self._send_first()
            self._send(rate, _WARM_UP_S)
            warm = len(self._sent_s)
            self._send(rate, seconds)
            self._producer.flush()
            self._await(len(self._sent_s), _DRAIN_TIMEOUT_S)
        finally:
            reader_ended.set()
            reader.join()
            self._consumer.close()
        return np.array([(self._got_s[n] - self._sent_s[n]) * 1000 for n in range(warm, len(self._sent_s))])

    def _send_first(self) -> None:
        """One event through the whole path: the side has started."""
        self._one()
        self._producer.flush()
        self._await(1, _START_TIMEOUT_S)

    def _send(self, rate: int, seconds: float) -> None:
        start = time.perf_counter()
        for number in range(int(rate * seconds)):
            pause = start + number / rate - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            self._one()

    def _one(self) -> None:
        number = len(self._sent_s)
        self._sent_s.append(time.perf_counter())
        self._producer.produce(
            self._source,
            self._values[number % len(self._values)],
            b"%d" % number,
            partition=number % PARTITIONS,
        )
        self._producer.poll(0)

    def _await(self, count: int, timeout_s: float) -> None:
        deadline = time.perf_counter() + timeout_s
        while len(self._got_s) < count:
            if time.perf_counter() > deadline:
                raise SystemExit(f"{len(self._got_s)} of {count} events came back within {timeout_s:g} s")
            time.sleep(_POLL_S)

    def _read(self, ended: threading.Event) -> None:
        while not ended.is_set():
            message = self._consumer.poll(_POLL_S)
            now = time.perf_counter()
            if message is not None and message.error() is None:
                key = message.key()
                assert key is not None
                self._got_s.setdefault(int(key), now)


def run(rates: Sequence[int], seconds: float, rounds: int, say: Callable[[str], None]) -> Mapping[str, object]:
    """All sides in turn, `rounds` times at each rate."""
    sides = ("pass_through", "at_least_once", "exactly_once")
    measured: dict[int, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="modelcast-benchmark-") as name:
        folder = Path(name)
        with LocalBroker(folder / "broker", full_compiler=True, die_with_parent=True) as broker:
            stage = Stage(folder, broker.bootstrap_servers)
            say("the broker warms up")
            stage.measure("exactly_once", max(rates), _BROKER_WARM_UP_S)
            for rate in rates:
                found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
                for number in range(1, rounds + 1):
                    for side in sides:
                        latencies = stage.measure(side, rate, seconds)
                        figures = {word: float(np.percentile(latencies, at)) for word, at in _PERCENTILES.items()}
                        found[side].append(figures)
                        shown = "  ".join(f"{word} {value:7.2f} ms" for word, value in figures.items())
                        say(f"round {number}/{rounds}  {rate:>5}/s  {side:<14} {shown}")
                measured[rate] = {
                    side: {word: round(statistics.median(one[word] for one in all_), 2) for word in _PERCENTILES}
                    for side, all_ in found.items()
                }
    return {
        "seconds": seconds,
        "rounds": rounds,
        "rates": {str(rate): by_side for rate, by_side in measured.items()},
        "at_least_once_p50_over_pass_through_ms": {
            str(rate): round(by_side["at_least_once"]["p50"] - by_side["pass_through"]["p50"], 2)
            for rate, by_side in measured.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=int, nargs="+", default=RATES, help="events a second")
    parser.add_argument("--seconds", type=float, default=DEFAULT_SECONDS, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    arguments = parser.parse_args()
    result = run(
        arguments.rates, arguments.seconds, arguments.rounds, lambda text: print(text, file=sys.stderr, flush=True)
    )
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
