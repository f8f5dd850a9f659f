"""Dead letters read back, and sent back: each once, where they came from, as they were."""

from __future__ import annotations

from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast.consumer.dead_letters import REPLAYS
from modelcast.consumer.dlq import KEPT_MS, Replay, Replayed, Sent, StoredLetter, Stretch, fitting_time, letters
from modelcast.consumer.letter_text import format_of, moment, preview
from modelcast.errors import BrokerError, FencedError, OutcomeUnknownError, TopicNotFoundError, UsageError
from modelcast.group import Progress
from modelcast.log import BEGINNING, LogRecord, TopicSpec
from modelcast.testing.group import CommitFault, MemoryGroupLog
from modelcast.topics import Topics

TOPICS = Topics("t")
EVENTS, LETTERS = "events", "scores.dead-letters"
NOW_S = 1_800_000_000.0
LONG_AGO_MS = 1_000

Headers = tuple[tuple[str, bytes | None], ...]


class Rig:
    def __init__(self) -> None:
        self.log = MemoryGroupLog()
        self.log.create(TopicSpec(EVENTS, 2, configs={"retention.ms": "-1"}))
        self.log.create(TopicSpec(LETTERS, 2, configs={"retention.ms": "-1"}))

    def put(
        self,
        word: str = "NullField",
        *,
        key: bytes | None = b"key",
        value: bytes | None = b"value",
        partition: int = 0,
        topic: str | None = EVENTS,
        headers: Headers = (),
    ) -> None:
        told: Headers = ((f"{S}.exception", word.encode()), (f"{S}.message", b"why"))
        if topic is not None:
            told += ((f"{S}.topic", topic.encode()), (f"{S}.partition", b"%d" % partition), (f"{S}.offset", b"7"))
        with closing(self.log.writer()) as writer:
            writer.send(LETTERS, key=key, value=value, partition=partition, headers=(*headers, *told))
            writer.flush(1)

    def events(self, topic: str = EVENTS) -> list[LogRecord]:
        with closing(self.log.reader(topic, {0: BEGINNING, 1: BEGINNING})) as reader:
            found: list[LogRecord] = []
            while records := reader.poll(0):
                found += records
        return found

    def values(self) -> list[bytes | None]:
        return [event.value for event in self.events()]

    def replay(self, word: str | None = None, *, to: str | None = None, dry: bool = False) -> Replayed:
        return Replay(self.log, TOPICS, LETTERS, word=word, to=to, clock=lambda: NOW_S).run(dry=dry)


S = "__streams.errors"


@pytest.fixture
def rig() -> Rig:
    return Rig()


class TestReading:
    def test_a_letter_is_what_its_headers_say(self, rig: Rig) -> None:
        rig.put(
            partition=1, headers=(("traceparent", b"00"), ("modelcast.model", b"fraud"), ("modelcast.version", b"3"))
        )
        (letter,) = letters(rig.log, LETTERS, Stretch())
        assert (letter.word, letter.message, letter.models) == ("NullField", "why", ("fraud@3",))
        assert letter.source is not None
        assert (letter.source.topic, letter.source.partition, letter.source.offset) == (EVENTS, 1, 7)
        assert letter.headers == (("traceparent", b"00"),)

    def test_the_class_is_the_word_of_what_kafka_streams_writes(self, rig: Rig) -> None:
        rig.put("org.apache.kafka.common.errors.SerializationException: Size of data is not 8")
        (letter,) = letters(rig.log, LETTERS, Stretch())
        assert letter.word == "org.apache.kafka.common.errors.SerializationException"

    @given(
        st.lists(
            st.tuples(
                st.sampled_from([f"{S}.{name}" for name in ("exception", "topic", "partition", "offset")] + [REPLAYS]),
                st.none() | st.binary(max_size=40) | st.just(b"9" * 5000),
            ),
            max_size=6,
        )
    )
    def test_whatever_headers_hold_is_no_error(self, headers: list[tuple[str, bytes | None]]) -> None:
        letter = StoredLetter.of(LogRecord(LETTERS, 0, 0, -1, None, None, tuple(headers)))
        assert letter.word

    def test_a_stretch_names_partition_offsets_and_word(self, rig: Rig) -> None:
        for word in ("A", "B", "A", "A"):
            rig.put(word)
            rig.put(word, partition=1)
        found = [letter.place for letter in letters(rig.log, LETTERS, Stretch("A", partition=1, first=1, end=3))]
        assert found == ["1:2"]
        with pytest.raises(TopicNotFoundError, match="no partition 5"):
            list(letters(rig.log, LETTERS, Stretch(partition=5)))


