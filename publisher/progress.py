"""How far a publication is, drawn by rich on a terminal or in a notebook; one display for Python and command line.

with PublishProgress() as shown:
    registry.publish(…, on_step=shown.step, on_progress=shown.moved)
"""

from __future__ import annotations

import importlib.util
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn


class PublishProgress:
    """A line that moves while a model is published, and is gone when it is done.

    Drawn on a terminal, and in a notebook that has ipywidgets; a notebook without them gets a line for each step.
    Anywhere else (a pipe, a log file) nothing is drawn.

    Args:
        console: Where to; by default standard error, or the notebook's cell.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        # Without its widgets rich draws nothing in a notebook, and warns each time it does not.
        self._is_plain = self._console.is_jupyter and importlib.util.find_spec("ipywidgets") is None
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            console=self._console,
            transient=True,
            disable=self._is_plain or not (self._console.is_terminal or self._console.is_jupyter),
        )
        self._task = self._bar.add_task("publish", total=None)

    def step(self, name: str) -> None:
        """A step begins."""
        if self._is_plain:
            self._console.print(f"{escape(name)} …", highlight=False)
        self._bar.update(self._task, description=escape(name))

    def moved(self, _: str, done: int, total: int) -> None:
        """So many bytes of a step's total are done; may be called from any thread."""
        self._bar.update(self._task, completed=done, total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
