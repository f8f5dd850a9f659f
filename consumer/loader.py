"""From a manifest to a servable: the steps, each with its error and its deadline.

    fetch       missing files into the cache, digests of all     IntegrityError, BrokerError, StoreError, CacheError
    structure   what the graph asks for, its signature           StructureError
    binding     event fields, where they are known               BindingError
    probe       load and run in a limited child process          SmokeRunError; left out for signed versions
    session     the runtime's session on the wanted device       LoadError, OutOfMemoryError
    warm        a run for each batch bucket                      LoadError, OutOfMemoryError
    golden      the examples reproduced within tolerance         GoldenError

- The first failure ends it and leaves nothing behind; whatever runs goes on running.
- Whoever asks is told when a load is `fetching`, `verifying` (structure, binding, probe), `loading` (session) and
  `warming` (golden, warm), each once, in this order, on the thread that loads.
- The golden examples are run before the batch buckets that are made of them, so that the first run is the one checked.
- Steps that native code may hold for ever run on a thread that is given up at the deadline.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from modelcast import golden, graph, runtime
from modelcast.bounded import BoundedCalls
from modelcast.errors import ConfigError, GoldenError, LoadError, StructureError, UsageError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.files.sink import Progress
from modelcast.files.store_url import NO_STORES, Stores
from modelcast.folders import cache_folder, state_folder
from modelcast.golden import Examples
from modelcast.log import Log
from modelcast.memory import give_back
from modelcast.records import EXAMPLES_PATH, GRAPH_PATH, Manifest
from modelcast.registry.image import VersionRecord
from modelcast.runtime import Array
from modelcast.topics import Topics

from .binding import Binding, EventFields
from .engines import Engines
from .lifecycle import State
from .probe import MEMORY_BYTES, Trial, TrialRunner, memory_allowed
from .quarantine import Quarantine
from .servable import LoadReport, Servable, memory_need

T = TypeVar("T")

OnState = Callable[[State], None]

# Loading and running examples takes seconds; whoever waits for a minute has a loop.
PROBE_S = 60.0
SESSION_S = 120.0
GOLDEN_S = 60.0
# Building an engine tries thousands of kernels: minutes for a large model.
TENSORRT_S = 1800.0
# What slow disks give: large models get this much longer.
LOAD_BYTES_PER_S = 50 << 20

TENSORRT_VARIABLE = "MODELCAST_TENSORRT"
TF32_VARIABLE = "MODELCAST_TF32"

# What a session's arena on a device may grow to beyond what was measured: larger batches than the publisher's, and the
# workspaces of cuBLAS and cuDNN, as a trial allows it beside the files. A batch that needs more is run in parts.
CUDA_HEADROOM_BYTES = MEMORY_BYTES

# From here on, what fetching took of memory goes back to the system before the session needs its own.
LARGE_BYTES = 32 << 20

# From here on, weights are worth sharing between processes: a scorer takes some 90 MB without any.
SHARED_FROM_BYTES = 100 << 20

# Batch sizes that are run before a version goes live: a lone event, a stream's trickle, a backlog.
BATCH_BUCKETS = (1, 64, 1024, 4096)
# A bucket expected to take longer is left out: a slow model's first large batch costs little more than its second. On a
# GPU it does, since kernels are chosen and memory is reserved for each shape.
WARM_BUCKET_MS = 250.0
WARM_BUCKET_CUDA_MS = 10_000.0


class Weights(StrEnum):
    """What becomes of a large version's weights on the CPU."""

    REPACKED = "repacked"  # each process makes a copy that its processor likes better
    SHARED = "shared"  # mapped from the cache: one copy in memory for all processes of this host

    @classmethod
    def of(cls, word: str) -> Self:
        """Raises UsageError."""
        try:
            return cls(word)
        except ValueError:
            raise UsageError(f"there are no weights {word!r}", hint="Use repacked or shared.") from None


