"""PyTorch modules and exported programs, through `torch.onnx` (the exporter on torch.export).

- A module is run in eval mode on the examples, exported with a batch of any size, and left in the mode it was in.
- Each parameter of `forward` is an input of its name, if the examples have it: an array `[N, …]` as it is, a column of
  floats as `[N, 1]`, of integers or booleans as `[N]` (or the other way round, where the module fails on that). A
  single parameter they do not have is a matrix `[N, F]` of the fields given, or of all their columns in order.
- Outputs have the names of the dict, dataclass or named tuple that `forward` returns; `output` if it is one tensor,
  `output_0`, `output_1`, … if it is a tuple.
- An exported program (`.pt2`) says itself what it takes; its batch has to be dynamic.
- Of a `.pt2` nothing but tensors is unpickled; PyTorch promises no more than that, so publish programs you made. A
  pickled module (`.pt`, `.pth`) runs any code that is in it, so it is read only if told to trust it.
"""

from __future__ import annotations

import inspect
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from modelcast.errors import BindingError, ConversionError, ParityError, SourceError, UsageError

from ..candidate import Candidate
from ..examples import Rows
from ..parity import Expected
from . import origins

Array = npt.NDArray[Any]

EXTRA: Final = "torch"
PROGRAM_SUFFIXES: Final = (".pt2",)
MODULE_SUFFIXES: Final = (".pt", ".pth")

# The set torch.onnx translates to since PyTorch 2.6; every supported ONNX Runtime reads it.
OPSET: Final = 18
# Tracing needs two rows (a batch of one is taken for a constant) and gains nothing by more.
TRACED_ROWS: Final = 2
# The module is asked for this many rows at a time, so that a convolution's inner tensors stay small.
ASKED_ROWS: Final = 256

# torch.load then reads tensors and nothing else, whatever the caller says.
_TENSORS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
_WAY_OUT = "Export it yourself with torch.onnx.export(…, dynamic_shapes=…) and publish the .onnx file."
_SHAPES_HINT = "Give examples as arrays by the names of forward's parameters ({'x': array [N, …]}, or an .npz file)."


def recognises(value: object) -> bool:
    """Whether this is a module or an exported program."""
    return origins.is_a(value, "torch", "Module", "ExportedProgram")


def load(path: Path, what: str, *, trust_pickle: bool) -> Any:
    """Reads an exported program (`.pt2`) or a pickled module.

    Args:
        path: The file.
        what: What names it, for messages.
        trust_pickle: Whether code that is pickled in it may run.

    Raises:
        MissingExtraError: PyTorch is not installed.
        UsageError: It is a pickled module, and `trust_pickle` is false.
        SourceError: It can't be read, or holds neither.
    """
    program = path.suffix.lower() in PROGRAM_SUFFIXES
    if not program and not trust_pickle:
        raise UsageError(
            f"{what} holds a pickled PyTorch module, and reading that runs whatever code is in it",
            hint="Say --trust-pickle if you made it; or save a program: torch.export.save(program, 'model.pt2').",
        )
    (torch,) = origins.load(what, EXTRA, "torch")
    try:
        if program:
            with _quiet(), _tensors_only(not trust_pickle):
                loaded = torch.export.load(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # a pickle runs code, which raises what it likes
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"can't load {what}: {text}", hint="Save it with torch.export.save, by a PyTorch not newer than this one."
        ) from error
    if not recognises(loaded):
        raise SourceError(
            f"{what} holds a {type(loaded).__name__}, not a module",
            hint="Weights alone are no model: load them into the module and publish it, or an export of it.",
        )
    return loaded


