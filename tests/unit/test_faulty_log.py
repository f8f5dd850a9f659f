"""A log with faults keeps the contract of every log, and does what its faults say, alike for one seed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.errors import BrokerError, OutcomeUnknownError, TopicNotFoundError, UsageError
from modelcast.log import BEGINNING, Log, LogRecord, TopicSpec
from modelcast.testing import Faults, FaultyLog, MemoryGroupLog, MemoryLog
from tests.log_contract import LogContract

SEEDS = st.integers(0, 1_000)
ALWAYS = 1.0


class TestWithoutFaults(LogContract):
    @pytest.fixture
    def log(self) -> Log:
        return FaultyLog(MemoryLog())


class TestWithDelay(LogContract):
    """What comes late, or in parts, is within the contract."""

    @pytest.fixture
    def log(self) -> Log:
        return FaultyLog(MemoryLog(), Faults(delay=0.5), seed=5)


def made(faults: Faults, *, seed: int = 0, partitions: int = 1) -> FaultyLog:
    log = FaultyLog(MemoryGroupLog(), seed=seed)
    log.create(TopicSpec("t", partitions))
    log.faults = faults
    return log


def send(log: FaultyLog, count: int, *, partitions: int = 1) -> None:
    with closing(log.writer()) as writer:
        for number in range(count):
            writer.send("t", key=None, value=b"%d" % number, partition=number % partitions)
        writer.flush(1.0)


def stands(log: FaultyLog) -> list[int]:
    """The values on the topic, whatever the faults do to readers now."""
    log.faults = Faults()
    return [int(record.value or b"") for record in read(log)]


def read(log: FaultyLog) -> list[LogRecord]:
    ends = log.end_offsets("t", committed=True)
    found: list[LogRecord] = []
    with closing(log.reader("t", dict.fromkeys(ends, BEGINNING))) as reader:
        while any(reader.position(partition) < end for partition, end in ends.items()):
            found += reader.poll(0.1)
    return found


@given(seed=SEEDS)
def test_reordered_records_are_all_there_and_near_their_place(seed: int) -> None:
    log = made(Faults(reorder=0.5), seed=seed)
    send(log, 50)
    found = stands(log)
    assert sorted(found) == list(range(50))
    assert found != list(range(50))
    assert all(value - place <= 16 for place, value in enumerate(found)), "no record is earlier by more than a window"


@given(seed=SEEDS)
def test_a_duplicated_record_stands_twice_and_is_acknowledged_once(seed: int) -> None:
    log = made(Faults(duplicate=0.5), seed=seed)
    acks: list[int] = []
    with closing(log.writer()) as writer:
        for number in range(30):
            writer.send("t", key=None, value=b"%d" % number, partition=0, on_ack=lambda _, offset: acks.append(offset))
        writer.flush(1.0)
    found = stands(log)
    assert sorted(set(found)) == list(range(30))
    assert 30 < len(found) <= 60
    assert len(acks) == len(set(acks)) == 30


@given(seed=SEEDS, partitions=st.integers(1, 3))
def test_a_delayed_reader_gets_everything_once_with_each_partition_in_order(seed: int, partitions: int) -> None:
    log = made(Faults(), seed=seed, partitions=partitions)
    send(log, 40, partitions=partitions)
    log.faults = Faults(delay=0.7, reorder=0.7)
    found = read(log)
    assert sorted(int(record.value or b"") for record in found) == list(range(40))
    for partition in range(partitions):
        offsets = [record.offset for record in found if record.partition == partition]
        assert offsets == sorted(set(offsets)), "Kafka keeps the order of a partition, so must a fault"


def test_partitions_come_in_another_turn() -> None:
    log = made(Faults(), partitions=2)
    send(log, 40, partitions=2)
    in_turn = [record.partition for record in read(log)]
    log.faults = Faults(reorder=ALWAYS)
    assert [record.partition for record in read(log)] != in_turn


def test_a_position_is_that_of_what_was_not_handed_out_yet() -> None:
    log = made(Faults())
    send(log, 20)
    log.faults = Faults(delay=ALWAYS)
    reader = log.reader("t", {0: 0})
    seen = 0
    for _ in range(40):
        seen += len(reader.poll(0.1))
        assert reader.position(0) == seen
    reader.seek(0, 19)
    log.faults = Faults()
    assert [record.offset for record in reader.poll(0.1)] == [19]


@given(seed=SEEDS)
def test_a_cut_flush_wrote_a_part_and_says_how_much_it_lost(seed: int) -> None:
    log = made(Faults(), seed=seed)
    writer = log.writer()
    writer.send("t", key=None, value=b"0", partition=0)
    log.faults = Faults(cut=ALWAYS)
    for number in range(1, 11):
        writer.send("t", key=None, value=b"%d" % number, partition=0)
    with pytest.raises(BrokerError, match=r"(\d+) records were not delivered: the connection was cut") as caught:
        writer.flush(1.0)
    lost = int(caught.value.message.split()[0])
    assert stands(log) == list(range(11 - lost))


def test_a_cut_commit_went_either_way_and_its_writer_is_of_no_use_any_more() -> None:
    outcomes = set()
    for seed in range(20):
        log = made(Faults(), seed=seed)
        writer = log.transactional_writer("id", timeout_ms=1_000)
        writer.begin()
        writer.send("t", key=None, value=b"1", partition=0)
        log.faults = Faults(cut=ALWAYS)
        with pytest.raises(OutcomeUnknownError):
            writer.commit()
        with pytest.raises(OutcomeUnknownError, match="Take the transactional id anew"):
            writer.begin()
        log.faults = Faults()
        log.transactional_writer("id", timeout_ms=1_000)  # ends what is open
        outcomes.add(len(stands(log)))
    assert outcomes == {0, 1}


def test_what_a_transaction_wrote_is_neither_moved_nor_doubled() -> None:
    log = made(Faults(reorder=ALWAYS, duplicate=ALWAYS))
    writer = log.transactional_writer("id", timeout_ms=1_000)
    writer.begin()
    for number in range(30):
        writer.send("t", key=None, value=b"%d" % number, partition=0)
    writer.commit()
    assert stands(log) == list(range(30))


@pytest.mark.parametrize(
    "ask",
    [
        lambda log: log.topics(),
        lambda log: log.describe("t"),
        lambda log: log.create(TopicSpec("u", 1)),
        lambda log: log.begin_offsets("t"),
        lambda log: log.end_offsets("t", committed=False),
        lambda log: log.reader("t", {0: 0}),
        lambda log: log.writer(),
        lambda log: log.transactional_writer("id", timeout_ms=1),
        lambda log: log.group_consumer("g", session_timeout_ms=1),
        lambda log: log.batch_producer(),
        lambda log: log.transactional_batch_producer("id", timeout_ms=1),
    ],
)
def test_every_question_fails_while_nobody_is_there_and_when_it_is_cut(ask: Callable[[FaultyLog], object]) -> None:
    log = made(Faults())
    with log.away(), pytest.raises(BrokerError, match="no broker answers"):
        ask(log)
    log.faults = Faults(cut=ALWAYS)
    with pytest.raises(BrokerError, match="the connection was cut"):
        ask(log)
    log.faults = Faults()
    ask(log)


def test_a_reader_waits_for_a_broker_that_is_away_and_goes_on_where_it_was() -> None:
    log = made(Faults())
    send(log, 3)
    reader = log.reader("t", {0: 0})
    log.go_away()
    assert reader.poll(0.01) == []
    timer = threading.Timer(0.05, log.come_back)
    timer.start()
    assert len(reader.poll(60.0)) == 3
    timer.join()


def test_what_was_sent_while_nobody_answered_arrives_with_the_next_flush() -> None:
    log = made(Faults())
    writer = log.writer()
    writer.send("t", key=None, value=b"0", partition=0)
    with log.away():
        writer.send("t", key=None, value=b"1", partition=0)
        with pytest.raises(BrokerError, match="no broker answers"):
            writer.flush(0.01)
    writer.flush(1.0)
    assert stands(log) == [0, 1]


def test_a_commit_that_nobody_heard_of_leaves_its_transaction_open() -> None:
    log = made(Faults())
    writer = log.transactional_writer("id", timeout_ms=1_000)
    writer.begin()
    writer.send("t", key=None, value=b"1", partition=0)
    with log.away(), pytest.raises(OutcomeUnknownError):
        writer.commit()
    writer.abort()
    assert log.end_offsets("t", committed=True) != log.end_offsets("t", committed=False)
    log.transactional_writer("id", timeout_ms=1_000)
    assert stands(log) == []


def test_the_data_plane_has_the_same_faults() -> None:
    log = made(Faults())
    send(log, 5)
    consumer = log.group_consumer("g", session_timeout_ms=1_000)
    consumer.subscribe("t", on_assign=lambda _: None, on_revoke=lambda _: None, on_lost=lambda _: None)
    with log.away():
        assert consumer.consume(5, 0.01) == []
        with pytest.raises(BrokerError, match="no broker answers"):
            consumer.commit({0: 5})
    log.faults = Faults(delay=0.9)
    taken: list[bytes | None] = []
    while len(taken) < 5:
        taken += [message.value() for message in consumer.consume(5, 0)]
    assert taken == [b"0", b"1", b"2", b"3", b"4"]
    log.faults = Faults()
    producer = log.transactional_batch_producer("id", timeout_ms=1_000)
    producer.begin()
    producer.produce_batch("t", 0, [{"key": None, "value": b"5"}])
    producer.send_offsets("t", {0: 5}, consumer.group_metadata())
    with log.away(), pytest.raises(OutcomeUnknownError):
        producer.commit()
    producer.close()
    assert consumer.committed([0]) == {}


@given(seed=SEEDS)
def test_one_seed_gives_one_history(seed: int) -> None:
    def history() -> list[int]:
        log = made(Faults(reorder=0.3, duplicate=0.3), seed=seed)
        send(log, 40)
        return stands(log)

    assert history() == history()


def test_a_topic_that_is_not_there_is_said_at_once() -> None:
    log = FaultyLog(MemoryLog(), Faults(reorder=ALWAYS))
    with pytest.raises(TopicNotFoundError):
        log.writer().send("t", key=None, value=b"x")


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_is_a_probability(share: float) -> None:
    with pytest.raises(UsageError, match="fault 'delay' has the share"):
        Faults(delay=share)
