"""`init`, `release`, `rollback`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from modelcast.cli.options import CommandContext, connected
from modelcast.cli.output import Output, printable
from modelcast.errors import UsageError
from modelcast.records import Release
from modelcast.registry.repository import init as init_repository
from modelcast.topics import DEFAULT_BLOB_PARTITIONS
from modelcast.trust.admission import Verdict
from modelcast.trust.options import PolicyOption, SignOption

from .publisher import ModelPublisher

ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]
Message = Annotated[str, typer.Option("--message", help="Words for the history.")]


@connected
def init(
    context: CommandContext,
    replication_factor: Annotated[
        int, typer.Option(help="Replicas of each topic. Default: the broker's.", show_default=False)
    ] = -1,
    blob_partitions: Annotated[
        int, typer.Option(min=1, help="Partitions of the topic that holds models; fixed for ever.")
    ] = DEFAULT_BLOB_PARTITIONS,
) -> None:
    """Make a repository: its topics and its identity. Doing it again changes nothing."""
    if replication_factor != -1 and replication_factor < 1:
        raise UsageError(
            f"--replication-factor {replication_factor} is not a number of replicas", hint="Use 1 or more."
        )
    connection = context.connection
    with connection.open_log() as log:
        done = init_repository(
            log, connection.topics, blob_partitions=blob_partitions, replication_factor=replication_factor
        )
    made = "Made" if done.created else "Found"
    context.output.result(
        {
            "repository": done.repository.uuid,
            "prefix": connection.prefix,
            "created": done.created,
            "topics_created": list(done.topics_created),
        },
        f"{made} repository [bold]{escape(connection.prefix)}[/bold] ({done.repository.uuid}) "
        f"on {escape(connection.bootstrap_servers)}",
    )


@connected
def release(
    context: CommandContext,
    name: ModelArgument,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1)],
    message: Message = "",
    renew: Annotated[
        bool,
        typer.Option("--renew", help="Release a live version again, with today's date: for a policy's max_age."),
    ] = False,
    sign: SignOption = None,
    trust_policy: PolicyOption = None,
) -> None:
    """Make a published version live everywhere."""
    with ModelPublisher.connect(context.connection, signing_keys=sign, trust_policy=trust_policy) as publisher:
        made = publisher.release(name, version, message=message, renew=renew)
        verdict = publisher.verdict(name)
    _print_release(context, made, verdict)


@connected
def rollback(
    context: CommandContext,
    name: ModelArgument,
    message: Message = "",
    sign: SignOption = None,
    trust_policy: PolicyOption = None,
) -> None:
    """Make the champion before the live one live again; again goes further back."""
    with ModelPublisher.connect(context.connection, signing_keys=sign, trust_policy=trust_policy) as publisher:
        made = publisher.rollback(name, message=message)
        verdict = publisher.verdict(name)
    _print_release(context, made, verdict)


def as_dict(verdict: Verdict | None) -> dict[str, object]:
    """Whether what was written counts already, as JSON data; nothing without a trust policy."""
    return {} if verdict is None else {"admitted": verdict.admitted}


def say_waiting(output: Output, what: str, name: str, verdict: Verdict | None) -> None:
    """Says where `what` counts only once others signed it too, and how they do that: `sign NAME`."""
    if verdict is not None and not verdict.admitted:
        output.say(
            f"{what} counts once others have signed it too ({escape(printable(verdict.message))}): "
            f"[bold]modelcast sign {escape(name)} --sign KEY[/bold]"
        )


def _print_release(context: CommandContext, made: Release, verdict: Verdict | None) -> None:
    back = " again" if made.restores else ""
    context.output.result(
        {
            "model": made.model,
            "version": made.version,
            "sequence": made.sequence,
            "restores": made.restores,
            **as_dict(verdict),
        },
        f"Released [bold]{escape(str(made.id))}[/bold]{back} (release {made.sequence})",
    )
    say_waiting(context.output, "The release", made.model, verdict)
