"""A model of 400 MB through a broker with default limits: published, live, and only what changed travels again."""

from __future__ import annotations

import json
import queue
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelcast.config import Connection
from modelcast.consumer import ModelClient
from modelcast.publisher import ModelPublisher
from modelcast.registry.repository import init
from tests.brokers import Broker, running_broker

SIDE = 10_000  # a square of float32 of 400 MB
BACKBONE_BYTES = SIDE * SIDE * 4
EXAMPLES = [{"amount": 1.0, "age": 2.0}, {"amount": 3.0, "age": 4.0}]
LONGEST_S = 240.0
PREFIX = "large"
# The weights of the head, and of the stem beside it in the graph.
MOST_HEAD_BYTES = 500_000
# Chunks on their way, a block of a file, the converters' libraries: however large the model.
PUBLISHER_MEMORY_BYTES = 300_000_000
# Two versions mapped at once while they are swapped, and what the runtime makes of one.
CLIENT_MEMORY_BYTES = 4 * BACKBONE_BYTES


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Gigabytes in all, which pytest would keep for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def large_broker(folder: Path) -> Iterator[Broker]:
    """The model's chunks go with it."""
    with running_broker(folder / "broker") as running:
        yield running


def backbone(folder: Path) -> None:
    """400 MB of weights in a file of their own; written in pieces."""
    rng = np.random.default_rng(3)
    with (folder / "backbone.bin").open("wb") as file:
        for _ in range(0, SIDE, 1_000):
            file.write((rng.random((1_000, SIDE), np.float32) / SIDE).tobytes())


def model_with_head(folder: Path, seed: int) -> Path:
    """`score = head(backbone(stem(x)))`, with the weights beside it."""
    rng = np.random.default_rng(1)
    stem = rng.random((2, SIDE), np.float32)
    head = np.random.default_rng(seed).random((SIDE, 1), np.float32) / SIDE
    weights = TensorProto(
        name="backbone", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE], data_location=TensorProto.EXTERNAL
    )
    weights.external_data.add(key="location", value="backbone.bin")
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "stem"], ["a"]),
            helper.make_node("MatMul", ["a", "backbone"], ["b"]),
            helper.make_node("MatMul", ["b", "head"], ["score"]),
        ],
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N", 1])],
        [numpy_helper.from_array(stem, "stem"), weights, numpy_helper.from_array(head, "head")],
    )
    path = folder / f"head-{seed}.onnx"
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save_model(model, path)
    return path


def peak_bytes() -> int:
    """The most this process ever had in memory, mapped files included; 0 where the system does not say.

    Not `ru_maxrss`, which begins with what the parent had.
    """
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def publish(servers: str, source: str) -> None:
    """The training side, in a process of its own; prints what it did as JSON."""
    before = peak_bytes()
    steps: dict[str, float] = {}
    with ModelPublisher(servers, prefix=PREFIX) as publisher:
        started = time.time()
        published = publisher.publish(
            "large",
            source,
            examples=EXAMPLES,
            fields=("amount", "age"),
            release=True,
            on_step=lambda step: steps.update({step: time.time()}),
        )
        ended = time.time()
    figures = {
        "version": published.manifest.version,
        "bytes_total": published.bytes_total,
        "bytes_sent": published.bytes_sent,
        "prepare_s": steps["upload"] - started,
        "upload_s": ended - steps["upload"],
        "ended": ended,
        "memory_bytes": peak_bytes() - before,
    }
    print(json.dumps(figures))


def serve(servers: str, folder: str) -> None:
    """The application side; prints the time at which each version went live."""
    before = peak_bytes()
    live: queue.Queue[tuple[float, int]] = queue.Queue()
    with ModelClient(
        servers, prefix=PREFIX, cache_dir=Path(folder, "cache"), state_dir=Path(folder, "state"), device="cpu"
    ) as models:
        model = models.model("large")
        model.on_swap(lambda swap: live.put((time.time(), swap.new.version)))
        print("ready", flush=True)
        for version in (1, 2):
            at, went_live = live.get(timeout=LONGEST_S)
            assert went_live == version
            assert model.predict({"amount": [1.0], "age": [2.0]}).version == version
            print(json.dumps({"at": at, "memory_bytes": peak_bytes() - before}), flush=True)


def role(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.broker.test_publish_large", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.timeout(4 * LONGEST_S)
def test_a_model_of_400_mb_goes_live_with_default_limits_and_a_new_head_travels_alone(
    large_broker: Broker, folder: Path
) -> None:
    servers = large_broker.bootstrap_servers
    connection = Connection.resolve(servers, prefix=PREFIX)
    with connection.open_log() as log:
        init(log, connection.topics)
    source = folder / "source"
    source.mkdir()
    backbone(source)
    client = role("serve", servers, str(folder))
    assert client.stdout is not None
    try:
        assert client.stdout.readline() == "ready\n"
        for version in (1, 2):
            publisher = role("publish", servers, str(model_with_head(source, version)))
            out, _ = publisher.communicate(timeout=2 * LONGEST_S)
            assert publisher.returncode == 0
            published = json.loads(out)
            live = json.loads(client.stdout.readline() or pytest.fail("the client ended"))
            sent, total = published["bytes_sent"], published["bytes_total"]
            print(
                f"version {version}: prepared in {published['prepare_s']:.1f} s, {sent / 1e6:.2f} of {total / 1e6:.1f} "
                f"MB sent and committed in {published['upload_s']:.2f} s ({sent / 1e6 / published['upload_s']:.0f} "
                f"MB/s), live {live['at'] - published['ended']:.2f} s after; memory: publisher "
                f"{published['memory_bytes'] / 1e6:.0f} MB, client {live['memory_bytes'] / 1e6:.0f} MB"
            )
            assert published["version"] == version
            assert total > BACKBONE_BYTES
            assert sent == total if version == 1 else 0 < sent < MOST_HEAD_BYTES
            assert published["memory_bytes"] < PUBLISHER_MEMORY_BYTES
            assert live["memory_bytes"] < CLIENT_MEMORY_BYTES
        assert client.wait(LONGEST_S) == 0
    finally:
        client.kill()
        client.wait()
        client.stdout.close()


if __name__ == "__main__":
    {"publish": publish, "serve": serve}[sys.argv[1]](*sys.argv[2:])
