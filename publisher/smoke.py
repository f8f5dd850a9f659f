"""The smoke run: a graph is loaded and run on its examples in a child process that may not take more than its share.

- The child is a fresh interpreter given paths (no fork: the caller has threads; no pickles). It limits its own address
  space and CPU time once the runtime is loaded and before it looks at the graph; the parent limits the wall clock.
- A graph of some hundred bytes can ask for gigabytes or never end, and a malformed one can crash the runtime: each
  comes back as SmokeRunError that names the limit or signal, and the caller lives on.
- The first example runs alone too: a scorer's batches are of any size, and no prediction may depend on its neighbours.
- Where the system does not limit address space (macOS), only the time limits hold.

The child, run as a script: `smoke.py GRAPH INPUTS.npz OUTPUTS.npz REPORT.json MEMORY_BYTES CPU_S`.
"""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelcast import golden, runtime
from modelcast.errors import IntegrityError, ModelcastError, SmokeRunError
from modelcast.golden import Examples
from modelcast.records import LoadProbe, Tolerance

Array = npt.NDArray[Any]

# What a graph may take for itself besides its own files: activations of a batch, the runtime's arena.
MEMORY_BYTES: Final = 2 << 30
# A file's bytes are mapped or read, repacked for the processor, and held twice while that happens.
MEMORY_PER_FILE_BYTE: Final = 3
# Loading and running thousands of examples takes seconds; whoever waits for a minute has a loop.
CPU_S: Final = 60
# Twice the CPU time: a busy machine gives a process half a core at worst.
WALL_S: Final = 120
# A model of gigabytes takes longer to load: a slow disk reads this many bytes a second.
LOAD_BYTES_PER_S: Final = 50 << 20

# Rows of one run: memory of activations stays bounded, and overhead per run is amortised.
_BATCH_ROWS: Final = 1024
# One row alone and the same row in a batch take different kernels; they differ in the last digits of a float32.
_BATCH_TOLERANCE: Final = Tolerance(relative=1e-3, absolute=1e-4)
_STDERR_BYTES: Final = 2_000
_OUT_OF_MEMORY = re.compile(r"alloc|out of memory|MemoryError", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SmokeLimits:
    """What the child may take at most; files of the model come on top as the constants above say.

    Attributes:
        memory_bytes: Address space beyond what the interpreter and the runtime take themselves.
        cpu_s: Processor time of loading and running.
        wall_s: Time from start to end.
    """

    memory_bytes: int = MEMORY_BYTES
    cpu_s: int = CPU_S
    wall_s: float = WALL_S

    def scaled(self, files_bytes: int) -> SmokeLimits:
        """The limits for a model with files of this size in all."""
        load_s = files_bytes // LOAD_BYTES_PER_S
        return SmokeLimits(
            self.memory_bytes + MEMORY_PER_FILE_BYTE * files_bytes, self.cpu_s + load_s, self.wall_s + 2 * load_s
        )


@dataclass(frozen=True)
class SmokeResult:
    """What the child saw.

    Attributes:
        outputs: By ONNX name, batch first, a row per example; texts as object arrays.
        probe: What loading and running took.
    """

    outputs: Mapping[str, Array]
    probe: LoadProbe


def run(graph: Path, feeds: Mapping[str, Array], limits: SmokeLimits) -> SmokeResult:
    """Runs a graph on examples in a limited child process.

    Args:
        graph: The `.onnx` file; its external files lie beside it.
        feeds: Arrays by graph input, batch first, at least one row.
        limits: As they are, not scaled.

    Raises:
        SmokeRunError: The graph did not load, failed, is not independent of its batch, exceeded a limit, or crashed
            the runtime.
        MissingExtraError: No runtime is installed.
    """
    runtime.versions()
    with tempfile.TemporaryDirectory(prefix="modelcast-smoke-") as folder:
        inputs, outputs, report = (Path(folder) / name for name in ("inputs.npz", "outputs.npz", "report.json"))
        golden.write(inputs, Examples(feeds, {}))
        script = [str(Path(__file__).resolve()), str(graph.resolve()), str(inputs), str(outputs), str(report)]
        command = [sys.executable, "-P", *script, str(limits.memory_bytes), str(limits.cpu_s)]
        code, stderr = _wait(command, Path(folder) / "stderr", limits)
        facts = _read_report(report)
        if code != 0 or "error" in facts:
            raise _failure(code, facts, stderr, limits)
        try:
            results = golden.read(outputs).outputs
        except IntegrityError as error:
            raise SmokeRunError(f"the smoke run's outputs can't be read: {error.message}") from error
    probe = LoadProbe(float(facts["load_ms"]), float(facts["run_ms"]), int(facts["peak_bytes"]))
    return SmokeResult({name: results[name] for name in facts["outputs"]}, probe)


def _wait(command: list[str], stderr: Path, limits: SmokeLimits) -> tuple[int, str]:
    """Exit status and the end of standard error; the child never outlives this call."""
    with stderr.open("wb") as sink:
        # A session of its own: Ctrl-C reaches the parent only, which then ends the child.
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=sink,
            env=_environment(),
            start_new_session=True,
        )
    try:
        code = child.wait(limits.wall_s)
    except subprocess.TimeoutExpired as error:
        raise SmokeRunError(
            f"the model ran out of its time limit of {limits.wall_s:g} s in the smoke run",
            hint="Give fewer examples, or look for a loop in the graph.",
        ) from error
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()
    with stderr.open("rb") as source:
        source.seek(max(0, stderr.stat().st_size - _STDERR_BYTES))
        return code, source.read().decode(errors="replace")


