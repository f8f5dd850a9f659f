"""Publishers, deleters, gc, compaction, releases and readers at once, killed at random: what counts stays whole.

    MODELCAST_SOAK_SECONDS=600 MODELCAST_SOAK_SEED=7 pytest tests/faults/test_registry_soak.py -s

The seed decides what is done and who is killed; what comes of it also depends on the machine. All that is promised is
checked by `Auditor`, which reads every record of the registry as it is written, and by `assembled`, which puts files
together from the topic's records: neither uses the code that writes, images or fetches.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelcast import codec
from modelcast.dev.broker import LocalBroker
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.kafka import KafkaLog
from modelcast.log import BEGINNING, LogRecord
from modelcast.publisher.removal import Remover
from modelcast.publisher.session import RegistryWriter
from modelcast.records import Manifest, Release, Withdrawn
from modelcast.registry.image import RegistryImage, VersionRecord
from modelcast.scan import scan
from modelcast.topics import Topics
from tests.compacting import init_compacting, roll
from tests.publishing import image
from tests.unit.prepared import prepared

ROOT = Path(__file__).resolve().parents[2]
SECONDS = float(os.environ.get("MODELCAST_SOAK_SECONDS", "40"))
MOST_SECONDS = 6 * SECONDS
SEED = int(os.environ.get("MODELCAST_SOAK_SEED", str(random.randrange(1 << 32))))
ROLES = ("publish", "publish", "publish", "delete", "delete", "collect", "release", "fetch", "fetch")
# Every so often, on average, one is killed and another put in its place; ever more seldom where nobody gets to an end.
KILL_EVERY_S = 0.8
# A transaction that a killed process left open is waited for by everybody, up to twice that of its own time.
ENDED_S = 180.0
# Longer than any fetch or upload here takes, short enough for the broker to drop tombstones during the run.
TOMBSTONES_KEPT_MS = 20_000
LINES_SHOWN = 400


@dataclass
class Auditor:
    """Every record of the registry in order, checked as it comes; compaction may take any of them later."""

    log: KafkaLog
    topics: Topics
    faults: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    manifests: dict[tuple[str, int], Manifest] = field(default_factory=dict)
    withdrawn: set[tuple[str, int]] = field(default_factory=set)
    releases: dict[str, list[Release]] = field(default_factory=dict)

    def run(self, stop: threading.Event) -> None:
        """Reads until `stop`, and then to the end."""
        with closing(self.log.reader(self.topics.registry, {0: BEGINNING})) as reader:
            while not stop.is_set():
                self._take(reader.poll(0.1))
            end = self.log.end_offsets(self.topics.registry, committed=False)[0]
            deadline = time.monotonic() + ENDED_S
            while reader.position(0) < end and time.monotonic() < deadline:
                self._take(reader.poll(0.1))
            if reader.position(0) < end:
                self.faults.append("the registry could not be read to its end")

    def _take(self, records: Sequence[LogRecord]) -> None:
        for record in records:
            key = (record.key or b"").decode()
            if record.value and key.startswith(("version/", "release/")):
                payload = codec.unseal(codec.decode_envelope(record.value))
                self.lines.append(f"{record.offset}: {key}: {type(payload).__name__}")
                if fault := self._fault(key, payload):
                    self.faults.append(f"offset {record.offset}: {fault}")

    def _fault(self, key: str, payload: codec.Payload) -> str | None:
        _, model, number = key.split("/")
        match payload:
            case Manifest():
                return self._published(key, (model, int(number)), payload)
            case Withdrawn():
                return self._deleted(key, (model, int(number)))
            case Release():
                return self._released(key, (model, payload.version), payload)
        return f"{key} holds {type(payload).__name__}"

    def _published(self, key: str, place: tuple[str, int], manifest: Manifest) -> str | None:
        numbers = [version for name, version in self.manifests if name == place[0]]
        if self.manifests.setdefault(place, manifest) is not manifest:
            return f"{key} was given twice"
        if place[1] != max(numbers, default=0) + 1:
            return f"{key} follows {sorted(numbers)}"
        return None

    def _deleted(self, key: str, place: tuple[str, int]) -> str | None:
        releases = self.releases.get(place[0], [])
        if place in self.withdrawn or place not in self.manifests:
            return f"{key} is withdrawn twice, or before it was published"
        self.withdrawn.add(place)
        return f"{key} is live and is withdrawn" if releases and releases[-1].version == place[1] else None

    def _released(self, key: str, place: tuple[str, int], release: Release) -> str | None:
        releases = self.releases.setdefault(place[0], [])
        releases.append(release)
        if key != f"release/{place[0]}/{len(releases)}" or release.sequence != len(releases):
            return f"{key} follows release {len(releases) - 1}"
        if place in self.withdrawn or place not in self.manifests:
            return f"{key} releases version {place[1]}, which is not there"
        return None


@dataclass
class Soak:
    """The processes, and what they say they did."""

    servers: str
    prefix: str
    folder: Path
    chance: random.Random
    running: dict[str, tuple[str, subprocess.Popen[bytes]]] = field(default_factory=dict)
    started: int = 0
    killed: list[str] = field(default_factory=list)

    def start(self, role: str) -> None:
        name = f"{role}-{self.started}"
        self.started += 1
        # Some publishers share a host, and with it the marks of uploads; others have one of their own.
        host = self.folder / f"state-{self.chance.randrange(2)}"
        arguments = [role, name, str(self.chance.randrange(1 << 32)), self.servers, self.prefix, str(self.folder)]
        with (self.folder / "stderr" / name).open("wb") as stderr:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.soak_child", *arguments],
                cwd=ROOT,
                stderr=stderr,
                env={**os.environ, "MODELCAST_STATE_DIR": str(host)},
            )
        self.running[name] = (role, child)

    def kill_one(self) -> None:
        name = self.chance.choice(sorted(self.running))
        role, child = self.running.pop(name)
        assert child.poll() is None, f"{name} ended by itself: {self.stderr(name)}"
        child.kill()
        child.wait()
        self.killed.append(name)
        self.start(role)

    def end(self) -> None:
        """Lets all of them finish what they are doing."""
        (self.folder / "stop").touch()
        deadline = time.monotonic() + ENDED_S
        for name, (_, child) in self.running.items():
            status = child.wait(max(0.1, deadline - time.monotonic()))
            assert status == 0, f"{name}: {self.stderr(name)}"

    def close(self) -> None:
        for _, child in self.running.values():
            child.kill()
            child.wait()

    def stderr(self, name: str) -> str:
        return (self.folder / "stderr" / name).read_text()[-3_000:]

    def journal(self) -> list[dict[str, Any]]:
        lines = []
        for path in (self.folder / "journal").glob("*.jsonl"):
            # The last line of one that was killed may be cut short.
            written = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            lines += [{"who": path.stem, **json.loads(line)} for line in written]
        return sorted(lines, key=lambda line: float(line["at"]))

    def has_done_all(self) -> bool:
        return {line["did"] for line in self.journal()} >= {"published", "deleted", "collected", "released", "fetched"}


def assembled(values: Mapping[bytes, bytes], manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Path and digest of each file of a version, put together from the topic by key."""
    for file in manifest.files:
        count = -(-file.size // manifest.chunk_bytes)
        keys = [f"{manifest.model}/{file.digest}/{manifest.chunk_bytes}/{index}".encode() for index in range(count)]
        chunks = b"".join(values.get(key, b"") for key in keys)
        yield file.path, f"sha256:{hashlib.sha256(chunks).hexdigest()}"


def chunk_values(log: KafkaLog, topics: Topics) -> dict[bytes, bytes]:
    """What a reader that knows tombstones finds on the blobs topic."""
    ends = log.end_offsets(topics.blobs, committed=False)
    values: dict[bytes, bytes] = {}
    for record in scan(log, topics.blobs, dict.fromkeys(ends, BEGINNING), ends, timeout_s=60):
        if record.key and record.key.count(b"/") == 3:
            if record.value is None:
                values.pop(record.key, None)
            else:
                values[record.key] = record.value
    return values


def live_manifests(found: RegistryImage) -> list[Manifest]:
    records = (record for entry in found.models.values() for record in entry.versions.values())
    return [record.manifest for record in records if isinstance(record, VersionRecord)]


def make_models(folder: Path) -> None:
    """Contents that share files, as versions of one model do: backbones, heads, and a graph of each pair."""
    chance = random.Random(1)
    backbones = [chance.randbytes(900_000) for _ in range(5)]
    heads = [chance.randbytes(300_000) for _ in range(6)]
    for b, backbone in enumerate(backbones):
        for h, head in enumerate(heads):
            name = f"{b}{h}"
            files = {"model.onnx": f"graph {name}".encode(), "tensors/b": backbone, "tensors/h": head}
            made = prepared(folder / "models" / name, files)
            (folder / "models" / f"{name}.pickle").write_bytes(pickle.dumps(made))


@pytest.fixture
def soak(broker: LocalBroker, prefix: str, tmp_path: Path) -> Iterator[Soak]:
    for name in ("journal", "stderr", "models"):
        (tmp_path / name).mkdir()
    make_models(tmp_path)
    made = Soak(broker.bootstrap_servers, prefix, tmp_path, random.Random(SEED))
    yield made
    made.close()


def run(soak: Soak, log: KafkaLog, topics: Topics) -> None:
    for role in ROLES:
        soak.start(role)
    started = time.monotonic()
    # On a slow machine, until everything happened at least once: a run in which nothing met anything proves nothing.
    while (now := time.monotonic() - started) < SECONDS or (now < MOST_SECONDS and not soak.has_done_all()):
        seldom = max(1.0, now / SECONDS) ** 2
        time.sleep(min(soak.chance.expovariate(1 / (KILL_EVERY_S * seldom)), SECONDS / 4))
        soak.kill_one()
        for topic in (topics.registry, topics.blobs):
            roll(log, topic)  # so that compaction reaches the newest records too
    soak.end()


def check(soak: Soak, log: KafkaLog, topics: Topics, auditor: Auditor, cache: Cache) -> None:
    assert auditor.faults == []
    found = image(log, topics)
    live = live_manifests(found)
    # What the registry's image says is what was seen to be written, by an eye that knows no image.
    standing = {place: manifest for place, manifest in auditor.manifests.items() if place not in auditor.withdrawn}
    assert {(manifest.model, manifest.version): manifest for manifest in live} == standing
    assert {name: list(entry.releases) for name, entry in found.models.items() if entry.releases} == auditor.releases
    journal = soak.journal()
    for line in journal:
        place = (line.get("model"), line.get("version"))
        if line["did"] == "published":
            assert auditor.manifests[place].digest == line["digest"]
        if line["did"] == "deleted":
            assert place in auditor.withdrawn
    published = Counter((line["model"], line["version"]) for line in journal if line["did"] == "published")
    assert set(published.values()) <= {1}, "a number was given twice"
    for entry in found.models.values():
        assert entry.champion is None or isinstance(entry.versions[entry.champion.version], VersionRecord)
    verify(log, topics, found, cache)

    remover = Remover(RegistryWriter(log, topics).holder)
    left = remover.collect(grace_s=0)
    assert (left.busy, left.unread) == ((), ())
    assert remover.collect(grace_s=0, dry_run=True).models == ()
    verify(log, topics, found, cache)
    listed = {
        f"{manifest.model}/{file.digest}/{manifest.chunk_bytes}/{index}".encode()
        for manifest in live
        for file in manifest.files
        for index in range(-(-file.size // manifest.chunk_bytes))
    }
    assert set(chunk_values(log, topics)) == listed


def verify(log: KafkaLog, topics: Topics, found: RegistryImage, cache: Cache) -> None:
    """Every live version is whole on the topic, and comes whole by a fetch."""
    values = chunk_values(log, topics)
    fetcher = Fetcher(log, topics, cache)
    for entry in found.models.values():
        for record in entry.versions.values():
            if isinstance(record, VersionRecord):
                assert dict(assembled(values, record.manifest)) == {f.path: f.digest for f in record.manifest.files}
                cache.release(fetcher.fetch(record))


@pytest.mark.timeout(MOST_SECONDS + 2 * ENDED_S + 300)
def test_publishers_deleters_gc_compaction_and_readers_at_once_leave_every_live_version_whole(
    soak: Soak, tmp_path: Path
) -> None:
    print(f"MODELCAST_SOAK_SEED={SEED} MODELCAST_SOAK_SECONDS={SECONDS:g}")
    topics = Topics(soak.prefix)
    stop = threading.Event()
    with KafkaLog({"bootstrap.servers": soak.servers}) as log, closing(Cache(tmp_path / "cache")) as cache:
        init_compacting(log, topics, tombstones_kept_ms=TOMBSTONES_KEPT_MS)
        auditor = Auditor(log, topics)
        audit = threading.Thread(target=auditor.run, args=(stop,))
        audit.start()
        try:
            run(soak, log, topics)
            stop.set()
            audit.join()
            check(soak, log, topics, auditor, cache)
        except BaseException:
            print_story(soak, auditor)
            raise
        finally:
            stop.set()
            audit.join()
    did = Counter(line["did"] for line in soak.journal())
    collected = sum(line.get("chunks", 0) for line in soak.journal() if line["did"] == "collected")
    failed = Counter((line["role"], line["error"]) for line in soak.journal() if line["did"] == "failed")
    print(f"killed {len(soak.killed)}; {dict(did)}; {collected} chunks collected; failures: {dict(failed)}")
    assert soak.has_done_all()


def print_story(soak: Soak, auditor: Auditor) -> None:
    """What happened, for whoever has to find out why."""
    print(f"killed: {', '.join(soak.killed)}")
    print(*auditor.faults, sep="\n")
    print("registry:", *auditor.lines[-LINES_SHOWN:], sep="\n  ")
    print("journal:", *(json.dumps(line) for line in soak.journal()[-LINES_SHOWN:]), sep="\n  ")
