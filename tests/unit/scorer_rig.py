"""A scoring loop in a box: an in-memory log with groups and faults, and servables that are Python functions."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from modelcast.avro import FRAME_BYTES
from modelcast.consumer.batches import BatchSizer
from modelcast.consumer.binding import Binding
from modelcast.consumer.carrying import Carrier
from modelcast.consumer.commit import Committer, Destination, FlushingCommitter, TransactionalCommitter
from modelcast.consumer.dead_letters import DeadLetterBuilder
from modelcast.consumer.end import EndOfTopic
from modelcast.consumer.lineup import Lineup, WhenFailing
from modelcast.consumer.loop import LoopHooks, ScoringLoop
from modelcast.consumer.routing import Routing
from modelcast.consumer.scoring import Scoring
from modelcast.consumer.slot import Slot
from modelcast.errors import LoadError
from modelcast.events.schemas import SchemaTopic
from modelcast.events.writers import WriterSchemas
from modelcast.log import BEGINNING, LogRecord, TopicSpec
from modelcast.names import ModelVersion
from modelcast.records import Signature
from modelcast.runtime import Array
from modelcast.testing.group import MemoryGroupConsumer, MemoryGroupLog
from modelcast.topics import Topics

from .control_rig import wait_until
from .registry_records import SIGNATURE, manifest

SCORES = "scores"
TO = Destination("events", (SCORES,), "scores.dead-letters")
TOPICS = Topics("t")
GROUP = "g"
SOON_S = 60.0


class FunctionServable:
    """A version whose score is its first field plus `bias`; rows for which `fails` is true it can't take."""

    def __init__(
        self,
        version: int,
        *,
        model: str = "fraud",
        signature: Signature = SIGNATURE,
        bias: float = 0.0,
        fails: Callable[[Array], bool] | None = None,
        before: Callable[[], object] | None = None,
    ) -> None:
        self.manifest = replace(manifest(version, model=model), signature=signature)
        self.id = ModelVersion(self.manifest.model, version)
        self.binding = Binding(self.manifest.signature)
        self.device = "cpu"
        self.batches: list[int] = []
        self._bias = bias
        self._fails = fails
        self._before = before

    def run(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        if self._before is not None:
            self._before()
        amounts = columns[self.manifest.signature.fields[0]]
        if self._fails is not None and self._fails(amounts):
            raise LoadError("the model failed on its input")
        self.batches.append(len(amounts))
        return {"score": np.asarray(amounts + np.float32(self._bias), np.float32)}

    def close(self) -> None: ...


@dataclass
class Heard:
    """What the loop told its owner."""

    waiting: list[str | None] = field(default_factory=list)
    recovering: list[BaseException] = field(default_factory=list)
    learned: list[bytes | None] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


class Rig:
    """One log, any number of scorers on it."""

    def __init__(self, *, partitions: int = 1, topics: Sequence[str] = ()) -> None:
        self.log = MemoryGroupLog()
        for name in (TO.events, *TO.outputs, *topics):
            self.log.create(TopicSpec(name, partitions))
        for spec in TOPICS.specs(blob_partitions=1, replication_factor=1):
            self.log.create(spec)
        self.partitions = partitions
        self.sent: dict[int, list[int]] = {partition: [] for partition in range(partitions)}

    def send(self, amounts: Sequence[float], *, partition: int = 0) -> None:
        for amount in amounts:
            self.send_bytes(json.dumps({"amount": amount, "age": 1}).encode(), partition=partition)

    def send_bytes(
        self, value: bytes | None, *, partition: int = 0, headers: Sequence[tuple[str, bytes | None]] = ()
    ) -> None:
        writer = self.log.writer()
        writer.send(TO.events, key=b"k", value=value, partition=partition, headers=headers)
        writer.flush(1)

    def end(self) -> EndOfTopic:
        return EndOfTopic(self.log.begin_offsets(TO.events), self.log.end_offsets(TO.events, committed=False))

    def records(self, topic: str) -> list[LogRecord]:
        """Committed records, by partition and offset."""
        start = dict.fromkeys(range(self.partitions), BEGINNING)
        with closing(self.log.reader(topic, start)) as reader:
            found: list[LogRecord] = []
            while records := reader.poll(0):
                found += records
        return sorted(found, key=lambda record: (record.partition, record.offset))

    def predictions(self) -> list[tuple[int, int, int, float]]:
        """(source partition, source offset, version, score) of each prediction, in the topic's order."""
        return [
            (datum["source"]["partition"], datum["source"]["offset"], datum["version"], datum["score"])
            for datum in self.data(SCORES)
        ]

    def data(self, topic: str) -> list[dict[str, Any]]:
        """Predictions as they were written, in the topic's order."""
        schemas = SchemaTopic(self.log, TOPICS)
        found = []
        for record in self.records(topic):
            assert record.value is not None
            schema = schemas.find(record.value[2:FRAME_BYTES])
            assert schema is not None, "a prediction's schema was not described before it"
            datum = schema.decode(record.value, start=FRAME_BYTES)
            assert datum["source"]["partition"] == record.partition
            found.append(datum)
        return found

    def committed(self) -> Mapping[int, int]:
        return self.log.committed_offsets(GROUP, TO.events)


class RunningScorer:
    """A loop on a thread of its own; use as a context manager.

    Args:
        live: The live version of the first model, whose predictions go to `SCORES`.
        others: Topic and live version of further models.
    """

    def __init__(
        self,
        rig: Rig,
        *,
        live: FunctionServable | None = None,
        others: Sequence[tuple[str, FunctionServable | None]] = (),
        routing: Routing | None = None,
        carrier: Carrier | None = None,
        when_failing: WhenFailing = WhenFailing.WAIT,
        end: EndOfTopic | None = None,
        instance: str | None = None,
        at_least_once: bool = False,
        sizer: BatchSizer | None = None,
    ) -> None:
        self.rig = rig
        self.slot = Slot("fraud")
        models = [(SCORES, live), *others]
        self.slots = [self.slot, *(Slot(f"model {place}") for place in range(1, len(models)))]
        for slot, (_, servable) in zip(self.slots, models, strict=True):
            if servable is not None:
                slot.swap(servable)  # type: ignore[arg-type]
        self.heard = Heard()
        self.on_tick: Callable[[], object] = lambda: None
        self.consumer: MemoryGroupConsumer
        self._instance = instance
        transactional_id = f"scorer.{instance or id(self)}"
        self.committer: Committer = (
            FlushingCommitter(TO, rig.log.batch_producer)
            if at_least_once
            else TransactionalCommitter(
                TO, lambda: rig.log.transactional_batch_producer(transactional_id, timeout_ms=6000)
            )
        )
        schemas = SchemaTopic(rig.log, TOPICS)
        self.loop = ScoringLoop(
            TO.events,
            rig.partitions,
            self._join_group,
            self.committer,
            Scoring(
                TO.events,
                [topic for topic, _ in models],
                WriterSchemas(schemas),
                schemas.register,
                DeadLetterBuilder(TO.events),
                routing=routing,
                carrier=carrier,
            ),
            Lineup(self.slots, when_failing=when_failing),
            LoopHooks(
                knows_fields=lambda: bool(self.heard.learned),
                learn=lambda value, _: self.heard.learned.append(value),
                model_failed=lambda _place, servable, message: self.heard.failed.append(f"{servable.id}: {message}"),
                waiting=self.heard.waiting.append,
                recovering=self.heard.recovering.append,
                tick=lambda: self.on_tick(),  # noqa: PLW0108 - tests put another in its place
            ),
            end=end,
            sizer=sizer,
        )
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> RunningScorer:
        self.committer.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.stop()
        self.join()

    def join(self) -> None:
        """Waits until the loop has ended, then closes what it used."""
        self._thread.join(SOON_S)
        assert not self._thread.is_alive(), "the loop did not end"
        self.loop.close()
        self.committer.close(SOON_S)

    def wait_waiting(self, words: str) -> None:
        wait_until(lambda: any(words in (reason or "") for reason in self.heard.waiting), f"waiting: {words}")

    def _join_group(self) -> MemoryGroupConsumer:
        self.consumer = self.rig.log.group_consumer(GROUP, instance=self._instance, session_timeout_ms=6000)
        return self.consumer

    def _run(self) -> None:
        try:
            self.loop.run()
        except BaseException as error:
            self.error = error


def score_all(rig: Rig, live: FunctionServable, **options: object) -> RunningScorer:
    """Runs one scorer to the present end of the events."""
    scorer = RunningScorer(rig, live=live, end=rig.end(), **options)  # type: ignore[arg-type]
    with scorer:
        scorer.join()
    if scorer.error is not None:
        raise scorer.error
    return scorer
