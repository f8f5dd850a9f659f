"""What commands print.

- Standard output holds results: with `--json` one JSON object or JSON lines and nothing else; without, tables and text
  made for people. What fails ends with an object `error` there: kind, message, hint, exit code, and what else is known.
- Standard error holds everything else: progress, warnings, errors.
- A NaN or an infinity has no JSON: it becomes null.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from modelcast.errors import ExitCode, ModelcastError

# A pipe has no width: a table in it keeps every cell whole, on one line.
_PIPE_COLUMNS = 100_000


def to_json(value: object) -> str:
    """Compact JSON; non-finite floats become null."""
    return json.dumps(_finite(value), ensure_ascii=False, separators=(", ", ": "), default=str)


def _finite(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): _finite(entry) for key, entry in value.items()}
        case list() | tuple():
            return [_finite(entry) for entry in value]
        case _:
            return value


def printable(text: str, *, keep: str = "") -> str:
    """`text` with what would move the cursor or clear the screen spelled out: topics hold what others wrote.

    Characters in `keep` stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in text)


class Output:
    """Where a command's words go. `json` says whether standard output is for a program."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self.stdout = Console(soft_wrap=True, highlight=False)
        self.stderr = Console(stderr=True, soft_wrap=True, highlight=False)

    def result(self, value: Mapping[str, Any], text: str | None = None) -> None:
        """The command's one result: `value` with `--json`, else `text` (rich markup), if any."""
        if self.json:
            self.line(value)
        elif text is not None:
            self.stdout.print(text)

    def line(self, value: Mapping[str, Any]) -> None:
        """One JSON line on standard output, at once."""
        sys.stdout.write(to_json(value) + "\n")
        sys.stdout.flush()

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Tells programs of the error that a command ends with, and passes it on."""
        try:
            yield
        except ModelcastError as error:
            if self.json:
                known = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
                self.line({"error": {**known, "exit_code": int(error.exit_code), **error.details}})
            raise
        except KeyboardInterrupt:
            if self.json:
                known = {"kind": "Interrupted", "message": "interrupted", "hint": None}
                self.line({"error": {**known, "exit_code": int(ExitCode.INTERRUPTED)}})
            raise

    def say(self, text: str) -> None:
        """Words beside the result (rich markup), on standard error."""
        self.stderr.print(text)

    def warn(self, text: str) -> None:
        """A warning, on standard error; `text` is plain."""
        self.stderr.print(f"[yellow]warning:[/yellow] {escape(text)}")

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
        """A table on standard output, for people; cells are plain text."""
        headers = [Column(name, overflow="fold") for name in columns]
        table = Table(*headers, title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(escape(printable(cell)) for cell in row))
        if self.stdout.is_terminal:
            self.stdout.print(table, soft_wrap=False)
        else:
            Console(file=self.stdout.file, width=_PIPE_COLUMNS, highlight=False).print(table)

    def error(self, error: ModelcastError) -> None:
        """What went wrong and what to do about it."""
        message = printable(error.message, keep="\n")
        self.stderr.print(f"[red]error:[/red] {escape(message)}")
        if error.hint:
            self.stderr.print(f"  [dim]→[/dim] {escape(error.hint)}")
