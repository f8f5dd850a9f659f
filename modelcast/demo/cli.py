"""`modelcast demo`: a year of flights in about a minute."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.markup import escape

from modelcast.cli.options import CommandContext, connected
from modelcast.config import BOOTSTRAP, Connection
from modelcast.demo import EXTRA_HINT
from modelcast.demo.interrupts import Interrupts, listening
from modelcast.errors import ExitCode, MissingExtraError, ModelcastError, UsageError

# What `modelcast[demo]` brings besides the broker and the data, which say themselves when they are missing.
_PACKAGES: Final = ("onnxruntime", "sklearn", "skl2onnx", "pandas", "matplotlib")
# What a shell says of a process that a signal ended.
_SIGNAL_STATUS: Final = 128


@connected
def demo(
    context: CommandContext,
    report: Annotated[Path, typer.Option("--report", metavar="FILE", help="Where the HTML report goes.")] = Path(
        "demo-report.html"
    ),
    months: Annotated[int, typer.Option("--months", metavar="N", help="Months of the year to play, 3 to 12.")] = 12,
) -> None:
    """Score a year of flights while the model is retrained each month and swapped live.

    Plays on a Kafka of its own, or with -b on yours under a prefix of its own; only the report is left behind.
    """
    _check_packages()
    _check_report(report)
    with listening() as interrupts:
        try:
            failures = _perform(context, report, months, interrupts)
        except KeyboardInterrupt:
            context.output.say("\nInterrupted; nothing is left behind.")
            status = _SIGNAL_STATUS + interrupts.number if interrupts.number else ExitCode.INTERRUPTED
            raise typer.Exit(int(status)) from None
    if failures:
        raise ModelcastError(
            f"the demonstration did not hold what it promises: {'; '.join(failures)}", hint=f"See {report}"
        )


def _perform(context: CommandContext, report: Path, months: int, interrupts: Interrupts) -> tuple[str, ...]:
    from modelcast.demo.report import write_report  # brings Polars and more, which the help page need not wait for
    from modelcast.demo.show import show
    from modelcast.demo.view import print_result, watching
    from modelcast.demo.year import Script

    output = context.output
    with watching(output.stderr) as board:
        result = show(_given(context), Script(months), board, interrupts)
        board.doing("drawing the report")
        with interrupts.at_once():
            write_report(report, result, board.notes)
    if output.json:
        output.line(result.describe())
    else:
        print_result(output.stdout, result)
    output.say(f"The report: [bold]{escape(str(report))}[/bold]")
    return result.failures()


def _given(context: CommandContext) -> Connection | None:
    """The user's broker, if one was named; the dev broker is left alone."""
    named = context.bootstrap_servers or context.properties_file
    if named or any(text.partition("=")[0].strip() == BOOTSTRAP for text in context.properties):
        return context.connection
    return None


def _check_packages() -> None:
    missing = [name for name in _PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingExtraError(f"the demonstration needs {', '.join(missing)}, not installed here", hint=EXTRA_HINT)


def _check_report(path: Path) -> None:
    """Refused now rather than after the play."""
    if path.is_dir():
        raise UsageError(f"--report {path} is a folder", hint="Name a file in it.")
    if not path.parent.is_dir():
        raise UsageError(f"--report {path}: there is no folder {path.parent}", hint="Make it, or name another file.")
