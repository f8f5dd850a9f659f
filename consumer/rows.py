"""What an application hands to `predict`, as one array per event field. Pure.

- A table by field: a mapping of arrays, lists or scalars, a Polars or pandas frame, or anything that streams Arrow data
  (`__arrow_c_stream__`: pyarrow, DuckDB, …), which Polars reads. Scalars count for every row.
- Or a list of records, each a mapping of field to value.
- The rules are those of events: a value is there (null, None and pandas' NA are not), a string is text, a bool is no
  number; times are milliseconds. Fields the model does not take are ignored. Where the model says what null counts as,
  that stands for a value that is not there, and for a field that is not.
- A field `a.b` is the column or key `a.b`; where there is none, `b` of what is under `a`.
- Arrays that are what the model takes (its element type, one dimension) are passed on as they are, in a microsecond.
- A field that holds the whole row of a tensor `[N, d1, …, dk]` is one array of that shape or of `[N, d1·…·dk]`; or for
  each row what `modelcast.tensors` takes. One row alone, as bytes or an array, counts as a scalar does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, cast, runtime_checkable

import numpy as np

from modelcast.errors import BindingError
from modelcast.records import DType, Signature
from modelcast.runtime import Array
from modelcast.tensors import FieldSpec, is_row, numpy_dtype, shaped, stack

from .binding import missing_field


@runtime_checkable
class Frame(Protocol):
    """A Polars or pandas frame, by what both have."""

    @property
    def columns(self) -> Iterable[str]: ...

    def __getitem__(self, name: str, /) -> Any: ...

    def to_numpy(self) -> Array: ...


@runtime_checkable
class ArrowStream(Protocol):
    """A table by Arrow's PyCapsule interface (arrow.apache.org/docs/format/CDataInterface/PyCapsuleInterface.html)."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object: ...


Rows = Mapping[str, Any] | Sequence[Mapping[str, Any]] | Frame | ArrowStream

# Records within records: a field `b` of a field `a` is `a.b`.
SEPARATOR: Final = "."
# Stands for what is not there, where None could be.
MISSING: Final = object()

_SCALARS = (str, bytes, int, float, bool, np.generic, type(None))
_BOOLS = (bool, np.bool_)
_NUMBERS = (int, float, np.integer, np.floating)
# Numbers of these types need no look at their values: an array of another type, or of objects, does.
_PREPARED: Final[Mapping[DType, np.dtype[Any]]] = {
    dtype: numpy_dtype(dtype) for dtype in DType if dtype is not DType.STRING
}


def columns_of(rows: Rows | object, specs: Sequence[FieldSpec]) -> dict[str, Array]:
    """The fields a model takes, as arrays of one length; numbers as they came, strings as objects.

    Args:
        rows: As in the module's rules.
        specs: What the model takes.

    Raises:
        BindingError: A field is missing, null, of the wrong kind, or of another length than the others.
    """
    if type(rows) is dict and (prepared := _prepared(rows, specs)) is not None:
        return prepared
    table = _table(rows, specs)
    arrays: dict[str, Array] = {}
    scalars: dict[str, Array] = {}
    for spec in specs:
        value = held(table, spec.name)
        if value is MISSING:
            if spec.null is None:
                raise missing_field(spec, table)
            value = None
        is_scalar = _is_one(spec, value)
        if spec.shape is not None:
            column = _tensor(spec, [value] if is_scalar else value)
        else:
            column = _column(spec, [value.item() if isinstance(value, np.ndarray) else value] if is_scalar else value)
        (scalars if is_scalar else arrays)[spec.name] = column
    count = len(next(iter(arrays.values()))) if arrays else 1
    return arrays | {name: np.repeat(column, count, axis=0) for name, column in scalars.items()}


def count_of(rows: Rows | object) -> int | None:
    """About how many rows these are, without a look at any: the length of the first column; None if nobody knows."""
    if isinstance(rows, Mapping):
        sizes = (len(value) for value in rows.values() if hasattr(value, "__len__") and not _is_scalar(value))
        return next(sizes, 1)
    return len(rows) if hasattr(rows, "__len__") else None


