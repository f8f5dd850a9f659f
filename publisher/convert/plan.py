"""What the graph of an estimator takes: columns or a matrix, of which kinds, from the estimator and the examples."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from modelcast.errors import BindingError, UsageError

from ..examples import Rows

MATRIX_INPUT: Final = "X"

# What LightGBM calls the columns of an array.
_LIGHTGBM_UNNAMED: Final = re.compile(r"Column_\d+")


@dataclass(frozen=True)
class Plan:
    """What the graph takes.

    Attributes:
        kinds: Numpy kind of each column (`f`, `i`, `b`, `O`), by name in order; empty for a matrix.
        width: Columns of the matrix; 0 if the converter gets columns.
        matrix: Its input's name.
        texts: Whether the matrix is of strings.
        names: Column names the estimator knows, in order; None if it was trained on arrays.
        precise: Whether floats are float64.
        series: Whether the estimator was trained on texts `[N]`, the only column.
    """

    kinds: Mapping[str, str] = field(default_factory=dict)
    width: int = 0
    matrix: str = MATRIX_INPUT
    texts: bool = False
    names: tuple[str, ...] | None = None
    precise: bool = False
    series: bool = False


def parts(value: Any) -> Iterator[Any]:
    """An estimator and every estimator within it."""
    from sklearn.base import BaseEstimator

    if isinstance(value, BaseEstimator):
        yield value
        children: Sequence[Any] = list(vars(value).values())
    elif isinstance(value, dict):
        children = list(value.values())
    elif isinstance(value, (list, tuple)):
        children = value
    else:
        return
    for child in children:
        yield from parts(child)


def plan_of(estimator: Any, rows: Rows, fields: Sequence[str] | None) -> Plan:
    """Decides what the graph takes.

    Raises:
        BindingError: The examples lack a column that the estimator takes.
        UsageError: `fields` name the columns it was trained with in another order.
    """
    from sklearn.compose import ColumnTransformer

    if _takes_texts(estimator):
        return Plan(kinds={_text_column(rows, fields): "O"}, series=True)
    names = names_of(estimator)
    if names is not None:
        heads = [part for part in parts(estimator) if isinstance(part, ColumnTransformer)]
        heads = [part for part in heads if set(names_of(part) or ("",)) <= set(names)]
        if heads:
            return Plan(kinds=_column_kinds(heads, names, rows), names=names)
        if fields is not None and sorted(fields) == sorted(names) and tuple(fields) != names:
            raise UsageError(
                "--fields names the model's columns in another order than it was trained with",
                hint=f"Leave --fields out, or write --fields {','.join(names)}.",
            )
    return _of_matrix(estimator, rows, fields, names)


def _of_matrix(estimator: Any, rows: Rows, fields: Sequence[str] | None, names: tuple[str, ...] | None) -> Plan:
    """For an estimator that takes all its columns alike."""
    given = [name for name in rows.names if rows.matrix(name) is not None]
    matrix = given[0] if len(given) == 1 else MATRIX_INPUT
    columns = tuple(fields) if fields is not None else names
    width = getattr(estimator, "n_features_in_", None) or len(columns or ())
    if not width:
        width = rows.matrix(matrix).shape[1] if given else len(rows.names)  # type: ignore[union-attr]
    if columns is None or matrix in rows or not all(name in rows for name in columns):
        array = rows.matrix(matrix)
        return Plan(width=width, matrix=matrix, texts=array is not None and array.dtype.kind == "O", names=names)
    kinds = {name: rows.column(name).dtype.kind for name in columns}
    if set(kinds.values()) <= {"f", "i"}:
        return Plan(width=width, matrix=matrix, names=names)
    if set(kinds.values()) == {"O"}:
        return Plan(width=width, matrix=matrix, texts=True, names=names)
    if "O" in kinds.values():  # a mixture that a converter may take column by column
        return Plan(kinds=kinds, names=names)
    return Plan(kinds=kinds, width=width, matrix=matrix, names=names)


def _takes_texts(estimator: Any) -> bool:
    """Whether its first step splits texts: such estimators are trained on texts, not on rows."""
    from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer

    steps = getattr(estimator, "steps", None)
    return _takes_texts(steps[0][1]) if steps else isinstance(estimator, (CountVectorizer, HashingVectorizer))


def _text_column(rows: Rows, fields: Sequence[str] | None) -> str:
    """The column of texts: the one named, or the only one."""
    texts = [name for name in rows.names if is_usable(rows, name) and rows.column(name).dtype.kind == "O"]
    names = list(fields) if fields is not None else texts
    if len(names) != 1:
        raise UsageError(
            f"the model takes one text, and the examples have {len(texts)} columns of texts"
            if fields is None
            else f"the model takes one text, and --fields names {len(names)} fields",
            hint="Name the field of the text: --fields text (from Python: fields=['text']).",
        )
    return names[0]


def names_of(estimator: Any) -> tuple[str, ...] | None:
    """The names of the columns an estimator was trained with, in order; None if it was trained on arrays."""
    names = getattr(estimator, "feature_names_in_", None)
    if names is None or all(_LIGHTGBM_UNNAMED.fullmatch(str(name)) for name in names):
        return None
    return tuple(str(name) for name in names)


def _column_kinds(heads: Sequence[Any], names: tuple[str, ...], rows: Rows) -> dict[str, str]:
    """The columns the converter is told of: those used, or all if some are used by their position."""
    used: set[str] = set()
    by_position = False
    for head in heads:
        for _, step, columns in head.transformers_:
            entries = [columns] if isinstance(columns, str) else list(columns) if _is_listed(columns) else None
            if entries is not None and all(isinstance(entry, str) for entry in entries):
                used |= set(entries) if not (isinstance(step, str) and step == "drop") else set()
            elif not (isinstance(step, str) and step == "drop"):
                by_position = True
    if by_position:
        return {name: rows.column(name).dtype.kind if is_usable(rows, name) else "O" for name in names}
    missing = [name for name in names if name in used and name not in rows]
    if missing:
        raise BindingError(
            f"no field of the examples matches column{'s' if len(missing) > 1 else ''} "
            f"{', '.join(map(repr, missing))} of the model; they have {', '.join(map(repr, rows.names)) or 'none'}",
            hint="Give examples with every column the model was trained with.",
        )
    return {name: rows.column(name).dtype.kind for name in names if name in used}


def _is_listed(columns: Any) -> bool:
    return isinstance(columns, (list, tuple, np.ndarray)) or type(columns).__name__ == "Index"


def is_usable(rows: Rows, name: str) -> bool:
    """Whether the examples have a column of this name that an input could take."""
    try:
        rows.column(name)
    except BindingError:
        return False
    return True
