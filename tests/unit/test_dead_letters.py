"""Dead letters: the original event with Kafka Streams' headers, never larger than the limit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import digest
from modelcast.consumer.batches import EventBatch
from modelcast.consumer.dead_letters import DeadLetter, DeadLetterBuilder
from modelcast.consumer.decode.rules import Fault, PoisonEvent
from modelcast.names import ModelVersion

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
    (letter,) = builder.build(batch_of(key, value), [poison], MODEL)
    return letter


def size_of(letter: DeadLetter) -> int:
    headers = sum(len(name) + len(value) for name, value in letter.headers)
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
