"""`dlq`: what went to the dead letters, and sending it back."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer
from rich.markup import escape

from modelcast.cli.interruption import interruptible
from modelcast.cli.options import CommandContext, connected
from modelcast.cli.output import printable, to_json
from modelcast.errors import UsageError
from modelcast.events.schemas import SchemaTopic
from modelcast.events.tail import ValueDecoder

from .dlq import NO_WORD, Replay, Replayed, StoredLetter, Stretch, letters
from .letter_text import format_of, moment, preview

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="Look at events that could not be scored, and send them back.",
)

# What is shown unless more is asked for: a screen.
_SHOWN = 20
_PREVIEW_CHARS = 60

Topic = Annotated[str, typer.Argument(metavar="TOPIC", help="The dead letters, such as PREDICTIONS.dead-letters.")]
Error = Annotated[
    str | None, typer.Option("--error", metavar="WORD", help="Only of this error: NullField, InvalidJson, …")
]


@app.command()
@connected
def show(
    context: CommandContext,
    topic: Topic,
    error: Error = None,
    partition: Annotated[int | None, typer.Option("--partition", metavar="N", min=0, help="Only of this one.")] = None,
    first: Annotated[
        int | None, typer.Option("--from", metavar="OFFSET", min=0, help="First offset, in each partition.")
    ] = None,
    end: Annotated[
        int | None, typer.Option("--to", metavar="OFFSET", min=0, help="One past the last offset, in each partition.")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", metavar="N", min=0, help="How many letters are listed: the last ones.")
    ] = _SHOWN,
    values: Annotated[bool, typer.Option("--values", help="Show values whole, decoded.")] = False,
) -> None:
    """Show what could not be scored: how often for which reason, and the last letters one by one."""
    if first is not None and end is not None and end <= first:
        raise UsageError(f"there is nothing from {first} to {end}", hint="--to is one past the last offset.")
    connection = context.connection
    survey = _Survey(limit)
    with connection.open_log() as log, closing(SchemaTopic(log, connection.topics)) as schemas:
        for letter in letters(log, topic, Stretch(error, partition, first, end)):
            survey.add(letter)
        others: Counter[str] = Counter()
        if error is not None and not survey.count:
            others.update(letter.word for letter in letters(log, topic, Stretch(None, partition, first, end)))
        decoder = ValueDecoder(schemas)
        listed = [_as_dict(letter, decoder, values=values) for letter in survey.newest()]
    if context.output.json:
        errors = [entry.describe() for entry in survey.ordered()]
        context.output.line({"topic": topic, "letters": survey.count, "errors": errors, "listed": listed})
        return
    if not survey.count:
        of = "" if error is None else f" of [bold]{escape(printable(error))}[/bold]"
        where = "" if partition is None and first is None and end is None else ", or none that were asked for"
        context.output.say(f"no dead letters{of} on [bold]{escape(topic)}[/bold]{where}{_there_are(others)}")
        return
    _print(context, survey, listed, values=values)
    if not any(letter.source for letter in survey.newest()) and set(survey.kinds) == {NO_WORD}:
        context.output.warn(f"nothing on {topic} says what was wrong with it: are these dead letters?")


@app.command()
@connected
def replay(
    context: CommandContext,
    topic: Topic,
    error: Error = None,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="TOPIC", help="Where events go. Default: the topic each came from.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only tell what would be sent back.")] = False,
) -> None:
    """Send events back to where they came from, each once, to be scored again. Ctrl-C leaves nothing half done."""
    connection = context.connection
    with connection.open_log() as log:
        task = Replay(log, connection.topics, topic, word=error, to=to)
        try:
            with interruptible():
                done = task.run(dry=dry_run)
        except KeyboardInterrupt:
            sent = sum(task.replayed.sent.values())
            context.output.say(f"interrupted: {_counted(sent, 'event')} sent back; the same command sends the others")
            raise
    _tell(context, topic, done, dry=dry_run)


@dataclass
class _Kind:
    """The letters of one error."""

    word: str
    first: StoredLetter
    last: StoredLetter
    count: int = 0
    models: set[str] = field(default_factory=set)

    def add(self, letter: StoredLetter) -> None:
        self.count += 1
        if letter.timestamp_ms < self.first.timestamp_ms:
            self.first = letter
        if letter.timestamp_ms >= self.last.timestamp_ms:
            self.last = letter
        self.models.update(letter.models)

    def describe(self) -> dict[str, Any]:
        ends = {
            name: {"partition": letter.partition, "offset": letter.offset, "timestamp": letter.timestamp_ms}
            for name, letter in (("first", self.first), ("last", self.last))
        }
        return {"error": self.word, "letters": self.count, **ends, "models": sorted(self.models)}


@dataclass
class _Survey:
    """What was counted, and the last `limit` letters."""

    limit: int
    kinds: dict[str, _Kind] = field(default_factory=dict)
    count: int = 0
    last: dict[int, deque[StoredLetter]] = field(default_factory=dict)

    def add(self, letter: StoredLetter) -> None:
        self.count += 1
        self.kinds.setdefault(letter.word, _Kind(letter.word, letter, letter)).add(letter)
        self.last.setdefault(letter.partition, deque(maxlen=self.limit)).append(letter)

    def newest(self) -> list[StoredLetter]:
        """Of all partitions, oldest first."""
        found = [letter for queue in self.last.values() for letter in queue]
        found.sort(key=lambda letter: (letter.timestamp_ms, letter.partition, letter.offset))
        return found[len(found) - min(self.limit, len(found)) :]

    def ordered(self) -> list[_Kind]:
        """The most frequent first."""
        return sorted(self.kinds.values(), key=lambda kind: (-kind.count, kind.word))


def _as_dict(letter: StoredLetter, decoder: ValueDecoder, *, values: bool) -> dict[str, Any]:
    source = letter.source
    described: dict[str, Any] = {
        "partition": letter.partition,
        "offset": letter.offset,
        "timestamp": letter.timestamp_ms,
        "error": letter.word,
        "message": letter.message,
        "source": None
        if source is None
        else {
            "topic": source.topic,
            "partition": source.partition,
            "offset": source.offset,
            "timestamp": source.timestamp_ms,
        },
        "models": list(letter.models),
        "key": None if letter.key is None else preview(letter.key, _PREVIEW_CHARS),
        "format": format_of(letter.value),
        "bytes": None if letter.value is None else len(letter.value),
        "preview": preview(letter.value, _PREVIEW_CHARS),
        "cut": list(letter.cut),
        "replays": letter.replays,
    }
    if values:
        described["value"] = decoder.value(letter.value)
    return described


def _print(context: CommandContext, survey: _Survey, listed: list[dict[str, Any]], *, values: bool) -> None:
    output = context.output
    output.table(
        ("ERROR", "LETTERS", "FIRST", "LAST", "MODELS"),
        (
            (
                kind.word,
                f"{kind.count:,}",
                f"{moment(kind.first.timestamp_ms)} {kind.first.place}",
                f"{moment(kind.last.timestamp_ms)} {kind.last.place}",
                ", ".join(sorted(kind.models)),
            )
            for kind in survey.ordered()
        ),
    )
    if not listed:
        return
    output.table(
        ("LETTER", "ERROR", "EVENT", "KEY", "FORMAT", "VALUE", "MESSAGE"),
        (
            (
                f"{entry['partition']}:{entry['offset']}",
                entry["error"],
                _event(entry["source"]),
                "-" if entry["key"] is None else entry["key"],
                entry["format"],
                to_json(entry["value"]) if values else entry["preview"],
                entry["message"] + _marks(entry),
            )
            for entry in listed
        ),
        title=f"\n{len(listed)} of {_counted(survey.count, 'letter')}",
    )


def _event(source: dict[str, Any] | None) -> str:
    return "?" if source is None else f"{source['topic']} {source['partition']}:{source['offset']}"


def _marks(entry: dict[str, Any]) -> str:
    cut = f" [cut: {', '.join(entry['cut'])}]" if entry["cut"] else ""
    return cut + (f" [sent back {_times(entry['replays'])} before]" if entry["replays"] else "")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _there_are(others: Mapping[str, int]) -> str:
    """What there is in the place of what was asked for (rich markup)."""
    listed = ", ".join(f"{escape(printable(word))} ({count:,})" for word, count in sorted(others.items()))
    return f"; there are letters of {listed}" if listed else ""


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _tell(context: CommandContext, topic: str, done: Replayed, *, dry: bool) -> None:
    output = context.output
    sent = sum(done.sent.values())
    if done.new and sent:
        output.say("no earlier replay of this topic is known: no letter counts as sent back")
    for place, reason in done.named:
        output.warn(f"letter {place} is not sent back: {reason}")
    if done.passed_over > len(done.named):
        output.warn(f"{done.passed_over - len(done.named):,} more letters are not sent back")
    if done.again:
        output.warn(
            f"{done.again:,} of them came back before (one was sent back {_times(done.most_replays)} already): "
            "what was wrong with them may not be mended"
        )
    where = ", ".join(f"{escape(name)} ({count:,})" for name, count in sorted(done.sent.items()))
    verb = "would be sent" if dry else "sent"
    output.result(
        {
            "topic": topic,
            "sent": sent,
            "to": done.sent,
            "passed_over": done.passed_over,
            "reasons": dict(done.named),
            "again": done.again,
            "dry_run": dry,
        },
        f"{_counted(sent, 'event')} {verb} back to {where}"
        if sent
        else f"Nothing is left to be sent back{_there_are(done.others)}",
    )
