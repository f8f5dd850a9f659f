"""`Repository`: a modelcast repository for a test, in memory or on a broker, and what tests do with it, a line each.

It is a `Connection`, so `ModelClient`, `Scorer` and `ModelPublisher.connect` take it as they take any other.

    repository = Repository.in_memory()
    repository.publish("fraud", lambda amount, age: amount + age)
    repository.send("transactions", [{"amount": 12.5, "age": 31}, b"no event at all"])
    Scorer("fraud", "transactions", "scores", connection=repository, until_end=True).run()
    [event.value["score"] for event in repository.read("scores")]
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Final, Self

import polars as pl

from modelcast.config import BOOTSTRAP, Connection
from modelcast.errors import TopicNotFoundError
from modelcast.events.infer import infer_schema_of
from modelcast.events.send import EventSender
from modelcast.events.tail import Event, tail
from modelcast.group import GroupLog
from modelcast.log import Log, TopicSpec
from modelcast.names import ModelVersion
from modelcast.registry.repository import init
from modelcast.topics import KEEP_FOR_EVER

from .functions import onnx_of
from .group import MemoryGroupLog

# Rows on which a function's golden outputs are made: fewer than those from which a constant model is refused, since a
# test may well want one.
_FUNCTION_EXAMPLES: Final = (1.0, 2.0, 3.0, 4.0)
_BLOB_PARTITIONS: Final = 2
_FLUSH_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class Repository(Connection):
    """A repository to test against; made by `in_memory` or `on`.

    Attributes:
        log: What every client of this connection shares; None where each opens its own.
    """

    log: GroupLog | None = field(default=None, repr=False, compare=False)

    @classmethod
    def in_memory(cls, log: GroupLog | None = None, *, prefix: str = "test") -> Self:
        """A new repository on a log of its own or the one given, e.g. a `FaultyLog`."""
        return cls({BOOTSTRAP: "in-memory"}, prefix, log=log or MemoryGroupLog())._made()

    @classmethod
    def on(cls, bootstrap_servers: str, *, prefix: str) -> Self:
        """A repository on a real broker; made where it is not there yet. Raises BrokerError."""
        return cls({BOOTSTRAP: bootstrap_servers}, prefix)._made()

    def open_log(self) -> GroupLog:
        """The shared log, or a new connection to the broker."""
        return self.log if self.log is not None else super().open_log()

    def publish(
        self, model: str, source: Any, *, examples: Any = None, release: bool = True, **options: Any
    ) -> ModelVersion:
        """Publishes a model as its next version, as in earnest: converted, tried in a child process, compared.

        Args:
            model: The model's name.
            source: Whatever `ModelPublisher.publish` takes, or a Python function of event fields (see `functions`).
            examples: Rows by event field; not needed for a function.
            release: Make it the live version.
            options: Further arguments of `ModelPublisher.publish`.

        Raises:
            UsageError: The function can't be written as a graph.
            ModelcastError: As `ModelPublisher.publish`.
        """
        from modelcast.publisher import ModelPublisher

        if inspect.isroutine(source):
            if examples is None:
                examples = {name: list(_FUNCTION_EXAMPLES) for name in inspect.signature(source).parameters}
            source = onnx_of(source)
        with ModelPublisher.connect(self) as publisher:
            return publisher.publish(model, source, examples=examples, release=release, **options).manifest.id

    def send(
        self,
        topic: str,
        events: pl.DataFrame | Iterable[Mapping[str, Any] | bytes | None],
        *,
        key: str | None = None,
        partitions: int = 1,
    ) -> None:
        """Writes events, acknowledged; makes the topic where it is not there yet.

        Args:
            topic: Where to.
            events: A Polars frame is sent as Avro, a mapping as JSON, bytes as they are, None as a tombstone.
            key: The field that becomes the record's key, as text.
            partitions: Of a topic that is made.
        """
        with self.open_log() as log:
            if isinstance(events, pl.DataFrame):
                schema = infer_schema_of(topic, events)
                with EventSender(log, self.topics, topic, schema=schema, key=key, partitions=partitions) as sender:
                    sender.send(events)
                    sender.flush()
                return
            log.create(TopicSpec(topic, partitions, configs=KEEP_FOR_EVER))
            with closing(log.writer()) as writer:
                for event in events:
                    named = event.get(key) if key is not None and isinstance(event, Mapping) else None
                    value = json.dumps(event).encode() if isinstance(event, Mapping) else event
                    writer.send(topic, key=None if named is None else str(named).encode(), value=value)
                writer.flush(_FLUSH_TIMEOUT_S)

    def read(self, topic: str) -> list[Event]:
        """What stands on a topic now, committed and decoded, by partition and offset; nothing where it does not exist.

        A prediction's `value` holds `model`, `version`, `source` and the outputs by name.
        """
        with self.open_log() as log:
            try:
                found = list(tail(log, self.topics, topic, from_beginning=True, until_end=True))
            except TopicNotFoundError:
                return []
        return sorted(found, key=lambda event: (event.partition, event.offset))

    def _made(self) -> Self:
        log: Log
        with self.open_log() as log:
            init(log, self.topics, blob_partitions=_BLOB_PARTITIONS)
        return self
