"""What an instance says of itself on the status topic.

- A status goes out when it changed and, unchanged, at every heartbeat: `<p>.status`, keyed by the instance.
- Best effort: nothing here waits for an acknowledgement (but `close`, for a bounded time) or raises. An instance whose
  status can't be written scores on; the failure is logged once and tried again more slowly.
- For one thread: the control thread.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from modelcast import codec
from modelcast.errors import ModelcastError
from modelcast.log import Log, LogWriter
from modelcast.records import InstanceStatus, ModelState
from modelcast.topics import Topics

LOGGER: Final = logging.getLogger("modelcast.status")

# Whoever watches the fleet takes an instance for dead after a few missed ones.
HEARTBEAT_S: Final = 5.0
# The first record of a writer asks the broker for the topic, which takes seconds if the broker is away.
RETRY_S: Final = 30.0
# The last status is worth a short wait; a shutdown is not to hang on a broker that is away.
CLOSE_TIMEOUT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Activity:
    """What one model does on this instance, counted by whoever uses it.

    Attributes:
        events: Events scored, or rows predicted, since the instance started.
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
        self._writer: LogWriter | None = None
        self._last: InstanceStatus | None = None
        self._sent_at_s = 0.0
        self._retry_at_s: float | None = None

    def report(self, status: InstanceStatus) -> None:
        """Sends `status` if it says something new, or a heartbeat is due."""
        now = self._clock()
        if self._retry_at_s is not None and now < self._retry_at_s:
            return
        due = self._last is None or now - self._sent_at_s >= self._heartbeat_s
        if due or replace(status, at_ms=0) != self._last:
            self._send(status, now)

    def close(self, status: InstanceStatus) -> None:
        """Sends a last status, its models stopped, and waits for it a bounded time."""
        stopped = tuple(replace(model, state=ModelState.STOPPED, live_version=None) for model in status.models)
        if self._retry_at_s is None:
            self._send(replace(status, models=stopped), self._clock())
        if self._writer is not None:
            try:
                self._writer.flush(CLOSE_TIMEOUT_S)
            except Exception as error:  # best effort, whatever the client library raises
                LOGGER.info("the last status of %s may not have arrived: %s", status.instance, error)
            self._drop_writer()

    def _send(self, status: InstanceStatus, now: float) -> None:
        try:
            if self._writer is None:
                self._writer = self._log.writer()
            else:
                # Takes in what became of earlier records; what is still under way is no failure.
                with contextlib.suppress(ModelcastError):
                    self._writer.flush(0.0)
            self._writer.send(self._topic, key=status.instance.encode(), value=codec.encode_status(status))
        except Exception as error:  # as above
            if self._retry_at_s is None:
                LOGGER.warning("the status of %s can't be written, and will be tried again: %s", status.instance, error)
            self._drop_writer()
            self._retry_at_s = now + RETRY_S
            return
        self._retry_at_s = None
        self._last, self._sent_at_s = replace(status, at_ms=0), now

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Exception):
                writer.close()
