"""`score`: a stream scored from the command line."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType, TracebackType
from typing import Annotated, Any, Self

import typer

from modelcast.cli.durations import seconds
from modelcast.cli.options import CommandContext, connected
from modelcast.cli.output import Output
from modelcast.trust.options import PolicyOption

from .report_text import as_json, as_text
from .reports import Report, Warned
from .worker_child import Worker
from .workers import Supervisor


@connected
def score(
    context: CommandContext,
    name: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="The model: its live version, or the one named.")
    ],
    events: Annotated[str, typer.Option("--events", metavar="TOPIC", help="The topic of events; it must exist.")],
    predictions: Annotated[str, typer.Option("--predictions", metavar="TOPIC", help="Where predictions go.")],
    dead_letters: Annotated[
        str | None,
        typer.Option(
            "--dead-letters",
            metavar="TOPIC",
            help="Where events go that can't be scored. Default: PREDICTIONS.dead-letters.",
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
) -> None:
    """Score a topic of events with the live version of a model; SIGTERM and Ctrl-C end it cleanly."""
    worker = Worker.here()
    if workers is not None and worker is None:
        Supervisor(workers, context.output, until_end=until_end).run()
        return
    if weights is None:
        weights = "repacked" if workers is None or workers == 1 else "shared"
    with _Signals() as signals, worker or nullcontext():
        from .scorer import Scorer  # numpy, Polars and ONNX Runtime take half a second: the help page needs none

        scorer = Scorer(
            name,
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
            weights=weights,
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
