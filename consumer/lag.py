"""How many events wait: the ends of the events topic, asked for beside the scoring thread.

The thread may wait for a broker as long as it takes; `lag` never does. Offsets are counted, so that markers of
transactions and records that compaction took count as events until they are passed.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from typing import Final

from modelcast.errors import ModelcastError
from modelcast.log import Log

LOGGER: Final = logging.getLogger("modelcast.scorer")

# As often as a status goes out: nobody sees it sooner.
ASK_EVERY_S: Final = 5.0
# A question under way when the scorer ends is left to its own time limit.
CLOSE_TIMEOUT_S: Final = 0.5


class LagMeter:
    """Keeps the ends of `topic`; `start` and `close` frame its thread, `lag` is for any thread."""

    def __init__(self, log: Log, topic: str, *, every_s: float = ASK_EVERY_S) -> None:
        self._log = log
        self._topic = topic
        self._every_s = every_s
        self._closed = threading.Event()
        self._known: tuple[Mapping[int, int], Mapping[int, int]] | None = None
        self._thread = threading.Thread(target=self._run, name="modelcast-lag", daemon=True)

    def start(self) -> None:
        """Starts asking."""
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, or leaves it to end by itself."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)

    def lag(self, positions: Mapping[int, int | None]) -> int | None:
        """Offsets from `positions` to the committed ends.

        Args:
            positions: Next offset by partition; None where none is known yet, which counts from the beginning.

        Returns:
            The sum over the partitions; None if there are none, or Kafka did not say lately.
        """
        known = self._known
        if known is None or not positions:
            return None
        begins, ends = known
        waiting = 0
        for partition, position in positions.items():
            begin = begins.get(partition, 0)
            waiting += max(0, ends.get(partition, 0) - (begin if position is None else max(position, begin)))
        return waiting

    def ask(self) -> None:
        """Asks once; what is not answered is not known."""
        try:
            begins = self._log.begin_offsets(self._topic)
            self._known = begins, self._log.end_offsets(self._topic, committed=True)
        except ModelcastError as error:
            self._known = None
            LOGGER.debug("the ends of topic %s are not known: %s", self._topic, error)

    def _run(self) -> None:
        while not self._closed.is_set():
            self.ask()
            self._closed.wait(self._every_s)
