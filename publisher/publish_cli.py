"""`publish`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from modelcast.cli.options import CommandContext, connected
from modelcast.errors import UsageError
from modelcast.trust.options import PolicyOption, SignOption

from .cli import as_dict, say_waiting
from .progress import PublishProgress
from .published import Published
from .publisher import ModelPublisher


@connected
def publish(
    context: CommandContext,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model.")],
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="An .onnx file; a .joblib, .pkl or .pt file of a trained model; a folder MLflow wrote; "
            "mlflow:models:/NAME@ALIAS, mlflow:runs:/RUN/PATH; hf:OWNER/REPO@REVISION[:PATH].",
        ),
    ],
    examples: Annotated[
        Path | None,
        typer.Option(help="Rows by field name (JSONL, CSV, Parquet) or arrays by input name (.npz). Required."),
    ] = None,
    fields: Annotated[
        str | None, typer.Option(metavar="a,b,c", help="Event fields, in order, of a model's single matrix input.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(metavar="OUTPUT=NAME", help="Call an output (or input) of the model otherwise. Repeatable."),
    ] = None,
    null: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FIELD=VALUE",
            help="What a field counts as where an event has null or lacks it, 'amount=nan', 'country='; without, such "
            "an event is a dead letter. Float fields that miss values in the examples count as nan. Repeatable.",
        ),
    ] = None,
    metric: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="A measured value. Repeatable.")] = None,
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC>=LIMIT",
            help="Publish only if this holds: 'auc>=0.8', 'auc>=champion-0.01', 'load_ms<500'. Repeatable.",
        ),
    ] = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(metavar="DATA", help="Rows with labels (JSONL, CSV, Parquet) to measure the model on."),
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of --evaluate's labels.")] = None,
    score_output: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The output to be measured, if it is not the only one of its kind."),
    ] = None,
    message: Annotated[str, typer.Option("--message", help="Words for the history.")] = "",
    release: Annotated[bool, typer.Option("--release", help="Make this version live.")] = False,
    resend: Annotated[
        bool, typer.Option("--resend", help="Send unchanged files too: mends chunks damaged on the topic.")
    ] = False,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Put the files there instead of on the log: s3://BUCKET/PREFIX, file:///FOLDER. Readers have to allow "
            "it (MODELCAST_STORES, score --store-allowed). Credentials for s3 come from the environment, as for AWS's "
            "own tools.",
        ),
    ] = None,
    trust_pickle: Annotated[
        bool,
        typer.Option(
            "--trust-pickle",
            help="Also unpickle a .pt file, or what a reference or folder leads to: runs code of whoever wrote it.",
        ),
    ] = False,
    sign: SignOption = None,
    trust_policy: PolicyOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Do everything but the writing, and say what would be written.")
    ] = False,
) -> None:
    """Check, try and publish a model as its next version.

    The model is tried on the examples in a limited child process first; if anything is wrong, or a requirement is not
    met, nothing is published. A .joblib or .pkl file runs its code as it is read: name only what you trust.
    """
    if examples is None:
        raise UsageError(
            "no examples were given",
            hint="Name a file of rows or arrays the model can be tried on: --examples FILE (JSONL, CSV, Parquet, .npz)",
        )
    output = context.output
    publisher = ModelPublisher.connect(context.connection, signing_keys=sign, trust_policy=trust_policy)
    with publisher, PublishProgress(output.stderr) as shown:
        published = publisher.publish(
            name,
            source,
            examples=examples,
            fields=None if fields is None else [field.strip() for field in fields.split(",")],
            rename=_renames(rename or ()),
            nulls=_nulls(null or ()),
            metrics=dict(_metric(text) for text in metric or ()),
            require=require or (),
            evaluate=evaluate,
            label=label,
            score_output=score_output,
            message=message,
            release=release,
            resend=resend,
            store=store,
            trust_pickle=trust_pickle,
            dry_run=dry_run,
            on_step=shown.step,
            on_progress=shown.moved,
        )
        verdict = publisher.verdict(name)
    output.result({**published.as_dict(), **as_dict(verdict)}, _text(published))
    if not dry_run:
        say_waiting(output, "The version", str(published.manifest.id), verdict)
        if published.release is not None:
            say_waiting(output, "The release", name, verdict)
    if published.release is None and not dry_run:
        command = f"modelcast release {published.manifest.model} {published.manifest.version}"
        output.say(f"Nothing goes live until it is released: [bold]{command}[/bold]")


def _text(published: Published) -> str:
    name = f"[bold]{escape(str(published.manifest.id))}[/bold]"
    if published.dry_run:
        live = " and released" if published.release else ""
        lines = [f"Would be published as {name}{live}; nothing was written"]
        sent = f"at most {published.bytes_sent:,} of {published.bytes_total:,} bytes would be sent"
    else:
        lines = [f"Published {name}{', [green]released[/green]' if published.release else ''}"]
        sent = f"{published.bytes_sent:,} of {published.bytes_total:,} bytes sent"
    where = f" to {escape(published.manifest.store)}" if published.manifest.store else ""
    lines += [published.manifest.digest, sent + where]
    if published.metrics:
        lines.append(escape(" ".join(f"{name}={value:g}" for name, value in sorted(published.metrics.items()))))
    lines += [f"required: {escape(gate)}" for gate in published.gates]
    return "\n  ".join(lines)


def _renames(texts: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for text in texts:
        old, _, new = text.rpartition("=")
        if not old or not new:
            raise UsageError(f"--rename {text!r} is not OUTPUT=NAME", hint="Write e.g. --rename output_0=score")
        if old in names:
            raise UsageError(f"{old!r} is renamed twice: to {names[old]!r} and {new!r}", hint="Leave one out.")
        names[old] = new
    return names


def _nulls(texts: Sequence[str]) -> dict[str, object]:
    values: dict[str, object] = {}
    for text in texts:
        field, equals, value = text.partition("=")
        if not equals or not field:
            raise UsageError(f"--null {text!r} is not FIELD=VALUE", hint="Write e.g. --null amount=nan")
        if field in values:
            raise UsageError(f"--null names {field!r} twice", hint="Leave one out.")
        values[field] = value
    return values


def _metric(text: str) -> tuple[str, float]:
    name, equals, value = text.partition("=")
    try:
        if not equals or not name.strip():
            raise ValueError
        return name.strip(), float(value)
    except ValueError:
        raise UsageError(f"--metric {text!r} is not KEY=NUMBER", hint="Write e.g. --metric auc=0.91") from None
