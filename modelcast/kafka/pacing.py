"""`Pacing`: how long to rest between the end of a transaction and the beginning of the next.

A commit is answered before its markers are written. A transaction that begins in between is told to try again, and for
its first request the client does so after 20 ms, whatever its settings say (`rd_kafka_txn_handle_AddPartitionsToTxn`).
A millisecond of rest spares that on a broker of one's own; replicated ones take longer, so the rest is learned: it
grows with each transaction that took as long as such a retry more than its like, and shrinks slowly with the others.
"""

from __future__ import annotations

from typing import Final

FIRST_REST_S: Final = 0.001
MIN_REST_S: Final = 0.0005
# Half of what it is to spare.
MAX_REST_S: Final = 0.01
# Those of more records differ by the time their bytes take.
_LEARNED_FROM_MOST: Final = 1_000
# The client's pause, less what timers are early.
_RETRY_S: Final = 0.018
_GROWTH: Final = 1.25
# With the growth: the rest settles where one transaction in eight seems to meet the markers of the one before.
_SHRINKING: Final = 0.97
# What the quickest transaction took is forgotten by this much with each: brokers get slower, too.
_FORGETTING: Final = 1.02


class Pacing:
    """One producer's; sans-I/O, times in seconds of any one clock."""

    def __init__(self) -> None:
        self.rest_s = FIRST_REST_S
        self._ended_s: float | None = None
        self._quickest_s: float | None = None

    def left_s(self, now_s: float) -> float:
        """How long to wait before the next transaction begins."""
        return 0.0 if self._ended_s is None else max(0.0, self._ended_s + self.rest_s - now_s)

    def ended(self, now_s: float, took_s: float, records: int) -> None:
        """A transaction of so many records was committed, `took_s` after the last of them was handed over."""
        self._ended_s = now_s
        if records > _LEARNED_FROM_MOST:
            return
        quickest_s = took_s if self._quickest_s is None else min(took_s, self._quickest_s * _FORGETTING)
        if took_s > quickest_s + _RETRY_S:
            self.rest_s = min(MAX_REST_S, self.rest_s * _GROWTH)
        else:
            self.rest_s = max(MIN_REST_S, self.rest_s * _SHRINKING)
        self._quickest_s = quickest_s
