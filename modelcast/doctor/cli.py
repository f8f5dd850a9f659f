"""`doctor`: what keeps modelcast from working here, and the line that mends it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Final

import typer
from rich.markup import escape

from modelcast.access.tasks import Tasks, permissions
from modelcast.cli.options import CommandContext, connected
from modelcast.cli.output import Output, printable
from modelcast.config import Connection
from modelcast.trust.options import PolicyOption

from .examine import findings
from .findings import Finding, Level, count, exit_code
from .look import LISTEN_S, Looking
from .sights import Question

_MARKS: Final = {
    Level.OK: "[green]✓[/green]",
    Level.UNKNOWN: "[dim]?[/dim]",
    Level.WARNING: "[yellow]![/yellow]",
    Level.FAULT: "[red]✗[/red]",
}


@connected
def doctor(
    context: CommandContext,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", metavar="NAME", help="A model that has to run here. Repeatable. Default: all released."
        ),
    ] = None,
    events: Annotated[
        list[str] | None, typer.Option("--events", metavar="TOPIC", help="A topic of events. Repeatable.")
    ] = None,
    predictions: Annotated[
        list[str] | None, typer.Option("--predictions", metavar="TOPIC", help="A topic of predictions. Repeatable.")
    ] = None,
    dead_letters: Annotated[
        str | None,
        typer.Option("--dead-letters", metavar="TOPIC", help="Default: PREDICTIONS.dead-letters.", show_default=False),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="ID", help="The scorers' group. Default: as score.", show_default=False),
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option(
            "--as",
            metavar="ROLE",
            help="Look whether this login may do what a role needs: publisher, operator, producer, scorer, client, "
            "reader, observer or dlq. Repeatable.",
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda[:N]", help="Where models are to run.")
    ] = "auto",
    trust_policy: PolicyOption = None,
    listen: Annotated[
        float,
        typer.Option(
            "--listen", metavar="SECONDS", min=0.0, max=600.0, help="How long to listen to running instances."
        ),
    ] = LISTEN_S,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count for the exit code, too.")] = False,
) -> None:
    """Find what keeps modelcast from working here, and print the line that mends it.

    Nothing is written on the cluster. Exit codes: 0 nothing is wrong (or warnings only), 3 the cluster can't be used
    at all, 6 something else is wrong.
    """
    tasks = Tasks(tuple(model or ()), tuple(events or ()), tuple(predictions or ()), dead_letters, group)
    question = _question(context.connection, tasks, role or [], device)
    output = context.output
    with _waiting(output) as say:
        looking = Looking(question, context.connection, policy=trust_policy, listen_s=listen, say=say)
        found = findings(question, looking.look())
    code = exit_code(found, strict=strict)
    if output.json:
        output.line(
            {
                "findings": [_as_json(one) for one in found],
                "faults": count(found, Level.FAULT),
                "warnings": count(found, Level.WARNING),
                "exit_code": int(code),
            }
        )
    else:
        _print(output, found)
    if code:
        raise typer.Exit(code)


def _question(connection: Connection, tasks: Tasks, roles: list[str], device: str) -> Question:
    from modelcast.publisher.upload import RECORD_BYTES

    return Question(
        servers=connection.bootstrap_servers,
        properties=connection.settings,
        prefix=connection.prefix,
        models=tasks.models,
        events=tasks.events,
        outputs=(*tasks.outputs, *((tasks.letters,) if tasks.letters else ())),
        groups=(group,) if (group := tasks.group_in(connection.prefix)) else (),
        needed=permissions(roles, tasks, connection.topics),
        chunk_bytes=RECORD_BYTES,
        device=device,
    )


@contextmanager
def _waiting(output: Output) -> Iterator[Callable[[str], None]]:
    """Says what is being done on a terminal, in one line that goes."""
    if output.json or not output.stderr.is_terminal:
        yield lambda _: None
        return
    with output.stderr.status("…") as line:
        yield lambda text: line.update(escape(text))


def _as_json(found: Finding) -> dict[str, str | None]:
    return {"check": found.check, "level": str(found.level), "message": found.message, "mend": found.mend}


def _print(output: Output, found: Sequence[Finding]) -> None:
    width = max((len(one.check) for one in found), default=0)
    for one in found:
        output.stdout.print(f"{_MARKS[one.level]} {one.check:<{width}}  {escape(printable(one.message))}")
        if one.mend:
            output.stdout.print(f"  {'':<{width}}  [dim]→[/dim] {escape(printable(one.mend))}")
    faults, warnings = count(found, Level.FAULT), count(found, Level.WARNING)
    if not faults and not warnings:
        output.stdout.print("Nothing is wrong.")
        return
    output.stdout.print(
        f"{faults} fault{'' if faults == 1 else 's'}, {warnings} warning{'' if warnings == 1 else 's'}."
    )
