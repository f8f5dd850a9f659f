"""`KafkaGroupProgress`: offsets of a consumer group that nobody joins, for work that is not shared.

Whoever holds a transactional id is alone anyway: a member would only have to be waited for after it was killed. The
offsets are committed inside the holder's transactions, with the metadata given here; Kafka takes them for a group
without members. It forgets them `offsets.retention.minutes` (7 days by default) after the last commit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from modelcast.errors import BrokerError
from modelcast.group import COMMITTED_TIMEOUT_S, GroupMetadata, Progress

from .connection import make_consumer
from .faults import Faults, error_of, reading
from .settings import group_settings

_ATTEMPT_S: Final = 5.0
_PAUSE_S: Final = 0.05
_HELD_OPEN_HINT: Final = (
    "Its producer is in mid-commit, or died and Kafka ends it when its transaction.timeout.ms is over. One that stays "
    "was lost by Kafka: kafka-transactions.sh --bootstrap-server … find-hanging --topic __consumer_offsets names it, "
    "and abort ends it."
)
# Nobody joins, so no session ever ends; the client wants a number that brokers take.
_SESSION_TIMEOUT_MS: Final = 45_000

UNANSWERED: Final = frozenset({
    KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._WAIT_COORD, KafkaError.REQUEST_TIMED_OUT,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.COORDINATOR_NOT_AVAILABLE, KafkaError.NOT_COORDINATOR,
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    # The client lets go of a bootstrap connection once it knows the brokers; what was asked over it is asked again.
    KafkaError._DESTROY_BROKER,
})  # fmt: skip


class KafkaGroupProgress:
    """A `modelcast.group.GroupProgress`; made by `KafkaLog.group_progress`."""

    def __init__(self, settings: Mapping[str, str], faults: Faults, group: str) -> None:
        self._faults = faults
        self._group = group
        self._settings = group_settings(
            settings, group=group, instance=None, session_timeout_ms=_SESSION_TIMEOUT_MS, committed=True
        )
        self._consumer = make_consumer(self._settings, faults)

    def committed(self, topic: str, partitions: Sequence[int]) -> Mapping[int, Progress]:
        """What the group has committed; partitions without anything are left out.

        Raises:
            BrokerError: No answer within `COMMITTED_TIMEOUT_S`, or a transaction holds them open for longer.
        """
        wanted = [TopicPartition(topic, number) for number in partitions]
        found = ask_committed(self._consumer, wanted, self._settings, self._faults, self._group, refusal=self._refusal)
        return {
            partition.partition: Progress(partition.offset, partition.metadata or "")
            for partition in found
            if partition.offset >= 0
        }

    def metadata(self) -> GroupMetadata:
        """For commits inside a transaction."""
        return GroupMetadata(self._consumer.consumer_group_metadata())

    def close(self) -> None:
        """Frees the connection."""
        self._consumer.close()

    def _refusal(self) -> KafkaError | None:
        """Why the group can't be used: whoever asks for its offsets only waits, the consumer's own queue says it."""
        message = self._consumer.poll(0)
        error = None if message is None else message.error()
        return error if error is not None and error.code() == KafkaError.GROUP_AUTHORIZATION_FAILED else None


def ask_committed(
    consumer: Consumer,
    wanted: list[TopicPartition],
    settings: Mapping[str, Any],
    faults: Faults,
    group: str,
    *,
    timeout_s: float = COMMITTED_TIMEOUT_S,
    refusal: Callable[[], KafkaError | None] = lambda: None,
) -> Sequence[TopicPartition]:
    """A group's committed offsets once no transaction holds any of them open.

    Args:
        consumer: Of the group.
        wanted: The partitions.
        settings: The consumer's.
        faults: The consumer's.
        group: Its name.
        timeout_s: How long to ask.
        refusal: What else may say why there is no answer.

    Raises:
        AuthorizationError: An ACL is missing.
        BrokerError: No answer within `timeout_s`, or a transaction holds them open for longer.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            found = consumer.committed(wanted, timeout=min(timeout_s, _ATTEMPT_S))
            failed = next((partition.error for partition in found if partition.error is not None), None)
        except KafkaException as error:
            found, failed = [], error_of(error)
        if failed is None:
            return found
        if failed.code() in UNANSWERED:
            failed = refusal() or failed
        if failed.code() not in UNANSWERED or time.monotonic() > deadline:
            doing = f"can't read the offsets of group {group!r}"
            if failed.code() == KafkaError._TIMED_OUT and _are_held_open(wanted, settings, faults):
                raise BrokerError(f"{doing}: a transaction holds them open", hint=_HELD_OPEN_HINT)
            raise faults.explain(failed, doing, reading(wanted[0].topic if wanted else None))
        time.sleep(_PAUSE_S)


def _are_held_open(wanted: list[TopicPartition], settings: Mapping[str, Any], faults: Faults) -> bool:
    """Whether there is an answer for who does not mind open transactions: the client waits for their end in silence."""
    try:
        consumer = make_consumer({**settings, "isolation.level": "read_uncommitted"}, faults)
    except BrokerError:
        return False
    try:
        return all(found.error is None for found in consumer.committed(wanted, timeout=_ATTEMPT_S))
    except KafkaException:
        return False
    finally:
        consumer.close()
