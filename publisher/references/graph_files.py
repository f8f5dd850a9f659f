"""A graph elsewhere and the files its tensors lie in: all that is fetched of a model."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Set
from pathlib import Path, PurePosixPath

import onnx

from modelcast.errors import SourceError, StructureError

from .. import outline, tree

# Fetches one file, by its path there, to a path here whose folder exists.
Download = Callable[[str, Path], None]


def fetch(path: str, what: str, folder: Path, download: Download) -> Path:
    """Fetches a graph with its external data; returns the path of the graph in `folder`.

    Args:
        path: Of the graph, at the place it is fetched from.
        what: The reference, for messages.
        folder: An empty folder.
        download: Raises NotFoundError for a file that is not there.

    Raises:
        SourceError: It is not an ONNX graph.
        StructureError: A tensor lies outside the graph's folder, or below a file.
    """
    graph = folder / posixpath.basename(path)
    download(path, graph)
    locations = tree.locations(_read(graph, f"{path} of {what}"))
    _check_tree({graph.name, *locations})
    for location in locations:
        target = folder / location
        if target != graph:  # an outline's tensors lie in the graph itself
            target.parent.mkdir(parents=True, exist_ok=True)
            download(posixpath.join(posixpath.dirname(path), location), target)
    return graph


def _check_tree(paths: Set[str]) -> None:
    for path in sorted(paths):
        for above in PurePosixPath(path).parents:
            if str(above) in paths:
                raise StructureError(
                    f"the file of a tensor {path!r} lies below {above}, which is a file",
                    hint="Export the model again, with its tensors in files beside the graph.",
                )


def _read(path: Path, what: str) -> onnx.ModelProto:
    model = outline.read(path)
    if model is not None:
        return model
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's DecodeError, of a module without types
        raise SourceError(f"{what} can't be read as an ONNX model: {error}", hint="Export the model again.") from error
    return model
