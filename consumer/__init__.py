"""The application side: predict with published models, score streams of events."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .client import ModelClient
    from .model import Model, Prediction
    from .scorer import Scorer

__all__ = ["Model", "ModelClient", "Prediction", "Scorer"]

_HOMES = {"Model": ".model", "ModelClient": ".client", "Prediction": ".model", "Scorer": ".scorer"}


def __getattr__(name: str) -> object:
    # Either half is imported when it is named: a client needs no decoders, and commands start sooner.
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
