"""What a dead-letter topic holds, and sending it back.

- A letter is read from its headers; one that lacks some is still shown. Its *word* is the error before the first colon:
  Kafka Streams writes the class, a colon and the message.
- Letters go back to the partition their event came from, with its key, value, headers and time, each once: a letter and
  the mark that it was sent back are one transaction, however the program ends.
- The marks are the offsets of a group of the dead-letter topic's name that nobody joins. A replay of one word leaves
  the others unsent, so beside the offset before which all was sent there is one for each word.
- The end is the end the topic has at the start: letters of events that fail again come after it.
- A letter whose event was cut can't be sent back, nor one that does not say where from: they are passed over, and told.
  Where none says it, the topic is taken for the wrong one, and nothing is passed over: `--to` can still send them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from modelcast.errors import TopicNotFoundError, UsageError
from modelcast.group import GroupLog, Progress, TransactionalBatchProducer
from modelcast.json_data import read_json
from modelcast.log import Log, LogRecord, TopicDescription
from modelcast.scan import scan
from modelcast.topics import Topics

from .dead_letters import (
    CUT_BYTES,
    ERROR,
    MESSAGE,
    MODEL,
    OFFSET,
    PARTITION,
    PARTS,
    REPLAYS,
    TIMESTAMP,
    TOPIC,
    VERSION,
    Headers,
    event_headers,
    replays_of,
)

# An open transaction of a scorer that died ends after its timeout and the broker's sweep; a reader waits behind it.
READ_TIMEOUT_S = 75.0
# One transaction: small enough to be done again after a kill, large enough that commits do not matter.
BATCH_LETTERS = 1_000
BATCH_BYTES = 16 << 20
TRANSACTION_TIMEOUT_MS = 60_000
# Kafka's default offset.metadata.max.bytes.
NOTE_MAX_BYTES = 4_096
# An event sent back must stay long enough to be scored: where it would be deleted sooner, its time is the replay's.
KEPT_MS = 3_600_000
# A word is shown, compared and noted; what is longer is cut.
_WORD_CHARS = 200
# The word of a letter that has none.
NO_WORD = "?"
# Letters passed over that are named one by one; the others are counted.
_NAMED_MAX = 20
_INT64_DIGITS = 19


@dataclass(frozen=True, slots=True)
class Source:
    """Where an event came from; `timestamp_ms` is its time, None if it had none."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int | None


@dataclass(frozen=True, slots=True)
class StoredLetter:
    """One dead letter as it stands on its topic.

    Attributes:
        timestamp_ms: When it was written, epoch milliseconds.
        models: The versions that could not score it, `NAME@VERSION`.
        source: Where its event came from; None where the headers don't say.
        headers: The event's own.
        replays: How often the event was sent back before.
        cut: Which of the event's parts are not whole: `value`, `key`, `headers`.
    """

    partition: int
    offset: int
    timestamp_ms: int
    error: str
    message: str
    source: Source | None
    models: tuple[str, ...]
    key: bytes | None
    value: bytes | None
    headers: Headers
    replays: int
    cut: tuple[str, ...]

    @classmethod
    def of(cls, record: LogRecord) -> StoredLetter:
        """Reads a record; nothing it may hold is an error."""
        told = {name: value for name, value in record.headers if value is not None}
        return cls(
            record.partition,
            record.offset,
            record.timestamp_ms,
            error=_text(told.get(ERROR, b"")),
            message=_text(told.get(MESSAGE, b"")),
            source=_source(told),
            models=_models(_text(told.get(MODEL, b"")), _text(told.get(VERSION, b""))),
            key=record.key,
            value=record.value,
            headers=event_headers(record.headers),
            replays=replays_of(record.headers),
            cut=tuple(part for part in PARTS if CUT_BYTES.format(part=part) in told),
        )

    @property
    def word(self) -> str:
        """What is counted and asked for: the error's class."""
        return self.error.partition(":")[0].strip()[:_WORD_CHARS] or NO_WORD

    @property
    def place(self) -> str:
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Stretch:
    """Which letters are meant.

    Attributes:
        word: Of this error only.
        partition: Of this partition only.
        first: From this offset on, in each partition.
        end: Before this offset, in each partition.
    """

    word: str | None = None
    partition: int | None = None
    first: int | None = None
    end: int | None = None


