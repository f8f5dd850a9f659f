"""What publishing and fetching a 400 MB model takes, against the bare client on the same bytes, in the same run.

    python -m benchmarks.publish --json                       rates, and a head-only update against the full model
    python -m benchmarks.publish --chunks 64,128,256,512,960  rates by chunk size (KiB), nothing else

Rounds alternate between the sides, each in a process of its own, on one broker; a figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random

from modelcast import digest
from modelcast.dev.broker import LocalBroker
from modelcast.folders import STATE_VARIABLE
from modelcast.kafka import KafkaLog
from modelcast.kafka.removal import remove
from modelcast.log import TopicSpec
from modelcast.publisher.upload import CHUNK_BYTES
from modelcast.records import FileEntry
from modelcast.registry.repository import init
from modelcast.topics import Topics

from . import update
from .transfers import Cost, Payload, Place, apart, bare_consume, bare_produce, fetch, upload, with_chunks

DEFAULT_MB = 400
DEFAULT_ROUNDS = 5
PARTITIONS = 4
# Of the size a transformer's layers have.
_TENSOR_BYTES = 16_000_000
_SIDES = ("bare_produce", "publish", "bare_consume", "fetch")
_BROKER_HEAP_MB = 1024
# What was deleted must leave the disk and the page cache before the next round is measured.
_BROKER = {"log.segment.delete.delay.ms": "0"}


class Rates:
    """Moves one payload over one broker, round by round."""

    def __init__(self, servers: str, folder: Path) -> None:
        self._settings = {"bootstrap.servers": servers}
        self._servers = servers
        self._folder = folder
        self._rounds = 0

    def round(self, payload: Payload) -> Mapping[str, Cost]:
        """Every side once, on topics of its own."""
        self._rounds += 1
        place = Place(self._servers, f"bare-{self._rounds}", f"round-{self._rounds}", PARTITIONS)
        topics = Topics(place.prefix)
        cache = self._folder / "cache"
        made = [topics.registry, topics.schemas, topics.blobs, topics.status, place.topic]
        with KafkaLog(self._settings) as log:
            init(log, topics, blob_partitions=PARTITIONS)
            log.create(TopicSpec(place.topic, PARTITIONS, configs=dict(log_compacted())))
        try:
            costs = {"bare_produce": apart(bare_produce, place, payload)}
            costs["publish"], uploaded = apart(upload, place, payload)
            costs["bare_consume"] = apart(bare_consume, place, payload.size_bytes)
            costs["fetch"] = apart(fetch, place, payload, uploaded, cache)
        finally:
            shutil.rmtree(cache, ignore_errors=True)
            remove(self._settings, topics=made, groups=())
        return costs


def log_compacted() -> Mapping[str, str]:
    """The settings a repository's blobs topic has."""
    spec = Topics().specs(blob_partitions=1, replication_factor=1)[2]
    return spec.configs


def make_payload(directory: Path, size: int) -> Payload:
    """Files of random bytes, as large together as `size`."""
    (directory / "tensors").mkdir(parents=True)
    files = []
    for start in range(0, size, _TENSOR_BYTES):
        data = Random(start).randbytes(min(_TENSOR_BYTES, size - start))
        name = digest.of_bytes(data)
        path = f"tensors/{digest.hex_part(name)}"
        (directory / path).write_bytes(data)
        files.append(FileEntry(path, len(data), name))
    return Payload(directory, tuple(files), CHUNK_BYTES)


def figures(rounds: Sequence[Mapping[str, Cost]], size: int) -> Mapping[str, object]:
    """MB/s of the median round of each side, what it cost, and modelcast's rate as part of the bare client's."""

    def middle(side: str, of: Callable[[Cost], float]) -> float:
        return statistics.median(of(costs[side]) for costs in rounds)

    mb_per_s = {side: round(size / 1e6 / middle(side, lambda cost: cost.seconds), 1) for side in _SIDES}
    return {
        "mb_per_s": mb_per_s,
        "cpu_ms_per_mb": {side: round(middle(side, lambda cost: cost.cpu_s) * 1e9 / size, 2) for side in _SIDES},
        "peak_mb": {side: round(middle(side, lambda cost: cost.peak_bytes) / 1e6) for side in _SIDES},
        "ratios": {
            "publish": round(mb_per_s["publish"] / mb_per_s["bare_produce"], 2),
            "fetch": round(mb_per_s["fetch"] / mb_per_s["bare_consume"], 2),
        },
    }


def run(
    size: int, rounds: int, chunks: Sequence[int], kinds: Sequence[update.Kind], say: Callable[[str], None]
) -> Mapping[str, object]:
    """Rates for each size of chunks, and updates of each kind of model."""
    with tempfile.TemporaryDirectory(prefix="modelcast-benchmark-") as name:
        folder = Path(name)
        os.environ[STATE_VARIABLE] = str(folder / "state")
        payload = make_payload(folder / "payload", size)
        with LocalBroker(
            folder / "broker",
            heap_mb=_BROKER_HEAP_MB,
            full_compiler=True,
            die_with_parent=True,
            server_properties=_BROKER,
        ) as broker:
            rates = Rates(broker.bootstrap_servers, folder)
            rates.round(payload)  # the broker's own compiler warms up
            measured: dict[int, list[Mapping[str, Cost]]] = {chunk: [] for chunk in chunks}
            for number in range(1, rounds + 1):
                for chunk, done in measured.items():
                    done.append(rates.round(with_chunks(payload, chunk)))
                    last = ", ".join(f"{side} {size / 1e6 / cost.seconds:.0f}" for side, cost in done[-1].items())
                    say(f"round {number}/{rounds}  {chunk >> 10} KiB  {last} MB/s")
            updates = update.Updates(broker.bootstrap_servers, folder)
            updated = {kind: _updates(updates, kind, size, rounds, folder, say) for kind in kinds}
    return {
        "mb": size / 1e6,
        "rounds": rounds,
        "by_chunk_kib": {str(chunk >> 10): figures(done, size) for chunk, done in measured.items()},
        "updates": updated,
    }


def _updates(
    updates: update.Updates, kind: update.Kind, size: int, rounds: int, folder: Path, say: Callable[[str], None]
) -> Mapping[str, object]:
    models = update.make(kind, size, folder / "models")
    done = []
    for number in range(1, rounds + 1):
        done.append(updates.round(models))
        full, head = done[-1]
        say(f"round {number}/{rounds}  {kind}  live after {full.live_s:.2f} s, with another head {head.live_s:.2f} s")
    return update.figures(done, update.changed_bytes(*models))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=DEFAULT_MB)
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS)
    parser.add_argument("--chunks", help="chunk sizes in KiB, separated by commas: sweep them")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    arguments = parser.parse_args()
    chunks = [int(kib) << 10 for kib in arguments.chunks.split(",")] if arguments.chunks else [CHUNK_BYTES]
    kinds = () if arguments.chunks else update.KINDS
    result = run(arguments.mb * 1_000_000, arguments.rounds, chunks, kinds, lambda text: print(text, file=sys.stderr))
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
