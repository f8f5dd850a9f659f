"""`delete` and `gc`: taking versions, and what nothing refers to any more, off the log."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from modelcast.cli.durations import seconds
from modelcast.cli.options import CommandContext, connected
from modelcast.cli.output import printable
from modelcast.errors import ExitCode, UsageError
from modelcast.names import ModelRef
from modelcast.trust.options import PolicyOption, SignOption

from .cli import as_dict, say_waiting
from .publisher import ModelPublisher
from .removal import Collected, Removed


@connected
def delete(
    context: CommandContext,
    name: Annotated[str, typer.Argument(metavar="NAME@VERSION", help="The version.")],
    message: Annotated[str, typer.Option("--message", help="The reason: whoever asks for the version is told.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Delete a version that was live once too.")] = False,
    sign: SignOption = None,
    trust_policy: PolicyOption = None,
) -> None:
    """Withdraw a version for ever; its number is never used again.

    The live version can't be deleted. Chunks that other versions of the model share stay.
    """
    ref = ModelRef.parse(name)
    if ref.version is None:
        raise UsageError(f"{name!r} names no version", hint=f"Name one: modelcast delete {name}@NUMBER")
    with ModelPublisher.connect(context.connection, signing_keys=sign, trust_policy=trust_policy) as publisher:
        removed = publisher.delete(ref.model, ref.version, message=message, force=force)
        verdict = None if removed.repeated else publisher.verdict(ref.model)
    context.output.result(
        {
            "model": ref.model,
            "version": ref.version,
            "message": removed.record.message,
            "created_ms": removed.record.created_ms,
            "repeated": removed.repeated,
            "chunks": removed.chunks,
            "bytes": removed.bytes,
            "left": removed.left,
            "store": removed.store,
            **as_dict(verdict),
        },
        _removed_text(removed),
    )
    if verdict is not None and not verdict.admitted:  # no garbage before it counts
        say_waiting(context.output, "The withdrawal", f"{removed.id} --withdrawal", verdict)
    elif removed.left:
        context.output.say("Some of its chunks are left: take them off with [bold]modelcast gc[/bold]")
    if removed.store is not None:
        context.output.say(f"Its files stay in {escape(printable(removed.store))}")


@connected
def gc(
    context: CommandContext,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be taken off.")] = False,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="Leave alone what came within it: e.g. 90s, 30m, 24h, 7d.")
    ] = "24h",
    trust_policy: PolicyOption = None,
) -> None:
    """Take chunks that no version lists off the log: of uploads broken off, of versions deleted.

    Reads the whole topic of models once. Exits with 7 if a model was left because others kept changing it.
    """
    grace_s = seconds(grace, "--grace")
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=context.output.stderr,
        transient=True,
        disable=not context.output.stderr.is_terminal,
    )
    with ModelPublisher.connect(context.connection, trust_policy=trust_policy) as publisher, progress:
        task = progress.add_task("reading chunks", total=None)
        collected = publisher.collect_garbage(
            grace_s=grace_s,
            dry_run=dry_run,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _print_collected(context, collected, grace, grace_s)
    if collected.busy:
        raise typer.Exit(ExitCode.FENCED)


def _print_collected(context: CommandContext, collected: Collected, grace: str, grace_s: float) -> None:
    output = context.output
    if output.json:
        models = [{"model": m.model, "chunks": m.chunks, "bytes": m.bytes} for m in collected.models]
        output.result(
            {
                "dry_run": collected.dry_run,
                "grace_s": grace_s,
                "models": models,
                "chunks": collected.chunks,
                "bytes": collected.bytes,
                "busy": list(collected.busy),
                "unread": list(collected.unread),
            }
        )
    elif collected.models:
        rows = [(m.model, f"{m.chunks:,}", f"{m.bytes:,}") for m in collected.models]
        output.table(("MODEL", "CHUNKS", "BYTES"), rows)
        would = "would be taken off" if collected.dry_run else "taken off; the broker frees them when it compacts"
        output.say(f"{collected.chunks:,} chunks, {collected.bytes:,} bytes {would}")
    else:
        output.say(f"Nothing to collect that is older than {escape(grace)}")
    for model in collected.busy:
        output.warn(f"{model} was left alone: others kept changing it. Run gc again when they are done.")
    for model in collected.unread:
        output.warn(f"{model} was left alone: a version of it can't be read. A newer modelcast may have written it.")


def _removed_text(removed: Removed) -> str:
    name = escape(str(removed.id))
    if removed.repeated:
        reason = escape(printable(removed.record.message or "no reason given"))
        return f"[bold]{name}[/bold] was deleted before, by {escape(printable(removed.record.created_by))}: {reason}"
    return f"Deleted [bold]{name}[/bold]\n  {removed.chunks:,} chunks, {removed.bytes:,} bytes given up"
