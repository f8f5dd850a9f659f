"""The demonstration on a terminal: a live table while it runs, the report's tables at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from modelcast.demo.board import Board
from modelcast.demo.result import DemoResult, Kind
from modelcast.demo.year import MONTH_NAMES

_REFRESHES_PER_S: Final = 8
# What happened lately, below the table: what fits a small terminal with it.
_NOTES_SHOWN: Final = 9
_BAR_CELLS: Final = 20


@contextmanager
def watching(console: Console) -> Iterator[Board]:
    """Gives a board; shows it live on a terminal, and elsewhere prints each note as a line."""
    if not console.is_terminal:
        yield Board(lambda at_s, text: console.print(f"{at_s:6.1f} s  {text}"))
        return
    board = Board()
    with Live(
        get_renderable=lambda: live_table(board), console=console, refresh_per_second=_REFRESHES_PER_S, transient=True
    ):
        yield board
    for at_s, text in board.notes:
        console.print(f"[dim]{at_s:6.1f} s[/dim]  {text}", soft_wrap=False)


def live_table(board: Board) -> RenderableType:
    """What is going on, as it stands now."""
    now = board.snapshot()
    names = Text()
    for number, name in enumerate(MONTH_NAMES, start=1):
        style = "bold reverse" if number == now.month else "dim" if number > now.month else ""
        names.append(f" {name[:3]} ", style)
    figures = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for name in ("events/s", "scored", "waiting", "live version", "swaps", "refused", "dead letters"):
        figures.add_column(name, header_style="dim", justify="right")
    done = now.predictions + now.dead_letters
    live = "[yellow]none yet[/]" if now.live is None else f"[bold green]v{now.live}[/]"
    if now.released is not None and now.released != now.live:
        live += f" [yellow]← v{now.released}[/]"
    figures.add_row(
        f"[bold]{now.events_per_s:,.0f}[/]",
        f"{now.predictions:,}",
        f"{max(0, now.sent - done):,}",
        live,
        str(now.swaps),
        str(now.rejected),
        str(now.dead_letters),
    )
    notes = Table.grid(padding=(0, 2, 0, 0))
    for at_s, text in board.notes[-_NOTES_SHOWN:]:
        notes.add_row(f"[dim]{at_s:5.1f} s[/]", Text.from_markup(text, overflow="ellipsis"))
    title = Text.assemble(("New York departures, 2013", "bold"), "   ", (now.doing, "cyan"))
    return Group(Text(), title, names, Text(), figures, Text(), notes)


def print_result(console: Console, result: DemoResult) -> None:
    """The report's tables."""
    for table in (_accounting(result), _auc(result), _swaps(result)):
        console.print()
        console.print(table)
    for refused in result.refused:
        console.print()
        console.print(
            Text.assemble(("Refused: ", "bold"), f"v{refused.version} ({refused.reason}): {refused.message}"),
            soft_wrap=False,
        )
    for letter in result.dead_letters:
        where = f"partition {letter.partition}, offset {letter.offset} ({letter.error}): {letter.message}"
        console.print(Text.assemble(("Dead letter: ", "bold"), where), soft_wrap=False)
    console.print()


def _accounting(result: DemoResult) -> Table:
    table = _table("Every event, counted on the topics", "events", "predictions", "dead letters", "lost", "duplicated")
    counts = result.outcomes
    table.add_row(
        f"{counts.events:,}",
        f"{counts.predictions:,}",
        f"{counts.dead_letters:,}",
        _zero(counts.lost),
        _zero(counts.duplicated),
    )
    return table


def _auc(result: DemoResult) -> Table:
    table = _table(
        "AUC by month: the first model frozen, against what was live", "month", "flights", "frozen", "live", ""
    )
    highest = max((abs(month.live - month.frozen) for month in result.auc), default=0) or 1
    for month in result.auc:
        gain = month.live - month.frozen
        bar = "█" * round(_BAR_CELLS * abs(gain) / highest)
        colour = "green" if gain > 0 else "red"
        table.add_row(
            MONTH_NAMES[month.month - 1],
            f"{month.flights:,}",
            f"{month.frozen:.4f}",
            f"{month.live:.4f}",
            f"[{colour}]{gain:+.4f} {bar}[/]",
        )
    frozen, live = result.mean_auc
    table.add_section()
    table.add_row(
        "[bold]mean[/]", "", f"[bold]{frozen:.4f}[/]", f"[bold]{live:.4f}[/]", f"[bold]{live - frozen:+.4f}[/]"
    )
    return table


def _swaps(result: DemoResult) -> Table:
    table = _table("Swaps while events flowed", "at", "version", "publish → live", "longest gap", "")
    for swap in result.went_live:
        change = f"v{swap.version}" if swap.before is None else f"v{swap.before} → v{swap.version}"
        why = "the first: January's events had waited for it" if swap.before is None else ""
        table.add_row(
            f"{swap.at_s:.1f} s",
            change,
            f"{swap.publish_to_live_ms:.0f} ms",
            "none" if swap.gap_ms is None else f"{swap.gap_ms:.0f} ms",
            "rollback" if swap.kind is Kind.ROLLBACK else why,
        )
    live, gap = result.publish_to_live_ms, result.longest_gap_ms
    if live.median is not None and gap.median is not None:
        table.add_section()
        table.add_row(
            "[bold]median[/]", "", f"[bold]{live.median:.0f} ms[/]", f"[bold]{gap.median:.0f} ms[/]", "swaps only"
        )
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, header_style="dim", justify="left" if number == 0 or not name else "right")
    return table


def _zero(count: int) -> str:
    return f"[bold green]{count}[/]" if count == 0 else f"[bold red]{count:,}[/]"
