"""What an embedded client costs: each way to ask it for a prediction, and another model's load beside it. No broker.

    python -m benchmarks.client [--json]
    python -m benchmarks.client --rounds 100 --mb 20 --loads 3

- *calls*: microseconds of one call on a model of 30 fields, the best of several rounds, in each of which every way has
  its turn; and what that is above the bare `InferenceSession.run` on the same arrays.
- *event loop*: the same on an event loop, beside it and on it.
- *loads*: gaps between predictions of that model in a tight loop, while another model is loaded again and again from
  the cache, and the same time without.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime
import polars as pl
from onnx import TensorProto, helper, numpy_helper

from modelcast.consumer import ModelClient, aside
from modelcast.consumer.model import Model
from modelcast.log import Log
from modelcast.publisher.prepare import prepare
from modelcast.publisher.session import RegistryWriter
from modelcast.records import GRAPH_PATH
from modelcast.registry.repository import init
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

from .update import make

FEATURES: Final = tuple(f"v{number}" for number in range(30))
BATCHES: Final = (1, 100)
# Short turns, and many: a turn that the machine's other work did not interrupt is what is looked for.
CALLS: Final = 10
DEFAULT_ROUNDS: Final = 500
DEFAULT_MB: Final = 100
DEFAULT_LOADS: Final = 5
_SMALL, _LARGE = "fraud", "large"
_EXAMPLES: Final = 50
_TIMEOUT_S: Final = 300.0

Call = Callable[[], object]


class Repository:
    """A repository in memory with the small model and the large one, and the graph of the small one on disk."""

    def __init__(self, folder: Path, large_bytes: int) -> None:
        self.topics = Topics("benchmark")
        self._log = MemoryLog()
        init(self._log, self.topics)
        small = folder / _SMALL
        small.mkdir()
        examples = {"x": np.random.default_rng(0).random((_EXAMPLES, len(FEATURES)), np.float32)}
        prepared = prepare(_logistic_regression(), examples, fields=FEATURES, directory=small)
        self.graph = small / GRAPH_PATH
        writer = RegistryWriter(self._log, self.topics)
        writer.publish(_SMALL, prepared, release=True)
        if large_bytes:
            writer.publish(_LARGE, make("embedding", large_bytes, folder)[0], release=True)

    def open_log(self) -> Log:
        return self._log


class ArrowTable:
    """A table that says nothing of itself but how to read it."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        return self._frame.__arrow_c_stream__(requested_schema)


