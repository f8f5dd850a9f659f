"""The control plane: one thread that follows the registry and keeps every slot on the version it should hold.

- One thread owns the reader, the image, the policy's view and the slots. Loads run one at a time on a second thread
  (`loading`), so that a large model delays neither heartbeats nor another model's rollback; servables are swapped and
  destroyed by the control thread only.
- Nothing is acted on before the registry was read to its true end. From then on the registry is waited on, not polled
  at intervals: a release is seen when it arrives.
- It never dies. What fails is logged, kept as `fault` and tried again with growing pauses; the live versions stay.

    with ControlPlane(log, topics, loader, refs=[ModelRef("fraud")], role="scorer", instance="host-0") as plane:
        slot = plane.slot(ModelRef("fraud"))
"""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from modelcast.errors import (
    BrokerError,
    LoadError,
    ModelcastError,
    ModelNotFoundError,
    ModelRefusedError,
    NotFoundError,
    StoreError,
)
from modelcast.log import Log
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import InstanceStatus, Refusal
from modelcast.registry.image import RegistryImage
from modelcast.topics import Topics
from modelcast.trust.watch import NO_POLICY, Watch

from .following import RegistryFollower
from .lifecycle import VersionKey
from .line import Line, Swapped
from .loading import Job, LoadWorker, Outcome, VersionLoader
from .policy import (
    FAILED_LIVE,
    Load,
    Nothing,
    Preserve,
    Refuse,
    RefusedVersion,
    Swap,
    Unload,
    basis_of,
    decide,
    retry_delay_s,
)
from .slot import Slot
from .state import Marks
from .status import HEARTBEAT_S, StatusReporter

if TYPE_CHECKING:
    from .binding import EventFields

LOGGER: Final = logging.getLogger("modelcast.control")

# A record ends the wait at once; this is how soon a closed lease, a new subscription or `close` is noticed.
IDLE_WAIT_S: Final = 0.1
# While a load runs its end is to be noticed soon: it is part of what a release takes to be live.
LOADING_WAIT_S: Final = 0.005
# Steps for one slot in one turn: more than any sequence of decisions that needs no load.
_MAX_STEPS: Final = 16
# A kept version above this is let go before the next load, so that no more than two large models are in memory.
KEEP_BESIDE_LOAD_BYTES: Final = 256 << 20
CLOSE_TIMEOUT_S: Final = 10.0

OnSwap = Callable[[Swapped], None]
OnRefused = Callable[[ModelRef, Refusal], None]


