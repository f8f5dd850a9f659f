"""Chunks that reach the topic damaged, missing or out of order: the version is refused by name, or whole."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelcast.config import Connection
from modelcast.consumer import ModelClient
from modelcast.log import Log
from modelcast.publisher import upload
from modelcast.publisher.prepare import prepare
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from tests.brokers import Broker
from tests.publishing import FIELDS, wide_model

EXAMPLES = [{"amount": 1.0, "age": 2.0}, {"amount": 3.0, "age": 4.0}]
# Five chunks of weights.
WIDTH = 150_000
LONGEST_S = 60.0

Chunk = tuple[str, int, bytes, bytes]


def flipped(chunks: list[Chunk]) -> list[Chunk]:
    digest, partition, key, chunk = chunks[2]
    return [*chunks[:2], (digest, partition, key, bytes([chunk[0] ^ 1]) + chunk[1:]), *chunks[3:]]


def cut(chunks: list[Chunk]) -> list[Chunk]:
    digest, partition, key, chunk = chunks[2]
    return [*chunks[:2], (digest, partition, key, chunk[:-1]), *chunks[3:]]


def missing(chunks: list[Chunk]) -> list[Chunk]:
    return chunks[:2] + chunks[3:]


def exchanged(chunks: list[Chunk]) -> list[Chunk]:
    first, second = chunks[0], chunks[1]
    return [(*first[:3], second[3]), (*second[:3], first[3]), *chunks[2:]]


def reordered(chunks: list[Chunk]) -> list[Chunk]:
    return chunks[::-1]


def doubled(chunks: list[Chunk]) -> list[Chunk]:
    return [chunk for chunk in chunks for _ in range(2)]


class DamagingSender(upload._Sender):
    """Sends the chunks of a file of several as `damage` has them."""

    damage: Callable[[list[Chunk]], list[Chunk]]

    def __init__(self, log: Log, topic: str) -> None:
        super().__init__(log, topic)
        self._held: dict[str, list[Chunk]] = {}

    def send(self, digest: str, partition: int, key: bytes, chunk: bytes) -> None:
        self._held.setdefault(digest, []).append((digest, partition, key, chunk))

    def flush(self) -> None:
        for chunks in self._held.values():
            for chunk in type(self).damage(chunks) if len(chunks) > 1 else chunks:
                super().send(*chunk)
        super().flush()


@dataclass
class Rig:
    registry: RegistryWriter
    models: ModelClient
    live: queue.Queue[int]
    folder: Path

    def publish(self, version: int) -> str:
        """Publishes and releases; returns the path of the weights within the model."""
        directory = self.folder / f"v{version}"
        directory.mkdir()
        source = wide_model(WIDTH, bias=version, seed=version).SerializeToString()
        content = prepare(source, EXAMPLES, fields=FIELDS, directory=directory)
        self.registry.publish("fraud", content, release=True)
        return max(content.files, key=lambda file: file.size).path

    def predicts(self) -> tuple[int, float]:
        prediction = self.models["fraud"].predict({"amount": [0.0], "age": [0.0]})
        return prediction.version, float(prediction["score"][0])


@pytest.fixture
def rig(broker: Broker, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """An application in which version 1 is live."""
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    connection = Connection.resolve(broker.bootstrap_servers, prefix=prefix)
    with connection.open_log() as log:
        init(log, connection.topics, blob_partitions=2)
        with ModelClient(connection=connection, cache_dir=tmp_path / "cache", device="cpu") as models:
            made = Rig(RegistryWriter(log, connection.topics), models, queue.Queue(), tmp_path)
            models.model("fraud").on_swap(lambda swap: made.live.put(swap.new.version))
            made.publish(1)
            assert made.live.get(timeout=LONGEST_S) == 1
            yield made


@pytest.mark.parametrize("damage", [flipped, cut, missing, exchanged])
def test_f06_a_damaged_version_is_refused_with_its_file_and_the_old_one_serves(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, damage: Callable[[list[Chunk]], list[Chunk]]
) -> None:
    monkeypatch.setattr(DamagingSender, "damage", staticmethod(damage), raising=False)
    with monkeypatch.context() as patch:
        patch.setattr(upload, "_Sender", DamagingSender)
        path = rig.publish(2)
    deadline = time.monotonic() + LONGEST_S
    while not (refusals := rig.models["fraud"].refusals):
        assert time.monotonic() < deadline, "the damaged version was not refused"
        time.sleep(0.02)
    (refusal,) = refusals
    assert (refusal.version, refusal.reason) == (2, "integrity")
    assert path in refusal.message
    assert rig.predicts() == (1, 1.0)
    (status,) = rig.models.status.models
    assert (status.live_version, len(status.refusals)) == (1, 1)
    rig.publish(3)  # what comes after it is live as ever
    assert rig.live.get(timeout=LONGEST_S) == 3
    assert rig.predicts() == (3, 3.0)


@pytest.mark.parametrize("damage", [reordered, doubled])
def test_f06_chunks_out_of_order_or_doubled_make_the_same_version(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, damage: Callable[[list[Chunk]], list[Chunk]]
) -> None:
    monkeypatch.setattr(DamagingSender, "damage", staticmethod(damage), raising=False)
    monkeypatch.setattr(upload, "_Sender", DamagingSender)
    rig.publish(2)
    assert rig.live.get(timeout=LONGEST_S) == 2
    assert rig.predicts() == (2, 2.0)
    assert rig.models["fraud"].refusals == ()
