"""`quarantine`: versions this host does not load any more because processes died loading them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from modelcast.cli.options import CommandContext, plain
from modelcast.errors import NotFoundError, UsageError
from modelcast.folders import state_folder
from modelcast.names import ModelRef

from .quarantine import EXPIRY_S, MAX_CRASHES, Quarantine, Suspect

app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Show which versions this host leaves alone because processes died loading them; let them be tried again.",
    epilog=f"{MAX_CRASHES} deaths within {EXPIRY_S / 3600:g} hours quarantine a version. docs/CACHE.md tells more.",
)

StateFolder = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="A folder that an application was told to use. Default: MODELCAST_STATE_DIR, else the user's.",
        show_default=False,
    ),
]


@app.callback()
@plain
def quarantine(invoked: CommandContext, context: typer.Context, state_dir: StateFolder = None) -> None:
    """Show which versions this host leaves alone because processes died loading them."""
    if context.invoked_subcommand is not None:
        if state_dir is not None or invoked.output.json:
            raise UsageError("an option stands before the command", hint="Write: modelcast quarantine clear [OPTIONS]")
        return
    suspects = Quarantine(state_dir or state_folder()).suspects()
    if suspects and not invoked.output.json:
        invoked.output.table(("VERSION", "CRASHES", "LAST", "STATE", "CONTENT"), map(_row, suspects))
    else:
        none = "Nothing is quarantined on this host"
        invoked.output.result({"versions": [_as_dict(suspect) for suspect in suspects]}, none)


@app.command()
@plain
def clear(
    context: CommandContext,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME[@VERSION]]...", help="What to try again; all if none is named.")
    ] = None,
    state_dir: StateFolder = None,
) -> None:
    """Let versions be tried again. Processes that run notice within half a minute."""
    refs = [ModelRef.parse(name) for name in names or []]
    crashes = Quarantine(state_dir or state_folder())
    suspects = crashes.suspects()
    for ref in refs:
        if not any(_is_meant(suspect, ref) for suspect in suspects):
            raise NotFoundError(f"no process of this host died loading {ref}", hint="What did: modelcast quarantine")
    chosen = [suspect for suspect in suspects if not refs or any(_is_meant(suspect, ref) for ref in refs)]
    crashes.clear({suspect.content for suspect in chosen})
    told = ", ".join(_called(suspect) for suspect in chosen)
    context.output.result(
        {"cleared": [_as_dict(suspect) for suspect in chosen]},
        f"May be loaded again: {escape(told)}" if chosen else "Nothing was quarantined on this host",
    )


def _is_meant(suspect: Suspect, ref: ModelRef) -> bool:
    return suspect.name == str(ref) or (ref.version is None and suspect.name.partition("@")[0] == ref.model)


def _called(suspect: Suspect) -> str:
    return suspect.name or suspect.content


def _row(suspect: Suspect) -> tuple[str, ...]:
    until = _time(suspect.expires_ms)
    state = f"quarantined until {until}" if suspect.is_quarantined else f"may be loaded; forgotten {until}"
    return (suspect.name or "?", f"{suspect.crashes}", _time(suspect.last_ms), state, suspect.content)


def _as_dict(suspect: Suspect) -> dict[str, Any]:
    return {
        "version": suspect.name or None,
        "content": suspect.content,
        "crashes": suspect.crashes,
        "quarantined": suspect.is_quarantined,
        "last_ms": suspect.last_ms,
        "expires_ms": suspect.expires_ms,
    }


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
