"""`pull`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from modelcast.cli.options import CommandContext, connected
from modelcast.errors import UsageError
from modelcast.files.pull import Pulled, pull_version
from modelcast.files.store_url import Stores
from modelcast.names import ModelRef
from modelcast.registry.describe import describe
from modelcast.trust.options import PolicyOption
from modelcast.trust.signing import reading_admission


@connected
def pull(
    context: CommandContext,
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]", help="The live version, or the one named.")],
    directory: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="A new or empty folder. Required.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier pull put there.")] = False,
    store_allowed: Annotated[
        list[str] | None,
        typer.Option(
            "--store-allowed",
            metavar="URL",
            help="A store to read models from. Repeatable. Default: those of MODELCAST_STORES.",
            show_default=False,
        ),
    ] = None,
    trust_policy: PolicyOption = None,
) -> None:
    """Put a version's verified files into a folder, for any other runtime.

    The folder holds model.onnx with its tensors, examples.npz (inputs, and the outputs they gave) and manifest.json.
    """
    if directory is None:
        raise UsageError("no folder is named for the files", hint=f"Name one: modelcast pull {name} -o DIR")
    output = context.output
    ref, allowed = ModelRef.parse(name), Stores.resolve(store_allowed)
    admission = reading_admission(trust_policy)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=output.stderr,
        transient=True,
        disable=not output.stderr.is_terminal,
    )
    with context.connection.open_log() as log, bar:
        task = bar.add_task("fetch", total=None)
        pulled = pull_version(
            log,
            context.connection.topics,
            ref,
            directory,
            force=force,
            stores=allowed,
            admission=admission,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    output.result({**describe(pulled.manifest), "directory": str(pulled.directory)}, _text(pulled))


def _text(pulled: Pulled) -> str:
    manifest = pulled.manifest
    return (
        f"Pulled [bold]{escape(str(manifest.id))}[/bold] into {escape(str(pulled.directory))}\n"
        f"  {manifest.digest}\n"
        f"  {manifest.size_bytes:,} bytes in {len(manifest.files)} files, verified"
    )
