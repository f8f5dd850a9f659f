"""The feeder: sends a month of flights as events, in the order they flew, at a pace."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import polars as pl

from modelcast.demo.accounting import Flow
from modelcast.demo.flights import EVENT_SCHEMA, KEY_FIELD, TIME_FIELD
from modelcast.demo.stage import EVENT_PARTITIONS, Stage
from modelcast.events.send import EventSender
from modelcast.log import Log

# Not Avro, and not JSON either.
POISON: Final = b"\x00 this is no flight \xff"
# Events sent at once, this often a second: a stream that looks steady without waking up for each event.
_SLICES_PER_S: Final = 50
_FLUSH_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Cue:
    """Something that happens when `share` (0 to 1) of the month has been sent."""

    share: float
    act: Callable[[], None]


class Feeder:
    """Sends months; for one thread. Close it when done.

    Args:
        log: The connection.
        stage: Where to.
        sleep: Sleeps for seconds; may raise to end the sending.
        on_sent: Told the number of events sent so far, in all.
    """

    def __init__(self, log: Log, stage: Stage, sleep: Callable[[float], None], on_sent: Callable[[int], None]) -> None:
        self._log = log
        self._topic = stage.events
        self._sleep = sleep
        self._on_sent = on_sent
        self._sender = EventSender(
            log,
            stage.connection.topics,
            stage.events,
            schema=EVENT_SCHEMA,
            key=KEY_FIELD,
            timestamp=TIME_FIELD,
            partitions=EVENT_PARTITIONS,
        )

    def send_month(self, events: pl.DataFrame, seconds: float, cues: Sequence[Cue] = ()) -> Flow:
        """Sends a month within about `seconds`, and acts on each cue as its share has been sent.

        Raises:
            BrokerError: The broker refuses.
        """
        before, count = self._sender.events, events.height
        due = sorted(cues, key=lambda cue: cue.share)
        began = time.monotonic()
        start_ms = time.time_ns() // 1_000_000

        def before_slice(sent: int) -> None:
            done = sent - before
            self._on_sent(sent)
            while due and done >= due[0].share * count:
                due.pop(0).act()
            self._sleep(max(0.0, began + seconds * done / count - time.monotonic()))

        slice_rows = max(1, round(count / (seconds * _SLICES_PER_S)))
        self._sender.send(events, slice_rows=slice_rows, before_slice=before_slice)
        self._sender.flush()
        self._on_sent(self._sender.events)
        for cue in due:
            cue.act()
        return Flow(start_ms, time.time_ns() // 1_000_000)

    def send_poison(self) -> None:
        """Puts one record of garbage among the events."""
        writer = self._log.writer()
        try:
            writer.send(self._topic, key=b"poison", value=POISON)
            writer.flush(_FLUSH_TIMEOUT_S)
        finally:
            writer.close()

    def close(self) -> None:
        self._sender.close()
