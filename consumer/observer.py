"""What happens to a scorer, put in one order and counted: the control thread's news, the loop's, and the figures."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Sequence

from modelcast.errors import ModelcastError
from modelcast.events.frames import Headers
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import Refusal

from . import line
from .commit import Committer
from .control import ControlPlane
from .lineup import NO_VERSION
from .loop import LoopHooks
from .rate import Rate
from .reports import ModelStats, Progressed, Recovering, Refused, Report, ScorerStats, Swapped, Waiting, WentLive
from .sampling import EventFieldsSource
from .servable import Servable
from .status import Activity

PROGRESS_S = 5.0
_MODELS_NAMED = 10  # of a registry that may hold thousands

_logger = logging.getLogger(__name__)


class Observer:
    """Turns what happens into reports and figures; all but `stats` and `activity` is the scoring thread's.

    Args:
        refs: The models, in their order.
        is_for_all: Each event is for every model. Where events are routed, what those sampled have says nothing of a
            model that none of them was for: no version is refused for its inputs then.
    """

    def __init__(
        self,
        refs: Sequence[ModelRef],
        plane: ControlPlane,
        committer: Committer,
        fields: EventFieldsSource,
        report: Callable[[Report], None],
        *,
        is_for_all: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._refs = tuple(refs)
        self._is_for_all = is_for_all
        self._plane = plane
        self._slots = [plane.slot(ref) for ref in refs]
        self._committer = committer
        self._fields = fields
        self._report = report
        self._clock = clock
        self._news: queue.SimpleQueue[line.Swapped | Refused] = queue.SimpleQueue()
        self._waiting: str | None = None
        self._swaps = 0
        self._recoveries = 0
        self._rate = Rate(clock())
        self._rates = [Rate(clock()) for _ in refs]
        self._per_s = [0.0 for _ in refs]
        self._progress_at_s = clock() + PROGRESS_S
        self._measure_lag: Callable[[], int | None] = lambda: None
        self._lag: int | None = None
        self.stats = ScorerStats()
        plane.on_swap(self._news.put)
        plane.on_refused(lambda ref, refusal: self._news.put(_refused(ref, refusal)))

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

    def activity(self, place: int) -> Activity:
        """What the status topic is told of the model of that place; for any thread."""
        stats = self.stats
        if not stats.models:
            return Activity(stats.events, stats.events_per_s, stats.lag, stats.dead_letters)
        own = stats.models[place]
        return Activity(own.predictions + own.dead_letters, self._per_s[place], stats.lag, own.dead_letters)

    def sample(self) -> None:
        """Learns what the events have before the first version is loaded. Raises BrokerError."""
        if self._fields.sample():
            self._pass_on_fields()

    def tick(self) -> None:
        """Passes on the news, and the figures every few seconds."""
        while not self._news.empty():
            self._tell(self._news.get())
        now = self._clock()
        totals = self._committer.totals
        if self._rate.add(now, totals.events):
            self._lag = self._measure_lag()
        lives = [None if (live := slot.live) is None else live.id for slot in self._slots]
        several = len(lives) > 1
        self.stats = ScorerStats(
            events=totals.events,
            predictions=totals.predictions,
            dead_letters=totals.dead_letters,
            commits=totals.commits,
            swaps=self._swaps,
            recoveries=self._recoveries,
            events_per_s=self._rate.per_s(now, totals.events),
            live=None if several else lives[0],
            lag=self._lag,
            models=self._models(lives, totals.counts, now) if several else (),
        )
        if now >= self._progress_at_s:
            self._progress_at_s = now + PROGRESS_S
            self._report(Progressed(self.stats))

    def _models(
        self, lives: Sequence[ModelVersion | None], counts: Sequence[tuple[int, int]], now_s: float
    ) -> tuple[ModelStats, ...]:
        models = []
        for place, (live, (done, lost)) in enumerate(zip(lives, counts or [(0, 0)] * len(lives), strict=True)):
            self._rates[place].add(now_s, done + lost)
            self._per_s[place] = self._rates[place].per_s(now_s, done + lost)
            models.append(ModelStats(str(self._refs[place]), live, done, lost))
        return tuple(models)

    def _tell(self, news: line.Swapped | Refused) -> None:
        if isinstance(news, Refused):
            self._report(news)
            return
        live = self._plane.slot(news.ref).live
        device = "" if live is None else live.device
        if news.old is None:
            self._report(WentLive(news.new, device, news.load_ms, news.release_to_live_ms))
        else:
            self._swaps += 1
            self._report(Swapped(news.old, news.new, device, news.load_ms, news.release_to_live_ms))

    def _learn(self, value: bytes | None, headers: Headers) -> None:
        try:
            if self._fields.meet(value, headers):
                self._pass_on_fields()
        except ModelcastError as error:
            _logger.info("can't look at the latest events: %s", error)

    def _pass_on_fields(self) -> None:
        for ref in self._refs if self._is_for_all else ():
            self._plane.set_event_fields(ref, self._fields.known)

    def _model_failed(self, place: int, servable: Servable, message: str) -> None:
        self._plane.report_failure(self._refs[place], servable.id, message)

    def _wait(self, reason: str | None) -> None:
        if reason == NO_VERSION:
            reason = self._why_no_version()
        if reason != self._waiting and reason is not None:
            self._report(Waiting(reason))
        self._waiting = reason

    def _why_no_version(self) -> str:
        waiting = (ref for ref, slot in zip(self._refs, self._slots, strict=True) if slot.live is None)
        ref = next(waiting, self._refs[0])  # of several, one after the other is told, as each goes live
        stale = self._plane.stale(ref)
        if stale is not None and stale.stop:
            return f"{NO_VERSION}: {stale.message}"
        return f"{NO_VERSION}{self._why_not_live(ref)}"

    def _why_not_live(self, ref: ModelRef) -> str:
        image, fault = self._plane.image, self._plane.fault
        if fault is not None:
            return f", and the registry can't be followed: {fault}"
        if image is None:
            return ": the registry is being read"
        entry = image.models.get(ref.model)
        if entry is None:
            known = ", ".join(sorted(image.others.union(image.models))[:_MODELS_NAMED]) or "none"
            return f": nobody published {ref.model!r} yet (published: {known})"
        if ref.version is None and entry.champion is None:
            return f": {ref.model!r} has no release; modelcast release {ref.model} VERSION"
        if self._plane.refusals(ref):
            of = f" of {ref.model!r}" if len(self._refs) > 1 else ""
            return f": what was released{of} is refused"
        return f": {ref} is being loaded"

    def _recover(self, error: BaseException) -> None:
        self._recoveries += 1
        self._report(Recovering(str(error)))


def _refused(ref: ModelRef, refusal: Refusal) -> Refused:
    return Refused(ModelVersion(ref.model, refusal.version), refusal.reason, refusal.message)
