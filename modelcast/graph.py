"""The structure gate: what a graph may ask for, decided on the parsed protobuf before any runtime sees the file.

- External data: every tensor, wherever it hides (initializers, sparse ones, attributes, subgraphs, functions, defaults
  of function attributes), names a file of the version, once, with known keys, and a range within that file. The files
  themselves are regular files: no links, no folders, no devices.
- Operators: ONNX's own (domain "" or `ai.onnx`), `ai.onnx.ml`, ONNX Runtime's own (`com.microsoft`, where converters
  put what ONNX lacks) and functions the model brings along. Not `com.microsoft.EPContext`, which names files itself.
- Versions: neither format nor operator sets newer than the installed runtime reads.
- Size: nesting and the number of nodes after functions are expanded are bounded; a function may not call itself.
- onnx's external-data helpers, checker and version converter are never called: they open what the graph names.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import defs

from modelcast import runtime
from modelcast.blobs import check_path
from modelcast.errors import StructureError
from modelcast.records import InputBinding, OutputSpec, Signature
from modelcast.runtime import RuntimeLimits, TensorInfo

ONNX_DOMAIN = ""
ML_DOMAIN = "ai.onnx.ml"
CONTRIB_DOMAIN = "com.microsoft"

# Protobuf reads no larger message.
MAX_GRAPH_BYTES = (1 << 31) - 1
# Exporters nest loops and branches three or four deep; protobuf itself stops at about 30 graphs.
MAX_DEPTH = 24
# The largest exported language models have some ten thousand nodes; functions calling functions can ask for 2^n.
MAX_NODES = 1_000_000

_ALIASES = {"ai.onnx": ONNX_DOMAIN}
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
# Operators that open files of their own choice.
_FORBIDDEN = frozenset({(CONTRIB_DOMAIN, "EPContext")})
_ELEMENT_TYPES = frozenset(onnx.TensorProto.DataType.values())
_DTYPES = {"float": "float32", "double": "float64"}

_FunctionId = tuple[str, str, str]


@dataclass(frozen=True)
class GraphFacts:
    """What a graph says of itself.

    Attributes:
        opsets: Imported operator set versions by domain; "" is ONNX's own.
        inputs: Inputs a caller must feed, in graph order (initializers are not among them).
        external: Paths of the files its tensors lie in.
    """

    ir_version: int
    opsets: Mapping[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    external: frozenset[str]


def inspect(path: Path, files: Collection[str]) -> GraphFacts:
    """Parses a graph and checks all of the above.

    Args:
        path: The `.onnx` file; its external files lie in the same folder.
        files: Paths, relative to that folder, of the files the version has. The graph may name only these.

    Raises:
        StructureError: The file is no ONNX model, or asks for something that is not allowed or not supported.
        MissingExtraError: No runtime is installed, so what it supports is not known.
    """
    size = _regular_size(path, path.name)
    if size > MAX_GRAPH_BYTES:
        raise StructureError(
            f"the graph has {size} bytes; protobuf reads at most {MAX_GRAPH_BYTES}",
            hint="Keep large tensors in files of their own (external data).",
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except Exception as error:  # protobuf's, of a module that has no types
        raise StructureError(f"{path.name} is not an ONNX model: {error}") from error
    sizes = _Sizes(path.parent, frozenset(files) - {path.name})
    return examine(model, sizes, runtime.limits())


def examine(model: onnx.ModelProto, sizes: Mapping[str, int], limits: RuntimeLimits) -> GraphFacts:
    """The gate itself, on values.

    Args:
        model: The parsed graph.
        sizes: Size in bytes of each file the graph may name.
        limits: What the runtime reads.

    Raises:
        StructureError: As `inspect`.
    """
    if not model.HasField("graph") or not model.graph.output:
        raise StructureError("the file is no ONNX model: it has no graph with outputs")
    if model.training_info:
        raise StructureError("the graph carries training information", hint="Export the model for inference.")
    if not 0 < model.ir_version <= limits.ir_version:
        raise StructureError(
            f"the graph has IR version {model.ir_version}; the installed ONNX Runtime reads up to {limits.ir_version}",
            hint="Upgrade onnxruntime, or export the model with an older IR version.",
        )
    opsets = _opsets(model.opset_import, limits)
    gate = _Gate(sizes, limits, frozenset(_function_id(function) for function in model.functions))
    gate.visit_graph(model.graph, opsets, gate.count_of(None), depth=0)
    for function in model.functions:
        gate.visit_function(function, opsets)
    gate.check_expansion()
    initializers = {tensor.name for tensor in model.graph.initializer}
    initializers |= {tensor.values.name for tensor in model.graph.sparse_initializer}
    return GraphFacts(
        ir_version=model.ir_version,
        opsets=opsets,
        inputs=tuple(_tensor_info(value) for value in model.graph.input if value.name not in initializers),
        outputs=tuple(_tensor_info(value) for value in model.graph.output),
        external=frozenset(gate.external),
    )


def check_signature(facts: GraphFacts, signature: Signature) -> None:
    """Checks that a graph takes and gives what a signature says.

    Raises:
        StructureError: An input or output is missing, doubled or too many, or has another type or shape.
    """
    _check_tensors("input", facts.inputs, signature.inputs)
    _check_tensors("output", facts.outputs, signature.outputs)


def _check_tensors(
    what: str, tensors: Iterable[TensorInfo], declared: Iterable[InputBinding] | Iterable[OutputSpec]
) -> None:
    have = {tensor.name: tensor for tensor in tensors}
    names = [entry.name for entry in declared]
    if sorted(names) != sorted(have):
        raise StructureError(f"the graph's {what}s are {sorted(have)}, the manifest's signature says {sorted(names)}")
    for entry in declared:
        tensor = have[entry.name]
        if tensor.dtype != entry.dtype:
            raise StructureError(
                f"{what} {entry.name!r} of the graph is {tensor.dtype}, the manifest's signature says {entry.dtype}"
            )
        # An output without a shape is one the exporter did not infer; the golden examples show what it is.
        if tensor.shape and not _fits(tensor.shape, entry.shape):
            raise StructureError(
                f"{what} {entry.name!r} of the graph has shape {_shape_text(tensor.shape)}, "
                f"the manifest's signature says {_shape_text(entry.shape)}"
            )


def _fits(graph: tuple[int | None, ...], declared: tuple[int | None, ...]) -> bool:
    return len(graph) == len(declared) and all(
        g is None or g == d for g, d in zip(graph, declared, strict=True)
    )  # a batch fixed by the graph (1, F) does not fit a batch of any size (None, F)


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


class _Sizes(Mapping[str, int]):
    """Sizes of the files a graph may name, looked up when it names one."""

    def __init__(self, folder: Path, files: frozenset[str]) -> None:
        self._folder = folder
        self._files = files

    def __getitem__(self, path: str) -> int:
        if path not in self._files:
            raise KeyError(path)
        return _regular_size(self._folder / path, path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _regular_size(path: Path, name: str) -> int:
    try:
        status = path.lstat()
    except OSError as error:
        raise StructureError(f"file {name!r} of the model can't be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise StructureError(f"{name!r} of the model is not a regular file but a link, folder or device")
    return status.st_size


def _opsets(imports: Iterable[onnx.OperatorSetIdProto], limits: RuntimeLimits) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for entry in imports:
        domain = _domain(entry.domain)
        newest = limits.opsets.get(domain)
        if newest is not None and entry.version > newest:
            raise StructureError(
                f"the graph needs operator set {entry.version} of {domain or 'ai.onnx'}; "
                f"the installed ONNX Runtime reads up to {newest}",
                hint=f"Upgrade onnxruntime, or export the model with operator set {newest}.",
            )
        opsets[domain] = entry.version
    return opsets


def _domain(name: str) -> str:
    return _ALIASES.get(_utf8(name), name)


def _utf8(text: object) -> str:
    """A text of the graph; ONNX's texts that have no UTF-8 come as bytes, and mean something else to each reader."""
    if not isinstance(text, str):
        raise StructureError(f"the graph has a name that is not UTF-8: {text!r:.100}")
    return text


