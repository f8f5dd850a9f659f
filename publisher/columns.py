"""Columns of examples, in whatever form they were given, as arrays: what gaps, times and records become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from modelcast.errors import BindingError, UsageError
from modelcast.records import DType
from modelcast.tensors import null_value

Array = npt.NDArray[Any]

# Records within records: a field `b` of a field `a` is `a.b`.
SEPARATOR: Final = "."
# What Polars counts times in.
_PER_MS: Final = {"ms": 1, "us": 10**3, "ns": 10**6}

# Integers up to this are floats without rounding.
_EXACT: Final = 2**53

KINDS_HINT = "Give examples of the kind the model takes, as events will have them, or convert inside the model."


def flat(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Columns with the fields of records as columns of their own; one that has such a name already stays."""
    return {
        path: held
        for name, values in columns.items()
        for path, held in _leaves(name, values)
        if path == name or path not in columns
    }


def _leaves(path: str, values: Any) -> Iterator[tuple[str, Any]]:
    if is_pandas(values) and getattr(values, "dtype", None) == np.dtype(object):
        first = next((value for value in values if isinstance(value, Mapping)), None)
        values = values if first is None else series_of(path, [_or_none(value) for value in values])
    if isinstance(values, pl.Series) and isinstance(values.dtype, pl.Struct):
        for name in values.struct.fields:
            yield from _leaves(f"{path}{SEPARATOR}{name}", values.struct.field(name))
    else:
        yield path, values


def _or_none(value: Any) -> Any:
    return value if isinstance(value, Mapping) else None


def series_of(name: str, values: list[Any]) -> pl.Series:
    """Values of any Python types as a column; of Python objects where nothing else can hold them."""
    try:
        return pl.Series(name, values)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
        try:  # integers first, floats later
            return pl.Series(name, values, dtype=pl.Float64)
        except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
            return pl.Series(name, values, dtype=pl.Object)  # refused if anybody asks for it


def filled(name: str, values: Any, text: str) -> Any:
    """A column with what `text` says in the place of what it misses. Raises UsageError: it holds no such values."""
    series = values if isinstance(values, pl.Series) else _as_series(name, values)
    if series is None:
        return values
    dtype = series.dtype
    try:
        if dtype.is_integer() or dtype.is_temporal():
            # Of integers with gaps a float model makes floats: NaN is there already.
            return series if text == "nan" else _whole(series).fill_null(null_value(text, DType.INT64))
        if dtype.is_float() or dtype.is_decimal():
            value = float(null_value(text, DType.FLOAT64))
            held = series.cast(pl.Float32 if dtype == pl.Float32 else pl.Float64)
            reals = held.fill_null(value).fill_nan(value)
            had_gaps = held.has_nulls() or bool(held.is_nan().any())
            return _unwidened(reals) if had_gaps and value.is_integer() and _widens(values) else reals
        if dtype == pl.Boolean:
            return series.fill_null(null_value(text, DType.BOOL))
        if dtype == pl.Null:
            return series_of(name, [text] * len(series))
        return series.cast(pl.String).fill_null(text)
    except (ValueError, pl.exceptions.PolarsError) as error:
        raise UsageError(
            f"null can't count as {text!r} in field {name!r}: the examples hold {_kind(dtype)}",
            hint="Give a value of the field's type: a number, a text, true or false.",
        ) from error


def _kind(dtype: pl.DataType) -> str:
    """What values of a column are, in words for people."""
    if dtype.is_numeric():
        return "numbers"
    return "times" if dtype.is_temporal() else "true and false" if dtype == pl.Boolean else f"{dtype}"


def _widens(values: Any) -> bool:
    """Whether a gap makes floats of integers here, as in plain arrays; elsewhere floats are floats."""
    return not isinstance(values, pl.Series) and isinstance(values.dtype, np.dtype) and values.dtype.kind == "f"


def _unwidened(reals: pl.Series) -> pl.Series:
    """Integers again of floats that a gap made of them; floats that were not whole stay."""
    whole = ((reals == reals.floor()) & (reals.abs() <= _EXACT)).all()
    return reals.cast(pl.Int64) if whole else reals


