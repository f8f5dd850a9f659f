"""What a reference names, and what fetching it gives.

    mlflow:models:/fraud@champion      mlflow:models:/fraud/3      mlflow:runs:/<run id>/<path>
    hf:owner/repo@revision             hf:owner/repo@revision:onnx/model.onnx

- Only an ONNX graph and the files its tensors lie in are fetched; nothing that was fetched is run. A pickle of an
  MLflow model is the exception, and takes `--trust-pickle`: unpickling runs what whoever wrote it put into it.
- What moves (an alias, a branch) is resolved once, first; what it was resolved to is recorded in the manifest, as a
  reference that names the same for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelcast.errors import SourceError

MLFLOW: Final = "mlflow"
HUB: Final = "hf"

# What people paste -> how it is written here.
_NEARLY: Final = {
    "models:/": "Write mlflow:models:/NAME@ALIAS or mlflow:models:/NAME/VERSION.",
    "runs:/": "Write mlflow:runs:/RUN_ID/PATH.",
    "mlflow://": "Write mlflow:models:/NAME@ALIAS or mlflow:runs:/RUN_ID/PATH.",
    "hf://": "Write hf:OWNER/REPO@REVISION.",
    "https://huggingface.co/": "Write hf:OWNER/REPO@REVISION.",
    "http://": "Download it, and publish the file.",
    "https://": "Download it, and publish the file.",
    "s3://": "Download it, and publish the file.",
    "gs://": "Download it, and publish the file.",
}


@dataclass(frozen=True)
class Reference:
    """A model elsewhere.

    Attributes:
        kind: `mlflow` or `hf`.
        place: The rest, as that place understands it.
    """

    kind: str
    place: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"


@dataclass(frozen=True)
class Fetched:
    """A model that was fetched.

    Attributes:
        path: An `.onnx` file, with the files of its tensors beside it, or a pickle.
        origin: Where it is from, for the manifest's frameworks: kind of reference -> what was resolved.
        metrics: What was measured of it there.
    """

    path: Path
    origin: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)


def parse(source: object) -> Reference | None:
    """The reference that `source` is, or None if it is anything else.

    Raises:
        SourceError: It is nearly one; the hint says how it is written.
    """
    if not isinstance(source, str):
        return None
    kind, colon, place = source.partition(":")
    for start, hint in _NEARLY.items():
        if source.startswith(start):
            raise SourceError(f"{source!r} is not a source that can be read", hint=hint)
    if not colon or kind not in (MLFLOW, HUB):
        return None
    return Reference(kind, place)


def fetch(reference: Reference, folder: Path, *, trust_pickle: bool, tell: Callable[[str], None]) -> Fetched:
    """Fetches a model's files into an empty folder.

    Args:
        reference: What to fetch.
        folder: Where to; what is fetched is of use for as long as this folder stays.
        trust_pickle: Whether a pickle may be fetched too.
        tell: Told what it was resolved to, and warnings.

    Raises:
        NotFoundError: There is no such model, version, alias, run, repository, revision or file.
        SourceError: The place can't be reached, or has no graph of that name.
        MissingExtraError: The package that talks to this place is not installed.
    """
    if reference.kind == MLFLOW:
        from . import mlflow

        return mlflow.fetch(reference.place, folder, trust_pickle=trust_pickle, tell=tell)
    from . import hub

    return hub.fetch(reference.place, folder, tell=tell)