class Loader:
    """Loads versions; for one thread at a time. Use as a context manager.

    Args:
        log: Where the chunks are.
        topics: The repository's topics.
        cache_dir: Folder of the model cache; None for the user's.
        stores: Where versions by reference may be read.
        state_dir: Folder of the crash memory; None for the user's.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        threads: Threads one run may use; 0 lets the runtime choose.
        prepacking: Whether weights are repacked at load (see `runtime.open_session`).
        weights: Whether those of large versions are repacked too.
        probe: Whether versions are tried in a limited child first.
        buckets: Batch sizes to warm where the device has none of its own.
        tensorrt: Whether TensorRT builds engines on a CUDA device; None for what `MODELCAST_TENSORRT` says, else not.
        tf32: Whether float32 products may be rounded to TF32 on a CUDA device; None for `MODELCAST_TF32`, else not.

    Raises:
        MissingExtraError: No runtime is installed, or one without what is asked for.
        UsageError: The device does not work, or a variable is neither 0 nor 1.
        CacheError: The cache can't be written.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        cache_dir: Path | None = None,
        stores: Stores = NO_STORES,
        state_dir: Path | None = None,
        device: str = "auto",
        threads: int = 1,
        prepacking: bool = True,
        weights: Weights = Weights.REPACKED,
        probe: bool = True,
        buckets: tuple[int, ...] = BATCH_BUCKETS,
        tensorrt: bool | None = None,
        tf32: bool | None = None,
    ) -> None:
        runtime.limits()  # asked now, so that the first version does not wait for it
        tensorrt = _switch(TENSORRT_VARIABLE) if tensorrt is None else tensorrt
        runtime.check_device(device, tensorrt=tensorrt)
        self._cache = Cache(cache_dir)
        self._fetcher = Fetcher(log, topics, self._cache, stores=stores)
        self._quarantine = Quarantine(state_folder() if state_dir is None else state_dir)
        self._runner = TrialRunner() if probe else None
        self._steps = Steps()
        self._device = device
        self._threads = threads
        self._prepacking = prepacking
        self._weights = weights
        self._buckets = buckets
        self._tf32 = _switch(TF32_VARIABLE) if tf32 is None else tf32
        engines = (cache_folder() if cache_dir is None else cache_dir) / "tensorrt"
        self._engines = Engines(engines, runtime.versions()["onnxruntime"]) if tensorrt else None
        if self._runner is not None:
            self._runner.prepare()

    def load(
        self,
        record: VersionRecord,
        fields: EventFields | None,
        on_state: OnState = lambda _: None,
        *,
        progress: Progress | None = None,
    ) -> Servable:
        """Takes all steps.

        Args:
            record: The version.
            fields: What the events are known to have; None if that is not known beforehand.
            on_state: Called with each state as it begins: be quick.
            progress: Called with bytes fetched and bytes to fetch.

        Raises:
            ModelRefusedError: A subclass says which check failed.
            BrokerError, StoreError: The files can't be fetched now.
            CacheError: The cache can't be written.
        """
        manifest = record.manifest
        watch = _Stopwatch()
        binding = Binding(manifest.signature)
        _check_files(manifest)
        on_state(State.FETCHING)
        with watch("fetch"):
            view = self._fetcher.fetch(record, progress)
        if manifest.size_bytes >= LARGE_BYTES:
            give_back()
        try:
            on_state(State.VERIFYING)
            # From here on foreign bytes meet native code; a process killed while it fetched says nothing of the model.
            with self._quarantine.guard(manifest.digest, str(manifest.id)):
                with watch("check"):
                    self._check(view, manifest, binding, fields)
                with watch("probe"):
                    if not record.signers:  # whom the policy trusts with a model, it trusts to have tried it
                        self._probe(view, manifest)
                servable = self._open(view, manifest, binding, watch, on_state)
        except BaseException:
            self._cache.release(view)
            raise
        finally:
            if self._runner is not None:
                self._runner.prepare()
        servable.report = watch.report()
        return servable

    def close(self) -> None:
        """Ends the waiting child and removes private folders. Servables stay usable."""
        if self._runner is not None:
            self._runner.close()
        self._steps.close()
        self._cache.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, view: Path, manifest: Manifest, binding: Binding, fields: EventFields | None) -> None:
        allowed = {entry.path for entry in manifest.files} - {EXAMPLES_PATH}
        facts = graph.inspect(view / GRAPH_PATH, allowed)
        graph.check_signature(facts, manifest.signature)
        if fields is not None:
            binding.check(fields)

    def _probe(self, view: Path, manifest: Manifest) -> None:
        if self._runner is None:
            return
        memory_bytes = memory_allowed(manifest.size_bytes)
        wall_s = PROBE_S + manifest.size_bytes / LOAD_BYTES_PER_S
        self._runner.run(Trial(view / GRAPH_PATH, view / EXAMPLES_PATH, memory_bytes, wall_s))

    def _open(self, view: Path, manifest: Manifest, binding: Binding, watch: _Stopwatch, on_state: OnState) -> Servable:
        cuda = self._cuda_options(manifest)
        shared = self._weights is Weights.SHARED and manifest.size_bytes >= SHARED_FROM_BYTES

        def session() -> runtime.Session:
            return runtime.open_session(
                view / GRAPH_PATH,
                device=self._device,
                threads=self._threads,
                prepacking=self._prepacking and not shared,
                cuda=cuda,
            )

        build_s = TENSORRT_S if cuda.tensorrt is not None else 0.0
        on_state(State.LOADING)
        with watch("session"):
            opened = self._steps.run(
                SESSION_S + manifest.size_bytes / LOAD_BYTES_PER_S + build_s, f"opening {manifest.id}", session
            )
        servable = Servable(manifest, binding, opened, release=lambda: self._cache.release(view))
        on_state(State.WARMING)
        examples = golden.read(view / EXAMPLES_PATH)
        with watch("golden"):
            _check_examples(manifest, examples)
            run = partial(servable.run_feeds, examples.inputs)
            outputs = self._steps.run(GOLDEN_S + build_s, f"running the golden examples of {manifest.id}", run)
            golden.check(examples.outputs, outputs, manifest.tolerance)
            golden.check_varied(examples.inputs, outputs)
        with watch("warm"):
            self._warm(servable, examples.inputs, build_s)
        return servable

    def _cuda_options(self, manifest: Manifest) -> runtime.CudaOptions:
        """How this version uses a CUDA device, should it get one."""
        tensorrt = None
        if self._engines is not None and runtime.resolve(self._device).cuda is not None:
            tensorrt = self._engines.folder(manifest.digest)
        limit = memory_need(manifest) + CUDA_HEADROOM_BYTES
        return runtime.CudaOptions(memory_limit_bytes=limit, tf32=self._tf32, tensorrt=tensorrt)

    def _warm(self, servable: Servable, inputs: Mapping[str, Array], build_s: float) -> None:
        allowed_ms = WARM_BUCKET_MS if servable.device == "cpu" else WARM_BUCKET_CUDA_MS
        buckets = servable.buckets or tuple(sorted(self._buckets))
        if build_s:  # an engine grows with each larger batch: the largest second spares the steps between
            buckets = tuple(dict.fromkeys((buckets[0], buckets[-1], *buckets)))
        rows, took_ms = 1, 0.0
        for bucket in buckets:
            if took_ms * bucket / rows > allowed_ms and not build_s:
                return
            feeds = {name: np.resize(array, (bucket, *array.shape[1:])) for name, array in inputs.items()}
            began = time.monotonic()
            work = partial(servable.run_feeds, feeds)
            self._steps.run(GOLDEN_S + build_s, f"running {servable.id} on {bucket} rows", work)
            rows, took_ms = bucket, (time.monotonic() - began) * 1e3


def _switch(variable: str) -> bool:
    """Whether an environment variable turns something on."""
    said = os.environ.get(variable, "0")
    if said not in ("0", "1"):
        raise ConfigError(f"{variable} is {said!r}", hint="Set it to 1 or 0.")
    return said == "1"


def _check_files(manifest: Manifest) -> None:
    paths = {entry.path for entry in manifest.files}
    for needed in (GRAPH_PATH, EXAMPLES_PATH):
        if needed not in paths:
            raise StructureError(f"{manifest.id} has no file {needed!r}")


def _check_examples(manifest: Manifest, examples: Examples) -> None:
    """The examples must cover the signature, or reproducing them would prove nothing."""
    signature = manifest.signature
    for what, arrays, declared in (
        ("inputs", examples.inputs, [entry.name for entry in signature.inputs]),
        ("outputs", examples.outputs, [entry.name for entry in signature.outputs]),
    ):
        if sorted(arrays) != sorted(declared):
            raise GoldenError(
                f"the golden examples have {what} {sorted(arrays)}, the signature says {sorted(declared)}"
            )
    shapes = [array.shape for array in (*examples.inputs.values(), *examples.outputs.values())]
    if any(not shape or shape[0] == 0 or shape[0] != shapes[0][0] for shape in shapes):
        raise GoldenError(f"the golden examples of {manifest.id} are not the same number of rows of each, at least one")


class _Stopwatch:
    """What each step took."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._took_ms: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self._took_ms[step] = (time.monotonic() - began) * 1e3

    def report(self) -> LoadReport:
        took = self._took_ms
        return LoadReport(
            fetch_ms=took["fetch"],
            check_ms=took["check"],
            probe_ms=took["probe"],
            session_ms=took["session"],
            warm_ms=took["warm"],
            golden_ms=took["golden"],
            total_ms=(time.monotonic() - self._began) * 1e3,
        )


class Steps:
    """Runs steps that native code may hold for ever, on one thread for all loads; for one load at a time.

    One thread, because the allocator keeps a heap for each that ever allocated: a new one for every step grew for
    hundreds of swaps.
    """

    def __init__(self) -> None:
        self._calls: BoundedCalls | None = None

    def run(self, deadline_s: float, what: str, work: Callable[[], T]) -> T:
        """What `work` returns; raises LoadError, leaving the thread behind, when the time is up."""
        if self._calls is None:
            self._calls = BoundedCalls("modelcast-load-step")
        try:
            return self._calls.run(work, deadline_s)
        except TimeoutError as error:
            self.close()
            raise LoadError(f"{what} took longer than {deadline_s:g} s") from error

    def close(self) -> None:
        """Lets the thread end after the step it is in."""
        if self._calls is not None:
            self._calls.close()
            self._calls = None
