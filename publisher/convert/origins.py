"""Where an object comes from and whether its packages are there, without importing anything to find out."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType

from modelcast.errors import MissingExtraError


def packages(value: object) -> frozenset[str]:
    """Top-level packages of the classes that an object's type is made of."""
    return frozenset(kind.__module__.partition(".")[0] for kind in type(value).__mro__)


def is_a(value: object, package: str, *names: str) -> bool:
    """Whether the object's type is or extends a class of one of these names from a package."""
    return any(kind.__module__.partition(".")[0] == package and kind.__name__ in names for kind in type(value).__mro__)


def load(what: str, extra: str, *names: str) -> list[ModuleType]:
    """Imports the packages a converter takes, without the warnings they greet with.

    Raises:
        MissingExtraError: One is not installed; the hint installs the extra.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise MissingExtraError(
            f"converting {what} takes {error.name}, which is not installed",
            hint=f"Install it: pip install 'modelcast[{extra}]'.",
        ) from error
