"""Events a second, scored: modelcast with both guarantees, the ceiling without decode and model, and its peers.

    python -m benchmarks.stream --json [--workload fraud|boosting|flights|crayfish] [--events-format avro|json]

All sides run one after the other on the same broker, the same events and the same graph, each in a process of its own,
in several rounds; a side's figure is the median of its rounds, counted by the broker's clock after a tenth of the
events. Prints `{"events_per_s": {…}, "ratios": {…}, "processor_us": {…}, "versions": {…}, "absent": {…}}`; a peer that
can't be run on this machine is null, and `absent` says why. `processor_us` is what a side itself took for an event, its
start and a JVM's compiler included, the broker not.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from modelcast.config import Connection
from modelcast.dev.broker import LocalBroker
from modelcast.folders import cache_folder
from modelcast.kafka import KafkaLog
from modelcast.log import TopicSpec
from modelcast.registry.image import VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S, init
from modelcast.topics import KEEP_FOR_EVER

from .measure import throughput
from .peers import environments
from .peers.environments import AbsentError, Environment
from .workload import Workload, workloads

DEFAULT_ROUNDS = 3
DEFAULT_PARTITIONS = 4

_EVENTS = "events"
_SIDE_TIMEOUT_S = 900.0
# What issue of fairness there is: the JVM's best compiler and room for its page cache.
_BROKER_HEAP_MB = 1024
# A JVM compiles while it runs, and clients need moments to fill their batches.
_WARM_UP = 0.1
_BROKERS_CLOCK = {"message.timestamp.type": "LogAppendTime"}
_PACKAGES = ("confluent-kafka", "onnxruntime", "polars", "fastavro", "numpy")
# As many threads as the broker leaves cores for where it was measured; an event took as much processor time with one,
# two and four. A longer commit interval than the 100 ms exactly-once begins with is what its documentation says for
# throughput.
_STREAMS_SETTINGS = ("num.stream.threads=2", "commit.interval.ms=1000")

# The command of a side, given the topic it writes to.
Command = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run of one side came to."""

    events_per_s: float
    processor_us: float


