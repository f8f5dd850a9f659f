"""Images as raw bytes, from the examples of a publication to predictions on a topic."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import pytest
from confluent_kafka import Producer

from modelcast.config import Connection
from modelcast.consumer import ModelClient, Scorer
from modelcast.consumer.dead_letters import ERROR
from modelcast.events.infer import infer_schema_of
from modelcast.events.send import EventSender
from modelcast.log import TopicSpec
from modelcast.publisher import ModelPublisher
from modelcast.registry.repository import init
from tests.brokers import Broker
from tests.faults import oracle
from tests.unit.image_models import SIDE, conv_net, digit_classifier, digits


class Images:
    """A repository with two models of digits, and topics of images."""

    def __init__(self, broker: Broker, prefix: str, folder: Path) -> None:
        self.connection = Connection.resolve(broker.bootstrap_servers, prefix=prefix)
        self.folder = folder
        self.log = self.connection.open_log()
        init(self.log, self.connection.topics, blob_partitions=2)
        images = digits()[0]
        np.savez(folder / "examples.npz", image=images[:60, :, :, None])
        with ModelPublisher.connect(self.connection) as publisher:
            publisher.publish("shapes", conv_net(), examples=folder / "examples.npz", fields=["scan"], release=True)
            publisher.publish(
                "digits", digit_classifier(), examples={"scan": images[:60]}, fields=["scan"], release=True
            )

    def topic(self, name: str) -> str:
        topic = f"{self.connection.prefix}-{name}"
        self.log.create(TopicSpec(topic, 1))
        return topic

    def send(self, topic: str, frame: pl.DataFrame) -> None:
        schema = infer_schema_of(topic, frame)
        with EventSender(self.log, self.connection.topics, topic, schema=schema, key="id") as sender:
            sender.send(frame)
            sender.flush()

    def produce(self, topic: str, values: dict[str, bytes | None]) -> None:
        producer = Producer({"bootstrap.servers": self.connection.bootstrap_servers})
        for key, value in values.items():
            producer.produce(topic, key=key, value=value)
        assert producer.flush(60) == 0

    def scored(self, model: str, events: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
        """Predictions and the words for dead letters, by the events' keys."""
        predictions = f"{events}-{model}"
        Scorer(
            model,
            events,
            predictions,
            connection=self.connection,
            cache_dir=self.folder / "cache",
            state_dir=self.folder / "state",
            until_end=True,
        ).run()
        servers = self.connection.bootstrap_servers
        known = oracle.writer_schemas(servers, self.connection.topics.schemas)
        found = {m.key().decode(): oracle.decode(m.value(), known) for m in oracle.read(servers, predictions)}
        letters = oracle.read(servers, f"{predictions}.dead-letters")
        return found, {letter.key().decode(): dict(letter.headers())[ERROR].decode() for letter in letters}


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path / "cache"))


def test_images_are_scored_from_raw_bytes_and_poison_costs_only_itself(
    broker: Broker, prefix: str, tmp_path: Path
) -> None:
    setting = Images(broker, prefix, tmp_path)
    images = digits()[0][500:900]
    octets = [image.tobytes() for image in images]
    keys = [f"good-{number}" for number in range(len(images))]
    clean, dirty = setting.topic("clean"), setting.topic("dirty")
    frame = pl.DataFrame({"id": keys, "scan": octets})
    setting.send(clean, frame)

    setting.send(dirty, frame[:150])
    setting.produce(
        dirty,
        {
            "short": b'{"scan":"%s"}' % base64.b64encode(octets[0][:-1]),
            "long": b'{"scan":"%s"}' % base64.b64encode(octets[0] + b"\x00"),
            "null": b'{"scan":null}',
            "number": b'{"scan":7}',
            "text": b'{"scan":"not base64"}',
            "few": b'{"scan":[1,2,3]}',
            "tombstone": None,
            keys[150]: json.dumps({"scan": images[150].reshape(-1).tolist()}).encode(),
            keys[151]: b'{"scan":"%s"}' % base64.b64encode(octets[151]),
        },
    )
    setting.send(dirty, frame[152:])

    session = onnxruntime.InferenceSession(conv_net().SerializeToString(), providers=["CPUExecutionProvider"])
    probabilities, labels = session.run(None, {"image": images[:, :, :, None]})
    alone, none = setting.scored("shapes", clean)
    beside, letters = setting.scored("shapes", dirty)
    assert none == {}
    assert letters == {
        "short": "WrongLength", "long": "WrongLength", "null": "NullField", "number": "WrongType", "text": "WrongType",
        "few": "WrongLength", "tombstone": "Tombstone",
    }  # fmt: skip
    assert sorted(alone) == sorted(beside) == sorted(keys)
    for number, key in enumerate(keys):
        np.testing.assert_allclose(alone[key]["probabilities"], probabilities[number], rtol=1e-5, atol=1e-7)
        assert alone[key]["label"] == labels[number]
        assert beside[key]["probabilities"] == alone[key]["probabilities"]  # bit for bit, poison beside it or not

    found, _ = setting.scored("digits", clean)
    learned = digit_classifier().predict(images.reshape(-1, SIDE * SIDE))
    assert [found[key]["label"] for key in keys] == learned.tolist()

    with ModelClient(connection=setting.connection, device="cpu") as models:
        predicted = models["shapes"].predict({"scan": images})
        assert predicted["label"].tolist() == labels.tolist()
        assert models["digits"].predict([{"scan": octets[0]}])["label"].tolist() == learned[:1].tolist()