def convert(value: Any, rows: Rows, fields: Sequence[str] | None, *, precise: bool = False) -> Candidate:
    """Converts a module or exported program; see `converters.convert`.

    Args:
        value: The module; its weights and mode are left as they are.
        rows: The examples; their types and shapes become the inputs'.
        fields: Names of a matrix input's columns, in order.
        precise: Has no effect: a module computes in the type of its weights.
    """
    del precise
    torch, onnxscript = origins.load("a PyTorch module", EXTRA, "torch", "onnxscript")
    if origins.is_a(value, "torch", "ScriptModule"):
        raise ConversionError(
            f"the {type(value).__name__} is TorchScript, which torch.onnx no longer takes",
            hint="Publish the module that it was made of, or its torch.export program.",
        )
    program = origins.is_a(value, "torch", "ExportedProgram")
    what = "exported program" if program else f"module {type(value).__name__}"
    module = value.module() if program else value
    with _evaluated(torch, module, program):
        if program:
            inputs, columns = _program_inputs(torch, value, rows, fields), None
        else:
            inputs, columns = _module_inputs(torch, value, rows, fields, what)
        caller = _Caller(torch, module, inputs, value if program else None)
        returned = caller.run({name: array[:TRACED_ROWS] for name, array in inputs.items()})
        names = [name for name, _ in _named(returned, what)]
        model = _export(torch, value if program else module, caller, inputs, names, what)
    return Candidate(
        model,
        original=_Original(torch, caller, module, program, what),
        fields=columns,
        frameworks={
            "torch": str(torch.__version__),
            "onnxscript": str(onnxscript.__version__),
            "onnx": str(onnx.__version__),
        },
    )


