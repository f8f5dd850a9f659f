"""Scoring models on rows whose labels are known: candidate and champion on the same rows, by the same runtime here.

- Each model takes its fields from the rows by its own signature, so a champion may take others than the candidate.
- Rows are read, and run in a limited child process as the smoke run is, a part at a time: what is held is one part,
  the labels, and the outputs that are measured. A champion is somebody else's graph: its structure is checked first.
- What is measured and how: `measures`.

    evaluation = Evaluation(Path("holdout.parquet"), "is_fraud")
    evaluation.score(graph, signature, "the candidate").metrics["auc"]
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelcast import golden, graph, tables
from modelcast.errors import BindingError, ModelRefusedError, SmokeRunError, UsageError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.records import GRAPH_PATH, DType, Manifest, Signature
from modelcast.registry.image import VersionRecord

from . import examples as examples_of
from . import measures, smoke
from .examples import ExamplesSource, Rows
from .measures import Choice, Measured
from .smoke import SmokeLimits

Array = npt.NDArray[Any]

# Inputs and outputs of one part: some hundred pictures, or more rows of numbers than the next limit lets through.
PART_BYTES: Final = 128 << 20
# Rows of one part of narrow models; more would gain nothing, a child starts in under a second.
PART_ROWS: Final = 200_000
# Scores held of all rows: half a gigabyte of doubles; a holdout of millions of rows is far below.
MAX_SCORES: Final = 64_000_000
# A part of slow models (nearest neighbours, kernel machines) takes minutes; one that takes longer has too many rows.
LIMITS: Final = SmokeLimits(cpu_s=900, wall_s=1800)


_VALUE_BYTES: Final = {
    DType.FLOAT32: 4,
    DType.FLOAT64: 8,
    DType.INT64: 8,
    DType.INT32: 4,
    DType.BOOL: 1,
    DType.UINT8: 1,
    DType.STRING: 128,
}


class Evaluation:
    """Rows with labels, and what is measured on them.

    Args:
        data: A path (CSV, JSONL, Parquet, `.npz`), a DataFrame, or arrays or lists by name.
        label: The column of labels: texts, numbers or booleans, one in each row.
        score_output: The output to be measured, where nothing else says which it is.

    Raises:
        MissingExtraError: scikit-learn is not installed.
        SourceError: The data can't be read.
    """

    def __init__(self, data: ExamplesSource, label: str, *, score_output: str | None = None) -> None:
        measures.check_installed()
        self._label = label
        self._score_output = score_output
        path = Path(data) if isinstance(data, (str, Path)) else None
        is_table = path is not None and path.suffix.lower() != ".npz"
        self._source: Path | Rows = path if path and is_table else examples_of.read(data)
        self._name = str(path or "the evaluation data")
        if isinstance(self._source, Path):
            with tables.open_table(self._source):  # a file that can't be read is told before a conversion of minutes
                pass

    def score(self, folder: Path, signature: Signature, who: str) -> Measured:
        """Measures one model on all rows.

        Args:
            folder: Its files; the graph is `model.onnx`.
            who: What messages call it.

        Raises:
            UsageError: The rows do not have what the model takes, a label is missing, or no output can be measured.
            ModelRefusedError: The model failed, exceeded a limit, or gave values that are not finite.
        """
        choice = measures.choose(signature.outputs, self._score_output)
        return self._score(folder, signature, who, choice)

    def score_champion(self, folder: Path, manifest: Manifest) -> Measured:
        """The same for a version that was fetched: its output may bear another name than the candidate's."""
        named = self._score_output
        names = {name for spec in manifest.signature.outputs for name in (spec.name, spec.field)}
        choice = measures.choose(manifest.signature.outputs, named if named in names else None)
        facts = graph.inspect(folder / GRAPH_PATH, [entry.path for entry in manifest.files])
        graph.check_signature(facts, manifest.signature)
        return self._score(folder, manifest.signature, f"the champion {manifest.id}", choice)

    def _score(self, folder: Path, signature: Signature, who: str, choice: Choice) -> Measured:
        size_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        limits = LIMITS.scaled(size_bytes)
        truths: list[Array] = []
        given: dict[str, list[Array]] = {name: [] for name in choice.names}
        seen = held = 0
        for part in self._parts(signature, choice):
            truths.append(self._labels(part, seen))
            outputs = self._run(folder / GRAPH_PATH, signature, part, limits, who)
            for name, arrays in given.items():
                row = golden.first_not_finite(outputs[name])
                if row is not None:
                    raise SmokeRunError(f"output {name!r} of {who} is not finite in row {seen + row} of {self._name}")
                arrays.append(outputs[name])
                held += outputs[name].size
            if held > MAX_SCORES:
                raise UsageError(
                    f"{self._name} makes {who} give more than {MAX_SCORES:,} values to be measured",
                    hint="Evaluate on fewer rows.",
                )
            seen += part.count
        whole = {name: np.concatenate(arrays) for name, arrays in given.items()}
        scores = whole[choice.scores] if choice.scores is not None else None
        labels = whole[choice.labels] if choice.labels is not None else None
        return measures.measure(np.concatenate(truths), scores, labels)

    def _run(self, path: Path, signature: Signature, part: Rows, limits: SmokeLimits, who: str) -> Mapping[str, Array]:
        try:
            nulls = {rule.field: rule.value for rule in signature.nulls}
            feeds = examples_of.feeds(signature.inputs, part.filled(nulls))
        except BindingError as error:
            raise UsageError(
                f"{self._name} can't feed {who}: {error.message}",
                hint="Evaluate on rows that have every field of both models, as events have them.",
            ) from error
        try:
            return smoke.run(path, feeds, limits).outputs
        except ModelRefusedError as error:
            raise type(error)(f"evaluating {who} on {self._name}: {error.message}", hint=error.hint) from error

    def _parts(self, signature: Signature, choice: Choice) -> Iterator[Rows]:
        rows = min(PART_ROWS, max(1, PART_BYTES // _row_bytes(signature)))
        if isinstance(self._source, Rows):
            for start in range(0, self._source.count, rows):
                yield self._source.part(start, start + rows)
            return
        texts = {name for binding in signature.inputs if binding.dtype is DType.STRING for name in binding.fields}
        if any(spec.name == choice.labels and spec.dtype is DType.STRING for spec in signature.outputs):
            texts.add(self._label)
        with tables.open_table(self._source, texts=texts) as table:
            for frame in table.batches(rows):
                yield examples_of.read(frame)

    def _labels(self, part: Rows, seen: int) -> Array:
        if self._label not in part:
            raise UsageError(
                f"{self._name} has no column {self._label!r}; it has {', '.join(part.names[:20])}",
                hint="Name the column of labels with --label COLUMN.",
            )
        try:
            labels = part.column(self._label)
        except BindingError as error:
            raise UsageError(f"the labels of {self._name} can't be used: {error.message}", hint=error.hint) from error
        if labels.dtype.kind == "O":
            bad = [row for row, value in enumerate(labels) if value is None]
        else:
            bad = np.flatnonzero(~np.isfinite(labels)).tolist() if labels.dtype.kind == "f" else []
        if bad:
            raise UsageError(
                f"row {seen + bad[0]} of {self._name} has no label in column {self._label!r}",
                hint="Leave out the rows whose label is not known.",
            )
        return labels


@dataclass(frozen=True, slots=True)
class Champions:
    """Fetches live versions into the user's cache, to be measured."""

    open_fetcher: Callable[[Cache], Fetcher]

    @contextlib.contextmanager
    def fetched(self, record: VersionRecord, progress: Callable[[int, int], None] | None = None) -> Iterator[Path]:
        """A folder with the version's files, for as long. Raises as `Fetcher.fetch`."""
        cache = Cache()
        try:
            yield self.open_fetcher(cache).fetch(record, progress)
        finally:
            cache.close()


def _row_bytes(signature: Signature) -> int:
    """What one row takes in the arrays of inputs and outputs; a text counts as a short one."""
    inputs = (
        _VALUE_BYTES[b.dtype] * max(len(b.fields), math.prod(size or 1 for size in b.shape[1:]))
        for b in signature.inputs
    )
    return sum(inputs) + sum(_VALUE_BYTES[spec.dtype] * spec.width for spec in signature.outputs)
