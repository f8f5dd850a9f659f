"""Fitted scikit-learn estimators and Pipelines, with estimators of other packages among their steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ..candidate import Candidate
from ..examples import Rows
from . import estimators, lightgbm, xgboost

EXTRA: Final = "sklearn"


def recognises(value: object) -> bool:
    """Whether this is an instance with `fit` and either `predict` or `transform`."""
    return (
        not isinstance(value, type)
        and hasattr(value, "fit")
        and (hasattr(value, "predict") or hasattr(value, "transform"))
    )


def convert(value: Any, rows: Rows, fields: Sequence[str] | None, *, precise: bool = False) -> Candidate:
    """Converts; see `converters.convert` and `estimators`."""
    return estimators.convert(
        value, rows, fields, precise=precise, plugins=(xgboost.PLUGIN, lightgbm.PLUGIN), extra=EXTRA
    )
