"""A model as a tree of files: `model.onnx`, one file per large tensor, `examples.npz`.

- A tensor's file is named after the digest of its bytes, so that a tensor that did not change keeps its path and does
  not travel again, and two equal tensors share a file.
- The bytes depend on the model only: no times, no absolute paths, protobuf written deterministically, operator sets
  sorted. The same model gives the same digests on every run.
- Tensors are copied one at a time and never all at once; those in files of their own are streamed, so a model may be
  larger than memory and than protobuf's 2 GiB.
- The source's external data is read from files within the source's folder only: a location that leaves it, by `..`, an
  absolute path or a link, is refused, and so is a hidden file: `.env` would be published as a tensor.

    model.onnx
    tensors/9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08
    examples.npz
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from modelcast import digest
from modelcast.blobs import check_path
from modelcast.errors import SourceError, StructureError
from modelcast.records import EXAMPLES_PATH, GRAPH_PATH, FileEntry

TENSORS_FOLDER: Final = "tensors"
# Below it a file of its own costs more (a record, a manifest entry, an open file, a mapping rounded up to pages) than
# it saves when the tensor did not change.
MIN_TENSOR_BYTES: Final = 64 << 10
# Protobuf reads no larger message; what is not a large tensor has to fit.
MAX_GRAPH_BYTES: Final = (1 << 31) - 1

_READ_BYTES = 1 << 20
# Where TensorProto keeps values that are not raw (onnx.proto, "data_type" of TensorProto), little-endian once raw.
_TYPED: Final[dict[int, tuple[str, str]]] = {
    TensorProto.FLOAT: ("float_data", "<f4"),
    TensorProto.DOUBLE: ("double_data", "<f8"),
    TensorProto.INT64: ("int64_data", "<i8"),
    TensorProto.INT32: ("int32_data", "<i4"),
}
# Element types of which a byte holds several (onnx.proto, "raw_data" of TensorProto).
_PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_EXTERNAL_HINT = "Keep the tensors' files in the folder of the .onnx file, as its exporter wrote them."


def write(model: onnx.ModelProto, folder: Path | None, directory: Path) -> None:
    """Writes `model.onnx` and the files of its large tensors; `model` stays as it is.

    Args:
        model: The graph, its tensors inside or external.
        folder: Where its external tensors lie; None if it may have none.
        directory: An existing folder to write into.

    Raises:
        SourceError: External data is missing, too short, or outside `folder`.
        StructureError: What is left of the graph is larger than protobuf reads.
    """
    (directory / TENSORS_FOLDER).mkdir(exist_ok=True)
    slim = onnx.ModelProto()
    _copy(model, slim, but="graph")
    _copy(model.graph, slim.graph, but="initializer")
    for tensor in _tensors(slim):  # of subgraphs, attributes, functions: no place for files of their own
        if tensor.data_location == TensorProto.EXTERNAL:
            _embed(tensor, folder)
    for tensor in model.graph.initializer:
        _write_tensor(tensor, slim.graph.initializer.add(), folder, directory)
    opsets = sorted(slim.opset_import, key=lambda opset: (opset.domain, opset.version))
    del slim.opset_import[:]
    slim.opset_import.extend(opsets)
    if slim.ByteSize() > MAX_GRAPH_BYTES:
        raise StructureError(
            f"without its large tensors the graph still has {slim.ByteSize()} bytes; protobuf reads {MAX_GRAPH_BYTES}",
            hint="Keep weights in initializers, not in attributes of nodes.",
        )
    (directory / GRAPH_PATH).write_bytes(slim.SerializeToString(deterministic=True))
    with suppress(OSError):  # it holds files, usually
        (directory / TENSORS_FOLDER).rmdir()


def paths(directory: Path) -> list[str]:
    """Paths of a tree's files relative to it, sorted."""
    found = [directory / name for name in (GRAPH_PATH, EXAMPLES_PATH) if (directory / name).is_file()]
    if (directory / TENSORS_FOLDER).is_dir():
        found += list((directory / TENSORS_FOLDER).iterdir())
    return sorted(path.relative_to(directory).as_posix() for path in found)


def locations(model: onnx.ModelProto) -> tuple[str, ...]:
    """Paths of the files a model's external tensors lie in, relative to its own folder, sorted.

    Raises:
        StructureError: One is outside the folder, or hidden.
    """
    external = (tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL)
    return tuple(sorted({_location(tensor) for tensor in external}))


def entries(directory: Path) -> tuple[FileEntry, ...]:
    """A tree's files with sizes and digests, sorted by path."""
    return tuple(
        FileEntry(
            path,
            (directory / path).stat().st_size,
            f"sha256:{path.removeprefix(f'{TENSORS_FOLDER}/')}"
            if path.startswith(f"{TENSORS_FOLDER}/")
            else digest.of_file(directory / path),
        )
        for path in paths(directory)
    )


def _copy(source: Any, target: Any, *, but: str) -> None:
    """Copies a message's fields but one, which may be too large to be copied and thrown away."""
    for descriptor, value in source.ListFields():
        if descriptor.name == but:
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(target, descriptor.name, value)
        elif hasattr(value, "CopyFrom"):
            getattr(target, descriptor.name).CopyFrom(value)
        else:
            getattr(target, descriptor.name).MergeFrom(value)


