"""The plot: a year of flights in about a minute.

Each month its flights are sent as events while a scorer, in its own process, scores them. At its end the trainer learns
from all flights that have landed, publishes and releases; the feeder, never the scorer, waits for that. So January's
events wait in Kafka for the first version, and every swap happens while events flow.

In passing: one record of garbage; a model that needs what no event has, released and, when the scorer has refused it,
rolled back; a rollback of a good model, whose successor goes live at the next month's end as if nothing had been.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.markup import escape

from modelcast.demo import training
from modelcast.demo.accounting import Flow
from modelcast.demo.board import Board
from modelcast.demo.feeder import Cue, Feeder
from modelcast.demo.flights import Flights, with_wind_gusts
from modelcast.demo.interrupts import Interrupts
from modelcast.demo.result import Kind, Played, ReleaseMade
from modelcast.demo.scorer import Happening, Refused, ScorerProcess, WentLive
from modelcast.demo.stage import EVENT_PARTITIONS, MODEL, Stage
from modelcast.demo.topics import Watcher
from modelcast.errors import ModelcastError, UsageError
from modelcast.log import Log, TopicSpec
from modelcast.topics import KEEP_FOR_EVER

if TYPE_CHECKING:
    from modelcast.publisher import ModelPublisher

MONTH_NAMES: Final = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
MIN_MONTHS: Final = 3
# Long enough for a swap to fall well within the month, and a year of it takes half a minute.
MONTH_S: Final = 2.0
# The field no event has.
UNFIT_FIELD: Final = "wind_gust"
# What the unfit model learns from: it shall be refused for its inputs, not trained for long.
_UNFIT_FLIGHTS: Final = 20_000
# A refusal takes as long as a load; the play goes on without one, and the verdict says so.
_REFUSAL_TIMEOUT_S: Final = 20.0
# Without any new prediction for so long, none will come.
_STALL_S: Final = 30.0
_LOOK_S: Final = 0.05
_CUE_SHARES: Final = {"poison": 0.5, "unfit": 0.2, "rollback": 0.5}


@dataclass(frozen=True, slots=True)
class Script:
    """When what happens.

    Attributes:
        months: How many are played, from January.
        month_s: How long sending one takes.
    """

    months: int = 12
    month_s: float = MONTH_S

    def __post_init__(self) -> None:
        if not MIN_MONTHS <= self.months <= len(MONTH_NAMES):
            raise UsageError(
                f"the demonstration can't play {self.months} months",
                hint=f"Give {MIN_MONTHS} to {len(MONTH_NAMES)}: the story needs that many, and the data has no more.",
            )

    @property
    def poison_month(self) -> int:
        return min(3, self.months)

    @property
    def unfit_month(self) -> int:
        # It is published before the month, and the first version shall be a good one.
        return max(3, min(5, self.months - 1))

    @property
    def rollback_month(self) -> int:
        return min(8, self.months)


class Year:
    """One performance.

    Args:
        flights: What is sent.
        script: When what happens.
        stage: Where.
        board: Told what happens.
        interrupts: What may end it early.
    """

    def __init__(self, flights: Flights, script: Script, stage: Stage, board: Board, interrupts: Interrupts) -> None:
        self._flights = flights
        self._script = script
        self._stage = stage
        self._board = board
        self._interrupts = interrupts
        self._lock = threading.Lock()
        self._releases: list[ReleaseMade] = []
        self._flows: list[Flow] = []
        self._poison = 0
        self._unfit_version = 0
        self._asides: list[Future[Any]] = []

    def play(self, log: Log) -> Played:
        """Plays from January to the end, until every event has its outcome or none comes any more.

        Raises:
            ModelcastError: The scorer died, a model could not be published, or the broker failed.
            KeyboardInterrupt: A signal came.
        """
        from modelcast.publisher import ModelPublisher

        board, began = self._board, self._board.seconds
        log.create(TopicSpec(self._stage.events, EVENT_PARTITIONS, configs=KEEP_FOR_EVER))
        with ExitStack() as stack:
            self._scorer = stack.enter_context(ScorerProcess(self._stage, self._happened))
            self._watcher = stack.enter_context(Watcher(log, self._stage, board))
            self._publisher: ModelPublisher = stack.enter_context(ModelPublisher.connect(self._stage.connection))
            self._feeder = stack.enter_context(closing(Feeder(log, self._stage, self._pause, board.sent)))
            self._aside = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="demo-aside"))
            self._do_aside(training.warm_up)
            waited = 0
            for month in range(1, self._script.months + 1):
                self._feed(month)
                if month == 1:
                    waited = board.snapshot().sent
                    board.note(f"{waited:,} January flights wait in Kafka: there is no model yet")
                if month + 1 == self._script.unfit_month:
                    self._unfit_version = self._publish_unfit(month)
                if month < self._script.months:
                    self._retrain(month)
            self._await_outcomes()
            board.doing("asking the scorer to end")
            self._scorer.stop()
            happenings = self._scorer.happenings
        return Played(
            tuple(sorted(self._releases, key=lambda made: made.created_ms)),
            tuple(self._flows),
            happenings,
            waited,
            board.seconds - began,
        )

    # -- a month

    def _feed(self, month: int) -> None:
        cues = []
        if month == self._script.poison_month:
            cues.append(Cue(_CUE_SHARES["poison"], lambda: self._do_aside(self._poison_the_stream)))
        if month == self._script.unfit_month:
            cues.append(Cue(_CUE_SHARES["unfit"], lambda: self._do_aside(self._release_unfit)))
        if month == self._script.rollback_month:
            cues.append(Cue(_CUE_SHARES["rollback"], lambda: self._do_aside(self._roll_back)))
        self._board.doing("flights depart", month=month)
        flow = self._feeder.send_month(self._flights.events(month), self._script.month_s, cues)
        self._flows.append(flow)
        self._await_asides()

    def _retrain(self, month: int) -> None:
        names = MONTH_NAMES[0] if month == 1 else f"{MONTH_NAMES[0]} to {MONTH_NAMES[month - 1]}"
        self._board.doing(f"training on {names}")
        with self._interrupts.at_once():
            trained = training.train(self._flights.landed_by_end_of(month))
            self._board.doing("publishing")
            published = self._publisher.publish(
                MODEL,
                trained.pipeline,
                examples=trained.examples,
                metrics={} if math.isnan(trained.auc) else {"auc": round(trained.auc, 4)},
                message=f"trained on {names}",
                release=True,
            )
        if published.release is None:
            raise ModelcastError(f"version {published.manifest.version} was published and not released")
        version = published.manifest.version
        about = f"trained on {names}"
        self._made(ReleaseMade(version, published.release.created_ms, Kind.TRAINED, about, trained.auc))
        learned = f"{trained.flights:,} landed flights in {trained.seconds:.1f} s"
        self._board.note(f"[bold]v{version}[/bold] released: trained on {learned}")

    # -- in passing, on a thread beside the feeder

    def _poison_the_stream(self) -> None:
        self._feeder.send_poison()
        self._poison += 1
        self._board.note("a record of garbage among the events")

    def _publish_unfit(self, month: int) -> int:
        """Publishes a model that learned from the weather too, which no event holds; released in the next month."""
        self._board.doing("training a model that does not fit the events")
        with self._interrupts.at_once():
            landed = self._flights.landed_by_end_of(month).tail(_UNFIT_FLIGHTS)
            trained = training.train(with_wind_gusts(landed), extra=(UNFIT_FIELD,))
            published = self._publisher.publish(
                MODEL, trained.pipeline, examples=trained.examples, message=f"learns from {UNFIT_FIELD} too"
            )
        return published.manifest.version

    def _release_unfit(self) -> None:
        version = self._unfit_version
        release = self._publisher.release(MODEL, version, message="a mistake")
        about = f"needs {UNFIT_FIELD}, which no event has"
        self._made(ReleaseMade(version, release.created_ms, Kind.UNFIT, about))
        self._board.note(f"[bold]v{version}[/bold] released by mistake: it {about}")

        def refused(happening: Happening) -> bool:
            return isinstance(happening, Refused) and happening.version == version

        if not self._scorer.wait_for(refused, _REFUSAL_TIMEOUT_S, time.sleep):
            self._board.note(f"[red]v{version} was not refused[/red]")
        self._roll_back()

    def _roll_back(self) -> None:
        release = self._publisher.rollback(MODEL, message="back to the one before")
        self._made(
            ReleaseMade(release.version, release.created_ms, Kind.ROLLBACK, f"rolled back to v{release.version}")
        )
        self._board.note(f"rolled back: [bold]v{release.version}[/bold] is released again")

    def _do_aside(self, act: Callable[[], object]) -> None:
        self._asides.append(self._aside.submit(act))

    def _await_asides(self) -> None:
        while self._asides:
            if self._asides[0].done():
                self._asides.pop(0).result()
            else:
                self._pause(_LOOK_S)

    # -- what is heard and seen

    def _made(self, release: ReleaseMade) -> None:
        with self._lock:
            self._releases.append(release)
        self._board.released(release.version)

    def _happened(self, happening: Happening) -> None:
        if isinstance(happening, Refused):
            self._board.rejected()
            reason, message = escape(happening.reason), escape(happening.message)
            self._board.note(f"[red]refused[/red] v{happening.version} ({reason}): {message}")
            return
        if isinstance(happening, WentLive):
            self._board.live(happening.version, swapped=happening.before is not None)
            after = happening.release_to_live_ms
            took = "" if after is None else f", {after:.0f} ms after its release"
            swapped = "" if happening.before is None else f" (it was v{happening.before})"
            self._board.note(f"[green]live[/green] v{happening.version}{swapped}{took}")

    def _pause(self, seconds: float) -> None:
        """Sleeps; ends the play if the scorer has ended or a signal came."""
        self._scorer.check()
        if self._watcher.error is not None:
            raise self._watcher.error
        self._interrupts.sleep(seconds)

    def _await_outcomes(self) -> None:
        self._board.doing("waiting for the last predictions")
        last, at_s = -1, time.monotonic()
        while True:
            now = self._board.snapshot()
            done = now.predictions + now.dead_letters
            if done >= now.sent + self._poison:
                return
            if done != last:
                last, at_s = done, time.monotonic()
            elif time.monotonic() - at_s >= _STALL_S:
                self._board.note(f"[red]no prediction for {_STALL_S:.0f} s[/red]")
                return
            self._pause(_LOOK_S)
