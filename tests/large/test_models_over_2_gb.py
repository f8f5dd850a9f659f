"""A model of 5 GB: published from its external data, pulled, loaded and scored, in memory that is said beforehand.

`MODELCAST_LARGE_GB=2.5` makes it smaller; above 2 GiB it is larger than protobuf can hold in any case.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE
from modelcast.log import TopicSpec
from modelcast.publisher import ModelPublisher
from modelcast.testing import Repository
from modelcast.testing.broker import local_broker
from modelcast.topics import KEEP_FOR_EVER

from .processes import Memory, Program, memory_of

GIGABYTES = float(os.environ.get("MODELCAST_LARGE_GB", "5"))
# Two squares of float32 in one file: each is larger than what a signed 32-bit number of bytes reaches, or the second
# begins before that and ends behind it.
SIDE = math.isqrt(int(GIGABYTES * 1e9 / 8))
SQUARE_BYTES = SIDE * SIDE * 4
BLOCK_ROWS = 500
SEED = 3
THIS = "tests.large.test_models_over_2_gb"
MODEL, EVENTS, PREDICTIONS = "large", "events", "predictions"
PREFIX = "over-2-gb"
# Each step, on a machine that has other things to do: reading and writing this many bytes several times.
LONGEST_S = 900.0
EVENTS_SENT = 64
# Blocks of files and chunks on their way, the converters' libraries: however large the model.
PUBLISHER_BYTES = 400_000_000
# What a fetch holds of chunks, and the client ahead of it.
PULL_BYTES = 400_000_000
# Interpreter, runtime, client and what a stream may hold: all that is not the model, whose weights are shared.
SCORER_BYTES = 1_000_000_000
# Float32 sums of this many products, in another order.
TOLERANCE = 1e-3


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Five times the model in all, which pytest would keep for three runs."""
    free = shutil.disk_usage(tmp_path).free
    if free < 6 * GIGABYTES * 1e9:
        pytest.skip(f"needs {6 * GIGABYTES:.0f} GB of disk, and {free / 1e9:.0f} GB are free (MODELCAST_LARGE_GB)")
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def external(name: str, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[SIDE, SIDE], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(SQUARE_BYTES))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def ends() -> tuple[np.ndarray, np.ndarray]:
    """`stem` and `head`."""
    rng = np.random.default_rng(SEED + 1)
    return rng.random((2, SIDE), np.float32), rng.random((SIDE, 1), np.float32) / SIDE


def write_model(folder: Path) -> list[str]:
    """`score = x @ stem @ one @ two @ head` with both squares in `weights.bin`; returns their digests."""
    rng, digests = np.random.default_rng(SEED), []
    with (folder / "weights.bin").open("wb") as file:
        for _ in range(2):
            hasher = hashlib.sha256()
            for start in range(0, SIDE, BLOCK_ROWS):
                block = (rng.random((min(BLOCK_ROWS, SIDE - start), SIDE), np.float32) / SIDE).tobytes()
                hasher.update(block)
                file.write(block)
            digests.append(hasher.hexdigest())
    stem, head = ends()
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "stem"], ["a"]),
            helper.make_node("MatMul", ["a", "one"], ["b"]),
            helper.make_node("MatMul", ["b", "two"], ["c"]),
            helper.make_node("MatMul", ["c", "head"], ["score"]),
        ],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])],
        [
            numpy_helper.from_array(stem, "stem"),
            external("one", 0),
            external("two", SQUARE_BYTES),
            numpy_helper.from_array(head, "head"),
        ],
    )
    onnx.save_model(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), folder / "model.onnx"
    )
    return digests


def scores(weights: Path, rows: np.ndarray) -> np.ndarray:
    """What the model makes of `rows` [N, 2], by numpy: [N]; a block of the weights in memory at a time."""
    stem, head = ends()
    squares = np.memmap(weights, np.float32, "r", shape=(2, SIDE, SIDE))
    known = rows.astype(np.float32) @ stem
    for square in squares:
        known = sum(
            known[:, start : start + BLOCK_ROWS] @ square[start : start + BLOCK_ROWS]
            for start in range(0, SIDE, BLOCK_ROWS)
        )
    return (known @ head)[:, 0]


