"""Events as a Schema Registry's own serializers write them, on a real broker, with a registry that comes and goes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.schema_registry import Schema as Registered
from confluent_kafka.schema_registry import SchemaRegistryClient, header_schema_id_serializer
from confluent_kafka.schema_registry.avro import AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from modelcast.avro import Schema
from modelcast.consumer import loop
from modelcast.consumer.reports import Report, Waiting
from modelcast.errors import ExitCode, SchemaRegistryError
from tests.brokers import Broker
from tests.faults import oracle
from tests.schema_registry_server import SchemaRegistryServer
from tests.unit.control_rig import wait_until
from tests.unit.protobuf_schemas import class_of, transactions

from .test_scorer import LONGEST_S, Running, Stream

AVRO = json.dumps(
    {
        "type": "record",
        "name": "Transaction",
        "fields": [{"name": "amount", "type": "double"}, {"name": "age", "type": "int"}],
    }
)
JSON = json.dumps(
    {
        "title": "Transaction",
        "type": "object",
        "properties": {"amount": {"type": "number"}, "age": {"type": "integer"}},
    }
)


def _with_age(file: Any) -> None:
    file.message_type[1].field.add(name="age", number=20, type=5, label=1)


TRANSACTION = class_of(transactions(change=_with_age), "Transaction")


class Sender:
    """Sends events as applications do that use a registry."""

    def __init__(self, stream: Stream, url: str) -> None:
        self._stream = stream
        self._producer = Producer({"bootstrap.servers": stream.servers})
        self.client = SchemaRegistryClient({"url": url})
        self._serializers: dict[str, Any] = {
            "avro": AvroSerializer(self.client, AVRO),
            "json": JSONSerializer(JSON, self.client),
            "protobuf": ProtobufSerializer(TRANSACTION, self.client),
        }
        by_header = {"schema.id.serializer": header_schema_id_serializer}
        self._serializers["avro in a header"] = AvroSerializer(self.client, AVRO, conf=by_header)
        self._serializers["protobuf in a header"] = ProtobufSerializer(TRANSACTION, self.client, by_header)
        self.kinds = tuple(self._serializers)

    def send(self, kind: str, amount: float, age: int = 1) -> None:
        fields: Any = {"amount": amount, "age": age}
        context = SerializationContext(self._stream.events, MessageField.VALUE, [])
        value = self._serializers[kind](TRANSACTION(**fields) if kind.startswith("protobuf") else fields, context)
        self.raw(value, context.headers)

    def raw(self, value: bytes | None, headers: Any = None) -> None:
        self._producer.produce(self._stream.events, value=value, headers=headers, partition=0)
        assert self._producer.flush(60) == 0


@pytest.fixture
def server() -> Iterator[SchemaRegistryServer]:
    with SchemaRegistryServer() as server:
        yield server


@pytest.fixture
def stream(broker: Broker, prefix: str, tmp_path: Path) -> Stream:
    stream = Stream(broker, prefix, tmp_path, partitions=1)
    stream.publish(0.5)
    return stream


def scores(stream: Stream) -> list[float]:
    oracle.await_settled(stream.servers, stream.predictions)
    known = oracle.writer_schemas(stream.servers, stream.connection.topics.schemas)
    return [oracle.decode(record.value(), known)["score"] for record in oracle.read(stream.servers, stream.predictions)]


def letters(stream: Stream) -> list[tuple[int, str, str]]:
    """(offset, word, message) of each dead letter."""
    found = []
    oracle.await_settled(stream.servers, f"{stream.predictions}.dead-letters")
    for record in oracle.read(stream.servers, f"{stream.predictions}.dead-letters"):
        headers = {name: value.decode() for name, value in record.headers()}
        where, word, said = (headers[f"__streams.errors.{name}"] for name in ("offset", "exception", "message"))
        found.append((int(where), word, said))
    return found


def until(running: Running, condition: Callable[[], bool]) -> None:
    wait_until(lambda: running.error is not None or condition(), "what the test waits for", LONGEST_S)
    assert running.error is None


def waits_for(reports: list[Report], words: str) -> bool:
    return any(isinstance(report, Waiting) and words in report.reason for report in reports)


def test_events_of_a_registrys_own_serializers_are_scored(stream: Stream, server: SchemaRegistryServer) -> None:
    sender = Sender(stream, server.url)
    for number, kind in enumerate(sender.kinds):
        sender.send(kind, float(number))
    sender.raw(None)
    sender.raw(b'{"amount": 10, "age": 1}')
    scorer, _ = stream.scorer(schema_registry=server.url, until_end=True)
    scorer.run()
    assert scores(stream) == [1.5, 2.5, 3.5, 4.5, 5.5, 11.5]
    assert [(offset, word) for offset, word, _ in letters(stream)] == [(5, "Tombstone")]
    assert stream.judge().is_whole


def test_f34_an_unknown_id_is_a_dead_letter_and_a_registry_that_is_away_is_waited_for(
    stream: Stream, server: SchemaRegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "UNKNOWN_SCHEMA_PATIENCE_S", 1.0)
    sender = Sender(stream, server.url)
    sender.send("avro", 1)
    sender.raw(b"\x00\x00\x00\x00\x63what")
    sender.raw(b"\x00\xff\xff\xff\xffwhat")
    sender.send("avro", 2)
    scorer, reports = stream.scorer(schema_registry=server.url, event_format="confluent")
    with Running(scorer) as running:
        until(running, lambda: scorer.stats.events == 4)
        assert waits_for(reports, "not known (yet)")
        assert [(offset, word) for offset, word, _ in letters(stream)] == [(1, "UnknownSchema"), (2, "UnknownSchema")]
        assert letters(stream)[0][2] == "the Schema Registry has no schema with id 99"

        # Both registered now, and not met by the scorer before the registry goes.
        sender.send("avro in a header", 0)
        until(running, lambda: scorer.stats.events == 5)
        later = json.loads(AVRO)
        later["fields"].append({"name": "later", "type": "string", "default": ""})
        number = sender.client.register_schema("later", Registered(json.dumps(later), "AVRO"))
        server.stop()
        sender.send("avro", 5)  # known already: it is scored all the same
        until(running, lambda: scorer.stats.events == 6)
        payload = Schema.parse(later).encode({"amount": 3, "age": 1, "later": "x"})
        sender.raw(b"\x00" + number.to_bytes(4) + payload)
        sender.raw(b"\x00\x00\x00\x00\x63again")  # denied before: it waits for what stands before it, and no longer
        sender.send("avro", 4)
        until(running, lambda: waits_for(reports, "can't be reached"))

        # Back, and out of order: still nothing is dropped, and it is asked a bounded number of times.
        server.answer = 503
        server.asked.clear()
        server.start()
        until(running, lambda: len(server.asked) >= 2)
        assert waits_for(reports, "503") or waits_for(reports, "can't be reached")
        assert scorer.stats.events == 6
        assert len(letters(stream)) == 2
        server.answer = None
        until(running, lambda: scorer.stats.events == 9)
        assert set(server.asked) <= {f"/schemas/ids/{number}", "/schemas/ids/99"}
    assert scores(stream) == [2.5, 3.5, 1.5, 6.5, 4.5, 5.5]
    assert [(offset, word) for offset, word, _ in letters(stream)][2:] == [(7, "UnknownSchema")]
    assert stream.judge().is_whole


def test_f36_a_registry_that_is_not_there_at_the_start_is_told_with_its_address(stream: Stream) -> None:
    scorer, _ = stream.scorer(schema_registry="http://127.0.0.1:1")
    with pytest.raises(SchemaRegistryError, match=r"http://127\.0\.0\.1:1.*--schema-registry") as caught:
        scorer.run()
    assert caught.value.exit_code is ExitCode.BROKER


def test_avro_without_a_frame_is_read_by_the_schema_given(stream: Stream, tmp_path: Path) -> None:
    path = tmp_path / "transaction.avsc"
    path.write_text(AVRO)
    sender = Sender(stream, "http://127.0.0.1:1")
    schema = Schema.parse(AVRO)
    sender.raw(schema.encode({"amount": 0.0, "age": 0}))
    sender.raw(schema.encode({"amount": 1.5, "age": 2}) + b"x")
    sender.raw(schema.encode({"amount": -4.0, "age": -(2**31)}))
    scorer, _ = stream.scorer(event_format="avro", event_schema=path, until_end=True)
    scorer.run()
    assert scores(stream) == [0.5, -float(2**31)]
    assert [word for _, word, _ in letters(stream)] == ["TrailingBytes"]


def test_a_protobuf_schema_is_asked_for_in_its_serialized_form(server: SchemaRegistryServer) -> None:
    """What the tests above rest on: the server, too, has a text that is of no use to a program."""
    with SchemaRegistryClient({"url": server.url}) as client:
        text = base64.b64encode(transactions().SerializeToString()).decode()
        number = client.register_schema("s", Registered(text, "PROTOBUF"))
    with SchemaRegistryClient({"url": server.url}) as client:
        assert client.get_schema(number).schema_str != text
    with SchemaRegistryClient({"url": server.url}) as client:
        assert client.get_schema(number, fmt="serialized").schema_str == text
