"""A control plane in a box: an in-memory log that can fail or be exchanged, a loader with a script, a clock to turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from modelcast import codec
from modelcast.consumer.control import ControlPlane
from modelcast.consumer.lifecycle import LOAD_STEPS, State
from modelcast.consumer.policy import Preserve
from modelcast.consumer.servable import memory_need
from modelcast.errors import BrokerError
from modelcast.log import LogReader
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import InstanceStatus, Manifest, RepositoryIdentity
from modelcast.registry.image import VersionRecord
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

from .registry_records import REPOSITORY, key_of, manifest, release

TOPICS = Topics("t")
FRAUD = ModelRef("fraud")
DEADLINE_S = 60.0


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Waits for a condition other threads bring about."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s for {what}"
        time.sleep(0.002)


class UnsteadyLog:
    """A MemoryLog that can be away, and can be exchanged for an empty one under whoever uses it."""

    def __init__(self) -> None:
        self.down = False
        self.exchange()

    def exchange(self) -> None:
        """Puts an empty log in the place of this one."""
        self._log = MemoryLog()
        for spec in TOPICS.specs(blob_partitions=1, replication_factor=1):
            self._log.create(spec)

    def __getattr__(self, name: str) -> object:
        if self.down:
            raise BrokerError("no broker answers")
        return getattr(self._log, name)


class FakeServable:
    """Says which version it is, and whether it was destroyed, and by which thread."""

    def __init__(self, of: Manifest) -> None:
        self.manifest = of
        self.id = ModelVersion(of.model, of.version)
        self.device = "cpu"
        self.memory_bytes = memory_need(of)
        self.closed_by: int | None = None

    def close(self) -> None:
        assert self.closed_by is None, f"{self.id} was destroyed twice"
        self.closed_by = threading.get_ident()


class ScriptedLoader:
    """Loads any version at once, but those that fail by script; may be held up."""

    def __init__(self) -> None:
        self.errors: dict[int, BaseException] = {}
        self.calls: list[int] = []
        self.fields: list[object] = []
        self.made: list[FakeServable] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def load(
        self, record: VersionRecord, fields: object, on_state: Callable[[State], None] = lambda _: None
    ) -> FakeServable:
        self.calls.append(record.manifest.version)
        self.fields.append(fields)
        self.entered.set()
        for state in LOAD_STEPS:
            on_state(state)
        assert self.gate.wait(DEADLINE_S)
        error = self.errors.get(record.manifest.version)
        if error is not None:
            raise error
        self.made.append(FakeServable(record.manifest))
        return self.made[-1]


class Rig:
    """One control plane without a thread: `settle` turns it until nothing is under way."""

    def __init__(
        self, state_dir: Path | None = None, *, refs: tuple[ModelRef, ...] = (FRAUD,), **options: object
    ) -> None:
        self.log = UnsteadyLog()
        self.loader = ScriptedLoader()
        self.now_s = 1000.0
        self.state_dir = state_dir
        self.refs = refs
        self.options = options
        self.plane = self.make()

    def make(self, **options: object) -> ControlPlane:
        """Another control plane on the same log: a restarted process."""
        return ControlPlane(
            self.log,
            TOPICS,
            self.loader,
            refs=self.refs,
            state_dir=self.state_dir,
            role="client",
            instance="host-0",
            clock=lambda: self.now_s,
            now_ms=lambda: int(self.now_s * 1000),
            **{**self.options, **options},
        )

    def put(self, *payloads: codec.Payload) -> None:
        writer = self.log.writer()
        for payload in payloads:
            value = codec.encode_envelope(codec.seal(payload))
            writer.send(TOPICS.registry, key=key_of(payload), value=value, partition=0)

    def init(self, identity: RepositoryIdentity = REPOSITORY) -> None:
        self.put(identity)

    def publish(self, version: int, sequence: int | None = None) -> None:
        """A version, released under `sequence` (its number, if not given)."""
        self.put(manifest(version), release(sequence or version, version))

    def step(self) -> None:
        """What both threads do in one turn."""
        self.plane._follower.turn(0.0)
        self.plane.step()
        if (opening := self.plane._reporter._opening) is not None:  # its thread did not run in time
            opening.join(DEADLINE_S)
            self.plane.step()

    def settle(self) -> None:
        deadline = time.monotonic() + DEADLINE_S
        quiet = 0
        while quiet < 3:
            assert time.monotonic() < deadline
            before = (len(self.loader.calls), self.generations())
            self.step()
            busy = self.plane._worker.job is not None
            if busy:
                time.sleep(0.001)
            quiet = 0 if busy or (len(self.loader.calls), self.generations()) != before else quiet + 1

    def generations(self) -> list[int]:
        return [self.plane.slot(ref).generation for ref in self.refs]

    def live(self, ref: ModelRef = FRAUD) -> int | None:
        servable = self.plane.slot(ref).live
        return None if servable is None else servable.id.version

    def statuses(self) -> list[InstanceStatus]:
        reader: LogReader = self.log.reader(TOPICS.status, {0: 0})
        return [codec.decode_status(record.value) for record in reader.poll(0.0) if record.value is not None]


RESOURCES = Preserve.RESOURCES
