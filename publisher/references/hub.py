"""Repositories of the Hugging Face Hub: one `.onnx` file and its external data, at one commit.

    hf:owner/repo   hf:owner/repo@main   hf:owner/repo@<commit>   hf:owner/repo@v1.2:onnx/model.onnx

- A branch or tag is resolved to its commit first, everything is fetched at that commit, and the manifest's
  frameworks get `hf` -> `owner/repo@<commit>:<path>`.
- Nothing of a repository is ever run, so a pickle in one is not taken on any condition: download it, look at it,
  publish the file.
- Files go through the Hub's own cache (`HF_HOME`): a commit that was fetched once, named with its path, can be
  published again while the Hub is away.
- Endpoint, token and proxies are as huggingface_hub reads them (`HF_ENDPOINT`, `HF_TOKEN`).

The Hub's API: https://huggingface.co/docs/hub/api
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelcast import __version__
from modelcast.errors import MissingExtraError, ModelcastError, NotFoundError, SourceError

from . import graph_files
from .reference import HUB, Fetched

# Longer than a slow answer takes; who mistyped an endpoint waits for it.
TIMEOUT_S: Final = 20.0
# A message names this many files; repositories of exporters have dozens of variants.
_NAMED: Final = 20

_EXTRA_HINT = "Install it: pip install 'modelcast[hf]'."
_FORMS = "Write hf:OWNER/REPO@REVISION or hf:OWNER/REPO@REVISION:PATH.onnx."
_NAME = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_PLACE = re.compile(rf"(?P<repo>(?:{_NAME}/)?{_NAME})(?:@(?P<revision>[^:@\s]+))?(?::(?P<path>[^:\s][^:]*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth", ".bin", ".skops")


@dataclass(frozen=True)
class Place:
    """A file of a repository; `path` is None for its only graph."""

    repo: str
    revision: str
    path: str | None

    @classmethod
    def parse(cls, text: str) -> Place:
        """Parses `owner/repo[@revision][:path]`.

        Raises:
            SourceError: It is not of that form, or the path names no graph.
        """
        match = _PLACE.fullmatch(text)
        if match is None:
            raise SourceError(f"'hf:{text}' is not a reference to a repository of the Hub", hint=_FORMS)
        path = match["path"]
        if path is not None and not path.lower().endswith(".onnx"):
            pickle = " Nothing pickled is read from the Hub: download it, and publish the file."
            raise SourceError(
                f"{path} of hf:{match['repo']} is not an .onnx file",
                hint=_FORMS + (pickle if path.lower().endswith(_PICKLES) else ""),
            )
        return cls(match["repo"], match["revision"] or "main", path)


def fetch(place: str, folder: Path, *, tell: Callable[[str], None]) -> Fetched:
    """Fetches a graph; see `reference.fetch`."""
    wanted = Place.parse(place)
    with _foreign(wanted):
        import huggingface_hub

        api = huggingface_hub.HfApi(library_name="modelcast", library_version=__version__)
        commit, path = _resolve(api, wanted)
        pinned = f"{wanted.repo}@{commit}:{path}"
        if pinned != place:
            tell(f"hf:{place} is hf:{pinned}")

        def download(name: str, target: Path) -> None:
            try:
                cached = api.hf_hub_download(wanted.repo, name, revision=commit, etag_timeout=TIMEOUT_S)
            except huggingface_hub.errors.EntryNotFoundError as error:
                if isinstance(error, huggingface_hub.errors.LocalEntryNotFoundError):
                    raise  # the Hub is away
                raise NotFoundError(
                    f"hf:{wanted.repo}@{wanted.revision} has no file {name}",
                    hint="The graph's tensors must be in the repository beside it." if name != path else _FORMS,
                ) from error
            _place(Path(cached).resolve(strict=True), target)

        return Fetched(graph_files.fetch(path, f"hf:{wanted.repo}@{commit}", folder, download), {HUB: pinned})


def _resolve(api: Any, wanted: Place) -> tuple[str, str]:
    """Commit and path of what is wanted; not asked for where both are named and the cache has it."""
    if wanted.path is not None and _COMMIT.fullmatch(wanted.revision):
        return wanted.revision, wanted.path
    info = api.model_info(wanted.repo, revision=wanted.revision, timeout=TIMEOUT_S)
    names = sorted(entry.rfilename for entry in info.siblings or ())
    return str(info.sha), _pick(wanted, str(info.sha), names)


def _pick(wanted: Place, commit: str, names: Sequence[str]) -> str:
    graphs = [name for name in names if name.lower().endswith(".onnx")]
    what = f"hf:{wanted.repo}@{wanted.revision}"
    named = ", ".join(graphs[:_NAMED]) + (f" and {len(graphs) - _NAMED} more" if len(graphs) > _NAMED else "")
    if wanted.path is not None:
        if wanted.path not in names:
            raise NotFoundError(
                f"{what} (commit {commit[:12]}) has no file {wanted.path}",
                hint=f"Its .onnx files: {named or 'none'}.",
            )
        return wanted.path
    if not graphs:
        pickles = [name for name in names if name.lower().endswith(_PICKLES)]
        also = f"; nothing pickled is read from the Hub ({', '.join(pickles[:3])})" if pickles else ""
        raise SourceError(
            f"{what} has no .onnx file{also}",
            hint="Export it to ONNX, or download what it has and publish from there.",
        )
    if len(graphs) > 1:
        raise SourceError(
            f"{what} has {len(graphs)} .onnx files: {named}",
            hint=f"Name one: {what}:{graphs[0]}",
        )
    return graphs[0]


def _place(cached: Path, target: Path) -> None:
    """Puts a file of the cache beside the graph; not by a symbolic link, which may not leave the model's folder."""
    try:
        os.link(cached, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(cached, target)


@contextmanager
def _foreign(wanted: Place) -> Iterator[None]:
    """The Hub's client without its bars; what it raises as an error of ours."""
    try:
        from huggingface_hub.utils.tqdm import (
            are_progress_bars_disabled,
            disable_progress_bars,
            enable_progress_bars,
        )
    except ImportError as error:
        raise MissingExtraError(
            f"reading hf:{wanted.repo} takes huggingface_hub, which is not installed", hint=_EXTRA_HINT
        ) from error
    bars = not are_progress_bars_disabled()
    if bars:
        disable_progress_bars()
    try:
        yield
    except ModelcastError:
        raise
    except Exception as error:  # the Hub's own, and those of its transport, which changed between its versions
        raise _told(error, wanted) from error
    finally:
        if bars:
            enable_progress_bars()


def _told(error: Exception, wanted: Place) -> ModelcastError:
    from huggingface_hub import constants, errors

    endpoint, what = constants.ENDPOINT, f"hf:{wanted.repo}"
    line = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
    response = getattr(error, "response", None)
    told: ModelcastError
    if isinstance(error, errors.GatedRepoError):
        told = SourceError(
            f"{what} is gated, and your account was not let in", hint=f"Ask for access: {endpoint}/{wanted.repo}"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        told = NotFoundError(
            f"{endpoint} has no repository {wanted.repo}, or it is private",
            hint="Check the name; for a private one set HF_TOKEN, or run: hf auth login",
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        told = NotFoundError(
            f"{what} has no branch, tag or commit {wanted.revision!r}", hint=f"Look: {endpoint}/{wanted.repo}/commits"
        )
    elif isinstance(error, errors.HFValidationError):
        told = SourceError(f"{what} is not a name of a repository: {line}", hint=_FORMS)
    elif response is not None:
        told = SourceError(f"{endpoint} can't give {what}: {line}", hint="Try again later; check HF_TOKEN.")
    else:
        told = SourceError(
            f"{endpoint} can't be reached for {what}: {line}",
            hint="Check the network, HF_ENDPOINT and HF_HUB_OFFLINE. "
            f"What was fetched before needs no network when named by commit and path: {what}@COMMIT:PATH.onnx",
        )
    return told
