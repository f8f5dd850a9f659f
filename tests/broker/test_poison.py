"""Events that can't be scored, on a real broker: their neighbours, their letters, and sending them back."""

from __future__ import annotations

import ctypes
import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import Message, Producer

from modelcast.avro import Schema
from modelcast.config import Connection
from modelcast.consumer import Scorer
from modelcast.events.schemas import SchemaTopic
from modelcast.log import TopicSpec
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from tests.brokers import Broker, topic_folders
from tests.faults import oracle
from tests.publishing import Shell
from tests.record_batches import transactions
from tests.unit.linear_model import linear_model

PARTITIONS = 2
EVENTS = 400
Event = tuple[bytes | None, bytes | None]  # key and value

FIELDS: list[dict[str, Any]] = [
    {"name": "id", "type": "string"},
    {"name": "amount", "type": "double"},
    {"name": "age", "type": ["null", "int"]},
]
AVRO = Schema.parse({"type": "record", "name": "Transaction", "fields": FIELDS})
OTHER = Schema.parse({"type": "record", "name": "Other", "fields": [{"name": "amount", "type": "string"}]})


class World:
    """A repository with a model, and topics of events to be scored."""

    def __init__(self, broker: Broker, prefix: str, folder: Path) -> None:
        self.servers = broker.bootstrap_servers
        self.shell = Shell(self.servers, prefix)
        self.connection = Connection.resolve(self.servers, prefix=prefix)
        self.folder = folder
        self.log = self.connection.open_log()
        init(self.log, self.connection.topics, blob_partitions=1)
        RegistryWriter(self.log, self.connection.topics).publish(
            "fraud", linear_model(folder / "source", 0.5), release=True
        )
        schemas = SchemaTopic(self.log, self.connection.topics)
        for schema in (AVRO, OTHER):
            schemas.register(schema)
        schemas.close()

    def make(self, topic: str, **configs: str) -> str:
        settings = {"retention.ms": "-1", **{name.replace("_", "."): value for name, value in configs.items()}}
        self.log.create(TopicSpec(topic, PARTITIONS, configs=settings))
        return topic

    def send(self, topic: str, events: list[Event], times: list[int], headers: Any = None) -> None:
        producer = Producer({"bootstrap.servers": self.servers, "message.max.bytes": 20_000_000})
        for number, ((key, value), at) in enumerate(zip(events, times, strict=True)):
            producer.produce(topic, key=key, value=value, partition=number % PARTITIONS, timestamp=at, headers=headers)
        assert producer.flush(60) == 0

    def score(self, topic: str, **options: Any) -> Any:
        scorer = Scorer(
            "fraud",
            topic,
            f"{topic}-scores",
            until_end=True,
            connection=self.connection,
            cache_dir=self.folder / "cache",
            state_dir=self.folder / "state",
            **options,
        )
        return scorer.run()

    def predictions(self, topic: str) -> dict[tuple[int, int], bytes]:
        """By partition and offset of the event, the whole record without the name of the topic."""
        known = oracle.writer_schemas(self.servers, self.connection.topics.schemas)
        found = {}
        for message in oracle.read(self.servers, f"{topic}-scores"):
            value = message.value()
            source = oracle.source_of(oracle.decode(value, known))
            assert source not in found
            found[source] = (message.key() or b"") + value.replace(topic.encode(), b"?")
        return found

    def letters(self, topic: str) -> dict[tuple[int, int], tuple[Message, dict[str, bytes]]]:
        """By partition and offset of the event."""
        found = {}
        for message in oracle.read(self.servers, f"{topic}-scores.dead-letters"):
            headers = dict(message.headers() or ())
            assert headers["__streams.errors.topic"] == topic.encode()
            source = (int(headers["__streams.errors.partition"]), int(headers["__streams.errors.offset"]))
            assert message.partition() == source[0]
            assert source not in found
            found[source] = (message, headers)
        return found


@pytest.fixture
def world(broker: Broker, prefix: str, tmp_path: Path) -> World:
    return World(broker, prefix, tmp_path)


def good(number: int) -> bytes:
    if number % 3:
        return AVRO.encode_single_object({"id": f"t{number}", "amount": number / 7, "age": number % 90})
    return b'{"id": "t%d", "amount": %d.25, "age": %d}' % (number, number, number % 90)


