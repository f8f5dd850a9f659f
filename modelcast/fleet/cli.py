"""`status` and `top`: who runs what, once and live."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from modelcast.cli.durations import seconds
from modelcast.cli.options import CommandContext, connected
from modelcast.errors import ExitCode, GateError, ModelNotFoundError, ModelRefusedError, UsageError
from modelcast.fleet.describe import describe_fleet, describe_rollout
from modelcast.fleet.fleet import Fleet, Rollout, rollout
from modelcast.fleet.live import STEP_S, show_live
from modelcast.fleet.table import fleet_table, problem_lines, summary
from modelcast.fleet.watch import StatusWatch
from modelcast.names import ModelRef, ModelVersion

_NAMED = 5  # of instances that an error tells of
# A large model on a slow network, on every instance of a fleet.
_DEFAULT_TIMEOUT = "5m"

ModelOption = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="GLOB", help="Only these models, e.g. fraud or 'fraud-*'. Repeatable."),
]
InstanceOption = Annotated[
    list[str] | None, typer.Option("--instance", metavar="GLOB", help="Only these instances. Repeatable.")
]
SinceOption = Annotated[
    str, typer.Option("--since", metavar="TIME", help="Show what stopped or was lost within it, e.g. 10m, 24h.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Show every instance that the status topic still knows.")]


@connected
def status(
    context: CommandContext,
    model: ModelOption = None,
    instance: InstanceOption = None,
    since: SinceOption = "1h",
    everything: AllOption = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Exit with 6 if an instance is lost, or a model refused, stale or without a version."
        ),
    ] = False,
    wait_live: Annotated[
        str | None,
        typer.Option(
            "--wait-live",
            metavar="NAME@VERSION",
            help="Wait until every running instance of the model runs this version; fail once one refuses it.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", metavar="TIME", help="How long --wait-live waits. Default: 5m.", show_default=False),
    ] = None,
) -> None:
    """Show who runs what: instances, their models and versions, rates, lag, and what was refused and why."""
    wanted = None if wait_live is None else _version(wait_live)
    if timeout is not None and wanted is None:
        raise UsageError(
            "--timeout is given, and nothing is waited for", hint="Say for what: --wait-live NAME@VERSION."
        )
    timeout_s = seconds(timeout or _DEFAULT_TIMEOUT, "--timeout")
    with _watching(context, since, everything=everything) as watch:
        if wanted is not None:
            _await(context, watch, wanted, instance or [], timeout_s)
            return
        fleet = watch.fleet.select(models=model or [], instances=instance or [])
    _print(context, fleet, is_chosen=bool(model or instance))
    if check and fleet.problems():
        raise typer.Exit(ExitCode.GATE)


@connected
def top(
    context: CommandContext,
    model: ModelOption = None,
    instance: InstanceOption = None,
    since: SinceOption = "1h",
    everything: AllOption = False,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=60.0, help="How often the view is drawn.")
    ] = 1.0,
) -> None:
    """Watch who runs what, live, until Ctrl-C; what is no terminal gets one look, as by `status`."""
    console = context.output.stdout
    with _watching(context, since, everything=everything) as watch:
        select = partial(Fleet.select, models=model or [], instances=instance or [])
        if context.output.json or not console.is_terminal:
            _print(context, select(watch.fleet), is_chosen=bool(model or instance))
        else:
            where = f"{context.connection.bootstrap_servers}  {context.connection.prefix}"
            show_live(console, watch, select, where, interval_s=interval)


@contextmanager
def _watching(context: CommandContext, since: str, *, everything: bool) -> Iterator[StatusWatch]:
    forget_after_ms = None if everything else int(seconds(since, "--since") * 1000)
    connection = context.connection
    with (
        connection.open_log() as log,
        closing(StatusWatch(log, connection.topics, forget_after_ms=forget_after_ms)) as watch,
    ):
        watch.look()
        yield watch


def _print(context: CommandContext, fleet: Fleet, *, is_chosen: bool) -> None:
    output = context.output
    if output.json:
        output.result(describe_fleet(fleet))
        return
    if not fleet.instances and is_chosen:
        output.say("Nobody runs what --model and --instance choose. See all with: modelcast status")
    elif not fleet.instances:
        output.say("Nobody runs here. Start somebody: modelcast score NAME --events TOPIC --predictions TOPIC")
    else:
        _table(output.stdout, fleet)
        output.say("")
        output.stderr.print(summary(fleet))
    for line in problem_lines(fleet.problems()):
        output.stdout.print(line)


def _table(console: Console, fleet: Fleet) -> None:
    if console.is_terminal:
        console.print(fleet_table(fleet, console.width), soft_wrap=False)
    else:
        # A pipe has no width: every cell stays whole, on one line.
        Console(file=console.file, width=100_000, highlight=False).print(fleet_table(fleet, None))


def _version(name: str) -> ModelVersion:
    ref = ModelRef.parse(name)
    if ref.version is None:
        raise UsageError(f"--wait-live {name!r} names no version", hint=f"Name one: --wait-live {name}@NUMBER")
    return ModelVersion(ref.model, ref.version)


def _await(
    context: CommandContext, watch: StatusWatch, wanted: ModelVersion, instances: list[str], timeout_s: float
) -> None:
    """Waits for a rollout to be done; raises why it will not be, or is not in time."""
    deadline_s = time.monotonic() + timeout_s
    told: tuple[object, ...] = ()
    while True:
        now = rollout(watch.fleet.select(instances=instances), wanted)
        if now.is_done:
            _tell_done(context, now)
            return
        _refuse_if_hopeless(now)
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise _too_late(now, timeout_s)
        pending = tuple(name for name, _ in now.pending)
        if (now.live, pending) != told:
            told = (now.live, pending)
            context.output.say(f"[dim]{escape(_progress(now))}[/dim]")
        watch.poll(min(left_s, STEP_S))


def _tell_done(context: CommandContext, now: Rollout) -> None:
    aside = f" ({len(now.aside)} need not)" if now.aside else ""
    text = f"[bold]{escape(str(now.version))}[/bold] is live on {_instances(len(now.live))}{aside}"
    context.output.result(describe_rollout(now), text)


def _refuse_if_hopeless(now: Rollout) -> None:
    if now.refused:
        first = now.refused[0]
        more = f", and {len(now.refused) - 1} more" if len(now.refused) > 1 else ""
        raise ModelRefusedError(
            f"{now.version} is refused on {first.instance}{more} ({first.reason}): {first.message}",
            hint=f"What ran there runs on. Go back everywhere with: modelcast rollback {now.version.name}",
            details=describe_rollout(now),
        )


def _too_late(now: Rollout, timeout_s: float) -> ModelNotFoundError | GateError:
    if not now.live and not now.pending:
        return ModelNotFoundError(
            f"no running instance follows {now.version.name!r}, after {timeout_s:g} s",
            hint="See who runs: modelcast status",
            details=describe_rollout(now),
        )
    shown = "; ".join(
        f"{name} runs {model.live_version or 'none'} ({model.next_state or model.state})"
        for name, model in now.pending[:_NAMED]
    )
    more = f"; and {len(now.pending) - _NAMED} more" if len(now.pending) > _NAMED else ""
    is_wanted = any(model.wanted_version == now.version.version for _, model in now.pending)
    return GateError(
        f"{now.version} is live on {len(now.live)} of {_instances(len(now.live) + len(now.pending))} after "
        f"{timeout_s:g} s: {shown}{more}",
        hint="See why with: modelcast status; allow more time with --timeout."
        if is_wanted
        else f"None of them knows it as released. See what is with: modelcast history {now.version.name}",
        details=describe_rollout(now),
    )


def _progress(now: Rollout) -> str:
    of = len(now.live) + len(now.pending)
    return f"waiting: {now.version} is live on {len(now.live)} of {_instances(of)}"


def _instances(count: int) -> str:
    return f"{count} instance{'' if count == 1 else 's'}"