class ControlPlane:
    """Keeps the models of one instance up to date.

    Args:
        refs: Subscribed from the start; `subscribe` adds more.
        state_dir: Where release marks are kept over restarts; None keeps marks in memory.
        role: `client` or `scorer`, for the status topic.
        instance: The status topic's key.
        runtime: What runs the models, as name -> version.
        keep: Servables kept loaded behind each live one: 1 or 0.
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
        heartbeat_s: float = HEARTBEAT_S,
        trust: Watch = NO_POLICY,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._marks = Marks(state_dir)
        self._role, self._instance, self._device = role, instance, device
        self._runtime = dict(runtime or {})
        self._preserve = preserve
        self._keep = 0 if preserve is Preserve.RESOURCES else keep
        self._clock, self._now_ms = clock, now_ms
        self._worker = LoadWorker(loader, clock=clock)
        self._reporter = StatusReporter(log, topics, heartbeat_s=heartbeat_s, clock=clock)
        self._lock = threading.Lock()
        self._lines: Mapping[ModelRef, Line] = {ref: Line(ref, keep=self._keep) for ref in refs}
        self._on_swap: tuple[OnSwap, ...] = ()
        self._on_refused: tuple[OnRefused, ...] = ()
        self._failures: queue.SimpleQueue[tuple[ModelRef, ModelVersion, str]] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._follower = RegistryFollower(log, topics, clock=clock, pause=self._stop.wait, trust=trust)

    # -- for any thread

    def start(self) -> Self:
        """Starts the control thread; once."""
        if self._thread is not None:
            raise RuntimeError("this control plane was started before")
        self._thread = threading.Thread(target=self._run, name="modelcast-control", daemon=True)
        self._thread.start()
        return self

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Stops, says so on the status topic and destroys what nobody leases, within about `timeout_s`."""
        self._stop.set()
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
            if ref not in self._lines:
                self._lines = {**self._lines, ref: Line(ref, keep=self._keep)}
            return self._lines[ref].slot

    def slot(self, ref: ModelRef) -> Slot:
        """Raises ModelNotFoundError if nobody subscribed to `ref`."""
        return self._line(ref).slot

    def set_event_fields(self, ref: ModelRef, fields: EventFields | None) -> None:
        """Says what the events hold: versions are checked against it, those refused once more if it changed."""
        line = self._line(ref)
        with self._lock:
            if line.fields != fields:
                line.fields = fields
                line.fields_generation += 1

    def report_failure(self, ref: ModelRef, version: ModelVersion, message: str) -> None:
        """Says that a live version fails on what it is given: it is refused, and the one before it serves again."""
        self._failures.put((ref, version, message))

    def refusals(self, ref: ModelRef) -> tuple[Refusal, ...]:
        """The latest versions that were refused, oldest first."""
        return self._line(ref).refusals()

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
        """The registry as last read; None before it was read to its end."""
        return self._follower.image

    @property
    def fault(self) -> Exception | None:
        """What keeps the registry from being followed; None while it is."""
        return self._follower.fault

    @property
    def stale_s(self) -> float:
        """Seconds since the registry could last be followed; 0 while it is."""
        return self._follower.stale_s

    def status_snapshot(self) -> InstanceStatus:
        """What the status topic would be told now."""
        lines = list(self._lines.values())
        devices = [servable.device for line in lines if (servable := line.slot.live) is not None]
        image = self.image
        return InstanceStatus(
            repository=image.repository.uuid if image is not None and image.repository is not None else "",
            instance=self._instance,
            host=socket.gethostname(),
            pid=os.getpid(),
            role=self._role,
            device=devices[0] if devices else self._device,
            at_ms=self._now_ms(),
            runtime=self._runtime,
            models=tuple(line.status() for line in lines),
        )

    def is_hopeless(self, ref: ModelRef) -> bool:
        """Whether waiting alone makes no version of `ref` live."""
        line = self._line(ref)
        return line.hopeless or _is_lasting(self.fault) or _is_lasting(line.fault)

    def wait_live(self, ref: ModelRef, timeout_s: float, *, patient: bool = True) -> Slot:
        """Waits until a version of `ref` is live.

        Args:
            patient: Wait for what may yet be published or released; else give up once waiting alone can't help.

        Raises:
            BrokerError: The registry could not be read.
            NotFoundError: No such repository, model or version, or nothing was released.
            LoadError: Every candidate was refused, or is still being loaded; the message says why.
        """
        line = self._line(ref)
        deadline = time.monotonic() + timeout_s
        while not line.slot.wait_live(min(IDLE_WAIT_S / 2, max(0.0, deadline - time.monotonic()))):
            if (not patient and self.is_hopeless(ref)) or time.monotonic() >= deadline or self._stop.is_set():
                if line.slot.live is not None:
                    break
                raise self._explain(line, timeout_s)
        return line.slot

    # -- the control thread

    def step(self, wait_s: float = 0.0) -> None:
        """One turn of the control thread; for tests that have no thread."""
        self._follow(wait_s)
        outcome = self._worker.collect()
        if outcome is not None:
            self._settle(outcome)
        while not self._failures.empty():
            self._fall_back(*self._failures.get())
        for line in self._lines.values():
            self._advance(line)
        for line in self._lines.values():
            self._reap(line)
        self._reporter.report(self.status_snapshot())

    def _run(self) -> None:
        failures = 0
        while not self._stop.is_set():
            try:
                self.step(IDLE_WAIT_S if self._worker.job is None else LOADING_WAIT_S)
                failures = 0
            except Exception:
                # A defect; the models that are live go on serving, and its cause may pass.
                failures += 1
                LOGGER.exception("the control thread of %s failed, and goes on", self._instance)
                self._stop.wait(retry_delay_s(failures))
        self._shut()

    def _shut(self) -> None:
        self._reporter.close(self.status_snapshot())
        if not self._worker.close(timeout_s=CLOSE_TIMEOUT_S / 2):
            LOGGER.info("a load is still running, and will be let go when it ends")
        for line in self._lines.values():
            line.clear()
            self._reap(line)
        self._follower.close()

    def _follow(self, wait_s: float) -> None:
        lines = list(self._lines.values())
        if self._follower.turn(wait_s, to_end=any(not line.caught_up for line in lines)):
            for line in lines:
                line.caught_up = True

    def _advance(self, line: Line) -> None:
        image = self.image
        if image is None:
            return
        try:
            mark = self._mark(line, image)
            line.fault = None
        except ModelcastError as error:
            if str(error) != str(line.fault):
                LOGGER.error("%s stays as it is: %s", line.ref, error)
            line.fault = error
            return
        for _ in range(_MAX_STEPS):
            view = line.view(busy=self._worker.job is not None, mark=mark, now_s=self._clock())
            match decide(image, view, self._preserve):
                case Load() as action:
                    self._load(line, action)
                case Swap(key):
                    self._swap(line, image, key)
                    self._reap(line)
                case Unload(key):
                    line.unload(key)
                    self._reap(line)
                case Refuse(key, reason, message, basis):
                    self._refuse(line, RefusedVersion(key, reason, message, self._now_ms(), basis))
                case Nothing():
                    waiting = self._worker.job is None and not any(r.retry_at_s for r in line.refused.values())
                    line.hopeless = line.caught_up and waiting and view.live is None and not view.loaded
                    return

    def _mark(self, line: Line, image: RegistryImage) -> int:
        """The line's release mark, raised to the champion's. Raises ConfigError if the marks can't be read."""
        if line.ref.version is not None or image.repository is None:
            return 0
        repository, model = image.repository.uuid, line.ref.model
        mark = self._known_mark(repository, model)
        entry = image.models.get(model)
        champion = entry.champion if entry is not None else None
        if entry is None or champion is None or champion.sequence < mark:
            return mark
        standing = entry.standings.get(champion.sequence)
        try:
            self._marks.advance(repository, model, champion.sequence, standing.signers if standing is not None else ())
        except ModelcastError as error:
            LOGGER.warning("%s", error)
        return champion.sequence

    def _known_mark(self, repository: str, model: str) -> int:
        """The highest release seen whose signers are still enough: one by a key that was revoked does not count."""
        admission = self._follower.admission
        return self._marks.get(repository, model, lambda signers: admission.vouch(model, signers).admitted)

    def _load(self, line: Line, action: Load) -> None:
        kept = line.slot.kept_key
        if kept is not None and line.slot.loaded()[kept].manifest.size_bytes > KEEP_BESIDE_LOAD_BYTES:
            line.slot.drop_kept()
            self._reap(line)
        LOGGER.info("loading %s", action.key)
        line.begin_load(action.key)
        self._worker.submit(Job(line.ref, action, line.fields))

    def _settle(self, outcome: Outcome) -> None:
        line, action = self._lines[outcome.job.ref], outcome.job.action
        if outcome.servable is not None:
            line.end_load(outcome.servable, outcome.took_ms)
            return
        error = outcome.error
        # A check that failed fails again on the same bytes. Anything else (broker, disk, permissions) may be mended
        # without a word in the registry.
        final = isinstance(error, ModelRefusedError) and not error.retriable
        known = line.refused.get(action.key)
        attempts = known.attempts + 1 if known is not None and known.basis == action.basis else 1
        refused = RefusedVersion(
            action.key,
            reason_of(error),
            str(error) or type(error).__name__,
            self._now_ms(),
            action.basis,
            attempts,
            None if final else self._clock() + retry_delay_s(attempts),
        )
        if not isinstance(error, ModelcastError | OSError):
            LOGGER.error("loading %s failed unexpectedly", action.key, exc_info=error)
        self._refuse(line, refused)

    def _swap(self, line: Line, image: RegistryImage, key: VersionKey) -> None:
        entry = image.models.get(line.ref.model)
        champion = entry.champion if entry is not None and line.ref.version is None else None
        release = champion if champion is not None and champion.version == key.id.version else None
        event = line.swap(key, release, self._now_ms())
        LOGGER.info("%s is live (it was %s)", event.new, event.old or "empty")
        for callback in self._on_swap:
            _call(callback, event)

    def _fall_back(self, ref: ModelRef, version: ModelVersion, message: str) -> None:
        line, image = self._line(ref), self.image
        key = line.slot.live_key
        entry = image.models.get(ref.model) if image is not None else None
        if image is None or entry is None or key is None or key.id != version:
            return  # something else took its place meanwhile
        view = line.view(busy=False, mark=self._known_mark(key.repository, ref.model), now_s=self._clock())
        refused = RefusedVersion(key, FAILED_LIVE, message, self._now_ms(), basis_of(entry, key, view))
        self._refuse(line, refused)
        # Not simply the kept one: after a rollback, that is the version somebody went back from.
        match decide(image, replace(view, live=None), self._preserve):
            case Swap(other) if other != key:
                self._swap(line, image, other)
            case _:
                line.clear()  # what a rollback would restore is loaded; until then events wait
        self._reap(line)

    def _refuse(self, line: Line, refused: RefusedVersion) -> None:
        if not line.refuse(refused):
            return
        LOGGER.warning("%s is refused (%s): %s", refused.key, refused.reason, refused.message)
        refusal = Refusal(refused.key.id.version, refused.reason, refused.message, refused.at_ms)
        for callback in self._on_refused:
            _call(callback, line.ref, refusal)

    def _reap(self, line: Line) -> None:
        try:
            line.slot.reap()
        except ExceptionGroup as error:
            LOGGER.error("%s", error, exc_info=error)

    def _line(self, ref: ModelRef) -> Line:
        line = self._lines.get(ref)
        if line is None:
            raise ModelNotFoundError(f"nobody subscribed to {str(ref)!r} here")
        return line

    def _explain(self, line: Line, timeout_s: float) -> ModelcastError:
        fault = line.fault or (self.fault if self.image is None else None)
        if isinstance(fault, ModelcastError):
            return type(fault)(fault.message, hint=fault.hint)
        image = self.image
        if image is None:
            return BrokerError(f"the registry was not read in {timeout_s:g} s" + (f": {fault}" if fault else ""))
        refusals = line.refusals()
        if not refusals:
            try:
                image.resolve(line.ref)
            except NotFoundError as error:
                return error
            return LoadError(f"{line.ref} was not loaded in {timeout_s:g} s", hint="Allow more time: wait_live(…)")
        words = "; ".join(f"version {entry.version} ({entry.reason}): {entry.message}" for entry in refusals)
        return LoadError(f"no version of {str(line.ref)!r} could go live here: {words}")


def reason_of(error: BaseException | None) -> str:
    """A stable word for why a version is not live: the check that refused it, or what kept it from being checked."""
    match error:
        case ModelRefusedError():
            return error.reason
        case BrokerError():
            return "broker"
        case StoreError():
            return "store"
        case ModelcastError():
            return "setup"
        case OSError():
            return "disk"
        case _:
            return "internal"


def _is_lasting(error: Exception | None) -> bool:
    """Whether only a person can mend it."""
    return isinstance(error, ModelcastError) and not error.retriable


def _call(callback: Callable[..., None], *what: object) -> None:
    try:
        callback(*what)
    except Exception:
        LOGGER.exception("a callback failed")