def _write_tensor(tensor: TensorProto, target: TensorProto, folder: Path | None, directory: Path) -> None:
    if tensor.data_location == TensorProto.EXTERNAL:
        path, offset, size = _external(tensor, folder)
        if size < MIN_TENSOR_BYTES:
            target.CopyFrom(tensor)
            _embed(target, folder)
            return
        location = _store(_blocks(path, offset, size), directory)
    else:
        raw = _raw(tensor)
        if raw is None or len(raw) < MIN_TENSOR_BYTES:
            target.CopyFrom(tensor)
            return
        location, size = _store([raw], directory), len(raw)
    target.name, target.data_type = tensor.name, tensor.data_type
    target.dims.extend(tensor.dims)
    target.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(size))):
        target.external_data.add(key=key, value=value)


def _raw(tensor: TensorProto) -> bytes | None:
    """A tensor's bytes as external data has them, or None if it is small or of a type that can't lie outside."""
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    if tensor.data_type not in _TYPED or _size_bytes(tensor) < MIN_TENSOR_BYTES:
        return None
    field, dtype = _TYPED[tensor.data_type]
    return np.asarray(getattr(tensor, field), dtype=dtype).tobytes()


def _store(blocks: Iterable[bytes], directory: Path) -> str:
    """Writes bytes under the name of their digest; returns the path within the tree."""
    partial = directory / TENSORS_FOLDER / "partial"
    hasher = hashlib.sha256()
    with partial.open("wb") as file:
        for block in blocks:
            hasher.update(block)
            file.write(block)
    location = f"{TENSORS_FOLDER}/{hasher.hexdigest()}"
    partial.replace(directory / location)
    return location


def _embed(tensor: TensorProto, folder: Path | None) -> None:
    path, offset, size = _external(tensor, folder)
    if size > MAX_GRAPH_BYTES:
        raise StructureError(f"tensor {tensor.name!r} of {size} bytes is not an initializer of the main graph")
    raw = b"".join(_blocks(path, offset, size))
    del tensor.external_data[:]
    tensor.ClearField("data_location")
    tensor.raw_data = raw


def _external(tensor: TensorProto, folder: Path | None) -> tuple[Path, int, int]:
    """File, offset and size in bytes of an external tensor's data."""
    if folder is None:
        raise SourceError(
            f"tensor {tensor.name!r} lies in a file of its own, and a model in memory has no folder to find it in",
            hint="Publish the path of the .onnx file, or load the model with its external data.",
        )
    values = {entry.key: entry.value for entry in tensor.external_data}
    location = _location(tensor)
    what = f"external data {location!r} of tensor {tensor.name!r}"
    try:
        path = (folder / location).resolve(strict=True)
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise SourceError(f"{what} can't be read: {reason}", hint=_EXTERNAL_HINT) from error
    if not path.is_relative_to(folder.resolve()):
        raise StructureError(f"{what} is a link that leaves the model's folder", hint=_EXTERNAL_HINT)
    if not path.is_file():
        raise SourceError(f"{what} is not a file in {folder}", hint=_EXTERNAL_HINT)
    texts = [values.get(key, "0") or "0" for key in ("offset", "length")]
    if not all(text.isascii() and text.isdecimal() for text in texts):
        raise SourceError(f"external data of tensor {tensor.name!r} has no number as offset or length")
    offset, length = (int(text) for text in texts)
    size, have = _size_bytes(tensor), path.stat().st_size
    if length not in (0, size) or offset + size > have:
        raise SourceError(
            f"tensor {tensor.name!r} of {size} bytes can't be bytes {offset} to {offset + (length or size)} of "
            f"{location!r}, which has {have}",
            hint="Export the model again: the file was cut or belongs to another model.",
        )
    return path, offset, size


def _location(tensor: TensorProto) -> str:
    """Where an external tensor says its data lies, if that is within the model's folder."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    what = f"external data {location!r} of tensor {tensor.name!r}"
    path = location.removeprefix("./")
    try:
        check_path(path)
    except StructureError as error:
        raise StructureError(f"{what} is outside the model's folder", hint=_EXTERNAL_HINT) from error
    if any(part.startswith(".") for part in path.split("/")):
        raise StructureError(f"{what} is a hidden file, which holds anything but tensors", hint=_EXTERNAL_HINT)
    return path


def _size_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's raw data, by its type and dimensions; texts have none."""
    if tensor.data_type == TensorProto.STRING:
        return 0
    try:
        name = TensorProto.DataType.Name(tensor.data_type)
        bits = _PACKED_BITS.get(name) or 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (ValueError, KeyError) as error:
        raise StructureError(f"tensor {tensor.name!r} has an unknown element type ({tensor.data_type})") from error
    if any(size < 0 for size in tensor.dims):
        raise StructureError(f"tensor {tensor.name!r} has negative dimensions {list(tensor.dims)}")
    return -(-math.prod(int(size) for size in tensor.dims) * bits // 8)


def _blocks(path: Path, offset: int, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(offset)
        while size:
            block = file.read(min(size, _READ_BYTES))
            if not block:
                raise SourceError(f"{path} became shorter while it was read")
            size -= len(block)
            yield block


def _tensors(message: Any) -> Iterator[TensorProto]:
    """Every tensor of a message, wherever it hides."""
    if isinstance(message, TensorProto):
        yield message
        return
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            for entry in value if hasattr(value, "__len__") else (value,):
                yield from _tensors(entry)
