"""What can be published: an ONNX file, bytes or ModelProto; a fitted scikit-learn estimator, or a joblib file of one.

- A `.onnx` file is parsed without its external data and large tensors, which `tree` streams later.
- A `.joblib`, `.pkl` or `.pickle` file is unpickled: it can run any code, so only who trained it should publish it.
  Nothing that was pickled ever travels; a consumer gets the graph.
- An estimator saved by another version of scikit-learn is loaded with a warning, and parity decides.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeAlias

import onnx

from modelcast.errors import MissingExtraError, SourceError

from . import outline
from .candidate import Candidate
from .convert import converters

# A path, the bytes of an ONNX file, an onnx.ModelProto, or a fitted scikit-learn estimator.
Source: TypeAlias = Path | str | bytes | onnx.ModelProto | Any
# Told one line about what a step is doing, or a warning.
Progress: TypeAlias = Callable[[str], None]

ONNX_SUFFIXES: Final = (".onnx",)
PICKLE_SUFFIXES: Final = (".joblib", ".pkl", ".pickle")
SKLEARN_HINT: Final = "Install it: pip install 'modelcast[sklearn]'."

_HINT = "Give an .onnx file, or a .joblib or .pkl file of a fitted scikit-learn estimator."


def load(source: Source, progress: Progress) -> Candidate | Any:
    """Reads a source: a Candidate if it is a graph, else the estimator that is yet to be converted.

    Raises:
        SourceError: It can't be read, or is neither.
        MissingExtraError: It is a joblib file, and joblib is not installed.
    """
    if isinstance(source, (str, Path)):
        return _load_path(Path(source), progress)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _candidate(_parse(bytes(source), "the bytes"), None)
    if isinstance(source, onnx.ModelProto):
        return _candidate(source, None)
    return _estimator(source, f"an object of type {type(source).__name__}")


def _load_path(path: Path, progress: Progress) -> Candidate | Any:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise SourceError(
            f"can't read model {path}: {what}", hint="Check the path." if what != "is a folder" else _HINT
        )
    suffix = path.suffix.lower()
    if suffix in ONNX_SUFFIXES:
        try:
            model = outline.read(path)
            return _candidate(_parse(path.read_bytes(), str(path)) if model is None else model, path.parent)
        except OSError as error:
            raise SourceError(f"can't read model {path}: {error.strerror}", hint="Check its permissions.") from error
    if suffix in PICKLE_SUFFIXES:
        return _estimator(_unpickle(path, progress), str(path))
    raise SourceError(f"can't tell from its suffix {suffix!r} what model {path} holds", hint=_HINT)


def _parse(data: bytes, what: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, of a module without types
        raise SourceError(f"{what} can't be read as an ONNX model: {error}", hint=_HINT) from error
    if not model.HasField("graph") or not model.graph.output:
        raise SourceError(f"{what} can't be read as an ONNX model: there is no graph in it", hint=_HINT)
    return model


def _candidate(model: onnx.ModelProto, folder: Path | None) -> Candidate:
    producer = model.producer_name.strip()
    return Candidate(model, folder, frameworks={producer: model.producer_version} if producer else {})


def _unpickle(path: Path, progress: Progress) -> Any:
    try:
        import joblib
    except ImportError as error:
        raise MissingExtraError(f"reading {path} takes joblib, which is not installed", hint=SKLEARN_HINT) from error
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            loaded = joblib.load(path)
        except (ImportError, AttributeError) as error:
            raise SourceError(
                f"can't load {path}: {error}",
                hint="Install the packages it was trained with; classes of a script must be importable from a module.",
            ) from error
        except Exception as error:  # a pickle runs code, which raises what it likes
            raise SourceError(f"can't load {path}: {type(error).__name__}: {error}", hint=_HINT) from error
    for text in dict.fromkeys(_warning(entry) for entry in caught):
        if text:
            progress(text)
    return loaded


def _warning(caught: warnings.WarningMessage) -> str:
    """One line for a warning about versions; other warnings while unpickling are of no use to a publisher."""
    message = caught.message
    if type(message).__name__ != "InconsistentVersionWarning":
        return ""
    saved, have = (getattr(message, name, "?") for name in ("original_sklearn_version", "current_sklearn_version"))
    return f"warning: saved by scikit-learn {saved}, loaded by {have}; parity shows whether that matters"


def _estimator(value: Any, what: str) -> Any:
    if converters.recognises(value):
        return value
    held = f" holds {_article(type(value).__name__)}, which" if not what.startswith("an object") else ""
    raise SourceError(f"{what}{held} is neither an ONNX model nor a fitted scikit-learn estimator", hint=_HINT)


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
