"""What tests of publishing share: a repository on a real broker, models of a wanted size, and looks at the topics."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelcast.cli import main
from modelcast.log import BEGINNING, Log
from modelcast.registry.image import RegistryImage
from modelcast.registry.reader import RegistryReader
from modelcast.scan import scan
from modelcast.topics import Topics

# Longer than any command here takes; a command that hangs fails its test instead of the session.
TIMEOUT_S = 180
# A transaction of a dead publisher ends after its timeout of 10 s and the broker's sweep of up to 10 s.
SETTLED_S = 90.0

FIELDS = ("amount", "age")
ROWS = "amount,age\n1,2\n3,4\n5,6\n"


def wide_model(width: int, *, bias: float = 0.0, seed: int = 1) -> onnx.ModelProto:
    """`score = mean(x @ w) + bias` with x [N, 2] and w [2, width]: a real model of about `8 * width` bytes."""
    weights = np.random.default_rng(seed).random((2, width), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"]),
            helper.make_node("ReduceMean", ["product", "axis"], ["mean"], keepdims=0),
            helper.make_node("Add", ["mean", "bias"], ["score"]),
        ],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.array([1], np.int64), "axis"),
            numpy_helper.from_array(np.array(bias, np.float32), "bias"),
        ],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def image(log: Log, topics: Topics) -> RegistryImage:
    """What a reader of committed records sees, once it has read to the true end."""
    with closing(RegistryReader(log, topics)) as reader:
        return reader.catch_up(SETTLED_S)


def stable_s(log: Log, topic: str) -> float:
    """Waits until no transaction is open on `topic`; how long that took."""
    started = time.monotonic()
    while log.end_offsets(topic, committed=True) != log.end_offsets(topic, committed=False):
        assert time.monotonic() - started < SETTLED_S, f"a transaction on {topic} stays open"
        time.sleep(0.005)
    return time.monotonic() - started


def chunks(log: Log, topics: Topics) -> dict[bytes, int]:
    """Every chunk on the blobs topic: key -> how many times it was written."""
    ends = log.end_offsets(topics.blobs, committed=False)
    found: dict[bytes, int] = {}
    for record in scan(log, topics.blobs, dict.fromkeys(ends, BEGINNING), ends, timeout_s=60, committed=False):
        assert record.key is not None
        assert record.value
        found[record.key] = found.get(record.key, 0) + 1
    return found


@dataclass(frozen=True)
class Content:
    """What a repository holds for a reader: keys of its registry and chunks, without markers."""

    registry: Mapping[bytes, bytes | None]
    chunks: Mapping[bytes, int]

    @classmethod
    def of(cls, log: Log, topics: Topics) -> Content:
        stable_s(log, topics.registry)
        ends = log.end_offsets(topics.registry, committed=False)
        records = scan(log, topics.registry, dict.fromkeys(ends, BEGINNING), ends, timeout_s=SETTLED_S)
        return cls({record.key or b"": record.value for record in records}, chunks(log, topics))


@dataclass(frozen=True)
class Shell:
    """Runs modelcast against one broker and one repository."""

    servers: str
    prefix: str

    def line(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "modelcast", *arguments, "-b", self.servers, "--prefix", self.prefix]

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """As people run it: a process."""
        return subprocess.run(
            self.line(*arguments), capture_output=True, text=True, timeout=TIMEOUT_S, check=False, encoding="utf-8"
        )

    def call(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error; in this process, because there are many ways to fail."""
        out, err, argv = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = self.line(*arguments)[2:]
        try:
            with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
                main()
        finally:
            sys.argv = argv
        return int(left.value.code or 0), out.getvalue(), err.getvalue()

    def says(self, *arguments: str) -> str:
        """What a command that succeeds prints for people, on both streams."""
        status, out, err = self.call(*arguments)
        assert status == 0, err
        return out + err

    def json(self, *arguments: str) -> dict[str, Any]:
        """The one JSON object a command that succeeds prints."""
        status, out, err = self.call(*arguments, "--json")
        assert status == 0, err
        assert out.count("\n") == 1, out
        value = json.loads(out, parse_constant=pytest.fail)
        assert isinstance(value, dict)
        return value

    def fails(self, *arguments: str, status: int) -> str:
        """The one message of a command that must fail with `status`, and with nothing on standard output."""
        left, out, err = self.call(*arguments)
        assert left == status, err
        assert out == ""
        assert "Traceback" not in err
        assert "internal error" not in err
        assert err.count("error:") == 1, err
        assert err.count("→") == 1, err  # what to do
        return err


def write_model(path: Path, width: int = 4, *, bias: float = 0.0) -> str:
    path.write_bytes(wide_model(width, bias=bias).SerializeToString())
    return str(path)


def write_rows(path: Path, text: str = ROWS) -> str:
    path.write_text(text)
    return str(path)
