"""From a source to a prepared model on disk: the order of all that has to hold before anything is on Kafka.

Load the source → read the examples → convert → write the graph's files → check the graph → bind its inputs → smoke-run
it in a limited child → outputs finite → parity with the original → write the golden examples. The first failure ends
it with an error that says what to do, and leaves the folder as it was.

    prepared = prepare(pipeline, frame, directory=folder)
    prepared.signature.fields       # what events have to hold
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from modelcast import golden, graph, runtime
from modelcast.errors import ConversionError, GoldenError, ModelRefusedError, ParityError, StructureError
from modelcast.golden import Examples
from modelcast.graph import GraphFacts
from modelcast.names import avro_name
from modelcast.records import (
    EXAMPLES_PATH,
    GRAPH_PATH,
    RESERVED_OUTPUTS,
    DType,
    FileEntry,
    InputBinding,
    LoadProbe,
    OutputSpec,
    Signature,
    Tolerance,
)

from . import examples as examples_of
from . import octets, parity, smoke, sources, tree
from .candidate import Candidate
from .convert import converters
from .examples import ExamplesSource, Rows
from .nulls import as_texts, rules_of
from .rename import renamed
from .smoke import SmokeLimits
from .sources import Source

Array = npt.NDArray[Any]

# What outputs may be of: there is no Avro type of one byte without sign.
PREDICTED: Final = tuple(dtype for dtype in DType if dtype is not DType.UINT8)
# Every consumer reproduces the golden examples at each load, so they are few; enough to meet most branches of a model.
GOLDEN_ROWS: Final = 100
# … and small beside any chunk budget: a hundred rows of ten thousand floats.
GOLDEN_VALUES: Final = 1_000_000
# What the child process is given: 128 MiB of float32, below what it may read.
SMOKE_VALUES: Final = 32_000_000


@dataclass(frozen=True)
class PreparedModel:
    """A version that could be published: everything but its number.

    Attributes:
        directory: Where its files lie.
        files: Sorted by path, with sizes and digests.
        signature: Inputs bound to event fields; outputs with the shapes they had on the examples.
        opsets: Operator set versions the graph imports, by domain.
        tolerance: How near consumers must reproduce the golden outputs.
        probe: What loading and running took in the child process.
        frameworks: What trained, converted and tried it, as package -> version, and where it was fetched from.
        metrics: What was measured of it where it was fetched from.
    """

    directory: Path
    files: tuple[FileEntry, ...]
    signature: Signature
    ir_version: int
    opsets: Mapping[str, int]
    tolerance: Tolerance
    probe: LoadProbe
    frameworks: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)


def prepare(
    source: Source,
    examples: ExamplesSource | None,
    *,
    fields: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
    nulls: Mapping[str, object] | None = None,
    trust_pickle: bool = False,
    directory: Path,
    limits: SmokeLimits = SmokeLimits(),  # noqa: B008 - a frozen value
    progress: Callable[[str], None] | None = None,
) -> PreparedModel:
    """Makes and checks a version's file tree.

    Args:
        source: A path, reference, bytes of an ONNX file, ModelProto, or trained object; see `sources`.
        examples: Rows by field name or arrays by input name; see `modelcast.publisher.examples`.
        fields: The event fields that make up a single matrix input, in order.
        rename: The graph's name of an output or input -> another.
        nulls: Event field -> what it counts as where it is null or not there; see `nulls`.
        trust_pickle: Whether a pickle that a reference leads to may be unpickled, which runs its code.
        directory: An existing folder for the files.
        limits: What the smoke run may take; the model's own size comes on top.
        progress: Told each step as it begins, and warnings.

    Raises:
        SourceError: Source or examples can't be read.
        NotFoundError: A reference names what is not there.
        UsageError: Examples or fields are missing or do not fit.
        MissingExtraError: A converter or runtime is not installed.
        ModelRefusedError: A check failed; the subclass says which.
    """
    tell = progress or _silent
    tell("load")
    with sources.opened(source, tell, trust_pickle=trust_pickle) as opened:
        given = as_texts(nulls or {})
        rows = examples_of.read(examples).filled(given)
        if rows.count > examples_of.MAX_ROWS:
            tell(f"the first {examples_of.MAX_ROWS} of {rows.count} examples are used")
            rows = rows.head(examples_of.MAX_ROWS)
        before = set(directory.iterdir())
        try:
            request = _Request(rows, fields, given, directory, limits, tell)
            prepared = _prepare(opened.model, rename or {}, request, before)
        except BaseException:
            _clear(directory, before)
            raise
    return replace(prepared, frameworks={**prepared.frameworks, **opened.origin}, metrics=opened.metrics)


@dataclass(frozen=True)
class _Request:
    """What a candidate is tried with."""

    rows: Rows
    fields: Sequence[str] | None
    nulls: Mapping[str, str]
    directory: Path
    limits: SmokeLimits
    tell: Callable[[str], None]


def _prepare(loaded: Candidate | Any, names: Mapping[str, str], request: _Request, keep: Set[Path]) -> PreparedModel:
    rows, fields = request.rows, request.fields
    if isinstance(loaded, Candidate):
        return _try(renamed(loaded, names), request)
    request.tell("convert")
    try:
        converted = octets.taken(renamed(converters.convert(loaded, rows, fields), names), rows, fields)
        return _try(converted, request)
    except ParityError as error:
        request.tell("convert with float64, because float32 does not agree with the original")
        _clear(request.directory, keep)
        try:
            converted = renamed(converters.convert(loaded, rows, fields, precise=True), names)
            converted = octets.taken(converted, rows, fields)
            return _try(converted, request)
        except ModelRefusedError:
            raise error from None  # of the two the one about the graph that everybody would get


def _try(candidate: Candidate, request: _Request) -> PreparedModel:
    rows, fields, directory, tell = request.rows, request.fields, request.directory, request.tell
    original = candidate.original
    tree.write(candidate.model, candidate.folder, directory)
    tell("check")
    facts = _check_graph(directory, converted=original is not None)
    bindings = examples_of.bind(facts.inputs, rows, fields if fields is not None else candidate.fields)
    rows = rows.head(_rows_within(SMOKE_VALUES, bindings))
    feeds = examples_of.feeds(bindings, rows)
    rules = rules_of(bindings, feeds, request.nulls)
    tell("smoke-run")
    size = sum((directory / path).stat().st_size for path in tree.paths(directory))
    result = smoke.run(directory / GRAPH_PATH, feeds, request.limits.scaled(size))
    signature = Signature(bindings, _outputs(facts, result.outputs), rules)
    graph.check_signature(facts, signature)
    _check_finite(feeds, result.outputs, bindings)
    if original is not None:
        tell("parity")
        parity.check(original(examples_of.exact_feeds(bindings, rows)), result.outputs)
    kept = min(GOLDEN_ROWS, _rows_within(GOLDEN_VALUES, bindings))
    examples = Examples(_spread(feeds, kept), _spread(result.outputs, kept))
    golden.check_varied(examples.inputs, examples.outputs)
    golden.write(directory / EXAMPLES_PATH, examples)
    return PreparedModel(
        directory=directory,
        files=tree.entries(directory),
        signature=signature,
        ir_version=facts.ir_version,
        opsets=dict(facts.opsets),
        tolerance=Tolerance(),
        probe=result.probe,
        frameworks={**candidate.frameworks, "onnxruntime": runtime.versions()["onnxruntime"]},
    )


def _clear(directory: Path, keep: Set[Path]) -> None:
    for path in set(directory.iterdir()) - keep:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _silent(_: str) -> None:
    """For a caller who does not want to be told."""


def _check_graph(directory: Path, *, converted: bool) -> GraphFacts:
    facts = graph.inspect(directory / GRAPH_PATH, tree.paths(directory))
    _check_kinds(facts)
    try:
        onnx.checker.check_model(str(directory / GRAPH_PATH))
    except Exception as error:  # the checker's own classes and those of its C++ half
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        if converted:
            raise ConversionError(
                f"the converter made a graph that is not valid: {text}", hint="Upgrade skl2onnx and onnx."
            ) from error
        raise StructureError(f"the graph is not valid ONNX: {text}", hint="Export the model again.") from error
    if not facts.inputs:
        raise StructureError("the graph has no inputs, so no event could matter to it")
    return facts


def _check_kinds(facts: GraphFacts) -> None:
    """Refuses outputs that no prediction can hold, before anything is run."""
    names: dict[str, str] = {}
    for info in facts.outputs:
        if info.dtype in ("sequence", "map", "optional", "untyped", "sparse_tensor"):
            raise StructureError(
                f"output {info.name!r} is a {info.dtype}, and a prediction holds tensors only",
                hint="Convert classifiers with options={'zipmap': False}, and models of several targets one by one.",
            )
        if info.dtype not in PREDICTED:
            raise StructureError(
                f"output {info.name!r} is of type {info.dtype}, which no prediction can hold",
                hint=f"Cast it inside the graph to one of {', '.join(PREDICTED)}.",
            )
        if info.shape and info.shape[0] is not None:
            raise StructureError(
                f"output {info.name!r} has {info.shape[0]} as its first dimension, which must be the batch",
                hint="Export it with a dynamic first dimension (PyTorch: dynamic_axes or dynamic_shapes).",
            )
        field = avro_name(info.name)
        if field in RESERVED_OUTPUTS or field in names:
            taken = "what every prediction says of its origin" if field in RESERVED_OUTPUTS else repr(names[field])
            raise StructureError(
                f"output {info.name!r} would be field {field!r} of a prediction, which is taken by {taken}",
                hint=f"Rename it: --rename '{info.name}=OTHER' (from Python: rename={{{info.name!r}: 'other'}}).",
            )
        names[field] = info.name


def _rows_within(values: int, bindings: Sequence[InputBinding]) -> int:
    return max(1, values // sum(math.prod(size or 1 for size in binding.shape[1:]) for binding in bindings))


def _spread(arrays: Mapping[str, Array], count: int) -> dict[str, Array]:
    """`count` rows evenly through all of them: files are often sorted, and the first rows alike."""
    return {
        name: array[np.linspace(0, len(array) - 1, min(count, len(array))).astype(np.int64)]
        for name, array in arrays.items()
    }


def _outputs(facts: GraphFacts, results: Mapping[str, Array]) -> tuple[OutputSpec, ...]:
    """Outputs with the sizes they had; the graph may leave all of them but the batch's open."""
    for info in facts.outputs:
        if results[info.name].size == 0:
            raise StructureError(
                f"output {info.name!r} is empty, shape {list(results[info.name].shape)} on the examples"
            )
    return tuple(
        OutputSpec.named(info.name, DType(info.dtype), (None, *map(int, results[info.name].shape[1:])))
        for info in facts.outputs
    )


def _check_finite(feeds: Mapping[str, Array], results: Mapping[str, Array], bindings: Sequence[InputBinding]) -> None:
    for name, array in results.items():
        row = golden.first_not_finite(array)
        if row is None:
            continue
        value = next(value for value in array[row].reshape(-1).tolist() if not np.isfinite(value))
        missing = dict.fromkeys(
            binding.fields[index if len(binding.fields) > 1 else 0]
            for binding in bindings
            if feeds[binding.name].dtype.kind == "f"
            for index in np.flatnonzero(np.isnan(feeds[binding.name][row].reshape(-1)))
        )
        because = f" (there {', '.join(map(repr, list(missing)[:5]))} has no value)" if missing else ""
        raise GoldenError(
            f"output {name!r} is {value} in row {row} of the examples{because}; predictions must be finite",
            hint="Impute missing values in the model, and look for a division by zero or a logarithm of it.",
        )
