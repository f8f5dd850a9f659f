"""A registry of ten thousand models in a hundred thousand versions: what reading it takes, and keeping up with it.

    python -m benchmarks.registry --json                on a real broker, with a publisher and an application
    python -m benchmarks.registry --memory-log --json   reading and keeping up only, without a broker

Each side runs in a process of its own. Records are as a publisher writes them: a manifest of three files and thirty
fields with its hints, and a release, for each version; versions of all models take turns, as in time they do.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from modelcast import codec, digest
from modelcast.dev.broker import LocalBroker
from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE
from modelcast.kafka import KafkaLog
from modelcast.log import BEGINNING, Log, LogRecord
from modelcast.records import (
    ChunkHint,
    DType,
    FileEntry,
    InputBinding,
    LoadProbe,
    Manifest,
    OutputSpec,
    Release,
    Signature,
)
from modelcast.registry.delta import RegistryDelta
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import init
from modelcast.testing import MemoryLog, Repository
from modelcast.topics import RegistryKey, Topics

from .transfers import apart

DEFAULT_MODELS: Final = 10_000
DEFAULT_VERSIONS: Final = 10
DEFAULT_MORE: Final = 100
_PREFIX: Final = "registry-benchmark"
_TOPICS: Final = Topics(_PREFIX)
_LIVE: Final = "live"
_FIELDS: Final = tuple(f"feature_{number}" for number in range(30))
_TIMEOUT_S: Final = 300.0
_POLL_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Reading:
    """What a process needed to have the registry, and to see one more release.

    Attributes:
        bare_s: Reading all records and dropping them.
        catch_up_s: Reading them into an image.
        catch_up_cpu_s: Processor time of that, all threads: what a quiet machine takes.
        image_mb: Resident memory that the image added; None where the log is in the same process and shares it.
        more_ms: Median from sending a release to an image that holds it.
        more_longest_ms: The longest of these.
        apply_ms: Of these, making the image.
        collect_ms: A full run of Python's cycle collector with the image in memory.
    """

    bare_s: float
    catch_up_s: float
    catch_up_cpu_s: float
    image_mb: float | None
    more_ms: float
    more_longest_ms: float
    apply_ms: float
    collect_ms: float


@dataclass(frozen=True, slots=True)
class Application:
    """A `ModelClient` of one of the models: from its making until that is live, and its resident memory then."""

    live_s: float
    live_cpu_s: float
    resident_mb: float


def values(models: int, versions: int, repository: str) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of versions and releases."""
    for version in range(1, versions + 1):
        for model in range(models):
            made = manifest(f"model-{model:05d}", version, repository)
            hints = tuple(ChunkHint(entry.digest, 1, 1_000, 1_020) for entry in made.files)
            yield RegistryKey("version", made.model, version).encode(), _sealed(made, hints)
            yield _release(made.model, version, version, repository)


def manifest(model: str, version: int, repository: str) -> Manifest:
    """What a publisher says of a pipeline on thirty fields."""
    names = [digest.of_bytes(f"{model} {version} {number}".encode()) for number in range(3)]
    return Manifest(
        repository=repository,
        model=model,
        version=version,
        created_ms=1_700_000_000_000 + version,
        created_by="alice@training-7",
        message=f"retrained, number {version}",
        files=(
            FileEntry("examples.npz", 10_240, names[0]),
            FileEntry("model.onnx", 20_480, names[1]),
            FileEntry(f"tensors/{digest.hex_part(names[2])}", 10_000_000, names[2]),
        ),
        chunk_bytes=1 << 19,
        signature=Signature(
            (InputBinding("x", DType.FLOAT32, (None, len(_FIELDS)), _FIELDS),),
            (
                OutputSpec.named("label", DType.INT64, (None,)),
                OutputSpec.named("probabilities", DType.FLOAT32, (None, 2)),
            ),
        ),
        ir_version=10,
        opsets={"": 21, "ai.onnx.ml": 3},
        probe=LoadProbe(12.5, 3.25, 120_000_000),
        frameworks={"scikit-learn": "1.7.2", "skl2onnx": "1.20.0", "onnx": "1.21.0"},
        metrics={"auc": 0.9, "accuracy": 0.8},
    )


def fill(log: Log, models: int, versions: int) -> tuple[int, float]:
    """Makes a repository and writes all records; how many, and their megabytes."""
    repository = init(log, _TOPICS, blob_partitions=1).repository.uuid
    count, size = 0, 0
    with closing(log.writer()) as writer:
        for key, value in values(models, versions, repository):
            writer.send(_TOPICS.registry, key=key, value=value, partition=0)
            count, size = count + 1, size + len(value)
        writer.flush(_TIMEOUT_S)
    return count, round(size / 1e6, 1)


def read(log: Log, more: int, *, shares_memory: bool) -> Reading:
    """Everything a reader of the registry does."""
    bare_s = _bare(log)
    gc.collect()
    before = resident_bytes()
    began, began_cpu_s = time.monotonic(), time.process_time()
    reader = RegistryReader(log, _TOPICS)
    image = reader.catch_up(_TIMEOUT_S)
    catch_up_s, catch_up_cpu_s = time.monotonic() - began, time.process_time() - began_cpu_s
    if image.faults or image.repository is None:
        raise SystemExit(f"records did not count: {image.faults[:3]}")
    began = time.monotonic()
    gc.collect()
    collect_ms = (time.monotonic() - began) * 1e3
    added = resident_bytes() - before
    seen_ms = list(_more(log, reader, more, image.repository.uuid))
    reader.close()
    return Reading(
        bare_s=round(bare_s, 2),
        catch_up_s=round(catch_up_s, 2),
        catch_up_cpu_s=round(catch_up_cpu_s, 2),
        image_mb=None if shares_memory else round(added / 1e6, 1),
        more_ms=round(statistics.median(seen_ms), 2),
        more_longest_ms=round(max(seen_ms), 2),
        apply_ms=round(statistics.median(_apply_ms(reader, image.repository.uuid) for _ in range(20)), 3),
        collect_ms=round(collect_ms, 1),
    )