def _environment() -> dict[str, str]:
    """The parent's, with its import path, so that the child imports the same code however the parent found it."""
    found = [str(Path(entry or ".").resolve()) for entry in sys.path]
    # glibc reserves 64 MiB of address space for each thread's arena, which would count against the limit.
    return {**os.environ, "PYTHONPATH": os.pathsep.join(found), "MALLOC_ARENA_MAX": "1"}


def _read_report(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except (OSError, ValueError):  # a child that was killed leaves none, or a part of one
        return {}
    return facts if isinstance(facts, dict) else {}


def _failure(code: int, facts: Mapping[str, Any], stderr: str, limits: SmokeLimits) -> SmokeRunError:
    reason = str(facts.get("error", ""))
    if _OUT_OF_MEMORY.search(reason) or (code != 0 and _OUT_OF_MEMORY.search(stderr)):
        return SmokeRunError(
            f"the model ran out of its memory limit of {limits.memory_bytes >> 20} MiB in the smoke run",
            hint="Give fewer or smaller examples, or look for a tensor whose size the graph computes.",
        )
    if reason:
        return SmokeRunError(f"the smoke run failed: {reason}", hint="Run the graph on the examples by hand.")
    if code == -signal.SIGXCPU:
        return SmokeRunError(
            f"the model ran out of its CPU limit of {limits.cpu_s} s in the smoke run",
            hint="Give fewer examples, or look for a loop in the graph.",
        )
    said = stderr.strip().splitlines()[-1:]
    after = f": {said[0]}" if said else ""
    if code < 0:
        return SmokeRunError(
            f"the model crashed the runtime in the smoke run ({signal.Signals(-code).name}){after}",
            hint="The graph is malformed, or this ONNX Runtime has a fault: try another version of it.",
        )
    return SmokeRunError(f"the smoke run ended with status {code}{after}")


def main(arguments: list[str]) -> int:
    """What the child does; returns its exit status."""
    graph, inputs, outputs, report = (Path(argument) for argument in arguments[:4])
    memory_bytes, cpu_s = (int(argument) for argument in arguments[4:])
    facts: dict[str, Any]
    try:
        feeds = golden.read(inputs).inputs
        runtime.versions()  # loads the runtime, whose own size is not the graph's fault
        _limit(memory_bytes, cpu_s)
        results, facts = _try(graph, feeds)
        golden.write(outputs, Examples({}, results))
    except ModelcastError as error:
        facts = {"error": error.message}
    except MemoryError:
        facts = {"error": "MemoryError"}
    report.write_text(json.dumps(facts))
    return 0 if "error" not in facts else 1


def _try(graph: Path, feeds: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, Any]]:
    started = time.perf_counter()
    session = runtime.open_session(graph, device="cpu")
    loaded = time.perf_counter()
    rows = len(next(iter(feeds.values())))
    # A single example is run twice in one batch, so that batches of two sizes are seen.
    batched = feeds if rows > 1 else {name: np.repeat(array, 2, axis=0) for name, array in feeds.items()}
    alone = _run(session, feeds, slice(0, 1))
    parts = [_run(session, batched, slice(start, start + _BATCH_ROWS)) for start in range(0, max(rows, 2), _BATCH_ROWS)]
    results = {name: np.concatenate([part[name] for part in parts])[:rows] for name in alone}
    ended = time.perf_counter()
    for name, array in alone.items():
        _check_alone(name, array, results[name][:1])
    facts = {
        "load_ms": (loaded - started) * 1e3,
        "run_ms": (ended - loaded) * 1e3,
        "peak_bytes": _peak_bytes(),
        "outputs": list(results),
    }
    return results, facts


def _run(session: runtime.Session, feeds: Mapping[str, Array], rows: slice) -> dict[str, Array]:
    part = {name: np.ascontiguousarray(array[rows]) for name, array in feeds.items()}
    count = len(next(iter(part.values())))
    results = {}
    for info, array in zip(session.outputs, session.run(part), strict=True):
        if array.ndim == 0 or len(array) != count:
            raise SmokeRunError(
                f"output {info.name!r} has shape {list(array.shape)} for a batch of {count}; "
                "its first dimension must be the batch"
            )
        results[info.name] = array
    return results


def _check_alone(name: str, alone: Array, batched: Array) -> None:
    if alone.shape != batched.shape:
        raise SmokeRunError(
            f"output {name!r} has shape {list(alone.shape)} for one row and {list(batched.shape)} within a batch"
        )
    if golden.first_not_finite(alone) is not None:
        return  # refused later, by a check that can name the row
    found = golden.difference(batched, alone, _BATCH_TOLERANCE)
    if found is not None:
        raise SmokeRunError(
            f"output {name!r} of a row depends on the rows beside it: "
            f"{found.want} within a batch of examples, {found.got} alone"
        )


def _limit(memory_bytes: int, cpu_s: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    _lower(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + 1 + cpu_s)
    _lower(resource.RLIMIT_CORE, 0)
    statm = Path("/proc/self/statm")
    if statm.exists():
        _lower(resource.RLIMIT_AS, int(statm.read_text().split()[0]) * resource.getpagesize() + memory_bytes)


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if found:
            return int(found[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
