"""The soak itself: rounds of faults that end in a calm, and what is asked at its end."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from typing import Any

from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.kafka import KafkaLog
from modelcast.registry.image import VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.topics import Topics

from .catalogue import Catalogue
from .chaos import Chaos
from .crew import Crew
from .feeder import Feeder
from .judge import Judge
from .stage import MODEL, PREFIX, STREAMS, Stage
from .watch import STUCK_S, Watch

TICK_S = 0.25
PROGRESS_EVERY_S = 10.0
MEASURE_EVERY_S = 10.0
# Some dozens of faults, then the question whether all came out right.
ROUND_S = 150.0
FIRST_VERSION_S = 300.0
CATCH_UP_S = 60.0
# A node that is stopped, and on a machine that does much else killed then, starts, and catches up.
REST_S = 900.0
# What no scorer of a model of a megabyte needs, whatever happens to it.
RESIDENT_MOST_KIB = 800 * 1024
# What the spared one may gain after its first round, in which everything happened once.
RESIDENT_GROWTH_MOST, RESIDENT_SLACK_KIB = 1.25, 64 * 1024
# A client of Kafka has five with three brokers, and one may be in the middle of its end.
THREADS_SLACK = 30


class BrokenPromiseError(Exception):
    """A promise was broken; the message says which."""


class Soak:
    """One run.

    Args:
        minutes: Of rounds, their calms included; starting and the end come on top.
        act_every_s: The mean time between two faults.
        scorers: Of each of the two groups.

    Attributes:
        has_begun: There is something to tell of.
    """

    def __init__(
        self, stage: Stage, *, seed: int, minutes: float, per_second: float, act_every_s: float, scorers: int
    ) -> None:
        self._stage = stage
        self._seconds = 60 * minutes
        self._act_every_s = act_every_s
        self._chance = random.Random(f"pauses of {seed}")
        self._seed = seed
        self._scorers = scorers
        self._feeder = Feeder(stage, seed, per_second)
        self.has_begun = False
        self.rounds = 0
        self.second_reading: dict[str, Any] = {}
        self._told_s = self._measured_s = 0.0
        self._spared_kib: list[int] = []
        self._spared_threads: list[int] = []

    def run(self) -> None:
        """Everything, to the end. Raises BrokenPromiseError."""
        self._stage.set_up()
        self._catalogue = Catalogue(self._stage)
        self._judge = Judge(self._stage.servers, self._model, self._stage.patience)
        self._watch = Watch(self._stage.servers, self._judge.events, self._stage.patience)
        self._crew = Crew(self._stage, self._scorers)
        self._chaos = Chaos(self._stage, self._seed, self._crew, self._catalogue, self._feeder)
        self.has_begun = True
        try:
            self._start()
            started_s = time.monotonic()
            while time.monotonic() - started_s < self._seconds:
                self._break_things(min(ROUND_S, self._seconds - (time.monotonic() - started_s)))
                self._calm()
            self._finish()
        except BaseException:
            self._crew.show_stacks()
            raise
        finally:
            self._chaos.end()
            self._crew.kill_all()

    def figures(self) -> Mapping[str, Any]:
        """What happened, in numbers."""
        ledgers = self._judge.ledgers.values()
        return {
            "events": self._feeder.sent,
            "rounds": self.rounds,
            "streams": {
                ledger.name: {
                    "predictions": ledger.predictions,
                    "dead_letters": ledger.letters,
                    "settled": ledger.settled,
                    "scored_again": sum(ledger.by_version.values()),
                    "versions": len(ledger.by_version),
                }
                for ledger in ledgers
            },
            "versions": {"published": len(self._catalogue.read), "withdrawn": len(self._catalogue.withdrawn)},
            "releases": self._catalogue.releases,
            "swaps": self._crew.count("swapped"),
            "recoveries": self._crew.count("recovering"),
            "longest_standstill_s": round(self._watch.longest_still_s, 1),
            "resident_most_mib": self._crew.resident_most_kib // 1024,
            "spared_scorer_mib": [kib // 1024 for kib in self._spared_kib],
            "spared_scorer_threads": self._spared_threads,
            "second_reading": self.second_reading,
            "happened": dict(sorted(self._stage.timeline.counts.items())),
        }

    def faults(self) -> Sequence[str]:
        """Broken promises, in words."""
        return [
            *self._judge.faults,
            *self._watch.faults,
            *self._catalogue.faults,
            *self._crew.faults,
            *self._chaos.faults,
            *self._feeder.failed,
        ]

    def _model(self, version: int) -> Any:
        return self._catalogue.model(version) if self._catalogue.has(version) else None

    def _start(self) -> None:
        self._catalogue.start()
        self._chaos.start_registrar()
        self._await(lambda: self._catalogue.standing, "the first version", FIRST_VERSION_S)
        self._crew.tend()
        self._await(lambda: self._crew.count("live") == len(self._crew.places), "all scorers", FIRST_VERSION_S)
        self._judge.start()
        self._watch.start()
        self._feeder.start()

    def _break_things(self, seconds: float) -> None:
        self._stage.timeline.note("round", number=self.rounds + 1)
        end_s = time.monotonic() + seconds
        next_s = time.monotonic() + self._chance.expovariate(1 / self._act_every_s)
        while (now := time.monotonic()) < end_s:
            if now >= next_s:
                self._chaos.act()
                next_s = now + self._chance.expovariate(1 / self._act_every_s)
            self._turn()

    def _calm(self) -> None:
        """Nothing is broken any more: everything sent is scored, once."""
        self._stage.timeline.note("calm")
        self._await(self._chaos.is_over, "what was broken to be whole again", REST_S)
        self._chaos.mend()
        self._feeder.pause()
        self._await(
            lambda: all(place.runs for place in self._crew.places) and not any(self._lag().values()),
            "everything to be scored",
            STUCK_S,
        )
        self._judge.settle()
        self._crew.measure()
        self._spared_kib += self._crew.spared.resident_kib[-1:]
        self._spared_threads += self._crew.spared.threads[-1:]
        self.rounds += 1
        self._check()
        self._stage.timeline.note("settled", events=self._judge.ledgers[STREAMS[0].name].settled)
        self._feeder.resume()

    def _lag(self) -> Mapping[str, int]:
        """Events that wait, of those that were sent."""
        known = sum(self._judge.events.end(partition) for partition in self._judge.events.rows)
        return {name: lag + self._feeder.sent - known for name, lag in self._watch.lag.items()}

    def _finish(self) -> None:
        self._stage.timeline.note("end")
        self._feeder.stop()
        self._crew.end()
        self._chaos.end()
        self._watch.stop()
        self._catalogue.stop()
        self._judge.stop()
        verified = self._catalogue.verify_all()
        fetched = self._fetch_all()
        again = Judge(self._stage.servers, self._model, self._stage.patience)
        again.start()
        again.settle()
        again.stop()
        self._judge = again  # what is reported is what stands there at the end, read once more from the beginning
        self.second_reading = {"versions_verified": verified, "versions_fetched": fetched}
        self._check()

    def _fetch_all(self) -> int:
        """Fetches every version that stands, as an application does; returns how many."""
        topics = Topics(PREFIX)
        with KafkaLog({"bootstrap.servers": self._stage.servers}) as log:
            reader = RegistryReader(log, topics)
            records = reader.catch_up(CATCH_UP_S).model(MODEL).versions.values()
            reader.close()
            cache = Cache(self._stage.folder / "last-cache")
            fetcher = Fetcher(log, topics, cache)
            standing = [record for record in records if isinstance(record, VersionRecord)]
            for record in standing:
                cache.release(fetcher.fetch(record))
            cache.close()
        return len(standing)

    def _await(self, condition: Any, what: str, timeout_s: float) -> None:
        timeout_s *= self._stage.patience
        deadline = time.monotonic() + timeout_s
        while not condition():
            self._turn()
            if time.monotonic() > deadline:
                raise BrokenPromiseError(f"waited {timeout_s:g} s for {what}")

    def _turn(self) -> None:
        """Looks after everything, for as long as a tick."""
        time.sleep(TICK_S)
        self._crew.tend()
        self._chaos.tend()
        now = time.monotonic()
        if now - self._measured_s > MEASURE_EVERY_S:
            self._measured_s = now
            self._crew.measure()
        if now - self._told_s > PROGRESS_EVERY_S:
            self._told_s = now
            self._tell()
        self._check()

    def _check(self) -> None:
        if self._crew.resident_most_kib > RESIDENT_MOST_KIB:
            raise BrokenPromiseError(f"a scorer held {self._crew.resident_most_kib // 1024} MiB")
        if self._spared_kib and self._spared_kib[-1] > RESIDENT_GROWTH_MOST * self._spared_kib[0] + RESIDENT_SLACK_KIB:
            raise BrokenPromiseError(f"the spared scorer grows: {[kib // 1024 for kib in self._spared_kib]} MiB")
        if self._spared_threads and self._spared_threads[-1] > self._spared_threads[0] + THREADS_SLACK:
            raise BrokenPromiseError(f"the spared scorer keeps clients: {self._spared_threads} threads")
        if faults := self.faults():
            raise BrokenPromiseError("; ".join(faults[:10]))

    def _tell(self) -> None:
        counts = self._stage.timeline.counts
        scorers = sum(counts[f"scorer {name}"] for name in ("SIGKILL", "SIGTERM", "SIGSTOP"))
        nodes = sum(counts[f"node {name}"] for name in ("killed", "stopped", "frozen"))
        network = sum(counts[f"frame {name}"] for name in ("late", "lost", "cut")) + counts["connections cut"]
        commands = sum(counts[f"command {name}"] for name in ("publish", "delete", "gc"))
        lag = " ".join(f"{name} {count:,}" for name, count in self._watch.lag.items())
        spared = self._crew.spared.resident_kib[-1:] or [0]
        print(
            f"{self._stage.timeline.elapsed_s / 60:6.1f} min  round {self.rounds + 1}  "
            f"{self._feeder.sent:,} events  waiting: {lag}  {len(self._catalogue.read)} versions "
            f"({len(self._catalogue.withdrawn)} withdrawn)  {self._catalogue.releases} releases  broken: "
            f"{scorers} scorers, {nodes} nodes, {network} connections  {commands} commands  "
            f"spared scorer {spared[0] // 1024} MiB",
            flush=True,
        )
