"""What going live costs: a 400 MB model swapped in an application that scores in a tight loop, on a real broker.

    python -m benchmarks.swap --json
    python -m benchmarks.swap --mb 100 --rounds 1 --swaps 100

Each round is a new application with an empty cache, and three versions that share no byte, published beforehand:

- the first goes live, then scoring begins; the second goes live with the first still loaded, which is the most memory;
- *quiet*: the same time, with nothing going on. *beside*: bare sides of the same work in another process, which is the
  load of the machine without a swap: the plain client reads as many bytes of the same topic, then the plain runtime
  opens the same file. Both have the application's scoring beside them, as the swap has;
- the third goes live, and what is kept of the first is destroyed.

Then the swaps of a small, signed model, one release after the other, each loaded anew: what is left of them in memory.
Figures are medians of rounds, longest gaps the longest of all.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelcast.config import Connection
from modelcast.dev.broker import LocalBroker
from modelcast.folders import STATE_VARIABLE
from modelcast.log import Log
from modelcast.publisher.prepare import PreparedModel
from modelcast.publisher.session import RegistryWriter
from modelcast.records import GRAPH_PATH
from modelcast.registry.repository import init
from modelcast.topics import Topics
from modelcast.trust.keys import generate
from modelcast.trust.writing import trust_key

from . import cascade
from .swapping import Application, Footprint, Gaps, Live
from .transfers import MODEL, Place, apart, bare_consume

DEFAULT_MB: Final = 400
DEFAULT_ROUNDS: Final = 3
DEFAULT_SWAPS: Final = 1000
PARTITIONS: Final = 4
# Events of one prediction: what a service has at hand at once.
_ROWS: Final = 64
# What lasts after a swap: the end of the window, with whatever is destroyed in it.
_AFTER_LIVE_S: Final = 2.0
DEFAULT_SMALL_MB: Final = 1
# One version is live and one kept: the third is loaded anew each time its turn comes.
_VERSIONS: Final = 3
# Swaps until memory counts: threads come and go while a model is loaded, and glibc gives each a heap of its own, up to
# eight for each core, which all have to grow to their size once. With MALLOC_ARENA_MAX=2 there is nothing to settle.
_SETTLING_SWAPS: Final = 100
_FOOTPRINTS: Final = 10
_BROKER_HEAP_MB: Final = 1024


@dataclass(frozen=True, slots=True)
class Round:
    """What one application saw.

    Attributes:
        lease_ns: What taking and ending a lease takes.
        live_s: From the start of a release until the application calls back, the second version's and the third's.
        load_ms: What loading took of it, step by step.
        bare_fetch_s, bare_load_s: The bare sides.
        quiet, beside, swaps: Gaps in scoring.
        peak_ratio: Peak memory of the first swap beyond what was held before it, as part of the model's size.
        old_ratio: What the live version held by then, likewise.
    """

    lease_ns: float
    live_s: tuple[float, ...]
    load_ms: tuple[Mapping[str, float], ...]
    bare_fetch_s: float
    bare_load_s: float
    quiet: Gaps
    beside: Gaps
    swaps: tuple[Gaps, ...]
    peak_ratio: float
    old_ratio: float


class Rounds:
    """Takes applications through the three versions of a large model."""

    def __init__(self, servers: str, log: Log, models: Sequence[PreparedModel], folder: Path) -> None:
        topics = Topics("swap")
        init(log, topics, blob_partitions=PARTITIONS)
        self._registry = RegistryWriter(log, topics)
        for model in models:
            self._registry.publish(MODEL, model, release=False)
        self._place = Place(servers, topics.blobs, topics.prefix, PARTITIONS)
        self._model = models[0]
        self._size = sum(entry.size for entry in models[0].files)
        self._folder = folder

    def round(self) -> Round:
        """One application."""
        self._registry.release(MODEL, 1)
        folder = self._folder / "application"
        try:
            with Application(self._place.servers, self._place.prefix, folder) as application:
                return self._through(application)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _through(self, application: Application) -> Round:
        empty = application.footprint()
        application.follow()
        application.wait_live(1)
        lease_ns = application.lease_ns()
        application.score(cascade.easy_events(_ROWS))
        time.sleep(_AFTER_LIVE_S)
        before = application.footprint(reset=True)
        second, took_s, gaps = self._swap(application, 2)
        peak = application.footprint().peak_bytes
        application.begin()
        time.sleep(took_s + _AFTER_LIVE_S)
        quiet = application.end()
        application.begin()
        fetch_s = apart(bare_consume, self._place, self._size).seconds
        load_s = apart(bare_load, self._model.directory / GRAPH_PATH)
        beside = application.end()
        third, third_s, more_gaps = self._swap(application, 3)
        return Round(
            lease_ns=lease_ns,
            live_s=(took_s, third_s),
            load_ms=(second.load_ms, third.load_ms),
            bare_fetch_s=fetch_s,
            bare_load_s=load_s,
            quiet=quiet,
            beside=beside,
            swaps=(gaps, more_gaps),
            peak_ratio=(peak - before.resident_bytes) / self._size,
            old_ratio=(before.resident_bytes - empty.resident_bytes) / self._size,
        )

    def _swap(self, application: Application, version: int) -> tuple[Live, float, Gaps]:
        application.begin()
        began = time.monotonic()
        self._registry.release(MODEL, version)
        live = application.wait_live(version)
        time.sleep(_AFTER_LIVE_S)
        return live, live.at_s - began, application.end()


def bare_load(graph: Path) -> float:
    """Seconds the plain runtime takes to open a graph, with the options a scorer has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    began = time.monotonic()
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return time.monotonic() - began


