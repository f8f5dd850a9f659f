"""`score`: a stream scored from the command line."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import FrameType, TracebackType
from typing import Annotated, Any, Self

import typer

from modelcast.cli.durations import seconds
from modelcast.cli.options import CommandContext, SchemaRegistryUrl, connected
from modelcast.cli.output import Output
from modelcast.sizes import parse_size
from modelcast.trust.options import PolicyOption

from .report_text import as_json, as_text
from .reports import Report, Warned
from .worker_child import Worker
from .workers import Supervisor


@connected
def score(
    context: CommandContext,
    events: Annotated[str, typer.Option("--events", metavar="TOPIC", help="The topic of events; it must exist.")],
    predictions: Annotated[
        list[str],
        typer.Option(
            "--predictions",
            metavar="[NAME=]TOPIC",
            help="Where predictions go. Of several models one topic for all, one with {model} in its name, or "
            "NAME=TOPIC for each. Repeatable.",
        ),
    ],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME[@VERSION]",
            help="The model: its live version, or the one named. Several score the same events; those that --routes "
            "names need not be named here.",
            show_default=False,
        ),
    ] = None,
    dead_letters: Annotated[
        str | None,
        typer.Option(
            "--dead-letters",
            metavar="TOPIC",
            help="Where events go that can't be scored. Default: PREDICTIONS.dead-letters; EVENTS.dead-letters if "
            "predictions have several topics.",
            show_default=False,
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            metavar="ID",
            help="Consumer group; scorers of one group share the partitions. Default: PREFIX.MODEL.PREDICTIONS.",
            show_default=False,
        ),
    ] = None,
    instance: Annotated[
        str | None,
        typer.Option(
            "--instance",
            metavar="ID",
            help="This scorer's id, kept over restarts. Default: the host and the first free number.",
            show_default=False,
        ),
    ] = None,
    guarantee: Annotated[
        str, typer.Option("--guarantee", metavar="exactly-once|at-least-once", help="What a crash may do.")
    ] = "exactly-once",
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda[:N]", help="Where the model runs.")
    ] = "auto",
    store_allowed: Annotated[
        list[str] | None,
        typer.Option(
            "--store-allowed",
            metavar="URL",
            help="A store to read models from (s3://…, file:///…). Repeatable. Default: those of MODELCAST_STORES.",
            show_default=False,
        ),
    ] = None,
    trust_policy: PolicyOption = None,
    max_stale: Annotated[
        str | None,
        typer.Option(
            "--max-stale",
            metavar="TIME",
            help="How long the registry may be out of reach, e.g. 30m, 24h. Default: as long as it takes.",
            show_default=False,
        ),
    ] = None,
    when_stale: Annotated[
        str, typer.Option("--when-stale", metavar="keep|stop", help="After --max-stale: score on, or let events wait.")
    ] = "keep",
    preserve: Annotated[
        str,
        typer.Option(
            "--preserve",
            metavar="availability|resources",
            help="At a swap: load the new version beside the old one, or unload the old one first and let events wait.",
        ),
    ] = "availability",
    route: Annotated[
        str | None,
        typer.Option(
            "--route",
            metavar="FIELD",
            help="The event field whose value says which of several models scores an event. Default: all of them do.",
            show_default=False,
        ),
    ] = None,
    routes: Annotated[
        list[str] | None,
        typer.Option(
            "--routes",
            metavar="VALUE=NAME,...",
            help="Which value leads to which model; *=NAME for every other event. Repeatable. Default: values are the "
            "models' names.",
            show_default=False,
        ),
    ] = None,
    carry_headers: Annotated[
        str | None,
        typer.Option(
            "--carry-headers",
            metavar="NAME,...",
            help="Headers that an event's predictions get too, e.g. traceparent,tracestate.",
            show_default=False,
        ),
    ] = None,
    when_failing: Annotated[
        str | None,
        typer.Option(
            "--when-failing",
            metavar="wait|dead-letter",
            help="A model that fails on every event, with no other version to take its place: events wait, or are its "
            "dead letters. Default: wait; of several models dead-letter, so that the others score on.",
            show_default=False,
        ),
    ] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Score what the topic holds now, then end.", show_default=False)
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            help="Score in N processes that share the partitions; killed ones are started again. Default: in this one.",
            show_default=False,
        ),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            "--weights",
            metavar="repacked|shared",
            help="Weights of large models: repacked for the processor, or one copy in memory for all processes of this "
            "host. Default: shared with several workers, else repacked.",
            show_default=False,
        ),
    ] = None,
    event_format: Annotated[
        str,
        typer.Option(
            "--event-format",
            metavar="auto|json|avro|single-object|confluent",
            help="What the events are; auto finds it for each.",
        ),
    ] = "auto",
    event_schema: Annotated[
        Path | None,
        typer.Option(
            "--event-schema",
            metavar="FILE",
            help="Avro schema (.avsc) of events that name none; others are read with it, by its names and defaults.",
            show_default=False,
        ),
    ] = None,
    schema_registry: SchemaRegistryUrl = None,
    max_memory: Annotated[
        str | None,
        typer.Option(
            "--max-memory",
            metavar="SIZE",
            help="What events and predictions under way may take beside the models, of each worker. Default: 512MiB.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Score a topic of events with the live versions of models; SIGTERM and Ctrl-C end it cleanly."""
    worker = Worker.here()
    if workers is not None and worker is None:
        Supervisor(workers, context.output, until_end=until_end).run()
        return
    if weights is None:
        weights = "repacked" if workers is None or workers == 1 else "shared"
    with _Signals() as signals, worker or nullcontext():
        from .carrying import header_names
        from .routing import parse_routes
        from .scorer import Scorer  # numpy, Polars and ONNX Runtime take half a second: the help page needs none

        scorer = Scorer(
            names or [],
            events,
            predictions,
            dead_letters=dead_letters,
            group=group,
            instance=instance if worker is None else worker.instance(instance),
            guarantee=guarantee,
            device=device,
            stores=store_allowed,
            trust_policy=trust_policy,
            until_end=until_end,
            max_stale_s=None if max_stale is None else seconds(max_stale, "--max-stale"),
            when_stale=when_stale,
            preserve=preserve,
            route=route,
            routes=parse_routes(routes or ()),
            carry_headers=() if carry_headers is None else header_names(carry_headers),
            when_failing=when_failing,
            weights=weights,
            event_format=event_format,
            event_schema=event_schema,
            schema_registry=schema_registry,
            max_memory_bytes=None if max_memory is None else parse_size(max_memory, "--max-memory"),
            connection=context.connection,
            report=_printer(context.output) if worker is None else worker.tell,
        )
        signals.stop_with(scorer.stop)
        if not signals.stopped:
            scorer.run()


class _Signals:
    """SIGTERM and Ctrl-C end the command cleanly, also while it still starts."""

    def __init__(self) -> None:
        self.stopped = False
        self._stop: Callable[[], None] = lambda: None
        self._before: dict[signal.Signals, Any] = {}

    def stop_with(self, stop: Callable[[], None]) -> None:
        """Calls `stop` at the first signal from now on."""
        self._stop = stop
        # Once more: Polars, imported meanwhile, puts itself before whoever handles SIGINT, and raises KeyboardInterrupt
        # from what it is asked at that moment.
        self._install()

    def __enter__(self) -> Self:
        self._before = self._install()
        return self

    def _install(self) -> dict[signal.Signals, Any]:
        return {number: signal.signal(number, self._handle) for number in (signal.SIGTERM, signal.SIGINT)}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - the signal module's signature
        self.stopped = True
        self._stop()


def _printer(output: Output) -> Callable[[Report], None]:
    def tell(report: Report) -> None:
        if output.json:
            output.line(as_json(report))
        if isinstance(report, Warned):
            output.warn(report.message)
        elif not output.json:
            output.say(as_text(report))

    return tell
