"""Reads every version as it is published, by a client of the protocol's text alone, and keeps its graph."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np
from confluent_kafka import KafkaException

from tests.protocol_client.avro import ProtocolError
from tests.protocol_client.files import run_golden
from tests.protocol_client.topics import Topics

from .ledger import Floats, Model
from .models import open_graph
from .stage import MODEL, PREFIX, Stage

LOOK_EVERY_S = 0.3
# Sessions kept open for scoring again.
SESSIONS_KEPT = 32
# A node that is killed in the middle of a fetch, and elects.
ANSWERED_S = 120.0
_PAUSE_S = 2.0
T = TypeVar("T")


class Catalogue(threading.Thread):
    """Knows all versions, and which are withdrawn.

    Attributes:
        faults: Broken promises, in words.
        read: Versions whose graph is here.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(name="catalogue", daemon=True)
        self.faults: list[str] = []
        self.read: set[int] = set()
        self.withdrawn: set[int] = set()
        self.releases = 0
        self._stage = stage
        self._folder = stage.folder / "graphs"
        self._folder.mkdir()
        self._topics = self._patiently(lambda: Topics(stage.servers, PREFIX))
        self._stopping = threading.Event()
        self.model: Callable[[int], Model | None] = lru_cache(SESSIONS_KEPT)(self._open)

    @property
    def standing(self) -> list[int]:
        """Versions that are there to be released or deleted."""
        return sorted(self.read - self.withdrawn)

    def run(self) -> None:
        while not self._stopping.wait(LOOK_EVERY_S):
            try:
                self._look()
            except (KafkaException, TimeoutError) as error:
                self._stage.timeline.note("catalogue waits", why=str(error))
            except Exception as error:
                self.faults.append(f"the registry can't be read: {error!r}")
                return

    def stop(self) -> None:
        self._stopping.set()
        self.join(60)

    def verify_all(self) -> int:
        """Fetches every version that stands, checks digests and golden examples; returns how many."""
        self._patiently(self._look)
        for version in self.standing:
            entry = self._topics.image.versions[MODEL, version]
            try:
                run_golden(self._patiently(partial(self._topics.fetch, entry)), entry.value)
            except ProtocolError as error:
                self.faults.append(f"version {version} stands and can't be fetched: {error}")
        numbers = sorted(number for _, number in self._topics.image.versions)
        if numbers != list(range(1, len(numbers) + 1)):
            self.faults.append(f"version numbers have gaps: {numbers}")
        return len(self.standing)

    def released(self) -> set[int]:
        """Versions that were live once and stand."""
        return {entry.value["version"] for entry in self._topics.image.releases.values()} & set(self.standing)

    def has(self, version: int) -> bool:
        return version in self.read

    def _patiently(self, ask: Callable[[], T]) -> T:
        """Asks again while nodes are away."""
        deadline = time.monotonic() + self._stage.patience * ANSWERED_S
        while True:
            try:
                return ask()
            except (KafkaException, TimeoutError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_S)

    def _look(self) -> None:
        image = self._topics.catch_up()
        self.releases = len(image.releases)
        self.faults.extend(f"{key}: {why}" for key, why in image.refused.items())
        image.refused.clear()
        for model, version in list(image.versions):
            if image.withdrawn(model, version):
                self.withdrawn.add(version)
            elif version not in self.read:
                self._read(version)

    def _read(self, version: int) -> None:
        try:
            files = self._patiently(lambda: self._topics.fetch(self._topics.image.versions[MODEL, version]))
        except ProtocolError as error:
            if self._patiently(self._topics.catch_up).withdrawn(MODEL, version):
                self.withdrawn.add(version)
            else:
                self.faults.append(f"version {version} was published and is not whole: {error}")
                self.read.add(version)
        else:
            (self._folder / f"{version}.onnx").write_bytes(files["model.onnx"])
            self.read.add(version)

    def _open(self, version: int) -> Model:
        session = open_graph(self._folder / f"{version}.onnx")

        def score(rows: Floats) -> Floats:
            return np.asarray(session.run(None, {"x": rows})[0], np.float32)

        return score
