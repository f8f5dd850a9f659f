"""The control plane: the thread that keeps every slot on the version it should hold.

- It is the I/O around the `Reconciler`: hands it what happened, begins the load that it asks for, tells its news,
  destroys what slots let go of, reports the status. What should be live is decided there, and nowhere here.
- It sleeps until something happened: the registry's thread (`following`) has an image, the loader's (`loading`) came
  to a step or to its end, somebody subscribes or asks, a last lease ended, a live version fails.
- Nothing is acted on before the registry was read to its true end, or what this host knew of it stands in for it.
- It never dies. What fails is logged, kept as `fault` and tried again with growing pauses; the live versions stay.
- One lock guards the reconciler. It is held for decisions only: never over I/O, a load, a callback or a destructor.

    with ControlPlane(log, topics, loader, refs=[ModelRef("fraud")], role="scorer", instance="host-0") as plane:
        slot = plane.slot(ModelRef("fraud"))
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from modelcast.errors import ModelcastError
from modelcast.log import Log
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import InstanceStatus, Refusal
from modelcast.registry.image import RegistryImage
from modelcast.topics import Topics
from modelcast.trust.watch import NO_POLICY, Watch

from .budget import IDLE_S, Budget
from .following import Known, RegistryFollower
from .freshness import Freshness, Stale
from .line import Line, Swapped
from .loading import LoadWorker, Outcome, Step, VersionLoader
from .marking import Marking
from .policy import Preserve, retry_delay_s
from .reaper import Reaper
from .reconciler import MAX_FOLLOWED, Evicted, Moment, News, Reconciler, Refused
from .servable import memory_need
from .slot import Slot
from .snapshot import SnapshotStore
from .status import HEARTBEAT_S, Activity, StatusReporter
from .waiting import explain, is_lasting

if TYPE_CHECKING:
    from .binding import EventFields
    from .reconciler import Turn

LOGGER: Final = logging.getLogger("modelcast.control")

# Whatever happens ends the wait; this is how often clocks are looked at: heartbeats, staleness, idle models.
IDLE_WAIT_S: Final = 1.0
# How soon `wait_live` notices that waiting is of no use. That something is live, it notices at once.
HOPELESS_NOTICED_S: Final = 0.05
# Turns in a row while each lets go of something that makes room for the next: models that make room for one.
_MAX_TURNS: Final = 16
CLOSE_TIMEOUT_S: Final = 10.0

OnSwap = Callable[[Swapped], None]
OnRefused = Callable[[ModelRef, Refusal], None]


class ControlPlane:
    """Keeps the models of one instance up to date.

    Args:
        refs: Subscribed from the start; `subscribe` and `follow` add more.
        state_dir: Where release marks are kept over restarts; None keeps marks in memory.
        role: `client` or `scorer`, for the status topic.
        instance: The status topic's key.
        runtime: What runs the models, as name -> version.
        preserve: What a swap keeps at all cost.
        keep: Servables kept loaded behind each live one: 1 or 0.
        memory_budget_bytes: What all models together may take; None for no limit. See `budget`.
        idle_s: A model nobody used for so long may be let go for another one.
        freshness: How old what is known of the registry may be, and what happens then.
        snapshots: What this host knew of the registry, for a start without Kafka; None for whoever may not start so.
        trust: Which records of the registry count.
        clock: Monotonic seconds.
        now_ms: Epoch milliseconds.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        loader: VersionLoader,
        *,
        refs: Sequence[ModelRef] = (),
        state_dir: Path | None = None,
        role: str,
        instance: str,
        device: str = "auto",
        runtime: Mapping[str, str] | None = None,
        preserve: Preserve = Preserve.AVAILABILITY,
        keep: int = 1,
        memory_budget_bytes: int | None = None,
        idle_s: float = IDLE_S,
        freshness: Freshness | None = None,
        snapshots: SnapshotStore | None = None,
        heartbeat_s: float = HEARTBEAT_S,
        trust: Watch = NO_POLICY,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._marking = Marking(state_dir)
        self._role, self._instance, self._device = role, instance, device
        self._runtime = dict(runtime or {})
        self._heartbeat_s = heartbeat_s
        self._freshness = freshness or Freshness()
        self._is_short = memory_budget_bytes is not None or preserve is Preserve.RESOURCES
        self._reaper = Reaper()
        self._clock, self._now_ms = clock, now_ms
        self._started_ms = now_ms()
        self._wake = threading.Event()
        self._lock = threading.Lock()  # of the reconciler and of all below but the threads
        self._reconciler = Reconciler(
            preserve=preserve,
            keep=keep,
            budget=Budget(memory_budget_bytes, memory_need, idle_s),
            on_reapable=self._wake.set,
        )
        self._tickets: dict[ModelRef, int] = {}
        self._happened: deque[Step | Outcome] = deque()
        self._on_swap: tuple[OnSwap, ...] = ()
        self._on_refused: tuple[OnRefused, ...] = ()
        self._passed_over = 0
        self._worker = LoadWorker(loader, on_news=self._wake.set, clock=clock)
        self._reporter = StatusReporter(log, topics, heartbeat_s=heartbeat_s, clock=clock)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._follower = RegistryFollower(
            log,
            topics,
            clock=clock,
            now_ms=now_ms,
            trust=trust,
            snapshots=snapshots,
            refs=self.refs,
            wanted=self._reconciler.wanted,
            on_change=self._wake.set,
        )
        for ref in refs:
            self.subscribe(ref)

    # -- for any thread

    def start(self) -> Self:
        """Starts the threads; once."""
        if self._thread is not None:
            raise RuntimeError("this control plane was started before")
        self._follower.start()
        self._thread = threading.Thread(target=self._run, name="modelcast-control", daemon=True)
        self._thread.start()
        self._wake.set()
        return self

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Stops, says so on the status topic and destroys what nobody leases, within about `timeout_s`."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                LOGGER.warning("the control thread of %s did not end in %g s", self._instance, timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def subscribe(self, ref: ModelRef) -> Slot:
        """The slot of `ref`, which is kept up to date from now on."""
        with self._lock:
            line = self._reconciler.subscribe(ref)
            if not line.is_caught_up:
                self._tickets.setdefault(ref, self._follower.ask_end())
        self._wake.set()
        return line.slot

    def unsubscribe(self, ref: ModelRef, *, for_good: bool = True) -> None:
        """Lets go of a model; `for_good`, no pattern brings it again. Raises ModelNotFoundError if it was not there."""
        with self._lock:
            self._reconciler.unsubscribe(ref, for_good=for_good)
            self._tickets.pop(ref, None)
        self._wake.set()

    def follow(self, pattern: str) -> None:
        """Subscribes to all models that match (`fraud-*`) and have a release, as they appear. Raises UsageError."""
        with self._lock:
            self._reconciler.follow(pattern)
        self._follower.ask_end()  # of a large registry, their records may not have been read
        self._wake.set()

    def refs(self) -> tuple[ModelRef, ...]:
        """All that is subscribed to now, whether by name or by a pattern."""
        return tuple(self._reconciler.lines)

    def wake(self, ref: ModelRef) -> None:
        """Says that somebody asks for a model: if it is idle, it is loaded, and others that are idle make room for it.

        Raises:
            ModelNotFoundError: Nobody subscribed to it.
        """
        if self._reconciler.line(ref).is_asked:
            return  # whoever waits says so again and again
        with self._lock:
            self._reconciler.wake(ref)
        self._wake.set()

    def is_idle(self, ref: ModelRef) -> bool:
        """Whether nothing is live for want of memory, so that it takes a `wake`. Raises ModelNotFoundError."""
        return self._reconciler.line(ref).is_idle

    def is_between(self, ref: ModelRef) -> bool:
        """Whether the old version was unloaded first, and the new one is to come. Raises ModelNotFoundError."""
        return self._reconciler.line(ref).is_between

    def slot(self, ref: ModelRef) -> Slot:
        """Raises ModelNotFoundError if nobody subscribed to `ref`."""
        return self._reconciler.line(ref).slot

    def set_event_fields(self, ref: ModelRef, fields: EventFields | None) -> None:
        """Says what the events hold: versions are checked against it, those refused once more if it changed."""
        with self._lock:
            self._reconciler.set_fields(ref, fields)
        self._wake.set()

    def set_activity(self, ref: ModelRef, activity: Callable[[], Activity]) -> None:
        """Says who counts what a model does; asked on the control thread for each status: be quick."""
        self._reconciler.line(ref).activity = activity

    def report_failure(self, ref: ModelRef, version: ModelVersion, message: str) -> None:
        """Says that a live version fails on what it is given: it is refused, and the one before it serves again."""
        with self._lock:
            self._reconciler.failed_live(ref, version, message)
        self._wake.set()

    def refusals(self, ref: ModelRef) -> tuple[Refusal, ...]:
        """The latest versions that were refused, oldest first."""
        return self._reconciler.line(ref).refusals()

    def on_swap(self, callback: OnSwap) -> None:
        """Calls back after each swap, on the control thread: be quick."""
        with self._lock:
            self._on_swap = (*self._on_swap, callback)

    def on_refused(self, callback: OnRefused) -> None:
        """Calls back after each refusal, on the control thread: be quick."""
        with self._lock:
            self._on_refused = (*self._on_refused, callback)

    @property
    def image(self) -> RegistryImage | None:
        """The registry as last read, or as this host knew it; None before either."""
        return self._follower.image

    @property
    def fault(self) -> Exception | None:
        """What keeps the registry from being followed; None while it is."""
        return self._follower.fault

    @property
    def stale_s(self) -> float:
        """Seconds since the registry could last be followed; 0 while it is."""
        return self._follower.stale_s

    def stale(self, ref: ModelRef) -> Stale | None:
        """Why what is known of a model is older than it may be; None if it is not."""
        return self._reconciler.line(ref).stale

    def status_snapshot(self) -> InstanceStatus:
        """What the status topic would be told now."""
        lines = list(self._reconciler.lines.values())
        devices = [servable.device for line in lines if (servable := line.slot.live) is not None]
        image, stale_s = self.image, self.stale_s
        return InstanceStatus(
            repository=image.repository.uuid if image is not None and image.repository is not None else "",
            instance=self._instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            role=self._role,
            device=devices[0] if devices else self._device,
            at_ms=self._now_ms(),
            runtime=self._runtime,
            models=tuple(line.status(_wanted(image, line.ref)) for line in lines),
            started_ms=self._started_ms,
            heartbeat_ms=round(self._heartbeat_s * 1000),
            stale_ms=round(stale_s * 1000) or None,
        )

    def is_hopeless(self, ref: ModelRef) -> bool:
        """Whether waiting alone makes no version of `ref` live. Raises ModelNotFoundError."""
        line = self._reconciler.line(ref)
        # What this host knew of the registry may serve, whatever keeps us from the registry itself.
        is_unread = is_lasting(self.fault) and (line.is_settled or self.image is None)
        # Asked in this order: what was settled before the registry was read to its end may not be so after.
        return (line.is_caught_up and line.is_settled) or is_unread or is_lasting(line.fault)

    def absence(self, ref: ModelRef, waited_s: float) -> ModelcastError:
        """Why no version of `ref` is live, for whoever waited so long. Raises ModelNotFoundError."""
        line, known = self._reconciler.line(ref), self._follower.known
        if known is not None and known.is_snapshot and ref.model not in known.image.models:
            known = None  # that it did not know a model says nothing of the registry
        return explain(line, None if known is None else known.image, self.fault, waited_s)

    def wait_live(self, ref: ModelRef, timeout_s: float, *, patient: bool = True) -> Slot:
        """Waits until a version of `ref` is live; one that is idle is loaded.

        Args:
            patient: Wait for what may yet be published or released; else give up once waiting alone can't help.

        Raises:
            BrokerError: The registry could not be read.
            NotFoundError: No such repository, model or version, or nothing was released.
            LoadError: Every candidate was refused, or is still being loaded; the message says why.
        """
        line = self._reconciler.line(ref)
        deadline = time.monotonic() + timeout_s
        if line.slot.live is None:
            self.wake(ref)
        while not line.slot.wait_live(min(HOPELESS_NOTICED_S, max(0.0, deadline - time.monotonic()))):
            if (not patient and self.is_hopeless(ref)) or time.monotonic() >= deadline or self._stop.is_set():
                if line.slot.live is not None:
                    break
                raise self.absence(ref, timeout_s)
            self.wake(ref)  # it may have been live meanwhile, and let go again
        return line.slot

    # -- the control thread

    def step(self) -> float | None:
        """One turn of the control thread, and those that follow from it at once; for tests that have no thread.

        Returns:
            When the next one is due at the latest, by the clock; None if only something new makes it so.
        """
        for _ in range(_MAX_TURNS):
            turn = self._turn()
            try:
                self._tell(turn.news)
                freed = self._reap(at_once=self._is_short)  # first, so that its memory is free for the load
            finally:
                if turn.load is not None:
                    LOGGER.info("loading %s", turn.load.action.key)
                    self._worker.submit(turn.load)
            if not freed:
                break
        if not self._reporter.is_too_soon(len(self._reconciler.lines)):
            self._reporter.report(self.status_snapshot())
        return min((due_s for due_s in (turn.due_s, self._reaper.due_s) if due_s is not None), default=None)

    def _run(self) -> None:
        failures, due_s = 0, None
        while not self._stop.is_set():
            self._wake.wait(IDLE_WAIT_S if due_s is None else min(IDLE_WAIT_S, max(0.0, due_s - self._clock())))
            self._wake.clear()
            try:
                due_s = self.step()
                failures = 0
            except Exception:
                # A defect; the models that are live go on serving, and its cause may pass.
                failures += 1
                LOGGER.exception("the control thread of %s failed, and goes on", self._instance)
                self._stop.wait(retry_delay_s(failures))
        self._shut()

    def _shut(self) -> None:
        try:
            self._reporter.close(self.status_snapshot())
        except Exception:  # a defect of whoever counts what a model does; the rest is to end all the same
            LOGGER.exception("the last status of %s could not be made", self._instance)
        if not self._worker.close(timeout_s=CLOSE_TIMEOUT_S / 2):
            LOGGER.info("a load is still running, and will be let go when it ends")
        with self._lock:
            for line in self._reconciler.lines.values():
                line.clear()
        self._reap(at_once=True)
        self._follower.close()

    def _turn(self) -> Turn:
        """Hands the reconciler what happened."""
        self._happened.extend(self._worker.collect())
        with self._lock:
            while self._happened:  # each taken off first: what fails must not be waited for, nor come again
                self._take(self._happened.popleft())
            read = {ref: ticket for ref, ticket in self._tickets.items() if self._follower.has_read(ticket)}
        # Only now, so that the image is no older than what is counted as read.
        known = self._follower.known
        if known is not None:
            self._observe(known)
        lines = self._reconciler.lines
        marks = {} if known is None else self._marking.raised(known.image, known.admission, lines)
        stale = {} if known is None else self._stale(known, lines)
        with self._lock:
            turn = self._reconciler.turn(Moment(self._clock(), self._now_ms()), marks=marks, stale=stale)
            for ref, ticket in read.items():
                if self._tickets.get(ref) == ticket:  # else it was unsubscribed meanwhile, and subscribed to again
                    del self._tickets[ref]
                    self._reconciler.lines[ref].is_caught_up = True
        return turn

    def _observe(self, known: Known) -> None:
        with self._lock:
            self._reconciler.observe(known.image)
            for ref, line in self._reconciler.lines.items():
                if not line.is_caught_up and ref not in self._tickets:  # a pattern brought it
                    self._tickets[ref] = self._follower.ask_end()
            passed_over = self._reconciler.passed_over
        if passed_over > self._passed_over == 0:
            LOGGER.warning(
                "more than %d models match the patterns that are followed: those above are left out", MAX_FOLLOWED
            )
        self._passed_over = passed_over

    def _take(self, news: Step | Outcome) -> None:
        if isinstance(news, Step):
            self._reconciler.stepped(news.state)
        elif news.servable is not None:
            self._reconciler.loaded(news.servable, news.took_ms)
        elif news.error is not None:
            if not isinstance(news.error, ModelcastError | OSError):
                LOGGER.error("loading %s failed unexpectedly", news.job.action.key, exc_info=news.error)
            self._reconciler.failed(news.error)

    def _stale(self, known: Known, lines: Mapping[ModelRef, Line]) -> dict[ModelRef, Stale]:
        now_ms = self._now_ms()
        verdicts = {
            ref: self._freshness.verdict(
                known.image, ref, known.admission, now_ms=now_ms, stale_s=self._follower.stale_s_of(ref.model)
            )
            for ref in lines
        }
        return {ref: stale for ref, stale in verdicts.items() if stale is not None}

    def _tell(self, news: Sequence[News]) -> None:
        for entry in news:
            match entry:
                case Swapped():
                    LOGGER.info("%s is live (it was %s)", entry.new, entry.old or "empty")
                    for on_swap in self._on_swap:
                        _call(on_swap, entry)
                case Refused(ref, refusal):
                    version = f"{ref.model}@{refusal.version}" if refusal.version else str(ref)
                    LOGGER.warning("%s is refused (%s): %s", version, refusal.reason, refusal.message)
                    for on_refused in self._on_refused:
                        _call(on_refused, ref, refusal)
                case Evicted(ref, version):
                    LOGGER.info("%s was idle, and makes room for another model until somebody asks for it", version)

    def _reap(self, *, at_once: bool = False) -> bool:
        with self._lock:
            slots = self._reconciler.slots()
        freed = self._reaper.reap(slots, self._clock(), at_once=at_once)
        with self._lock:
            for ref in freed:
                self._reconciler.freed(ref)
        return bool(freed)


def _wanted(image: RegistryImage | None, ref: ModelRef) -> int | None:
    """The version that is to be live: the one pinned, or the champion; None if there is none."""
    entry = image.models.get(ref.model) if image is not None and ref.version is None else None
    return ref.version if entry is None or entry.champion is None else entry.champion.version


def _call(callback: Callable[..., None], *what: object) -> None:
    try:
        callback(*what)
    except Exception:
        LOGGER.exception("a callback failed")