def letters(log: Log, topic: str, stretch: Stretch) -> Iterator[StoredLetter]:
    """The committed letters of a stretch, in offset order within a partition.

    Raises:
        TopicNotFoundError: There is no such topic, or partition.
        BrokerError: The topic could not be read to its end.
    """
    ends = dict(_ends(log, topic))
    begins = log.begin_offsets(topic)
    if stretch.partition is not None and stretch.partition not in begins:
        raise TopicNotFoundError(
            f"topic {topic!r} has no partition {stretch.partition}", hint=f"It has 0 to {len(begins) - 1}."
        )
    chosen = begins if stretch.partition is None else {stretch.partition: begins[stretch.partition]}
    if stretch.end is not None:
        ends = {number: min(end, stretch.end) for number, end in ends.items()}
    starts = {number: max(begin, stretch.first or 0) for number, begin in chosen.items()}
    for record in scan(log, topic, starts, ends, timeout_s=READ_TIMEOUT_S):
        letter = StoredLetter.of(record)
        if stretch.word is None or letter.word == stretch.word:
            yield letter


def _ends(log: Log, topic: str) -> Mapping[int, int]:
    try:
        return log.end_offsets(topic, committed=False)
    except TopicNotFoundError as error:
        raise TopicNotFoundError(
            error.message, hint="A scorer's dead letters are on PREDICTIONS.dead-letters, unless it was told otherwise."
        ) from error


@dataclass(frozen=True, slots=True)
class Sent:
    """Which letters of one partition were sent back: all before `before`, and of each word those before its own offset.

    As it is kept: `before` is the group's offset, `words` its note.
    """

    before: int = 0
    words: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, progress: Progress | None) -> Sent:
        """What stands there; a note that is none of ours says nothing."""
        if progress is None:
            return cls()
        try:
            noted = read_json(progress.note) if progress.note else {}
        except ValueError:
            noted = {}
        words = noted if isinstance(noted, dict) else {}
        return cls(progress.offset, {word: end for word, end in words.items() if isinstance(end, int)})

    def has(self, letter: StoredLetter) -> bool:
        """Whether it was sent back."""
        return letter.offset < max(self.before, self.words.get(letter.word, 0))

    def start(self, word: str | None) -> int:
        """The first offset that may not have been sent back."""
        return self.before if word is None else max(self.before, self.words.get(word, 0))

    def plus(self, word: str | None, end: int) -> Sent:
        """All letters before `end`, or those of one word, were sent back too."""
        if word is None:
            return Sent(max(self.before, end), {other: at for other, at in self.words.items() if at > end})
        if end <= self.start(word):
            return self
        return Sent(self.before, {**self.words, word: end})

    def note(self) -> str:
        """Raises UsageError if there are more words than a note holds."""
        text = json.dumps(self.words, separators=(",", ":"), sort_keys=True) if self.words else ""
        if len(text.encode()) > NOTE_MAX_BYTES:
            raise UsageError(
                f"{len(self.words)} errors were sent back one by one, more than can be kept apart",
                hint="Send all that is left back: modelcast dlq replay TOPIC, without --error.",
            )
        return text


@dataclass
class Replayed:
    """What became of a replay.

    Attributes:
        sent: Letters sent back, or in a dry run: that would be, by events topic.
        again: How many of them had been sent back before and came here again.
        most_replays: How often the one that came back most was sent back before this.
        passed_over: Letters that can't be sent back.
        named: Place and reason of the first of them.
        new: Nothing was known of earlier replays of this topic.
        others: Of one word: letters of the first other words, which are not sent back.
    """

    sent: dict[str, int] = field(default_factory=dict)
    again: int = 0
    most_replays: int = 0
    passed_over: int = 0
    named: list[tuple[str, str]] = field(default_factory=list)
    new: bool = False
    others: dict[str, int] = field(default_factory=dict)

    def add(self, batch: Replayed) -> None:
        """Counts what has become visible."""
        for topic, count in batch.sent.items():
            self.sent[topic] = self.sent.get(topic, 0) + count
        self.again += batch.again
        self.most_replays = max(self.most_replays, batch.most_replays)
        self.passed_over += batch.passed_over
        self.named = [*self.named, *batch.named][:_NAMED_MAX]


