"""A Schema Registry asked over HTTP: what it has, what it has not, and when it can't be asked."""

from __future__ import annotations

import base64
import builtins
import json
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema as Registered
from confluent_kafka.schema_registry import SchemaReference, SchemaRegistryClient

from modelcast import schema_registry
from modelcast.avro import Schema, inlined
from modelcast.config import Connection
from modelcast.errors import ConfigError, MissingExtraError, SchemaRegistryError, SourceError
from modelcast.events.writers import AvroWriter, JsonWriter, ProtobufWriter, UnusableWriter
from modelcast.schema_registry import ABSENT_S, DENIED_ANEW_S, RETRY_MAX_S, SchemaRegistry
from tests.schema_registry_server import SchemaRegistryServer

from .control_rig import wait_until
from .protobuf_schemas import transactions

AMOUNT = '{"type":"record","name":"T","fields":[{"name":"amount","type":"double"}]}'


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that stands still for some seconds is no registry that does not answer."""
    monkeypatch.setattr(schema_registry, "TIMEOUT_S", 60.0)


@pytest.fixture
def server() -> Iterator[SchemaRegistryServer]:
    with SchemaRegistryServer() as server:
        yield server


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(server: SchemaRegistryServer, clock: Clock) -> Iterator[SchemaRegistry]:
    with SchemaRegistry({"url": server.url}, clock=clock) as registry:
        yield registry


def register(
    server: SchemaRegistryServer, text: str, kind: str = "AVRO", subject: str = "s", references: Any = ()
) -> bytes:
    """Registers a schema; gives the frame of its id."""
    with SchemaRegistryClient({"url": server.url}) as client:
        number = client.register_schema(subject, Registered(text, kind, list(references)))
    return b"\x00" + number.to_bytes(4)


def test_schemas_of_every_language_are_found_by_id_and_kept(
    server: SchemaRegistryServer, registry: SchemaRegistry
) -> None:
    frame = register(server, AMOUNT)
    file = base64.b64encode(transactions().SerializeToString()).decode()
    assert registry.find(frame) == AvroWriter(Schema.parse(AMOUNT))
    assert registry.find(register(server, '{"type":"object"}', "JSON")) == JsonWriter()
    protobuf = registry.find(register(server, file, "PROTOBUF"))
    assert isinstance(protobuf, ProtobufWriter)
    assert protobuf.schema.message((1,)).name == "shop.Transaction"
    server.stop()
    assert registry.find(frame) == AvroWriter(Schema.parse(AMOUNT))


def test_a_guid_finds_the_same_schema(server: SchemaRegistryServer, registry: SchemaRegistry) -> None:
    register(server, AMOUNT)
    guid = uuid.UUID(server.store.schemas[0].guid).bytes
    assert registry.find(b"\x01" + guid) == AvroWriter(Schema.parse(AMOUNT))
    assert registry.find(b"\x01" + bytes(16)) is None


def test_f34_what_the_registry_has_not_is_none_and_asked_for_now_and_then(
    server: SchemaRegistryServer, registry: SchemaRegistry, clock: Clock
) -> None:
    frame = b"\x00\x00\x00\x00\x01"
    for _ in range(5):
        assert registry.find(frame) is None
    assert server.asked == ["/schemas/ids/1"]
    register(server, AMOUNT)
    assert registry.find(frame) is None
    clock.now += ABSENT_S
    assert registry.find(frame) == AvroWriter(Schema.parse(AMOUNT))


def test_f34_an_id_no_registry_gives_is_never_asked_for(server: SchemaRegistryServer, registry: SchemaRegistry) -> None:
    # The real one answers such an id as a path it does not have, which says nothing of schemas.
    assert registry.find(b"\x00\xff\xff\xff\xff") is None
    assert not server.asked


def test_f34_a_registry_that_is_away_is_told_apart_and_tried_at_growing_intervals(
    server: SchemaRegistryServer, registry: SchemaRegistry, clock: Clock
) -> None:
    frame = register(server, AMOUNT)
    server.answer = 503
    server.asked.clear()
    waits = []
    for _ in range(10):
        before, began_s = len(server.asked), clock.now
        while len(server.asked) == before:
            clock.now += 0.02
            with pytest.raises(SchemaRegistryError, match="503"):
                registry.find(frame)
        waits.append(clock.now - began_s)
    assert waits[0] < 0.3
    assert waits[-1] >= RETRY_MAX_S / 2 - 0.1
    assert max(waits) <= RETRY_MAX_S + 0.1
    server.answer = None
    clock.now += RETRY_MAX_S
    assert registry.find(frame) == AvroWriter(Schema.parse(AMOUNT))


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500])
def test_f34_an_answer_that_is_none_of_the_registrys_own_is_no_absence(
    server: SchemaRegistryServer, registry: SchemaRegistry, status: int
) -> None:
    server.answer = status
    with pytest.raises(SchemaRegistryError, match=str(status)) as caught:
        registry.find(b"\x00\x00\x00\x00\x01")
    assert caught.value.retriable
    assert ("basic.auth.user.info" in str(caught.value)) == (status in (401, 403))


def test_f34_what_was_denied_stays_unknown_while_the_registry_is_away(
    server: SchemaRegistryServer, registry: SchemaRegistry, clock: Clock
) -> None:
    frame = b"\x00\x00\x00\x00\x07"
    assert registry.find(frame) is None
    server.stop()
    clock.now += ABSENT_S
    with pytest.raises(SchemaRegistryError, match="can't be reached"):
        registry.find(frame)
    clock.now += DENIED_ANEW_S
    assert registry.find(frame) is None


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("{", "AVRO", "not an Avro schema"),
        ('{"type":"record","name":"T","fields":[{"name":"x","type":"Nowhere"}]}', "AVRO", "Nowhere"),
        ("not base64", "PROTOBUF", "serialized form"),
        ("AAAA", "PROTOBUF", "not a Protobuf schema"),
        ("x", "XML", "type XML"),
    ],
)
def test_a_schema_of_no_use_says_why(
    server: SchemaRegistryServer, registry: SchemaRegistry, text: str, kind: str, words: str
) -> None:
    frame = register(server, text, kind)
    found = registry.find(frame)
    assert isinstance(found, UnusableWriter)
    assert words in found.reason
    assert registry.find(frame) == found


def test_a_schema_may_refer_to_others(server: SchemaRegistryServer, registry: SchemaRegistry) -> None:
    country = '{"type":"enum","name":"Country","namespace":"geo","symbols":["DE","FR"]}'
    card = '{"type":"record","name":"Card","namespace":"pay","fields":[{"name":"country","type":"geo.Country"}]}'
    pay = (
        '{"type":"record","name":"T","namespace":"pay","fields":[{"name":"card","type":["null","Card"]},'
        '{"name":"home","type":"geo.Country"}]}'
    )
    register(server, country, subject="country")
    register(server, card, subject="card", references=[SchemaReference("geo.Country", "country", 1)])
    frame = register(
        server,
        pay,
        references=[SchemaReference("pay.Card", "card", 1), SchemaReference("geo.Country", "country", 1)],
    )
    found = registry.find(frame)
    assert isinstance(found, AvroWriter)
    datum = {"card": {"country": "FR"}, "home": "DE"}
    assert found.schema.decode(found.schema.encode(datum)) == datum


def test_a_reference_that_leads_nowhere_is_told_and_looked_at_again(
    server: SchemaRegistryServer, registry: SchemaRegistry, clock: Clock
) -> None:
    text = '{"type":"record","name":"T","fields":[{"name":"x","type":"E"}]}'
    frame = register(server, text, references=[SchemaReference("E", "later", 1)])
    found = registry.find(frame)
    assert isinstance(found, UnusableWriter)
    assert "version 1 of 'later'" in found.reason
    register(server, '{"type":"enum","name":"E","symbols":["A"]}', subject="later")
    clock.now += ABSENT_S
    assert isinstance(registry.find(frame), AvroWriter)


def test_types_are_put_in_where_they_are_first_named() -> None:
    schema = inlined('["null", "a.E", "a.E2"]', ['[{"type":"enum","name":"a.E","symbols":["X"]}]', _fixed("a.E2")])
    assert json.loads(schema.text)[1]["symbols"] == ["X"]
    with pytest.raises(SourceError, match=r"a\.E"):
        inlined('["null", "a.E"]', [])


def _fixed(name: str) -> str:
    return json.dumps({"type": "fixed", "name": name, "size": 4})


def test_credentials_and_numbers_are_the_clients_own_settings(server: SchemaRegistryServer) -> None:
    server.credentials = "me:secret"
    with SchemaRegistry({"url": server.url}) as registry, pytest.raises(SchemaRegistryError, match="401"):
        registry.check()
    connection = Connection.resolve(
        "b:1",
        properties={"schema.registry.basic.auth.user.info": "me:secret", "schema.registry.timeout": "2.5"},
        environment={"MODELCAST_SCHEMA_REGISTRY": server.url},
    )
    assert not any(key.startswith("schema.registry") for key in connection.settings)
    with SchemaRegistry(connection.schema_registry) as registry:
        registry.check()


def test_a_registry_that_starts_too_is_waited_for_at_the_start(
    server: SchemaRegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_registry, "CHECK_S", 60.0)
    server.answer = 503
    with SchemaRegistry({"url": server.url}) as registry:

        def mend() -> None:
            wait_until(lambda: len(server.asked) > 1, "it to be asked again")
            server.answer = None

        mended = threading.Thread(target=mend)
        mended.start()
        registry.check()
        mended.join()


@pytest.mark.parametrize("settings", [{"url": "ftp://x"}, {"url": "http://x", "colour": "red"}])
def test_a_wrong_setting_is_told(settings: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="Schema Registry"):
        SchemaRegistry(settings)


def test_no_password_of_a_url_is_shown() -> None:
    with (
        SchemaRegistry({"url": "http://me:secret@127.0.0.1:1"}) as registry,
        pytest.raises(SchemaRegistryError) as caught,
    ):
        registry.check()
    assert "http://127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_without_its_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "confluent_kafka.schema_registry":
            raise ImportError("No module named 'authlib'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtraError, match="authlib") as caught:
        schema_registry.SchemaRegistry({"url": "http://127.0.0.1:1"})
    assert "modelcast[schema-registry]" in str(caught.value)


def test_f34_garbage_that_names_thousands_of_schemas_holds_up_nobody_for_long(
    server: SchemaRegistryServer, registry: SchemaRegistry, clock: Clock
) -> None:
    frames = [b"\x00" + number.to_bytes(4) for number in range(1, 301)]

    def ask_all() -> bool:
        for frame in frames:
            clock.now += 0.01  # what an answer takes
            try:
                assert registry.find(frame) is None
            except SchemaRegistryError:
                return False
        return True

    rounds = 0
    while not ask_all():
        rounds += 1
        clock.now += 0.1
        assert rounds < 20
    assert rounds >= 2
    assert len(server.asked) < 1.5 * len(frames)