def poisoned(number: int) -> tuple[bytes | None, str]:
    """Bad events of every kind, with the word they must get."""
    avro = AVRO.encode_single_object({"id": f"t{number}", "amount": 1.0, "age": 2})
    kinds: list[tuple[bytes | None, str]] = [
        (b"\x00\x01garbage\xff" * 3, "InvalidJson"),
        (avro[:-3], "InvalidAvro"),
        (avro + b"\x00", "TrailingBytes"),
        (avro[:10] + b"\x80\x80\x80\x80\x80\x80\x80\x80\x20" + avro[11:], "InvalidAvro"),  # an id of 2^60 bytes
        (AVRO.frame + OTHER.encode_single_object({"amount": "many"})[10:], "InvalidAvro"),  # another schema's body
        (OTHER.encode_single_object({"amount": "many"}), "WrongType"),
        (AVRO.encode_single_object({"id": "t", "amount": 1.0, "age": None}), "NullField"),
        (b'{"amount": 1}\n{"amount": 2, "age": 3}', "InvalidJson"),
        (b'{"amount": 1, "amount": 2, "age": 3}', "InvalidJson"),
        (b'{"amount": "1", "age": 3}', "WrongType"),
        (b'{"age": 3}', "MissingField"),
        (b'{"amount": 1e300, "age": 3}', "OutOfRange"),
        (AVRO.frame[:7], "InvalidAvro"),
        (b"", "EmptyValue"),
        (None, "Tombstone"),
    ]
    return kinds[number % len(kinds)]


