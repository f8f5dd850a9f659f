"""The pure parts of a scorer: batches and their sizes, fields of events, ends of topics, topic checks, halving."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.avro import Schema
from modelcast.consumer.batches import (
    DURATION_S,
    EVENTS_MAX,
    FIRST_EVENTS,
    BatchSizer,
    EventBatch,
    records_by_partition,
)
from modelcast.consumer.commit import Destination
from modelcast.consumer.end import EndOfTopic
from modelcast.consumer.event_fields import event_fields, json_said, schema_kinds
from modelcast.consumer.sampling import EventFieldsSource
from modelcast.consumer.scoring import ModelFaultError, run_halving
from modelcast.consumer.setup import plan_topics
from modelcast.errors import LoadError, OutOfMemoryError, TopicConfigError, TopicNotFoundError
from modelcast.events.schemas import SchemaTopic
from modelcast.events.writers import WriterSchemas
from modelcast.log import LogRecord, TopicSpec
from modelcast.runtime import Array
from modelcast.testing.group import MemoryGroupLog, MemoryMessage
from modelcast.topics import Topics

SCORES = "scores"
TO = Destination("events", (SCORES,), "scores.dead-letters")


def message(partition: int, offset: int) -> MemoryMessage:
    return MemoryMessage(LogRecord("events", partition, offset, 1_000 + offset, b"k%d" % offset, b"v%d" % offset))


class TestBatches:
    def test_a_batch_holds_what_its_messages_held(self) -> None:
        batch = EventBatch.of([message(1, 7), message(0, 3)])
        assert batch.keys == [b"k7", b"k3"]
        assert batch.values == [b"v7", b"v3"]
        assert (batch.partitions.tolist(), batch.offsets.tolist()) == ([1, 0], [7, 3])
        assert batch.timestamps.tolist() == [1_007, 1_003]

    def test_an_event_without_a_time_has_minus_one(self) -> None:
        class Timeless(MemoryMessage):
            def timestamp(self) -> tuple[int, int]:
                return 0, 123

        record = LogRecord("events", 0, 0, 0, None, b"")
        assert EventBatch.of([Timeless(record)]).timestamps.tolist() == [-1]

    def test_offsets_to_commit_are_one_past_the_last_of_each_partition(self) -> None:
        batch = EventBatch.of([message(0, 3), message(1, 9), message(0, 4)])
        assert batch.next_offsets() == {0: 5, 1: 10}
        assert batch.first_offsets() == {0: 3, 1: 9}

    @given(st.lists(st.integers(0, 3), max_size=40))
    def test_records_keep_the_order_within_their_partition(self, partitions: list[int]) -> None:
        values = [b"%d" % row for row in range(len(partitions))]
        grouped = records_by_partition(values, values, np.array(partitions, np.int64))
        for partition in set(partitions):
            want = [values[row] for row, place in enumerate(partitions) if place == partition]
            assert [record["value"] for record in grouped[partition]] == want
        assert set(grouped) == set(partitions)


class TestBatchSizer:
    def test_batches_grow_in_steps_up_to_the_bound(self) -> None:
        sizer, limits = BatchSizer(), []
        for _ in range(6):
            limits.append(sizer.limit)
            sizer.record(sizer.limit, 100, 0.000_001 * sizer.limit, "v1")
        assert limits[0] == FIRST_EVENTS
        assert limits == sorted(limits)
        assert limits[-1] == EVENTS_MAX

    def test_a_slow_model_gets_batches_it_can_score_in_time(self) -> None:
        sizer = BatchSizer()
        for _ in range(10):
            sizer.record(sizer.limit, 100, 0.1 * sizer.limit, "slow")
        assert sizer.limit * 0.1 <= DURATION_S
        assert sizer.expected_s(10, "slow") == pytest.approx(1.0)

    def test_a_new_version_starts_small_again(self) -> None:
        sizer = BatchSizer()
        for _ in range(6):
            sizer.record(sizer.limit, 100, 0.001, "v1")
        assert sizer.expected_s(1, "v2") is None
        sizer.record(10, 100, 10.0, "v2")
        assert sizer.limit == 1

    def test_large_events_make_small_batches(self) -> None:
        sizer = BatchSizer()
        for _ in range(10):
            sizer.record(sizer.limit, 1_000_000, 0.000_001, "v1")
        assert sizer.limit == 33

    @given(st.lists(st.tuples(st.floats(1, 1e7), st.floats(0, 1e4), st.sampled_from("ab")), max_size=20))
    def test_a_batch_is_never_empty_nor_above_the_bound(self, history: list[tuple[float, float, str]]) -> None:
        sizer = BatchSizer()
        for mean_bytes, seconds, version in history:
            sizer.record(sizer.limit, mean_bytes, seconds, version)
            assert 1 <= sizer.limit <= EVENTS_MAX


class TestEventFields:
    def test_avro_events_tell_their_fields_by_their_schema(self) -> None:
        schema = Schema.parse({
            "type": "record", "name": "E", "namespace": "n",
            "fields": [
                {"name": "i", "type": "int"},
                {"name": "maybe", "type": ["null", "double"]},
                {"name": "number", "type": ["null", "int", "float"]},
                {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["A"]}},
                {"name": "again", "type": ["null", "n.K"]},
                {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
                {"name": "list", "type": {"type": "array", "items": "int"}},
                {"name": "odd", "type": ["string", "int"]},
            ],
        })  # fmt: skip
        assert schema_kinds(schema) == {
            "i": "int", "maybe": "double", "number": "float", "kind": "enum", "again": "enum", "at": "long",
            "list": "array of int", "odd": "other",
        }  # fmt: skip

    def test_json_events_tell_theirs_by_their_values_merged_over_the_samples(self) -> None:
        samples = [b'{"a": 1, "b": "x", "n": null}', b'{"a": 1.5, "c": true}', b"garbage", None, b"[1]"]
        found = event_fields(samples, json_said, "t")
        assert found is not None
        assert found.kinds == {"a": "double", "b": "string", "c": "boolean"}
        assert "'t'" in found.source

    @pytest.mark.parametrize("samples", [[], [None, b""], [b"\xc3\x01" + b"12345678" + b"x"]])
    def test_nothing_readable_says_nothing(self, samples: list[bytes | None]) -> None:
        assert event_fields(samples, json_said, "t") is None

    def test_one_odd_event_takes_no_field_away(self) -> None:
        found = event_fields([b'{"a": 1, "b": 2}', b'{"other": 1}'], json_said, "t")
        assert found is not None
        assert set(found.kinds) == {"a", "b", "other"}

    def test_a_topic_is_looked_at_again_when_a_new_format_arrives(self) -> None:
        log, topics = MemoryGroupLog(), Topics("t")
        for spec in (TopicSpec("events", 2), *topics.specs(blob_partitions=1, replication_factor=1)):
            log.create(spec)
        schemas = SchemaTopic(log, topics)
        source = EventFieldsSource(log, "events", WriterSchemas(schemas))
        assert not source.sample()
        assert source.known is None
        writer = log.writer()
        writer.send("events", key=None, value=b'{"a": 1}', partition=0)
        writer.send("events", key=None, value=b'{"b": 1}', partition=1)
        assert source.meet(b'{"a": 1}')
        assert source.known is not None
        assert set(source.known.kinds) == {"a", "b"}, "all partitions are looked at, not the one event only"
        assert not source.meet(b'{"c": 1}'), "a format met before is not looked at again"
        schema = Schema.parse({"type": "record", "name": "E", "fields": [{"name": "d", "type": "long"}]})
        schemas.register(schema)
        assert source.meet(schema.encode_single_object({"d": 1}))
        assert set(source.known.kinds) == {"a", "b", "d"}


class TestEndOfTopic:
    def test_what_is_left_counts_from_committed_offsets_or_the_beginning(self) -> None:
        end = EndOfTopic(begins={0: 5, 1: 0, 2: 7}, ends={0: 10, 1: 4, 2: 7})
        assert end.left({}) == {0: 5, 1: 4}
        assert end.left({0: 9, 1: 4}) == {0: 1}
        assert end.left({0: 12, 1: 4}) == {}


class TestTopics:
    def test_outputs_are_made_with_as_many_partitions_and_keep_records_for_ever(self) -> None:
        log = MemoryGroupLog()
        log.create(TopicSpec(TO.events, 3))
        plan = plan_topics(log, TO)
        assert (plan.partitions, tuple(plan.missing), plan.warnings) == (3, TO.outputs, ())
        assert set(log.topics()) == {TO.events}, "a plan makes nothing"
        plan.make(log)
        for name in TO.outputs:
            made = log.describe(name)
            assert (made.partitions, made.configs["retention.ms"]) == (3, "-1")

    def test_a_missing_events_topic_is_named_and_nothing_is_made(self) -> None:
        log = MemoryGroupLog()
        with pytest.raises(TopicNotFoundError, match="no events topic 'events'"):
            plan_topics(log, TO)
        assert log.topics() == {}

    def test_an_output_with_fewer_partitions_is_refused_with_the_command_that_mends_it(self) -> None:
        log = MemoryGroupLog()
        log.create(TopicSpec(TO.events, 3))
        log.create(TopicSpec(SCORES, 2))
        with pytest.raises(TopicConfigError, match=r"'scores' has fewer.*\(2\).*--topic scores --partitions 3"):
            plan_topics(log, TO)
        assert TO.dead_letters not in log.topics()

    def test_f43_dead_letters_made_here_take_what_the_events_topic_takes(self) -> None:
        log = MemoryGroupLog()
        log.create(TopicSpec(TO.events, 1, configs={"max.message.bytes": "10000000"}))
        plan = plan_topics(log, TO)
        plan.make(log)
        assert int(log.describe(TO.dead_letters).configs["max.message.bytes"]) == plan.letter_bytes > 10_000_000
        assert plan_topics(log, TO).letter_bytes == plan.letter_bytes

    def test_f43_an_output_that_takes_less_than_a_full_batch_is_refused_with_the_command_that_mends_it(self) -> None:
        log = MemoryGroupLog()
        log.create(TopicSpec(TO.events, 1))
        log.create(TopicSpec(TO.dead_letters, 1, configs={"max.message.bytes": "500000"}))
        with pytest.raises(TopicConfigError, match=r"takes no more than 500000 bytes.*max.message.bytes=1048588"):
            plan_topics(log, TO)

    @pytest.mark.parametrize("policy", ["compact", "compact,delete"])
    def test_a_compacted_output_is_refused_and_nothing_is_made(self, policy: str) -> None:
        log = MemoryGroupLog()
        log.create(TopicSpec(TO.events, 1))
        log.create(TopicSpec(TO.dead_letters, 1, configs={"cleanup.policy": policy}))
        with pytest.raises(TopicConfigError, match=f"'scores.dead-letters' has cleanup.policy={policy}.*mend it with"):
            plan_topics(log, TO)
        assert SCORES not in log.topics()

    def test_an_existing_output_that_would_delete_old_event_times_is_warned_of(self) -> None:
        log = MemoryGroupLog()
        log.create(TopicSpec(TO.events, 1))
        log.create(TopicSpec(SCORES, 1, configs={"retention.ms": "604800000"}))
        log.create(TopicSpec(TO.dead_letters, 1, configs={"retention.ms": "1500"}))
        warning, short = plan_topics(log, TO).warnings
        assert "older than 1.5 s" in short
        assert "'scores' deletes what is older than 7 days" in warning
        assert "--add-config retention.ms=-1" in warning


class TestHalving:
    @given(st.lists(st.booleans(), min_size=1, max_size=200))
    def test_exactly_the_rows_that_fail_are_left_out(self, bad: list[bool]) -> None:
        column = np.arange(len(bad))

        def run(columns: dict[str, Array]) -> dict[str, Array]:
            if any(bad[row] for row in columns["x"]):
                raise LoadError("can't")
            return {"y": columns["x"] * 2}

        outcome = run_halving(run, {"x": column}, len(bad), blame_rows=True)  # type: ignore[arg-type]
        assert outcome.good.tolist() == [row for row in column.tolist() if not bad[row]]
        assert [row for row, _ in outcome.failed] == [row for row in column.tolist() if bad[row]]
        if not all(bad):
            assert outcome.outputs["y"].tolist() == [row * 2 for row in outcome.good.tolist()]

    def test_f24_want_of_memory_is_no_events_fault(self) -> None:
        def run(columns: dict[str, Array]) -> dict[str, Array]:
            if len(columns["x"]) > 4:
                raise LoadError("one of them is poison")
            raise OutOfMemoryError("there is not enough memory on cuda:0")

        with pytest.raises(ModelFaultError, match="not enough memory on cuda:0"):
            run_halving(run, {"x": np.arange(8)}, 8)  # type: ignore[arg-type]

    def test_a_model_that_fails_on_everything_is_given_up_after_few_runs(self) -> None:
        runs = 0

        def run(_: object) -> dict[str, Array]:
            nonlocal runs
            runs += 1
            raise LoadError("broken")

        with pytest.raises(ModelFaultError, match="broken"):
            run_halving(run, {"x": np.arange(10_000)}, 10_000)
        assert runs < 100
