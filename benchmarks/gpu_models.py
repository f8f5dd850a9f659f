"""Models of the kinds that GPUs are bought for, as versions on an in-memory log: no broker, no training framework."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcast import blobs, digest, golden, runtime
from modelcast.golden import Examples
from modelcast.records import (
    EXAMPLES_PATH,
    GRAPH_PATH,
    DType,
    FileEntry,
    InputBinding,
    Manifest,
    OutputSpec,
    Signature,
    Tolerance,
)
from modelcast.registry.image import VersionRecord
from modelcast.runtime import Array
from modelcast.testing.memory import MemoryLog
from modelcast.topics import ChunkKey, Topics, blob_partition

TOPICS: Final = Topics("gpu")
REPOSITORY: Final = "0b7a4c1e-0000-4000-8000-00000000000a"
_CHUNK_BYTES: Final = 512 << 10
_EXAMPLES: Final = 16
_OPSET: Final = 17
# Sums of thousands of products, in another order on each device; TF32 would be ten times further off.
TOLERANCE: Final = Tolerance(relative=1e-3, absolute=1e-4)


@dataclass(frozen=True, slots=True)
class Model:
    """A graph of one input and one output, and what it takes.

    Attributes:
        row: Shape of one row of its input.
        width: Values of one row of its output.
    """

    name: str
    proto: onnx.ModelProto
    row: tuple[int, ...]
    width: int

    def batch(self, rows: int, seed: int = 0) -> dict[str, Array]:
        """Random inputs."""
        return {"x": np.random.default_rng(seed).standard_normal((rows, *self.row), np.float32)}

    @property
    def signature(self) -> Signature:
        shape = (None, *self.row)
        fields = tuple(f"f{n}" for n in range(self.row[0])) if len(self.row) == 1 else ("row",)
        outputs = (OutputSpec.named("y", DType.FLOAT32, (None, self.width)),)
        return Signature((InputBinding("x", DType.FLOAT32, shape, fields),), outputs)


def mlp(seed: int = 0, *, features: int = 256, hidden: int = 2048, layers: int = 3) -> Model:
    """Dense layers with ReLU between them: 35 MB of weights as it stands."""
    widths = [features, *[hidden] * layers, 10]
    nodes, weights, last = [], {}, "x"
    for n, (before, after) in enumerate(pairwise(widths)):
        weights[f"w{n}"], weights[f"b{n}"] = _weights(seed + n, before, after), np.zeros(after, np.float32)
        is_last = n == len(widths) - 2
        nodes.append(helper.make_node("Gemm", [last, f"w{n}", f"b{n}"], ["y" if is_last else f"dense{n}"]))
        if not is_last:
            nodes.append(helper.make_node("Relu", [f"dense{n}"], [last := f"relu{n}"]))
    return _model("mlp", nodes, weights, (features,), widths[-1])


def transformer(
    seed: int = 0, *, layers: int = 4, width: int = 256, heads: int = 4, tokens: int = 32, features: int = 64
) -> Model:
    """An encoder over a sequence of vectors, pooled to two scores (13 MB as it stands)."""
    weights = {"embed": _weights(seed, features, width), "head": _weights(seed + 1, width, 2)}
    weights["split"] = np.array([0, tokens, heads, width // heads], np.int64)
    weights["join"] = np.array([0, tokens, width], np.int64)
    weights["scale"] = np.array((width // heads) ** -0.5, np.float32)
    nodes = [helper.make_node("MatMul", ["x", "embed"], ["layer0"])]
    for n in range(layers):
        nodes += _encoder_layer(n, f"layer{n}", f"layer{n + 1}", weights, width, seed + 100 * (n + 1))
    nodes.append(helper.make_node("ReduceMean", [f"layer{layers}"], ["pooled"], axes=[1], keepdims=0))
    nodes.append(helper.make_node("MatMul", ["pooled", "head"], ["y"]))
    return _model("transformer", nodes, weights, (tokens, features), 2)


def _encoder_layer(
    n: int, source: str, target: str, weights: dict[str, Array], width: int, seed: int
) -> list[onnx.NodeProto]:
    """Attention and a feed-forward part, each behind a normalisation and beside a shortcut."""

    def own(name: str) -> str:
        return f"{name}{n}"

    for k, name in enumerate(("q", "k", "v", "o")):
        weights[own(f"w_{name}")] = _weights(seed + k, width, width)
    weights[own("up")], weights[own("down")] = (
        _weights(seed + 4, width, 4 * width),
        _weights(seed + 5, 4 * width, width),
    )
    for name in ("norm_a", "norm_b"):
        weights[own(name)], weights[own(f"{name}_bias")] = np.ones(width, np.float32), np.zeros(width, np.float32)
    nodes = [
        helper.make_node("LayerNormalization", [source, own("norm_a"), own("norm_a_bias")], [own("normal")], axis=-1)
    ]
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes += [
            helper.make_node("MatMul", [own("normal"), own(f"w_{name}")], [own(f"{name}_flat")]),
            helper.make_node("Reshape", [own(f"{name}_flat"), "split"], [own(f"{name}_split")]),
            helper.make_node("Transpose", [own(f"{name}_split")], [own(name)], perm=order),
        ]
    return [
        *nodes,
        helper.make_node("MatMul", [own("q"), own("k")], [own("match")]),
        helper.make_node("Mul", [own("match"), "scale"], [own("scaled")]),
        helper.make_node("Softmax", [own("scaled")], [own("attention")], axis=-1),
        helper.make_node("MatMul", [own("attention"), own("v")], [own("seen")]),
        helper.make_node("Transpose", [own("seen")], [own("seen_rows")], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [own("seen_rows"), "join"], [own("joined")]),
        helper.make_node("MatMul", [own("joined"), own("w_o")], [own("mixed")]),
        helper.make_node("Add", [source, own("mixed")], [own("middle")]),
        helper.make_node(
            "LayerNormalization", [own("middle"), own("norm_b"), own("norm_b_bias")], [own("normal_b")], axis=-1
        ),
        helper.make_node("MatMul", [own("normal_b"), own("up")], [own("wide")]),
        helper.make_node("Relu", [own("wide")], [own("active")]),
        helper.make_node("MatMul", [own("active"), own("down")], [own("narrow")]),
        helper.make_node("Add", [own("middle"), own("narrow")], [target]),
    ]


def _model(
    name: str, nodes: Sequence[onnx.NodeProto], weights: Mapping[str, Array], row: tuple[int, ...], width: int
) -> Model:
    graph = helper.make_graph(
        list(nodes),
        name,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *row])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])],
        [numpy_helper.from_array(array, key) for key, array in weights.items()],
    )
    proto = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", _OPSET)])
    return Model(name, proto, row, width)


def _weights(seed: int, rows: int, columns: int) -> Array:
    weights: Array = np.random.default_rng(seed).standard_normal((rows, columns), np.float32) * np.float32(rows**-0.5)
    return weights


class Shelf:
    """An in-memory log with versions on it, and their golden examples as the CPU computes them."""

    def __init__(self, folder: Path) -> None:
        self.log = MemoryLog()
        for spec in TOPICS.specs(blob_partitions=1, replication_factor=1):
            self.log.create(spec)
        self._folder = folder
        self._writer: Any = self.log.writer()

    def put(self, version: int, model: Model) -> VersionRecord:
        """A version of the model, with its files on the log; vouched for, so that it is not tried in a child first."""
        folder = self._folder / f"source-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / GRAPH_PATH).write_bytes(model.proto.SerializeToString())
        inputs = model.batch(_EXAMPLES, seed=version)
        (y,) = runtime.open_session(folder / GRAPH_PATH, device="cpu").run(inputs)
        golden.write(folder / EXAMPLES_PATH, Examples(inputs, {"y": y}))
        files = tuple(self._send(model.name, folder / path, path) for path in (EXAMPLES_PATH, GRAPH_PATH))
        manifest = Manifest(
            repository=REPOSITORY,
            model=model.name,
            version=version,
            created_ms=version,
            created_by="benchmark",
            message="",
            files=files,
            chunk_bytes=_CHUNK_BYTES,
            signature=model.signature,
            ir_version=8,
            opsets={"": _OPSET},
            tolerance=TOLERANCE,
        )
        return VersionRecord(manifest, (), version, signers=("benchmark",))

    def _send(self, model: str, file: Path, path: str) -> FileEntry:
        data = file.read_bytes()
        entry = FileEntry(path, len(data), digest.of_bytes(data))
        home = blob_partition(model, entry.digest, 1)
        for index, chunk in enumerate(blobs.cut(file, _CHUNK_BYTES)):
            key = ChunkKey(model, entry.digest, _CHUNK_BYTES, index).encode()
            self._writer.send(TOPICS.blobs, key=key, value=chunk, partition=home)
        self._writer.flush(5)
        file.unlink()
        return entry