def test_f33_poison_costs_no_neighbour_a_byte_and_goes_to_the_dead_letters_in_the_same_transaction(
    world: World, broker: Broker, fresh_topic: Callable[..., str], tmp_path: Path
) -> None:
    name = fresh_topic("events")
    clean, dirty = world.make(f"clean-{name}"), world.make(f"dirty-{name}")
    now_ms = int(time.time() * 1000)
    times = [now_ms + number for number in range(EVENTS)]
    bad = sorted({0, 1, EVENTS - 2, EVENTS - 1, *range(7, EVENTS, 5), *range(120, 150)})  # ends, scattered, a long run
    events: list[Event] = [(b"k%d" % number, good(number)) for number in range(EVENTS)]
    world.send(clean, events, times)
    for place, number in enumerate(bad):
        events[number] = (events[number][0], poisoned(place)[0])
    world.send(dirty, events, times, headers=[("traceparent", b"00-1")])
    assert world.score(clean).predictions == EVENTS
    stats = world.score(dirty)
    assert (stats.predictions, stats.dead_letters) == (EVENTS - len(bad), len(bad))

    places = {number: (number % PARTITIONS, number // PARTITIONS) for number in range(EVENTS)}
    untouched = world.predictions(clean)
    for number in bad:
        del untouched[places[number]]
    assert world.predictions(dirty) == untouched

    letters = world.letters(dirty)
    assert sorted(letters) == sorted(places[number] for number in bad)
    for place, number in enumerate(bad):
        message, headers = letters[places[number]]
        assert (message.key(), message.value()) == events[number]
        assert headers["__streams.errors.exception"].decode() == poisoned(place)[1]
        assert headers["__streams.errors.message"]
        assert (headers["traceparent"], headers["modelcast.timestamp"]) == (b"00-1", b"%d" % times[number])

    stored = topic_folders(broker, tmp_path / "stored")
    for partition in range(PARTITIONS):
        taken = []
        for topic, found in ((f"{dirty}-scores", untouched), (f"{dirty}-scores.dead-letters", letters)):
            committed = transactions(stored, topic, partition)
            offsets = iter(sorted(offset for place, offset in found if place == partition))
            taken.append({(producer, *span(offsets, count)) for producer, count in committed})
        # The events of one transaction follow each other, so those of another never stand between them.
        scored, lettered = taken
        assert {producer for producer, _, _ in scored} == {producer for producer, _, _ in lettered}
        for _, first, last in scored:
            assert sum(begin <= last and end >= first for _, begin, end in lettered) <= 1
        for _, first, last in lettered:
            assert sum(begin <= last and end >= first for _, begin, end in scored) <= 1


def span(offsets: Iterator[int], count: int) -> tuple[int, int]:
    """The first and the last of the next so many."""
    some = [next(offsets) for _ in range(count)]
    return some[0], some[-1]


def test_f43_an_event_that_no_letter_holds_is_cut_and_a_time_the_broker_refuses_holds_nothing_up(
    world: World, fresh_topic: Callable[..., str]
) -> None:
    events = world.make(fresh_topic("events"), max_message_bytes="20000000", message_timestamp_after_max_ms=str(2**62))
    world.make(f"{events}-scores.dead-letters")  # takes 1,048,588 bytes, and times an hour ahead
    huge, wide = b"\xff" * 5_000_000, b'{"amount": 1, "age": 2, "more": "%s"}' % (b"x" * 3_000_000)
    far_ms = int(time.time() * 1000) + 100 * 365 * 86_400_000
    batch: list[Event] = [
        (b"a", huge),
        (b"b" * 2_000_000, b"bad"),
        (b"c", b"{}"),
        (b"d", wide),
        (b"e", good(1)),
        (b"f", b""),
    ]
    world.send(events, batch, [far_ms, 1, far_ms, far_ms, far_ms, 1])
    stats = world.score(events)
    assert (stats.predictions, stats.dead_letters, stats.recoveries) == (2, 4, 0)
    letters = world.letters(events)
    message, headers = letters[0, 0]
    assert 900_000 < len(message.value()) < 1_048_588
    assert huge.startswith(message.value())
    assert headers["modelcast.value.bytes"] == b"5000000"
    assert headers["modelcast.value.digest"].decode() == f"sha256:{hashlib.sha256(huge).hexdigest()}"
    message, headers = letters[1, 0]
    assert headers["modelcast.key.bytes"] == b"2000000"
    assert headers["modelcast.timestamp"] == b"1"
    message, headers = letters[0, 1]
    assert (message.key(), message.value(), headers["modelcast.timestamp"]) == (b"c", b"{}", b"%d" % far_ms)

    target = world.make(fresh_topic("mended"))  # refuses what is more than an hour ahead
    done = world.shell.json("dlq", "replay", f"{events}-scores.dead-letters", "--to", target)
    assert (done["sent"], done["passed_over"]) == (2, 2)
    oracle.await_settled(world.servers, target)
    sent = {message.value(): message.timestamp()[1] for message in oracle.read(world.servers, target)}
    assert sent[b""] == 1
    assert sent[b"{}"] < far_ms


def test_f43_an_event_whose_prediction_no_record_holds_is_a_dead_letter_and_holds_nothing_up(
    world: World, fresh_topic: Callable[..., str]
) -> None:
    events = world.make(fresh_topic("events"), max_message_bytes="20000000")
    world.make(f"{events}-scores")  # takes 1,048,588 bytes
    fits, beyond = b"f" * 1_000_000, b"b" * 1_048_500
    batch: list[Event] = [
        (b"a", good(1)),
        (b"k", good(2)),
        (fits, good(3)),
        (beyond, good(4)),
        (b"c" * 2_000_000, good(5)),
    ]
    world.send(events, batch, [int(time.time() * 1000)] * len(batch))
    stats = world.score(events)
    assert (stats.predictions, stats.dead_letters, stats.recoveries) == (3, 2, 0)
    assert sorted(world.predictions(events)) == [(0, 0), (0, 1), (1, 0)]
    letters = world.letters(events)
    assert {source: headers["__streams.errors.exception"] for source, (_, headers) in letters.items()} == {
        (1, 1): b"PredictionTooLarge",
        (0, 2): b"PredictionTooLarge",
    }
    assert letters[0, 2][0].key() == b"c" * 2_000_000


def test_f33_headers_whose_names_are_no_text_end_no_scorer(world: World, fresh_topic: Callable[..., str]) -> None:
    events = world.make(fresh_topic("events"))
    for value in (good(3), b"bad", b"bad", good(6)):
        send_with_header(world.servers, events, value, b"\xff\xfe")
    stats = world.score(events, carry_headers=["traceparent"])
    assert (stats.predictions, stats.dead_letters) == (2, 2)
    shown = world.shell.json("dlq", "show", f"{events}-scores.dead-letters")
    assert [letter["error"] for letter in shown["listed"]] == ["InvalidJson"] * 2


def send_with_header(servers: str, topic: str, value: bytes, name: bytes) -> None:
    """As other clients may: this one's own takes only names that are text."""
    (path,) = Path(f"{Path(confluent_kafka.__file__).parent}.libs").glob("librdkafka-*")
    library = ctypes.CDLL(str(path))
    library.rd_kafka_conf_new.restype = library.rd_kafka_new.restype = ctypes.c_void_p
    properties, told = ctypes.c_void_p(library.rd_kafka_conf_new()), ctypes.create_string_buffer(512)
    assert library.rd_kafka_conf_set(properties, b"bootstrap.servers", servers.encode(), told, len(told)) == 0
    producer = ctypes.c_void_p(library.rd_kafka_new(0, properties, told, ctypes.c_size_t(len(told))))
    sized = ctypes.c_size_t(len(value))
    to_topic, with_value, with_flags, with_header, end, copied = (
        1,
        4,
        7,
        9,
        0,
        2,
    )  # rd_kafka_vtype_t, RD_KAFKA_MSG_F_COPY
    given = (to_topic, topic.encode(), with_value, value, sized, with_flags, copied)
    header = (with_header, name, b"1", ctypes.c_ssize_t(1))
    assert library.rd_kafka_producev(producer, *given, *header, end) == 0
    assert library.rd_kafka_flush(producer, 60_000) == 0
    library.rd_kafka_destroy(producer)


def test_dead_letters_hold_whole_events_where_the_scorer_made_their_topic(
    world: World, fresh_topic: Callable[..., str]
) -> None:
    events = world.make(fresh_topic("events"), max_message_bytes="20000000")
    world.send(events, [(b"k", b"\xff" * 5_000_000)], [int(time.time() * 1000)])
    assert world.score(events).dead_letters == 1
    ((message, headers),) = world.letters(events).values()
    assert len(message.value()) == 5_000_000
    assert "modelcast.value.bytes" not in headers


def test_letters_are_shown_sent_back_scored_and_told_when_they_come_again(
    world: World, fresh_topic: Callable[..., str]
) -> None:
    events = world.make(fresh_topic("events"))
    topic = f"{events}-scores.dead-letters"
    now_ms = int(time.time() * 1000)
    batch: list[Event] = [(b"k0", good(1)), (b"k1", b'{"age": 1}'), (b"k2", b"\xff\xfe"), (None, b'{"age": 2}')]
    world.send(events, batch, [now_ms] * 4, headers=[("traceparent", b"00-1")])
    world.score(events)

    shown = world.shell.json("dlq", "show", topic, "--values")
    assert [(entry["error"], entry["letters"]) for entry in shown["errors"]] == [
        ("MissingField", 2),
        ("InvalidJson", 1),
    ]
    listed = {(entry["source"]["partition"], entry["source"]["offset"]): entry for entry in shown["listed"]}
    first = listed[1, 0]
    assert (first["key"], first["format"], first["value"], first["models"]) == ("k1", "json", {"age": 1}, ["fraud@1"])
    assert (first["source"]["topic"], first["source"]["timestamp"]) == (events, now_ms)
    assert "'amount'" in first["message"]
    assert listed[0, 1]["preview"] == "fffe"
    text = world.shell.says("dlq", "show", topic, "--error", "InvalidJson")
    assert "InvalidJson" in text
    assert "MissingField" not in text
    for command in ("show", "replay"):
        misspelt = world.shell.says("dlq", command, topic, "--error", "Invalidjson")
        assert "there are letters of InvalidJson (" in misspelt

    assert "2 events would be sent back" in world.shell.says(
        "dlq", "replay", topic, "--error", "MissingField", "--dry-run"
    )
    assert world.shell.json("dlq", "replay", topic, "--error", "MissingField")["sent"] == 2
    assert world.shell.json("dlq", "replay", topic, "--error", "MissingField")["sent"] == 0
    replayed = [message for message in oracle.read(world.servers, events) if message.offset() >= 2]
    assert [(message.partition(), message.key(), message.value()) for message in replayed] == [
        (1, b"k1", b'{"age": 1}'),
        (1, None, b'{"age": 2}'),
    ]
    assert all(
        message.headers() == [("traceparent", b"00-1"), ("modelcast.replays", b"1")]
        and message.timestamp()[1] == now_ms
        for message in replayed
    )

    world.score(events)  # nothing was mended: they come again
    told = world.shell.says("dlq", "replay", topic)
    assert f"3 events sent back to {events}" in told
    assert "2 of them came back before" in told
    assert world.shell.json("dlq", "replay", topic)["sent"] == 0


def test_what_can_not_be_shown_or_sent_says_so(world: World, fresh_topic: Callable[..., str]) -> None:
    nowhere = fresh_topic("nowhere")
    assert nowhere in world.shell.fails("dlq", "show", nowhere, status=4)
    assert nowhere in world.shell.fails("dlq", "replay", nowhere, status=4)
    empty = world.make(fresh_topic("letters"))
    assert "no dead letters" in world.shell.says("dlq", "show", empty)
    plain = world.make(fresh_topic("plain"))
    world.send(plain, [(b"k", b"{}")], [int(time.time() * 1000)])
    assert "are these dead letters?" in world.shell.says("dlq", "show", plain)
    assert "as dead letters do" in world.shell.fails("dlq", "replay", plain, status=2)
    assert "Nothing is left" in world.shell.says("dlq", "replay", empty)
    assert "one past the last" in world.shell.fails("dlq", "show", empty, "--from", "5", "--to", "5", status=2)
