"""Examples: rows by event field or arrays by graph input; how inputs bind to fields, and what feeds the graph.

- Rows come from a CSV, JSON lines or Parquet file, a polars or pandas DataFrame, a list of dicts, or a dict of columns;
  arrays from an `.npz` file or a dict. Columns and arrays nobody asks for are ignored, whatever they hold.
- An input `[N]` or `[N, 1]` is a column: it takes the event field of its own name (or the one name given as fields).
- An input `[N, F]` is a matrix of F event fields in order: those given as fields; else those the estimator was trained
  with; else the examples' columns in their order, if they are exactly F and all numbers. There can be only one.
- An input `[N, d1, …, dk]` of more dimensions takes one field that holds the whole row (`whole_rows`), found as for a
  column. So does `[N, F]` where the one field of its name, or the one named as fields, holds rows.
- Values convert without loss of meaning, as those of events will: float from any number, integer from integers in
  range, string from text, boolean from booleans. A missing number is NaN for a float input and an error elsewhere,
  unless the publisher says what null counts as (`nulls`).
- Fields of records, given as structs or dicts, are columns `a.b`. Times are milliseconds since 1970, dates days, as
  they will be in events.

    >>> rows = read({"amount": [1.5, 2.0], "note": ["a", "b"]})
    >>> bind([TensorInfo("amount", "float32", (None, 1))], rows, None)[0].fields
    ('amount',)
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl

from modelcast import tables
from modelcast.errors import BindingError, SourceError, StructureError, UsageError
from modelcast.records import DType, InputBinding
from modelcast.runtime import TensorInfo
from modelcast.tensors import LAYOUTS, tensor_of

from . import whole_rows
from .columns import KINDS_HINT, as_array, filled, flat, is_pandas, series_of

Array = npt.NDArray[Any]
# A path, a polars or pandas DataFrame, arrays or lists by name, or one dict a row.
ExamplesSource: TypeAlias = Path | str | Mapping[str, Any] | Sequence[Mapping[str, Any]] | pl.DataFrame | Any

# The original and the graph are compared on this many rows at most: enough to meet the branches of a tree ensemble,
# a few seconds for an estimator of ordinary size.
MAX_ROWS: Final = 10_000

_HINT = "Give rows by field name (.csv, .jsonl, .parquet) or arrays by input name (.npz)."
_ROWS_HINT = "Give each input as many rows as the others."
_NAMES_HINT = (
    "Name the event fields as the examples do, in the model's order: --fields a,b,c (from Python: fields=[...])."
)


@dataclass(frozen=True)
class Rows:
    """Examples as they were given: named columns `[N]` or arrays `[N, …]`, converted when they are asked for."""

    values: Mapping[str, Any]
    count: int

    def __contains__(self, name: object) -> bool:
        return name in self.values

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    def head(self, count: int) -> Rows:
        """The first `count` rows."""
        return self.part(0, count)

    def part(self, start: int, stop: int) -> Rows:
        """The rows from `start` up to `stop`, which may be beyond the last."""
        stop = min(stop, self.count)
        if (start, stop) == (0, self.count):
            return self
        return Rows({name: values[start:stop] for name, values in self.values.items()}, stop - start)

    def filled(self, nulls: Mapping[str, str]) -> Rows:
        """With what null counts as, by field, in the place of missing values.

        Raises:
            UsageError: A column holds nothing that could be that.
        """
        if not nulls:
            return self
        values = {
            name: filled(name, held, nulls[name]) if name in nulls else held for name, held in self.values.items()
        }
        return Rows(values, self.count)

    def column(self, name: str) -> Array:
        """One column `[N]`: float, int64 or bool, or an object array of str (None where a text is missing).

        Raises:
            BindingError: There is no such column, or it holds what no input takes.
        """
        if name not in self.values:
            raise BindingError(
                f"the examples have no field {name!r}; they have {_listed(self.names)}", hint=_NAMES_HINT
            )
        array = as_array(name, self.values[name])
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1:
            raise BindingError(
                f"field {name!r} of the examples is an array of shape {list(array.shape)}, not a column",
                hint=KINDS_HINT,
            )
        return array

    def matrix(self, name: str) -> Array | None:
        """Rows `[N, F]` given under this name, or None if there are none or it is a column."""
        values = self.values.get(name)
        if values is None:
            return None
        return as_array(name, values) if getattr(values, "ndim", 1) == 2 else whole_rows.as_matrix(values)

    def is_number(self, name: str) -> bool:
        """Whether the column of this name holds numbers."""
        try:
            return self.column(name).dtype.kind in "fiu"
        except BindingError:
            return False


def read(source: ExamplesSource | None) -> Rows:
    """Takes examples in any form they can be given.

    Raises:
        UsageError: There are none.
        SourceError: They can't be read, hold no rows, or their arrays are not of one length.
    """
    if source is None:
        raise UsageError(
            "no examples are given, and every model is tried on examples before it is published", hint=_HINT
        )
    if isinstance(source, (str, Path)):
        path = Path(source)
        rows = _read_npz(path) if path.suffix.lower() == ".npz" else _of_frame(tables.read_table(path))
        where = str(path)
    else:
        rows, where = _of_object(source), "the examples"
    if rows.count == 0 or not rows.values:
        raise SourceError(f"{where} hold{'' if where == 'the examples' else 's'} no rows", hint=_HINT)
    return rows


def bind(inputs: Sequence[TensorInfo], rows: Rows, fields: Sequence[str] | None) -> tuple[InputBinding, ...]:
    """Says which event fields feed each graph input.

    Args:
        inputs: The graph's inputs, batch first.
        rows: The examples.
        fields: The names for the columns of the single matrix input, in order; None if the caller gave none.

    Raises:
        StructureError: An input is of a type or shape that can't be fed from event fields.
        BindingError: The examples do not have what an input takes.
        UsageError: `fields` are missing, do not fit, or are not needed.
    """
    tensors = [info for info in inputs if _is_tensor(info, rows, fields)]
    matrices = [info for info in inputs if info not in tensors and _is_matrix(info, fields)]
    if len(matrices) > 1:
        raise BindingError(
            f"the graph has {len(matrices)} matrix inputs, {_listed([info.name for info in matrices])}",
            hint="Export it with one matrix input, or with one input [N, 1] per event field.",
        )
    if fields is not None:
        _check_fields(inputs, matrices, fields)
    return tuple(
        _bind_one(info, _field_of(info, inputs, fields), rows)
        if info not in matrices
        else _bind_matrix(info, rows, fields)
        for info in inputs
    )


def feeds(bindings: Sequence[InputBinding], rows: Rows) -> dict[str, Array]:
    """The arrays of graph inputs, `[N]`, `[N, 1]`, `[N, F]` or `[N, d1, …, dk]` as the bindings say.

    Raises:
        BindingError: A field is missing or does not convert; the message names field and types.
    """
    return {binding.name: _feed(binding, rows) for binding in bindings}


def exact_feeds(bindings: Sequence[InputBinding], rows: Rows) -> dict[str, Array]:
    """As `feeds`, with float64 where the graph takes float32: what an original is compared on.

    Whole rows are first made the float32 that their bytes in events will be.
    """
    exact: dict[str, Array] = {}
    for binding in bindings:
        if binding.dtype is not DType.FLOAT32:
            exact[binding.name] = _feed(binding, rows)
        elif tensor_of(binding) is not None:
            exact[binding.name] = _feed(binding, rows).astype(np.float64)
        else:
            exact[binding.name] = _feed(replace(binding, dtype=DType.FLOAT64), rows)
    return exact


def _read_npz(path: Path) -> Rows:
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array without a name")
        with loaded as archive:
            return _of_mapping({name: archive[name] for name in archive.files})
    except (OSError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or "not an archive"
        raise SourceError(f"can't read examples {path}: {reason}", hint=_HINT) from error
    except ValueError as error:
        raise SourceError(
            f"can't read examples {path}: {error}", hint="Store texts as arrays of '<U', never as objects."
        ) from error


def _of_object(source: Any) -> Rows:
    if isinstance(source, Mapping):
        return _of_mapping(source)
    if isinstance(source, pl.DataFrame):
        return _of_frame(source)
    if is_pandas(source) and hasattr(source, "columns"):
        return Rows(flat({str(name): source[name] for name in source.columns}), len(source))
    if isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        if not source:
            return Rows({}, 0)
        names = dict.fromkeys(str(name) for row in source for name in row)
        columns = {name: series_of(name, [row.get(name) for row in source]) for name in names}
        return Rows(flat(columns), len(source))
    raise SourceError(
        f"examples can't be a {type(source).__name__}",
        hint="Give a path, a DataFrame, a dict of arrays, or a list of dicts.",
    )


def _of_frame(frame: pl.DataFrame) -> Rows:
    return Rows(flat({name: frame[name] for name in frame.columns}), frame.height)


def _of_mapping(source: Mapping[str, Any]) -> Rows:
    values = {str(name): _sliceable(str(name), value) for name, value in source.items()}
    counts = {name: len(value) for name, value in values.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{name}: {count}" for name, count in counts.items())
        raise SourceError(f"the examples' arrays have different numbers of rows ({told})", hint=_ROWS_HINT)
    return Rows(flat(values), next(iter(counts.values()), 0))


def _sliceable(name: str, value: Any) -> Any:
    if isinstance(value, pl.Series) or is_pandas(value):
        return value
    if isinstance(value, (list, tuple)):
        nested = any(isinstance(entry, (list, tuple, np.ndarray)) for entry in value)
        value = value if nested else series_of(name, list(value))
    array = value if isinstance(value, pl.Series) else np.asarray(value)
    if isinstance(array, np.ndarray) and array.ndim == 0:
        raise SourceError(f"example {name!r} is a single value, not a row of values", hint=_ROWS_HINT)
    return array


def _is_tensor(info: TensorInfo, rows: Rows, fields: Sequence[str] | None) -> bool:
    """Whether one field holds a whole row of this input."""
    _check_shape(info)
    if len(info.shape) != 2 or info.shape[1] == 1:
        return len(info.shape) > 2
    if fields is not None and len(fields) != 1:
        return False
    names = [name for name in (*(fields or ()), info.name) if name in rows]
    given = rows.values[names[0]] if names else None
    if isinstance(given, np.ndarray) and whole_rows.are_arrays(given):
        # An array under the input's name may be columns or whole rows: who names one field says which.
        return fields is not None or given.ndim > 2
    return whole_rows.are_rows(given)


def _is_matrix(info: TensorInfo, fields: Sequence[str] | None) -> bool:
    """`[N, 1]` is a column; `[N, ?]` is a matrix unless one field is named for it."""
    return len(info.shape) == 2 and info.shape[1] != 1 and not (info.shape[1] is None and fields and len(fields) == 1)


def _check_shape(info: TensorInfo) -> None:
    if info.dtype not in set(DType):
        raise StructureError(
            f"input {info.name!r} is of type {info.dtype}, which can't be fed from event fields",
            hint=f"Cast inside the graph; inputs may be {_listed(list(DType))}.",
        )
    if not info.shape:
        raise StructureError(f"input {info.name!r} has no batch dimension", hint="Make its first dimension the batch.")
    if info.shape[0] is not None:
        raise StructureError(
            f"input {info.name!r} takes batches of exactly {info.shape[0]} row{'s' if info.shape[0] != 1 else ''}",
            hint="Export it with a dynamic first dimension (PyTorch: dynamic_axes or dynamic_shapes).",
        )
    if len(info.shape) > 2 and DType(info.dtype) not in LAYOUTS:
        raise StructureError(
            f"input {info.name!r} is {_shape(info)} of {info.dtype}, and events hold whole rows of numbers only",
            hint=f"Cast inside the graph from one of {_listed(list(LAYOUTS))}.",
        )


def _shape(info: TensorInfo) -> str:
    return "[" + ", ".join("N" if size is None else str(size) for size in info.shape) + "]"


def _check_fields(inputs: Sequence[TensorInfo], matrices: Sequence[TensorInfo], fields: Sequence[str]) -> None:
    twice = sorted(name for name, times in Counter(fields).items() if times > 1)
    if not fields or twice or not all(fields):
        said = f"--fields names {_listed(twice)} twice" if twice else "--fields holds an empty name"
        raise UsageError(said, hint=_NAMES_HINT)
    names = [info.name for info in inputs]
    if not matrices and len(names) > 1 and set(fields) != set(names):
        raise UsageError(
            f"--fields is for a single matrix input, and this model takes one field per input: {_listed(names)}",
            hint="Leave --fields out.",
        )
    width = matrices[0].shape[1] if matrices else len(names)
    if width is not None and width != len(fields):
        what = f"matrix input {matrices[0].name!r} takes" if matrices else "the model takes"
        raise UsageError(
            f"--fields names {len(fields)} field{'s' if len(fields) != 1 else ''}, and {what} {width}",
            hint="Name every column, in the order the model was trained with.",
        )


def _field_of(info: TensorInfo, inputs: Sequence[TensorInfo], fields: Sequence[str] | None) -> str:
    return fields[0] if fields is not None and len(inputs) == 1 else info.name


def _bind_matrix(info: TensorInfo, rows: Rows, fields: Sequence[str] | None) -> InputBinding:
    names = tuple(fields) if fields is not None else _columns_of_matrix(info, rows)
    return InputBinding(info.name, DType(info.dtype), (None, len(names)), names)


def _bind_one(info: TensorInfo, field: str, rows: Rows) -> InputBinding:
    """Binds an input that takes one field: a column, or whole rows."""
    dtype = DType(info.dtype)
    given = next((rows.values[name] for name in (field, info.name) if name in rows), None)
    if given is None:
        raise BindingError(
            f"no field of the examples matches input {info.name!r} ({dtype}, {_shape(info)}); "
            f"they have {_listed(rows.names)}",
            hint="Name columns after the graph's inputs, or rename the inputs.",
        )
    if len(info.shape) == 1 or info.shape[1:] == (1,):
        return InputBinding(info.name, dtype, info.shape, (field,))
    if len(info.shape) == 2 and not (whole_rows.are_rows(given) or whole_rows.are_arrays(given)):
        return InputBinding(info.name, dtype, (None, 1), (field,))
    return InputBinding(info.name, dtype, (None, *whole_rows.sizes(info, given)), (field,))


def _columns_of_matrix(info: TensorInfo, rows: Rows) -> tuple[str, ...]:
    width = info.shape[1]
    given = rows.matrix(info.name)
    if given is None and len(rows.names) == width and all(rows.is_number(name) for name in rows.names):
        return rows.names
    if width is None and given is not None:
        width = given.shape[1]
    many = "its columns" if width is None else f"its {width} columns"
    raise UsageError(
        f"input {info.name!r} is a matrix, and nothing says which event fields are {many}",
        hint="Name them in order: --fields a,b,c (from Python: fields=[...]); or the one field that holds a whole row.",
    )


def _feed(binding: InputBinding, rows: Rows) -> Array:
    tensor = tensor_of(binding)
    if tensor is not None:
        name = tensor.name if tensor.name in rows else binding.name
        stacked = whole_rows.stacked(name, rows.values[name], tensor)
        return np.ascontiguousarray(_converted(name, stacked, binding.dtype))
    width = binding.shape[1] if len(binding.shape) == 2 else None
    given = rows.matrix(binding.name)
    if given is not None and (width or 1) > 1:
        if given.shape[1] != width:
            raise BindingError(
                f"the examples give input {binding.name!r} {given.shape[1]} columns, it takes {width}", hint=KINDS_HINT
            )
        return np.ascontiguousarray(_converted(binding.name, given, binding.dtype))
    names = (
        [name if name in rows else binding.name for name in binding.fields] if width in (None, 1) else binding.fields
    )
    columns = [_converted(name, rows.column(name), binding.dtype) for name in names]
    return columns[0] if width is None else np.stack(columns, axis=1)


def _converted(field: str, array: Array, dtype: DType) -> Array:
    kind = array.dtype.kind
    if dtype in (DType.FLOAT32, DType.FLOAT64) and kind in "fiu":
        return array.astype(dtype.value)
    if dtype in (DType.INT64, DType.INT32, DType.UINT8) and kind in "iu":
        bounds = np.iinfo(dtype.value)
        if array.size and (array.min() < bounds.min or array.max() > bounds.max):
            raise BindingError(f"field {field!r} holds integers beyond {dtype}", hint=KINDS_HINT)
        return array.astype(dtype.value)
    if dtype is DType.BOOL and kind == "b":
        return array
    if dtype is DType.STRING and kind == "O":
        missing = next((row for row, value in enumerate(array.reshape(-1)) if value is None), None)
        if missing is not None:
            raise BindingError(
                f"field {field!r} misses a text in row {missing // max(1, array[0].size if array.ndim > 1 else 1)}",
                hint="A graph has no missing text: fill it, for training too, with a value of its own such as ''.",
            )
        return array
    held = {"f": "floats", "i": "integers", "u": "integers", "b": "booleans", "O": "texts"}[kind]
    raise BindingError(f"field {field!r} of the examples holds {held}, and the model takes {dtype}", hint=KINDS_HINT)


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(str(name)) for name in names[:12])
    return f"{shown}, … ({len(names)} in all)" if len(names) > 12 else shown or "none"
