"""`Deliveries`: which records of a producer failed since somebody asked, without keeping them.

Failures are counted, not collected: a million records that failed alike must not fill the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Final

from confluent_kafka import KafkaError, Message, Producer

# What an abort purged was not delivered on purpose.
_PURGED: Final = frozenset({KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT})

# Makes the error to be raised of the client's own and of what was being done.
Explain = Callable[[KafkaError, str], Exception]


class Deliveries:
    """Thread-safe; the client calls `told` on whichever thread serves its callbacks."""

    def __init__(self) -> None:
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
        left = producer.flush(timeout_s)
        failed, failure = self.forget()
        if failure is not None:
            error, topic = failure
            more = f" (and {failed - 1} more records)" if failed > 1 else ""
            raise explain(error, f"can't deliver to topic {topic!r}{more}")
        if left:
            timed_out = KafkaError(KafkaError._TIMED_OUT, "no acknowledgement")
            raise explain(timed_out, f"{left} records are not acknowledged after {timeout_s:g} s")
