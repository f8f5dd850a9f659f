"""What every log keeps, as tests: run on `MemoryLog` in `tests/unit` and on `KafkaLog` in `tests/broker`.

A subclass gives the `log` fixture; each test makes topics of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from uuid import uuid4

import pytest

from modelcast.errors import BrokerError, FencedError, OffsetOutOfRangeError, TopicNotFoundError, UsageError
from modelcast.log import BEGINNING, Log, LogReader, LogRecord, TopicSpec

DEADLINE_S = 60.0
TIMEOUT_MS = 10_000


def fresh(log: Log, partitions: int = 1, **configs: str) -> str:
    """A new topic of its own, which keeps records of any time unless `configs` say otherwise."""
    name = f"contract-{uuid4().hex[:12]}"
    wanted = {"retention.ms": "-1"} | {key.replace("_", "."): configs[key] for key in configs}
    assert log.create(TopicSpec(name, partitions, configs=wanted))
    return name


def put(log: Log, topic: str, *values: bytes | None, partition: int = 0) -> None:
    """Writes values outside any transaction, acknowledged."""
    with closing(log.writer()) as writer:
        for value in values:
            writer.send(topic, key=b"k", value=value, partition=partition)
        writer.flush(DEADLINE_S)


def read_until(reader: LogReader, done: Callable[[list[LogRecord]], bool]) -> list[LogRecord]:
    """Polls until `done` of what was read, or fails at the deadline."""
    records: list[LogRecord] = []
    deadline = time.monotonic() + DEADLINE_S
    while not done(records):
        assert time.monotonic() < deadline, f"not reached; read {records}"
        records.extend(reader.poll(0.2))
    return records


def read_to(reader: LogReader, ends: dict[int, int]) -> list[LogRecord]:
    """Polls until the position of every partition reaches its end."""
    return read_until(reader, lambda _: all(reader.position(part) >= end for part, end in ends.items()))


def settled_ends(log: Log, topic: str) -> dict[int, int]:
    """The true ends once no transaction is open: a commit returns when it is decided, its markers follow."""
    deadline = time.monotonic() + DEADLINE_S
    while (ends := log.end_offsets(topic, committed=False)) != log.end_offsets(topic, committed=True):
        assert time.monotonic() < deadline, f"a transaction stays open: {ends}"
        time.sleep(0.01)
    return dict(ends)


def values(records: Sequence[LogRecord]) -> list[bytes | None]:
    return [record.value for record in records]


class LogContract:
    """Subclass it as `Test…` and give it a `log` fixture."""

    # Topics

    def test_a_created_topic_is_listed_with_its_partitions(self, log: Log) -> None:
        topic = fresh(log, partitions=3)
        assert log.topics()[topic] == 3

    def test_creating_twice_says_so_and_changes_nothing(self, log: Log) -> None:
        topic = fresh(log, partitions=2)
        assert log.create(TopicSpec(topic, 5)) is False
        assert log.describe(topic).partitions == 2

    def test_describe_gives_what_was_set_and_the_defaults_of_the_rest(self, log: Log) -> None:
        described = log.describe(fresh(log, partitions=2, cleanup_policy="compact"))
        assert described.partitions == 2
        assert described.configs["cleanup.policy"] == "compact"
        assert described.configs["min.insync.replicas"] == "1"

    def test_a_missing_topic_is_an_error_everywhere_and_is_not_created_by_asking(self, log: Log) -> None:
        missing = f"missing-{uuid4().hex[:12]}"
        asks: list[Callable[[], object]] = [
            lambda: log.describe(missing),
            lambda: log.begin_offsets(missing),
            lambda: log.end_offsets(missing, committed=False),
            lambda: log.reader(missing, {0: BEGINNING}),
        ]
        for ask in asks:
            with pytest.raises(TopicNotFoundError, match=missing):
                ask()
        with closing(log.writer()) as writer, pytest.raises(TopicNotFoundError, match=missing):
            writer.send(missing, key=None, value=b"x")
        assert missing not in log.topics()

    def test_a_missing_partition_is_an_error(self, log: Log) -> None:
        topic = fresh(log)
        with pytest.raises(TopicNotFoundError, match="partition 7"):
            log.reader(topic, {7: BEGINNING})

    # Records

    def test_records_come_back_in_order_and_whole(self, log: Log) -> None:
        topic = fresh(log)
        with closing(log.writer()) as writer:
            for number in range(2_500):
                writer.send(
                    topic,
                    key=b"key-%d" % number,
                    value=b"value-%d" % number,
                    partition=0,
                    timestamp_ms=1_700_000_000_000 + number,
                    headers=[("n", b"%d" % number), ("n", b"again")],
                )
            writer.flush(DEADLINE_S)
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            records = read_until(reader, lambda read: len(read) >= 2_500)
        assert [record.offset for record in records] == list(range(2_500))
        assert records[7] == LogRecord(
            topic, 0, 7, 1_700_000_000_007, b"key-7", b"value-7", (("n", b"7"), ("n", b"again"))
        )
        assert records[2_499].value == b"value-2499"

    def test_a_tombstone_is_none_and_an_empty_value_is_empty(self, log: Log) -> None:
        topic = fresh(log)
        put(log, topic, None, b"")
        with closing(log.reader(topic, {0: 0})) as reader:
            assert values(read_until(reader, lambda read: len(read) == 2)) == [None, b""]

    def test_a_record_without_a_timestamp_gets_the_present(self, log: Log) -> None:
        topic = fresh(log)
        before_ms = int(time.time() * 1000)
        put(log, topic, b"x")
        with closing(log.reader(topic, {0: 0})) as reader:
            (record,) = read_until(reader, bool)
        assert before_ms - 1_000 <= record.timestamp_ms <= int(time.time() * 1000) + 1_000

    def test_equal_keys_land_in_one_partition_and_different_ones_spread(self, log: Log) -> None:
        topic = fresh(log, partitions=4)
        with closing(log.writer()) as writer:
            for number in range(400):
                writer.send(topic, key=b"%d" % (number % 100), value=b"x")
            writer.flush(DEADLINE_S)
        with closing(log.reader(topic, dict.fromkeys(range(4), BEGINNING))) as reader:
            records = read_until(reader, lambda read: len(read) == 400)
        places: dict[bytes | None, set[int]] = {}
        for record in records:
            places.setdefault(record.key, set()).add(record.partition)
        assert all(len(partitions) == 1 for partitions in places.values())
        assert len({record.partition for record in records}) == 4

    def test_acknowledgements_tell_where_records_are(self, log: Log) -> None:
        topic = fresh(log, partitions=2)
        put(log, topic, b"before", partition=1)
        acks: list[tuple[int, int]] = []
        with closing(log.writer()) as writer:
            for number in range(3):
                writer.send(topic, key=None, value=b"%d" % number, partition=1, on_ack=lambda *at: acks.append(at))
            writer.flush(DEADLINE_S)
        assert acks == [(1, 1), (1, 2), (1, 3)]

    def test_a_record_no_client_may_send_is_refused_at_once(self, log: Log) -> None:
        topic = fresh(log)
        with closing(log.writer()) as writer, pytest.raises(BrokerError, match="too large"):
            writer.send(topic, key=None, value=bytes(1_000_001), partition=0)

    def test_flush_raises_what_the_topic_refused_once(self, log: Log) -> None:
        topic = fresh(log, max_message_bytes="2000")
        with closing(log.writer()) as writer:
            writer.send(topic, key=None, value=bytes(3_000), partition=0)
            with pytest.raises(BrokerError, match=topic):
                writer.flush(DEADLINE_S)
            writer.send(topic, key=None, value=b"small", partition=0)
            writer.flush(DEADLINE_S)
        assert log.end_offsets(topic, committed=False) == {0: 1}

    # Readers

    def test_an_idle_poll_waits_its_time_and_no_longer(self, log: Log) -> None:
        topic = fresh(log)
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            read_to(reader, {0: 0})
            started = time.monotonic()
            assert list(reader.poll(0.3)) == []
            assert 0.2 <= time.monotonic() - started < 20.0

    def test_a_reader_sees_what_is_written_after_it(self, log: Log) -> None:
        topic = fresh(log, partitions=2)
        with closing(log.reader(topic, {0: BEGINNING, 1: BEGINNING})) as reader:
            read_to(reader, {0: 0, 1: 0})
            put(log, topic, b"late", partition=1)
            (record,) = read_until(reader, bool)
        assert (record.partition, record.offset, record.value) == (1, 0, b"late")

    def test_a_reader_starts_where_it_is_told_in_the_partitions_it_is_told(self, log: Log) -> None:
        topic = fresh(log, partitions=2)
        put(log, topic, b"a", b"b", b"c")
        put(log, topic, b"other", partition=1)
        with closing(log.reader(topic, {0: 1})) as reader:
            assert values(read_to(reader, {0: 3})) == [b"b", b"c"]

    def test_seek_goes_anywhere_and_back(self, log: Log) -> None:
        topic = fresh(log, partitions=2)
        put(log, topic, b"a", b"b", b"c")
        put(log, topic, b"x", partition=1)
        with closing(log.reader(topic, {0: BEGINNING, 1: BEGINNING})) as reader:
            assert sorted(values(read_to(reader, {0: 3, 1: 1}))) == [b"a", b"b", b"c", b"x"]  # type: ignore[type-var]
            reader.seek(0, 2)
            assert reader.position(0) == 2
            assert values(read_to(reader, {0: 3})) == [b"c"]
            reader.seek(0, BEGINNING)
            assert values(read_until(reader, lambda read: len(read) == 3)) == [b"a", b"b", b"c"]
            assert (reader.position(0), reader.position(1)) == (3, 1)

    def test_an_offset_past_the_end_is_an_error_and_seek_recovers_from_it(self, log: Log) -> None:
        topic = fresh(log)
        put(log, topic, b"a")
        with closing(log.reader(topic, {0: 50})) as reader:
            with pytest.raises(OffsetOutOfRangeError, match=topic):
                read_until(reader, bool)
            reader.seek(0, 0)
            assert values(read_until(reader, bool)) == [b"a"]

    # Transactions

    def test_a_transaction_is_visible_at_its_commit_and_not_before(self, log: Log) -> None:
        topic = fresh(log, partitions=2)
        with (
            closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as writer,
            closing(log.reader(topic, {0: BEGINNING, 1: BEGINNING})) as reader,
        ):
            writer.begin()
            writer.send(topic, key=None, value=b"a", partition=0)
            writer.send(topic, key=None, value=b"b", partition=1)
            writer.flush(DEADLINE_S)
            assert read_to(reader, {0: 0, 1: 0}) == []
            assert list(reader.poll(0.3)) == []
            writer.commit()
            assert sorted(values(read_until(reader, lambda read: len(read) == 2))) == [b"a", b"b"]  # type: ignore[type-var]

    def test_markers_occupy_offsets_and_the_position_passes_them(self, log: Log) -> None:
        topic = fresh(log)
        with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as writer:
            for value in (b"a", b"b"):
                writer.begin()
                writer.send(topic, key=None, value=value, partition=0)
                writer.commit()
        assert settled_ends(log, topic) == {0: 4}
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            records = read_to(reader, {0: 4})
            assert [(record.offset, record.value) for record in records] == [(0, b"a"), (2, b"b")]
            assert reader.position(0) == 4

    def test_the_position_passes_an_aborted_tail(self, log: Log) -> None:
        topic = fresh(log)
        put(log, topic, b"a")
        with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as writer:
            writer.begin()
            writer.send(topic, key=None, value=b"dropped", partition=0)
            writer.flush(DEADLINE_S)
            writer.abort()
        ends = settled_ends(log, topic)
        assert ends == {0: 3}
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            assert values(read_to(reader, ends)) == [b"a"]
        with closing(log.reader(topic, {0: BEGINNING}, committed=False)) as reader:
            assert values(read_to(reader, ends)) == [b"a", b"dropped"]

    def test_an_open_transaction_hides_what_is_behind_it_but_not_the_true_end(self, log: Log) -> None:
        topic = fresh(log)
        put(log, topic, b"first")
        with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as writer:
            writer.begin()
            writer.send(topic, key=None, value=b"open", partition=0)
            writer.flush(DEADLINE_S)
            put(log, topic, b"behind")
            assert log.end_offsets(topic, committed=True) == {0: 1}
            assert log.end_offsets(topic, committed=False) == {0: 3}
            with closing(log.reader(topic, {0: BEGINNING})) as reader:
                assert values(read_to(reader, {0: 1})) == [b"first"]
                assert list(reader.poll(0.3)) == []
                assert reader.position(0) == 1
                with closing(log.reader(topic, {0: BEGINNING}, committed=False)) as all_reader:
                    assert values(read_to(all_reader, {0: 3})) == [b"first", b"open", b"behind"]
                writer.commit()
                assert values(read_to(reader, {0: 4})) == [b"open", b"behind"]
        assert settled_ends(log, topic) == {0: 4}

    def test_an_aborted_transaction_leaves_the_writer_usable(self, log: Log) -> None:
        topic = fresh(log)
        with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as writer:
            writer.begin()
            writer.send(topic, key=None, value=b"dropped", partition=0)
            writer.abort()
            writer.begin()
            writer.send(topic, key=None, value=b"kept", partition=0)
            writer.commit()
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            assert values(read_until(reader, bool)) == [b"kept"]

    def test_abort_is_allowed_in_every_state(self, log: Log) -> None:
        topic = fresh(log)
        with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as writer:
            writer.abort()
            writer.begin()
            writer.abort()
            writer.abort()
            writer.begin()
            writer.send(topic, key=None, value=b"a", partition=0)
            writer.commit()
            writer.abort()
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            assert values(read_until(reader, bool)) == [b"a"]

    def test_an_empty_transaction_commits_and_writes_nothing(self, log: Log) -> None:
        topic = fresh(log)
        with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as writer:
            writer.begin()
            writer.commit()
        assert log.end_offsets(topic, committed=False) == {0: 0}

    def test_records_need_an_open_transaction_and_only_one_is_open(self, log: Log) -> None:
        topic = fresh(log)
        with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as writer:
            with pytest.raises(UsageError, match="begin"):
                writer.send(topic, key=None, value=b"x", partition=0)
            with pytest.raises(UsageError, match="begin"):
                writer.commit()
            writer.begin()
            with pytest.raises(UsageError, match="open already"):
                writer.begin()

    def test_a_transaction_with_a_failed_record_is_aborted_by_commit(self, log: Log) -> None:
        topic = fresh(log, max_message_bytes="2000")
        with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as writer:
            writer.begin()
            writer.send(topic, key=None, value=b"good", partition=0)
            writer.send(topic, key=None, value=bytes(3_000), partition=0)
            with pytest.raises(BrokerError, match="aborted"):
                writer.commit()
            with suppress(BrokerError):  # Kafka may refuse one more: the lost record left a gap in the sequence
                writer.begin()
                writer.send(topic, key=None, value=b"next", partition=0)
                writer.commit()
            writer.begin()
            writer.send(topic, key=None, value=b"last", partition=0)
            writer.commit()
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            assert values(read_to(reader, settled_ends(log, topic))) in ([b"last"], [b"next", b"last"])

    # Fencing

    def test_taking_an_id_fences_its_holder_and_drops_what_that_left_open(self, log: Log) -> None:
        topic = fresh(log)
        with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as old:
            old.begin()
            old.send(topic, key=None, value=b"old", partition=0)
            old.flush(DEADLINE_S)
            with closing(log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)) as new:
                assert log.end_offsets(topic, committed=True) == log.end_offsets(topic, committed=False)
                with pytest.raises(FencedError):
                    old.commit()
                with pytest.raises(FencedError):
                    old.begin()
                old.abort()
                new.begin()
                new.send(topic, key=None, value=b"new", partition=0)
                new.commit()
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            ends = settled_ends(log, topic)
            assert values(read_to(reader, ends)) == [b"new"]

    def test_closing_drops_the_open_transaction_at_once(self, log: Log) -> None:
        topic = fresh(log)
        writer = log.transactional_writer(topic, timeout_ms=TIMEOUT_MS)
        writer.begin()
        writer.send(topic, key=None, value=b"dropped", partition=0)
        writer.flush(DEADLINE_S)
        writer.close()
        ends = settled_ends(log, topic)
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            assert read_to(reader, ends) == []

    def test_two_ids_do_not_disturb_each_other(self, log: Log) -> None:
        topic = fresh(log)
        with (
            closing(log.transactional_writer(f"{topic}-1", timeout_ms=TIMEOUT_MS)) as one,
            closing(log.transactional_writer(f"{topic}-2", timeout_ms=TIMEOUT_MS)) as two,
        ):
            one.begin()
            two.begin()
            one.send(topic, key=None, value=b"one", partition=0)
            one.flush(DEADLINE_S)
            two.send(topic, key=None, value=b"two", partition=0)
            two.commit()
            one.abort()
        ends = settled_ends(log, topic)
        with closing(log.reader(topic, {0: BEGINNING})) as reader:
            assert values(read_to(reader, ends)) == [b"two"]
