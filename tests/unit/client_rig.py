"""A repository in memory with a publisher of linear models, and clients on folders of their own."""

from __future__ import annotations

from pathlib import Path

from modelcast.consumer import ModelClient
from modelcast.log import Log
from modelcast.publisher.session import RegistryWriter
from modelcast.records import Manifest
from modelcast.registry.repository import init
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

from .linear_model import linear_model

ROWS = {"amount": [1.0, 2.0], "age": [10, 20]}


class Repository:
    """A repository in memory: a connection for clients, and a publisher of linear models."""

    def __init__(self, folder: Path, *, initialised: bool = True) -> None:
        self.folder = folder
        self.topics = Topics("t")
        self.log = MemoryLog()
        self.writer = RegistryWriter(self.log, self.topics)
        self.manifests: list[Manifest] = []
        if initialised:
            init(self.log, self.topics, blob_partitions=2)

    def open_log(self) -> Log:
        return self.log

    def publish(self, bias: float, *, model: str = "fraud", release: bool = True, golden_off_by: float = 0.0) -> int:
        prepared = linear_model(self.folder / f"source-{len(self.manifests)}", bias, golden_off_by=golden_off_by)
        self.manifests.append(self.writer.publish(model, prepared, release=release).manifest)
        return self.manifests[-1].version

    def client(self, **options: object) -> ModelClient:
        return ModelClient(
            connection=self, cache_dir=self.folder / "cache", state_dir=self.folder / "state", device="cpu", **options
        )
