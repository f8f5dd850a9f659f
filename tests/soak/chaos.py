"""What breaks things, drawn by a seed: which, when and for how long; what comes of it also depends on the machine."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from modelcast.dev.process import dying_with_parent
from modelcast.errors import BrokerError, ExitCode
from tests.cluster import WHOLE_TIMEOUT_S
from tests.fault_proxy import Api, Way

from .catalogue import Catalogue
from .crew import Crew, Place
from .feeder import Feeder
from .models import write_soak_model
from .stage import COMMAND_S, MODEL, ROOT, Stage

AWAY_MOST_S = 12.0
FROZEN_MOST_S = 20.0
HELD_MOST_S = 12.0
CAUGHT_S = 10.0
LAST_ONE_MEETS_IT = 0.25  # a share
COMMAND_KILLED = 0.25  # a share
# What commands may end with among killed brokers and other writers.
COMMAND_MAY_END = frozenset({
    ExitCode.DONE, ExitCode.BROKER, ExitCode.NOT_FOUND, ExitCode.USAGE, ExitCode.FENCED, -signal.SIGKILL,
})  # fmt: skip
APIS = (
    Api.PRODUCE, Api.FETCH, Api.OFFSET_FETCH, Api.JOIN_GROUP, Api.HEARTBEAT, Api.INIT_PRODUCER_ID,
    Api.ADD_PARTITIONS_TO_TXN, Api.ADD_OFFSETS_TO_TXN, Api.TXN_OFFSET_COMMIT, Api.END_TXN,
    Api.CONSUMER_GROUP_HEARTBEAT,
)  # fmt: skip


class Chaos:
    """Draws what to break next, and breaks it on a thread of its kind: one node, one proxy, one command at a time.

    Attributes:
        faults: Broken promises, in words.
    """

    def __init__(self, stage: Stage, seed: int, crew: Crew, catalogue: Catalogue, feeder: Feeder) -> None:
        self.faults: list[str] = []
        self._stage = stage
        self._crew = crew
        self._catalogue = catalogue
        self._feeder = feeder
        self._seed = seed
        self._chance = random.Random(seed)
        self._registrar: subprocess.Popen[bytes] | None = None
        self._registrars = 0
        self._usual_rate = feeder.per_second
        self._kinds: dict[str, tuple[ThreadPoolExecutor, Future[None] | None]] = {
            kind: (ThreadPoolExecutor(1, thread_name_prefix=f"chaos-{kind}"), None)
            for kind in ("node", "network", "command", "scorer")
        }
        self._logs = stage.folder / "commands"
        self._logs.mkdir()
        self._commands = 0
        self._actions: list[tuple[float, Callable[[], None]]] = [
            (4, self._kill_scorer),
            (2, self._end_scorer),
            (2, self._freeze_scorer),
            (1.5, self._kill_node),
            (1, self._stop_node),
            (1, self._freeze_node),
            (3, self._hold_frame),
            (1, self._cut_connections),
            (1, self._kill_registrar),
            (1, self._publish),
            (1, self._delete),
            (1, self._collect),
            (1, self._change_rate),
        ]

    def act(self) -> None:
        """Breaks something."""
        weights, actions = zip(*self._actions, strict=True)
        self._chance.choices(actions, weights)[0]()

    def tend(self) -> None:
        """Starts the registrar where none runs, and looks at how one ended."""
        if self._registrar is not None and (status := self._registrar.poll()) is not None:
            if status != -signal.SIGKILL:
                self.faults.append(f"registrar {self._registrars} ended by itself with {status}")
            self._registrar = None
        if self._registrar is None:
            self.start_registrar()

    def start_registrar(self) -> None:
        """Starts one; the first begins with a version that goes live."""
        self._registrars += 1
        stem = self._stage.folder / f"registrar-{self._registrars:03}"
        first = "first" if self._registrars == 1 else "again"
        with stem.with_suffix(".jsonl").open("wb") as out, stem.with_suffix(".err").open("wb") as err:
            self._registrar = subprocess.Popen(
                dying_with_parent([
                    sys.executable, "-m", "tests.soak.registrar", str(self._seed + self._registrars),
                    str(self._stage.folder), first,
                ]),
                env=self._stage.environment("registrar"),
                cwd=ROOT,
                stdout=out,
                stderr=err,
            )  # fmt: skip

    def is_over(self) -> bool:
        """Whether nothing is being broken any more. Raises what went wrong at that."""
        for kind, (pool, running) in self._kinds.items():
            if running is not None and running.done():
                running.result()
                self._kinds[kind] = pool, None
        return all(running is None for _, running in self._kinds.values())

    def mend(self) -> None:
        """What is left: a scorer that is frozen still, a rate that is not the usual one."""
        for place in self._crew.places:
            if place.frozen:
                self._crew.signal(place, signal.SIGCONT)
        self._feeder.per_second = self._usual_rate
        self._stage.cluster.await_whole(self._stage.patience * WHOLE_TIMEOUT_S)

    def end(self) -> None:
        """Ends the registrar, hard: nobody else would."""
        if self._registrar is not None:
            self._registrar.kill()
            self._registrar.wait(30)
            self._registrar = None

    # -- scorers

    def _draw_place(self) -> Place | None:
        """Whom it meets; one whose group nobody else scores for is mostly left alone, or none would ever get ready."""
        place = self._chance.choice([place for place in self._crew.places if not place.spared])
        return place if self._chance.random() < LAST_ONE_MEETS_IT or self._crew.is_manned(place) else None

    def _kill_scorer(self) -> None:
        self._signal_scorer(signal.SIGKILL)

    def _end_scorer(self) -> None:
        self._signal_scorer(signal.SIGTERM)

    def _signal_scorer(self, number: signal.Signals) -> None:
        place = self._draw_place()
        back_after_s = self._chance.choice([0.0, 0.0, self._chance.uniform(0, AWAY_MOST_S)])
        if place is not None and self._crew.signal(place, number, back_after_s=back_after_s):
            self._stage.timeline.note(f"scorer {number.name}", who=place.name, back_after_s=round(back_after_s, 1))

    def _freeze_scorer(self) -> None:
        place = self._draw_place()
        frozen_s = self._chance.uniform(0.5, FROZEN_MOST_S)
        if place is None:
            return

        def freeze() -> None:
            process = place.process
            if not self._crew.signal(place, signal.SIGSTOP):
                return
            self._stage.timeline.note("scorer SIGSTOP", who=place.name, for_s=round(frozen_s, 1))
            time.sleep(frozen_s)
            if place.process is process:
                self._crew.signal(place, signal.SIGCONT)

        self._start("scorer", freeze)

    # -- nodes

    def _kill_node(self) -> None:
        self._take_node_away("killed", lambda index: self._stage.cluster.brokers[index].kill())

    def _stop_node(self) -> None:
        self._take_node_away("stopped", self._stop_in_order)

    def _stop_in_order(self, index: int) -> None:
        with suppress(BrokerError):  # too slow for the time it is given on a busy machine: it was killed then
            self._stage.cluster.brokers[index].stop()

    def _take_node_away(self, how: str, take: Callable[[int], None]) -> None:
        index, away_s = self._chance.randrange(len(self._stage.cluster.brokers)), self._chance.uniform(0, AWAY_MOST_S)

        def away() -> None:
            self._stage.timeline.note(f"node {how}", node=index + 1, away_s=round(away_s, 1))
            take(index)
            time.sleep(away_s)
            self._stage.cluster.start_node(index)
            self._stage.cluster.await_whole(self._stage.patience * WHOLE_TIMEOUT_S)
            self._stage.timeline.note("node back", node=index + 1)

        self._start("node", away)

    def _freeze_node(self) -> None:
        index, frozen_s = self._chance.randrange(len(self._stage.cluster.brokers)), self._chance.uniform(0.5, 15)

        def freeze() -> None:
            self._stage.timeline.note("node frozen", node=index + 1, for_s=round(frozen_s, 1))
            broker = self._stage.cluster.brokers[index]
            broker.pause()
            time.sleep(frozen_s)
            broker.resume()
            self._stage.cluster.await_whole(self._stage.patience * WHOLE_TIMEOUT_S)
            self._stage.timeline.note("node back", node=index + 1)

        self._start("node", freeze)

    # -- the network

    def _hold_frame(self) -> None:
        proxy = self._chance.choice(self._stage.cluster.proxies)
        api, way = self._chance.choice(APIS), self._chance.choice(list(Way))
        fate = self._chance.choice(["late", "late", "lost", "cut"])
        held_s = self._chance.uniform(0, HELD_MOST_S)

        def hold() -> None:
            held = proxy.hold(api, way)
            try:
                held.await_caught(CAUGHT_S)
            except AssertionError:  # nobody sent one
                return
            finally:
                if not held.caught:
                    proxy.forget()
            self._stage.timeline.note(f"frame {fate}", api=api.name, way=way.name, held_s=round(held_s, 1))
            time.sleep(held_s)
            {"late": held.let_go, "lost": held.lose, "cut": held.cut}[fate]()
            proxy.forget()

        self._start("network", hold)

    def _cut_connections(self) -> None:
        index = self._chance.randrange(len(self._stage.cluster.proxies))
        self._stage.timeline.note("connections cut", node=index + 1)
        self._stage.cluster.proxies[index].cut_all()

    # -- the registry

    def _kill_registrar(self) -> None:
        self._stage.timeline.note("registrar SIGKILL")
        self.end()

    def _publish(self) -> None:
        seed = self._chance.randrange(1 << 32)
        model, rows = self._logs / f"{seed}.onnx", self._logs / "rows.csv"
        write_soak_model(model, seed)
        rows.write_text("amount,age\n1,2\n3,4\n5,60\n-7,8\n")
        release = ["--release"] if self._chance.random() < 0.5 else []
        self._command("publish", MODEL, str(model), "--examples", str(rows), "--fields", "amount,age", *release)

    def _delete(self) -> None:
        drawn = self._chance.random()
        standing = self._catalogue.standing[:-2]
        if standing:
            # Old ones mostly; a live one is refused.
            version = standing[int(drawn * drawn * len(standing))]
            self._command("delete", f"{MODEL}@{version}", "--force")

    def _collect(self) -> None:
        self._command("gc", "--grace", f"{self._chance.randrange(1, 20)}s")

    def _command(self, *arguments: str) -> None:
        killed_after_s = self._chance.uniform(0.5, 6) if self._chance.random() < COMMAND_KILLED else None
        self._start("command", lambda: self._run(arguments, killed_after_s))

    def _run(self, arguments: tuple[str, ...], killed_after_s: float | None) -> None:
        self._commands += 1
        limit_s = self._stage.patience * COMMAND_S
        path = self._logs / f"{self._commands:04}-{arguments[0]}.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                dying_with_parent([sys.executable, "-m", "modelcast", *arguments]),
                env=self._stage.environment("operator"),
                cwd=ROOT,
                stdout=log,
                stderr=log,
            )
        try:
            status = process.wait(killed_after_s or limit_s)
        except subprocess.TimeoutExpired:
            process.kill()
            status = process.wait(30)
            if killed_after_s is None:
                self.faults.append(f"{' '.join(arguments)} did not end in {limit_s:g} s; see {path.name}")
        self._stage.timeline.note(f"command {arguments[0]}", status=status, log=path.name)
        if status not in COMMAND_MAY_END:
            self.faults.append(f"{' '.join(arguments)} ended with {status}; see {path.name}")

    # -- events

    def _change_rate(self) -> None:
        self._feeder.per_second = self._usual_rate * self._chance.choice([0.1, 0.5, 1, 1, 2, 4])
        self._stage.timeline.note("rate", per_second=self._feeder.per_second)

    def _start(self, kind: str, action: Callable[[], None]) -> None:
        """On the thread of its kind; nothing where one of its kind is under way."""
        pool, running = self._kinds[kind]
        if running is not None:
            if not running.done():
                return
            running.result()
        self._kinds[kind] = pool, pool.submit(action)