class Replay:
    """Sends the letters of one dead-letter topic back.

    Args:
        log: The connection; stays the caller's.
        topics: The repository, whose own topics nothing is sent to, and whose prefix names the marks.
        topic: The dead letters.
        word: Only letters of this error.
        to: Where to, in the place of the topic each letter names.
        clock: Epoch seconds.
    """

    def __init__(
        self,
        log: GroupLog,
        topics: Topics,
        topic: str,
        *,
        word: str | None = None,
        to: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._log = log
        self._topics = topics
        self._topic = topic
        self._word = word
        self._to = to
        self._clock = clock
        self._id = f"{topics.prefix}.dlq.{topic}"
        self._targets: dict[str, TopicDescription] = {}
        self.replayed = Replayed()
        """What is done so far; also after `run` was interrupted."""

    def run(self, *, dry: bool = False) -> Replayed:
        """Sends back what was not sent back before; a dry run only counts it, and takes nothing.

        Raises:
            TopicNotFoundError: There is no such topic, or not the one the letters came from.
            UsageError: The letters can't be sent where they are to go.
            FencedError: Another replay of this topic has begun.
            BrokerError: Kafka is not there, or refuses: what is in `replayed` was sent, nothing else.
        """
        ends = _ends(self._log, self._topic)
        if self._to is not None:
            self._target(self._to)
        if dry:
            with closing(self._log.group_progress(self._id)) as progress:
                self._count(self._batches(self._sent(progress.committed(self._topic, sorted(ends))), ends))
            return self.replayed
        # Taking the id ends what a killed replay left open, before its marks are read.
        with (
            closing(self._log.transactional_batch_producer(self._id, timeout_ms=TRANSACTION_TIMEOUT_MS)) as producer,
            closing(self._log.group_progress(self._id)) as progress,
        ):
            sent = self._sent(progress.committed(self._topic, sorted(ends)))
            for batch in self._batches(sent, ends):
                told = self._send(producer, batch)
                for number, end in batch.ends.items():
                    sent[number] = sent[number].plus(self._word, end)
                offsets = {number: sent[number].before for number in batch.ends}
                notes = {number: sent[number].note() for number in batch.ends}
                producer.send_offsets(self._topic, offsets, progress.metadata(), notes)
                producer.commit()
                self.replayed.add(told)
        return self.replayed

    def _sent(self, committed: Mapping[int, Progress]) -> dict[int, Sent]:
        self.replayed.new = not committed
        begins = self._log.begin_offsets(self._topic)
        # What retention took can't be sent back any more.
        return {number: Sent.read(committed.get(number)).plus(None, begin) for number, begin in begins.items()}

    def _batches(self, sent: Mapping[int, Sent], ends: Mapping[int, int]) -> Iterator[_Batch]:
        batch = _Batch()
        starts = {number: mark.start(self._word) for number, mark in sent.items()}
        for record in scan(self._log, self._topic, starts, ends, timeout_s=READ_TIMEOUT_S):
            letter = StoredLetter.of(record)
            left = not sent[record.partition].has(letter)
            meant = self._word is None or letter.word == self._word
            if left and not meant:
                self._count_other(letter.word)
            batch.take(letter, meant=meant and left)
            if batch.is_full:
                yield batch
                batch = _Batch()
        # Markers behind the last letter are passed too, so that the group's lag comes to nothing.
        batch.ends.update({number: end for number, end in ends.items() if starts[number] < end})
        if batch.ends:
            yield batch

    def _count_other(self, word: str) -> None:
        others = self.replayed.others
        if word in others or len(others) < _NAMED_MAX:
            others[word] = others.get(word, 0) + 1

    def _count(self, batches: Iterator[_Batch]) -> None:
        for batch in batches:
            self.replayed.add(self._send(None, batch))

    def _send(self, producer: TransactionalBatchProducer | None, batch: _Batch) -> Replayed:
        """Sends a batch within a transaction of its own that stays open; without a producer only counts."""
        self._refuse_what_are_no_letters(batch)
        told = Replayed()
        if producer is not None:
            producer.begin()
        for letter in batch.letters:
            reason = _reason_against(letter, self._to)
            if reason is not None:
                told.passed_over += 1
                told.named.append((letter.place, reason))
                continue
            topic = self._to or (letter.source.topic if letter.source is not None else "")
            target = self._target(topic)
            partition = letter.partition if letter.source is None else letter.source.partition
            if partition >= target.partitions:
                raise UsageError(
                    f"letter {letter.place} came from partition {partition}, and topic {topic!r} has only "
                    f"{target.partitions}",
                    hint="Add partitions to the topic, or name another one: --to TOPIC",
                )
            if producer is not None:
                producer.produce(
                    topic,
                    key=letter.key,
                    value=letter.value,
                    partition=partition,
                    timestamp_ms=self._time(letter, target),
                    headers=(*letter.headers, (REPLAYS, b"%d" % (letter.replays + 1))),
                )
            told.sent[topic] = told.sent.get(topic, 0) + 1
            told.again += letter.replays > 0
            told.most_replays = max(told.most_replays, letter.replays)
        return told

    def _refuse_what_are_no_letters(self, batch: _Batch) -> None:
        begun = self.replayed.sent or self.replayed.passed_over
        if begun or self._to is not None or any(letter.source is not None for letter in batch.letters):
            return
        if batch.letters:
            raise UsageError(
                f"nothing on topic {self._topic!r} says where an event came from, as dead letters do",
                hint="Name a scorer's dead letters, PREDICTIONS.dead-letters; or say where these are to go: --to TOPIC",
            )

    def _time(self, letter: StoredLetter, target: TopicDescription) -> int | None:
        event_ms = None if letter.source is None else letter.source.timestamp_ms
        return None if event_ms is None else fitting_time(event_ms, int(self._clock() * 1000), target.configs)

    def _target(self, topic: str) -> TopicDescription:
        found = self._targets.get(topic)
        if found is None:
            self._topics.refuse_own(topic)
            if topic == self._topic:
                raise UsageError(
                    f"letters of topic {topic!r} can't be sent back to itself", hint="Name the events topic: --to TOPIC"
                )
            try:
                found = self._log.describe(topic, writing=True)
            except TopicNotFoundError as error:
                raise TopicNotFoundError(error.message, hint="Name another one: --to TOPIC") from error
            self._targets[topic] = found
        return found


def fitting_time(event_ms: int, now_ms: int, configs: Mapping[str, str]) -> int | None:
    """An event's time if a topic of this configuration takes it and keeps it for `KEPT_MS`, else None for now."""
    ahead_ms = int(configs.get("message.timestamp.after.max.ms", "-1"))
    behind_ms = int(configs.get("message.timestamp.before.max.ms", "-1"))
    retention_ms = int(configs.get("retention.ms", "-1"))
    if ahead_ms >= 0 and event_ms > now_ms + ahead_ms:
        return None
    if behind_ms >= 0 and event_ms < now_ms - behind_ms:
        return None
    if retention_ms >= 0 and event_ms < now_ms - retention_ms + KEPT_MS:
        return None
    return event_ms


@dataclass
class _Batch:
    """Letters of one transaction, and how far the topic was looked at."""

    letters: list[StoredLetter] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    size: int = 0

    def take(self, letter: StoredLetter, *, meant: bool) -> None:
        self.ends[letter.partition] = letter.offset + 1
        if meant:
            self.letters.append(letter)
            self.size += len(letter.key or b"") + len(letter.value or b"")

    @property
    def is_full(self) -> bool:
        # Letters that are not meant move the marks only: many of them are one commit.
        return len(self.letters) >= BATCH_LETTERS or self.size >= BATCH_BYTES


def _reason_against(letter: StoredLetter, to: str | None) -> str | None:
    """Why a letter can't be sent back, if so."""
    if letter.cut:
        return f"its {_listed(letter.cut)} was cut, so the event is not whole"
    if letter.source is None and to is None:
        return "it does not say where its event came from (--to names a topic)"
    return None


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(parts)


def _source(told: Mapping[str, bytes]) -> Source | None:
    partition, offset = _number(told.get(PARTITION)), _number(told.get(OFFSET))
    if TOPIC not in told or partition is None or offset is None:
        return None
    return Source(_text(told[TOPIC]), partition, offset, _number(told.get(TIMESTAMP)))


def _models(names: str, versions: str) -> tuple[str, ...]:
    if not names:
        return ()
    return tuple(f"{name}@{number}" for name, number in zip(names.split(","), versions.split(","), strict=False))


def _number(told: bytes | None) -> int | None:
    return int(told) if told is not None and told.isdigit() and len(told) <= _INT64_DIGITS else None


def _text(told: bytes) -> str:
    return told.decode(errors="replace")