class Stage:
    """The broker, the events and the model that every side runs on."""

    def __init__(self, folder: Path, broker: LocalBroker, workload: Workload, count: int, partitions: int) -> None:
        self.folder = folder
        self.workload = workload
        self.count = count
        self.partitions = partitions
        self.connection = Connection.resolve(broker.bootstrap_servers, environment={})
        self.log = KafkaLog(self.connection.settings)
        init(self.log, self.connection.topics)
        workload.send(self.log, self.connection.topics, _EVENTS, count, partitions=partitions)
        workload.publish(self.connection)
        self._prepare_peers()
        self._runs = 0

    def measure(self, command: Command) -> Figures:
        """Runs one side once, to a topic of its own."""
        self._runs += 1
        target = f"out-{self._runs}"
        self.log.create(TopicSpec(target, self.partitions, 1, {**KEEP_FOR_EVER, **_BROKERS_CLOCK}))
        environment = {**os.environ, "MODELCAST_STATE_DIR": str(self.folder), "MODELCAST_CACHE_DIR": str(self.folder)}
        before = _processor_s()
        done = subprocess.run(
            command(target), env=environment, capture_output=True, text=True, timeout=_SIDE_TIMEOUT_S, check=False
        )
        if done.returncode != 0:
            raise SystemExit(f"{' '.join(command(target))} failed:\n{done.stderr}")
        taken_s = _processor_s() - before
        written = throughput(self.log, target, warm_up=_WARM_UP)
        if written.records != self.count:
            raise SystemExit(f"{' '.join(command(target))} wrote {written.records} records for {self.count} events")
        return Figures(written.records_per_s, taken_s * 1e6 / self.count)

    def modelcast(self, guarantee: str) -> Command:
        """`modelcast score` with a guarantee, to the end of the events."""
        return lambda target: (
            *(sys.executable, "-m", "modelcast", "score", self.workload.name),
            *("-b", self.connection.bootstrap_servers, "--device", "cpu", "--until-end"),
            *("--events", _EVENTS, "--predictions", target, "--guarantee", guarantee),
        )

    def side(self, name: str) -> Command:
        """One of `benchmarks.sides`."""
        return lambda target: (sys.executable, "-m", "benchmarks.sides", name, *self._options(target))

    def quix(self, environment: Environment) -> Command:
        """Quix Streams, at least once, which is all it offers with speed (its transactions are by the checkpoint)."""
        return lambda target: (
            *environment.command,
            *("-m", "benchmarks.peers.quix_side", "--state", str(self.folder / target), *self._options(target)),
        )

    def kafka_streams(self, environment: Environment, guarantee: str, settings: Sequence[str]) -> Command:
        """Kafka Streams with ONNX Runtime for Java; `guarantee` in its words."""
        return lambda target: (
            *(*environment.command, "scoring.Main", f"bootstrap={self.connection.bootstrap_servers}"),
            *(f"source={_EVENTS}", f"target={target}", f"count={self.count}", f"state={self.folder / target}"),
            *(f"plan={self._plan}", f"graph={self._graph}", f"processing.guarantee={guarantee}", *settings),
            *((f"schema={self._schema_file}",) if self._schema_file else ()),
        )

    def _options(self, target: str) -> Sequence[str]:
        return (
            *("--bootstrap-servers", self.connection.bootstrap_servers, "--source", _EVENTS, "--target", target),
            *("--count", str(self.count), "--plan", str(self._plan), "--graph", str(self._graph)),
            *(("--schema", str(self._schema_file)) if self._schema_file else ()),
        )

    def _prepare_peers(self) -> None:
        # Peers run the very file that was published, and are told what modelcast read from it.
        from modelcast.files.cache import Cache
        from modelcast.files.fetch import Fetcher

        reader = RegistryReader(self.log, self.connection.topics)
        record = reader.catch_up(CATCH_UP_TIMEOUT_S).models[self.workload.name].versions[1]
        reader.close()
        assert isinstance(record, VersionRecord)
        fetched = Fetcher(self.log, self.connection.topics, Cache(self.folder / "peers")).fetch(record)
        self._graph = Path(fetched) / "model.onnx"
        signature = record.manifest.signature
        lines = [
            f"format={'json' if self.workload.schema is None else 'avro'}",
            f"output={signature.outputs[-1].name}",
            f"inputs={','.join(binding.name for binding in signature.inputs)}",
            *(f"fields.{binding.name}={','.join(binding.fields)}" for binding in signature.inputs),
        ]
        self._plan = self.folder / "plan.properties"
        self._plan.write_text("\n".join(lines))
        self._schema_file: Path | None = None
        if self.workload.schema is not None:
            self._schema_file = self.folder / "events.avsc"
            self._schema_file.write_text(self.workload.schema.text)


def _processor_s() -> float:
    """What children that have ended took; the broker has not."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Peers:
    """The environments that can be made here, and why the others can't."""

    def __init__(self, cache: Path, say: Callable[[str], None]) -> None:
        self.absent: dict[str, str] = {}
        self.versions: dict[str, Mapping[str, str]] = {
            "modelcast": {name: metadata.version(name) for name in ("modelcast", *_PACKAGES)}
        }
        self._say = say
        self.quix = self._make("quix", ("quix",), lambda: environments.quix(cache))
        streams = ("kafka_streams_exactly_once", "kafka_streams_at_least_once")
        self.kafka_streams = self._make("kafka_streams", streams, lambda: environments.kafka_streams(cache))

    def _make(self, name: str, sides: Sequence[str], make: Callable[[], Environment]) -> Environment | None:
        self._say(f"preparing {name}")
        try:
            environment = make()
        except AbsentError as error:
            self.absent |= dict.fromkeys(sides, str(error))
            return None
        self.versions[name] = environment.versions
        return environment


