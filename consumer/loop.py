"""The scoring thread: consumes, scores, hands on to the committer; never blocks where it must keep polling.

- One event is waited for, then whatever more has arrived is taken up to the sizer's limit: no latency is spent on
  filling batches, and a backlog fills them by itself.
- Events wait in Kafka while nothing can score them (no release yet, the producer being reopened, a schema not described
  yet): partitions are paused and polling goes on, so that the group keeps this member.
- A batch that may take long runs on a helper thread while this one polls.
- Every change of the assignment starts a new epoch. A batch taken under an older epoch is dropped, and what of it is
  still assigned is read again from the committed offsets.
- On revoke, what was handed on is finished before the partitions are given up; on loss it is dropped.
- Positions are only ever moved back to committed offsets, after the committer has come to rest.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from dataclasses import dataclass
from functools import partial

from modelcast.errors import BrokerError, FencedError, ModelcastError, ModelNotFoundError
from modelcast.events.frames import Headers, describe_frame
from modelcast.group import GroupConsumer, GroupMetadata, Message

from .assignment import Assignment
from .batches import BatchSizer, EventBatch
from .collector import QuietCollector
from .commit import Committer, ScoredBatch, Stage
from .end import EndOfTopic
from .lineup import Leased, Lineup
from .scoring import ModelFaultError, Scored, Scoring, Unresolved
from .servable import Servable

# How long one poll waits for a first event: `stop` and a new release are noticed this late when nothing arrives.
IDLE_WAIT_S = 0.1
# A batch that takes longer than this runs on the helper thread; a poll a second then keeps the membership.
RUN_INLINE_S = 1.0
# A full queue is waited for this long before polling goes on with paused partitions: pausing drops what was fetched.
FULL_QUEUE_PATIENCE_S = 5.0
# How long a schema may be behind its first event; its writer describes it before, so this is another cluster's delay.
UNKNOWN_SCHEMA_PATIENCE_S = 10.0
# Polls that fail in a row before the failure is the caller's; each is a broker's refusal, an absent one is no failure.
POLL_FAILURES_MAX = 20
# A coordinator that crashes while a static member rejoins fences that member: it joins again. This many fences within
# this time (heartbeats notice one in seconds) are another process under the same id, and the older one has to go.
FENCES_MAX = 3
FENCE_MEMORY_S = 30.0
# On revoke the group waits for this member; a commit takes milliseconds, and a restarted broker 3 s.
REVOKE_DRAIN_S = 20.0
CLOSE_DRAIN_S = 30.0
# Offsets of acknowledged records are committed this often (at-least-once): what a kill repeats, beside batches.
ACKNOWLEDGED_COMMIT_S = 0.5
# A batch of few costs as much as one of some hundred: while those before it are still being committed, so long is
# waited for more. Not where events come one by one, slower than they are scored.
GATHER_S = 0.002
GATHERED_EVENTS = 256
# Asking for the group's metadata takes the client 0.1 ms. An older answer is safe: if the group moved on since, the
# broker refuses what is committed with it; only a fresher one than the batch would let through what is another's.
METADATA_MAX_AGE_S = 0.1
# How often the group's offsets are asked for, near the end, and how long: it is asked again, and why there is no answer
# a poll says.
END_CHECK_S = 0.1
END_CHECK_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class LoopHooks:
    """What a loop tells its owner, on the scoring thread: be quick.

    Attributes:
        knows_fields: Whether anything is known about the events' fields.
        learn: The value and the headers of one event of each batch: its fields may be new.
        model_failed: The model of that place fails with this version, and not because of its events.
        waiting: Why events wait, or None when they no longer do.
        recovering: Why a batch was dropped.
        tick: Called between batches, and while waiting.
    """

    knows_fields: Callable[[], bool]
    learn: Callable[[bytes | None, Headers], None]
    model_failed: Callable[[int, Servable, str], None]
    waiting: Callable[[str | None], None]
    recovering: Callable[[BaseException], None]
    tick: Callable[[], None]


class ScoringLoop:
    """One scorer's loop; `run` is the scoring thread, `stop` may be called from any.

    Args:
        topic: The events topic.
        open_consumer: Makes the group's member; called again if it is fenced.
        partitions: How many it has.
        end: Where to end, or None to go on for ever.
    """

    def __init__(
        self,
        topic: str,
        partitions: int,
        open_consumer: Callable[[], GroupConsumer],
        committer: Committer,
        scoring: Scoring,
        lineup: Lineup,
        hooks: LoopHooks,
        *,
        end: EndOfTopic | None = None,
        sizer: BatchSizer | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._topic = topic
        self._partitions = range(partitions)
        self._open_consumer = open_consumer
        self._consumer = open_consumer()
        self._committer = committer
        self._scoring = scoring
        self._lineup = lineup
        self._hooks = hooks
        self._end = end
        self._sizer = sizer or BatchSizer()
        self._clock = clock
        self._sleep = sleep
        self._assignment = Assignment(self._consumer)
        self._fences: deque[float] = deque(maxlen=FENCES_MAX)
        self._fence: FencedError | None = None
        self._stopped = False
        self._helper = ThreadPoolExecutor(1, thread_name_prefix="modelcast-run")
        self._in_hand: EventBatch | None = None
        self._rewind_at_s: float | None = None
        self._failure_noted = False
        self._ended = False
        self._poll_failures = 0
        self._acknowledged_at_s = 0.0
        self._end_checked_at_s = 0.0
        self._known_metadata: tuple[int, float, GroupMetadata | None] = (-1, 0.0, None)

    def stop(self) -> None:
        """Ends `run` after the batch at hand. Thread-safe, and safe in a signal handler."""
        self._stopped = True

    def run(self) -> None:
        """Scores until stopped or at the end, then finishes what was handed on.

        Raises:
            FencedError: Another process runs as this instance.
            OffsetOutOfRangeError: Retention deleted events that were not scored.
            ModelcastError: What made the committer give up.
        """
        self._subscribe()
        try:
            with QuietCollector() as collector:
                while not self._stopped and not self._is_done():
                    self._turn()
                    collector.between_batches()
        finally:
            self._helper.shutdown(wait=True)
        if self._committer.drain(CLOSE_DRAIN_S):
            self._commit_acknowledged()

    def close(self) -> None:
        """Gives up the partitions."""
        self._consumer.close()

    def positions(self) -> Mapping[int, int | None]:
        """The next offset to be scored of each partition, None where none is known; for the scoring thread."""
        in_hand = {} if self._in_hand is None else self._in_hand.first_offsets()
        return {p: in_hand.get(p, position) for p, position in self._assignment.positions().items()}

    def _subscribe(self) -> None:
        self._consumer.subscribe(self._topic, on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)

    def _turn(self) -> None:
        self._hooks.tick()
        reason = self._reason_to_wait()
        if reason is not None:
            self._hooks.waiting(reason)
            if not self._lineup.is_live and not self._hooks.knows_fields():
                self._peek()
            else:
                self._poll_paused(IDLE_WAIT_S)
            return
        self._hooks.waiting(None)
        self._assignment.resume()
        messages = self._take()
        if messages:
            self._process(messages)
            self._in_hand = None
        elif self._rewind_at_s is None:  # else the position may be behind events that were dropped
            self._commit_markers()
        self._commit_acknowledged_now_and_then()

    # -- what keeps events waiting

    def _reason_to_wait(self) -> str | None:
        match self._committer.stage:
            case Stage.BROKEN:
                raise self._committer.error or RuntimeError("the committer gave up without a reason")
            case Stage.REOPENING:
                return f"taking the transactional id again after: {self._committer.error}"
            case Stage.FAILED if not self._failure_noted:
                self._note_failure()
            case _:
                pass
        if self._rewind_at_s is not None and not self._rewind():
            return f"going back to the committed offsets after: {self._committer.error}"
        return self._lineup.reason_to_wait()

    def _note_failure(self) -> None:
        self._failure_noted = True
        self._rewind_at_s = self._clock() + self._committer.retry_delay_s
        error = self._committer.error
        if error is not None:
            self._hooks.recovering(error)

    def _rewind(self) -> bool:
        """Goes back to the committed offsets; False if it is not time yet, or Kafka does not answer."""
        if self._rewind_at_s is None or self._clock() < self._rewind_at_s:
            return False
        if self._committer.stage is not Stage.FAILED and not self._committer.drain(IDLE_WAIT_S):
            return False  # it failed meanwhile, or is slow: looked at again in the next turn
        try:
            self._commit_acknowledged()
            self._assignment.rewind()
        except BrokerError as error:
            if not error.retriable:
                raise
            self._rewind_at_s = self._clock() + IDLE_WAIT_S
            return False
        self._rewind_at_s = None
        self._failure_noted = False
        self._committer.resume()
        return True

    def _ask_rewind(self) -> None:
        if self._rewind_at_s is None:
            self._rewind_at_s = self._clock()

    def _poll_paused(self, timeout_s: float) -> None:
        """Keeps the membership without taking events."""
        self._assignment.pause()
        messages = self._consume(1, timeout_s)
        if messages:  # handed out before the pause took hold
            self._assignment.put_back(EventBatch.of(messages))

    def _peek(self) -> None:
        """Looks at the first event without taking it: a first version is checked against its fields."""
        self._assignment.resume()
        messages = self._consume(1, IDLE_WAIT_S)
        if messages:
            batch = EventBatch.of(messages)
            self._assignment.put_back(batch)
            self._hooks.learn(batch.values[0], batch.headers_of(0))

    def _consume(self, count: int, timeout_s: float) -> list[Message]:
        """Polls; a failure that may pass costs a new start in the group, unless it does not pass."""
        failure: ModelcastError
        try:
            if self._fence is not None:
                fence, self._fence = self._fence, None
                raise fence
            messages = list(self._consumer.consume(count, timeout_s))
        except FencedError as error:
            self._fences.append(self._clock())
            if len(self._fences) == FENCES_MAX and self._fences[-1] - self._fences[0] < FENCE_MEMORY_S:
                raise
            failure = error
        except BrokerError as error:
            self._poll_failures += 1
            if not error.retriable or self._poll_failures >= POLL_FAILURES_MAX:
                raise
            failure = error
        else:
            if messages:
                self._poll_failures = 0
            return messages
        failure.__traceback__ = None  # a circle: it leads here
        self._hooks.recovering(failure)
        self._rejoin()  # a client whose error is fatal would be silent from now on
        return []

    def _rejoin(self) -> None:
        """Takes the place in the group again, with a new client."""
        self._lost([])
        self._consumer.close()
        self._consumer = self._open_consumer()
        self._assignment = Assignment(self._consumer, epoch=self._assignment.epoch + 1)
        self._subscribe()

    # -- a batch

    def _take(self) -> list[Message]:
        messages = self._consume(1, IDLE_WAIT_S)
        if not messages or self._sizer.limit == 1:
            return messages
        epoch = self._assignment.epoch
        messages += self._consume(self._sizer.limit - 1, 0)
        if 1 < len(messages) < min(GATHERED_EVENTS, self._sizer.limit) and self._committer.is_gathering:
            self._sleep(GATHER_S)
            messages += self._consume(self._sizer.limit - len(messages), 0)
        if self._assignment.epoch != epoch:
            # The first event was taken under an assignment that is over; the others may have come after.
            self._assignment.consumed(EventBatch.of(messages))
            self._ask_rewind()
            return []
        return messages

    def _process(self, messages: Sequence[Message]) -> None:
        batch = self._in_hand = EventBatch.of(messages)
        self._assignment.consumed(batch)
        self._hooks.learn(batch.values[-1], batch.headers_of(-1))
        epoch = self._assignment.epoch
        metadata = self._metadata()
        scored = self._score(batch, epoch)
        if scored is not None:
            ready = ScoredBatch(
                epoch=epoch,
                events=len(batch),
                predictions=scored.predictions,
                dead_letters=scored.dead_letters,
                offsets=batch.next_offsets(),
                metadata=metadata,
                counts=scored.counts,
            )
            if self._hand_on(ready):
                return
        self._ask_rewind()  # what was dropped is still to be scored

    def _metadata(self) -> GroupMetadata:
        """The group's as of this epoch, never younger than the batch at hand."""
        now = self._clock()
        epoch, asked_s, metadata = self._known_metadata
        if metadata is None or epoch != self._assignment.epoch or now - asked_s > METADATA_MAX_AGE_S:
            metadata = self._consumer.group_metadata()
            self._known_metadata = (self._assignment.epoch, now, metadata)
        return metadata

    def _hand_on(self, ready: ScoredBatch) -> bool:
        """Queues a batch; False if it must be dropped."""
        while self._assignment.epoch == ready.epoch:
            if self._committer.submit(ready, FULL_QUEUE_PATIENCE_S):
                self._assignment.submitted(ready.offsets)
                return True
            if self._committer.stage is not Stage.RUNNING:
                return False
            self._poll_paused(0.0)
        return False

    def _score(self, batch: EventBatch, epoch: int) -> Scored | None:
        """Scores with whatever versions are live; None if the batch must be dropped."""
        patience_until_s: float | None = None
        while self._assignment.epoch == epoch and not self._stopped:
            try:
                with self._lineup.lease() as leased:
                    try:
                        result = self._score_with(leased, batch)
                    except ModelFaultError as error:
                        self._lineup.blame(error.model, leased)
                        self._hooks.model_failed(error.model, leased.servables[error.model], str(error))
                        return None
            except ModelNotFoundError:
                return None
            except BrokerError as error:
                if not error.retriable:
                    raise
                self._wait_with_batch(f"a schema can't be looked up: {error}")
                continue
            if isinstance(result, Scored):
                return result
            now = self._clock()
            patience_until_s = patience_until_s or now + UNKNOWN_SCHEMA_PATIENCE_S
            if now >= patience_until_s:
                self._scoring.give_up(result.frames)
                continue
            shown = ", ".join(describe_frame(frame) for frame in result.frames[:3])
            self._wait_with_batch(f"events name schemas that are not known (yet): {shown}")
        return None

    def _wait_with_batch(self, reason: str) -> None:
        self._hooks.waiting(reason)
        self._hooks.tick()
        self._poll_paused(IDLE_WAIT_S)

    def _score_with(self, leased: Leased, batch: EventBatch) -> Scored | Unresolved:
        started_s = self._clock()
        expected_s = self._sizer.expected_s(len(batch), leased.ids)
        score = partial(self._scoring.score, leased.servables, batch, self._lineup.excused())
        result = score() if expected_s is not None and expected_s < RUN_INLINE_S else self._run_aside(score)
        if isinstance(result, Scored):
            self._sizer.record(len(batch), batch.mean_bytes(), self._clock() - started_s, leased.ids)
        return result

    def _run_aside(self, score: Callable[[], Scored | Unresolved]) -> Scored | Unresolved:
        future = self._helper.submit(score)
        while True:
            try:
                return future.result(RUN_INLINE_S)
            except StillRunning:
                if future.done():  # since, or the timeout is the batch's own
                    return future.result()
                self._poll_paused(0.0)

    # -- the group

    def _assigned(self, partitions: Sequence[int]) -> None:
        self._assignment.assigned(partitions)

    def _revoked(self, partitions: Sequence[int]) -> None:
        # Not drained in time: the broker refuses what comes under the old generation.
        if not self._committer.drain(REVOKE_DRAIN_S):
            self._committer.discard()
            self._ask_rewind()  # incremental protocols leave partitions here, whose batches were dropped, too
        self._commit_acknowledged()
        self._assignment.revoked(partitions)

    def _lost(self, partitions: Sequence[int]) -> None:
        self._committer.discard()
        self._committer.drain(REVOKE_DRAIN_S)
        self._committer.take_acknowledged()  # another member has these partitions: they are not ours to commit
        self._assignment.revoked(partitions)

    # -- offsets beside batches

    def _commit_markers(self) -> None:
        """Commits positions that passed transaction markers only, so that the group's lag comes to nothing."""
        behind = self._assignment.markers_passed()
        if not behind:
            return
        metadata = self._metadata()
        if self._hand_on(ScoredBatch(self._assignment.epoch, 0, {}, (), behind, metadata)):
            return
        self._ask_rewind()

    def _commit_acknowledged_now_and_then(self) -> None:
        now = self._clock()
        if now - self._acknowledged_at_s >= ACKNOWLEDGED_COMMIT_S:
            self._acknowledged_at_s = now
            self._commit_acknowledged()

    def _commit_acknowledged(self) -> None:
        offsets = self._assignment.only_assigned(self._committer.take_acknowledged())
        if offsets:
            try:
                self._consumer.commit(offsets)
            except BrokerError as error:
                if not error.retriable:
                    raise
                # What was acknowledged is scored again: the guarantee allows it.
                self._hooks.recovering(error)
                self._ask_rewind()
            except FencedError as error:  # to be survived as one that a poll meets; here may be inside a callback
                self._fence = error
                self._ask_rewind()

    def _is_done(self) -> bool:
        if self._end is None or self._clock() - self._end_checked_at_s < END_CHECK_S:
            return False
        self._end_checked_at_s = self._clock()
        if not self._assignment.is_beyond(self._end.ends):
            return False
        self._commit_acknowledged()
        try:
            self._ended = not self.left()
        except BrokerError as error:
            if not error.retriable:
                raise
        return self._ended

    def left(self) -> Mapping[int, int]:
        """Offsets before the end that the group has not committed; nothing without an end. Raises BrokerError."""
        if self._end is None or self._ended:
            return {}
        return self._end.left(self._consumer.committed(list(self._partitions), END_CHECK_TIMEOUT_S))
