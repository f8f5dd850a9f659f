"""The thread that owns the producer: makes scored batches visible, together with the offsets they came from.

    RUNNING --a batch failed----> FAILED --resume--> RUNNING
       |                            ^
       +--in doubt, fenced--> REOPENING            any --not worth another try--> BROKEN

- At most `QUEUE_BATCHES` batches wait, or small ones of `QUEUE_EVENTS` in all: a slow broker slows the scoring down,
  memory stays bounded.
- One batch that fails takes all queued behind it along: they continue it. FAILED lasts until the scoring thread has
  gone back to the committed offsets and said so (`resume`).
- In doubt about a commit, or fenced, the producer is dropped; a new one with the same id ends what the old one left
  open, and only then are committed offsets worth reading.
- Offsets go with the group metadata of their own batch. Batches of one assignment that wait together share a
  transaction; batches of different ones never do.
"""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from modelcast.errors import BrokerError, FencedError, ModelcastError, OutcomeUnknownError
from modelcast.group import BatchProducer, GroupMetadata, TransactionalBatchProducer

from .dead_letters import DeadLetter

# One batch is being committed, one is ready: a third would wait and only cost memory.
QUEUE_BATCHES = 2
# … but as many as fit this are one small transaction, the next: events that come one by one must not wait for two. Dead
# letters hold whole events, so batches with any don't count as small.
QUEUE_EVENTS = 1_000
# What one transaction may take up of waiting batches: more makes it long, and a killed scorer's work is done again.
MERGED_EVENTS_MAX = 100_000
# Failures in a row, about a minute with the pauses of `retry_delay_s`: whoever starts this process anew may do better.
FAILURES_MAX = 20
_FIRST_RETRY_S = 0.05
_LAST_RETRY_S = 5.0
# A process stopped past its transaction's timeout is fenced by the broker and may go on; one that is fenced again and
# again shares its id with another.
FENCES_MAX = 3
_FENCE_MEMORY_S = 60.0
# Acknowledgements of a batch: a broker killed and restarted answers after 3 s.
FLUSH_TIMEOUT_S = 30.0
# How long a batch that was scored meanwhile may wait for them, unless they are late.
SETTLE_STEP_S = 0.001
HURRY_S = 1.0

_logger = logging.getLogger(__name__)


class Stage(Enum):
    """What the committer does; see the module's docstring for the moves."""

    RUNNING = auto()
    REOPENING = auto()
    FAILED = auto()
    BROKEN = auto()


