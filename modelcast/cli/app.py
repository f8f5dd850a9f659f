"""The root command. Each command lives beside what it does and is imported when it is called.

Exit codes: 0 done · 1 internal · 2 usage · 3 broker or store · 4 not found · 5 model refused · 6 gate · 7 fenced ·
130 interrupted before anything was done.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from modelcast import __version__
from modelcast.cli.options import split_common
from modelcast.cli.output import Output
from modelcast.errors import ExitCode, ModelcastError

# Command -> module and function (or typer app) that implements it, in the order of the help page.
COMMANDS = {
    "init": "modelcast.publisher.cli:init",
    "publish": "modelcast.publisher.publish_cli:publish",
    "release": "modelcast.publisher.cli:release",
    "rollback": "modelcast.publisher.cli:rollback",
    "sign": "modelcast.publisher.sign_cli:sign",
    "delete": "modelcast.publisher.upkeep_cli:delete",
    "gc": "modelcast.publisher.upkeep_cli:gc",
    "models": "modelcast.registry.cli:models",
    "show": "modelcast.registry.cli:show",
    "history": "modelcast.registry.cli:history",
    "pull": "modelcast.files.cli:pull",
    "send": "modelcast.events.cli:send",
    "score": "modelcast.consumer.cli:score",
    "dlq": "modelcast.consumer.dlq_cli:app",
    "status": "modelcast.fleet.cli:status",
    "top": "modelcast.fleet.cli:top",
    "tail": "modelcast.events.cli:tail",
    "keys": "modelcast.trust.cli:app",
    "acl": "modelcast.access.cli:acl",
    "cache": "modelcast.files.cache_cli:app",
    "quarantine": "modelcast.consumer.quarantine_cli:app",
    "doctor": "modelcast.doctor.cli:doctor",
    "dev": "modelcast.dev.cli:app",
    "demo": "modelcast.demo.cli:demo",
}


class LazyGroup(TyperGroup):
    """Imports a command's module only when that command (or the help page) is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | TyperGroup | None:  # noqa: ARG002
        target = COMMANDS.get(cmd_name)
        return None if target is None else _load(cmd_name, target)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Hands common options that stand before the command on to it: which of them it takes, it says itself."""
        common, rest = split_common(args)
        if common and rest:
            named = self._named(ctx, rest)
            args = [*rest[:named], *(common if named else ()), *rest[named:]]
        return super().parse_args(ctx, args)

    def _named(self, ctx: Any, words: list[str]) -> int:
        """How many words name the command, groups included."""
        found: Any = self
        for count, word in enumerate(words):
            found = found.get_command(ctx, word) if hasattr(found, "get_command") else None
            if found is None:
                return count
        return len(words)


def _load(name: str, target: str) -> TyperCommand | TyperGroup:
    module, _, attribute = target.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command: Any = typer.main.get_command(found)
    else:
        single = typer.Typer(add_completion=False, rich_markup_mode="rich")
        single.command(name=name)(found)
        command = typer.main.get_command(single)
    command.name = name
    return command  # type: ignore[no-any-return]


app = typer.Typer(
    name="modelcast",
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Publish trained models onto Kafka; hot-swap them into running applications; score events inline.",
    epilog=(
        "What every command takes (-b, -F, -X, --prefix, --json) may stand before it, too.\n\n"
        "Exit codes: 0 done, 1 internal, 2 usage, 3 broker or store, 4 not found, 5 model refused, 6 gate, "
        "7 fenced, 130 interrupted."
    ),
)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"modelcast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    pass


def main() -> NoReturn:
    """Runs the command line; never prints a traceback for what a user can mend."""
    status = ExitCode.DONE
    try:
        app()  # raises SystemExit: 0, 2 for usage, 130 for Ctrl-C
    except ModelcastError as error:
        Output().error(error)
        status = error.exit_code
    except Exception as error:
        _internal(error)
        status = ExitCode.INTERNAL
    sys.exit(int(status))


def _internal(error: Exception) -> None:
    output = Output()
    output.error(
        ModelcastError(
            f"internal error: {type(error).__name__}: {error}",
            hint="This is a fault in modelcast. MODELCAST_DEBUG=1 prints where; please report it with that.",
        )
    )
    if os.environ.get("MODELCAST_DEBUG"):
        traceback.print_exception(error)
