"""A model larger than protobuf can hold, published from its external data, pulled back, and never whole in memory."""

from __future__ import annotations

import hashlib
import json
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
from modelcast.publisher import ModelPublisher
from modelcast.registry.repository import init
from modelcast.testing.broker import local_broker

SIDE = 16_500  # two squares of float32 of 1.09 GB, in one file: the second begins before 2 GiB and ends behind it
SQUARE_BYTES = SIDE * SIDE * 4
PREFIX = "over-2-gb"
LONGEST_S = 280.0
# Blocks of files and chunks on their way, the converters' libraries: however large the model.
MEMORY_BYTES = 400_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Nine gigabytes in all, which pytest would keep for three runs."""
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def external(name: str, offset: int) -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[SIDE, SIDE], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "weights.bin"), ("offset", str(offset)), ("length", str(SQUARE_BYTES))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def write_model(folder: Path) -> list[str]:
    """`score = x @ stem @ one @ two @ head` with both squares in `weights.bin`; returns their digests."""
    rng, digests = np.random.default_rng(3), []
    with (folder / "weights.bin").open("wb") as file:
        for _ in range(2):
            hasher = hashlib.sha256()
            for start in range(0, SIDE, 500):
                block = (rng.random((min(500, SIDE - start), SIDE), np.float32) / SIDE).tobytes()
                hasher.update(block)
                file.write(block)
            digests.append(hasher.hexdigest())
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
            numpy_helper.from_array(rng.random((2, SIDE), np.float32), "stem"),
            external("one", 0),
            external("two", SQUARE_BYTES),
            numpy_helper.from_array(rng.random((SIDE, 1), np.float32) / SIDE, "head"),
        ],
    )
    onnx.save_model(
        helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)]), folder / "model.onnx"
    )
    return digests


def peak_bytes() -> int:
    """The most this process ever had in memory; 0 where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def publish(servers: str, source: str) -> None:
    """In a process of its own, for its memory; prints what it did as JSON."""
    before, steps = peak_bytes(), {"start": time.monotonic()}
    with ModelPublisher(servers, prefix=PREFIX) as publisher:
        published = publisher.publish(
            "large",
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
        "outputs": [output.name for output in published.manifest.signature.outputs],
        "prepare_s": steps["upload"] - steps["start"],
        "upload_s": time.monotonic() - steps["upload"],
        "memory_bytes": peak_bytes() - before,
    }
    print(json.dumps(figures))


def test_a_model_of_more_than_2_gb_is_published_and_pulled_back_in_bounded_memory(folder: Path) -> None:
    source = folder / "source"
    source.mkdir()
    digests = write_model(source)
    assert (source / "weights.bin").stat().st_size > (1 << 31)
    with local_broker(folder / "broker") as broker:
        connection = Connection.resolve(broker.bootstrap_servers, prefix=PREFIX)
        with connection.open_log() as log:
            init(log, connection.topics)
        published = json.loads(
            run("-m", "tests.large.test_models_over_2_gb", broker.bootstrap_servers, str(source / "model.onnx"))
        )
        started = time.monotonic()
        run(
            "-m",
            "modelcast",
            "pull",
            "large",
            "-o",
            str(folder / "out"),
            "-b",
            broker.bootstrap_servers,
            "--prefix",
            PREFIX,
        )
        pull_s = time.monotonic() - started
    print(
        f"prepared in {published['prepare_s']:.1f} s, {published['bytes_sent'] / 1e6:.0f} MB sent in "
        f"{published['upload_s']:.1f} s, pulled and verified in {pull_s:.1f} s; the publisher's memory grew by "
        f"{published['memory_bytes'] / 1e6:.0f} MB"
    )
    assert published["bytes_sent"] == published["bytes_total"] > 2 * SQUARE_BYTES
    assert published["outputs"] == ["risk"]
    assert published["memory_bytes"] < MEMORY_BYTES
    pulled = {path.name: path for path in (folder / "out").rglob("*") if path.is_file()}
    for digest in digests:
        with pulled[digest].open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == digest


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


if __name__ == "__main__":
    publish(*sys.argv[1:])
