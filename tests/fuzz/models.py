"""Readers of a model's files on their way in: chunks, the graph, golden examples, where they lie by reference."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcast import digest, golden
from modelcast.blobs import FileAssembly, check_path, chunk_count
from modelcast.errors import IntegrityError, StoreNotAllowedError, StructureError, UsageError
from modelcast.files.store_url import Stores, StoreUrl
from modelcast.graph import MAX_DEPTH, inspect
from modelcast.names import ModelVersion
from modelcast.records import FileEntry, Tolerance

from .damage import damaged
from .entropy import Tape, pick
from .files import put
from .reader import Reader

_FILES = ("model.onnx", "tensors/0.bin", "tensors/1.bin")
_MODEL = ModelVersion("fraud", 3)
# Of the files that chunks are made of.
_CHUNK_BYTES = 16


def readers() -> list[Reader]:
    """One for each kind of file, and one for each way it comes."""
    graphs = [made.SerializeToString() for made in _graphs()]
    return [
        Reader("graph", graphs, _graph, (StructureError,), share=60),
        Reader(
            "graph of a thousand graphs",
            [b"\x03\x00", b"\x00\x02\x01\x01\x01\x01\x01\x01\x01\x01"],
            _nested,
            (StructureError,),
            share=10,
        ),
        Reader("examples", [_examples()], _read_examples, (IntegrityError,), share=60),
        Reader("array of examples", [_array(array) for array in _ARRAYS], _wrapped, (IntegrityError,), share=60),
        Reader("chunks", [bytes(range(40)), bytes(40)], _chunks),
        Reader("path", [name.encode() for name in _FILES], _path, (StructureError,)),
        Reader("store URL", _URLS, _store, (UsageError,)),
        Reader("store of a manifest", (_URLS[0], _URLS[1], _URLS[4]), _named_store, (StoreNotAllowedError,)),
    ]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _graphs() -> Sequence[onnx.ModelProto]:
    """Small ones that have what a gate looks at: external data, branches, functions, attributes, sparse tensors."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3), helper.make_opsetid("own", 1)]
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": "tensors/0.bin", "offset": "0", "length": "16"}.items():
        outside.external_data.add(key=key, value=value)
    inside = numpy_helper.from_array(np.ones(4, np.float32), "v")
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "branch", [], [y])
    function = helper.make_function("own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], imports)
    sparse = helper.make_sparse_tensor(inside, numpy_helper.from_array(np.arange(4), "i"), [4])
    nodes = (
        [helper.make_node("Add", ["x", "w"], ["s"]), helper.make_node("Twice", ["s"], ["y"], domain="own")],
        [helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)],
        [helper.make_node("Constant", [], ["k"], sparse_value=sparse), helper.make_node("Scaler", ["x"], ["y"],
                                                                                        domain="ai.onnx.ml")],
    )  # fmt: skip
    return [
        helper.make_model(
            helper.make_graph(some, "g", [x], [y], [outside, inside]),
            opset_imports=imports,
            ir_version=8,
            functions=[function],
        )
        for some in nodes
    ]


def _graph(data: bytes) -> None:
    path = put("model/model.onnx", data)
    for name in _FILES[1:]:
        if not (path.parent / name).exists():
            put(f"model/{name}", bytes(64))
    facts = inspect(path, _FILES)
    assert facts.external <= set(_FILES[1:])
    assert facts.outputs


# A few more than may be, and fewer than protobuf itself stops at.
_MOST_NESTED = MAX_DEPTH + 4


def _nested(data: bytes) -> None:
    """Graphs within graphs within functions: how deep and how many is told by the input."""
    tape = Tape(data)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "leaf", [], [y])
    depth = tape.number(0, _MOST_NESTED)
    for _ in range(depth):
        graph = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=graph)], "g", [], [y])
    functions = []
    for number in range(tape.number(0, 40)):
        callees = [f"F{tape.number(0, 40) if tape.number(0, 5) == 0 else number + 1}" for _ in range(tape.number(1, 3))]
        called = [helper.make_node(name, ["a"], ["b"], domain="f") for name in callees]
        functions.append(helper.make_function("f", f"F{number}", ["a"], ["b"], called, imports))
    if functions:
        leaf = helper.make_node("Identity", ["a"], ["b"])
        functions.append(helper.make_function("f", f"F{len(functions)}", ["a"], ["b"], [leaf], imports))
        graph.node.append(helper.make_node("F0", ["x"], ["z"], domain="f"))
    made = helper.make_model(graph, opset_imports=imports, ir_version=8, functions=functions)
    inspect(put("model/model.onnx", made.SerializeToString()), _FILES)
    assert depth <= MAX_DEPTH, "deeper than it may be"


