"""What an instance says of itself on the status topic.

- A status goes out when what matters in it changed and, unchanged, at every heartbeat: `<p>.status`, keyed by the
  instance. Figures that move all the time (events, rates, lag, ages) go along and are no reason to send.
- Best effort: nothing here waits for a broker (but `close`, for a bounded time) or raises. An instance whose status
  can't be written works on; the failure is logged once and tried again.
- For one thread: the control thread. A writer is opened on a short-lived thread of its own, because that asks the
  broker for the topic and takes seconds where none answers; from then on sending is only queueing.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from modelcast import codec
from modelcast.errors import ModelcastError
from modelcast.log import Log, LogWriter
from modelcast.records import InstanceStatus, ModelState, ModelStatus, Refusal
from modelcast.topics import Topics

LOGGER: Final = logging.getLogger("modelcast.status")

# Whoever watches the fleet takes an instance for lost after a few missed ones.
HEARTBEAT_S: Final = 5.0
# Opening costs the control thread nothing, so that a broker which is back hears of this instance at its next heartbeat.
RETRY_S: Final = 5.0
# A log in memory opens within this, and its first status is then there when `report` returns; Kafka takes longer.
OPEN_PATIENCE_S: Final = 0.02
# To look at many models and encode what they do takes some 50 µs each: a client of a thousand that loads them would do
# little else. Beyond so many, a status goes out no sooner after the last than this for each of them.
UNHURRIED_MODELS: Final = 50
PAUSE_S_PER_MODEL: Final = 0.001
# The last status is worth a short wait; a shutdown is not to hang on a broker that is away.
CLOSE_TIMEOUT_S: Final = 2.0
# A record may have 1,000,000 bytes. Messages of refusals are what makes a status large: first they are cut, and in an
# instance of thousands of models left out.
MAX_STATUS_BYTES: Final = 900_000
MAX_MESSAGE_CHARS: Final = 1_000


@dataclass(frozen=True, slots=True)
class Activity:
    """What one model does on this instance, counted by whoever uses it.

    Attributes:
        events: Events scored, or predictions asked for, since the instance started.
        events_per_s: Over the last seconds; None if nobody counts.
        lag: Events that wait in the partitions this instance has; None if there are none, or Kafka did not say.
        dead_letters: Events that could not be scored; None where there can't be any.
    """

    events: int = 0
    events_per_s: float | None = None
    lag: int | None = None
    dead_letters: int | None = None


class StatusReporter:
    """Writes statuses of one instance; never raises.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(
        self, log: Log, topics: Topics, *, heartbeat_s: float = HEARTBEAT_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._topic = topics.status
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._opening: _Opening | None = None
        self._writer: LogWriter | None = None
        self._last: InstanceStatus | None = None
        self._sent_at_s = 0.0
        self._retry_at_s: float | None = None

    def is_too_soon(self, models: int) -> bool:
        """Whether the last status is so fresh that one of so many models is not worth its making."""
        pause_s = max(0, models - UNHURRIED_MODELS) * PAUSE_S_PER_MODEL
        return self._last is not None and self._clock() - self._sent_at_s < pause_s

    def report(self, status: InstanceStatus) -> None:
        """Sends `status` if it says something new, or a heartbeat is due."""
        now = self._clock()
        self._take_opened(now)
        due = self._last is None or now - self._sent_at_s >= self._heartbeat_s
        if not due and what_matters(status) == self._last:
            return
        if self._writer is not None:
            self._send(status, now)
        elif self._opening is None and (self._retry_at_s is None or now >= self._retry_at_s):
            self._open(status, now, OPEN_PATIENCE_S)

    def close(self, status: InstanceStatus) -> None:
        """Sends a last status, its models stopped, and waits for it a bounded time."""
        give_up_s = time.monotonic() + CLOSE_TIMEOUT_S
        stopped = tuple(_stopped(model) for model in status.models)
        last = replace(status, models=stopped, ended=True)
        if self._opening is not None:
            self._opening.join(CLOSE_TIMEOUT_S)
            self._take_opened(self._clock())
        if self._writer is not None:
            self._send(last, self._clock())
        elif self._opening is None and self._retry_at_s is None:
            self._open(last, self._clock(), CLOSE_TIMEOUT_S)
        if self._opening is not None:
            self._opening.abandon()
        if self._writer is not None:
            try:
                self._writer.flush(max(0.0, give_up_s - time.monotonic()))
            except Exception as error:  # best effort, whatever the client library raises
                LOGGER.info("the last status of %s may not have arrived: %s", status.instance, error)
            self._drop_writer()

    def _open(self, status: InstanceStatus, now: float, patience_s: float) -> None:
        """Opens a writer with `status` as its first record, waiting at most `patience_s` for it."""
        self._opening = _Opening(self._log, self._topic, status)
        self._opening.start()
        self._opening.join(patience_s)
        self._take_opened(now)

    def _take_opened(self, now: float) -> None:
        opening = self._opening
        if opening is None or opening.is_alive():
            return
        self._opening = None
        if opening.writer is None:
            self._failed(opening.first, opening.error, now)
        else:
            self._writer = opening.writer
            self._sent(opening.first, now)

    def _send(self, status: InstanceStatus, now: float) -> None:
        if self._writer is None:
            return
        try:
            # Takes in what became of earlier records; what is still under way is no failure.
            with contextlib.suppress(ModelcastError):
                self._writer.flush(0.0)
            _write(self._writer, self._topic, status)
        except Exception as error:  # as above
            self._drop_writer()
            self._failed(status, error, now)
        else:
            self._sent(status, now)

    def _sent(self, status: InstanceStatus, now: float) -> None:
        self._retry_at_s = None
        self._last, self._sent_at_s = what_matters(status), now

    def _failed(self, status: InstanceStatus, error: BaseException | None, now: float) -> None:
        if self._retry_at_s is None:
            LOGGER.warning("the status of %s can't be written, and will be tried again: %s", status.instance, error)
        self._retry_at_s = now + RETRY_S
        self._last = None  # whatever was queued may be lost: the next one is news

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Exception):
                writer.close()