def _as_series(name: str, values: Any) -> pl.Series | None:
    """A column as a series with nulls for what it misses; None for what can't miss anything, or is no column."""
    if is_pandas(values):
        missing = values.isna().tolist()
        return series_of(name, [None if gone else value for value, gone in zip(values.tolist(), missing, strict=True)])
    if values.ndim != 1 or values.dtype.kind not in "fMO":
        return None
    if values.dtype.kind != "O":
        return pl.Series(name, values)
    return series_of(name, [None if value is None or value != value else value for value in values.tolist()])  # noqa: PLR0124


def as_array(name: str, values: Any) -> Array:
    """Floats, int64, bool or object-of-str, of the same shape."""
    if isinstance(values, pl.Series):
        return _of_series(name, values)
    if is_pandas(values):
        dtype = getattr(values, "dtype", None)
        if isinstance(dtype, np.dtype) and dtype.kind in "fiub":
            return as_array(name, values.to_numpy())
        missing = values.isna().tolist()
        texts = [None if gone else value for value, gone in zip(values.tolist(), missing, strict=True)]
        return _of_series(name, series_of(name, texts))
    return _of_numpy(name, np.asarray(values))


def _of_numpy(name: str, array: Array) -> Array:
    kind = array.dtype.kind
    if kind == "O":
        flat = [None if value is None or value != value else value for value in array.reshape(-1).tolist()]  # noqa: PLR0124
        return _of_series(name, series_of(name, flat)).reshape(array.shape)
    if kind in "iu":
        return _int64(name, array)
    if kind == "M":
        return _of_series(name, pl.Series(name, array.reshape(-1))).reshape(array.shape)
    if kind in "fbU":
        wanted: npt.DTypeLike = {
            "f": array.dtype if array.dtype.itemsize in (4, 8) else np.float64,
            "b": bool,
            "U": object,
        }[kind]
        return array.astype(wanted, copy=False)
    raise BindingError(
        f"field {name!r} of the examples holds {array.dtype}, which no model input takes", hint=KINDS_HINT
    )


def _of_series(name: str, series: pl.Series) -> Array:
    dtype = series.dtype
    if dtype.is_integer():
        if series.null_count():
            return series.cast(pl.Float64).to_numpy()
        return _int64(name, series.to_numpy())
    if dtype.is_float() or dtype.is_decimal() or dtype == pl.Null:
        return series.cast(pl.Float32 if dtype == pl.Float32 else pl.Float64).to_numpy()
    if dtype in (pl.Date, pl.Time) or isinstance(dtype, pl.Datetime):
        return _of_series(name, _whole(series))
    if dtype == pl.Boolean:
        if series.null_count():
            raise BindingError(
                f"field {name!r} of the examples is boolean and misses values",
                hint="Leave those rows out, or make it a number.",
            )
        return series.to_numpy()
    if dtype == pl.String or isinstance(dtype, (pl.Categorical, pl.Enum)):
        texts = np.empty(len(series), dtype=object)
        texts[:] = series.cast(pl.String).to_list()
        return texts
    raise BindingError(f"field {name!r} of the examples holds {dtype}, which no model input takes", hint=KINDS_HINT)


def _whole(series: pl.Series) -> pl.Series:
    """Integers as they are; times as milliseconds, rounded down, and dates as days."""
    dtype = series.dtype
    if isinstance(dtype, pl.Datetime):
        return series.to_physical() // _PER_MS[dtype.time_unit]
    return series.to_physical() // _PER_MS["ns"] if dtype == pl.Time else series.to_physical()


def _int64(name: str, array: Array) -> Array:
    if array.dtype == np.uint64 and array.size and array.max() > np.iinfo(np.int64).max:
        raise BindingError(f"field {name!r} of the examples holds integers beyond 64 bits with sign", hint=KINDS_HINT)
    return array.astype(np.int64, copy=False)


def is_pandas(value: Any) -> bool:
    """Whether this is an object of pandas, which need not be installed."""
    return type(value).__module__.partition(".")[0] == "pandas"
