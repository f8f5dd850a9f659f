"""Events a second, scored: modelcast with both guarantees, the ceiling without decode and model, the usual loop.

    python -m benchmarks.stream --events 1000000 --json

All sides run one after the other on the same broker and the same events, each in a process of its own, in several
rounds; a side's figure is the median of its rounds. Prints `{"events": n, "events_per_s": {…}, "ratios": {…}}`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from modelcast.config import Connection
from modelcast.dev.broker import LocalBroker
from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from modelcast.registry.image import VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S, init
from modelcast.topics import KEEP_FOR_EVER

from . import workload
from .measure import throughput

DEFAULT_EVENTS = 1_000_000
DEFAULT_ROUNDS = 3
DEFAULT_PARTITIONS = 4

_EVENTS = "events"
_SIDE_TIMEOUT_S = 600.0
# What issue of fairness there is: the JVM's best compiler and room for its page cache.
_BROKER_HEAP_MB = 1024


class Stage:
    """The broker, the events and the model that every side runs on."""

    def __init__(self, folder: Path, broker: LocalBroker, count: int, partitions: int) -> None:
        self.folder = folder
        self.count = count
        self.partitions = partitions
        self.connection = Connection.resolve(broker.bootstrap_servers, environment={})
        self.log = KafkaLog(self.connection.settings)
        init(self.log, self.connection.topics)
        schema = workload.send(self.log, self.connection.topics, _EVENTS, count, partitions=partitions)
        self.schema_file = folder / "events.avsc"
        self.schema_file.write_text(schema.text)
        workload.publish_model(self.connection)
        self.graph = self._fetch_graph()
        self._runs = 0

    def measure(self, command: Callable[[str], Sequence[str]]) -> float:
        """Runs one side once, to a topic of its own; its records a second."""
        self._runs += 1
        target = f"out-{self._runs}"
        self.log.create(TopicSpec(target, self.partitions, 1, KEEP_FOR_EVER))
        environment = {**os.environ, "MODELCAST_STATE_DIR": str(self.folder), "MODELCAST_CACHE_DIR": str(self.folder)}
        done = subprocess.run(
            [sys.executable, *command(target)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_SIDE_TIMEOUT_S,
            check=False,
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command(target))} failed:\n{done.stderr}")
        written = throughput(self.log, target)
        if written.records != self.count:
            raise SystemExit(f"{' '.join(command(target))} wrote {written.records} records for {self.count} events")
        return written.records_per_s

    def modelcast(self, guarantee: str) -> Callable[[str], Sequence[str]]:
        """`modelcast score` with a guarantee, to the end of the events."""
        return lambda target: (
            *("-m", "modelcast", "score", workload.MODEL, "-b", self.connection.bootstrap_servers),
            *("--events", _EVENTS, "--predictions", target, "--guarantee", guarantee, "--device", "cpu", "--until-end"),
        )

    def side(self, name: str) -> Callable[[str], Sequence[str]]:
        """One of `benchmarks.sides`."""
        return lambda target: (
            *("-m", "benchmarks.sides", name, "--bootstrap-servers", self.connection.bootstrap_servers),
            *("--source", _EVENTS, "--target", target, "--count", str(self.count)),
            *("--schema", str(self.schema_file), "--graph", str(self.graph)),
        )

    def _fetch_graph(self) -> Path:
        # The naive loop runs the very file that was published.
        from modelcast.files.cache import Cache
        from modelcast.files.fetch import Fetcher

        reader = RegistryReader(self.log, self.connection.topics)
        record = reader.catch_up(CATCH_UP_TIMEOUT_S).models[workload.MODEL].versions[1]
        reader.close()
        assert isinstance(record, VersionRecord)
        fetched = Fetcher(self.log, self.connection.topics, Cache(self.folder / "naive")).fetch(record)
        return Path(fetched) / "model.onnx"


def run(count: int, rounds: int, partitions: int, say: Callable[[str], None]) -> Mapping[str, object]:
    """All sides in turn, `rounds` times."""
    with tempfile.TemporaryDirectory(prefix="modelcast-benchmark-") as name:
        folder = Path(name)
        with LocalBroker(
            folder / "broker", heap_mb=_BROKER_HEAP_MB, full_compiler=True, die_with_parent=True
        ) as broker:
            say(f"sending {count:,} events")
            stage = Stage(folder, broker, count, partitions)
            sides = {
                "modelcast_exactly_once": stage.modelcast("exactly-once"),
                "modelcast_at_least_once": stage.modelcast("at-least-once"),
                "pass_through_transactions": stage.side("pass-through-transactions"),
                "pass_through": stage.side("pass-through"),
                "naive": stage.side("naive"),
            }
            rates: dict[str, list[float]] = {side: [] for side in sides}
            for number in range(1, rounds + 1):
                for side, command in sides.items():
                    rates[side].append(stage.measure(command))
                    say(f"round {number}/{rounds}  {side:<26} {rates[side][-1]:>10,.0f} events/s")
    per_s = {side: round(statistics.median(measured)) for side, measured in rates.items()}
    return {
        "events": count,
        "rounds": rounds,
        "partitions": partitions,
        "events_per_s": per_s,
        "ratios": {
            "exactly_once_to_pass_through_transactions": round(
                per_s["modelcast_exactly_once"] / per_s["pass_through_transactions"], 3
            ),
            "at_least_once_to_naive": round(per_s["modelcast_at_least_once"] / per_s["naive"], 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=DEFAULT_EVENTS)
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS)
    parser.add_argument("--partitions", type=int, default=DEFAULT_PARTITIONS)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    arguments = parser.parse_args()
    result = run(arguments.events, arguments.rounds, arguments.partitions, lambda text: print(text, file=sys.stderr))
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
