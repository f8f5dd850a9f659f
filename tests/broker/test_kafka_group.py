"""The data plane on a real broker: group members, batches, and transactions that commit consumed offsets."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from modelcast.errors import BrokerError, FencedError, OffsetOutOfRangeError
from modelcast.group import Message
from modelcast.kafka import KafkaGroupConsumer, KafkaLog
from modelcast.log import BEGINNING, TopicSpec
from tests.brokers import Broker
from tests.log_contract import DEADLINE_S, fresh, put, read_to, read_until, settled_ends, values

# No test waits for the end of one, and a machine that stands still for some seconds ends none.
SESSION_TIMEOUT_MS = 45_000
# Of members whose absence nobody may notice, however slowly they come back.
LASTING_SESSION_MS = 120_000
# Longer than any test takes: none waits for a transaction to be ended by the broker.
TRANSACTION_TIMEOUT_MS = 120_000


@dataclass
class Member:
    """A subscribed consumer, and what its callbacks said."""

    consumer: KafkaGroupConsumer
    calls: list[tuple[str, tuple[int, ...]]] = field(default_factory=list)

    def consume(self, done: Callable[[list[Message]], bool]) -> list[Message]:
        """Consumes until `done` of what arrived, or fails at the deadline."""
        messages: list[Message] = []
        deadline = time.monotonic() + DEADLINE_S
        while not done(messages):
            assert time.monotonic() < deadline, f"not reached; {len(messages)} messages, calls {self.calls}"
            messages.extend(self.consumer.consume(1_000, 0.1))
        return messages

    def await_assignment(self, *partitions: int) -> None:
        self.consume(lambda _: tuple(self.consumer.assignment()) == partitions)


@pytest.fixture
def log(broker: Broker) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as log:
        yield log


@pytest.fixture
def join(log: KafkaLog) -> Iterator[Callable[..., Member]]:
    """Makes members of groups; all are closed at the end."""
    with ExitStack() as stack:

        def make(
            topic: str,
            *,
            using: KafkaLog = log,
            instance: str | None = None,
            session_timeout_ms: int = SESSION_TIMEOUT_MS,
            **callbacks: Any,
        ) -> Member:
            consumer = using.group_consumer(f"group-{topic}", instance=instance, session_timeout_ms=session_timeout_ms)
            stack.enter_context(suppress(RuntimeError))  # a test may have closed it already
            stack.callback(consumer.close)
            member = Member(consumer)

            def heard(name: str) -> Callable[[Sequence[int]], None]:
                def call(partitions: Sequence[int]) -> None:
                    member.calls.append((name, tuple(partitions)))
                    if name in callbacks:
                        callbacks[name](partitions)

                return call

            consumer.subscribe(
                topic, on_assign=heard("on_assign"), on_revoke=heard("on_revoke"), on_lost=heard("on_lost")
            )
            return member

        yield make


def numbers(messages: Sequence[Message]) -> list[bytes | None]:
    return [message.value() for message in messages]


# Members


def test_a_member_starts_at_the_beginning_and_then_where_the_group_committed(
    log: KafkaLog, join: Callable[..., Member]
) -> None:
    topic = fresh(log, partitions=2)
    put(log, topic, b"a", b"b", b"c")
    first = join(topic)
    assert numbers(first.consume(lambda read: len(read) == 3)) == [b"a", b"b", b"c"]
    assert first.consumer.positions([0, 1])[0] == 3
    assert first.consumer.committed([0, 1]) == {}
    first.consumer.commit({0: 2})
    assert first.consumer.committed([0, 1]) == {0: 2}
    first.consumer.close()
    assert first.calls == [("on_assign", (0, 1)), ("on_revoke", (0, 1))]
    second = join(topic)
    assert numbers(second.consume(bool)) == [b"c"]


def test_the_position_of_a_member_reaches_the_true_end_of_empty_and_of_aborted_partitions(
    log: KafkaLog, join: Callable[..., Member]
) -> None:
    topic = fresh(log, partitions=2)
    with closing(log.transactional_writer(topic, timeout_ms=TRANSACTION_TIMEOUT_MS)) as writer:
        writer.begin()
        writer.send(topic, key=None, value=b"dropped", partition=0)
        writer.flush(DEADLINE_S)
        writer.abort()
    ends = settled_ends(log, topic)
    assert ends == {0: 2, 1: 0}
    member = join(topic)
    assert member.consume(lambda _: dict(member.consumer.positions([0, 1])) == ends) == []


def test_events_of_an_open_transaction_are_not_handed_out(log: KafkaLog, join: Callable[..., Member]) -> None:
    topic = fresh(log)
    with closing(log.transactional_writer(topic, timeout_ms=TRANSACTION_TIMEOUT_MS)) as writer:
        writer.begin()
        writer.send(topic, key=None, value=b"x", partition=0)
        writer.flush(DEADLINE_S)
        member = join(topic)
        member.await_assignment(0)
        assert member.consumer.consume(10, 0.5) == []
        writer.commit()
        assert numbers(member.consume(bool)) == [b"x"]


def test_right_after_a_seek_the_position_is_where_it_went(log: KafkaLog, join: Callable[..., Member]) -> None:
    topic = fresh(log)
    put(log, topic, b"a", b"b", b"c")
    member = join(topic)
    member.consume(lambda read: len(read) == 3)
    member.consumer.seek({0: 1})
    assert member.consumer.positions([0]) == {0: 1}, "what was read before the seek is still to be read"
    assert numbers(member.consume(lambda read: len(read) == 2)) == [b"b", b"c"]
    assert member.consumer.positions([0]) == {0: 3}


def test_seek_pause_and_resume(log: KafkaLog, join: Callable[..., Member]) -> None:
    topic = fresh(log)
    put(log, topic, b"a", b"b", b"c")
    member = join(topic)
    member.consume(lambda read: len(read) == 3)
    member.consumer.seek({0: 1})
    assert member.consumer.positions([0]) == {0: 1}
    assert numbers(member.consume(lambda read: len(read) == 2)) == [b"b", b"c"]
    member.consumer.pause([0])
    put(log, topic, b"d")
    assert member.consumer.consume(10, 0.5) == []
    member.consumer.resume([0])
    assert numbers(member.consume(bool)) == [b"d"]


@pytest.mark.parametrize("start", [{}, {"auto.offset.reset": "latest"}])
def test_an_offset_that_retention_passed_is_an_error_never_a_skip(
    broker: Broker, log: KafkaLog, join: Callable[..., Member], start: dict[str, str]
) -> None:
    topic = fresh(log)
    put(log, topic, b"a", b"b", b"c", b"d")
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers, **start}) as using:
        first = join(topic, using=using)
        first.await_assignment(0)
        first.consumer.commit({0: 1})
        first.consumer.close()
        admin = AdminClient({"bootstrap.servers": broker.bootstrap_servers})
        admin.delete_records([TopicPartition(topic, 0, 3)])[TopicPartition(topic, 0)].result()
        second = join(topic, using=using)
        with pytest.raises(OffsetOutOfRangeError, match=f"{topic}.*partition 0 from offset 1") as raised:
            second.consume(bool)
    assert raised.value.retriable is False
    assert "--reset-offsets" in (raised.value.hint or "")


def test_where_a_group_without_offsets_starts_is_the_callers_choice(
    broker: Broker, log: KafkaLog, join: Callable[..., Member]
) -> None:
    topic = fresh(log)
    put(log, topic, b"old")
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers, "auto.offset.reset": "latest"}) as using:
        member = join(topic, using=using)
        member.consume(lambda _: dict(member.consumer.positions([0])) == {0: 1})
        put(log, topic, b"new")
        assert numbers(member.consume(bool)) == [b"new"]


@pytest.mark.parametrize(
    "protocol",
    [{}, {"partition.assignment.strategy": "cooperative-sticky"}, {"group.protocol": "consumer"}],
    ids=["range", "cooperative", "kip-848"],
)
def test_partitions_move_between_members_and_nothing_is_read_twice(
    broker: Broker, log: KafkaLog, join: Callable[..., Member], protocol: dict[str, str]
) -> None:
    topic = fresh(log, partitions=2)
    put(log, topic, b"a0", b"a1", partition=0)
    put(log, topic, b"b0", b"b1", partition=1)
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers, **protocol}) as using:
        first = join(topic, using=using)
        first.consume(lambda read: len(read) == 4)
        first.consumer.commit({0: 2, 1: 2})
        second = join(topic, using=using)
        deadline = time.monotonic() + DEADLINE_S
        while not (len(first.consumer.assignment()) == len(second.consumer.assignment()) == 1):
            assert time.monotonic() < deadline, (first.calls, second.calls)
            assert first.consumer.consume(100, 0.05) == []
            assert second.consumer.consume(100, 0.05) == []
        put(log, topic, b"a2", partition=0)
        put(log, topic, b"b2", partition=1)
        read = {numbers(member.consume(bool))[0] for member in (first, second)}
        assert read == {b"a2", b"b2"}
        assert any(name == "on_revoke" for name, _ in first.calls)


def test_a_pause_ends_with_the_assignment(log: KafkaLog, join: Callable[..., Member]) -> None:
    topic = fresh(log, partitions=2)
    member = join(topic)
    member.await_assignment(0, 1)
    member.consumer.pause([0, 1])
    other = join(topic)
    deadline = time.monotonic() + DEADLINE_S
    while not (len(member.consumer.assignment()) == len(other.consumer.assignment()) == 1):
        assert time.monotonic() < deadline, (member.calls, other.calls)
        for one in (member, other):
            one.consumer.consume(1, 0.05)
    other.consumer.close()
    member.await_assignment(0, 1)
    put(log, topic, b"a", partition=0)
    put(log, topic, b"b", partition=1)
    assert set(numbers(member.consume(lambda read: len(read) == 2))) == {b"a", b"b"}


def test_a_static_member_that_restarts_has_its_partitions_back_at_once_without_a_rebalance(
    log: KafkaLog, join: Callable[..., Member]
) -> None:
    topic = fresh(log, partitions=2)
    one, two = (join(topic, instance=name, session_timeout_ms=LASTING_SESSION_MS) for name in ("one", "two"))
    deadline = time.monotonic() + DEADLINE_S
    while not (len(one.consumer.assignment()) == len(two.consumer.assignment()) == 1):
        assert time.monotonic() < deadline, (one.calls, two.calls)
        one.consumer.consume(1, 0.05)
        two.consumer.consume(1, 0.05)
    (mine,) = one.consumer.assignment()
    calls_of_two = list(two.calls)
    one.consumer.close()
    started = time.monotonic()
    again = join(topic, instance="one", session_timeout_ms=LASTING_SESSION_MS)
    again.await_assignment(mine)
    assert time.monotonic() - started < LASTING_SESSION_MS / 1000 / 2
    two.consumer.consume(1, 0.5)
    assert two.calls == calls_of_two


def test_what_a_callback_raises_comes_out_of_consume(log: KafkaLog, join: Callable[..., Member]) -> None:
    def fail(_: Sequence[int]) -> None:
        raise BrokerError("on purpose")

    member = join(fresh(log), on_assign=fail)
    with pytest.raises(BrokerError, match="on purpose"):
        member.consume(bool)


# Batches


def test_a_hundred_thousand_records_arrive_in_order_through_a_small_queue(broker: Broker) -> None:
    settings = {"bootstrap.servers": broker.bootstrap_servers, "queue.buffering.max.messages": "3000"}
    with KafkaLog(settings) as log:
        topic = fresh(log, partitions=2)
        with closing(log.batch_producer()) as producer:
            for start in range(0, 100_000, 5_000):
                for partition in (0, 1):
                    span = range(start + partition, start + 5_000, 2)
                    producer.produce_batch(
                        topic, partition, [{"key": b"k", "value": b"%d" % number} for number in span]
                    )
            producer.flush(DEADLINE_S)
        with closing(log.reader(topic, {0: BEGINNING, 1: BEGINNING})) as reader:
            records = read_to(reader, {0: 50_000, 1: 50_000})
    for partition in (0, 1):
        read = [int(record.value or b"-1") for record in records if record.partition == partition]
        assert read == list(range(partition, 100_000, 2))


def test_a_single_record_may_have_headers_and_a_time(log: KafkaLog) -> None:
    topic = fresh(log, partitions=2)
    with closing(log.batch_producer()) as producer:
        producer.produce(
            topic, key=b"k", value=None, partition=1, timestamp_ms=1_700_000_000_000, headers=[("h", b"v")]
        )
        producer.flush(DEADLINE_S)
    with closing(log.reader(topic, {1: BEGINNING})) as reader:
        (record,) = read_until(reader, bool)
    assert (record.partition, record.timestamp_ms, record.value) == (1, 1_700_000_000_000, None)
    assert record.headers == (("h", b"v"),)


def test_flush_tells_what_of_a_batch_was_refused(log: KafkaLog) -> None:
    topic = fresh(log, max_message_bytes="2000")
    with closing(log.batch_producer()) as producer:
        producer.produce_batch(topic, 0, [{"key": None, "value": bytes(1_500)} for _ in range(3)])
        producer.produce_batch(topic, 0, [{"key": None, "value": bytes(5_000)}])
        with pytest.raises(BrokerError, match=topic):
            producer.flush(DEADLINE_S)
        producer.flush(DEADLINE_S)


def test_a_record_its_topic_does_not_take_fails_the_flush(log: KafkaLog) -> None:
    topic = fresh(log)
    with closing(log.batch_producer()) as producer:
        producer.produce_batch(topic, 0, [{"key": None, "value": bytes(2_000_000)}])
        with pytest.raises(BrokerError, match="too large"):
            producer.flush(DEADLINE_S)
        producer.produce(topic, key=None, value=bytes(2_000_000), partition=0)
        with pytest.raises(BrokerError, match="too large"):
            producer.flush(DEADLINE_S)


# Exactly once


def test_records_and_offsets_commit_together_or_not_at_all(log: KafkaLog, join: Callable[..., Member]) -> None:
    events, scores = fresh(log), fresh(log)
    put(log, events, b"1", b"2", b"3")
    member = join(events)
    with closing(log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS)) as producer:
        batch = member.consume(lambda read: len(read) == 3)
        metadata = member.consumer.group_metadata()
        for end in (producer.abort, producer.commit):
            producer.begin()
            producer.produce_batch(scores, 0, [{"key": None, "value": message.value()} for message in batch])
            producer.send_offsets(events, {0: 3}, metadata)
            end()
            expected = {} if end == producer.abort else {0: 3}
            assert member.consumer.committed([0]) == expected
    with closing(log.reader(scores, {0: BEGINNING})) as reader:
        assert values(read_to(reader, settled_ends(log, scores))) == [b"1", b"2", b"3"]


def test_a_commit_for_a_partition_lost_meanwhile_is_refused(log: KafkaLog, join: Callable[..., Member]) -> None:
    events, scores = fresh(log, partitions=2), fresh(log)
    put(log, events, b"x", partition=0)
    put(log, events, b"y", partition=1)
    old = join(events)
    old.consume(lambda read: len(read) == 2)
    metadata = old.consumer.group_metadata()
    with closing(log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS)) as producer:
        producer.begin()
        producer.produce_batch(scores, 0, [{"key": None, "value": b"doubled"}])
        new = join(events)
        deadline = time.monotonic() + DEADLINE_S
        while not (len(old.consumer.assignment()) == len(new.consumer.assignment()) == 1):
            assert time.monotonic() < deadline, (old.calls, new.calls)
            old.consumer.consume(10, 0.05)
            new.consumer.consume(10, 0.05)
        with pytest.raises(BrokerError, match="aborted") as raised:
            producer.send_offsets(events, {0: 1, 1: 1}, metadata)
        assert raised.value.hint is not None
        assert "committed offsets" in raised.value.hint
        assert new.consumer.committed([0, 1]) == {}
        with closing(log.reader(scores, {0: BEGINNING})) as reader:
            assert read_to(reader, settled_ends(log, scores)) == []
        # The same producer goes on: the next transaction, with the generation of its own batch, is accepted.
        (mine,) = old.consumer.assignment()
        producer.begin()
        producer.produce_batch(scores, 0, [{"key": None, "value": b"once"}])
        producer.send_offsets(events, {mine: 1}, old.consumer.group_metadata())
        producer.commit()
        assert old.consumer.committed([0, 1]) == {mine: 1}


def test_a_member_waits_for_offsets_that_somebody_s_open_transaction_may_still_commit(
    log: KafkaLog, join: Callable[..., Member]
) -> None:
    events = fresh(log)
    put(log, events, b"1", b"2", b"3")
    first = join(events)
    first.consume(lambda read: len(read) == 3)
    with closing(log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS)) as producer:
        producer.begin()
        producer.send_offsets(events, {0: 2}, first.consumer.group_metadata())
        first.consumer.close()
        later = threading.Timer(0.5, producer.commit)
        later.start()
        try:
            assert numbers(join(events).consume(bool)) == [b"3"], "events of the open transaction were read again"
        finally:
            later.join()


def test_offsets_that_a_transaction_holds_open_for_too_long_are_told_as_that(
    log: KafkaLog, join: Callable[..., Member]
) -> None:
    events = fresh(log)
    put(log, events, b"1")
    member = join(events)
    member.consume(bool)
    with closing(log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS)) as producer:
        producer.begin()
        producer.send_offsets(events, {0: 1}, member.consumer.group_metadata())
        with pytest.raises(BrokerError, match="a transaction holds them open") as told:
            member.consumer.committed([0], 1.0)
        assert "find-hanging" in str(told.value.hint)
        producer.commit()
    assert member.consumer.committed([0]) == {0: 1}


def test_a_transaction_may_be_finished_inside_on_revoke(log: KafkaLog, join: Callable[..., Member]) -> None:
    events, scores = fresh(log), fresh(log)
    put(log, events, b"x")
    with closing(log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS)) as producer:

        def finish(_: Sequence[int]) -> None:
            producer.send_offsets(events, {0: 1}, metadata)
            producer.commit()

        member = join(events, on_revoke=finish)
        batch = member.consume(bool)
        metadata = member.consumer.group_metadata()
        producer.begin()
        producer.produce_batch(scores, 0, [{"key": None, "value": message.value()} for message in batch])
        member.consumer.close()
    successor = join(events)
    successor.consume(lambda _: dict(successor.consumer.positions([0])) == {0: 1})
    assert log.end_offsets(scores, committed=True)[0] >= 1


def test_a_producer_whose_id_was_taken_is_fenced_and_its_successor_sees_the_committed_offsets(
    log: KafkaLog, join: Callable[..., Member]
) -> None:
    events, scores = fresh(log), fresh(log)
    put(log, events, b"x")
    member = join(events)
    member.consume(bool)
    metadata = member.consumer.group_metadata()
    with closing(log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS)) as old:
        old.begin()
        old.produce_batch(scores, 0, [{"key": None, "value": b"old"}])
        old.send_offsets(events, {0: 1}, metadata)
        with closing(log.transactional_batch_producer(events, timeout_ms=TRANSACTION_TIMEOUT_MS)) as new:
            assert member.consumer.committed([0]) == {}
            with pytest.raises(FencedError):
                old.commit()
            with pytest.raises(FencedError):
                old.begin()
            new.begin()
            new.produce_batch(scores, 0, [{"key": None, "value": b"new"}])
            new.send_offsets(events, {0: 1}, metadata)
            new.commit()
    assert member.consumer.committed([0]) == {0: 1}
    with closing(log.reader(scores, {0: BEGINNING})) as reader:
        assert values(read_to(reader, settled_ends(log, scores))) == [b"new"]


@pytest.mark.parametrize("ask", ["settle", "flush", "commit"])
def test_a_producer_beyond_help_says_so_in_words_of_ours_whatever_is_asked_of_it(log: KafkaLog, ask: str) -> None:
    topic = fresh(log)
    asked: dict[str, Callable[[Any], object]] = {
        "settle": lambda producer: producer.settle(DEADLINE_S),
        "flush": lambda producer: producer.flush(DEADLINE_S),
        "commit": lambda producer: producer.commit(),
    }
    with closing(log.transactional_batch_producer(topic, timeout_ms=TRANSACTION_TIMEOUT_MS)) as old:
        old.begin()
        old.produce_batch(topic, 0, [{"key": None, "value": b"first"}])
        old.settle(DEADLINE_S)
        with closing(log.transactional_batch_producer(topic, timeout_ms=TRANSACTION_TIMEOUT_MS)):
            old.produce_batch(topic, 0, [{"key": None, "value": b"late"}])
            with pytest.raises(FencedError):
                asked[ask](old)


def test_a_topic_is_there_for_everybody_once_create_returned(broker: Broker, log: KafkaLog) -> None:
    topic = f"{fresh(log)}-many"
    assert log.create(TopicSpec(topic, 12))
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as other:
        assert other.topics()[topic] == 12
        assert other.end_offsets(topic, committed=True) == dict.fromkeys(range(12), 0)
