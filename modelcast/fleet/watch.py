"""The status topic, read for as long as somebody watches, through whatever happens to the broker.

- A first look reads backwards from the end, a stretch at a time, until a stretch is older than what is asked for: the
  topic may hold a week of heartbeats, of which the last minutes say all.
- From then on records are followed as they come. While Kafka does not answer, nobody's silence counts: the fleet stays
  as it was, and `away_ms` says since when.
- A topic that was made anew, or lost what was to be read, is read from the start again.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from modelcast.errors import BrokerError, OffsetOutOfRangeError, RepositoryNotFoundError, TopicNotFoundError
from modelcast.fleet.fleet import FORGET_AFTER_MS, Fleet, Roster
from modelcast.log import Log, LogReader
from modelcast.scan import scan
from modelcast.topics import Topics

LOGGER: Final = logging.getLogger("modelcast.fleet")

# A small fleet's heartbeats of an hour, or those of a few seconds of a thousand instances; read in some 10 ms.
FIRST_STRETCH: Final = 4_000
# How long a stretch may stand still.
READ_TIMEOUT_S: Final = 30.0
# How often the end is asked for, which is what tells a quiet topic from a broker that is away.
PROBE_S: Final = 5.0
_PARTITION: Final = 0


class StatusWatch:
    """Follows the statuses of one repository. For one thread; `close` frees the reader.

    Args:
        forget_after_ms: Instances that have not run for so long are left out; None: nothing is.
        clock: Monotonic seconds.
        now_ms: Epoch milliseconds.
        pause: Waits so many seconds.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        forget_after_ms: int | None = FORGET_AFTER_MS,
        clock: Callable[[], float] = time.monotonic,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._log = log
        self._topics = topics
        self._forget_after_ms = forget_after_ms
        self._clock = clock
        self._now_ms = now_ms
        self._pause = pause
        self._roster = Roster()
        self._reader: LogReader | None = None
        self._probe_at_s = 0.0
        self._answered_ms = now_ms()
        self._is_away = False

    @property
    def away_ms(self) -> int | None:
        """When Kafka last answered, in epoch milliseconds; None while it does."""
        return self._answered_ms if self._is_away else None

    @property
    def fleet(self) -> Fleet:
        """The fleet now; while Kafka does not answer, as it was when it last did."""
        now_ms = self._answered_ms if self._is_away else self._now_ms()
        return self._roster.fleet(now_ms, forget_after_ms=self._forget_after_ms)

    def look(self) -> Fleet:
        """Reads what there is, and follows it from there.

        Raises:
            RepositoryNotFoundError: There is no status topic.
            BrokerError: No broker answers, or the topic can't be read.
        """
        self.close()
        begin = self._offsets(self._log.begin_offsets)
        end = self._end()
        self._roster = Roster()
        until, count = end, FIRST_STRETCH
        while until > begin:
            start = max(begin, until - count)
            if not self._read_back(start, until):
                break
            until, count = start, end - start  # as long as all before it together
        self._reader = self._log.reader(self._topics.status, {_PARTITION: end})
        self._answered()
        return self.fleet

    def poll(self, timeout_s: float) -> None:
        """Takes all that arrives within `timeout_s`; a broker that is away is waited for.

        Raises:
            RepositoryNotFoundError: The status topic is gone.
            BrokerError: Kafka refuses to let it be read.
        """
        try:
            if self._reader is None:
                self.look()
            elif self._clock() >= self._probe_at_s:
                self._probe(self._reader)
            if self._reader is not None:
                self._take(self._reader, timeout_s)
        except OffsetOutOfRangeError as error:
            LOGGER.warning("the status topic is read anew: %s", error)
            self.close()
        except BrokerError as error:
            if not error.retriable:
                raise
            if not self._is_away:
                LOGGER.info("the fleet can't be followed: %s", error)
            self._is_away = True
            self._pause(timeout_s)

    def close(self) -> None:
        """Frees the reader; `look` and `poll` take another."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def _take(self, reader: LogReader, timeout_s: float) -> None:
        until_s, left_s = self._clock() + timeout_s, timeout_s
        while True:
            for record in reader.poll(left_s):
                self._roster.replay(record, self._now_ms())
            left_s = until_s - self._clock()
            if left_s <= 0:
                return

    def _probe(self, reader: LogReader) -> None:
        end = self._end()
        if self._is_away:
            self._roster.excuse(self._now_ms() - self._answered_ms)
        self._answered()
        if end < reader.position(_PARTITION):
            raise OffsetOutOfRangeError(f"topic {self._topics.status!r} ends at {end}, before what was read of it")

    def _answered(self) -> None:
        self._answered_ms, self._is_away = self._now_ms(), False
        self._probe_at_s = self._clock() + PROBE_S

    def _end(self) -> int:
        return self._offsets(partial(self._log.end_offsets, committed=False))

    def _offsets(self, ask: Callable[[str], Mapping[int, int]]) -> int:
        try:
            return ask(self._topics.status)[_PARTITION]
        except TopicNotFoundError as error:
            prefix = "" if self._topics.prefix == Topics().prefix else f" --prefix {self._topics.prefix}"
            raise RepositoryNotFoundError(
                f"there is no modelcast repository here: topic {self._topics.status!r} is missing",
                hint=f"Make one with: modelcast init{prefix}",
            ) from error

    def _read_back(self, start: int, until: int) -> bool:
        """Takes what stands in [start, until) of instances not met yet; False if all of it is older than is asked."""
        now_ms = self._now_ms()
        stretch = Roster()
        newest_ms = 0
        records = scan(
            self._log, self._topics.status, {_PARTITION: start}, {_PARTITION: until}, timeout_s=READ_TIMEOUT_S
        )
        for record in records:
            # A host whose clock is ahead says nothing from the future.
            heard_ms = now_ms if record.timestamp_ms < 0 else min(record.timestamp_ms, now_ms)
            newest_ms = max(newest_ms, heard_ms)
            stretch.replay(record, heard_ms)
        self._roster.put_under(stretch)
        return self._forget_after_ms is None or newest_ms >= now_ms - self._forget_after_ms