def check_feeds(feeds: Mapping[str, Any], signature: Signature) -> None:
    """Checks a graph's own inputs against its signature.

    Args:
        feeds: By input name, what should be arrays of the input's type and shape.

    Raises:
        BindingError: Names what is missing, not of the graph, of another type or shape, or uneven.
    """
    wanted = {entry.name: entry for entry in signature.inputs}
    for name in [*wanted, *feeds]:
        if name not in feeds or name not in wanted:
            what = f"input {name!r} is missing" if name in wanted else f"the model has no input {name!r}"
            raise BindingError(what, hint=f"Its inputs are: {', '.join(wanted)}.")
    rows = -1
    for name, entry in wanted.items():
        array, dtype, shape = feeds[name], numpy_dtype(entry.dtype), entry.shape
        sizes = ", ".join("N" if size is None else str(size) for size in shape)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            what = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
            raise BindingError(f"input {name!r} is {what}, the model needs an array of {dtype}")
        is_shape = array.ndim == len(shape) and all(
            size in (None, given) for size, given in zip(shape, array.shape, strict=True)
        )
        if not is_shape or rows not in (-1, len(array)):
            uneven = "" if rows < 0 else f", N is {rows} here"
            raise BindingError(f"input {name!r} has shape {list(array.shape)}, the model needs [{sizes}]{uneven}")
        rows = len(array)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, _SCALARS) or (isinstance(value, np.ndarray) and value.ndim == 0)


def _prepared(rows: dict[str, Any], specs: Sequence[FieldSpec]) -> dict[str, Array] | None:
    """The rows themselves where each field is an array `[N]` of the type the model takes; the binding checks N."""
    for spec in specs:
        array, dtype = rows.get(spec.name), _PREPARED.get(spec.dtype)
        if dtype is None or spec.shape is not None or type(array) is not np.ndarray:
            return None
        if array.ndim != 1 or array.dtype != dtype:
            return None
    return rows


def _table(rows: object, specs: Sequence[FieldSpec]) -> Mapping[str, Any]:
    if isinstance(rows, Mapping):
        return rows
    if isinstance(rows, Frame):
        return _columns_of_frame(rows, specs)
    if isinstance(rows, ArrowStream):
        return _arrow(rows, specs)
    if isinstance(rows, str | bytes) or not isinstance(rows, Sequence):
        raise BindingError(
            f"a {type(rows).__name__} can't be predicted on",
            hint="Give a mapping of field to values, a list of records, or a Polars, pandas or Arrow table.",
        )
    table: dict[str, list[Any]] = {}
    for index, record in enumerate(rows):
        if not isinstance(record, Mapping):
            raise BindingError(f"row {index} is a {type(record).__name__}, not a mapping of field to value")
    for spec in specs:
        found = [held(record, spec.name) for record in rows]
        missing = next((index for index, value in enumerate(found) if value is MISSING), None)
        if missing is None:
            table[spec.name] = found
        elif spec.null is not None:
            table[spec.name] = [None if value is MISSING else value for value in found]
        elif any(value is not MISSING for value in found):
            raise BindingError(f"field {spec.name!r} is missing in row {missing}")
        else:
            raise missing_field(spec, rows[missing])
    return table


def held(holder: Any, name: str) -> Any:
    """What a mapping holds under a name, or within what is under its first part; `MISSING` if nothing does.

    Within null everything is null.
    """
    if name in holder:
        return holder[name]
    first, dot, rest = name.partition(SEPARATOR)
    if not dot or first not in holder:
        return MISSING
    within = holder[first]
    if within is None:
        return None
    return held(within, rest) if isinstance(within, Mapping) else MISSING


def _arrow(rows: ArrowStream, specs: Sequence[FieldSpec]) -> Mapping[str, Any]:
    import polars

    try:
        frame = polars.DataFrame(rows)
    except Exception as error:  # Polars' own, and those of whoever exports the stream
        raise BindingError(
            f"a {type(rows).__name__} can't be read as an Arrow table: {error}",
            hint="Give a table or a stream of record batches with one column per field.",
        ) from error
    return _columns_of_frame(frame, specs)


def _columns_of_frame(frame: Frame, specs: Sequence[FieldSpec]) -> Mapping[str, Any]:
    names = frozenset(frame.columns)
    table: dict[str, Any] = {}
    for spec in specs:
        column = frame[spec.name] if spec.name in names else _within(frame, spec.name, names)
        if column is not None:
            table[spec.name] = column
        elif spec.null is None:
            raise missing_field(spec, names)
    return table


def _within(frame: Frame, name: str, names: Collection[str]) -> Any:
    """A field of a column of records; None if there is no such column or field."""
    first, *path = name.split(SEPARATOR)
    if not path or first not in names:
        return None
    column = frame[first]
    if not hasattr(column, "struct"):  # pandas: records are dicts
        found = [held({first: value}, name) for value in column]
        return None if all(value is MISSING for value in found) else [None if v is MISSING else v for v in found]
    for part in path:
        if part not in getattr(column.struct, "fields", ()):
            return None
        column = column.struct.field(part)
    return column


