"""The schemas topic: whoever writes single-object Avro describes it here first, so that any reader can resolve it.

- A record's key is the digest of the schema's text, its value that text (UTF-8 JSON): the content names itself. What is
  no schema, or is not what its key says, is passed over with a warning: anyone who may write events may write here.
- A schema is acknowledged before `register` returns, so before the first record that needs it.
- Records point to a schema by a fingerprint that ignores logical types: a decimal of scale 2 and one of scale 4 have
  the same. Where two texts share a fingerprint and differ in that, the first stays and the second is refused. Where
  they differ only in what does not change a value (documentation, defaults, order of keys), both stand.
- The topic is read uncommitted: a text is true or false by its digest alone, and no open transaction can hold it back.

Example:
    schemas = SchemaTopic(log, topics)
    schemas.register(schema)
    schemas.find(schema.fingerprint)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from modelcast import digest
from modelcast.avro import Schema
from modelcast.errors import BrokerError, RepositoryNotFoundError, TopicNotFoundError, UsageError
from modelcast.log import BEGINNING, Log, LogReader, LogRecord
from modelcast.topics import Topics

# How often an unknown fingerprint makes the topic be read on: often enough for a schema that comes right behind its
# first record, seldom enough that a stream of garbage costs the broker nothing.
REREAD_INTERVAL_S = 0.25
# A topic of some hundred small texts is read in milliseconds; a broker that takes this long is away.
READ_TIMEOUT_S = 30.0
REGISTER_TIMEOUT_S = 30.0

_PARTITION = 0
_STEP_S = 0.1  # how long one read may wait, so that the deadline is looked at

_logger = logging.getLogger(__name__)


class SchemaTopic:
    """The schemas of one repository; thread-safe.

    Args:
        log: The connection; stays the caller's.
        topics: Whose schemas.
        clock: Monotonic seconds.
    """

    def __init__(self, log: Log, topics: Topics, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._topic = topics.schemas
        self._clock = clock
        # Guards the reader and every change of the two maps; `find` looks into its map without it.
        self._lock = threading.Lock()
        self._reader: LogReader | None = None
        self._by_fingerprint: dict[bytes, Schema] = {}
        self._digests: set[str] = set()
        self._read_at: float | None = None

    def register(self, schema: Schema) -> None:
        """Describes a schema; does nothing if it is described already.

        Raises:
            UsageError: Another schema has its fingerprint and gives the same bytes another meaning.
            RepositoryNotFoundError: There is no schemas topic.
            BrokerError: The record was not acknowledged.
        """
        with self._lock:
            try:
                self._read_to_end()
            except TopicNotFoundError as error:
                raise RepositoryNotFoundError(
                    f"there is no topic {self._topic!r} to describe the schema on", hint="Make one with: modelcast init"
                ) from error
            self._check_fingerprint(schema)
            if schema.digest in self._digests:
                return
            writer = self._log.writer()
            try:
                writer.send(self._topic, key=schema.digest.encode(), value=schema.text.encode(), partition=_PARTITION)
                writer.flush(REGISTER_TIMEOUT_S)
            finally:
                writer.close()
            self._read_to_end()
            # Two processes may have registered at once: the one whose record came first keeps the fingerprint.
            self._check_fingerprint(schema)

    def find(self, fingerprint: bytes) -> Schema | None:
        """The schema a single-object record names by its 8-byte fingerprint, or None if none is described so far.

        Asks the topic about an unknown fingerprint, at most once in `REREAD_INTERVAL_S`.

        Raises:
            BrokerError: The topic could not be read.
        """
        known = self._by_fingerprint.get(fingerprint)
        if known is not None:
            return known
        with self._lock:
            now = self._clock()
            if self._read_at is None or now - self._read_at >= REREAD_INTERVAL_S:
                self._read_at = now
                try:
                    self._read_to_end()
                except TopicNotFoundError:
                    return None
            return self._by_fingerprint.get(fingerprint)

    def close(self) -> None:
        """Frees the reader."""
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _read_to_end(self) -> None:
        end = self._log.end_offsets(self._topic, committed=False)[_PARTITION]
        if self._reader is None:
            self._reader = self._log.reader(self._topic, {_PARTITION: BEGINNING}, committed=False)
        deadline = self._clock() + READ_TIMEOUT_S
        while self._reader.position(_PARTITION) < end:
            if self._clock() >= deadline:
                raise BrokerError(
                    f"topic {self._topic!r} could not be read to its end (offset {end}) in {READ_TIMEOUT_S:g} s",
                    hint="Check that the brokers answer.",
                )
            for record in self._reader.poll(_STEP_S):
                self._take(record)

    def _take(self, record: LogRecord) -> None:
        try:
            schema = _read(record)
        except Exception as error:  # a hostile text makes parsers raise whatever they meet, RecursionError included
            _logger.warning("topic %s, offset %d is passed over: %s", record.topic, record.offset, error)
            return
        if schema is not None:
            self._digests.add(schema.digest)
            self._by_fingerprint.setdefault(schema.fingerprint, schema)

    def _check_fingerprint(self, schema: Schema) -> None:
        first = self._by_fingerprint.get(schema.fingerprint)
        if first is not None and list(_meanings(first.definition)) != list(_meanings(schema.definition)):
            raise UsageError(
                f"the schema {_name(schema)!r} differs in its logical types from one that topic {self._topic!r} has "
                f"({first.digest}), and records could not tell the two apart: both have the CRC-64 fingerprint "
                f"{schema.fingerprint.hex()}",
                hint="Give the record another name or namespace.",
            )


def _read(record: LogRecord) -> Schema | None:
    """The schema in a record, or None for a tombstone; raises whatever is wrong with it."""
    if record.value is None:
        return None
    named = (record.key or b"").decode("utf-8", "replace")
    if named != digest.of_bytes(record.value):
        raise ValueError(f"its key {named[:80]!r} is not the digest of its value")
    # Another client's text may be laid out differently; its digest is over what it wrote.
    schema = Schema(definition=Schema.parse(record.value).definition, text=record.value.decode())
    schema.fingerprint  # noqa: B018  computed here, where a failure is a bad record and not a bad reader
    return schema


def _name(schema: Schema) -> str:
    named = isinstance(schema.definition, dict) and "name" in schema.definition
    return str(schema.definition["name"]) if named else schema.text


def _meanings(definition: Any) -> Iterator[tuple[Any, ...]]:
    """What each type in a schema means beyond its bytes, in the schema's own order.

    Two schemas of one canonical form have the same types in the same order, so these can be compared pairwise.
    """
    match definition:
        case list():
            for branch in definition:
                yield from _meanings(branch)
        case dict():
            inner = definition.get("type")
            if isinstance(inner, (dict, list)):
                yield from _meanings(inner)
                return
            yield tuple(definition.get(key) for key in ("logicalType", "precision", "scale"))
            for field in definition.get("fields", ()):
                yield from _meanings(field["type"])
            for key in ("items", "values"):
                if key in definition:
                    yield from _meanings(definition[key])
        case _:
            yield (None, None, None)
