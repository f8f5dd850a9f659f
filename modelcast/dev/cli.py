"""`modelcast dev up | down | status | reset`: a real Kafka on this machine, with nothing to set up."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from modelcast.cli.options import CommandContext, plain
from modelcast.cli.output import Output
from modelcast.errors import ExitCode, UsageError

from . import service
from .jars import KAFKA_VERSION

app = typer.Typer(
    name="dev",
    help="A real Kafka broker on this machine, for trying things out; its data is kept between runs.",
    no_args_is_help=True,
    add_completion=False,
)

Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.command()
@plain
def up(context: CommandContext) -> None:
    """Start the dev broker and wait until it is ready; does nothing when it runs."""
    began = time.monotonic()
    with _starting(context.output) as on_progress:
        now, started = service.up(on_progress=on_progress)
    took_s = time.monotonic() - began
    did = f"is ready ({took_s:.1f} s)" if started else "is running already"
    context.output.result(
        {**_fields(now), "started": started},
        f"Kafka {KAFKA_VERSION} {did}: [bold]{now.bootstrap_servers}[/bold]\n"
        "Commands without -b use it. End it with: modelcast dev down",
    )


@app.command()
@plain
def down(context: CommandContext) -> None:
    """End the dev broker; its data stays."""
    with _spinner(context.output, "Stopping Kafka"):
        stopped = service.down()
    said = "The dev broker is down; its data is kept" if stopped else "The dev broker was not running"
    context.output.result({"running": False, "stopped": stopped}, said)


@app.command()
@plain
def status(context: CommandContext) -> None:
    """Say whether the dev broker runs, and where: exit code 0 when it does, 3 when not."""
    now = service.status()
    data = f"Data: {escape(str(now.data_dir))} ({_megabytes(now.data_bytes)})"
    if now.running:
        said = (
            f"Kafka {now.kafka_version} runs at [bold]{now.bootstrap_servers}[/bold] "
            f"since {now.started_at} (pid {now.pid})\n{data} · log: {escape(str(now.log_path))}"
        )
    else:
        said = f"The dev broker is not running. Start it with: modelcast dev up\n{data}"
    context.output.result(_fields(now), said)
    if not now.running:
        raise typer.Exit(ExitCode.BROKER)


@app.command()
@plain
def reset(context: CommandContext, yes: Yes = False) -> None:
    """End the dev broker and delete its data: every topic, model and prediction on it."""
    now = service.status()
    if not yes:
        what = f"all data of the dev broker in {now.data_dir} ({_megabytes(now.data_bytes)})"
        if not sys.stdin.isatty():
            raise UsageError(f"Deleting {what} needs a yes", hint="Say so with: modelcast dev reset --yes")
        typer.confirm(f"Delete {what}?", abort=True, err=True)
    with _spinner(context.output, "Deleting the dev broker's data"):
        deleted_bytes = service.reset()
    context.output.result(
        {"running": False, "deleted_bytes": deleted_bytes},
        f"The dev broker is down and its data deleted ({_megabytes(deleted_bytes)})",
    )


def _fields(status: service.DevStatus) -> dict[str, Any]:
    return {
        "running": status.running,
        "bootstrap_servers": status.bootstrap_servers,
        "pid": status.pid,
        "started_at": status.started_at,
        "kafka_version": status.kafka_version,
        "data_dir": str(status.data_dir),
        "data_bytes": status.data_bytes,
        "log": str(status.log_path),
    }


@contextmanager
def _starting(output: Output) -> Iterator[service.Progress]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = output.stderr
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as shown:
        shown.add_task(f"Starting Kafka {KAFKA_VERSION}", total=None)
        fetching = shown.add_task("Fetching it, this once", visible=False)

        def on_progress(done: int, total: int) -> None:
            shown.update(fetching, completed=done, total=total, visible=True)

        yield on_progress


@contextmanager
def _spinner(output: Output, doing: str) -> Iterator[None]:
    with output.stderr.status(doing):
        yield


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"