def publish(servers: str, source: str) -> None:
    """In a process of its own, for its memory; prints what it did as JSON."""
    before, steps = memory_of(os.getpid()).resident, {"start": time.monotonic()}
    with ModelPublisher(servers, prefix=PREFIX) as publisher:
        published = publisher.publish(
            MODEL,
            source,
            examples=[{"amount": 1.0, "age": 2.0}, {"amount": 3.0, "age": 4.0}],
            fields=("amount", "age"),
            rename={"score": "risk"},
            release=True,
            on_step=lambda step: steps.update({step: time.monotonic()}),
        )
    figures = {
        "bytes_total": published.bytes_total,
        "bytes_sent": published.bytes_sent,
        "chunks": sum(-(-entry.size // published.manifest.chunk_bytes) for entry in published.manifest.files),
        "outputs": [output.name for output in published.manifest.signature.outputs],
        "prepare_s": steps["upload"] - steps["start"],
        "upload_s": time.monotonic() - steps["upload"],
        "memory_bytes": memory_of(os.getpid()).resident - before,
    }
    print(json.dumps(figures))


def predict(servers: str) -> None:
    """An application, with weights that the runtime repacks; prints what it took as JSON."""
    from modelcast.consumer import ModelClient

    began = time.monotonic()
    with ModelClient(servers, prefix=PREFIX, models=[MODEL], device="cpu", timeout_s=LONGEST_S) as client:
        client.wait_live([MODEL], LONGEST_S)
        live_s, began = time.monotonic() - began, time.monotonic()
        risk = client[MODEL].predict({"amount": [1.0, 3.0], "age": [2.0, 4.0]})["risk"]
        print(json.dumps({"live_s": live_s, "predict_s": time.monotonic() - began, "risk": np.ravel(risk).tolist()}))


@pytest.mark.timeout(6 * LONGEST_S)
def test_a_model_of_5_gb_is_published_pulled_loaded_and_scored_in_bounded_memory(folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    with local_broker(folder / "broker") as broker:
        digests = write_model(source)  # only now: a broker that starts waits for its disk, which this keeps busy
        servers = broker.bootstrap_servers
        repository = Repository.on(servers, prefix=PREFIX)
        published, _ = run("publisher", folder, "-m", THIS, "publish", servers, str(source / "model.onnx"))
        made = json.loads(published.splitlines()[-1])
        print(
            f"\n{made['bytes_total'] / 1e9:.2f} GB in {made['chunks']} chunks: prepared in {made['prepare_s']:.1f} s, "
            f"sent in {made['upload_s']:.1f} s; the publisher's memory grew by {made['memory_bytes'] / 1e6:.0f} MB"
        )
        assert made["bytes_sent"] == made["bytes_total"] > 2 * SQUARE_BYTES
        assert made["outputs"] == ["risk"]
        assert made["memory_bytes"] < PUBLISHER_BYTES

        began = time.monotonic()
        at = ("-b", servers, "--prefix", PREFIX)
        _, pulled = run("pull", folder, "-m", "modelcast", "pull", MODEL, "-o", str(folder / "out"), *at)
        print(f"pulled and verified in {time.monotonic() - began:.1f} s: {pulled}")
        assert pulled.own < PULL_BYTES
        check_files(folder / "out", digests)
        shutil.rmtree(folder / "out")

        told, client = run("client", folder, "-m", THIS, "predict", servers)
        seen = json.loads(told.splitlines()[-1])
        print(f"live in a ModelClient after {seen['live_s']:.1f} s, two rows in {seen['predict_s']:.2f} s: {client}")
        expected = scores(source / "weights.bin", np.array([[1, 2], [3, 4]]))
        np.testing.assert_allclose(seen["risk"], expected, rtol=TOLERANCE)
        # Mapped from the cache, and a copy that the runtime made for the processor.
        assert client.own < GIGABYTES * 1e9 * 1.1 + SCORER_BYTES

        took_s, scorer = score(repository, servers, folder, source / "weights.bin")
        print(f"{EVENTS_SENT} events scored {took_s:.1f} s after the scorer's start, weights shared: {scorer}")
        assert scorer.own < SCORER_BYTES


def score(repository: Repository, servers: str, folder: Path, weights: Path) -> tuple[float, Memory]:
    """Events through `modelcast score`, compared with numpy; seconds and memory."""
    rows = np.random.default_rng(SEED).random((EVENTS_SENT, 2))
    with repository.open_log() as log:
        log.create(TopicSpec(EVENTS, 2, configs=KEEP_FOR_EVER))
    repository.send(EVENTS, [{"amount": amount, "age": age} for amount, age in rows.tolist()])
    began = time.monotonic()
    to = ("--events", EVENTS, "--predictions", PREDICTIONS, "--weights", "shared", "--until-end")
    _, memory = run("scorer", folder, "-m", "modelcast", "score", MODEL, *to, "-b", servers, "--prefix", PREFIX)
    took_s = time.monotonic() - began
    with repository.open_log() as log, closing(log.reader(EVENTS, {0: 0, 1: 0})) as reader:
        expected = {}
        while len(expected) < EVENTS_SENT:
            for record in reader.poll(1.0):
                value = json.loads(record.value or b"")
                expected[record.partition, record.offset] = (value["amount"], value["age"])
    scored = {
        (event.value["source"]["partition"], event.value["source"]["offset"]): event.value["risk"]
        for event in repository.read(PREDICTIONS)
    }
    assert scored.keys() == expected.keys()
    known = scores(weights, np.array([expected[place] for place in sorted(expected)]))
    np.testing.assert_allclose([scored[place] for place in sorted(scored)], known, rtol=TOLERANCE)
    return took_s, memory


def check_files(folder: Path, digests: list[str]) -> None:
    pulled = {path.name: path for path in folder.rglob("*") if path.is_file()}
    for digest in digests:
        with pulled[digest].open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest


def run(name: str, folder: Path, *arguments: str) -> tuple[str, Memory]:
    environment = {**os.environ, CACHE_VARIABLE: str(folder / "cache"), STATE_VARIABLE: str(folder / "state")}
    with Program(*arguments, output=folder / f"{name}.log", environment=environment) as program:
        return program.wait(LONGEST_S), program.memory


if __name__ == "__main__":
    {"publish": publish, "predict": predict}[sys.argv[1]](*sys.argv[2:])