def _logistic_regression() -> bytes:
    weights = np.random.default_rng(1).standard_normal((len(FEATURES), 1), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weights"], ["logit"]), helper.make_node("Sigmoid", ["logit"], ["score"])],
        "benchmark",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", len(FEATURES)])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    return bytes(model.SerializeToString())


def bare_session(graph: Path) -> onnxruntime.InferenceSession:
    """The runtime's own session, on one thread as ours."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def ways(model: Model, session: onnxruntime.InferenceSession, rows: int) -> Mapping[str, Call]:
    """Every way to ask for the same predictions."""
    matrix = np.random.default_rng(2).random((rows, len(FEATURES)), np.float32)
    columns = {name: np.ascontiguousarray(matrix[:, index]) for index, name in enumerate(FEATURES)}
    doubles = {name: column.astype(np.float64) for name, column in columns.items()}
    lists = {name: column.tolist() for name, column in doubles.items()}
    frame = pl.DataFrame(columns)
    records = frame.to_dicts()
    table = ArrowTable(frame)
    found: dict[str, Call] = {
        "session.run": lambda: session.run(["score"], {"x": matrix}),
        "run, the graph's inputs": lambda: model.run({"x": matrix}),
        "predict, float32 columns": lambda: model.predict(columns),
        "predict, float64 columns": lambda: model.predict(doubles),
        "predict, lists": lambda: model.predict(lists),
        "predict, records": lambda: model.predict(records),
        "predict, Polars frame": lambda: model.predict(frame),
        "predict, Arrow stream": lambda: model.predict(table),
    }
    try:
        import pandas
    except ImportError:  # not needed by anything else here
        return found
    pandas_frame = pandas.DataFrame(columns)
    return found | {"predict, pandas frame": lambda: model.predict(pandas_frame)}


def best_us(calls: Mapping[str, Call], rounds: int) -> Mapping[str, float]:
    """Microseconds of one call of each, the best of the rounds: what else runs here only ever adds to it."""
    best = dict.fromkeys(calls, float("inf"))
    with _no_collector():
        for _ in range(rounds):
            for name, call in calls.items():
                start = time.perf_counter()
                for _ in range(CALLS):
                    call()
                best[name] = min(best[name], (time.perf_counter() - start) / CALLS * 1e6)
            gc.collect()
    return best


def call_figures(model: Model, graph: Path, rounds: int) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
    """By batch size and way: `us` of a call, and `overhead_us` above the bare session."""
    session = bare_session(graph)
    figures = {}
    for rows in BATCHES:
        best = best_us(ways(model, session, rows), rounds)
        bare = best["session.run"]
        figures[str(rows)] = {
            name: {"us": round(us, 2), "overhead_us": round(us - bare, 2)} for name, us in best.items()
        }
    return figures


def loop_figures(model: Model, rounds: int) -> Mapping[str, float]:
    """Microseconds of `run_async` with one row, one after the other."""
    matrix = np.ones((1, len(FEATURES)), np.float32)
    inline_s = aside.INLINE_S

    async def timed(call: Callable[[], Awaitable[object]]) -> float:
        best = float("inf")
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(CALLS):
                await call()
            best = min(best, (time.perf_counter() - start) / CALLS * 1e6)
        return round(best, 2)

    figures = {"run on the loop": asyncio.run(timed(lambda: model.run_async({"x": matrix})))}
    aside.INLINE_S = 0.0  # type: ignore[misc]  # as if every batch took longer than the way to a thread
    try:
        figures["run beside the loop"] = asyncio.run(timed(lambda: model.run_async({"x": matrix})))
    finally:
        aside.INLINE_S = inline_s  # type: ignore[misc]
    return figures


class Gaps(threading.Thread):
    """Predicts in a tight loop, and keeps the time from each prediction to the next."""

    def __init__(self, model: Model) -> None:
        super().__init__(daemon=True)
        self._model = model
        self._over = threading.Event()
        self._gaps_s: list[float] = []

    def run(self) -> None:
        feeds = {"x": np.ones((64, len(FEATURES)), np.float32)}
        last = time.perf_counter()
        while not self._over.is_set():
            self._model.run(feeds)
            now = time.perf_counter()
            self._gaps_s.append(now - last)
            last = now

    def end(self) -> Mapping[str, float]:
        """Milliseconds: the 99.9th percentile, and the longest."""
        self._over.set()
        self.join()
        ordered = sorted(self._gaps_s)
        p999 = ordered[min(len(ordered) - 1, len(ordered) * 999 // 1000)]
        return {"p99.9": round(p999 * 1e3, 3), "longest": round(ordered[-1] * 1e3, 2), "predictions": len(ordered)}


def load_figures(client: ModelClient, loads: int) -> Mapping[str, Any]:
    """Gaps in milliseconds while a large model is loaded `loads` times, and without, for as long."""
    client.model(_LARGE).wait_live(_TIMEOUT_S)  # fetched: what is measured is loading
    client.unsubscribe(_LARGE)
    gaps = Gaps(client[_SMALL])
    gaps.start()
    took_s = []
    for _ in range(loads):
        start = time.perf_counter()
        client.model(_LARGE).wait_live(_TIMEOUT_S)
        took_s.append(time.perf_counter() - start)
        client.unsubscribe(_LARGE)
    during = gaps.end()
    quiet = Gaps(client[_SMALL])
    quiet.start()
    threading.Event().wait(sum(took_s))
    return {"load_s": round(statistics.median(took_s), 2), "during": during, "quiet": quiet.end()}


def measure(rounds: int, large_mb: int, loads: int) -> Mapping[str, Any]:
    """All figures."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        repository = Repository(folder, large_mb * 1_000_000 if loads else 0)
        with ModelClient(
            connection=repository, device="cpu", cache_dir=folder / "cache", state_dir=folder / "state"
        ) as client:
            model = client[_SMALL]
            return {
                "calls": call_figures(model, repository.graph, rounds),
                "event_loop": loop_figures(model, rounds),
                "loads": load_figures(client, loads) if loads else None,
            }


@contextmanager
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def show(figures: Mapping[str, Any]) -> Sequence[str]:
    """The figures as lines of text."""
    lines = [f"{'µs a call (above the bare session), rows':40}" + "".join(f"{rows:>22}" for rows in figures["calls"])]
    for name in figures["calls"]["1"]:
        cells = [by_name[name] for by_name in figures["calls"].values()]
        lines.append(f"{name:40}" + "".join(f"{cell['us']:>12.1f} ({cell['overhead_us']:>+7.1f})" for cell in cells))
    lines += [f"{name:40}{us:>12.1f}" for name, us in figures["event_loop"].items()]
    if figures["loads"]:
        for name in ("during", "quiet"):
            gaps = figures["loads"][name]
            words = f"gaps {'during loads' if name == 'during' else 'without'}, ms: p99.9, longest"
            lines.append(f"{words:40}{gaps['p99.9']:>12.3f}{gaps['longest']:>12.2f}")
        lines.append(f"{'a load, s':40}{figures['loads']['load_s']:>12.2f}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--rounds", type=int, default=DEFAULT_ROUNDS, help=f"each has {CALLS} calls of each way")
    parser.add_argument("--mb", type=int, default=DEFAULT_MB, help="size of the model that is loaded")
    parser.add_argument("--loads", type=int, default=DEFAULT_LOADS, help="how often it is; 0 leaves this out")
    options = parser.parse_args()
    figures = measure(options.rounds, options.mb, options.loads)
    print(json.dumps(figures) if options.json else "\n".join(show(figures)), file=sys.stdout)


if __name__ == "__main__":
    main()
