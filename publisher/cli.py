"""`init`, `publish`, `release`, `rollback`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, SpinnerColumn, TextColumn, TransferSpeedColumn

from modelcast.cli.options import CommandContext, connected
from modelcast.errors import UsageError
from modelcast.records import Release
from modelcast.registry.repository import init as init_repository
from modelcast.topics import DEFAULT_BLOB_PARTITIONS

from .publisher import ModelPublisher
from .session import Published

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
def publish(
    context: CommandContext,
    name: ModelArgument,
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .onnx file, or a .joblib file of scikit-learn.")],
    examples: Annotated[
        Path | None,
        typer.Option(help="Rows by field name (JSONL, CSV, Parquet) or arrays by input name (.npz). Required."),
    ] = None,
    fields: Annotated[
        str | None, typer.Option(metavar="a,b,c", help="Event fields, in order, of a model's single matrix input.")
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A measured value. Repeatable.")] = None,
    message: Message = "",
    release: Annotated[bool, typer.Option("--release", help="Make this version live.")] = False,
    resend: Annotated[
        bool, typer.Option("--resend", help="Send unchanged files too: mends chunks damaged on the topic.")
    ] = False,
) -> None:
    """Check, try and publish a model as its next version.

    The model is tried on the examples in a limited child process first; if anything is wrong, nothing is published.
    Unpickling a .joblib file runs its code: publish only what you trust.
    """
    if examples is None:
        raise UsageError(
            "no examples were given",
            hint="Name a file of rows or arrays the model can be tried on: --examples FILE (JSONL, CSV, Parquet, .npz)",
        )
    output = context.output
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=output.stderr,
        transient=True,
        disable=not output.stderr.is_terminal,
    )
    with ModelPublisher.connect(context.connection) as publisher, progress:
        task = progress.add_task("publish", total=None)
        published = publisher.publish(
            name,
            source,
            examples=examples,
            fields=None if fields is None else [field.strip() for field in fields.split(",")],
            metrics=dict(_metric(text) for text in metric or ()),
            message=message,
            release=release,
            resend=resend,
            on_step=lambda step: progress.update(task, description=step),
            on_progress=lambda _, done, total: progress.update(task, completed=done, total=total),
        )
    manifest = published.manifest
    output.result(
        {
            "model": manifest.model,
            "version": manifest.version,
            "digest": manifest.digest,
            "bytes_total": published.bytes_total,
            "bytes_sent": published.bytes_sent,
            "released": published.release is not None,
        },
        _published_text(published),
    )
    if published.release is None:
        command = f"modelcast release {manifest.model} {manifest.version}"
        output.say(f"Nothing goes live until it is released: [bold]{command}[/bold]")


@connected
def release(
    context: CommandContext,
    name: ModelArgument,
    version: Annotated[int, typer.Argument(metavar="VERSION", min=1)],
    message: Message = "",
) -> None:
    """Make a published version live everywhere."""
    with ModelPublisher.connect(context.connection) as publisher:
        made = publisher.release(name, version, message=message)
    _print_release(context, made)


@connected
def rollback(context: CommandContext, name: ModelArgument, message: Message = "") -> None:
    """Make the champion before the live one live again; again goes further back."""
    with ModelPublisher.connect(context.connection) as publisher:
        made = publisher.rollback(name, message=message)
    _print_release(context, made)


def _print_release(context: CommandContext, made: Release) -> None:
    back = " again" if made.restores else ""
    context.output.result(
        {"model": made.model, "version": made.version, "sequence": made.sequence, "restores": made.restores},
        f"Released [bold]{escape(str(made.id))}[/bold]{back} (release {made.sequence})",
    )


def _published_text(published: Published) -> str:
    manifest = published.manifest
    live = ", [green]released[/green]" if published.release else ""
    return (
        f"Published [bold]{escape(str(manifest.id))}[/bold]{live}\n"
        f"  {manifest.digest}\n"
        f"  {published.bytes_sent:,} of {published.bytes_total:,} bytes sent"
    )


def _metric(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        if not equals or not name.strip():
            raise ValueError
        return name.strip(), float(value)
    except ValueError:
        raise UsageError(f"--metric {text!r} is not KEY=NUMBER", hint="Write e.g. --metric auc=0.91") from None
