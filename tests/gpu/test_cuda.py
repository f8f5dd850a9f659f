"""On a CUDA device: the same scores as on the CPU, as much memory after as before, the old version where it is full.

Floats are compared as these models' golden examples are; sizes of memory are the driver's, of the whole device.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from benchmarks.gpu_models import TOLERANCE, TOPICS, Model, Shelf, mlp, transformer
from modelcast import golden, runtime
from modelcast.consumer.lifecycle import LOAD_STEPS, State
from modelcast.consumer.loader import Loader
from modelcast.consumer.servable import Servable
from modelcast.consumer.slot import Slot
from modelcast.errors import OutOfMemoryError, UsageError
from modelcast.records import Tolerance
from modelcast.runtime.iobinding import BUCKETS

if TYPE_CHECKING:
    from tests.gpu.conftest import Gpu

# What the driver hands out at once, some times over: less is no trace of anything.
GRAIN_BYTES = 16 << 20
# A model large enough that each copy left behind shows: 16 M floats a layer.
LARGE = {"hidden": 4096, "layers": 4}
LARGE_BYTES = 3 * 4096 * 4096 * 4


def reference(model: Model, folder: Path) -> runtime.Session:
    """The same graph on the CPU."""
    path = folder / f"{model.name}.onnx"
    path.write_bytes(model.proto.SerializeToString())
    return runtime.open_session(path, device="cpu", threads=0)


def assert_scores(servable: Servable, cpu: runtime.Session, model: Model, rows: int, seed: int = 0) -> None:
    feeds = model.batch(rows, seed)
    golden.check({"y": cpu.run(feeds)[0]}, servable.run_feeds(feeds), TOLERANCE)


def test_auto_takes_the_device(gpu: Gpu, shelf: Shelf, tmp_path: Path) -> None:
    model = mlp(hidden=64)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.proto.SerializeToString())
    session = runtime.open_session(path, device="auto")
    assert session.device == gpu.name
    assert session.buckets == BUCKETS


def test_a_device_that_is_not_there_is_refused(gpu: Gpu) -> None:
    with pytest.raises(UsageError, match="there is no CUDA device 99"):
        runtime.check_device("cuda:99")


@pytest.mark.parametrize("make", [mlp, transformer])
def test_a_version_scores_on_the_device_what_it_scores_on_the_cpu(
    make: Callable[[], Model], gpu: Gpu, shelf: Shelf, loader: Loader, tmp_path: Path
) -> None:
    model, states = make(), list[State]()
    servable = loader.load(shelf.put(1, model), None, states.append)
    assert servable.device == gpu.name
    assert tuple(states) == LOAD_STEPS
    cpu = reference(model, tmp_path)
    for rows in (1, 2, 3, 64, 200, 300, 1000):
        assert_scores(servable, cpu, model, rows, seed=rows)
    servable.close()


def test_threads_share_a_session(gpu: Gpu, shelf: Shelf, loader: Loader, tmp_path: Path) -> None:
    model = mlp()
    servable, cpu = loader.load(shelf.put(1, model), None), reference(model, tmp_path)
    batches = [model.batch(rows, rows) for rows in (1, 7, 64, 100, 256, 33, 512, 5)]
    want = [cpu.run(feeds)[0] for feeds in batches]

    def score(number: int) -> None:
        for _ in range(20):
            golden.check({"y": want[number]}, servable.run_feeds(batches[number]), TOLERANCE)

    with ThreadPoolExecutor(len(batches)) as pool:
        for done in [pool.submit(score, number) for number in range(len(batches))]:
            done.result(120)
    servable.close()


def test_scoring_takes_no_more_memory_once_it_is_warm(gpu: Gpu, shelf: Shelf, loader: Loader) -> None:
    model = mlp()
    servable = loader.load(shelf.put(1, model), None)
    sizes = [*servable.buckets, 3, 100, 1000, 3000]
    for rows in sizes:
        servable.run_feeds(model.batch(rows))
    taken = gpu.taken_bytes
    for _ in range(20):
        for rows in sizes:
            servable.run_feeds(model.batch(rows))
    assert gpu.taken_bytes - taken <= GRAIN_BYTES
    servable.close()


def test_memory_is_back_after_each_unload(gpu: Gpu, shelf: Shelf, loader: Loader) -> None:
    records = [shelf.put(number, mlp(number, **LARGE)) for number in (1, 2)]
    loader.load(records[0], None).close()  # CUDA's context, the libraries' kernels and the pool of buffers stay
    start = gpu.taken_bytes
    for number in range(6):
        servable = loader.load(records[number % 2], None)
        assert gpu.taken_bytes - start >= LARGE_BYTES
        servable.close()
        assert abs(gpu.taken_bytes - start) <= max(0.01 * start, GRAIN_BYTES)


def test_f24_a_version_that_does_not_fit_leaves_the_old_one_scoring(
    gpu: Gpu, shelf: Shelf, loader: Loader, tmp_path: Path
) -> None:
    small, large = mlp(1), mlp(2, **LARGE)
    slot, cpu = Slot("mlp", keep=0), reference(small, tmp_path)
    slot.swap(loader.load(shelf.put(1, small), None))
    record = shelf.put(2, large)
    with gpu.filled(leave_bytes=LARGE_BYTES // 4):
        taken = gpu.taken_bytes
        with pytest.raises(OutOfMemoryError) as refused:
            loader.load(record, None)
        assert (refused.value.reason, refused.value.retriable) == ("out-of-memory", True)
        assert gpu.taken_bytes - taken <= LARGE_BYTES // 4
        with slot.lease() as servable:
            assert_scores(servable, cpu, small, 64)
    slot.swap(loader.load(record, None))  # there is room again
    assert slot.reap() == 1
    with slot.lease() as servable:
        assert_scores(servable, reference(large, tmp_path), large, 64)
    slot.clear()
    slot.reap()


def test_tensorrt_builds_an_engine_for_each_content(gpu: Gpu, shelf: Shelf, tmp_path: Path) -> None:
    try:
        runtime.check_device(gpu.name, tensorrt=True)
    except UsageError as error:
        pytest.skip(str(error))
    loose = Tolerance(relative=1e-2, absolute=1e-2)  # TensorRT rounds to TF32
    cache = tmp_path / "cache"
    with Loader(
        shelf.log, TOPICS, cache_dir=cache, state_dir=tmp_path, device=gpu.name, probe=False, tensorrt=True
    ) as loader:
        for number in (1, 2):  # of one structure: had they one engine, the second would score as the first
            model = mlp(number, hidden=64)
            record = shelf.put(number, model)
            servable = loader.load(replace(record, manifest=replace(record.manifest, tolerance=loose)), None)
            feeds = model.batch(300)
            want = reference(model, tmp_path).run(feeds)[0]
            golden.check({"y": want}, servable.run_feeds(feeds), loose)
            servable.close()
    contents = list((cache / "tensorrt").iterdir())
    assert len(contents) == 2
    assert all(any(file.is_file() for file in content.rglob("*")) for content in contents)