class _Opening(threading.Thread):
    """Opens a writer and sends it a first status; a daemon, because nobody waits for a broker that is away."""

    def __init__(self, log: Log, topic: str, first: InstanceStatus) -> None:
        super().__init__(name="modelcast-status-opening", daemon=True)
        self._log = log
        self._topic = topic
        self._lock = threading.Lock()
        self._abandoned = False
        self.first = first
        self.writer: LogWriter | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        writer: LogWriter | None = None
        try:
            writer = self._log.writer()
            _write(writer, self._topic, self.first)
        except Exception as error:  # whatever the client library raises
            self.error = error
        with self._lock:
            if writer is not None and self.error is None and not self._abandoned:
                self.writer = writer
                return
        if writer is not None:
            with contextlib.suppress(Exception):
                writer.close()

    def abandon(self) -> None:
        """What is opened from now on is closed again."""
        with self._lock:
            self._abandoned = True
            writer, self.writer = self.writer, None
        if writer is not None:
            with contextlib.suppress(Exception):
                writer.close()


def what_matters(status: InstanceStatus) -> InstanceStatus:
    """`status` without what moves all the time: two that differ beyond that are news."""
    models = tuple(replace(model, events=0, events_per_s=None, lag=None, dead_letters=None) for model in status.models)
    return replace(status, at_ms=0, stale_ms=None if status.stale_ms is None else 0, models=models)


def _stopped(model: ModelStatus) -> ModelStatus:
    return replace(
        model,
        state=ModelState.STOPPED,
        live_version=None,
        next_version=None,
        next_state=None,
        events_per_s=None,
        lag=None,
    )


def _write(writer: LogWriter, topic: str, status: InstanceStatus) -> None:
    value = codec.encode_status(_with_messages(status, MAX_MESSAGE_CHARS))
    if len(value) > MAX_STATUS_BYTES:
        value = codec.encode_status(_with_messages(status, 0))
    writer.send(topic, key=status.instance.encode(), value=value)


def _with_messages(status: InstanceStatus, max_chars: int) -> InstanceStatus:
    """`status` with the messages of refusals cut to `max_chars`; 0 leaves out the refusals."""

    def cut(refusal: Refusal) -> Refusal:
        if len(refusal.message) <= max_chars:
            return refusal
        return replace(refusal, message=refusal.message[: max_chars - 1] + "…")

    models = tuple(
        replace(model, refusals=tuple(map(cut, model.refusals)) if max_chars else ()) if model.refusals else model
        for model in status.models
    )
    return replace(status, models=models)
