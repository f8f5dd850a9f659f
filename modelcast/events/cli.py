"""`send` and `tail`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, closing, nullcontext
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modelcast import avro
from modelcast.avro import Schema
from modelcast.cli.interruption import interruptible
from modelcast.cli.options import CommandContext, SchemaRegistryUrl, connected
from modelcast.cli.output import to_json
from modelcast.config import Connection
from modelcast.errors import SourceError, UsageError
from modelcast.events.encode import record_fields, text_fields
from modelcast.events.infer import infer_schema
from modelcast.events.send import DEFAULT_PARTITIONS, EventSender, Sent, send_table
from modelcast.events.tail import Event
from modelcast.events.tail import tail as tail_events
from modelcast.schema_registry import SchemaRegistry
from modelcast.tables import Table, open_table

# Characters a terminal takes as commands; JSON escapes those below U+0020 only.
_TERMINAL_COMMANDS = {code: f"\\u{code:04x}" for code in range(0x7F, 0xA0)}


class Format(StrEnum):
    """How `send` writes events."""

    AVRO = "avro"
    JSON = "json"


@connected
def send(
    context: CommandContext,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="Where to; created if it is missing.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A .csv, .jsonl or .parquet file.")],
    schema: Annotated[
        Path | None, typer.Option("--schema", metavar="FILE.avsc", help="Avro schema. Default: inferred from FILE.")
    ] = None,
    format: Annotated[Format, typer.Option("--format", help="How events are written.")] = Format.AVRO,  # noqa: A002
    key: Annotated[str | None, typer.Option("--key", metavar="FIELD", help="Field that becomes the key.")] = None,
    timestamp: Annotated[
        str | None,
        typer.Option(
            "--timestamp", metavar="FIELD", help="Field that becomes the timestamp: epoch milliseconds or ISO 8601."
        ),
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", metavar="N", help="Events a second. Default: full speed.")] = (
        None
    ),
    partitions: Annotated[
        int, typer.Option("--partitions", metavar="N", min=1, help="Partitions of the topic if it is created.")
    ] = DEFAULT_PARTITIONS,
) -> None:
    """Send the rows of a file as events."""
    if rate is not None and not rate > 0:
        raise UsageError(f"--rate {rate:g} is not a rate", hint="Give a number of events a second above 0.")
    if schema is not None and format is Format.JSON:
        raise UsageError("--schema describes Avro, and --format says json", hint="Leave one of them out.")
    given = _load_schema(schema) if schema is not None else None
    with open_table(file, texts=text_fields(given) if given else ()) as table:
        if given is not None:
            _say_left_out(context, table, given, {key, timestamp})
        elif format is Format.AVRO:
            given = infer_schema(topic, table.schema, table.nullable)
        connection = context.connection
        started = time.monotonic()
        with (
            connection.open_log() as log,
            EventSender(
                log,
                connection.topics,
                topic,
                schema=given,
                key=key,
                timestamp=timestamp,
                partitions=partitions,
                say=lambda text: context.output.say(escape(text)),
                warn=context.output.warn,
            ) as sender,
            _progress(context) as progress,
        ):
            task = progress.add_task(f"sending to {topic}", total=table.rows)
            try:
                with interruptible():
                    send_table(
                        sender, table, rate_per_s=rate, on_progress=lambda sent: progress.update(task, completed=sent)
                    )
            except KeyboardInterrupt:
                sender.flush()
                context.output.say(f"interrupted: of the rows the first {sender.events:,} were sent to {escape(topic)}")
                raise
        digest = given.digest if given is not None else None
        sent = Sent(topic, sender.events, sender.bytes, digest, time.monotonic() - started)
    context.output.result(
        sent.describe(),
        f"sent {sent.events:,} events ({sent.bytes:,} bytes) to [bold]{escape(topic)}[/bold] in {sent.seconds:.1f} s",
    )


@connected
def tail(
    context: CommandContext,
    topic: Annotated[str, typer.Argument(metavar="TOPIC", help="What to read.")],
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Start with the oldest record, not the next new one.")
    ] = False,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop at the end the topic has now, instead of following it.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", min=1, help="Stop after so many records.")
    ] = None,
    schema_registry: SchemaRegistryUrl = None,
) -> None:
    """Show the committed records of a topic, decoded."""
    if until_end and not from_beginning:
        context.output.warn("from the end until the end there is nothing; --from-beginning shows what is there")
    connection = context.connection
    with connection.open_log() as log, _registry(connection, schema_registry) as registry:
        events = tail_events(
            log,
            connection.topics,
            topic,
            from_beginning=from_beginning,
            until_end=until_end,
            limit=limit,
            registry=registry,
            on_wait=lambda text: context.output.say(escape(text)),
        )
        try:
            with interruptible(), closing(events):
                _print(context, events)
        except KeyboardInterrupt:
            return  # how following a topic ends
        except BrokenPipeError:
            # Whoever read (`head`) has enough; the interpreter's own flush at exit must not complain about it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _registry(connection: Connection, url: str | None) -> AbstractContextManager[SchemaRegistry | None]:
    settings = connection.registry_settings(url)
    if not settings:
        return nullcontext()
    return SchemaRegistry(settings)


def _print(context: CommandContext, events: Iterable[Event]) -> None:
    for event in events:
        if context.output.json:
            context.output.line(event.describe())
        else:
            sys.stdout.write(_human(event) + "\n")
            sys.stdout.flush()


def _human(event: Event) -> str:
    when = "-" if event.timestamp_ms is None else _moment(event.timestamp_ms)
    key = "-" if event.key is None else to_json(event.key)
    headers = f"  {to_json(event.headers)}" if event.headers else ""
    line = f"{when}  {event.partition}:{event.offset}  {key}  {to_json(event.value)}{headers}"
    return line.translate(_TERMINAL_COMMANDS)


def _moment(epoch_ms: int) -> str:
    try:
        return datetime.fromtimestamp(epoch_ms / 1000, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    except (ValueError, OverflowError, OSError):  # beyond the year 9999
        return str(epoch_ms)


def _load_schema(path: Path) -> Schema:
    try:
        schema = avro.load(path)
        record_fields(schema)
    except UsageError as error:
        if str(path) in error.message:
            raise
        raise SourceError(f"{path}: {error.message}", hint=error.hint) from error
    return schema


def _say_left_out(context: CommandContext, table: Table, schema: Schema, used: set[str | None]) -> None:
    fields = {field["name"] for field in record_fields(schema)}
    left_out = [column for column in table.schema if column not in fields and column not in used]
    if left_out:
        context.output.say(escape(f"columns that the schema has no field for are left out: {', '.join(left_out)}"))


def _progress(context: CommandContext) -> Progress:
    console = context.output.stderr
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