TRANSITIONS: Mapping[Stage, frozenset[Stage]] = {
    Stage.RUNNING: frozenset({Stage.FAILED, Stage.REOPENING, Stage.BROKEN}),
    Stage.REOPENING: frozenset({Stage.FAILED, Stage.BROKEN}),
    Stage.FAILED: frozenset({Stage.RUNNING, Stage.BROKEN}),
    Stage.BROKEN: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a scorer reads from and writes to."""

    events: str
    predictions: tuple[str, ...]
    dead_letters: str

    @property
    def outputs(self) -> tuple[str, ...]:
        """The topics written."""
        return (*self.predictions, self.dead_letters)


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """One batch, ready to be made visible.

    Attributes:
        epoch: The assignment it was consumed under.
        events: How many events it covers.
        predictions: Records by topic and partition, in order: `key` and `value`, and `headers` where the event's are
            carried over.
        offsets: Next offset to be consumed, by partition.
        metadata: The group's, taken when the batch was consumed.
        counts: Of each model of several, how many events it scored and how many it could not.
    """

    epoch: int
    events: int
    predictions: Mapping[tuple[str, int], list[dict[str, Any]]]
    dead_letters: Sequence[DeadLetter]
    offsets: Mapping[int, int]
    metadata: GroupMetadata
    counts: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class Totals:
    """What was made visible so far; `counts` as of `ScoredBatch`."""

    events: int = 0
    predictions: int = 0
    dead_letters: int = 0
    commits: int = 0
    counts: tuple[tuple[int, int], ...] = ()

    def plus(self, batches: Sequence[ScoredBatch]) -> Totals:
        each = [counts for counts in (self.counts, *(batch.counts for batch in batches)) if counts]
        return Totals(
            self.events + sum(batch.events for batch in batches),
            self.predictions + sum(len(records) for batch in batches for records in batch.predictions.values()),
            self.dead_letters + sum(len(batch.dead_letters) for batch in batches),
            self.commits + 1,
            tuple((sum(done for done, _ in own), sum(lost for _, lost in own)) for own in zip(*each, strict=True)),
        )


@dataclass
class _State:
    """Guarded by the committer's condition."""

    stage: Stage = Stage.RUNNING
    queue: deque[ScoredBatch] = field(default_factory=deque)
    busy: bool = False
    closing: bool = False
    failures: int = 0
    error: BaseException | None = None
    totals: Totals = Totals()


class Committer(ABC):
    """Queue, thread and failures; what "visible" takes is the subclasses' part.

    `submit`, `drain`, `discard`, `resume` and `close` are the scoring thread's; the rest may be read from any thread.

    Args:
        destination: The topics.
        clock: Monotonic seconds.
    """

    def __init__(self, destination: Destination, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._to = destination
        self._clock = clock
        self._changed = threading.Condition(threading.Lock())
        self._state = _State()
        self._fences: deque[float] = deque(maxlen=FENCES_MAX)
        self._thread = threading.Thread(target=self._run, name="modelcast-commit", daemon=True)

    @property
    def stage(self) -> Stage:
        return self._state.stage

    @property
    def error(self) -> BaseException | None:
        """What made the last batch fail; None while all is well."""
        return self._state.error

    @property
    def totals(self) -> Totals:
        return self._state.totals

    @property
    def is_gathering(self) -> bool:
        """Whether what is scored now has to wait in any case."""
        return False

    @property
    def retry_delay_s(self) -> float:
        """How long to wait before `resume`: nothing after a first failure, which a rebalance explains."""
        failures = self._state.failures
        return 0.0 if failures < 2 else float(min(_LAST_RETRY_S, _FIRST_RETRY_S * 2 ** (failures - 2)))

    def start(self) -> None:
        """Takes the producer and starts the thread. Raises what taking it raises."""
        self._open()
        self._thread.start()

    def submit(self, batch: ScoredBatch, timeout_s: float) -> bool:
        """Queues a batch. False if there was no room in time, or batches are not taken now (see `stage`)."""
        with self._changed:
            room = self._changed.wait_for(
                lambda: self._has_room(batch) or self._state.stage is not Stage.RUNNING, timeout_s
            )
            if not room or self._state.stage is not Stage.RUNNING:
                return False
            self._state.queue.append(batch)
            self._changed.notify_all()
            return True

    def _has_room(self, batch: ScoredBatch) -> bool:
        queue = self._state.queue
        if len(queue) < QUEUE_BATCHES:
            return True
        is_small = not batch.dead_letters and sum(one.events for one in queue) + batch.events <= QUEUE_EVENTS
        return is_small and not any(one.dead_letters for one in queue)

    def drain(self, timeout_s: float) -> bool:
        """Waits until every batch is visible; False if one failed or the time is up."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_idle or self._state.stage is not Stage.RUNNING, timeout_s)
            return self._is_idle and self._state.stage is Stage.RUNNING

    def discard(self) -> None:
        """Drops the batches that wait; one in the middle of its commit is the broker's to refuse."""
        with self._changed:
            self._state.queue.clear()
            self._changed.notify_all()

    def resume(self) -> None:
        """The scoring thread is back at the committed offsets: batches are taken again."""
        with self._changed:
            if self._state.stage is Stage.FAILED:
                self._move(Stage.RUNNING)

    def take_acknowledged(self) -> Mapping[int, int]:
        """Next offsets by partition that are the scoring thread's to commit; none where the producer does it."""
        return {}

    def close(self, timeout_s: float) -> bool:
        """Finishes what is queued, then ends the thread and frees the producer; False if that took too long."""
        with self._changed:
            self._state.closing = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            if self._thread.is_alive():
                return False
        self._close_producer()
        return self._state.stage is Stage.RUNNING

    @property
    def _is_idle(self) -> bool:
        return not self._state.queue and not self._state.busy

    def _run(self) -> None:
        while (batch := self._take_first()) is not None:
            failed: Exception | None = None
            try:
                self._delivered(self._deliver(batch))
            except Exception as error:
                failed = error
            if failed is not None:  # outside of its handler: a client that is closed there might keep it for ever
                self._failed(failed)
            del failed

    def _take_first(self) -> ScoredBatch | None:
        with self._changed:
            self._state.busy = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._state.queue or self._state.closing)
            if not self._state.queue:
                return None
            self._state.busy = True
            batch = self._state.queue.popleft()
            self._changed.notify_all()
            return batch

    def _take_more(self, taken: Sequence[ScoredBatch]) -> ScoredBatch | None:
        """The next batch if it waits already and fits what was taken."""
        with self._changed:
            queue = self._state.queue
            if not queue or queue[0].epoch != taken[-1].epoch:
                return None
            if sum(batch.events for batch in taken) + queue[0].events > MERGED_EVENTS_MAX:
                return None
            self._changed.notify_all()
            return queue.popleft()

    def _delivered(self, batches: Sequence[ScoredBatch]) -> None:
        with self._changed:
            self._state.failures = 0
            self._state.error = None
            self._state.totals = self._state.totals.plus(batches)

    def _failed(self, error: Exception) -> None:
        fenced = isinstance(error, FencedError)
        if fenced:
            self._fences.append(self._clock())
        with self._changed:
            self._state.failures += 1
            failures = self._state.failures
        if not self._worth_another_try(error, failures):
            self._move_with(Stage.BROKEN, error)
            return
        _logger.info("batch dropped, going back to the committed offsets: %s", error)
        error.__traceback__ = None  # it leads to the producer, and is remembered longer than that may live
        # A second failure in a row may be the producer's own: it keeps what broke it for ever.
        if fenced or isinstance(error, OutcomeUnknownError) or failures > 1:
            self._move_with(Stage.REOPENING, error)
            self._reopen(error)
        else:
            self._move_with(Stage.FAILED, error)

    def _worth_another_try(self, error: Exception, failures: int) -> bool:
        if isinstance(error, FencedError):
            full = len(self._fences) == FENCES_MAX
            return not (full and self._fences[-1] - self._fences[0] < _FENCE_MEMORY_S)
        if isinstance(error, OutcomeUnknownError):
            return True
        return isinstance(error, ModelcastError) and error.retriable and failures < FAILURES_MAX

    def _reopen(self, cause: Exception) -> None:
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                self._close_producer()
                self._open()
            except BrokerError as error:
                if not error.retriable and not isinstance(error, OutcomeUnknownError):
                    self._move_with(Stage.BROKEN, error)
                    return
                _logger.info("no new producer yet: %s", error)
            except Exception as error:
                self._move_with(Stage.BROKEN, error)
                return
            else:
                self._move_with(Stage.FAILED, cause)
                return
            with self._changed:
                if self._changed.wait_for(lambda: self._state.closing, delay_s):
                    self._state.error = cause
                    self._move(Stage.FAILED)
                    return
            delay_s = min(_LAST_RETRY_S, delay_s * 2)

    def _move_with(self, stage: Stage, error: BaseException) -> None:
        with self._changed:
            self._state.error = error
            self._move(stage)

    def _move(self, stage: Stage) -> None:
        """Under the condition's lock; leaving RUNNING drops what is queued."""
        if stage not in TRANSITIONS[self._state.stage]:
            raise RuntimeError(f"a committer can't go from {self._state.stage.name} to {stage.name}")
        self._state.stage = stage
        self._state.queue.clear()
        self._changed.notify_all()

    @abstractmethod
    def _open(self) -> None:
        """Takes a producer."""

    @abstractmethod
    def _deliver(self, batch: ScoredBatch) -> Sequence[ScoredBatch]:
        """Makes the batch visible, and those behind it that it takes along; returns all of them."""

    @abstractmethod
    def _close_producer(self) -> None:
        """Frees the producer, if there is one."""

    def _produce(self, producer: BatchProducer, batch: ScoredBatch) -> None:
        for (topic, partition), records in batch.predictions.items():
            if "headers" in records[0]:  # all have them, or none
                for record in records:
                    producer.produce(topic, partition=partition, **record)
            else:
                producer.produce_batch(topic, partition, records)
        for letter in batch.dead_letters:
            producer.produce(
                self._to.dead_letters,
                key=letter.key,
                value=letter.value,
                partition=letter.partition,
                headers=letter.headers,
            )


class TransactionalCommitter(Committer):
    """Exactly-once: predictions, dead letters and offsets become visible in one transaction.

    Args:
        open_producer: Takes the scorer's transactional id, ending what a predecessor left open.
    """

    def __init__(
        self,
        destination: Destination,
        open_producer: Callable[[], TransactionalBatchProducer],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(destination, clock=clock)
        self._open_producer = open_producer
        self._producer: TransactionalBatchProducer | None = None

    @property
    def is_gathering(self) -> bool:
        """True while a transaction is under way: the next one begins after it."""
        return not self._is_idle

    def _open(self) -> None:
        self._producer = self._open_producer()

    def _close_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()

    def _deliver(self, batch: ScoredBatch) -> Sequence[ScoredBatch]:
        producer = self._producer
        if producer is None:
            raise OutcomeUnknownError("there is no producer: the last one was dropped")
        taken: list[ScoredBatch] = []
        offsets: dict[int, int] = {}
        producer.begin()
        try:
            following: ScoredBatch | None = batch
            while following is not None:
                taken.append(following)
                self._produce(producer, following)
                offsets.update(following.offsets)
                following = self._take_more(taken)
            producer.send_offsets(self._to.events, offsets, taken[-1].metadata)
            producer.commit()
        except Exception:
            producer.abort()
            raise
        return taken


class FlushingCommitter(Committer):
    """At-least-once: predictions are acknowledged first; their offsets are then the scoring thread's to commit."""

    def __init__(
        self,
        destination: Destination,
        open_producer: Callable[[], BatchProducer],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(destination, clock=clock)
        self._open_producer = open_producer
        self._producer: BatchProducer | None = None
        self._acknowledged: dict[int, int] = {}

    def take_acknowledged(self) -> Mapping[int, int]:
        """Next offsets by partition of what was acknowledged since the last call."""
        with self._changed:
            taken, self._acknowledged = self._acknowledged, {}
            return taken

    def _open(self) -> None:
        self._producer = self._open_producer()

    def _close_producer(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close()

    def _deliver(self, batch: ScoredBatch) -> Sequence[ScoredBatch]:
        producer = self._producer
        if producer is None:
            raise OutcomeUnknownError("there is no producer: the last one was dropped")
        taken = [batch]
        self._produce(producer, batch)
        hurry_until_s = self._clock() + HURRY_S
        settled = False
        while not settled:  # what was scored meanwhile goes along: it need not wait for these acknowledgements
            while (following := self._take_more(taken)) is not None:
                taken.append(following)
                self._produce(producer, following)
            if self._clock() < hurry_until_s:
                settled = producer.settle(SETTLE_STEP_S)
            else:
                producer.flush(FLUSH_TIMEOUT_S)
                settled = True
        with self._changed:
            for done in taken:
                self._acknowledged.update(done.offsets)
        return taken
