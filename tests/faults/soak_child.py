"""One process of the soak: `… ROLE NAME SEED SERVERS PREFIX FOLDER`; goes on until FOLDER/stop is there.

It appends a line of JSON to FOLDER/journal/NAME.jsonl for whatever it did, as soon as it knows. What is no error but a
broken promise (a live version that can't be fetched) ends it with status 1 and a traceback.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from modelcast.errors import IntegrityError, ModelcastError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.kafka import KafkaLog
from modelcast.publisher.prepare import PreparedModel
from modelcast.publisher.removal import Remover
from modelcast.publisher.session import RegistryWriter
from modelcast.records import Withdrawn
from modelcast.registry.image import RegistryImage, VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.topics import Topics

MODELS = ("fraud", "spam")
CATCH_UP_S = 60.0
# Short against the time an upload takes here, so that gc and uploads meet.
GRACE_S = 1.0
# A slow network: the pause before a chunk, at most.
PACE_S = 0.2


class Actor:
    """What all roles share: a repository, chance, and a journal."""

    def __init__(self, name: str, seed: int, log: KafkaLog, topics: Topics, folder: Path) -> None:
        self.log = log
        self.topics = topics
        self.folder = folder
        self.chance = random.Random(seed)
        self.registry = RegistryWriter(log, topics)
        self.remover = Remover(self.registry.holder)
        self._journal = (folder / "journal" / f"{name}.jsonl").open("a")

    def note(self, did: str, **facts: Any) -> None:
        self._journal.write(json.dumps({"at": time.time(), "did": did, **facts}) + "\n")
        self._journal.flush()

    def image(self) -> RegistryImage:
        with closing(RegistryReader(self.log, self.topics)) as reader:
            return reader.catch_up(CATCH_UP_S)

    def a_version(self) -> VersionRecord | None:
        """One that lives now."""
        models = self.image().models.values()
        records = [r for entry in models for r in entry.versions.values() if isinstance(r, VersionRecord)]
        return self.chance.choice(records) if records else None

    def publish(self) -> None:
        path = self.chance.choice(sorted((self.folder / "models").glob("*.pickle")))
        content: PreparedModel = pickle.loads(path.read_bytes())
        model, release = self.chance.choice(MODELS), self.chance.random() < 0.4
        pace = self.chance.choice([0.0, 0.0, PACE_S])
        resend = self.chance.random() < 0.1

        def slowly(*_: object) -> None:
            time.sleep(self.chance.random() * pace)

        self.note("publishing", model=model, content=path.stem, release=release, pace=pace)
        made = self.registry.publish(model, content, release=release, resend=resend, progress=slowly)
        self.note(
            "published",
            model=model,
            version=made.manifest.version,
            digest=made.manifest.digest,
            sent=made.bytes_sent,
            sequence=made.release.sequence if made.release else None,
        )

    def delete(self) -> None:
        record = self.a_version()
        if record is None or self.chance.random() < 0.5:
            self.publish()  # lest there be nothing to delete
        else:
            version, force = record.manifest.id, self.chance.random() < 0.8
            self.note("deleting", model=version.name, version=version.version, force=force)
            removed = self.remover.delete(version.name, version.version, message="soak", force=force)
            self.note("deleted", model=version.name, version=version.version, chunks=removed.chunks, left=removed.left)

    def collect(self) -> None:
        self.note("collecting")
        collected = self.remover.collect(grace_s=GRACE_S)
        self.note("collected", chunks=collected.chunks, busy=collected.busy, unread=collected.unread)

    def release(self) -> None:
        record = self.a_version()
        if record is None:
            return
        model = record.manifest.model
        if self.chance.random() < 0.3:
            made = self.registry.rollback(model)
        else:
            made = self.registry.release(model, record.manifest.version)
        self.note("released", model=model, version=made.version, sequence=made.sequence)

    def fetch(self) -> None:
        record = self.a_version()
        if record is None:
            return
        version = record.manifest.id
        with tempfile.TemporaryDirectory(dir=self.folder) as root, closing(Cache(Path(root))) as cache:
            try:
                view = Fetcher(self.log, self.topics, cache).fetch(record)
            except IntegrityError as error:
                stands = self.image().model(version.name).versions[version.version]
                if not isinstance(stands, Withdrawn):
                    raise AssertionError(f"{version} is live and could not be fetched: {error}") from error
                self.note("too-late", model=version.name, version=version.version)
                return
            for file in record.manifest.files:
                found = hashlib.sha256((view / file.path).read_bytes()).hexdigest()
                if file.digest != f"sha256:{found}":
                    raise AssertionError(f"{file} of {version} has digest {found}")
        self.note("fetched", model=version.name, version=version.version)


def main(role: str, name: str, seed: str, servers: str, prefix: str, folder: str) -> int:
    with KafkaLog({"bootstrap.servers": servers}) as log:
        actor = Actor(name, int(seed), log, Topics(prefix), Path(folder))
        act: Callable[[], None] = getattr(actor, role)
        while not (actor.folder / "stop").exists():
            try:
                act()
            except ModelcastError as error:
                actor.note(
                    "failed", role=role, error=type(error).__name__, exit_code=error.exit_code, message=str(error)
                )
            time.sleep(actor.chance.random() * 0.2)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
