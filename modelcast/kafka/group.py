"""`KafkaGroupConsumer`: a member of a consumer group on one topic.

- A partition starts at the group's committed offset; without one at the beginning, or where the caller's own
  `auto.offset.reset` property says. An offset that is gone (retention passed it) is an error in every case, never a
  silent skip: librdkafka's reset is set to `error`, and starts without a commit are given explicitly at assignment.
- Committed offsets of another member's open transaction are waited for (the broker calls them unstable): reading on
  from before them would score those events twice.
- Callbacks run inside `consume` and `close` (there on another thread, while the caller waits); `on_revoke` may block to
  finish a transaction, the assignment is given up when it returns. What a callback raises comes out of `consume`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from modelcast.bounded import BoundedCalls
from modelcast.errors import OffsetOutOfRangeError
from modelcast.group import COMMITTED_TIMEOUT_S, GroupMetadata, OnPartitions
from modelcast.group import Message as Event

from .connection import make_consumer
from .faults import PASSING, Faults, error_of, reading
from .progress import UNANSWERED, ask_committed
from .settings import LOGGER, group_settings

_COMMIT_PAUSE_S: Final = 0.05
COMMIT_TIMEOUT_S: Final = 30.0
# Closed in the middle of a rebalance, the client was seen to wait for its end for ever. `on_revoke` may finish a
# transaction meanwhile, which is what most of this time is for.
CLOSE_TIMEOUT_S: Final = 60.0
# Of a member that was never let in: there is nothing to leave, and the client would look for its coordinator for ever.
_DENIED_CLOSE_TIMEOUT_S: Final = 1.0
# What may lie before the news of a rebalance: all that one call hands out.
_LAST_EVENTS: Final = 10_000

# A leader that does not answer within this is not there to be fetched from either.
_WAKE_TIMEOUT_S: Final = 0.5
_FAR_FUTURE_MS: Final = 1 << 60

_FENCED: Final = KafkaError(KafkaError.FENCED_INSTANCE_ID)
_FENCED_WORDS: Final = _FENCED.str().removeprefix("Broker: ")


class KafkaGroupConsumer:
    """A `modelcast.group.GroupConsumer`; made by `KafkaLog.group_consumer`. Single-threaded.

    `group_metadata`, `pause`, `resume`, `assignment` and `positions` may be called from another thread.
    """

    def __init__(
        self,
        settings: Mapping[str, str],
        faults: Faults,
        *,
        group: str,
        instance: str | None,
        session_timeout_ms: int,
        committed: bool,
    ) -> None:
        self._faults = faults
        self._group = group
        self._topic = ""
        self._positions: dict[int, int] = {}
        self._closing = False
        self._denied = False
        self._start = settings.get("auto.offset.reset", "earliest").lower()
        self._settings = merged = group_settings(
            settings, group=group, instance=instance, session_timeout_ms=session_timeout_ms, committed=committed
        )
        # These two rebalance by differences; every other strategy hands out whole assignments.
        self._incremental = merged.get("group.protocol") == "consumer" or "cooperative" in str(
            merged.get("partition.assignment.strategy")
        )
        self._consumer = make_consumer(merged, faults)

    def subscribe(self, topic: str, *, on_assign: OnPartitions, on_revoke: OnPartitions, on_lost: OnPartitions) -> None:
        """Joins the group for `topic`; callbacks get partition numbers, inside `consume`."""
        self._topic = topic

        def assigned(_: Consumer, partitions: list[TopicPartition]) -> None:
            if self._closing:  # nobody will consume it, but the client waits to be told that it was taken
                (self._consumer.incremental_assign if self._incremental else self._consumer.assign)(partitions)
                return
            numbers = [partition.partition for partition in partitions]
            self._assign(numbers)
            on_assign(numbers)

        def revoked(_: Consumer, partitions: list[TopicPartition]) -> None:
            on_revoke([partition.partition for partition in partitions])
            self._unassign(partitions)

        def lost(_: Consumer, partitions: list[TopicPartition]) -> None:
            on_lost([partition.partition for partition in partitions])
            self._unassign(partitions)

        self._consumer.subscribe([topic], on_assign=assigned, on_revoke=revoked, on_lost=lost)

    def consume(self, max_messages: int, timeout_s: float) -> Sequence[Event]:
        """At most `max_messages`; waits for all of them or the timeout (0: whatever is there).

        Raises:
            OffsetOutOfRangeError: Retention deleted what the group has not read.
            FencedError: Another process runs as this static instance.
            BrokerError: The broker refuses. One that is away is waited for.
        """
        try:
            messages = self._consumer.consume(max_messages, timeout_s)
        except KafkaException as error:
            raise self._faults.explain(
                error_of(error), f"can't read topic {self._topic!r}", reading(self._topic)
            ) from error
        if any(map(Message.error, messages)):
            messages = [message for message in messages if not self._is_event_free(message)]
        return cast("Sequence[Event]", messages)

    def group_metadata(self) -> GroupMetadata:
        """The member's generation now: take it with a batch and hand it back with the batch's commit."""
        return GroupMetadata(self._consumer.consumer_group_metadata())

    def assignment(self) -> Sequence[int]:
        """Partitions this member has."""
        return sorted(partition.partition for partition in self._consumer.assignment())

    def positions(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Next offsets to be consumed, past transaction markers; partitions without one yet are left out."""
        asked = self._consumer.position([TopicPartition(self._topic, number) for number in partitions])
        known = {found.partition: max(found.offset, self._positions.get(found.partition, -1)) for found in asked}
        return {number: offset for number, offset in known.items() if offset >= 0}

    def committed(self, partitions: Sequence[int], timeout_s: float = COMMITTED_TIMEOUT_S) -> Mapping[int, int]:
        """The group's committed offsets; partitions without one are left out.

        Raises:
            BrokerError: No answer within `timeout_s`, or a transaction holds them open for longer.
        """
        wanted = [TopicPartition(self._topic, number) for number in partitions]
        found = ask_committed(self._consumer, wanted, self._settings, self._faults, self._group, timeout_s=timeout_s)
        return {partition.partition: partition.offset for partition in found if partition.offset >= 0}

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Goes to these offsets; what was fetched ahead is dropped."""
        for number, offset in offsets.items():
            try:
                self._consumer.seek(TopicPartition(self._topic, number, offset))
            except KafkaException as error:
                raise self._faults.explain(
                    error_of(error), f"can't go to offset {offset} of {self._topic!r}, partition {number}"
                ) from error
            self._positions[number] = offset

    def pause(self, partitions: Sequence[int]) -> None:
        """Stops handing out events of these partitions; keep calling `consume`, which is what keeps the member in."""
        self._consumer.pause([TopicPartition(self._topic, number) for number in partitions])

    def resume(self, partitions: Sequence[int]) -> None:
        """Undoes `pause`."""
        self._consumer.resume([TopicPartition(self._topic, number) for number in partitions])
        self._wake(partitions)

    def _wake(self, partitions: Sequence[int]) -> None:
        # A broker's thread that had nothing to fetch sleeps for up to 1 s and is not told of a resume; any request to
        # the partitions' leaders wakes it (first event after 0.06 s, not 1.02 s). What it asks does not matter.
        ends = [TopicPartition(self._topic, number, _FAR_FUTURE_MS) for number in partitions]
        if ends:
            with contextlib.suppress(KafkaException):
                self._consumer.offsets_for_times(ends, timeout=_WAKE_TIMEOUT_S)

    def commit(self, offsets: Mapping[int, int]) -> None:
        """Commits next offsets, waiting for the answer.

        Raises:
            BrokerError: Refused (the group was rebalanced meanwhile), or no answer within `COMMIT_TIMEOUT_S`.
        """
        wanted = [TopicPartition(self._topic, number, offset) for number, offset in offsets.items()]
        deadline = time.monotonic() + COMMIT_TIMEOUT_S
        while True:
            failed: Any = None
            try:
                answered = self._consumer.commit(offsets=wanted, asynchronous=False)
                failed = next((partition.error for partition in answered if partition.error is not None), None)
            except KafkaException as error:
                failed = error_of(error)
            if failed is None:
                return
            if failed.code() not in UNANSWERED or time.monotonic() > deadline:
                raise self._faults.explain(
                    failed, f"can't commit offsets of group {self._group!r}", reading(self._topic)
                )
            time.sleep(_COMMIT_PAUSE_S)

    def close(self) -> None:
        """Gives up the assignment (calling `on_revoke`) and leaves the group; a static member only goes silent.

        A client that does not come to its end within `CLOSE_TIMEOUT_S` is left to a thread of its own.
        """
        self._closing = True
        # An assignment that is on its way has to be taken now: the client's thread that would answer ends in `close`,
        # and whoever waited for it would hold the interpreter for ever. Events that come with it stay uncommitted.
        with contextlib.suppress(KafkaException, RuntimeError):
            self._consumer.consume(_LAST_EVENTS, 0)
        bounded = BoundedCalls(f"modelcast-leave-{self._group}")
        try:
            bounded.run(self._consumer.close, _DENIED_CLOSE_TIMEOUT_S if self._denied else CLOSE_TIMEOUT_S)
        except TimeoutError:
            if self._denied:
                return
            LOGGER.warning(
                "group %s could not be left in %g s; the broker will miss the member", self._group, CLOSE_TIMEOUT_S
            )
        finally:
            bounded.close()

    def _assign(self, numbers: Sequence[int]) -> None:
        committed = self.committed(numbers) if numbers else {}
        starts = []
        for number in numbers:
            offset = committed.get(number)
            if offset is not None:
                self._positions[number] = offset
            starts.append(TopicPartition(self._topic, number, self._first() if offset is None else offset))
        if self._incremental:
            self._consumer.incremental_assign(starts)
        else:
            self._consumer.assign(starts)

    def _unassign(self, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._positions.pop(partition.partition, None)
        # The client remembers a pause of ours beyond the assignment: a partition that comes back would stay silent.
        self._consumer.resume(partitions)
        if self._incremental:
            self._consumer.incremental_unassign(partitions)
        else:
            self._consumer.unassign()

    def _first(self) -> int:
        if self._start in ("latest", "largest", "end"):
            return OFFSET_END
        if self._start in ("error",):
            raise OffsetOutOfRangeError(
                f"group {self._group!r} has no committed offset on topic {self._topic!r}",
                hint="The property auto.offset.reset=error asks for one; `earliest` starts at the beginning.",
            )
        return OFFSET_BEGINNING

    def _is_event_free(self, message: Message) -> bool:
        """True of a message that only carries news; raises those that are errors."""
        error = message.error()
        if error is None:
            return False
        partition, offset = message.partition(), message.offset()
        if error.code() == KafkaError._PARTITION_EOF:
            if partition is not None and offset is not None:
                self._positions[partition] = max(self._positions.get(partition, -1), offset)
            return True
        if error.code() in PASSING and not error.fatal():
            LOGGER.debug("group %s: %s", self._group, error)
            return True
        if error.code() == KafkaError._FATAL and _FENCED_WORDS in error.str():
            error = _FENCED  # a consumer's fatal error names its cause in its text only
        self._denied = error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED
        where = f"can't read topic {self._topic!r} in group {self._group!r}"
        if partition is not None and partition >= 0:
            where += f", partition {partition} from offset {offset}"
        explained = self._faults.explain(error, where, reading(self._topic))
        if isinstance(explained, OffsetOutOfRangeError):
            explained = OffsetOutOfRangeError(explained.message, hint=self._how_to_go_on(explained.hint))
        raise explained

    def _how_to_go_on(self, cause: str | None) -> str:
        return (
            f"{cause or ''} To go on without them: kafka-consumer-groups.sh --bootstrap-server … --group {self._group} "
            f"--topic {self._topic} --reset-offsets --to-earliest --execute"
        ).lstrip()