class TestReplay:
    def test_an_event_goes_back_as_it_was_where_it_was_and_says_how_often(self, rig: Rig) -> None:
        time = (("modelcast.timestamp", b"%d" % LONG_AGO_MS),)
        rig.put(partition=1, key=b"k\x00", value=b"\xff{", headers=(("traceparent", b"00"), ("none", None), *time))
        assert rig.replay().sent == {EVENTS: 1}
        (event,) = rig.events()
        assert (event.partition, event.key, event.value, event.timestamp_ms) == (1, b"k\x00", b"\xff{", LONG_AGO_MS)
        assert event.headers == (("traceparent", b"00"), ("none", None), ("modelcast.replays", b"1"))

    def test_a_tombstone_goes_back_as_one(self, rig: Rig) -> None:
        rig.put(key=None, value=None)
        rig.replay()
        assert [(event.key, event.value) for event in rig.events()] == [(None, None)]

    def test_each_letter_goes_back_once(self, rig: Rig) -> None:
        rig.put(value=b"1")
        assert rig.replay().new
        assert rig.replay().sent == {}
        rig.put(value=b"2")
        again = rig.replay()
        assert (again.sent, again.new) == ({EVENTS: 1}, False)
        assert rig.values() == [b"1", b"2"]

    def test_words_sent_back_apart_are_each_sent_once(self, rig: Rig) -> None:
        for value, word in ((b"1", "A"), (b"2", "B"), (b"3", "A"), (b"4", "C")):
            rig.put(word, value=value)
        assert rig.replay("A").sent == {EVENTS: 2}
        assert rig.replay("A").sent == {}
        assert rig.replay("B").sent == {EVENTS: 1}
        assert rig.replay().sent == {EVENTS: 1}
        assert rig.replay("C").sent == {}
        assert rig.values() == [b"1", b"3", b"2", b"4"]

    def test_a_dry_run_counts_and_does_nothing(self, rig: Rig) -> None:
        rig.put()
        running = rig.log.transactional_batch_producer(f"t.dlq.{LETTERS}", timeout_ms=1000)
        assert rig.replay(dry=True).sent == {EVENTS: 1}
        running.begin()  # would raise if its id had been taken
        running.abort()
        assert rig.events() == []
        assert rig.replay().sent == {EVENTS: 1}

    def test_letters_that_come_while_it_runs_are_left_for_the_next_time(self, rig: Rig) -> None:
        rig.put(value=b"1", headers=(("modelcast.timestamp", b"1"),))

        def clock() -> float:
            rig.put(value=b"2")
            return NOW_S

        assert Replay(rig.log, TOPICS, LETTERS, clock=clock).run().sent == {EVENTS: 1}
        assert rig.values() == [b"1"]
        assert rig.replay().sent == {EVENTS: 1}

    def test_one_that_came_back_is_told_and_counted_on(self, rig: Rig) -> None:
        rig.put()
        rig.put(headers=((REPLAYS, b"2"),))
        done = rig.replay()
        assert (done.again, done.most_replays) == (1, 2)
        assert [dict(event.headers)[REPLAYS] for event in rig.events()] == [b"1", b"3"]

    @pytest.mark.parametrize("part", ["value", "key", "headers"])
    def test_a_letter_that_was_cut_is_named_and_passed_over(self, rig: Rig, part: str) -> None:
        rig.put(value=b"cut", headers=((f"modelcast.{part}.bytes", b"5000000"),))
        rig.put(value=b"whole")
        done = rig.replay()
        assert (done.passed_over, done.named) == (1, [("0:0", f"its {part} was cut, so the event is not whole")])
        assert rig.values() == [b"whole"]
        assert rig.replay().passed_over == 0, "it is told once"

    def test_a_letter_of_unknown_origin_needs_to_be_told_where_to(self, rig: Rig) -> None:
        rig.put(topic=None, value=b"1")
        rig.put(value=b"2")
        assert rig.replay().named == [("0:0", "it does not say where its event came from (--to names a topic)")]
        assert rig.values() == [b"2"]

    @pytest.mark.parametrize("dry", [True, False])
    def test_where_no_letter_says_where_from_nothing_is_passed_over(self, rig: Rig, dry: bool) -> None:
        rig.put(topic=None, value=b"1")
        with pytest.raises(UsageError, match="nothing on topic 'scores.dead-letters' says") as refused:
            rig.replay(dry=dry)
        assert "--to TOPIC" in (refused.value.hint or "")
        rig.log.create(TopicSpec("mended", 2))
        assert rig.replay(to="mended").sent == {"mended": 1}, "what the hint says can still be done"

    def test_letters_of_other_words_are_counted_that_a_misspelt_one_be_seen(self, rig: Rig) -> None:
        for word in ("A", "A", "B"):
            rig.put(word)
        assert rig.replay("a", dry=True).others == {"A": 2, "B": 1}
        assert rig.replay("A").others == {"B": 1}
        assert rig.replay("a").others == {"B": 1}, "those that were sent back are not left"

    def test_all_go_to_a_topic_that_is_named(self, rig: Rig) -> None:
        rig.log.create(TopicSpec("mended", 2))
        rig.put(topic=None, value=b"1", partition=1)
        rig.put(value=b"2")
        assert rig.replay(to="mended").sent == {"mended": 2}
        assert sorted((event.partition, event.value) for event in rig.events("mended")) == [(0, b"2"), (1, b"1")]
        assert rig.events() == []

    @pytest.mark.parametrize(
        ("to", "error", "words"),
        [
            ("t.registry", UsageError, "belongs to the repository"),
            (LETTERS, UsageError, "back to itself"),
            ("nowhere", TopicNotFoundError, "nowhere"),
            ("narrow", UsageError, "came from partition 1"),
        ],
    )
    def test_where_they_can_not_go_nothing_is_sent(self, rig: Rig, to: str, error: type[Exception], words: str) -> None:
        rig.log.create(TopicSpec("narrow", 1))
        rig.put()
        rig.put(partition=1)
        with pytest.raises(error, match=words):
            rig.replay(to=to)
        if to == "narrow":
            assert [r.value for r in scan_all(rig, "narrow")] == []
        assert rig.replay().sent == {EVENTS: 2}

    def test_an_aborted_commit_leaves_nothing_and_the_next_run_sends_all(self, rig: Rig) -> None:
        rig.put()
        rig.log.next_commits.append(CommitFault.ABORTED)
        with pytest.raises(BrokerError):
            rig.replay()
        assert rig.events() == []
        assert rig.replay().sent == {EVENTS: 1}
        assert len(rig.events()) == 1

    @pytest.mark.parametrize("fault", [CommitFault.REPLY_LOST_COMMITTED, CommitFault.REPLY_LOST_ABORTED])
    def test_a_commit_in_doubt_is_sent_once_all_the_same(self, rig: Rig, fault: CommitFault) -> None:
        rig.put()
        rig.log.next_commits.append(fault)
        with pytest.raises(OutcomeUnknownError):
            rig.replay()
        rig.replay()
        assert len(rig.events()) == 1

    def test_ctrl_c_in_the_middle_leaves_no_half_of_a_batch(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("modelcast.consumer.dlq.BATCH_LETTERS", 2)
        for number in range(5):
            rig.put(value=b"%d" % number, headers=(("modelcast.timestamp", b"%d" % number),))
        asked = 0

        def clock() -> float:
            nonlocal asked
            asked += 1
            if asked == 4:
                raise KeyboardInterrupt
            return NOW_S

        replay = Replay(rig.log, TOPICS, LETTERS, clock=clock)
        with pytest.raises(KeyboardInterrupt):
            replay.run()
        assert (replay.replayed.sent, rig.values()) == ({EVENTS: 2}, [b"0", b"1"])
        assert rig.replay().sent == {EVENTS: 3}
        assert rig.values() == [b"%d" % number for number in range(5)]

    def test_a_second_replay_of_the_topic_fences_the_first(self, rig: Rig) -> None:
        rig.put()

        def clock() -> float:
            rig.log.transactional_batch_producer(f"t.dlq.{LETTERS}", timeout_ms=1000)
            return NOW_S

        rig.put(headers=(("modelcast.timestamp", b"1"),))
        with pytest.raises(FencedError):
            Replay(rig.log, TOPICS, LETTERS, clock=clock).run()
        assert rig.events() == []


def scan_all(rig: Rig, topic: str) -> list[LogRecord]:
    with closing(rig.log.reader(topic, {0: BEGINNING})) as reader:
        return list(reader.poll(0))


class TestTimes:
    NOW_MS = int(NOW_S * 1000)

    @pytest.mark.parametrize(
        ("event_ms", "configs", "fits"),
        [
            (1, {}, True),
            (NOW_MS + 10_000, {"message.timestamp.after.max.ms": "3600000"}, True),
            (NOW_MS + 3_600_001, {"message.timestamp.after.max.ms": "3600000"}, False),
            (2**62, {"message.timestamp.after.max.ms": str(2**63 - 1)}, True),
            (NOW_MS - 2_000, {"message.timestamp.before.max.ms": "1000"}, False),
            (NOW_MS - 7 * 86_400_000 + KEPT_MS, {"retention.ms": str(7 * 86_400_000)}, True),
            (NOW_MS - 7 * 86_400_000 + KEPT_MS - 1, {"retention.ms": str(7 * 86_400_000)}, False),
            (1, {"retention.ms": "-1"}, True),
        ],
    )
    def test_f43_a_time_the_topic_refuses_or_has_let_go_of_becomes_the_time_of_the_replay(
        self, event_ms: int, configs: dict[str, str], fits: bool
    ) -> None:
        assert fitting_time(event_ms, self.NOW_MS, configs) == (event_ms if fits else None)


class TestMarks:
    @given(
        st.lists(st.tuples(st.none() | st.sampled_from(["A", "B", "C"]), st.integers(1, 40)), max_size=12),
        st.integers(0, 40),
        st.sampled_from(["A", "B", "C", "D"]),
    )
    def test_a_letter_counts_as_sent_exactly_if_one_of_the_replays_sent_it(
        self, replays: list[tuple[str | None, int]], offset: int, word: str
    ) -> None:
        marks = Sent()
        for asked, end in replays:
            marks = marks.plus(asked, end)
        kept = Sent.read(Progress(marks.before, marks.note()))
        told = LogRecord(LETTERS, 0, offset, 0, None, None, ((f"{S}.exception", word.encode()),))
        expected = any(asked in (None, word) and offset < end for asked, end in replays)
        assert kept.has(StoredLetter.of(told)) == expected
        assert expected or kept.start(word) <= offset

    @pytest.mark.parametrize("note", ["", "garbage", "[1]", '{"A": "x"}', "null"])
    def test_a_note_of_somebody_elses_says_nothing(self, note: str) -> None:
        assert Sent.read(Progress(5, note)) == Sent(5)

    def test_more_words_than_a_note_holds_are_refused_by_name(self) -> None:
        marks = Sent(words={f"{number:0200}": 1 for number in range(30)})
        with pytest.raises(UsageError, match="30 errors.*without --error"):
            marks.note()


class TestText:
    @pytest.mark.parametrize(
        ("value", "kind", "shown"),
        [
            (None, "none", ""),
            (b"", "empty", ""),
            (b"\xc3\x01\xff", "avro", "c301ff"),
            (b"\x00\x00\x00\x00\x07\x02", "confluent", "000000000702"),
            (b' {"a":\n 1', "json", '{"a": 1'),
            ("grün".encode(), "text", "grün"),
            (b"\xff", "bytes", "ff"),
            (b"\x1b[2J", "bytes", "1b5b324a"),
            (b"a" * 100, "text", "a" * 19 + "…"),
            (("ä" * 100).encode(), "text", "ä" * 19 + "…"),
            (b"\xff" * 100, "bytes", "ff" * 9 + "f…"),
        ],
    )
    def test_a_value_is_shown_by_how_it_begins(self, value: bytes | None, kind: str, shown: str) -> None:
        assert (format_of(value), preview(value, 20)) == (kind, shown)

    @given(st.binary(max_size=300), st.integers(5, 70))
    def test_any_value_is_one_printable_line_of_bounded_length(self, value: bytes, width: int) -> None:
        shown = preview(value, width)
        assert len(shown) <= width
        assert shown == "" or shown.isprintable()

    def test_a_time_without_a_date_is_a_number(self) -> None:
        assert moment(0) == "1970-01-01 00:00:00Z"
        assert moment(2**62) == str(2**62)
