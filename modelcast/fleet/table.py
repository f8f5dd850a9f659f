"""A fleet for people: a table as wide as there is room for, what each version has, and what is wrong.

- One row for each model of each instance. Where there is no room, the least telling columns go first, then instances
  are cut in their middle, because what tells them apart stands at their end.
- What a status says was written by somebody else: it is printed without anything that could move the cursor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from modelcast.cli.durations import age
from modelcast.cli.output import printable
from modelcast.fleet.fleet import Fleet, Instance, Presence, Problem
from modelcast.records import ModelState, ModelStatus

# Columns in their order, each with whether numbers stand in it.
_COLUMNS: Mapping[str, bool] = {
    "MODEL": False,
    "VERSION": True,
    "STATE": False,
    "SINCE": True,
    "LOAD": True,
    "EVENTS/S": True,
    "LAG": True,
    "DEAD": True,
    "INSTANCE": False,
    "HOST": False,
    "ROLE": False,
    "DEVICE": False,
}
# What goes first where there is no room. The rest stays.
_DROPPED_FIRST = ("ROLE", "DEAD", "DEVICE", "HOST", "LOAD", "SINCE")
_GAP = 2
# As short as an instance's name may become before the terminal has to wrap.
_MIN_INSTANCE_CHARS = 16
# Of problems, where only so much fits; the rest is counted.
_PROBLEMS_SHOWN = 20
_NAMED = 3
_KIND_CHARS = 12

_STYLES = {"lost": "bold red", "stopped": "dim", "live": "green", "waiting": "yellow", "idle": "dim"}
_PROBLEM_STYLES = {"lost": "red", "refused": "red"}


@dataclass(frozen=True, slots=True)
class _Row:
    cells: Mapping[str, str]
    style: str
    state_style: str
    is_wrong: bool


def fleet_table(fleet: Fleet, width: int | None, *, max_rows: int | None = None) -> RenderableType:
    """The instances, a row for each of their models.

    Args:
        width: Columns there are; None where it does not matter, as in a pipe.
        max_rows: Rows there are; what has a problem comes first then.
    """
    rows = _rows(fleet)
    columns = _fitting(rows, width)  # by all of them, so that they do not change with the rows shown
    room = None if width is None else width - sum(_width(rows, name) + _GAP for name in columns if name != "INSTANCE")
    left_out = 0
    if max_rows is not None and len(rows) > max_rows:
        left_out = len(rows) - max(0, max_rows - 1)
        rows = sorted(rows, key=lambda row: not row.is_wrong)[: max(0, max_rows - 1)]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for name in columns:
        table.add_column(name, justify="right" if _COLUMNS[name] else "left", no_wrap=width is not None)
    for row in rows:
        table.add_row(*(_cell(row, name, room) for name in columns), style=row.style)
    if not left_out:
        return table
    return Group(table, Text(f"… and {left_out} more rows", style="dim"))


def summary(fleet: Fleet) -> Text:
    """How many there are: `3 running, 1 lost`."""
    counts = [(fleet.count(presence), presence) for presence in Presence]
    text = Text(", ").join(
        Text(f"{count} {presence}", style=_STYLES.get(presence, "")) for count, presence in counts if count
    )
    return text if text.plain else Text("nobody")


def versions(fleet: Fleet) -> Sequence[Text]:
    """A line for each model: how many running instances run which version, and what they do together."""
    found: dict[str, list[ModelStatus]] = {}
    for instance in fleet.instances:
        for model in instance.status.models if instance.is_running else ():
            found.setdefault(model.model, []).append(model)
    lines = []
    for name, of in sorted(found.items()):
        counts = Counter("none" if model.live_version is None else str(model.live_version) for model in of)
        shown = ", ".join(f"{version} on {count}" for version, count in sorted(counts.items(), key=_by_number))
        line = Text.assemble((printable(name), "bold"), "  ", shown)
        rates = [model.events_per_s for model in of if model.events_per_s is not None]
        lags = [model.lag for model in of if model.lag is not None]
        if rates:
            line.append(f"  {sum(rates):,.0f} events/s", "dim")
        if lags:
            line.append(f"  lag {sum(lags):,}", "yellow" if any(lags) else "dim")
        lines.append(line)
    return lines


def problem_lines(problems: Sequence[Problem], max_lines: int = _PROBLEMS_SHOWN) -> Sequence[Text]:
    """What is wrong, the same on several instances told once."""
    told: dict[tuple[object, ...], list[Problem]] = {}
    for problem in problems:
        told.setdefault((problem.kind, problem.model, problem.version, problem.reason, problem.message), []).append(
            problem
        )
    lines = [_problem_line(same) for same in told.values()]
    if len(lines) > max_lines:
        shown = max(0, max_lines - 1)
        lines = [*lines[:shown], Text(f"… and {len(lines) - shown} more", style="dim")]
    return lines


def _rows(fleet: Fleet) -> list[_Row]:
    wrong = {(problem.instance, problem.model) for problem in fleet.problems()}
    found = []
    for instance in fleet.instances:
        for model in instance.status.models or (None,):
            name = None if model is None else model.model
            is_wrong = not {(instance.name, None), (instance.name, name)}.isdisjoint(wrong)
            place = (instance.presence is Presence.STOPPED, name is None, name or "", instance.name)
            found.append((place, _row(fleet, instance, model, is_wrong=is_wrong)))
    return [row for _, row in sorted(found, key=lambda entry: entry[0])]


def _row(fleet: Fleet, instance: Instance, model: ModelStatus | None, *, is_wrong: bool) -> _Row:
    status = instance.status
    state, state_style = _state(fleet, instance, model)
    cells = {
        "INSTANCE": status.instance,
        "HOST": status.host,
        "ROLE": status.role,
        "DEVICE": status.device,
        "STATE": state,
        "MODEL": "-",
    }
    if model is not None:
        cells |= {
            "MODEL": model.model if model.pinned is None else f"{model.model}@{model.pinned}",
            "VERSION": "" if model.live_version is None else str(model.live_version),
            "LOAD": _duration(model.load_ms),
            "DEAD": "" if model.dead_letters is None else f"{model.dead_letters:,}",
        }
        if instance.is_running:
            cells["SINCE"] = "" if model.since_ms is None else age(fleet.at_ms - model.since_ms)
            cells["EVENTS/S"] = "" if model.events_per_s is None else f"{model.events_per_s:,.0f}"
            cells["LAG"] = "" if model.lag is None else f"{model.lag:,}"
    whole = "" if instance.is_running else "dim"
    return _Row({name: printable(text) for name, text in cells.items()}, whole, state_style, is_wrong)


def _state(fleet: Fleet, instance: Instance, model: ModelStatus | None) -> tuple[str, str]:
    """The words, and their colour."""
    if not instance.is_running:
        words = f"{instance.presence} {age(fleet.at_ms - instance.heard_ms)} ago"
        return words, _STYLES[instance.presence]
    if model is None:
        return str(instance.presence), ""
    coming = ""
    is_odd = model.stale
    if model.next_version is not None:
        coming = f"{model.next_state or 'loading'} {model.next_version}"
    elif model.wanted_version not in (None, model.live_version) and any(
        refusal.version == model.wanted_version for refusal in model.refusals
    ):
        coming, is_odd = f"{model.wanted_version} refused", True
    if model.state is ModelState.LOADING:
        return coming or "loading", "cyan"
    words = ", ".join(filter(None, (str(model.state), "stale" if model.stale else "", coming)))
    return words, "yellow" if is_odd else _STYLES.get(model.state, "")


def _fitting(rows: Sequence[_Row], width: int | None) -> list[str]:
    columns = [name for name in _COLUMNS if name in ("MODEL", "STATE") or any(row.cells.get(name) for row in rows)]
    if width is None:
        return columns
    for name in (None, *_DROPPED_FIRST):
        columns = [column for column in columns if column != name]
        others = sum(_width(rows, column) + _GAP for column in columns if column != "INSTANCE")
        wanted = max((len(row.cells["INSTANCE"]) for row in rows), default=0)
        # A name is only cut where no column is left to go.
        if others + min(wanted, max(_MIN_INSTANCE_CHARS, width // 3)) <= width:
            break
    return columns


def _width(rows: Sequence[_Row], name: str) -> int:
    return max([len(name), *(len(row.cells.get(name, "")) for row in rows)])


def _cell(row: _Row, name: str, room: int | None) -> Text:
    text = row.cells.get(name, "")
    if name == "INSTANCE" and room is not None:
        text = _cut(text, max(room, _MIN_INSTANCE_CHARS))
    return Text(text, style=row.state_style if name == "STATE" else "")


def _cut(text: str, chars: int) -> str:
    if len(text) <= chars:
        return text
    head = (chars - 1) // 2
    return f"{text[:head]}…{text[len(text) - (chars - 1 - head) :]}"


def _problem_line(same: Sequence[Problem]) -> Text:
    first = same[0]
    names = ", ".join(problem.instance for problem in same[:_NAMED])
    if len(same) > _NAMED:
        names += f" and {len(same) - _NAMED} more"
    what = first.model or ""
    if first.kind == "refused" and first.version:
        what = f"{first.model}@{first.version}"
    reason = f" ({first.reason})" if first.reason else ""
    where = f"{what}{reason} on {names}" if what else names
    line = Text.assemble(
        (f"{first.kind:<{_KIND_CHARS}}", _PROBLEM_STYLES.get(first.kind, "yellow")), printable(where), ": "
    )
    return line.append(printable(first.message))


def _duration(ms: float | None) -> str:
    if ms is None:
        return ""
    return f"{ms:,.0f} ms" if ms < 1000 else f"{ms / 1000:,.1f} s"


def _by_number(entry: tuple[str, int]) -> tuple[bool, int]:
    version = entry[0]
    return (version == "none", -int(version) if version.isdigit() else 0)
