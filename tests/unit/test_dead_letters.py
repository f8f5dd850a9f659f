"""Dead letters: the original event with Kafka Streams' headers, never larger than the limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import digest
from modelcast.consumer.batches import EventBatch
from modelcast.consumer.dead_letters import DeadLetter, DeadLetterBuilder, event_headers, record_limit_bytes, replays_of
from modelcast.consumer.decode.rules import Fault, PoisonEvent
from modelcast.log import LogRecord
from modelcast.names import ModelVersion
from modelcast.testing.group import MemoryMessage

MODEL = ModelVersion("fraud", 3)
LIMIT_BYTES = 4096


def batch_of(key: bytes | None, value: bytes | None) -> EventBatch:
    return EventBatch(
        keys=[b"good", key],
        values=[b"good", value],
        partitions=np.array([0, 5]),
        offsets=np.array([7, 2**40]),
        timestamps=np.array([1, 2]),
    )


def letter_of(key: bytes | None, value: bytes | None, message: str = "field 'amount' is null") -> DeadLetter:
    builder = DeadLetterBuilder("transactions", max_bytes=LIMIT_BYTES)
    poison = PoisonEvent(1, Fault.NULL_FIELD.value, message)
    (letter,) = builder.build(batch_of(key, value), [poison], [MODEL])
    return letter


def letter_with(*headers: tuple[str, bytes | None], model: ModelVersion | None = MODEL) -> DeadLetter:
    record = LogRecord("transactions", 5, 9, -1, b"key", b"value", headers)
    builder = DeadLetterBuilder("transactions", max_bytes=LIMIT_BYTES)
    poison = PoisonEvent(0, Fault.NULL_FIELD.value, "field 'amount' is null")
    (letter,) = builder.build(EventBatch.of([MemoryMessage(record)]), [poison], [] if model is None else [model])
    return letter


def size_of(letter: DeadLetter) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in letter.headers)
    return len(letter.key or b"") + len(letter.value or b"") + headers


def test_it_holds_the_event_as_it_was_and_says_where_it_came_from() -> None:
    letter = letter_of(b"k\x00", b"\xff{")
    assert (letter.key, letter.value, letter.partition) == (b"k\x00", b"\xff{", 5)
    assert dict(letter.headers) == {
        "__streams.errors.exception": b"NullField",
        "__streams.errors.message": b"field 'amount' is null",
        "__streams.errors.topic": b"transactions",
        "__streams.errors.partition": b"5",
        "__streams.errors.offset": b"1099511627776",
        "modelcast.model": b"fraud",
        "modelcast.version": b"3",
        "modelcast.timestamp": b"2",
    }


@pytest.mark.parametrize(("key", "value"), [(None, None), (None, b""), (b"", None)])
def test_null_and_empty_stay_what_they_are(key: bytes | None, value: bytes | None) -> None:
    letter = letter_of(key, value)
    assert (letter.key, letter.value) == (key, value)


def test_a_value_too_large_is_cut_and_its_digest_kept() -> None:
    value = bytes(range(256)) * 100
    letter = letter_of(b"key", value)
    assert letter.key == b"key"
    assert letter.value
    assert value.startswith(letter.value)
    assert dict(letter.headers)["modelcast.value.bytes"] == b"25600"
    assert dict(letter.headers)["modelcast.value.digest"] == digest.of_bytes(value).encode()


def test_a_key_too_large_is_cut_only_after_the_value() -> None:
    key = b"k" * 10_000
    letter = letter_of(key, b"value")
    assert letter.value == b""
    assert letter.key
    assert key.startswith(letter.key)
    assert dict(letter.headers)["modelcast.key.digest"] == digest.of_bytes(key).encode()


def test_a_message_that_quotes_the_event_is_cut_at_a_whole_character() -> None:
    message = dict(letter_of(None, b"x", message="ä" * 5000).headers)["__streams.errors.message"]
    assert message.decode() == "ä" * 512


def test_the_events_own_headers_stay_in_their_order() -> None:
    theirs = (("traceparent", b"00-1"), ("none", None), ("traceparent", b"00-2"), ("", b"\xff"))
    letter = letter_with(*theirs)
    assert event_headers(letter.headers) == theirs
    assert dict(letter.headers)["__streams.errors.offset"] == b"9"


def test_headers_of_an_earlier_letter_are_not_taken_for_the_events_own_but_for_how_often_it_was_sent_back() -> None:
    letter = letter_with(("__streams.errors.offset", b"1"), ("modelcast.model", b"old"), ("modelcast.replays", b"2"))
    assert [value for name, value in letter.headers if name == "__streams.errors.offset"] == [b"9"]
    assert [value for name, value in letter.headers if name == "modelcast.model"] == [b"fraud"]
    assert replays_of(letter.headers) == 2


@pytest.mark.parametrize("count", [b"", b"-1", b"many", b"\xc2\xb2", b"9" * 5000, None])
def test_a_count_of_replays_that_is_none_counts_as_zero(count: bytes | None) -> None:
    assert replays_of([("modelcast.replays", count)]) == 0


def test_headers_that_take_the_values_room_are_left_out_and_told() -> None:
    letter = letter_with(("big", b"x" * LIMIT_BYTES), ("small", b"y"))
    assert event_headers(letter.headers) == ()
    assert dict(letter.headers)["modelcast.headers.bytes"] == b"%d" % (LIMIT_BYTES + 9)
    assert letter.value == b"value"


def test_several_models_that_can_not_score_an_event_are_named_in_one_letter() -> None:
    builder = DeadLetterBuilder("transactions", max_bytes=LIMIT_BYTES)
    poison = PoisonEvent(1, Fault.INVALID_JSON.value, "no object")
    (letter,) = builder.build(batch_of(b"k", b"v"), [poison], [MODEL, ModelVersion("churn", 12)])
    headers = dict(letter.headers)
    assert (headers["modelcast.model"], headers["modelcast.version"]) == (b"fraud,churn", b"3,12")


def test_an_event_without_a_time_or_a_model_has_no_header_for_it() -> None:
    names = [name for name, _ in letter_with(model=None).headers]
    assert not {"modelcast.timestamp", "modelcast.model", "modelcast.version"}.intersection(names)


def test_headers_whose_names_are_no_text_do_not_stop_the_letter() -> None:
    class Unreadable(MemoryMessage):
        def headers(self) -> list[tuple[str, bytes | None]]:
            raise SystemError("returned a result with an exception set")

    record = LogRecord("transactions", 0, 0, 0, None, b"value", (("a", b"b"),))
    assert EventBatch.of([Unreadable(record)]).headers_of(0) == ()


def test_a_letter_may_be_as_large_as_its_topic_takes_and_the_producer_sends() -> None:
    assert record_limit_bytes({"max.message.bytes": "2000000"}) == 2_000_000
    assert record_limit_bytes({"max.message.bytes": "2000000000"}) == 100_000_000


@given(
    key=st.none() | st.integers(0, 8000).map(bytes),
    value=st.none() | st.integers(0, 8000).map(bytes),
    message=st.text(st.characters(codec=None), max_size=3000),
)
def test_no_event_makes_a_letter_over_the_limit(key: bytes | None, value: bytes | None, message: str) -> None:
    letter = letter_of(key, value, message)
    assert size_of(letter) <= LIMIT_BYTES
    assert (letter.value is None) == (value is None)
    assert (letter.key is None) == (key is None)
    if size_of(letter) < LIMIT_BYTES - 1024:  # nothing is cut where there is room
        assert letter.value == value or len(value or b"") > 1000