class _Caller:
    """Calls a module with arrays by name, in the places it takes them."""

    def __init__(self, torch: ModuleType, module: Any, inputs: Mapping[str, Array], program: Any) -> None:
        self._torch = torch
        self._module = module
        self.dtypes = {name: array.dtype for name, array in inputs.items()}
        self.ranks = {name: array.ndim for name, array in inputs.items()}
        weight = next(iter(module.parameters()), None)
        self._device = "cpu" if weight is None else weight.device
        # A program is called as it was exported: its keyword arguments come after the others.
        self.keywords = list(program.call_spec.in_spec.children()[1].context or ()) if program is not None else None

    def arguments(self, arrays: Mapping[str, Array]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments, on the module's device."""
        tensors = {
            name: self._torch.from_numpy(np.array(arrays[name], dtype=dtype)).to(self._device)
            for name, dtype in self.dtypes.items()
        }
        if self.keywords is None:
            return (), tensors
        count = len(tensors) - len(self.keywords)
        return tuple(tensors.values())[:count], dict(zip(self.keywords, list(tensors.values())[count:], strict=True))

    def run(self, arrays: Mapping[str, Array]) -> Any:
        """What the module returns."""
        positional, keywords = self.arguments(arrays)
        with self._torch.no_grad():
            return self._module(*positional, **keywords)


class _Original:
    """The module, asked for what each output of the graph should be."""

    def __init__(self, torch: ModuleType, caller: _Caller, module: Any, program: bool, what: str) -> None:
        self._torch = torch
        self._caller = caller
        self._module = module
        self._program = program
        self._what = what

    def __call__(self, feeds: Mapping[str, Array]) -> Expected:
        count = len(next(iter(feeds.values())))
        arrays = {name: _ranked(feeds[name], rank) for name, rank in self._caller.ranks.items() if name in feeds}
        found: list[dict[str, Array]] = []
        with _evaluated(self._torch, self._module, self._program):
            for start in range(0, count, ASKED_ROWS):
                block = {name: array[start : start + ASKED_ROWS] for name, array in arrays.items()}
                try:
                    found.append(
                        {name: tensor.cpu().numpy() for name, tensor in _named(self._caller.run(block), self._what)}
                    )
                except Exception as error:  # a module raises what it likes
                    raise ParityError(
                        f"the original {self._what} fails on the examples: {error}",
                        hint="Give examples such as it was trained with.",
                    ) from error
        return Expected({name: np.concatenate([block[name] for block in found]) for name in found[0]})


def _module_inputs(
    torch: ModuleType, module: Any, rows: Rows, fields: Sequence[str] | None, what: str
) -> tuple[dict[str, Array], tuple[str, ...] | None]:
    """Arrays by parameter of `forward` on which the module runs; the columns of a matrix."""
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    wanted = [p.name for p in named if p.default is p.empty or p.name in rows]
    floats = _float_type(torch, module, what)
    missing = [name for name in wanted if name not in rows]
    if len(wanted) == 1 and (missing or _is_one_column_of_many(rows, wanted[0], fields)):
        columns = tuple(fields) if fields is not None else rows.names
        array = np.stack([_number(rows, name) for name in columns], axis=1).astype(floats)
        return _first_that_runs(torch, module, [{wanted[0]: array}], what), columns
    if missing or not wanted:
        raise BindingError(
            f"no field of the examples matches parameter {', '.join(map(repr, missing)) or 'none'} of forward in "
            f"{what}; they have {', '.join(map(repr, rows.names))}",
            hint=_SHAPES_HINT,
        )
    arrays = {name: _array(rows, name) for name in wanted}
    return _first_that_runs(torch, module, list(_shapes(arrays, floats)), what), None


def _is_one_column_of_many(rows: Rows, name: str, fields: Sequence[str] | None) -> bool:
    """A column that happens to have the parameter's name, where the fields name others."""
    return fields is not None and len(fields) > 1 and getattr(rows.values[name], "ndim", 1) == 1


def _shapes(arrays: Mapping[str, Array], floats: npt.DTypeLike) -> Iterator[dict[str, Array]]:
    """The arrays in the shapes and types that a module may want them in, the likeliest first."""

    def shaped(deep: str, as_floats: str) -> dict[str, Array]:
        found = {}
        for name, array in arrays.items():
            kind = array.dtype.kind
            typed = array.astype(floats) if kind == "f" or kind in as_floats else array
            found[name] = typed[:, None] if typed.ndim == 1 and kind in deep else typed
        return found

    yield shaped("f", "")
    yield shaped("fib", "")
    yield shaped("", "")
    yield shaped("fib", "ib")
    yield shaped("", "ib")


def _first_that_runs(
    torch: ModuleType, module: Any, attempts: Sequence[dict[str, Array]], what: str
) -> dict[str, Array]:
    first: Exception | None = None
    for arrays in attempts:
        caller = _Caller(torch, module, arrays, None)
        try:
            caller.run({name: array[:TRACED_ROWS] for name, array in arrays.items()})
        except Exception as error:  # a module raises what it likes
            first = first or error
        else:
            return arrays
    shapes = ", ".join(f"{name} {array.dtype} {['N', *array.shape[1:]]}" for name, array in attempts[0].items())
    raise ConversionError(
        f"the {what} fails on the examples ({shapes.replace(chr(39), '')}): {str(first).splitlines()[0]}",
        hint=_SHAPES_HINT,
    ) from first


def _program_inputs(torch: ModuleType, program: Any, rows: Rows, fields: Sequence[str] | None) -> dict[str, Array]:
    """Arrays by input of an exported program, in the types and ranks it declares."""
    declared = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    found: dict[str, Array] = {}
    for name in program.graph_signature.user_inputs:
        value = declared.get(name)
        if not isinstance(value, torch.Tensor):
            raise ConversionError(f"input {name!r} of the exported program is not a tensor", hint=_WAY_OUT)
        dtype = np.dtype(str(value.dtype).removeprefix("torch."))
        if name in rows:
            array = _array(rows, name)
        else:
            array = np.stack([_number(rows, column) for column in fields or rows.names], axis=1)
        found[name] = _ranked(array.astype(dtype), value.ndim)
    return found


def _export(
    torch: ModuleType, source: Any, caller: _Caller, inputs: Mapping[str, Array], names: list[str], what: str
) -> onnx.ModelProto:
    rows = next(iter(inputs.values())).shape[0]
    traced = {name: array[np.arange(TRACED_ROWS) % rows] for name, array in inputs.items()}
    options: dict[str, Any] = {"output_names": names}
    if caller.keywords is None:
        _, keywords = caller.arguments(traced)
        options |= {
            "kwargs": keywords,
            "input_names": list(traced),
            "dynamic_shapes": {name: {0: torch.export.Dim.DYNAMIC} for name in traced},
        }
    try:
        with _quiet():
            program = torch.onnx.export(source, **options, opset_version=OPSET, dynamo=True, verbose=False)
    except Exception as error:  # an exporter raises what it likes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise ConversionError(f"torch.onnx can't export the {what}: {lines[0]}", hint=_WAY_OUT) from error
    return _plain(program.model_proto)


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without what differs from run to run or tells of the machine: stack traces, paths, symbols, versions."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *model.functions):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for function in model.functions:
        for node in function.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    model.ClearField("producer_version")
    graph.ClearField("value_info")
    symbols: dict[str, str] = {}
    for value in (*graph.input, *graph.output):
        for index, size in enumerate(value.type.tensor_type.shape.dim):
            if size.HasField("dim_param"):
                size.dim_param = symbols.setdefault(size.dim_param, "batch" if index == 0 else f"size_{len(symbols)}")
    return model


def _named(result: Any, what: str) -> list[tuple[str, Any]]:
    """Tensors by name from what `forward` returned."""
    if isinstance(result, Mapping):
        found = [(str(name), value) for name, value in result.items()]
    elif hasattr(result, "_fields"):
        found = list(zip(result._fields, result, strict=True))
    elif hasattr(result, "__dataclass_fields__"):
        found = [(name, getattr(result, name)) for name in result.__dataclass_fields__]
    elif isinstance(result, (tuple, list)):
        found = [(f"output_{index}" if len(result) > 1 else "output", value) for index, value in enumerate(result)]
    else:
        found = [("output", result)]
    found = [(name, value) for name, value in found if value is not None]
    odd = next((name for name, value in found if not (hasattr(value, "dtype") and hasattr(value, "cpu"))), None)
    if odd is not None or not found:
        raise ConversionError(
            f"the {what} returns {'nothing' if odd is None else f'no tensor as {odd!r}'}",
            hint="Wrap it in a module whose forward returns a tensor, or a dict of tensors by name.",
        )
    return found


def _float_type(torch: ModuleType, module: Any, what: str) -> npt.DTypeLike:
    kinds = {parameter.dtype for parameter in module.parameters() if parameter.dtype.is_floating_point}
    if kinds - {torch.float32, torch.float64}:
        raise ConversionError(
            f"the {what} has weights of {', '.join(sorted(map(str, kinds)))}, which no event field feeds",
            hint="Publish it as float32: module.float().",
        )
    return np.float64 if kinds == {torch.float64} else np.float32


def _array(rows: Rows, name: str) -> Array:
    """An array as it is, or a column of numbers or booleans."""
    values = rows.values[name]
    array = np.asarray(values) if getattr(values, "ndim", 1) > 1 else rows.column(name)
    if array.dtype.kind not in "fiub":
        raise BindingError(f"field {name!r} of the examples holds texts, and a module takes numbers", hint=_SHAPES_HINT)
    return array


def _number(rows: Rows, name: str) -> Array:
    array = rows.column(name)
    if array.dtype.kind not in "fi":
        raise BindingError(
            f"field {name!r} of the examples is not a number, and the module takes a matrix of them",
            hint="Name the fields it takes, in order: --fields a,b,c (from Python: fields=[...]).",
        )
    return array


def _ranked(array: Array, rank: int) -> Array:
    """`[N]` as `[N, 1]` or the other way round."""
    if array.ndim == 2 and array.shape[1] == 1 and rank == 1:
        return array[:, 0]
    return array[:, None] if array.ndim == 1 and rank == 2 else array


@contextmanager
def _evaluated(torch: ModuleType, module: Any, program: bool) -> Iterator[None]:
    """The module in eval mode, afterwards each of its parts in the mode it was in; a program has no modes."""
    before = {} if program else {part: part.training for part in module.modules()}
    if before:
        module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in before.items():
            part.training = training


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks about itself."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def _tensors_only(forced: bool) -> Iterator[None]:
    before = os.environ.get(_TENSORS_ONLY)
    if forced:
        os.environ[_TENSORS_ONLY] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(_TENSORS_ONLY, None)
        else:
            os.environ[_TENSORS_ONLY] = before
