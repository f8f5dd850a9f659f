"""`acl`: what each role needs of a secured cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import typer

from modelcast.cli.options import CommandContext, connected
from modelcast.errors import BrokerError, UsageError
from modelcast.topics import DEFAULT_PREFIX, Topics

from .acl import ANY_PRINCIPAL, ANY_SERVERS, Acl, add_command, add_commands
from .roles import Role
from .tasks import Tasks, permissions

_GUARANTEES = ("exactly-once", "at-least-once")


@connected
def acl(
    context: CommandContext,
    names: Annotated[
        list[str], typer.Argument(metavar="ROLE", help=f"One or several of: {', '.join(Role)}.", show_default=False)
    ],
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="The models a publisher publishes (fraud-* for all that begin so; default: all), or a scorer scores. "
            "Repeatable.",
            show_default=False,
        ),
    ] = None,
    events: Annotated[
        list[str] | None,
        typer.Option("--events", metavar="TOPIC", help="Events. Repeatable.", show_default=False),
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            "--predictions", metavar="[NAME=]TOPIC", help="Predictions, as for score. Repeatable.", show_default=False
        ),
    ] = None,
    dead_letters: Annotated[
        str | None,
        typer.Option("--dead-letters", metavar="TOPIC", help="Default: score's own.", show_default=False),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="ID", help="Default: score's own.", show_default=False)
    ] = None,
    guarantee: Annotated[
        str, typer.Option("--guarantee", metavar="|".join(_GUARANTEES), help="What scorers give.")
    ] = _GUARANTEES[0],
    topics_exist: Annotated[
        bool,
        typer.Option("--topics-exist", help="Topics of events and predictions are there: none has to be made."),
    ] = False,
    principal: Annotated[
        str, typer.Option("--principal", metavar="User:NAME", help="Who is to be allowed.")
    ] = ANY_PRINCIPAL,
    apply: Annotated[
        bool, typer.Option("--apply", help="Add them to the cluster now (needs Alter on the cluster).")
    ] = False,
) -> None:
    """Print the ACLs a role needs and no more, as lines of kafka-acls.sh."""
    if guarantee not in _GUARANTEES:
        raise UsageError(f"{guarantee!r} is no guarantee", hint=f"Use {' or '.join(_GUARANTEES)}.")
    tasks = Tasks(
        models=tuple(models or ()),
        events=tuple(events or ()),
        predictions=tuple(predictions or ()),
        dead_letters=dead_letters,
        group=group,
        exactly_once=guarantee == _GUARANTEES[0],
        create=not topics_exist,
    )
    servers, settings, topics = _where(context)
    needed = permissions(names, tasks, topics)
    if apply:
        if principal == ANY_PRINCIPAL:
            raise UsageError("nobody is named who is to be allowed", hint="Add --principal User:NAME.")
        if not settings:
            raise UsageError("no broker is named to add ACLs to", hint="Name one: -b HOST:PORT, with -F FILE.")
        from modelcast.kafka.acls import add_acls

        add_acls(settings, needed, principal=principal)
    _tell(context, needed, principal=principal, servers=servers, applied=apply)


def _where(context: CommandContext) -> tuple[str, Mapping[str, str], Topics]:
    """Servers, properties and topics; lines can be printed without a broker, too."""
    try:
        connection = context.connection
    except BrokerError:
        return ANY_SERVERS, {}, Topics(context.prefix or DEFAULT_PREFIX)
    return connection.bootstrap_servers, connection.settings, connection.topics


def _tell(context: CommandContext, needed: Sequence[Acl], *, principal: str, servers: str, applied: bool) -> None:
    output = context.output
    if output.json:
        acls = [
            {
                **entry.as_dict(),
                "principal": principal,
                "add": add_command([entry], principal=principal, servers=servers),
            }
            for entry in needed
        ]
        output.line({"principal": principal, "applied": applied, "acls": acls})
    elif applied:
        for entry in needed:
            output.stdout.print(f"{principal}: {entry}", markup=False)
    else:
        for line in add_commands(needed, principal=principal, servers=servers):
            output.stdout.print(line, markup=False)
