"""What lies on the topics: counted while the demonstration runs, and read whole at its end.

- Only committed records count, as for any application that reads predictions.
- Everything is read to the true end of each topic. Values are decoded by fastavro and the schema their writer
  described, not by the scorer's own decoder: the accounting must not share a fault with what it accounts for.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from modelcast.avro import FRAME_BYTES, fingerprint_of
from modelcast.demo.accounting import Floats, Int64s, Positions
from modelcast.demo.board import Board
from modelcast.demo.flights import EVENT_SCHEMA, ID_FIELD
from modelcast.demo.stage import Stage
from modelcast.errors import ModelcastError, TopicNotFoundError, UnknownSchemaError, WireError
from modelcast.events.schemas import SchemaTopic
from modelcast.log import BEGINNING, Log, LogReader, LogRecord
from modelcast.scan import scan

# Headers of a dead letter, as Kafka Streams names them (KIP-1034).
_ERROR: Final = "__streams.errors.exception"
_MESSAGE: Final = "__streams.errors.message"
_PARTITION: Final = "__streams.errors.partition"
_OFFSET: Final = "__streams.errors.offset"
# Reading a year takes seconds; an open transaction of a scorer that was killed ends within 20 s.
_READ_TIMEOUT_S: Final = 120.0
_STEP_S: Final = 0.1
# How often a topic that is not there yet is looked for.
_AWAIT_TOPIC_S: Final = 0.1
# Index of the class "late" among the probabilities.
_LATE: Final = 1


@dataclass(frozen=True)
class Events:
    """The events topic: where each record stands and the flight it is about, -1 for none; all `[N]`."""

    positions: Positions
    flights: Int64s


@dataclass(frozen=True)
class Predictions:
    """The predictions topic, all `[N]`.

    Attributes:
        sources: The event each is made from.
        versions: The version that made it.
        scores: How probable it is that the flight is late.
        times_ms: The records' timestamps.
    """

    sources: Positions
    versions: Int64s
    scores: Floats
    times_ms: Int64s


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One record of the dead-letter topic: where its event stood, why it could not be scored, and its bytes."""

    partition: int
    offset: int
    error: str
    message: str
    value: bytes | None


def read_events(log: Log, stage: Stage) -> Events:
    """Reads the events topic. Raises BrokerError."""
    partitions: list[int] = []
    offsets: list[int] = []
    flights: list[int] = []
    for record in _all(log, stage.events):
        partitions.append(record.partition)
        offsets.append(record.offset)
        flights.append(_flight(record))
    return Events(Positions.of(partitions, offsets), np.asarray(flights, dtype=np.int64))


def read_predictions(log: Log, stage: Stage) -> Predictions:
    """Reads the predictions topic.

    Raises:
        WireError: A record is not a prediction, or its schema is not described.
        BrokerError: The topic could not be read to its end.
    """
    rows: list[tuple[int, int, int, float, int]] = []
    with closing(SchemaTopic(log, stage.connection.topics)) as schemas:
        for record in _all(log, stage.predictions):
            value = _decoded(schemas, record)
            source = value["source"]
            rows.append(
                (
                    source["partition"],
                    source["offset"],
                    value["version"],
                    value["probabilities"][_LATE],
                    record.timestamp_ms,
                )
            )
    partitions, offsets, versions, scores, times = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    return Predictions(
        Positions.of(partitions, offsets),
        np.asarray(versions, dtype=np.int64),
        np.asarray(scores, dtype=np.float64),
        np.asarray(times, dtype=np.int64),
    )


def read_dead_letters(log: Log, stage: Stage) -> tuple[DeadLetter, ...]:
    """Reads the dead-letter topic. Raises BrokerError; WireError if a record does not say where it comes from."""
    return tuple(_dead_letter(record) for record in _all(log, stage.dead_letters))


def frozen_scores(stage: Stage, version: int, columns: dict[str, npt.NDArray[Any]]) -> Floats:
    """What one version says of all flights: loaded into this process from the registry, as an application would.

    Args:
        stage: Where it was published.
        version: Of the model.
        columns: Fields of the flights, `[N]` each.

    Raises:
        ModelcastError: It can't be loaded or run.
    """
    from modelcast.consumer import ModelClient
    from modelcast.demo.stage import MODEL

    with ModelClient(connection=stage.connection, cache_dir=stage.cache_dir, state_dir=stage.state_dir) as models:
        probabilities = models[f"{MODEL}@{version}"].predict(columns)["probabilities"]
    return np.asarray(probabilities[:, _LATE], dtype=np.float64)


class Watcher:
    """Counts committed predictions and dead letters as they appear, on a thread of its own; a context manager."""

    def __init__(self, log: Log, stage: Stage, board: Board) -> None:
        self._log = log
        self._stage = stage
        self._board = board
        self._stop = threading.Event()
        self.error: ModelcastError | None = None
        self._thread = threading.Thread(target=self._run, name="demo-watcher", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            predictions, dead = self._open(self._stage.predictions), self._open(self._stage.dead_letters)
            if predictions is None or dead is None:
                return
            with closing(predictions), closing(dead):
                while not self._stop.is_set():
                    count = len(predictions.poll(_STEP_S))
                    dead_count = len(dead.poll(0))
                    if count or dead_count:
                        self._board.counted(predictions=count, dead_letters=dead_count)
        except ModelcastError as error:
            self.error = error

    def _open(self, topic: str) -> LogReader | None:
        while not self._stop.wait(_AWAIT_TOPIC_S):
            partitions = self._log.topics().get(topic)
            if partitions:
                return self._log.reader(topic, dict.fromkeys(range(partitions), BEGINNING), committed=True)
        return None


def _all(log: Log, topic: str) -> Iterator[LogRecord]:
    try:
        ends = log.end_offsets(topic, committed=False)
    except TopicNotFoundError:
        return
    yield from scan(log, topic, log.begin_offsets(topic), ends, timeout_s=_READ_TIMEOUT_S, committed=True)


def _flight(record: LogRecord) -> int:
    value = record.value
    if value is None or not value.startswith(EVENT_SCHEMA.frame):
        return -1
    return int(EVENT_SCHEMA.decode(value, start=FRAME_BYTES)[ID_FIELD])


def _decoded(schemas: SchemaTopic, record: LogRecord) -> Any:
    where = f"the record at {record.topic}-{record.partition} offset {record.offset}"
    fingerprint = fingerprint_of(record.value or b"")
    if record.value is None or fingerprint is None:
        raise WireError(f"{where} is not a prediction")
    schema = schemas.find(fingerprint)
    if schema is None:
        raise UnknownSchemaError(f"{where} has a schema that is not described")
    return schema.decode(record.value, start=FRAME_BYTES)


def _dead_letter(record: LogRecord) -> DeadLetter:
    headers = dict(record.headers)
    try:
        partition, offset = int(headers[_PARTITION] or b""), int(headers[_OFFSET] or b"")
    except (KeyError, ValueError) as error:
        raise WireError(
            f"the dead letter at {record.topic}-{record.partition} offset {record.offset} does not name its event"
        ) from error
    return DeadLetter(
        partition, offset, (headers.get(_ERROR) or b"").decode(), (headers.get(_MESSAGE) or b"").decode(), record.value
    )
