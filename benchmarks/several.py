"""Several models on one stream, and headers that go along: events a second, and what an event costs.

    python -m benchmarks.several --events 500000 --json

- `models_1`, `models_2`, `models_4`: one scorer, exactly once, each model to its own topic; `scorers_2`: two scorers at
  once with one model each, which is the alternative.
- `headers_carried`: one model, and every event has a header that its prediction gets; `headers_left`: the same events,
  none asked for; `headers_absent`: events without headers, one asked for.

Every model is the same logistic regression on thirty floats, under several names. The rate is that of events, seen from
the topic of the first model. `cpu_s_per_million` is the scorers' own processor time, without what a start takes (a run
over a thousand events). Prints `{"events": n, "sides": {side: {"events_per_s": r, "cpu_s_per_million": s}}}`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from sklearn.linear_model import LogisticRegression

from modelcast.config import Connection
from modelcast.dev.broker import LocalBroker
from modelcast.events.infer import infer_schema_of
from modelcast.events.send import EventSender
from modelcast.kafka import KafkaLog
from modelcast.log import BEGINNING, TopicSpec
from modelcast.publisher import ModelPublisher
from modelcast.registry.repository import init
from modelcast.scan import scan
from modelcast.topics import KEEP_FOR_EVER

from . import workload
from .measure import throughput

DEFAULT_EVENTS = 500_000
_FEW_EVENTS = 1_000
_SLICE_EVENTS = 100_000
_PARTITIONS = 4
_TRAINING_EVENTS = 5_000
_EXAMPLES = 200
_MODELS = ("fraud", "second", "third", "fourth")
_TRACE = ("traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
_SIDE_TIMEOUT_S = 600.0
_FLUSH_S = 60.0
_BROKER_HEAP_MB = 1024


class Stage:
    """The broker with events, with and without headers, and the models."""

    def __init__(self, folder: Path, broker: LocalBroker, count: int) -> None:
        self.folder = folder
        self.count = count
        self.connection = Connection.resolve(broker.bootstrap_servers, environment={})
        self.log = KafkaLog(self.connection.settings)
        init(self.log, self.connection.topics)
        for topic, events in (("plain", count), ("plain-few", _FEW_EVENTS)):
            self._send(topic, events)
            self._add_headers(topic, topic.replace("plain", "traced"))
        self._publish_models()
        self._runs = 0

    def measure(self, source: str, scorers: Sequence[Sequence[str]]) -> Mapping[str, float]:
        """Runs scorers at once, each with these arguments, over the topic and over its first few events."""
        start_s = self._run(f"{source}-few", scorers)[0]
        cpu_s, first = self._run(source, scorers)
        written = throughput(self.log, first)
        if written.records != self.count:
            raise SystemExit(f"{first} has {written.records} records for {self.count} events")
        return {
            "events_per_s": round(written.records_per_s),
            "cpu_s_per_million": round((cpu_s - start_s) * 1e6 / self.count, 2),
        }

    def _run(self, source: str, scorers: Sequence[Sequence[str]]) -> tuple[float, str]:
        """Processor seconds, and the topic of the first model's predictions."""
        self._runs += 1
        environment = {**os.environ, "MODELCAST_STATE_DIR": str(self.folder), "MODELCAST_CACHE_DIR": str(self.folder)}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "modelcast", "score", *arguments, "-b", self.connection.bootstrap_servers),
                    *("--events", source, "--predictions", f"{{model}}-{self._runs}", "--device", "cpu", "--until-end"),
                ],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for arguments in scorers
        ]
        for process in started:
            _, errors = process.communicate(timeout=_SIDE_TIMEOUT_S)
            if process.returncode:
                raise SystemExit(f"a scorer failed:\n{errors.decode()}")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return used_s, f"{_MODELS[0]}-{self._runs}"

    def _send(self, topic: str, count: int) -> None:
        schema = infer_schema_of(topic, workload.events(1))
        with EventSender(
            self.log, self.connection.topics, topic, schema=schema, key="id", partitions=_PARTITIONS
        ) as sender:
            for start in range(0, count, _SLICE_EVENTS):
                sender.send(workload.events(min(_SLICE_EVENTS, count - start), seed=start))
            sender.flush()

    def _add_headers(self, source: str, target: str) -> None:
        self.log.create(TopicSpec(target, _PARTITIONS, configs=KEEP_FOR_EVER))
        ends = self.log.end_offsets(source, committed=False)
        with closing(self.log.batch_producer()) as producer:
            for record in scan(self.log, source, dict.fromkeys(ends, BEGINNING), ends, timeout_s=_SIDE_TIMEOUT_S):
                producer.produce(
                    target, key=record.key, value=record.value, partition=record.partition, headers=[_TRACE]
                )
            producer.flush(_FLUSH_S)

    def _publish_models(self) -> None:
        frame = workload.events(_TRAINING_EVENTS)
        features = frame.select(workload.FEATURES).to_numpy()
        model = LogisticRegression().fit(features, features[:, 0] > 0)
        with ModelPublisher.connect(self.connection) as publisher:
            for name in _MODELS:
                publisher.publish(
                    name, model, examples=frame.head(_EXAMPLES), fields=list(workload.FEATURES), release=True
                )


def run(count: int, say: Callable[[str], None]) -> Mapping[str, object]:
    """All sides in turn."""
    with tempfile.TemporaryDirectory(prefix="modelcast-benchmark-") as name:
        folder = Path(name)
        with LocalBroker(
            folder / "broker", heap_mb=_BROKER_HEAP_MB, full_compiler=True, die_with_parent=True
        ) as broker:
            say(f"sending {count:,} events")
            stage = Stage(folder, broker, count)
            carry = ("--carry-headers", _TRACE[0])
            sides: Mapping[str, tuple[str, Sequence[Sequence[str]]]] = {
                "models_1": ("plain", [_MODELS[:1]]),
                "models_2": ("plain", [_MODELS[:2]]),
                "models_4": ("plain", [_MODELS]),
                "scorers_2": ("plain", [_MODELS[:1], _MODELS[1:2]]),
                "headers_absent": ("plain", [(_MODELS[0], *carry)]),
                "headers_left": ("traced", [_MODELS[:1]]),
                "headers_carried": ("traced", [(_MODELS[0], *carry)]),
            }
            measured = {}
            for side, (source, scorers) in sides.items():
                measured[side] = stage.measure(source, scorers)
                say(f"{side:<16} {measured[side]}")
    return {"events": count, "sides": measured}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=DEFAULT_EVENTS)
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    arguments = parser.parse_args()
    result = run(arguments.events, lambda text: print(text, file=sys.stderr))
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