def many_swaps(
    servers: str, log: Log, folder: Path, size: int, swaps: int, say: Callable[[str], None]
) -> Sequence[Footprint]:
    """Footprints of an application: once all versions were live, once it settled, and of `swaps` more swaps."""
    folder.mkdir()
    key, policy = generate("benchmark", folder), folder / "trust.toml"
    trust_key(policy, "benchmark", key.public, ["*"])
    topics = Topics("swaps")
    init(log, topics, blob_partitions=1)
    registry = RegistryWriter(log, topics, signers=[key])
    for seed in range(_VERSIONS):
        registry.publish(MODEL, cascade.make(size, seed, folder / f"small-{seed}"), release=False)
    footprints = []
    with Application(servers, topics.prefix, folder, trust_policy=policy) as application:
        application.follow()
        settling = min(_SETTLING_SWAPS, swaps)
        for number in range(settling + swaps + 1):
            version = number % _VERSIONS + 1
            registry.release(MODEL, version)
            application.wait_live(version)
            if application.predict(cascade.hard_events(_ROWS)) != version:
                raise SystemExit(f"version {version} is live, and another one scored")
            done = number - settling
            if number == _VERSIONS or (done >= 0 and done % max(1, swaps // _FOOTPRINTS) == 0):
                footprints.append(application.footprint())
                say(f"{done:>5} swaps  {footprints[-1].resident_bytes / 1e6:.1f} MB resident")
    return footprints


def figures(rounds: Sequence[Round]) -> Mapping[str, object]:
    """What the bars are about, and what they come from."""
    quiet, beside = _gaps([one.quiet for one in rounds]), _gaps([one.beside for one in rounds])
    swaps = _gaps([gaps for one in rounds for gaps in one.swaps])
    live_s = [seconds for one in rounds for seconds in one.live_s]
    bare_s = [one.bare_fetch_s + one.bare_load_s for one in rounds]
    steps = [load_ms for one in rounds for load_ms in one.load_ms]
    return {
        "lease_ns": round(min(one.lease_ns for one in rounds)),
        "live_s": _rounded(statistics.median(live_s)),
        "bare_fetch_s": _rounded(statistics.median(one.bare_fetch_s for one in rounds)),
        "bare_load_s": _rounded(statistics.median(one.bare_load_s for one in rounds)),
        "load_ms": {name: round(statistics.median(taken[name] for taken in steps), 1) for name in steps[0]},
        "gaps_ms": {"quiet": quiet, "beside": beside, "swaps": swaps},
        "old_to_size": _rounded(statistics.median(one.old_ratio for one in rounds)),
        "bars": {
            "live_to_bare": _rounded(statistics.median(live_s) / statistics.median(bare_s)),
            "p999_more_ms": _rounded(swaps["p999"] - quiet["p999"]),
            "longest_more_ms": _rounded(swaps["longest"] - quiet["longest"]),
            "peak_to_size": _rounded(max(one.peak_ratio for one in rounds)),
        },
    }


def memory_figures(footprints: Sequence[Footprint]) -> Mapping[str, object]:
    """How the application grew."""
    start, first, last = footprints[0], footprints[1], footprints[-1]
    return {
        "unsettled_mb": round(start.resident_bytes / 1e6, 1),
        "resident_mb": [round(one.resident_bytes / 1e6, 1) for one in footprints[1:]],
        "threads": [first.threads, last.threads],
        "handles": [first.handles, last.handles],
        "last_to_first": _rounded(last.resident_bytes / first.resident_bytes),
        "most_to_first": _rounded(max(one.resident_bytes for one in footprints[1:]) / first.resident_bytes),
    }


def _gaps(windows: Sequence[Gaps]) -> Mapping[str, float]:
    return {
        "predictions": sum(gaps.predictions for gaps in windows),
        "p50": _rounded(statistics.median(gaps.p50_ms for gaps in windows)),
        "p99": _rounded(statistics.median(gaps.p99_ms for gaps in windows)),
        "p999": _rounded(statistics.median(gaps.p999_ms for gaps in windows)),
        "longest": _rounded(max(gaps.longest_ms for gaps in windows)),
    }


def _rounded(figure: float) -> float:
    return round(figure, 3)


def run(size: int, rounds: int, small: int, swaps: int, say: Callable[[str], None]) -> Mapping[str, object]:
    """Rounds with the large model, then the swaps of the small one; either may be none."""
    result: dict[str, object] = {"mb": size / 1e6, "rounds": rounds, "swaps": swaps}
    with tempfile.TemporaryDirectory(prefix="modelcast-benchmark-") as name:
        folder = Path(name)
        os.environ[STATE_VARIABLE] = str(folder / "state")
        with LocalBroker(
            folder / "broker", heap_mb=_BROKER_HEAP_MB, full_compiler=True, die_with_parent=True
        ) as broker:
            connection = Connection.resolve(broker.bootstrap_servers, environment={})
            with closing(connection.open_log()) as log:
                if rounds:
                    say(f"publishing {_VERSIONS} versions of {size / 1e6:.0f} MB")
                    models = [cascade.make(size, seed, folder / f"large-{seed}") for seed in range(_VERSIONS)]
                    large = Rounds(broker.bootstrap_servers, log, models, folder)
                    done = []
                    for number in range(1, rounds + 1):
                        done.append(large.round())
                        say(f"round {number}/{rounds}  {_told(done[-1])}")
                    result |= figures(done)
                if swaps:
                    result["memory"] = memory_figures(
                        many_swaps(broker.bootstrap_servers, log, folder / "small", small, swaps, say)
                    )
    return result


def _told(one: Round) -> str:
    live = ", ".join(f"{seconds:.2f}" for seconds in one.live_s)
    longest = ", ".join(f"{gaps.longest_ms:.1f}" for gaps in one.swaps)
    return (
        f"live after {live} s (bare {one.bare_fetch_s:.2f} + {one.bare_load_s:.2f} s), "
        f"longest gap {longest} ms (quiet {one.quiet.longest_ms:.1f} ms, beside {one.beside.longest_ms:.1f} ms), "
        f"peak {one.peak_ratio:.2f} x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=DEFAULT_MB, help="size of the large model")
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, help="applications that swap it; 0 for none")
    parser.add_argument("--small-mb", type=int, default=DEFAULT_SMALL_MB, help="size of the small model")
    parser.add_argument("--swaps", type=int, default=DEFAULT_SWAPS, help="of the small model; 0 for none")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object on standard output")
    arguments = parser.parse_args()
    result = run(
        arguments.mb * 1_000_000,
        arguments.rounds,
        arguments.small_mb * 1_000_000,
        arguments.swaps,
        lambda text: print(text, file=sys.stderr),
    )
    print(json.dumps(result) if arguments.json else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
