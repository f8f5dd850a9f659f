"""`top`: the fleet drawn again and again, on a terminal that is left as it was found.

The status topic is read on a thread of its own, because a broker that is away is waited for, and Ctrl-C is not to wait
for it.
"""

from __future__ import annotations

import signal
import threading
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
_BLANKS: Final = 3  # lines between the parts of a view, and under it


class _Follower(threading.Thread):
    """Follows the statuses until `stop`, which it sets where it fails; what it holds may be read by any thread."""

    def __init__(self, watch: StatusWatch, stop: threading.Event) -> None:
        super().__init__(name="modelcast-top", daemon=True)
        self._watch = watch
        self._stop_event = stop
        self.fleet = watch.fleet
        self.away_ms: int | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stop_event.is_set():
                self._watch.poll(STEP_S)
                self.fleet, self.away_ms = self._watch.fleet, self._watch.away_ms
        except BaseException as error:
            self.error = error
            self._stop_event.set()


def show_live(
    console: Console, watch: StatusWatch, select: Callable[[Fleet], Fleet], where: str, *, interval_s: float
) -> None:
    """Draws what `select` leaves of the fleet every `interval_s`, until Ctrl-C or SIGTERM; raises what reading met."""
    with _until_signal() as stop, Live(console=console, screen=True, auto_refresh=False) as live:
        follower = _Follower(watch, stop)
        follower.start()
        while not stop.is_set():
            live.update(live_view(select(follower.fleet), where, follower.away_ms, console), refresh=True)
            stop.wait(interval_s)
        follower.join(_JOIN_S)
    if follower.error is not None:
        raise follower.error


@contextmanager
def _until_signal() -> Iterator[threading.Event]:
    """An event that Ctrl-C and SIGTERM set: the terminal is put in order whatever was under way."""
    stop = threading.Event()
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in numbers}
    try:
        yield stop
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
