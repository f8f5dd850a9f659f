"""Which converter an object takes: decided by the modules its type comes from, so nothing is imported to ask.

candidate = converters.convert(value, rows, fields=None) if converters.recognises(value) else None
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from modelcast.errors import SourceError

from ..candidate import Candidate
from ..examples import Rows
from . import lightgbm, sklearn, torch, xgboost


class Converter(Protocol):
    """A module of this package: what it recognises, and how that becomes a graph."""

    @property
    def EXTRA(self) -> str:  # noqa: N802 - a constant of the module
        """The extra of modelcast that installs what it takes."""

    def recognises(self, value: object) -> bool:
        """Whether it converts objects of this type."""

    def convert(self, value: Any, rows: Rows, fields: Sequence[str] | None, *, precise: bool = False) -> Candidate:
        """Converts; see `converters.convert`."""


# The first that recognises an object converts it: boosters of a package before the estimators of every package.
CONVERTERS: Final[tuple[Converter, ...]] = (torch, xgboost, lightgbm, sklearn)


def pick(value: object) -> Converter | None:
    """The converter for an object, or None if there is none."""
    return next((converter for converter in CONVERTERS if converter.recognises(value)), None)


def recognises(value: object) -> bool:
    """Whether any converter takes objects of this type."""
    return pick(value) is not None


def convert(value: Any, rows: Rows, fields: Sequence[str] | None, *, precise: bool = False) -> Candidate:
    """Converts a trained object.

    Args:
        value: An estimator, Pipeline, booster, PyTorch module or exported program.
        rows: The examples; their types become the inputs' types.
        fields: Names the caller gave for the columns of a matrix input, if any.
        precise: Whether floats are float64 as far as the converter can: the second attempt, after parity failed.

    Raises:
        MissingExtraError: A package of the converter's extra is not installed.
        SourceError: Nothing here converts such an object, or it is not trained.
        BindingError: The examples lack a column that it takes.
        UsageError: `fields` do not fit what it was trained with.
        ConversionError: The converter can't express it, or would express it wrongly.
    """
    converter = pick(value)
    if converter is None:
        raise SourceError(
            f"an object of type {type(value).__name__} is nothing that can be converted",
            hint="Give a fitted scikit-learn, XGBoost or LightGBM estimator, a PyTorch module, or an ONNX model.",
        )
    return converter.convert(value, rows, fields, precise=precise)