_ARRAYS = (
    np.arange(6, dtype=np.float32).reshape(3, 2),
    np.asarray(["a", "grün"]),
    np.asarray([True]),
    np.zeros((0, 3), np.int64),
)


def _array(array: np.ndarray) -> bytes:  # type: ignore[type-arg]
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _examples() -> bytes:
    path = put("examples.npz", b"")
    golden.write(path, golden.Examples({"x": _ARRAYS[0], "name": _ARRAYS[1][[0, 1, 1]]}, {"y": _ARRAYS[0][:, 0]}))
    return path.read_bytes()


def _read_examples(data: bytes) -> None:
    examples = golden.read(put("examples.npz", data))
    held = sum(array.nbytes for group in (examples.inputs, examples.outputs) for array in group.values())
    # Texts become objects of eight bytes each and are as many as the file has room for.
    assert held <= 2 * len(data)
    golden.check(examples.inputs, {}, Tolerance()) if not examples.inputs else None
    for array in examples.outputs.values():
        if array.ndim:
            golden.first_not_finite(array)
            golden.difference(array, array, Tolerance())


def _wrapped(data: bytes) -> None:
    """The bytes of one array in an archive that is as it should be."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("inputs/x.npy", data)
        archive.writestr("outputs/y.npy", _array(_ARRAYS[0]))
    _read_examples(buffer.getvalue())


def _chunks(data: bytes) -> None:
    """Chunks of one file in any order, cut, doubled, of others: whole is what has the digest, and nothing else."""
    tape = Tape(data)
    whole = bytes(range(200))[: tape.number(0, 90)]
    entry = FileEntry("model.onnx", len(whole), digest.of_bytes(whole))
    assembly = FileAssembly(entry, _CHUNK_BYTES)
    file = bytearray(len(whole))
    for _ in range(tape.number(0, 12)):
        index = tape.number(0, 7) if tape.number(0, 9) else pick(tape, _INDEXES)
        chunk = whole[index * _CHUNK_BYTES : (index + 1) * _CHUNK_BYTES] if 0 <= index < 8 else b"x"
        if tape.number(0, 4) == 0:
            chunk = damaged(tape, chunk, [whole]) or b""
        try:
            at = assembly.accept(index, chunk)
        except IntegrityError:
            continue
        assert at >= 0
        assert at + len(chunk) <= len(whole)
        file[at : at + len(chunk)] = chunk
        assembly.hash(index, chunk)
    try:
        assembly.finish([bytes(file[assembly.hashed_bytes :])])
    except IntegrityError:
        assert bytes(file) != whole or assembly.missing
        return
    assert bytes(file) == whole
    assert assembly.missing == 0
    assert assembly.chunks == chunk_count(len(whole), _CHUNK_BYTES)


_INDEXES = (-1, 8, 2**31, 2**63 - 1, 1 << 24)


def _path(data: bytes) -> None:
    found = check_path(_text(data))
    below = Path("/folder") / found
    assert below.is_relative_to("/folder")
    assert below.as_posix() == f"/folder/{found}"
    assert ".." not in below.parts


_URLS = (b"s3://models/team/a", b"file:///srv/models", b"https://host:8080/x", b"gs://bucket", b"s3a://models")
_STORES = Stores.of(["s3://models", "file:///srv/models"])


def _store(data: bytes) -> None:
    store = StoreUrl.parse(_text(data))
    assert StoreUrl.parse(str(store)) == store
    assert store.holds(store)
    assert not {"", ".", ".."} & set(store.segments)


def _named_store(data: bytes) -> None:
    store = _STORES.check(_text(data), _MODEL)
    assert str(store).startswith(("s3://models", "file:///srv/models"))
    assert str(store).split("://")[1].split("/")[0] in {"models", ""}