def _is_one(spec: FieldSpec, value: Any) -> bool:
    """Whether this is one row's value rather than one for each row."""
    if spec.shape is None or not isinstance(value, np.ndarray):
        return _is_scalar(value)
    return is_row(value.shape, spec)


def _tensor(spec: FieldSpec, values: Any) -> Array:
    if not isinstance(values, np.ndarray | list | tuple):
        array = np.asarray(_numpy(spec, values))  # never a list: nothing counts as a whole row
        # Lists of one length are one array already in Arrow's memory; others are rows of their own.
        listed = getattr(values, "to_list", None) or getattr(values, "to_pylist", None)
        values = array if array.ndim > 1 else listed() if listed is not None else list(values)
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return shaped(values, spec)
    return stack(list(values), spec)


def _column(spec: FieldSpec, values: Any) -> Array:
    if not isinstance(values, np.ndarray | list | tuple):
        values = _numpy(spec, values)
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        return _milliseconds(spec, values)
    is_typed = isinstance(values, np.ndarray) and values.dtype.kind != "O"
    column: Array = values if is_typed else _of_objects(spec, list(values))
    if column.dtype.kind == "b" and spec.dtype is not DType.BOOL:
        raise BindingError(f"field {spec.name!r} is bool, the model needs {spec.dtype}")
    return column.astype(object) if column.dtype.kind == "U" else column


def _milliseconds(spec: FieldSpec, times: Array) -> Array:
    """Times as events have them: milliseconds since 1970, rounded down; dates are days."""
    nulls = np.isnat(times)
    is_date = np.datetime_data(times.dtype)[0] == "D"
    whole: Array = (times if is_date else times.astype("datetime64[ms]")).astype(np.int64)
    if not nulls.any():
        return whole
    _refuse_nulls(spec, int(nulls.sum()))
    value = cast("float", spec.null_value)
    return np.where(nulls, np.asarray(value), whole)


def _numpy(spec: FieldSpec, series: Any) -> Array | list[Any]:
    """A series without nulls: on their way to numpy they turn into NaN, which would be another value."""
    null_count = getattr(series, "null_count", 0)  # a method of Polars, a property of Arrow
    if callable(null_count):
        if null_count() and spec.null is not None and not series.dtype.is_temporal():
            return series.to_list()  # type: ignore[no-any-return]
        _refuse_nulls(spec, null_count())
        # `asarray` asks Polars for what it lacks first, which takes twenty times as long.
        converted: Array = series.to_numpy()
        return converted
    # Of pandas' series on numpy, NaN is all there is, and a value; its own types tell NA from NaN.
    if not isinstance(getattr(series, "dtype", np.dtype(object)), np.dtype):
        is_null = getattr(series, "isna", None)
        null_count = int(is_null().sum()) if callable(is_null) else null_count
    if null_count and spec.null is not None:
        return [None if gone else value for value, gone in zip(series.tolist(), series.isna().tolist(), strict=True)]
    _refuse_nulls(spec, null_count)
    return np.asarray(series)


def _refuse_nulls(spec: FieldSpec, count: int) -> None:
    if count and spec.null is None:
        raise BindingError(f"field {spec.name!r} is null in {count} rows")


def _of_objects(spec: FieldSpec, values: Sequence[Any]) -> Array:
    """Values of any Python types, held to the field's kind before numpy could turn one into the other."""
    if spec.null is not None:
        values = [spec.null_value if value is None else value for value in values]
    wrong = {kind for kind in set(map(type, values)) if not _fits(kind, spec.dtype)}
    if wrong:
        index, value = next((index, value) for index, value in enumerate(values) if type(value) in wrong)
        what = "null" if value is None else f"{value!r:.60}"
        raise BindingError(f"field {spec.name!r} is {what} in row {index}, the model needs {spec.dtype}")
    if spec.dtype is DType.STRING:
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    return np.asarray(values) if values else np.empty(0, dtype=spec.dtype.value)


def _fits(kind: type, dtype: DType) -> bool:
    match dtype:
        case DType.STRING:
            return issubclass(kind, str)
        case DType.BOOL:
            return issubclass(kind, _BOOLS)
        case _:
            return issubclass(kind, _NUMBERS) and not issubclass(kind, _BOOLS)