def read_apart(servers: str, more: int) -> Reading:
    """`read` on a broker, for a process of its own."""
    with KafkaLog({"bootstrap.servers": servers}) as log:
        return read(log, more, shares_memory=False)


def publish_apart(servers: str, folder: Path) -> float:
    """Seconds that publishing a small model takes, which reads the registry to its end."""
    os.environ[STATE_VARIABLE] = str(folder / "state")
    repository = Repository.on(servers, prefix=_PREFIX)
    began = time.monotonic()
    repository.publish(_LIVE, lambda amount, age: amount + age)
    return time.monotonic() - began


def follow_apart(servers: str, folder: Path) -> Application:
    """An application that follows one model."""
    os.environ |= {CACHE_VARIABLE: str(folder / "cache"), STATE_VARIABLE: str(folder / "state")}
    from modelcast.consumer import ModelClient

    began, began_cpu_s = time.monotonic(), time.process_time()
    with ModelClient(servers, prefix=_PREFIX, models=[_LIVE], device="cpu") as client:
        client.wait_live([_LIVE], _TIMEOUT_S)
        return Application(
            live_s=round(time.monotonic() - began, 2),
            live_cpu_s=round(time.process_time() - began_cpu_s, 2),
            resident_mb=round(resident_bytes() / 1e6, 1),
        )


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run(models: int, versions: int, more: int, say: Callable[[str], None], *, memory_log: bool) -> Mapping[str, Any]:
    """All sides."""
    shape = {"models": models, "versions": models * versions}
    if memory_log:
        memory = MemoryLog()
        count, size_mb = fill(memory, models, versions)
        say(f"{count} records written, {size_mb} MB")
        return {**shape, "log": "memory", "mb": size_mb, **asdict(read(memory, more, shares_memory=True))}
    with tempfile.TemporaryDirectory(prefix="modelcast-benchmark-") as name:
        folder = Path(name)
        with LocalBroker(folder / "broker", die_with_parent=True) as broker:
            servers = broker.bootstrap_servers
            with KafkaLog({"bootstrap.servers": servers}) as log:
                count, size_mb = fill(log, models, versions)
            say(f"{count} records written, {size_mb} MB")
            reading = apart(read_apart, servers, more)
            say(f"read in {reading.catch_up_s} s")
            publish_s = apart(publish_apart, servers, folder)
            say(f"one more model published in {publish_s:.2f} s")
            application = apart(follow_apart, servers, folder)
    return {
        **shape,
        "log": "kafka",
        "mb": size_mb,
        **asdict(reading),
        "publish_s": round(publish_s, 2),
        "application": asdict(application),
    }


def _bare(log: Log) -> float:
    end = log.end_offsets(_TOPICS.registry, committed=False)[0]
    began = time.monotonic()
    with closing(log.reader(_TOPICS.registry, {0: BEGINNING})) as reader:
        while reader.position(0) < end:
            reader.poll(_POLL_S)
    return time.monotonic() - began


def _more(log: Log, reader: RegistryReader, count: int, repository: str) -> Iterator[float]:
    """Milliseconds from sending a release until it is in the image, again and again."""
    with closing(log.writer()) as writer:
        for _ in range(count):
            entry = reader.image.models["model-00000"]
            sequence = entry.latest_sequence + 1
            key, value = _release(entry.name, sequence, 1, repository)
            began = time.monotonic()
            writer.send(_TOPICS.registry, key=key, value=value, partition=0)
            while reader.image.models[entry.name].latest_sequence < sequence:
                reader.poll(_POLL_S)
            yield (time.monotonic() - began) * 1e3


def _apply_ms(reader: RegistryReader, repository: str) -> float:
    image = reader.image
    key, value = _release("model-00001", 1_000_000, 1, repository)
    began = time.monotonic()
    delta = RegistryDelta(image)
    delta.replay(LogRecord(_TOPICS.registry, 0, image.revision, 0, key, value))
    delta.apply()
    return (time.monotonic() - began) * 1e3


def _release(model: str, sequence: int, version: int, repository: str) -> tuple[bytes, bytes]:
    made = Release(repository, model, sequence, version, 1_700_000_000_000 + sequence, "alice@training-7", "better")
    return RegistryKey("release", model, sequence).encode(), _sealed(made, ())


def _sealed(payload: codec.Payload, hints: tuple[ChunkHint, ...]) -> bytes:
    return codec.encode_envelope(codec.seal(payload, hints=hints))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=DEFAULT_MODELS)
    parser.add_argument("--versions", type=int, default=DEFAULT_VERSIONS, help="of each model")
    parser.add_argument("--more", type=int, default=DEFAULT_MORE, help="releases to be seen one by one afterwards")
    parser.add_argument("--memory-log", action="store_true", help="without a broker")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    arguments = parser.parse_args()
    result = run(
        arguments.models,
        arguments.versions,
        arguments.more,
        lambda text: print(text, file=sys.stderr),
        memory_log=arguments.memory_log,
    )
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
