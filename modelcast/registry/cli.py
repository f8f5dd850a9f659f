"""`models`, `show`, `history`: what a repository holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from modelcast.cli.options import CommandContext, connected
from modelcast.cli.output import printable
from modelcast.names import ModelRef, check_model_name
from modelcast.records import Manifest, Release, Withdrawn
from modelcast.registry.describe import describe
from modelcast.registry.image import ModelEntry, RegistryImage, VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S, check_topics
from modelcast.registry.shown import look_up
from modelcast.trust.options import PolicyOption
from modelcast.trust.signing import reading_admission, writing_admission

ModelArgument = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]


@contextmanager
def current_image(
    context: CommandContext, trust_policy: Path | None, *, model: str | None = None
) -> Iterator[RegistryImage]:
    """The registry as it is now, for whoever has this policy; of one model where it is named."""
    wanted = None if model is None else {model}.__contains__
    admission = reading_admission(trust_policy)
    connection = context.connection
    with connection.open_log() as log:
        check_topics(log, connection.topics)
        reader = RegistryReader(log, connection.topics, admission=admission, wanted=wanted)
        try:
            yield reader.catch_up(CATCH_UP_TIMEOUT_S)
        finally:
            reader.close()


@connected
def models(context: CommandContext, trust_policy: PolicyOption = None) -> None:
    """List the models, their newest and their live version; under a trust policy, what it admits."""
    with current_image(context, trust_policy) as image:
        entries = [image.models[name] for name in sorted(image.models)]
    if context.output.json:
        context.output.result({"models": [_summary(entry) for entry in entries]})
        return
    if not entries:
        context.output.say("No models yet. Publish one with: modelcast publish NAME SOURCE --examples FILE")
        return
    context.output.table(
        ("MODEL", "VERSIONS", "LATEST", "LIVE", "LIVE SINCE"),
        (
            (
                entry.name,
                str(sum(isinstance(record, VersionRecord) for record in entry.versions.values())),
                str(entry.latest_version),
                str(entry.champion.version) if entry.champion else "-",
                _time(entry.champion.created_ms) if entry.champion else "",
            )
            for entry in entries
        ),
    )


@connected
def show(
    context: CommandContext,
    name: Annotated[str, typer.Argument(metavar="NAME[@VERSION]")],
    trust_policy: PolicyOption = None,
) -> None:
    """Show one version: the live one, or the one named; the newest if none is live.

    Says who signed it and, under a trust policy, whether consumers with this policy accept it, and why.
    """
    ref = ModelRef.parse(name)
    with context.connection.open_log() as log:
        shown = look_up(log, context.connection.topics, ref, writing_admission(trust_policy))
    manifest, live = shown.manifest, shown.is_live
    if context.output.json:
        context.output.result({**describe(manifest), "live": live, **shown.trust_as_dict()})
        return
    out = context.output.stdout
    out.print(f"[bold]{escape(str(manifest.id))}[/bold]  {'[green]live[/green]' if live else 'not live'}")
    for label, text in _facts(manifest):
        out.print(f"  [dim]{label:<10}[/dim] {escape(printable(text))}")
    out.print("  [dim]inputs[/dim]")
    for binding in manifest.signature.inputs:
        fields = ", ".join(binding.fields)
        out.print(f"    {escape(printable(f'{binding.name}: {binding.dtype}{_shape(binding.shape)} ← {fields}'))}")
    for rule in manifest.signature.nulls:
        out.print(f"    {escape(printable(f'null in {rule.field} counts as {rule.value!r}'))}")
    out.print("  [dim]outputs[/dim]")
    for output in manifest.signature.outputs:
        out.print(f"    {escape(f'{output.field}: {output.dtype}{_shape(output.shape)}')}")
    for label, text in shown.trust_in_words():
        out.print(f"  [dim]{label:<10}[/dim] {escape(printable(text))}")


@connected
def history(context: CommandContext, name: ModelArgument, trust_policy: PolicyOption = None) -> None:
    """Show every version and release of a model, newest first; under a trust policy, what it admits."""
    check_model_name(name)
    with current_image(context, trust_policy, model=name) as image:
        entry = image.model(name)
    for record in image.untrusted(name):
        context.output.warn(f"left out: {record}")
    if context.output.json:
        context.output.result(
            {
                "model": entry.name,
                "versions": [_version(entry.versions[number]) for number in sorted(entry.versions, reverse=True)],
                "releases": [_release(release) for release in reversed(entry.releases)],
            }
        )
        return
    context.output.table(
        ("VERSION", "PUBLISHED", "BY", "METRICS", "MESSAGE"),
        (_version_row(entry, number) for number in sorted(entry.versions, reverse=True)),
    )
    context.output.stdout.print()
    context.output.table(
        ("RELEASE", "VERSION", "WHEN", "BY", "MESSAGE"),
        (
            (
                str(release.sequence),
                f"{release.version}{' (rollback)' if release.restores else ''}",
                _time(release.created_ms),
                release.created_by,
                release.message,
            )
            for release in reversed(entry.releases)
        ),
    )


def _facts(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "published", f"{_time(manifest.created_ms)} by {manifest.created_by}"
    if manifest.message:
        yield "message", manifest.message
    yield "digest", manifest.digest
    yield "size", f"{manifest.size_bytes:,} bytes in {len(manifest.files)} files"
    if manifest.store is not None:
        yield "store", manifest.store
    if manifest.metrics:
        yield "metrics", _metrics(manifest)
    for gate in manifest.gates:
        yield "required", gate
    if manifest.frameworks:
        yield "made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.frameworks.items()))
    if (probe := manifest.probe) is not None:
        took = f"load {probe.load_ms:.0f} ms, examples {probe.run_ms:.0f} ms, peak {probe.peak_bytes / 1e6:.0f} MB"
        yield "took", f"{took} when published"


def _summary(entry: ModelEntry) -> dict[str, Any]:
    return {
        "model": entry.name,
        "versions": sum(isinstance(record, VersionRecord) for record in entry.versions.values()),
        "latest": entry.latest_version,
        "live": entry.champion.version if entry.champion else None,
        "live_since_ms": entry.champion.created_ms if entry.champion else None,
    }


def _version(record: VersionRecord | Withdrawn) -> dict[str, Any]:
    if isinstance(record, Withdrawn):
        return {
            "model": record.model,
            "version": record.version,
            "withdrawn": True,
            "created_ms": record.created_ms,
            "created_by": record.created_by,
            "message": record.message,
        }
    return describe(record.manifest)


def _version_row(entry: ModelEntry, number: int) -> tuple[str, ...]:
    record = entry.versions[number]
    if isinstance(record, Withdrawn):
        reason = f": {record.message}" if record.message else ""
        # Its own record tells nothing of the publication any more.
        return str(number), "", "", "", f"withdrawn{reason} (by {record.created_by}, {_time(record.created_ms)})"
    live = entry.champion is not None and entry.champion.version == number
    manifest = record.manifest
    return (
        f"{number} (live)" if live else str(number),
        _time(manifest.created_ms),
        manifest.created_by,
        _metrics(manifest),
        manifest.message,
    )


def _release(release: Release) -> dict[str, Any]:
    return {
        "sequence": release.sequence,
        "version": release.version,
        "created_ms": release.created_ms,
        "created_by": release.created_by,
        "message": release.message,
        "restores": release.restores,
    }


def _metrics(manifest: Manifest) -> str:
    return " ".join(f"{name}={value:g}" for name, value in sorted(manifest.metrics.items()))


def _shape(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("N" if size is None else str(size) for size in shape) + "]"


def _time(epoch_ms: int) -> str:
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, tz=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):  # a record may hold any number
        return f"{epoch_ms} ms"
