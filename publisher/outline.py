"""The outline of an ONNX file: its graph with large tensors left where they are, so that no file is read whole.

Parsing a file of 400 MB takes 800 MB: its bytes and the message made of them. Here the file is mapped and walked by
the rules of protobuf's wire format (protobuf.dev/programming-guides/encoding): fields are copied, except the raw data
of large initializers of the main graph, which become external data at their offset in the file itself. What is not
written as exporters write it (a field twice, groups) has no outline and is parsed as a whole.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import onnx
from onnx import TensorProto

from modelcast.blobs import check_path
from modelcast.errors import StructureError

from .tree import MIN_TENSOR_BYTES

# Numbers of fields in onnx.proto.
_MODEL_GRAPH: Final = onnx.ModelProto.GRAPH_FIELD_NUMBER
_GRAPH_INITIALIZER: Final = onnx.GraphProto.INITIALIZER_FIELD_NUMBER
_TENSOR_RAW: Final = TensorProto.RAW_DATA_FIELD_NUMBER

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Stands for the number of a field that is no message and no bytes, whatever its number is.
_NO_MESSAGE: Final = 0
# Field number, start of the whole field, start of its value, end of both.
_Field = tuple[int, int, int, int]


def read(path: Path) -> onnx.ModelProto | None:
    """The model with large tensors as external data in `path`, or None if the file has no outline.

    Raises:
        OSError: The file can't be read.
    """
    if path.is_symlink() or path.stat().st_size < MIN_TENSOR_BYTES:
        return None
    try:
        check_path(path.name)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _model(data, path.name)
    except (StructureError, ValueError, IndexError):
        return None
    except Exception as error:  # protobuf's DecodeError, of a module without types
        if type(error).__name__ != "DecodeError":
            raise
        return None


def _model(data: mmap.mmap, name: str) -> onnx.ModelProto:
    rest, graph = bytearray(), None
    for number, start, value, end in _fields(data, 0, len(data)):
        if number != _MODEL_GRAPH:
            rest += data[start:end]
        elif graph is None:
            graph = _graph(data, value, end, name)
        else:
            raise ValueError("two graphs, which protobuf would merge")
    if graph is None:
        raise ValueError("no graph")
    model = onnx.ModelProto()
    model.ParseFromString(bytes(rest))
    model.graph.ParseFromString(graph)
    return model


def _graph(data: mmap.mmap, start: int, end: int, name: str) -> bytes:
    slim = bytearray()
    for number, begin, value, stop in _fields(data, start, end):
        if number == _GRAPH_INITIALIZER and stop - value >= MIN_TENSOR_BYTES:
            tensor = _tensor(data, value, stop, name)
            slim += bytes([_GRAPH_INITIALIZER << 3 | _BYTES]) + _varint(len(tensor)) + tensor
        else:
            slim += data[begin:stop]
    return bytes(slim)


def _tensor(data: mmap.mmap, start: int, end: int, name: str) -> bytes:
    rest, raw = bytearray(), None
    for number, begin, value, stop in _fields(data, start, end):
        if number != _TENSOR_RAW:
            rest += data[begin:stop]
        elif raw is None:
            raw = (value, stop - value)
        else:
            raise ValueError("raw data twice")
    tensor = TensorProto()
    tensor.ParseFromString(bytes(rest))
    if raw is None:
        return bytes(rest)
    if tensor.data_location == TensorProto.EXTERNAL:
        raise ValueError("raw data both inside and outside")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in (("location", name), ("offset", str(raw[0])), ("length", str(raw[1]))):
        tensor.external_data.add(key=key, value=entry)
    return bytes(tensor.SerializeToString())


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    position = start
    while position < end:
        begin = position
        key, position = _read_varint(data, position)
        kind = key & 7
        if kind == _BYTES:
            size, position = _read_varint(data, position)
        elif kind == _VARINT:
            size = _read_varint(data, position)[1] - position
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError("a group")
        if position + size > end:
            raise ValueError("a field longer than its message")
        yield key >> 3 if kind == _BYTES else _NO_MESSAGE, begin, position, position + size
        position += size


def _read_varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    result = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
    raise ValueError("a number of more than 10 bytes")


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
