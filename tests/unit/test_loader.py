"""A version becomes a servable by steps; each refuses by name what it is there for, and leaves nothing behind."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper

from modelcast import blobs, digest
from modelcast.consumer.binding import EventFields
from modelcast.consumer.lifecycle import LOAD_STEPS, State
from modelcast.consumer.loader import TENSORRT_VARIABLE, TF32_VARIABLE, Loader, Steps
from modelcast.errors import (
    BindingError,
    ConfigError,
    GoldenError,
    IntegrityError,
    LoadError,
    MissingExtraError,
    ModelRefusedError,
    OutOfMemoryError,
    QuarantinedError,
    SmokeRunError,
    StructureError,
)
from modelcast.golden import MIN_VARIED_EXAMPLES
from modelcast.records import FileEntry
from modelcast.registry.image import VersionRecord
from modelcast.testing.memory import MemoryLog
from modelcast.topics import ChunkKey, Topics, blob_partition

from .bad_versions import (
    ROWS,
    X,
    allocation_bomb,
    broken_shapes,
    env_as_tensor,
    examples,
    examples_as_tensor,
    golden_constant,
    golden_empty,
    golden_mismatch,
    golden_nan,
    golden_without_outputs,
    graph,
    newer_opset,
    no_examples,
)
from .registry_records import SIGNATURE, manifest

TOPICS = Topics("test")
CHUNK_BYTES = 1024


class Shelf:
    """A log with versions on it."""

    def __init__(self) -> None:
        self.log = MemoryLog()
        for spec in TOPICS.specs(blob_partitions=2, replication_factor=1):
            self.log.create(spec)
        self._writer = self.log.writer()

    def put(self, files: dict[str, bytes], folder: Path) -> VersionRecord:
        entries = []
        for path, data in sorted(files.items()):
            entry = FileEntry(path, len(data), digest.of_bytes(data))
            source = folder / "source"
            source.write_bytes(data)
            for index, chunk in enumerate(blobs.cut(source, CHUNK_BYTES)):
                key = ChunkKey("fraud", entry.digest, CHUNK_BYTES, index).encode()
                home = blob_partition("fraud", entry.digest, 2)
                self._writer.send(TOPICS.blobs, key=key, value=chunk, partition=home)
            entries.append(entry)
        self._writer.flush(5)
        return VersionRecord(replace(manifest(1), files=tuple(entries), chunk_bytes=CHUNK_BYTES), (), 1)


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def loader(shelf: Shelf, tmp_path: Path) -> Iterator[Loader]:
    with Loader(shelf.log, TOPICS, cache_dir=tmp_path / "cache", state_dir=tmp_path / "state", device="cpu") as loader:
        yield loader


def views(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache" / "views").glob("*/*"))


def test_a_version_is_loaded_and_says_what_each_step_took(shelf: Shelf, loader: Loader, tmp_path: Path) -> None:
    record = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    fields = EventFields({"amount": "double", "age": "int"}, "the schema of topic transactions")
    servable = loader.load(record, fields)
    scores = servable.run({"amount": np.float32([1, 2]), "age": np.float32([10, 20])})
    np.testing.assert_allclose(scores["score"], [11.5, 22.5])
    report = servable.report
    assert report is not None
    steps = (report.fetch_ms, report.check_ms, report.probe_ms, report.session_ms, report.warm_ms, report.golden_ms)
    assert all(step > 0 for step in steps)
    assert sum(steps) <= report.total_ms
    assert (servable.id.version, servable.device) == (1, "cpu")
    assert len(views(tmp_path)) == 1
    servable.close()
    assert views(tmp_path) == []


def test_a_load_says_where_it_is_and_stops_saying_where_it_fails(shelf: Shelf, loader: Loader, tmp_path: Path) -> None:
    states: list[State] = []
    good = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    loader.load(good, None, states.append).close()
    assert tuple(states) == LOAD_STEPS
    for make, reached in ((env_as_tensor, State.VERIFYING), (golden_mismatch, State.WARMING)):
        states.clear()
        with pytest.raises(ModelRefusedError):
            loader.load(shelf.put(make(tmp_path), tmp_path), None, states.append)
        assert states == list(LOAD_STEPS[: LOAD_STEPS.index(reached) + 1])


def test_a_signed_version_is_not_tried_in_a_child_first(
    shelf: Shelf, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelcast.consumer.loader.PROBE_S", 0.0)
    monkeypatch.setattr("modelcast.consumer.loader.LOAD_BYTES_PER_S", 1 << 40)
    record = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    with pytest.raises(SmokeRunError):
        loader.load(record, None)
    loader.load(replace(record, signers=("a key",)), None).close()


def test_large_tensors_are_files_of_their_own(shelf: Shelf, loader: Loader, tmp_path: Path) -> None:
    weights = np.float32([3.0, 5.0])
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "tensors/w.bin"), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["score"])]
    files = {
        "model.onnx": graph(nodes, initializers=(tensor,)),
        "tensors/w.bin": weights.tobytes(),
        "examples.npz": examples(tmp_path, X @ weights),
    }
    servable = loader.load(shelf.put(files, tmp_path), None)
    assert servable.run({"amount": np.float32([1]), "age": np.float32([2])})["score"].tolist() == [13.0]
    servable.close()


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (env_as_tensor, StructureError, r"'\.env', which is no file of the model"),
        (examples_as_tensor, StructureError, r"'examples\.npz', which is no file of the model"),
        (newer_opset, StructureError, "needs operator set 99"),
        (no_examples, StructureError, r"has no file 'examples\.npz'"),
        (golden_mismatch, GoldenError, "not reproduced: output 'score', row"),
        (golden_nan, GoldenError, "output 'score'"),
        (golden_constant, GoldenError, f"the same for all {ROWS} golden examples"),
        (golden_empty, GoldenError, "at least one"),
        (golden_without_outputs, GoldenError, r"outputs \[\]"),
        (allocation_bomb, SmokeRunError, "more than .* MiB of memory"),
        (broken_shapes, SmokeRunError, "failed when it was tried"),
    ],
)
def test_bad_versions_are_refused_by_name_and_leave_nothing(
    make: Callable[[Path], dict[str, bytes]],
    error: type[ModelRefusedError],
    match: str,
    shelf: Shelf,
    loader: Loader,
    tmp_path: Path,
) -> None:
    assert ROWS >= MIN_VARIED_EXAMPLES
    threads = {*threading.enumerate()}
    with pytest.raises(error, match=match):
        loader.load(shelf.put(make(tmp_path), tmp_path), None)
    assert views(tmp_path) == []
    assert {thread.name for thread in {*threading.enumerate()} - threads} <= {"modelcast-load-step"}
    good = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    loader.load(good, None).close()


def test_f24_a_version_that_finds_no_memory_is_refused_for_that_and_leaves_nothing(
    shelf: Shelf, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    real = onnxruntime.InferenceSession

    def full(path: str, *args: object, **kwargs: object) -> object:
        raise RuntimeError("CUDA failure 2: out of memory ; GPU=0 ; expr=cudaMalloc((void**)&p, size);")

    for _ in range(3):  # as often as one likes: it is no crash, so nothing is quarantined
        monkeypatch.setattr(onnxruntime, "InferenceSession", full)
        with pytest.raises(
            OutOfMemoryError, match=r"can't load model\.onnx: there is not enough memory on cpu"
        ) as refused:
            loader.load(record, None)
        assert (refused.value.reason, refused.value.retriable) == ("out-of-memory", True)
        assert views(tmp_path) == []
    monkeypatch.setattr(onnxruntime, "InferenceSession", real)
    loader.load(record, None).close()


def test_a_closed_servable_leaves_no_session_to_the_collector(shelf: Shelf, loader: Loader, tmp_path: Path) -> None:
    servable = loader.load(shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path), None)
    session = weakref.ref(servable._session._native)
    gc.disable()
    try:
        servable.close()
        assert session() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("name", "said"), [(TENSORRT_VARIABLE, "yes"), (TF32_VARIABLE, "")])
def test_a_switch_that_is_neither_on_nor_off_is_refused(
    name: str, said: str, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, said)
    with pytest.raises(ConfigError, match=f"{name} is {said!r}. Set it to 1 or 0"):
        Loader(shelf.log, TOPICS, cache_dir=tmp_path, state_dir=tmp_path, device="cpu")


def test_tensorrt_is_refused_at_once_where_the_runtime_has_none(shelf: Shelf, tmp_path: Path) -> None:
    with pytest.raises(MissingExtraError, match="TensorRT is asked for"):
        Loader(shelf.log, TOPICS, cache_dir=tmp_path, state_dir=tmp_path, device="auto", tensorrt=True)


def test_f22_events_without_the_models_fields_are_refused(shelf: Shelf, loader: Loader, tmp_path: Path) -> None:
    record = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    with pytest.raises(BindingError, match="field 'age' is string, the model needs float32"):
        loader.load(record, EventFields({"amount": "double", "age": "string"}, "the schema of topic transactions"))
    assert views(tmp_path) == []


def test_a_graph_that_is_not_its_signature_is_refused(shelf: Shelf, loader: Loader, tmp_path: Path) -> None:
    record = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    odd = replace(SIGNATURE, outputs=(replace(SIGNATURE.outputs[0], name="other"),))
    with pytest.raises(StructureError, match=r"outputs are \['score'\], the manifest's signature says \['other'\]"):
        loader.load(replace(record, manifest=replace(record.manifest, signature=odd)), None)


def test_f44_a_file_damaged_under_the_cache_is_never_loaded(shelf: Shelf, loader: Loader, tmp_path: Path) -> None:
    record = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    loader.load(record, None).close()
    for path in (tmp_path / "cache" / "blobs" / "sha256").iterdir():
        path.chmod(0o644)
        path.write_bytes(b"\0" * path.stat().st_size)
    servable = loader.load(record, None)
    assert servable.run({"amount": np.float32([1]), "age": np.float32([2])})["score"].tolist() == [3.5]
    servable.close()


def test_files_that_are_not_on_the_topic_are_named(shelf: Shelf, loader: Loader, tmp_path: Path) -> None:
    record = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    lost = FileEntry("tensors/w.bin", 5, digest.of_bytes(b"never"))
    with pytest.raises(IntegrityError, match=r"'tensors/w\.bin' are missing, the first is chunk 0"):
        loader.load(replace(record, manifest=replace(record.manifest, files=(*record.manifest.files, lost))), None)


def test_f20_a_version_whose_loading_ended_the_process_twice_is_refused(
    shelf: Shelf, loader: Loader, tmp_path: Path
) -> None:
    record = shelf.put({"model.onnx": graph(), "examples.npz": examples(tmp_path)}, tmp_path)
    crashes = tmp_path / "state" / "crashes"
    crashes.mkdir(parents=True)
    for death in range(2):  # what dead processes leave: markers nobody holds
        (crashes / f"{digest.hex_part(record.manifest.digest)}.{death}").touch()
    with pytest.raises(QuarantinedError, match=r"loading fraud@1 ended the process 2 times"):
        loader.load(record, None)
    assert views(tmp_path) == []


def test_a_step_that_does_not_end_is_given_up() -> None:
    held, steps = threading.Event(), Steps()
    with pytest.raises(LoadError, match=r"opening fraud@1 took longer than 0\.01 s"):
        steps.run(0.01, "opening fraud@1", lambda: held.wait(30))
    assert steps.run(10, "opening fraud@2", lambda: 7) == 7
    held.set()
    steps.close()


def test_steps_share_a_thread_which_keeps_nothing_of_what_they_made() -> None:
    class Made:
        pass

    steps = Steps()
    made = steps.run(10, "making", Made)
    gone = weakref.ref(made)
    del made
    threads = {steps.run(10, "asking", threading.get_ident) for _ in range(3)}
    assert gone() is None
    assert len(threads) == 1
    steps.close()
