"""A head-only update of a 400 MB model against its first publication: bytes on the log, and time until it is live.

- Both are real: onnx models, prepared beforehand; a publisher and an application (`ModelClient`), each a process of its
  own. The clock runs from the start of publishing (files lie ready) to the callback that says the version is live.
- `embedding`: a table of vectors is the frozen part, looked up; loading maps it. `dense`: matrices are, and the runtime
  repacks every one of them at each load, changed or not, which no cache of ours spares.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, Self

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcast.config import Connection
from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE
from modelcast.kafka.removal import remove
from modelcast.publisher.prepare import PreparedModel, prepare
from modelcast.publisher.session import RegistryWriter
from modelcast.registry.repository import init
from modelcast.topics import Topics

from .transfers import MODEL, peak_bytes

Kind = Literal["embedding", "dense"]

KINDS: Final[Sequence[Kind]] = ("embedding", "dense")
_WIDTH = 2048
_VECTOR = 256
_EXAMPLES = 32
_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Publication:
    """One version on its way.

    Attributes:
        live_s: From the start of publishing until an application had it live.
        publish_s: Of these, until the publisher had committed it.
        bytes_sent: Chunks written.
        publisher_peak_bytes: Peak resident memory of the publisher.
        consumer_peak_bytes: Of the application so far, mapped files of the model included.
        load_ms: What loading took, step by step.
    """

    live_s: float
    publish_s: float
    bytes_sent: int
    publisher_peak_bytes: int
    consumer_peak_bytes: int
    load_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Live:
    """What an application says when a version went live; `at_s` by the clock all processes of a host share."""

    version: int
    at_s: float
    peak_bytes: int
    load_ms: Mapping[str, float]


class Application:
    """A `ModelClient` in a process of its own. Use as a context manager."""

    def __init__(self, servers: str, prefix: str, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._said: Any = context.Queue()
        self._end: Any = context.Event()
        self._process: BaseProcess = context.Process(
            target=_follow, args=(servers, prefix, folder, self._said, self._end), daemon=True
        )

    def __enter__(self) -> Self:
        self._process.start()
        if self._said.get(timeout=_TIMEOUT_S) is not None:
            raise AssertionError
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._process.join(_TIMEOUT_S)

    def wait_live(self, version: int) -> Live:
        """Waits until the application has it live."""
        while True:
            try:
                live: Live = self._said.get(timeout=_TIMEOUT_S)
            except queue.Empty:
                raise SystemExit(f"version {version} did not go live within {_TIMEOUT_S:g} s") from None
            if live.version == version:
                return live


def _follow(servers: str, prefix: str, folder: Path, said: Any, end: Any) -> None:
    os.environ |= {CACHE_VARIABLE: str(folder / "cache"), STATE_VARIABLE: str(folder / "state")}
    from modelcast.consumer import ModelClient
    from modelcast.consumer.line import Swapped

    with ModelClient(servers, prefix=prefix) as models:
        model = models.model(MODEL)

        def swapped(event: Swapped) -> None:
            at_s = time.monotonic()
            live = model._slot.live
            report = None if live is None else live.report
            steps = {} if report is None else {name: round(getattr(report, name), 1) for name in report.__slots__}
            said.put(Live(event.new.version, at_s, peak_bytes(), steps))

        model.on_swap(swapped)
        said.put(None)
        end.wait()


def publish(servers: str, prefix: str, prepared: PreparedModel) -> tuple[float, float, int, int]:
    """Publishes and releases; when it began and ended, bytes sent, peak memory."""
    with Connection.resolve(servers, prefix=prefix, environment={}).open_log() as log:
        log.topics()
        writer = RegistryWriter(log, Topics(prefix))
        began = time.monotonic()
        done = writer.publish(MODEL, prepared, release=True)
        return began, time.monotonic(), done.bytes_sent, peak_bytes()


def make(kind: Kind, size: int, folder: Path) -> tuple[PreparedModel, PreparedModel]:
    """A model of `size` bytes and the same with another head, each prepared in a folder below `folder`."""
    made = []
    for head in range(2):
        directory = folder / f"{kind}-{head}"
        directory.mkdir(parents=True)
        model = _embedding(size, head) if kind == "embedding" else _dense(size, head)
        rows = np.random.default_rng(0).integers(0, 1000, _EXAMPLES)
        made.append(prepare(model.SerializeToString(), {"key": rows}, directory=directory))
    return made[0], made[1]


def changed_bytes(base: PreparedModel, tuned: PreparedModel) -> int:
    """Bytes of the files that only `tuned` has."""
    known = {entry.digest for entry in base.files}
    return sum(entry.size for entry in tuned.files if entry.digest not in known)


class Updates:
    """Publishes the two versions of a model in turn, to a new repository and a new application each round."""

    def __init__(self, servers: str, folder: Path) -> None:
        self._servers = servers
        self._folder = folder
        self._rounds = 0

    def round(self, models: Sequence[PreparedModel]) -> Sequence[Publication]:
        """The first publication, and the update."""
        self._rounds += 1
        topics = Topics(f"update-{self._rounds}")
        connection = Connection.resolve(self._servers, prefix=topics.prefix, environment={})
        with connection.open_log() as log:
            init(log, topics)
        folder = self._folder / topics.prefix
        try:
            with Application(self._servers, topics.prefix, folder) as application:
                return [self._publish(topics, number, model, application) for number, model in enumerate(models, 1)]
        finally:
            made = [topics.registry, topics.schemas, topics.blobs, topics.status]
            remove(connection.settings, topics=made, groups=())

    def _publish(self, topics: Topics, version: int, prepared: PreparedModel, application: Application) -> Publication:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            began, ended, sent, peak = pool.submit(publish, self._servers, topics.prefix, prepared).result()
        live = application.wait_live(version)
        return Publication(live.at_s - began, ended - began, sent, peak, live.peak_bytes, live.load_ms)


def figures(rounds: Sequence[Sequence[Publication]], changed: int) -> Mapping[str, object]:
    """Medians of both publications, and what the bars are about."""
    full, head = ([publications[number] for publications in rounds] for number in range(2))
    live = {"full": _median(full, lambda one: one.live_s), "head": _median(head, lambda one: one.live_s)}
    return {
        "live_s": {name: round(seconds, 2) for name, seconds in live.items()},
        "publish_s": {
            "full": round(_median(full, lambda one: one.publish_s), 2),
            "head": round(_median(head, lambda one: one.publish_s), 2),
        },
        "load_ms": {"full": _steps(full), "head": _steps(head)},
        "bytes_sent": {"full": full[0].bytes_sent, "head": head[0].bytes_sent, "changed": changed},
        "peak_mb": {
            "publisher": round(_median(full, lambda one: one.publisher_peak_bytes) / 1e6),
            "consumer_full": round(_median(full, lambda one: one.consumer_peak_bytes) / 1e6),
            "consumer_head": round(_median(head, lambda one: one.consumer_peak_bytes) / 1e6),
        },
        "ratios": {
            "head_live_to_full_live": round(live["head"] / live["full"], 3),
            "head_sent_to_changed": round(head[0].bytes_sent / changed, 3),
        },
    }


def _steps(publications: Sequence[Publication]) -> Mapping[str, float]:
    return {
        step: round(statistics.median(one.load_ms[step] for one in publications), 1) for step in publications[0].load_ms
    }


def _median(publications: Sequence[Publication], of: Callable[[Publication], float]) -> float:
    return statistics.median(of(one) for one in publications)


def _embedding(size: int, head: int) -> onnx.ModelProto:
    """Looks a key up in one of some tables, and scores the vector with a head of about 1 %."""
    tables = 8
    rows = size // tables // (_VECTOR * 4)
    nodes = [helper.make_node("Gather", [f"table{n}", "key"], [f"vector{n}"]) for n in range(tables)]
    nodes.append(helper.make_node("Sum", [f"vector{n}" for n in range(tables)], ["features"]))
    return _model(nodes, {f"table{n}": _weights(n, rows, _VECTOR) for n in range(tables)}, _VECTOR, size, head)


def _dense(size: int, head: int) -> onnx.ModelProto:
    """Layers of square matrices on a small embedding, and a head of about 1 %."""
    layers = size // (_WIDTH * _WIDTH * 4)
    weights = {"table": _weights(100, 1000, 16), "first": _weights(101, 16, _WIDTH)}
    nodes = [
        helper.make_node("Gather", ["table", "key"], ["vector"]),
        helper.make_node("MatMul", ["vector", "first"], ["layer0"]),
    ]
    for n in range(layers):
        weights[f"w{n}"] = _weights(n, _WIDTH, _WIDTH)
        nodes.append(helper.make_node("MatMul", [f"layer{n}", f"w{n}"], [f"product{n}"]))
        nodes.append(helper.make_node("Tanh", [f"product{n}"], [f"layer{n + 1}" if n + 1 < layers else "features"]))
    return _model(nodes, weights, _WIDTH, size, head)


def _model(
    nodes: list[onnx.NodeProto], weights: Mapping[str, np.ndarray[Any, Any]], features: int, size: int, head: int
) -> onnx.ModelProto:
    tuned = _weights(1000 + head, features, size // 100 // (features * 4))
    graph = helper.make_graph(
        [
            *nodes,
            helper.make_node("MatMul", ["features", "head"], ["scores"]),
            helper.make_node("ReduceMax", ["scores", "axis"], ["score"], keepdims=0),
        ],
        "benchmark",
        [helper.make_tensor_value_info("key", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        [
            *(numpy_helper.from_array(array, name) for name, array in weights.items()),
            numpy_helper.from_array(tuned, "head"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def _weights(seed: int, rows: int, columns: int) -> np.ndarray[Any, Any]:
    scale = np.float32(rows**-0.5)
    return np.random.default_rng(seed).standard_normal((rows, columns), np.float32) * scale