def _function_id(function: onnx.FunctionProto) -> _FunctionId:
    return (_domain(function.domain), _utf8(function.name), _utf8(function.overload))


@dataclass
class _Body:
    """Nodes of one function (or of the graph), and how often it calls each function."""

    nodes: int = 0
    calls: dict[_FunctionId, int] = field(default_factory=dict)


class _Gate:
    """One walk over one model."""

    def __init__(self, sizes: Mapping[str, int], limits: RuntimeLimits, functions: frozenset[_FunctionId]) -> None:
        self.external: set[str] = set()
        self._sizes = sizes
        self._limits = limits
        self._functions = functions
        self._bodies: dict[_FunctionId | None, _Body] = {}  # None is the graph itself
        self._known: dict[tuple[str, str, int], bool] = {}

    def count_of(self, owner: _FunctionId | None) -> _Body:
        return self._bodies.setdefault(owner, _Body())

    def visit_function(self, function: onnx.FunctionProto, inherited: Mapping[str, int]) -> None:
        opsets = {**inherited, **_opsets(function.opset_import, self._limits)}
        body = self.count_of(_function_id(function))
        for node in function.node:
            self._visit_node(node, opsets, body, depth=0)
        for attribute in function.attribute_proto:
            self._visit_attribute(attribute, opsets, body, depth=0)

    def visit_graph(self, graph: onnx.GraphProto, opsets: Mapping[str, int], body: _Body, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise StructureError(f"the graph nests more than {MAX_DEPTH} graphs")
        for tensor in graph.initializer:
            self._visit_tensor(tensor)
        for sparse in graph.sparse_initializer:
            self._visit_sparse(sparse)
        for node in graph.node:
            self._visit_node(node, opsets, body, depth)

    def check_expansion(self) -> None:
        """The runtime expands functions in place: bounds what that makes, and refuses a function that calls itself."""
        costs: dict[_FunctionId, int] = {}
        total = self._expanded(None, costs, ())
        if total > MAX_NODES:
            raise StructureError(f"the graph has {total} nodes once its functions are expanded; at most {MAX_NODES}")

    def _expanded(
        self, owner: _FunctionId | None, costs: dict[_FunctionId, int], stack: tuple[_FunctionId, ...]
    ) -> int:
        if len(stack) > MAX_DEPTH:
            raise StructureError(f"functions of the graph call each other more than {MAX_DEPTH} deep")
        body = self.count_of(owner)
        total = body.nodes
        for callee, times in body.calls.items():
            if callee in stack:
                raise StructureError(f"function {callee[0]}.{callee[1]} of the graph calls itself")
            if callee not in costs:
                costs[callee] = self._expanded(callee, costs, (*stack, callee))
            total += times * costs[callee]
        return total

    def _visit_node(self, node: onnx.NodeProto, opsets: Mapping[str, int], body: _Body, depth: int) -> None:
        domain = _domain(node.domain)
        body.nodes += 1
        callee = (domain, _utf8(node.op_type), _utf8(node.overload))
        if callee in self._functions:
            body.calls[callee] = body.calls.get(callee, 0) + 1
        else:
            self._check_operator(node, domain, opsets)
        for attribute in node.attribute:
            self._visit_attribute(attribute, opsets, body, depth)

    def _visit_attribute(
        self, attribute: onnx.AttributeProto, opsets: Mapping[str, int], body: _Body, depth: int
    ) -> None:
        if attribute.HasField("t"):
            self._visit_tensor(attribute.t)
        if attribute.HasField("sparse_tensor"):
            self._visit_sparse(attribute.sparse_tensor)
        if attribute.HasField("g"):
            self.visit_graph(attribute.g, opsets, body, depth + 1)
        for tensor in attribute.tensors:
            self._visit_tensor(tensor)
        for sparse in attribute.sparse_tensors:
            self._visit_sparse(sparse)
        for graph in attribute.graphs:
            self.visit_graph(graph, opsets, body, depth + 1)

    def _check_operator(self, node: onnx.NodeProto, domain: str, opsets: Mapping[str, int]) -> None:
        operator = f"{domain or 'ai.onnx'}.{node.op_type}"
        where = f" (node {node.name!r})" if node.name else ""
        if (domain, node.op_type) in _FORBIDDEN:
            raise StructureError(f"operator {operator}{where} is not allowed: it opens files of its own choice")
        if domain == CONTRIB_DOMAIN:
            if self._limits.contrib and node.op_type not in self._limits.contrib:
                raise StructureError(f"the installed ONNX Runtime has no operator {operator}{where}")
            return
        if domain not in (ONNX_DOMAIN, ML_DOMAIN):
            raise StructureError(
                f"operator {operator}{where} is of domain {domain!r}, and no function of the model; "
                f"only ai.onnx, {ML_DOMAIN} and {CONTRIB_DOMAIN} are allowed",
                hint="Export the model without custom operators.",
            )
        if domain not in opsets:
            raise StructureError(f"the graph uses {operator}{where} but imports no operator set of its domain")
        if not self._exists(node.op_type, opsets[domain], domain):
            other = defs.has(node.op_type, domain=domain)
            raise StructureError(
                f"operator {operator}{where} does not exist in operator set {opsets[domain]}"
                + (", only in a newer one" if other else "")
            )

    def _exists(self, op_type: str, version: int, domain: str) -> bool:
        key = (domain, op_type, version)
        if key not in self._known:
            self._known[key] = defs.has(op_type, version, domain)
        return self._known[key]

    def _visit_sparse(self, sparse: onnx.SparseTensorProto) -> None:
        self._visit_tensor(sparse.values)
        self._visit_tensor(sparse.indices)

    def _visit_tensor(self, tensor: onnx.TensorProto) -> None:
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            if tensor.external_data:
                raise StructureError(f"tensor {tensor.name!r} names external data but says it has none")
            return
        entries = [(_utf8(entry.key), _utf8(entry.value)) for entry in tensor.external_data]
        keys = [key for key, _ in entries]
        if odd := sorted(set(keys) - _EXTERNAL_KEYS):
            raise StructureError(f"external data of tensor {tensor.name!r} has unknown keys {odd}")
        if len(set(keys)) != len(keys) or "location" not in keys:
            raise StructureError(f"external data of tensor {tensor.name!r} must name one location, and each key once")
        values = dict(entries)
        location = values["location"]
        check_path(location)
        if location not in self._sizes:
            raise StructureError(f"tensor {tensor.name!r} lies in {location!r}, which is no file of the model")
        size = self._sizes[location]
        offset = _number(tensor, values, "offset", 0)
        length = _number(tensor, values, "length", max(size - offset, 0))
        if offset + length > size:
            raise StructureError(
                f"tensor {tensor.name!r} takes bytes {offset} to {offset + length} of {location!r}, which has {size}"
            )
        self.external.add(location)


def _number(tensor: onnx.TensorProto, values: Mapping[str, str], key: str, default: int) -> int:
    text = values.get(key, str(default))
    if not (text.isascii() and text.isdecimal() and len(text) <= 19):
        raise StructureError(f"external data of tensor {tensor.name!r} has {key} {text[:40]!r}")
    return int(text)


def _tensor_info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.WhichOneof("value") or "untyped"
    name = _utf8(value.name)
    if kind != "tensor_type":
        return TensorInfo(name, kind.removesuffix("_type"), ())
    tensor = value.type.tensor_type
    if tensor.elem_type not in _ELEMENT_TYPES:
        raise StructureError(f"{name!r} of the graph has an unknown element type ({tensor.elem_type})")
    dtype = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = tuple(
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value >= 0 else None for dim in tensor.shape.dim
    )
    return TensorInfo(name, _DTYPES.get(dtype, dtype), shape)
