"""`top`: the fleet drawn again and again, on a terminal that is left as it was found.

The status topic is read on a thread of its own, because a broker that is away is waited for, and Ctrl-C is not to wait
for it.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from modelcast.cli.output import printable
from modelcast.fleet.fleet import Fleet
from modelcast.fleet.table import fleet_table, problem_lines, summary, versions
from modelcast.fleet.watch import StatusWatch

# How soon a status that arrived is shown.
STEP_S: Final = 0.25
# A reader that waits for a broker at the end is left behind.
_JOIN_S: Final = 1.0
# How soon Ctrl-C is noticed.
_NAP_S: Final = 0.05
_BLANKS: Final = 3  # lines between the parts of a view, and under it


class End:
    """Set by a signal handler, also one that strikes the thread that waits for it.

    A threading.Event would hang there: who begins to wait holds its lock for a moment, and a handler on that thread
    would wait for it for ever. And what blocks until it is woken sleeps on where the signal came a moment before it
    did: Python runs the handler only afterwards. So this is a flag that is looked at.
    """

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        """Ends the wait, of one who waits."""
        self.is_set = True

    def wait(self, timeout_s: float) -> None:
        """Waits for the end, for so long."""
        until_s = time.monotonic() + timeout_s
        while not self.is_set and (left_s := until_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _NAP_S))


class _Follower(threading.Thread):
    """Follows the statuses until `end`, which it sets where it fails; what it holds may be read by any thread."""

    def __init__(self, watch: StatusWatch, end: End) -> None:
        super().__init__(name="modelcast-top", daemon=True)
        self._watch = watch
        self._end = end
        self.fleet = watch.fleet
        self.away_ms: int | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._end.is_set:
                self._watch.poll(STEP_S)
                self.fleet, self.away_ms = self._watch.fleet, self._watch.away_ms
        except BaseException as error:
            self.error = error
            self._end.set()


def show_live(
    console: Console, watch: StatusWatch, select: Callable[[Fleet], Fleet], where: str, *, interval_s: float
) -> None:
    """Draws what `select` leaves of the fleet every `interval_s`, until Ctrl-C or SIGTERM; raises what reading met."""
    with _until_signal() as end, Live(console=console, screen=True, auto_refresh=False) as live:
        follower = _Follower(watch, end)
        follower.start()
        while not end.is_set:
            live.update(live_view(select(follower.fleet), where, follower.away_ms, console), refresh=True)
            end.wait(interval_s)
        follower.join(_JOIN_S)
    if follower.error is not None:
        raise follower.error


@contextmanager
def _until_signal() -> Iterator[End]:
    """An end that Ctrl-C and SIGTERM bring: the terminal is put in order whatever was under way."""
    end = End()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: end.set()) for number in numbers}
    try:
        yield end
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def live_view(fleet: Fleet, where: str, away_ms: int | None, console: Console) -> RenderableType:
    """What fits the terminal."""
    head: list[RenderableType] = [
        Text.assemble(("modelcast", "bold"), f"  {printable(where)}  ", _clock(fleet.at_ms), "  ", summary(fleet))
    ]
    if away_ms is not None:
        head.append(Text(f"Kafka has not answered since {_clock(away_ms)}: this is how it was then", style="bold red"))
    # The table has at least half of the room, what is wrong at most a third of the rest, and blank lines part them.
    room = max(1, console.height - len(head) - _BLANKS)
    problems = problem_lines(fleet.problems(), room // 3)
    rest = room - len(problems)
    lines = versions(fleet)[: max(0, rest - room // 2 - 1)]
    for line in (*lines, *problems):
        line.no_wrap, line.overflow = True, "ellipsis"
    return Group(
        *head,
        *lines,
        Text(),
        fleet_table(fleet, console.width, max_rows=max(1, rest - len(lines) - 1)),
        *([Text(), *problems] if problems else []),
    )


def _clock(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, tz=UTC).astimezone().strftime("%H:%M:%S")
