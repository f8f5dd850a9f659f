"""`Deliveries`: which records of a producer failed since somebody asked, without keeping them.

Failures are counted, not collected: a million records that failed alike must not fill the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Final

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from .faults import Faults, error_of

# What an abort purged was not delivered on purpose.
_PURGED: Final = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})

# The shortest time the client can wait for; acknowledgements take about as long.
_STEP_S: Final = 0.001
# What is not acknowledged by then does not hurry.
_QUICK_S: Final = 0.05
_LATER_STEP_S: Final = 0.01

# Makes the error to be raised of the client's own, of what was being done, and of the topic written to, if it was one.
Explain = Callable[[KafkaError, str, str | None], Exception]


class Deliveries:
    """Thread-safe; the client calls `told` on whichever thread serves its callbacks."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self._lock = Lock()
        self._count = 0
        self._first: tuple[KafkaError, str] | None = None

    def told(self, error: KafkaError | None, message: Message) -> None:
        """What the producer's `on_delivery` is set to."""
        if error is None or error.code() in _PURGED:
            return
        with self._lock:
            self._count += 1
            if self._first is None:
                self._first = (error, message.topic() or "?")

    def forget(self) -> tuple[int, tuple[KafkaError, str] | None]:
        """How many failed since the last time, and the first one's error and topic."""
        with self._lock:
            taken = self._count, self._first
            self._count, self._first = 0, None
        return taken

    def flush(self, producer: Producer, timeout_s: float, explain: Explain) -> None:
        """Waits until all is acknowledged; raises what `explain` makes of a failure since the last time, or of none."""
        if not self.settle(producer, timeout_s, explain):
            timed_out = KafkaError(KafkaError._TIMED_OUT, "no acknowledgement")
            raise explain(timed_out, f"{len(producer)} records are not acknowledged after {timeout_s:g} s", None)

    def settle(self, producer: Producer, timeout_s: float, explain: Explain) -> bool:
        """Whether all is acknowledged within the time; raises what `explain` makes of a failure since the last time."""
        await_acknowledged(producer, self._faults, timeout_s)
        failed, failure = self.forget()
        if failure is not None:
            error, topic = failure
            more = f" (and {failed - 1} more records)" if failed > 1 else ""
            raise explain(error, f"can't deliver to topic {topic!r}{more}", topic)
        fatal = self._faults.fatal()
        if fatal is not None:
            raise explain(fatal, "can't deliver", None)
        return not len(producer)


def await_acknowledged(producer: Producer, faults: Faults, timeout_s: float) -> None:
    """Waits, no longer than the time, until the producer has nothing under way.

    Where only failures are reported, nothing wakes the client's own `flush` when the last acknowledgement comes: it
    looks every 10 ms, which would be most of an event's latency. A client that is beyond help says so from `flush` too,
    and `faults` keeps it.
    """
    started_s = now_s = time.monotonic()
    while len(producer) and now_s - started_s < timeout_s:
        step_s = _STEP_S if now_s - started_s < _QUICK_S else _LATER_STEP_S
        try:
            producer.flush(min(step_s, timeout_s - (now_s - started_s)))
        except KafkaException as error:
            faults.on_error(error_of(error))
            return
        now_s = time.monotonic()
