"""A trial ends within its limits whatever the graph asks for, and says which limit it was."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelcast import golden
from modelcast.consumer.probe import Trial, TrialRunner
from modelcast.errors import SmokeRunError

MEMORY_BYTES = 256 << 20


@pytest.fixture(scope="module")
def runner() -> Iterator[TrialRunner]:
    with TrialRunner() as runner:
        yield runner


def write(path: Path, nodes: list[onnx.NodeProto], *initializers: TensorProto) -> Path:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], list(initializers))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    golden.write(path.with_name("examples.npz"), golden.Examples({"x": np.float32([1, -2])}, {}))
    return path


def trial(graph: Path, *, wall_s: float = 30.0) -> Trial:
    return Trial(graph, graph.with_name("examples.npz"), MEMORY_BYTES, wall_s)


def test_a_good_graph_says_what_it_took(runner: TrialRunner, tmp_path: Path) -> None:
    probe = runner.run(trial(write(tmp_path / "model.onnx", [helper.make_node("Abs", ["x"], ["y"])])))
    assert probe.load_ms > 0
    assert probe.run_ms > 0
    assert 10 << 20 < probe.peak_bytes < 1 << 30


def test_f19_an_allocation_bomb_meets_its_memory_limit(runner: TrialRunner, tmp_path: Path) -> None:
    shape = numpy_helper.from_array(np.array([1 << 30], np.int64), "shape")
    nodes = [helper.make_node("ConstantOfShape", ["shape"], ["z"]), helper.make_node("Add", ["x", "z"], ["y"])]
    graph = write(tmp_path / "model.onnx", nodes, shape)
    assert graph.stat().st_size < 200
    with pytest.raises(SmokeRunError, match="more than 256 MiB of memory"):
        runner.run(trial(graph))


def endless(path: Path) -> Path:
    boolean, number, real = TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Abs", ["v"], ["v2"])],
        "body",
        [value("i", number, []), value("c", boolean, []), value("v", real, [None])],
        [value("c2", boolean, []), value("v2", real, [None])],
    )
    forever = numpy_helper.from_array(np.array(1 << 60, np.int64), "n")
    true = numpy_helper.from_array(np.array(True), "t")
    return write(path, [helper.make_node("Loop", ["n", "t", "x"], ["y"], body=body)], forever, true)


def test_f19_a_loop_without_end_meets_its_time_limit(runner: TrialRunner, tmp_path: Path) -> None:
    graph = endless(tmp_path / "model.onnx")
    began = time.monotonic()
    with pytest.raises(SmokeRunError, match=r"took longer than 0\.5 s"):
        runner.run(trial(graph, wall_s=0.5))
    assert time.monotonic() - began < 60


def test_a_graph_that_fails_says_why(runner: TrialRunner, tmp_path: Path) -> None:
    broken = numpy_helper.from_array(np.ones(3, np.float32), "w")
    graph = write(tmp_path / "model.onnx", [helper.make_node("Add", ["x", "w"], ["y"])], broken)
    with pytest.raises(SmokeRunError, match="the model failed when it was tried"):
        runner.run(trial(graph))
    graph.write_bytes(b"no model")
    with pytest.raises(SmokeRunError, match=r"can't load model\.onnx"):
        runner.run(trial(graph))


def test_f20_a_crash_is_the_childs_only(tmp_path: Path) -> None:
    graph = endless(tmp_path / "model.onnx")
    with TrialRunner() as runner, ThreadPoolExecutor(1) as pool:
        runner.prepare()
        assert runner._child is not None
        pid = runner._child.pid
        outcome = pool.submit(runner.run, trial(graph))
        limits = Path(f"/proc/{pid}/limits")
        deadline = time.monotonic() + 60
        while not re.search(r"Max data size +\d", limits.read_text()) and time.monotonic() < deadline:
            time.sleep(0.005)  # until the trial has begun
        os.kill(pid, signal.SIGSEGV)
        with pytest.raises(SmokeRunError, match=r"crashed the process that tried it \(SIGSEGV"):
            outcome.result(60)


def test_a_waiting_child_ends_with_its_runner() -> None:
    runner = TrialRunner()
    runner.prepare()
    assert runner._child is not None
    pid = runner._child.pid
    runner.prepare()
    assert runner._child.pid == pid
    runner.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_the_child_gets_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_SASL_PASSWORD", "secret")
    with TrialRunner() as runner:
        runner.prepare()
        assert runner._child is not None
        assert b"secret" not in Path(f"/proc/{runner._child.pid}/environ").read_bytes()
