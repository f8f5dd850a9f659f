"""What can be published: ONNX as file, bytes or ModelProto; what a converter takes, or a file of it; a model elsewhere.

- A `.onnx` file is parsed without its external data and large tensors, which `tree` streams later.
- A `.joblib`, `.pkl` or `.pickle` file on this disk is read as it is named, though that can run any code: naming it is
  the consent, and only who trained it should give it. Of a `.pt2` nothing but tensors is unpickled; a `.pt` or `.pth`
  takes `--trust-pickle`, because most of such files come from elsewhere.
- A reference (`mlflow:…`, `hf:…`) and a folder name no file, and what they lead to can change: of them only ONNX is
  read. An MLflow model's pickle takes `--trust-pickle`; nothing pickled is taken from the Hub.
- A folder that MLflow wrote (it holds `MLmodel`) is its `onnx` flavour.
- Nothing that was pickled ever travels; a consumer gets the graph.
- An estimator saved by another version of scikit-learn is loaded with a warning, and parity decides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import onnx

from modelcast.errors import SourceError

from . import outline, pickles
from .candidate import Candidate
from .convert import converters
from .references import reference as references

# A path, a reference, the bytes of an ONNX file, an onnx.ModelProto, or an object that a converter takes.
Source: TypeAlias = Path | str | bytes | onnx.ModelProto | Any
# Told one line about what a step is doing, or a warning.
Progress: TypeAlias = Callable[[str], None]

ONNX_SUFFIXES: Final = (".onnx",)
# What boosters save themselves as, and nothing says which one did.
_NATIVE_SUFFIXES: Final = (".json", ".ubj", ".txt")

_HINT = (
    "Give an .onnx file, a .joblib or .pkl file of a trained estimator, a .pt2 file, mlflow:models:/NAME@ALIAS or "
    "hf:OWNER/REPO."
)
_NATIVE_HINT = (
    "If XGBoost or LightGBM saved it: load it as a Booster in Python, and publish that, or dump it with joblib first."
)


@dataclass(frozen=True)
class Opened:
    """A source that was read.

    Attributes:
        model: A Candidate if it is a graph, else the object that is yet to be converted.
        origin: Where it was fetched from, to be added to the frameworks: kind of reference -> what was resolved.
        metrics: What was measured of it there.
    """

    model: Candidate | Any
    origin: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)


@contextmanager
def opened(source: Source, progress: Progress, *, trust_pickle: bool = False) -> Iterator[Opened]:
    """Reads a source, of which the files stay for as long as the context does.

    Args:
        source: What is to be published.
        progress: Told what a reference was resolved to, and warnings.
        trust_pickle: Whether code that a reference or folder leads to may be run, by unpickling it.

    Raises:
        SourceError: It can't be read, or is neither a graph nor anything that a converter takes.
        NotFoundError: A reference names what is not there.
        MissingExtraError: The package that reads it is not installed.
    """
    reference = references.parse(source)
    if reference is None:
        yield Opened(load(source, progress, trust_pickle=trust_pickle))
        return
    with tempfile.TemporaryDirectory(prefix="modelcast-source-") as folder:
        fetched = references.fetch(reference, Path(folder), trust_pickle=trust_pickle, tell=progress)
        loaded = _load_file(fetched.path, str(reference), progress, trust_pickle=trust_pickle)
        yield Opened(loaded, fetched.origin, fetched.metrics)


def load(source: Source, progress: Progress, *, trust_pickle: bool = False) -> Candidate | Any:
    """Reads a source that lies here; raises as `opened`."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        return _load_file(_file(path, trust_pickle=trust_pickle), str(path), progress, trust_pickle=trust_pickle)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _candidate(_parse(bytes(source), "the bytes"), None)
    if isinstance(source, onnx.ModelProto):
        return _candidate(source, None)
    return _convertible(source, f"an object of type {type(source).__name__}")


def _file(path: Path, *, trust_pickle: bool) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise SourceError(f"can't read model {path}: there is no such file", hint=_HINT)
    from .references import mlflow

    if (path / mlflow.MLMODEL).is_file():
        return mlflow.local(path, trust_pickle=trust_pickle)
    inside = sorted(
        found.name for found in path.iterdir() if found.suffix.lower() in (*ONNX_SUFFIXES, *pickles.SUFFIXES)
    )
    raise SourceError(
        f"can't read model {path}: is a folder",
        hint=f"Name the file: {path / inside[0]}" if inside else f"It holds no model. {_HINT}",
    )


def _load_file(path: Path, what: str, progress: Progress, *, trust_pickle: bool) -> Candidate | Any:
    suffix = path.suffix.lower()
    if suffix in ONNX_SUFFIXES:
        try:
            model = outline.read(path)
            return _candidate(_parse(path.read_bytes(), what) if model is None else model, path.parent)
        except OSError as error:
            raise SourceError(f"can't read model {what}: {error.strerror}", hint="Check its permissions.") from error
    if suffix in pickles.SUFFIXES:
        return _convertible(pickles.load(path, what, progress, trust_pickle=trust_pickle), what)
    raise SourceError(
        f"can't tell from its suffix {suffix!r} what model {what} holds",
        hint=_NATIVE_HINT if suffix in _NATIVE_SUFFIXES else _HINT,
    )


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


def _convertible(value: Any, what: str) -> Any:
    if converters.recognises(value):
        return value
    held = f" holds {_article(type(value).__name__)}, which" if not what.startswith("an object") else ""
    raise SourceError(
        f"{what}{held} is neither an ONNX model nor a trained model of a kind that can be converted", hint=_HINT
    )


def _article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
