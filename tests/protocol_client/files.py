"""The files of a version: their digests (§2), the graph and its golden examples (§7)."""

from __future__ import annotations

import hashlib
import io
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import onnxruntime

from tests.protocol_client.avro import ProtocolError, read_varint, take

# Where ONNX's protobuf messages hold tensors: field numbers of onnx.proto, and the message there.
ONNX = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
    "external": {},
}


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def content_digest(files: Iterable[Mapping[str, Any]]) -> str:
    lines = (f"{entry['path']}\0{entry['size']}\0{entry['digest']}\n" for entry in sorted(files, key=_path))
    return digest_of("".join(lines).encode())


def _path(entry: Mapping[str, Any]) -> str:
    return str(entry["path"])


def locations(data: bytes, kind: str = "model") -> Iterator[str]:
    """Every location of external data that an ONNX model names."""
    entries, stream = dict[int, bytes](), io.BytesIO(data)
    while stream.tell() < len(data):
        tag = read_varint(stream)
        match tag & 7:
            case 0:
                read_varint(stream)
            case 1 | 5 as width:
                take(stream, 8 if width == 1 else 4)
            case 2:
                entries[tag >> 3] = take(stream, read_varint(stream))
                if inner := ONNX[kind].get(tag >> 3):
                    yield from locations(entries[tag >> 3], inner)
            case _:
                raise ProtocolError("that is no ONNX model")
    if kind == "external" and entries.get(1) == b"location":
        yield entries.get(2, b"").decode()


def write_examples(arrays: Mapping[str, np.ndarray]) -> bytes:
    """`inputs/<name>` and `outputs/<name>` as an uncompressed ZIP of .npy files."""
    data = io.BytesIO()
    np.savez(data, allow_pickle=False, **{key: np.ascontiguousarray(value) for key, value in arrays.items()})
    return data.getvalue()


def read_examples(data: bytes) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if any(item.compress_type != zipfile.ZIP_STORED for item in archive.infolist()):
            raise ProtocolError("the examples are compressed")
        return {
            item.filename.removesuffix(".npy"): np.lib.format.read_array(archive.open(item), allow_pickle=False)
            for item in archive.infolist()
        }


def run(files: Mapping[str, bytes], inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The graph's outputs by name."""
    if strange := {*locations(files["model.onnx"])} - {*files}:
        raise ProtocolError(f"the graph wants {sorted(strange)}, which the manifest does not list")
    with tempfile.TemporaryDirectory() as folder:
        for path, data in files.items():
            place = Path(folder, *PurePosixPath(path).parts)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(data)
        session = onnxruntime.InferenceSession(str(Path(folder, "model.onnx")), providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def run_golden(files: Mapping[str, bytes], manifest: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Outputs of the golden inputs; raises ProtocolError if they do not agree with the golden ones."""
    examples, tolerance = read_examples(files["examples.npz"]), manifest["tolerance"]
    got = run(files, {entry["name"]: examples[f"inputs/{entry['name']}"] for entry in manifest["inputs"]})
    for entry in manifest["outputs"]:
        value, want = got[entry["name"]], examples[f"outputs/{entry['name']}"]
        same = value.shape == want.shape and (
            bool(np.all(np.abs(value - want) <= tolerance["absolute"] + tolerance["relative"] * np.abs(want)))
            and bool(np.isfinite(value).all())
            if value.dtype.kind == "f"
            else np.array_equal(value, want)
        )
        if not same:
            raise ProtocolError(f"output {entry['name']} is not the golden one")
    return got
