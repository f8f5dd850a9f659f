"""What happens to a scorer, put in one order and counted: the control thread's news, the loop's, and the figures."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable

from modelcast.errors import ModelcastError
from modelcast.events.frames import Headers
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import Refusal

from . import line
from .commit import Committer
from .control import ControlPlane
from .loop import NO_VERSION, LoopHooks
from .rate import Rate
from .reports import Progressed, Recovering, Refused, Report, ScorerStats, Swapped, Waiting, WentLive
from .sampling import EventFieldsSource
from .servable import Servable
from .status import Activity

PROGRESS_S = 5.0
_MODELS_NAMED = 10  # of a registry that may hold thousands

_logger = logging.getLogger(__name__)


class Observer:
    """Turns what happens into reports and figures; all but `stats` and `activity` is the scoring thread's."""

    def __init__(
        self,
        ref: ModelRef,
        plane: ControlPlane,
        committer: Committer,
        fields: EventFieldsSource,
        report: Callable[[Report], None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ref = ref
        self._plane = plane
        self._slot = plane.slot(ref)
        self._committer = committer
        self._fields = fields
        self._report = report
        self._clock = clock
        self._news: queue.SimpleQueue[line.Swapped | Refusal] = queue.SimpleQueue()
        self._waiting: str | None = None
        self._swaps = 0
        self._recoveries = 0
        self._rate = Rate(clock())
        self._progress_at_s = clock() + PROGRESS_S
        self._measure_lag: Callable[[], int | None] = lambda: None
        self._lag: int | None = None
        self.stats = ScorerStats()
        plane.on_swap(lambda event: self._news.put(event) if event.ref == ref else None)
        plane.on_refused(lambda refused, refusal: self._news.put(refusal) if refused == ref else None)

    def hooks(self) -> LoopHooks:
        """What the loop calls."""
        return LoopHooks(
            knows_fields=lambda: self._fields.known is not None,
            learn=self._learn,
            model_failed=self._model_failed,
            waiting=self._wait,
            recovering=self._recover,
            tick=self.tick,
        )

    def follow_lag(self, measure: Callable[[], int | None]) -> None:
        """Asks `measure`, on the scoring thread and never for long, how many events wait."""
        self._measure_lag = measure

    def activity(self) -> Activity:
        """What the status topic is told; for any thread."""
        stats = self.stats
        return Activity(stats.events, stats.events_per_s, stats.lag, stats.dead_letters)

    def sample(self) -> None:
        """Learns what the events have before the first version is loaded. Raises BrokerError."""
        if self._fields.sample():
            self._plane.set_event_fields(self._ref, self._fields.known)

    def tick(self) -> None:
        """Passes on the news, and the figures every few seconds."""
        while not self._news.empty():
            self._tell(self._news.get())
        now = self._clock()
        totals = self._committer.totals
        if self._rate.add(now, totals.events):
            self._lag = self._measure_lag()
        live = self._slot.live
        self.stats = ScorerStats(
            events=totals.events,
            predictions=totals.predictions,
            dead_letters=totals.dead_letters,
            commits=totals.commits,
            swaps=self._swaps,
            recoveries=self._recoveries,
            events_per_s=self._rate.per_s(now, totals.events),
            live=None if live is None else live.id,
            lag=self._lag,
        )
        if now >= self._progress_at_s:
            self._progress_at_s = now + PROGRESS_S
            self._report(Progressed(self.stats))

    def _tell(self, news: line.Swapped | Refusal) -> None:
        if isinstance(news, Refusal):
            self._report(Refused(ModelVersion(self._ref.model, news.version), news.reason, news.message))
            return
        live = self._slot.live
        device = "" if live is None else live.device
        if news.old is None:
            self._report(WentLive(news.new, device, news.load_ms, news.release_to_live_ms))
        else:
            self._swaps += 1
            self._report(Swapped(news.old, news.new, device, news.load_ms, news.release_to_live_ms))

    def _learn(self, value: bytes | None, headers: Headers) -> None:
        try:
            if self._fields.meet(value, headers):
                self._plane.set_event_fields(self._ref, self._fields.known)
        except ModelcastError as error:
            _logger.info("can't look at the latest events: %s", error)

    def _model_failed(self, servable: Servable, message: str) -> None:
        self._plane.report_failure(self._ref, servable.id, message)

    def _wait(self, reason: str | None) -> None:
        if reason == NO_VERSION:
            stale = self._plane.stale(self._ref)
            reason = f"{NO_VERSION}: {stale.message}" if stale is not None and stale.stop else self._why_no_version()
        if reason != self._waiting and reason is not None:
            self._report(Waiting(reason))
        self._waiting = reason

    def _why_no_version(self) -> str:
        image, fault = self._plane.image, self._plane.fault
        if fault is not None:
            return f"{NO_VERSION}, and the registry can't be followed: {fault}"
        if image is None:
            return f"{NO_VERSION}: the registry is being read"
        entry = image.models.get(self._ref.model)
        if entry is None:
            known = ", ".join(sorted(image.others.union(image.models))[:_MODELS_NAMED]) or "none"
            return f"{NO_VERSION}: nobody published {self._ref.model!r} yet (published: {known})"
        if self._ref.version is None and entry.champion is None:
            return f"{NO_VERSION}: {self._ref.model!r} has no release; modelcast release {self._ref.model} VERSION"
        if self._plane.refusals(self._ref):
            return f"{NO_VERSION}: what was released is refused"
        return f"{NO_VERSION}: {self._ref} is being loaded"

    def _recover(self, error: BaseException) -> None:
        self._recoveries += 1
        self._report(Recovering(str(error)))
