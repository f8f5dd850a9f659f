"""The smoke run: a real child process tries the graph; whatever it does, the parent gets an answer."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from modelcast.errors import SmokeRunError
from modelcast.publisher import smoke
from modelcast.publisher.smoke import SmokeLimits


def save(
    folder: Path, nodes: list[onnx.NodeProto], initializers: dict[str, np.ndarray], out_shape: list[object]
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def bomb(folder: Path, elements: int) -> Path:
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["zero"], keepdims=0),
        helper.make_node("Add", ["x", "zero"], ["y"]),
    ]
    return save(folder, nodes, {"size": np.array([elements])}, [None, 2])


def endless(folder: Path) -> Path:
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["c2"]), helper.make_node("Sin", ["v"], ["v2"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [None, 2]),
        ],
        [
            helper.make_tensor_value_info("c2", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v2", TensorProto.FLOAT, [None, 2]),
        ],
    )
    nodes = [helper.make_node("Loop", ["n", "go", "x"], ["y"], body=body)]
    return save(folder, nodes, {"n": np.array(2**62), "go": np.array(True)}, [None, 2])


X = np.float32([[1, 2], [3, 4], [5, 6]])


def test_outputs_and_probe_come_back(tmp_path: Path) -> None:
    path = save(tmp_path, [helper.make_node("Add", ["x", "one"], ["y"])], {"one": np.float32([1])}, [None, 2])
    result = smoke.run(path, {"x": X}, SmokeLimits())
    np.testing.assert_array_equal(result.outputs["y"], X + 1)
    assert result.probe.load_ms > 0
    assert result.probe.run_ms > 0
    assert 10 << 20 < result.probe.peak_bytes < 1 << 30


def test_more_rows_than_a_batch_come_back_whole_and_in_order(tmp_path: Path) -> None:
    path = save(tmp_path, [helper.make_node("Neg", ["x"], ["y"])], {}, [None, 2])
    x = np.arange(5000, dtype=np.float32).reshape(2500, 2)
    np.testing.assert_array_equal(smoke.run(path, {"x": x}, SmokeLimits()).outputs["y"], -x)


def test_a_few_bytes_that_ask_for_4_gib_end_at_the_memory_limit(tmp_path: Path) -> None:
    path = bomb(tmp_path, 1 << 30)
    assert path.stat().st_size < 300
    with pytest.raises(SmokeRunError, match="memory limit of 2048 MiB"):
        smoke.run(path, {"x": X}, SmokeLimits())


def test_the_memory_limit_is_the_callers(tmp_path: Path) -> None:
    path = bomb(tmp_path, 50 << 20)  # 200 MiB
    assert smoke.run(path, {"x": X}, SmokeLimits()).outputs["y"].shape == (3, 2)
    with pytest.raises(SmokeRunError, match="memory limit of 100 MiB"):
        smoke.run(path, {"x": X}, SmokeLimits(memory_bytes=100 << 20))


def test_a_loop_without_end_ends_at_the_cpu_limit(tmp_path: Path) -> None:
    with pytest.raises(SmokeRunError, match="CPU limit of 1 s"):
        smoke.run(endless(tmp_path), {"x": X}, SmokeLimits(cpu_s=1, wall_s=600))


def test_the_wall_clock_ends_it_too(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SmokeRunError, match=r"time limit of 1\.5 s"):
        smoke.run(endless(tmp_path), {"x": X}, SmokeLimits(wall_s=1.5))
    assert time.monotonic() - started < 60


def test_limits_grow_with_the_model() -> None:
    assert SmokeLimits().scaled(0) == SmokeLimits()
    assert SmokeLimits().scaled(1 << 30).memory_bytes == SmokeLimits().memory_bytes + (3 << 30)
    assert SmokeLimits().scaled(1 << 30).wall_s > SmokeLimits().wall_s


def test_a_graph_the_runtime_cannot_load_says_why(tmp_path: Path) -> None:
    path = save(tmp_path, [helper.make_node("Add", ["x", "nowhere"], ["y"])], {}, [None, 2])
    with pytest.raises(SmokeRunError, match="can't load"):
        smoke.run(path, {"x": X}, SmokeLimits())


def test_a_graph_that_fails_on_the_examples_says_why(tmp_path: Path) -> None:
    path = save(tmp_path, [helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": np.array([7, 11])}, [None, 2])
    with pytest.raises(SmokeRunError, match="failed on its input"):
        smoke.run(path, {"x": X}, SmokeLimits())


@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_batch_size_hidden_in_the_graph_is_found(tmp_path: Path, rows: int) -> None:
    path = save(tmp_path, [helper.make_node("Reshape", ["x", "s"], ["y"])], {"s": np.array([rows, 2])}, [None, 2])
    with pytest.raises(SmokeRunError):
        smoke.run(path, {"x": X[:rows]}, SmokeLimits())


def test_an_output_without_a_batch_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)], {}, [])
    with pytest.raises(SmokeRunError, match="first dimension must be the batch"):
        smoke.run(path, {"x": X}, SmokeLimits())


def test_a_prediction_that_depends_on_its_neighbours_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["x", "m"], ["y"]),
    ]
    with pytest.raises(SmokeRunError, match="depends on the rows beside it"):
        smoke.run(save(tmp_path, nodes, {}, [None, 2]), {"x": X}, SmokeLimits())


def test_a_crash_of_the_runtime_is_told_with_its_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    path = save(tmp_path, [helper.make_node("Neg", ["x"], ["y"])], {}, [None, 2])
    monkeypatch.syspath_prepend(str(tmp_path))  # the parent has its runtime already; the child imports this one
    with pytest.raises(SmokeRunError, match=r"crashed the runtime in the smoke run \(SIGSEGV\)"):
        smoke.run(path, {"x": X}, SmokeLimits())


def test_ctrl_c_ends_the_child(tmp_path: Path) -> None:
    endless(tmp_path)
    script = (
        "import sys, numpy as np\nfrom pathlib import Path\nfrom modelcast.publisher import smoke\n"
        "print('ready', flush=True)\n"
        f"graph = Path({str(tmp_path / 'model.onnx')!r})\n"
        "smoke.run(graph, {'x': np.ones((2, 2), np.float32)}, smoke.SmokeLimits())\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(entry or ".").resolve()) for entry in sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
        child = wait_for(lambda: children.read_text().split())[0]
        # The child limits itself once it runs: the parent waits for it by then, and is no longer about to start it.
        wait_for(lambda: re.search(r"Max cpu time +\d", Path(f"/proc/{child}/limits").read_text()))
        parent.send_signal(signal.SIGINT)
        assert parent.wait(60) != 0
    assert not Path(f"/proc/{child}").exists()


def wait_for(condition: object, seconds: float = 60) -> object:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():  # type: ignore[operator]
            return found
        time.sleep(0.01)
    raise AssertionError("did not happen in time")
