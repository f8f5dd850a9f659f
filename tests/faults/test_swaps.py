"""Hundreds of real sessions, loaded, swapped and destroyed under load: nothing is left of them.

    MODELCAST_SWAPS=1000 pytest tests/faults/test_swaps.py -s

Row 25 of the faults; `python -m benchmarks.swap` does the same over a broker.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelcast.consumer.control import ControlPlane
from modelcast.consumer.line import Swapped
from modelcast.consumer.loader import Loader
from modelcast.names import ModelRef
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics
from tests.reliability.figures import figure
from tests.unit.linear_model import linear_model

SWAPS = int(os.environ.get("MODELCAST_SWAPS", "300"))
# One is live and one kept, so that each of three is loaded anew when its turn comes.
VERSIONS = 3
# The live version's and the kept one's.
VIEWS_MOST = 2
# Until the allocator and every thread have what they work with.
SETTLING_SWAPS = 50
GROWTH_MOST = 1.05
# Each is some milliseconds of work; a machine that runs everything else too may take far longer.
LIVE_S = 30.0
ENDED_S = 60.0 + SWAPS
FRAUD = ModelRef("fraud")
ROWS = {"amount": np.array([1.0, 2.0], np.float32), "age": np.array([3.0, 4.0], np.float32)}


@dataclass(frozen=True)
class Held:
    """What a process holds."""

    resident_kib: int
    threads: int
    files: Sequence[str]
    mappings: int
    ledger: int

    @classmethod
    def at_rest(cls, plane: ControlPlane, cache: Path) -> Held:
        """Once the files of versions that gave way are removed, which happens behind a swap."""
        deadline = time.monotonic() + LIVE_S
        while True:
            held = cls.now(plane)
            removing = any(name.startswith(str(cache)) and not name.endswith(".lock") for name in held.files)
            if not removing and len(_views(cache)) <= VIEWS_MOST:
                return held
            assert time.monotonic() < deadline, f"never at rest: {held.files}, {_views(cache)}"
            time.sleep(0.01)

    @classmethod
    def now(cls, plane: ControlPlane) -> Held:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        status = {name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.strip()}
        files = []
        for link in Path("/proc/self/fd").iterdir():
            try:
                files.append(str(link.readlink()))
            except FileNotFoundError:  # that of the listing itself
                continue
        mappings = Path("/proc/self/maps").read_text(encoding="utf-8").count("\n")
        return cls(
            int(status["VmRSS"]), int(status["Threads"]), sorted(files), mappings, len(plane.slot(FRAUD).states())
        )


def test_f25_swaps_of_real_sessions_leave_no_memory_thread_or_file_behind(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    said: multiprocessing.Queue[Mapping[str, Any]] = context.Queue()
    process = context.Process(target=_swap_on_and_on, args=(tmp_path, said), daemon=True)
    process.start()
    seen = said.get(timeout=ENDED_S)
    process.join(LIVE_S)
    before, after = seen["before"], seen["after"]
    figure(f"{SWAPS:,} swaps under {seen['scored']} runs: {before.resident_kib} to {after.resident_kib} KiB resident")
    assert seen["wrong"] == []
    assert seen["scored"] > 0
    assert after.resident_kib <= GROWTH_MOST * before.resident_kib
    assert after.threads <= before.threads
    assert after.files == before.files
    assert after.ledger == before.ledger == VERSIONS
    assert after.mappings < before.mappings + SWAPS / 2  # no mapping for each swap
    assert process.exitcode == 0


def _swap_on_and_on(folder: Path, said: multiprocessing.Queue[Mapping[str, Any]]) -> None:
    """In a process of its own, so that nothing but the swaps moves its memory."""
    log, topics = MemoryLog(), Topics()
    init(log, topics, blob_partitions=1)
    registry = RegistryWriter(log, topics)
    for version in range(1, VERSIONS + 1):
        registry.publish(FRAUD.model, linear_model(folder / f"v{version}", float(version)), release=False)
    swaps: queue.SimpleQueue[Swapped] = queue.SimpleQueue()
    stop = threading.Event()
    wrong: list[str] = []
    scored = [0]

    def score(plane: ControlPlane) -> None:
        slot = plane.slot(FRAUD)
        while not stop.is_set():
            with slot.lease() as servable:
                got = servable.run(ROWS)["score"].tolist()
                if got != [4.0 + servable.id.version, 6.0 + servable.id.version]:
                    wrong.append(f"{servable.id} gave {got}")
            scored[0] += 1
            time.sleep(0.0005)  # a busy service, and a core for the swaps

    cache = folder / "cache"
    loader = Loader(log, topics, cache_dir=cache, state_dir=folder / "state", device="cpu", probe=False)
    with loader, ControlPlane(log, topics, loader, refs=[FRAUD], role="client", instance="swaps") as plane:
        plane.on_swap(swaps.put)
        scoring = threading.Thread(target=score, args=(plane,))
        before = None
        for number in range(SETTLING_SWAPS + SWAPS):
            version = number % VERSIONS + 1
            registry.release(FRAUD.model, version)
            assert swaps.get(timeout=LIVE_S).new.version == version
            if number == 0:
                scoring.start()
            if number == SETTLING_SWAPS:
                before = Held.at_rest(plane, cache)
        after = Held.at_rest(plane, cache)
        stop.set()
        scoring.join(LIVE_S)
    said.put({"before": before, "after": after, "wrong": wrong[:10], "scored": scored[0]})


def _views(cache: Path) -> Sequence[Path]:
    return list(cache.glob("**/model.onnx"))