def sides_of(stage: Stage, peers: Peers) -> Mapping[str, Command]:
    """Every side that can be run here."""
    sides = {
        "modelcast_exactly_once": stage.modelcast("exactly-once"),
        "modelcast_at_least_once": stage.modelcast("at-least-once"),
        "pass_through_transactions": stage.side("pass-through-transactions"),
        "pass_through": stage.side("pass-through"),
        "naive": stage.side("naive"),
    }
    if peers.quix is not None:
        sides["quix"] = stage.quix(peers.quix)
    if (streams := peers.kafka_streams) is not None:
        sides["kafka_streams_exactly_once"] = stage.kafka_streams(streams, "exactly_once_v2", _STREAMS_SETTINGS)
        sides["kafka_streams_at_least_once"] = stage.kafka_streams(streams, "at_least_once", _STREAMS_SETTINGS)
    return sides


def run(
    workload: Workload,
    count: int,
    rounds: int,
    partitions: int,
    wanted: Collection[str],
    say: Callable[[str], None],
) -> Mapping[str, object]:
    """All sides in turn, or the wanted ones, `rounds` times."""
    peers = Peers(cache_folder() / "benchmarks", say)
    with tempfile.TemporaryDirectory(prefix="modelcast-benchmark-") as name:
        folder = Path(name)
        with LocalBroker(
            folder / "broker", heap_mb=_BROKER_HEAP_MB, full_compiler=True, die_with_parent=True
        ) as broker:
            say(f"sending {count:,} events")
            stage = Stage(folder, broker, workload, count, partitions)
            sides = {side: one for side, one in sides_of(stage, peers).items() if not wanted or side in wanted}
            figures: dict[str, list[Figures]] = {side: [] for side in sides}
            for number in range(1, rounds + 1):
                for side, command in sides.items():
                    figures[side].append(one := stage.measure(command))
                    say(f"round {number}/{rounds}  {side:<28} {one.events_per_s:>10,.0f} events/s")
    per_s: dict[str, int | None] = {side: round(_median(runs, "events_per_s")) for side, runs in figures.items()}
    return {
        "workload": workload.name,
        "format": "json" if workload.schema is None else "avro",
        "events": count,
        "rounds": rounds,
        "partitions": partitions,
        "events_per_s": per_s | dict.fromkeys(peers.absent, None),
        "ratios": _ratios(per_s),
        "processor_us": {side: round(_median(runs, "processor_us"), 1) for side, runs in figures.items()},
        "versions": peers.versions,
        "absent": peers.absent,
    }


def _median(runs: Sequence[Figures], name: str) -> float:
    return float(statistics.median(getattr(one, name) for one in runs))


def _ratios(per_s: Mapping[str, int | None]) -> Mapping[str, float]:
    """How many times as fast modelcast is, with each guarantee against the peers that give it."""
    against = {
        "exactly_once": ("pass_through_transactions", "kafka_streams_exactly_once"),
        "at_least_once": ("pass_through", "naive", "quix", "kafka_streams_at_least_once"),
    }
    ratios = {}
    for guarantee, others in against.items():
        own = per_s.get(f"modelcast_{guarantee}")
        for other in others:
            if own and (rate := per_s.get(other)):
                ratios[f"{guarantee}_to_{other}"] = round(own / rate, 3)
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(workloads("avro")), default="fraud")
    parser.add_argument("--events-format", choices=["json", "avro"], default="json", help="of crayfish's events")
    parser.add_argument("--events", type=int, help="how many; each workload has its own default")
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS)
    parser.add_argument("--partitions", type=int, default=DEFAULT_PARTITIONS)
    parser.add_argument("--sides", nargs="*", default=(), help="only these, by their names in events_per_s")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    given = parser.parse_args()
    workload = workloads(given.events_format)[given.workload]()
    result = run(
        workload,
        given.events or workload.count,
        given.rounds,
        given.partitions,
        given.sides,
        lambda text: print(text, file=sys.stderr),
    )
    print(json.dumps(result) if given.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
