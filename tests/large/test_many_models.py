"""A thousand models in one application: all of them live, and one that gets a new version swaps as if it were alone."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pytest

from modelcast import codec
from modelcast.dev.broker import LocalBroker
from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE
from modelcast.log import Log
from modelcast.records import ChunkHint, Envelope, FileEntry, Manifest, Release
from modelcast.testing import Repository
from modelcast.topics import ChunkKey, RegistryKey, blob_partition
from modelcast.trust.signing import signed
from tests.unit.linear_model import linear_model
from tests.unit.trust_rig import key, policy_text

from .processes import Program, memory_of, until

THIS = "tests.large.test_many_models"
MODELS = int(os.environ.get("MODELCAST_MANY_MODELS", "1000"))
CHUNK_BYTES = 1 << 19
BLOB_PARTITIONS = 2  # of `Repository.on`
# Fetch, check, load and golden examples take 20 ms of a small model on a quiet machine.
LIVE_S = 900.0
SWAP_S = 60.0
# Sessions of a small model have some 100 KB; whatever grew with the square of the models would be far above it.
MOST_BYTES_PER_MODEL = 1_000_000
STARTED_BYTES = 400_000_000
# What a status may have; see `modelcast.consumer.status`.
STATUS_BYTES = 900_000
EXACT = 1e-3  # of float32


def model(number: int) -> str:
    return f"model-{number:04d}"


class Publisher:
    """Writes versions as a publisher of that key does, without trying each: a thousand trials take minutes."""

    def __init__(self, repository: Repository, log: Log, folder: Path) -> None:
        self._topics, self._folder = repository.topics, folder
        self._writer = log.writer()
        self._hints: dict[tuple[str, str], ChunkHint] = {}
        with closing(log.reader(self._topics.registry, {0: 0})) as reader:
            records = until_any(lambda: reader.poll(1.0))
        identity = codec.unseal(codec.decode_envelope(records[0].value or b""))
        self._repository: str = identity.uuid  # type: ignore[union-attr]

    def publish(self, numbers: Iterable[int], version: int) -> None:
        made = [
            (number, linear_model(self._folder / f"{number}-{version}", bias_of(number, version))) for number in numbers
        ]
        for number, prepared in made:
            for entry in prepared.files:
                self._chunk(model(number), entry, (prepared.directory / entry.path).read_bytes())
        self._writer.flush(LIVE_S)
        for number, prepared in made:
            manifest = Manifest(
                repository=self._repository,
                model=model(number),
                version=version,
                created_ms=time.time_ns() // 1_000_000,
                created_by="alice",
                message="",
                files=prepared.files,
                chunk_bytes=CHUNK_BYTES,
                signature=prepared.signature,
                ir_version=prepared.ir_version,
                opsets=prepared.opsets,
                tolerance=prepared.tolerance,
            )
            hints = tuple(self._hints[manifest.model, entry.digest] for entry in prepared.files)
            self._record(RegistryKey("version", manifest.model, version), codec.seal(manifest, hints=hints))
            release = Release(self._repository, manifest.model, version, version, manifest.created_ms, "alice", "")
            self._record(RegistryKey("release", manifest.model, version), codec.seal(release))
        self._writer.flush(LIVE_S)

    def _chunk(self, name: str, entry: FileEntry, data: bytes) -> None:
        def acknowledged(partition: int, offset: int) -> None:
            self._hints[name, entry.digest] = ChunkHint(entry.digest, partition, offset, offset)

        place = blob_partition(name, entry.digest, BLOB_PARTITIONS)
        at = ChunkKey(name, entry.digest, CHUNK_BYTES, 0).encode()
        self._writer.send(self._topics.blobs, key=at, value=data, partition=place, on_ack=acknowledged)

    def _record(self, at: RegistryKey, envelope: Envelope) -> None:
        value = codec.encode_envelope(signed(envelope, [key("alice")]))
        self._writer.send(self._topics.registry, key=at.encode(), value=value, partition=0)

    def close(self) -> None:
        self._writer.close()


def until_any(look):  # type: ignore[no-untyped-def]
    """What a look finds, once it finds something."""
    found: list = []
    until(lambda: bool(found) or bool(found.extend(look())), SWAP_S, "the registry's first record")
    return found


def bias_of(number: int, version: int) -> float:
    return float(number) + version / 4


def follow(servers: str, prefix: str, policy: str) -> None:
    """An application of all models: says when they are live, then what each swap took; until it is killed."""
    from modelcast.consumer import ModelClient
    from modelcast.consumer.line import Swapped

    def say(**told: object) -> None:
        print(json.dumps(told), flush=True)

    def swapped(event: Swapped) -> None:
        if event.old is not None:
            name = event.ref.model
            score = client[name].predict({"amount": [1.0], "age": [2.0]})["score"]
            say(event="swapped", model=name, ms=event.release_to_live_ms, load_ms=event.load_ms, score=score.item())

    before, cpu_s, began = memory_of(os.getpid()).own, time.process_time(), time.monotonic()
    with ModelClient(servers, prefix=prefix, models=["model-*"], trust_policy=policy, device="cpu") as client:
        client.on_swap(swapped)
        # To ask for the status of a thousand models takes some 50 ms: seldom, or that is what is measured.
        until(lambda: live_of(client) == MODELS, LIVE_S, f"{MODELS} models to be live", every_s=1.0)
        took = {"s": round(time.monotonic() - began, 1), "cpu_s": round(time.process_time() - cpu_s, 1)}
        wrong = [number for number in range(MODELS) if not is_right(client, number)]
        memory = memory_of(os.getpid())
        say(
            event="live",
            **took,
            resident_mb=round(memory.resident / 1e6),
            kb_per_model=round((memory.own - before) / MODELS / 1e3),
            handles=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            threads=sum(1 for _ in Path("/proc/self/task").iterdir()),
            status_bytes=len(codec.encode_status(client.status)),
            wrong=wrong,
        )
        cpu_s, began = time.process_time(), time.monotonic()
        time.sleep(10)
        say(event="idle", cores=round((time.process_time() - cpu_s) / (time.monotonic() - began), 3))
        threading.Event().wait()


def is_right(client, number: int) -> bool:  # type: ignore[no-untyped-def]
    """Whether a model predicts, and what the version says that made it."""
    scored = client[model(number)].predict({"amount": [1.0], "age": [2.0]})
    return bool(abs(scored["score"].item() - 3 - bias_of(number, scored.version)) < EXACT)


def live_of(client) -> int:  # type: ignore[no-untyped-def]
    return sum(entry.live_version is not None for entry in client.status.models)


def lines(program: Program, event: str) -> list[dict]:  # type: ignore[type-arg]
    said = [json.loads(line) for line in program.said.splitlines() if line.startswith("{") and line.endswith("}")]
    return [line for line in said if line["event"] == event]


@pytest.mark.timeout(2 * LIVE_S)
def test_a_thousand_models_are_live_in_one_application_and_swap_one_by_one(
    broker: LocalBroker, prefix: str, tmp_path: Path
) -> None:
    repository = Repository.on(broker.bootstrap_servers, prefix=prefix)
    policy = tmp_path / "policy.toml"
    policy.write_text(policy_text("*: alice", keys=("alice",)))
    environment = {**os.environ, CACHE_VARIABLE: str(tmp_path / "cache"), STATE_VARIABLE: str(tmp_path / "state")}
    application = ("-m", THIS, broker.bootstrap_servers, prefix, str(policy))
    with repository.open_log() as log, closing(Publisher(repository, log, tmp_path / "models")) as publisher:
        publisher.publish(range(MODELS), version=1)
        for start in ("with nothing in the cache", "again"):
            with Program(*application, output=tmp_path / f"{start}.log", environment=environment) as program:
                until(lambda: lines(program, "idle"), LIVE_S, "all models to be live", [program])
                (live,), (idle,) = lines(program, "live"), lines(program, "idle")
                print(f"\n{MODELS} models {start}: {live}, then {idle['cores']} cores")
                assert live["wrong"] == []
                assert live["resident_mb"] * 1e6 <= STARTED_BYTES + MODELS * MOST_BYTES_PER_MODEL
                assert live["status_bytes"] < STATUS_BYTES
                if start == "again":
                    continue
                chosen = [0, MODELS // 2, MODELS - 1]
                for number in chosen:
                    publisher.publish([number], version=2)
                    until(lambda: len(lines(program, "swapped")) > chosen.index(number), SWAP_S, "the swap", [program])  # noqa: B023
                swaps = lines(program, "swapped")
                print(f"release → live: {[round(swap['ms']) for swap in swaps]} ms; memory {program.memory}")
                for number, swap in zip(chosen, swaps, strict=True):
                    assert swap["model"] == model(number)
                    assert swap["score"] == pytest.approx(3 + bias_of(number, 2), abs=EXACT)


if __name__ == "__main__":
    follow(*sys.argv[1:])
