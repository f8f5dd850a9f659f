"""Files that run code when they are read: pickles of trained estimators, and what PyTorch saves.

Reading one runs whatever its writer put into it, so each is read only because somebody named this very file, or said
that he trusts where it is from. Nothing of it travels: what is published is the graph it is converted to.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from modelcast.errors import MissingExtraError, SourceError

from .convert import torch

PICKLE_SUFFIXES: Final = (".joblib", ".pkl", ".pickle")
SUFFIXES: Final = (*PICKLE_SUFFIXES, *torch.PROGRAM_SUFFIXES, *torch.MODULE_SUFFIXES)

_SKLEARN_HINT = "Install it: pip install 'modelcast[sklearn]'."
_FOREIGN_HINT = "It is cut, or was written by something else; save the model again."


def load(path: Path, what: str, tell: Callable[[str], None], *, trust_pickle: bool) -> Any:
    """Reads what a file holds.

    Args:
        path: With one of `SUFFIXES`.
        what: What names it, for messages.
        tell: Told when another version of scikit-learn wrote it.
        trust_pickle: Whether PyTorch may unpickle more than tensors.

    Raises:
        UsageError: It is a pickled module of PyTorch, and `trust_pickle` is false.
        SourceError: It can't be read, or what it holds takes classes that are not here.
        MissingExtraError: joblib, or torch, is not installed.
    """
    if path.suffix.lower() not in PICKLE_SUFFIXES:
        return torch.load(path, what, trust_pickle=trust_pickle)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = _joblib(path, what)
        except MissingExtraError:
            raise
        except (ImportError, AttributeError) as error:
            raise SourceError(
                f"can't load {what}: {_line(error)}",
                hint="Install the packages it was trained with; classes of a script must be importable from a module.",
            ) from error
        except Exception as error:  # a pickle runs code, which raises what it likes
            raise SourceError(
                f"can't load {what}: {type(error).__name__}: {_line(error)}", hint=_FOREIGN_HINT
            ) from error
    for text in dict.fromkeys(_warning(entry) for entry in caught):
        if text:
            tell(text)
    return loaded


def _joblib(path: Path, what: str) -> Any:
    try:
        import joblib
    except ImportError as error:
        raise MissingExtraError(f"reading {what} takes joblib, which is not installed", hint=_SKLEARN_HINT) from error
    return joblib.load(path)


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _warning(caught: warnings.WarningMessage) -> str:
    """One line for a warning about versions; other warnings while unpickling are of no use to a publisher."""
    message = caught.message
    if type(message).__name__ != "InconsistentVersionWarning":
        return ""
    saved, have = (getattr(message, name, "?") for name in ("original_sklearn_version", "current_sklearn_version"))
    return f"warning: saved by scikit-learn {saved}, loaded by {have}; parity shows whether that matters"
