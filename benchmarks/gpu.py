"""Scoring on a GPU, against the bare runtime with IOBinding; swaps under load, and the device's memory over them.

    python -m benchmarks.gpu --json
    python -m benchmarks.gpu --device cpu --batches 1,64 --swaps 5     the same code where there is no device

- Rates: events a second and times of single runs, from arrays on the host to arrays on the host, for a multilayer
  perceptron and a small transformer. The bare side is ONNX Runtime's own binding as its documentation has it: a
  session with the same options, inputs copied into one device buffer each, outputs bound to the device and copied back.
  Sides alternate by rounds; a rate is the median of its rounds, a percentile is over all runs.
- Swaps: versions of the perceptron are loaded, swapped and let go one after the other while a thread scores under
  leases. The gap is the time between two runs' ends; beside it, the same without swaps. Memory is what the driver says
  is taken on the device (on the CPU: resident memory), after the first version and after the last.

No broker takes part. Exit status: 0 measured · 2 no such device here, or a wrong option; nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from modelcast import runtime
from modelcast.consumer.loader import Loader
from modelcast.consumer.servable import Servable
from modelcast.consumer.slot import Slot
from modelcast.errors import ModelcastError
from modelcast.registry.image import VersionRecord
from modelcast.runtime import Array, CudaOptions

from .gpu_models import TOPICS, Model, Shelf, mlp, transformer

MODELS: Final[Mapping[str, Callable[[], Model]]] = {"mlp": mlp, "transformer": transformer}
BATCHES: Final = (1, 8, 64, 512, 1000, 4096)
ROUNDS: Final = 3
# However long one takes.
_RUNS_MIN: Final = 5
_EXIT_UNAVAILABLE: Final = 2
_WAIT_S: Final = 60.0
# So many versions in turn; more would only take longer to prepare.
_VERSIONS: Final = 4
# The batch that is scored while versions are swapped.
_SWAP_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class Side:
    """What one side came to with one model and batch size."""

    events_per_s: float
    p50_ms: float
    p99_ms: float


def measure(run: Callable[[], object], seconds: float) -> list[float]:
    """Seconds of each of as many runs as fit."""
    run()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < _RUNS_MIN or time.perf_counter() < end:
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return took


def summary(rounds: Sequence[Sequence[float]], rows: int) -> Side:
    """Rate by the median round, percentiles over all runs."""
    rates = [rows * len(took) / sum(took) for took in rounds]
    milliseconds = np.concatenate([np.asarray(took) for took in rounds]) * 1e3
    p50, p99 = (float(np.percentile(milliseconds, part)) for part in (50, 99))
    return Side(round(statistics.median(rates), 1), round(p50, 4), round(p99, 4))


class Bare:
    """ONNX Runtime by itself: one session, inputs in device buffers, outputs bound to the device."""

    def __init__(self, model: Model, device: runtime.Device) -> None:
        import onnxruntime as ort

        from modelcast.runtime.providers import CPU, providers

        self._ort, self._device = ort, device
        wanted = [CPU] if device.cuda is None else providers(device.cuda, CudaOptions())
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(model.proto.SerializeToString(), options, providers=wanted)
        self._binding: Any = None

    def bind(self, feeds: Mapping[str, Array]) -> Callable[[], object]:
        """A run on arrays of these shapes, one shape at a time."""
        kind, number = self._device.kind, self._device.number
        binding = self._session.io_binding()
        buffers = {}
        for name, array in feeds.items():
            buffers[name] = self._ort.OrtValue.ortvalue_from_shape_and_type(
                list(array.shape), array.dtype.type, kind, number
            )
            binding.bind_ortvalue_input(name, buffers[name])
        for output in self._session.get_outputs():
            binding.bind_output(output.name, kind, number)

        def run() -> object:
            for name, array in feeds.items():
                buffers[name].update_inplace(array)
            self._session.run_with_iobinding(binding)
            return binding.copy_outputs_to_cpu()

        return run


def rates(
    model: Model, servable: Servable, device: runtime.Device, batches: Sequence[int], seconds: float
) -> list[Mapping[str, Any]]:
    """Both sides, batch size by batch size."""
    bare = Bare(model, device)
    found: list[Mapping[str, Any]] = []
    for rows in batches:
        feeds = model.batch(rows)
        sides: Mapping[str, Callable[[], object]] = {
            "modelcast": lambda feeds=feeds: servable.run_feeds(feeds),  # type: ignore[misc]
            "bare": bare.bind(feeds),
        }
        took: dict[str, list[list[float]]] = {name: [] for name in sides}
        for _ in range(ROUNDS):
            for name, run in sides.items():
                took[name].append(measure(run, seconds))
        results = {name: summary(rounds, rows) for name, rounds in took.items()}
        found.append(
            {
                "model": model.name,
                "rows": rows,
                **{name: {key: getattr(side, key) for key in side.__slots__} for name, side in results.items()},
                "ratio": round(results["modelcast"].events_per_s / results["bare"].events_per_s, 3),
            }
        )
    return found


class Scoring:
    """A thread that scores one batch after the other under leases, and keeps when each ended."""

    def __init__(self, slot: Slot, feeds: Mapping[str, Array]) -> None:
        self._slot, self._feeds = slot, feeds
        self._ends: list[float] = []
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="benchmark-scoring")

    def __enter__(self) -> Scoring:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(_WAIT_S)
        if self._error is not None:
            raise self._error

    def gaps_ms(self) -> Mapping[str, float]:
        """Of the times between the ends of two runs: the median, high percentiles, the longest."""
        gaps = np.diff(np.asarray(self._ends)) * 1e3
        named = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "longest": 100.0}
        return {name: round(float(np.percentile(gaps, part)), 3) for name, part in named.items()}

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                with self._slot.lease() as servable:
                    servable.run_feeds(self._feeds)
                self._ends.append(time.perf_counter())
        except BaseException as error:  # raised again where the block ends
            self._error = error


def swaps(
    loader: Loader, records: Sequence[VersionRecord], model: Model, device: runtime.Device, count: int
) -> Mapping[str, Any]:
    """Loads and swaps `count` times under scoring."""
    slot = Slot(model.name, keep=0)
    slot.swap(loader.load(records[0], None))
    feeds = model.batch(_SWAP_ROWS)
    taken: list[int] = []
    loads: list[float] = []
    with Scoring(slot, feeds) as quiet:
        time.sleep(1.0)
    with Scoring(slot, feeds) as scoring:
        for number in range(1, count + 1):
            began = time.perf_counter()
            new = loader.load(records[number % len(records)], None)
            loads.append(time.perf_counter() - began)
            slot.swap(new)
            _reap(slot)
            taken.append(memory_taken(device))
    slot.clear()
    _reap(slot)
    return {
        "swaps": count,
        "load_ms": round(statistics.median(loads) * 1e3, 1),
        "gap_ms": scoring.gaps_ms(),
        "gap_ms_without_swaps": quiet.gaps_ms(),
        "memory_mb": {
            "first": _mb(taken[0]),
            "last": _mb(taken[-1]),
            "most": _mb(max(taken)),
            "when_unloaded": _mb(memory_taken(device)),
        },
    }


def _reap(slot: Slot) -> None:
    deadline = time.monotonic() + _WAIT_S
    while slot.quiescing and time.monotonic() < deadline:
        slot.reap()
        time.sleep(0.001)


def memory_taken(device: runtime.Device) -> int:
    """Bytes in use: of the device, by everybody; of this process where the device is the CPU."""
    if device.cuda is not None:
        memory = runtime.device_memory(device.cuda)
        return memory.total - memory.free
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    return 0


def _mb(size: int) -> float:
    return round(size / 1e6, 1)


def run(options: argparse.Namespace) -> Mapping[str, Any]:
    """Everything. Raises ModelcastError where the device can't be used."""
    device = runtime.resolve(options.device)
    figures: dict[str, Any] = {
        "device": str(device),
        "runtime": runtime.versions()["onnxruntime"],
        "memory_mb": {"start": _mb(memory_taken(device))},
        "rates": [],
    }
    with tempfile.TemporaryDirectory(prefix="modelcast-gpu-") as folder:
        place = Path(folder)
        shelf = Shelf(place)
        with Loader(
            shelf.log,
            TOPICS,
            cache_dir=place / "cache",
            state_dir=place / "state",
            device=options.device,
            probe=False,
        ) as loader:
            for number, name in enumerate(options.models, 1):
                model = MODELS[name]()
                servable = loader.load(shelf.put(number, model), None)
                figures["rates"] += rates(model, servable, device, options.batches, options.seconds)
                servable.close()
            figures["memory_mb"]["when_unloaded"] = _mb(memory_taken(device))
            if options.swaps:
                versions = [mlp(seed) for seed in range(_VERSIONS)]
                records = [shelf.put(100 + number, model) for number, model in enumerate(versions)]
                figures["swap"] = swaps(loader, records, versions[0], device, options.swaps)
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu (default: cuda)")
    parser.add_argument("--models", default=",".join(MODELS), help="which of mlp, transformer")
    parser.add_argument("--batches", default=",".join(map(str, BATCHES)), help="rows of a batch, by commas")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each side, model and batch size, each round")
    parser.add_argument("--swaps", type=int, default=100, help="0 leaves them out")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    options = parser.parse_args(arguments)
    options.models = options.models.split(",")
    options.batches = [int(rows) for rows in options.batches.split(",")]
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"no such models: {', '.join(sorted(unknown))}")
    try:
        figures = run(options)
    except ModelcastError as error:
        print(json.dumps({"device": None, "reason": str(error)}) if options.json else f"nothing was measured: {error}")
        return _EXIT_UNAVAILABLE
    print(json.dumps(figures, indent=2) if options.json else _text(figures))
    return 0


def _text(figures: Mapping[str, Any]) -> str:
    lines = [f"{figures['device']}, onnxruntime {figures['runtime']}", ""]
    lines.append(f"{'model':12} {'rows':>6} {'events/s':>12} {'bare':>12} {'ratio':>6} {'p99 ms':>9} {'bare':>9}")
    for row in figures["rates"]:
        ours, bare = row["modelcast"], row["bare"]
        lines.append(
            f"{row['model']:12} {row['rows']:6} {ours['events_per_s']:12,.0f} {bare['events_per_s']:12,.0f} "
            f"{row['ratio']:6.2f} {ours['p99_ms']:9.3f} {bare['p99_ms']:9.3f}"
        )
    if "swap" in figures:
        swap = figures["swap"]
        lines += ["", *(f"{name}: {value}" for name, value in swap.items())]
    return "\n".join([*lines, "", f"memory: {figures['memory_mb']}"])


if __name__ == "__main__":
    sys.exit(main())
