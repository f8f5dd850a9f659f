"""What missing values of examples count as: given by the publisher, or found in the examples; recorded for consumers.

- `--null FIELD=VALUE` says what a field counts as where an event has null or lacks it; examples are filled alike, so
  that the model is tried on what it will be given.
- A field that feeds floats only, and misses values in the examples that the model is tried on, counts as NaN: that is
  what the model was tried with, and gave finite outputs for.
- Any other field has to be there in every event. So has a field that holds a whole row.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from modelcast.errors import UsageError
from modelcast.records import DType, InputBinding, NullRule
from modelcast.tensors import null_value, tensor_of

Array = npt.NDArray[Any]

_FLOATS = frozenset({DType.FLOAT32, DType.FLOAT64})
_NAN = "nan"


def as_texts(nulls: Mapping[str, object]) -> dict[str, str]:
    """What each field counts as, as the manifest says it.

    Raises:
        UsageError: It is neither a number, a text nor a boolean.
    """
    texts = {}
    for field, value in nulls.items():
        match value:
            case str():
                texts[field] = value
            case bool() | np.bool_():
                texts[field] = "true" if value else "false"
            case int() | np.integer():
                texts[field] = str(int(value))
            case float() | np.floating():
                texts[field] = _NAN if math.isnan(value) else repr(float(value))
            case _:
                raise UsageError(
                    f"null can't count as a {type(value).__name__} in field {field!r}",
                    hint="Give a number, a text, True or False; nan for a number that is not known.",
                )
    return texts


def rules_of(
    bindings: Sequence[InputBinding], feeds: Mapping[str, Array], given: Mapping[str, str]
) -> tuple[NullRule, ...]:
    """The rules of a version, in the order of its fields.

    Args:
        bindings: Its inputs.
        feeds: The arrays they were tried on.
        given: What the publisher says, by field.

    Raises:
        UsageError: The model does not take a field that is given, or it can't count as that.
    """
    dtypes: dict[str, set[DType]] = {}
    gaps: dict[str, bool] = {}
    rows: set[str] = set()
    for binding in bindings:
        if tensor_of(binding) is not None:
            rows.update(binding.fields)
        for place, field in enumerate(binding.fields):
            dtypes.setdefault(field, set()).add(binding.dtype)
            gaps[field] = gaps.get(field, False) or _has_gaps(feeds[binding.name], place)
    for field, value in given.items():
        _check(field, value, dtypes, rows)
    found = {
        field: _NAN for field, held in gaps.items() if held and dtypes[field] <= _FLOATS and field not in rows
    } | dict(given)
    return tuple(NullRule(field, found[field]) for field in dtypes if field in found)


def _has_gaps(feed: Array, place: int) -> bool:
    """Whether a column of an input misses values."""
    if feed.dtype.kind != "f":
        return False
    return bool(np.isnan(feed[:, place] if feed.ndim == 2 and place < feed.shape[1] else feed).any())


def _check(field: str, value: str, dtypes: Mapping[str, set[DType]], rows: set[str]) -> None:
    if field not in dtypes:
        raise UsageError(
            f"null can't count as {value!r} in field {field!r}: the model does not take it",
            hint=f"It takes {', '.join(map(repr, list(dtypes)[:12]))}.",
        )
    if field in rows:
        raise UsageError(
            f"null can't count as {value!r} in field {field!r}: it holds a whole row", hint="Leave it out."
        )
    for dtype in dtypes[field]:
        try:
            null_value(value, dtype)
        except ValueError as error:
            raise UsageError(
                f"null can't count as {value!r} in field {field!r}, which is {dtype}: {error}",
                hint="Give a value of the field's type: a number (nan where floats are taken), a text, true or false.",
            ) from error
