"""Small edits of converted graphs: names of values, types of inputs, casts. In place, main graph first.

Converters leave value names, input types and float widths as suits them; a signature needs them as suits events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcast.errors import ConversionError

_TENSOR_TYPES = {"f": TensorProto.FLOAT, "i": TensorProto.INT64, "b": TensorProto.BOOL, "O": TensorProto.STRING}


def value_names(graph: onnx.GraphProto) -> set[str]:
    """Every name that a value of the graph has, or one of a graph within it."""
    names = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    inner = (value_names(attribute.g) for node in graph.node for attribute in node.attribute if attribute.HasField("g"))
    return names.union(*((*node.input, *node.output) for node in graph.node), *inner)


def rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Renames a value wherever it is made or used; whoever had the new name gets another."""
    if old == new:
        return
    if new in value_names(graph):
        rename(graph, new, _unused(graph, f"inner_{new}"))
    _rename(graph, old, new)


def cast_boolean(graph: onnx.GraphProto, value: onnx.ValueInfoProto) -> None:
    """Makes an int64 input `[N, 1]` boolean; the graph goes on with 0 and 1."""
    name, inner = value.name, _unused(graph, f"{value.name}_as_integer")
    _rename(graph, name, inner)
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.BOOL, [None, 1]))
    _put_first(graph, [helper.make_node("Cast", [name], [inner], name=inner, to=TensorProto.INT64)])


def join_columns(graph: onnx.GraphProto, kinds: Mapping[str, str], to: int) -> None:
    """Replaces the matrix input by one input `[N, 1]` per column, cast to one type and joined.

    Args:
        graph: With one input.
        kinds: Numpy kind of each column by name, in order.
        to: The matrix's element type.

    Raises:
        ConversionError: A column has the name of an output.
    """
    matrix = _unused(graph, "joined")
    _rename(graph, graph.input[0].name, matrix)
    del graph.input[:]
    for name in kinds:
        if name in {output.name for output in graph.output}:
            raise ConversionError(f"column {name!r} has the name of an output of the model", hint="Rename the column.")
        if name in value_names(graph):
            _rename(graph, name, _unused(graph, f"inner_{name}"))
    nodes: list[onnx.NodeProto] = []
    for name, kind in kinds.items():
        graph.input.append(helper.make_tensor_value_info(name, _TENSOR_TYPES[kind], [None, 1]))
        part = f"{matrix}_{len(nodes)}"
        nodes.append(helper.make_node("Cast", [name], [part], name=part, to=to))
    parts = [node.output[0] for node in nodes]
    _put_first(graph, [*nodes, helper.make_node("Concat", parts, [matrix], name=matrix, axis=1)])


def take_octets(graph: onnx.GraphProto, dims: Sequence[int]) -> None:
    """Makes the only input, a matrix of floats, one of uint8 `[N, d1, …, dk]` with as many values a row."""
    value = graph.input[0]
    name, to = value.name, value.type.tensor_type.elem_type
    width = value.type.tensor_type.shape.dim[1].dim_value
    matrix, numbers, shape = (_unused(graph, f"{name}_{part}") for part in ("matrix", "numbers", "shape"))
    _rename(graph, name, matrix)
    value.CopyFrom(helper.make_tensor_value_info(name, TensorProto.UINT8, [None, *dims]))
    graph.initializer.append(helper.make_tensor(shape, TensorProto.INT64, [2], [-1, width]))
    nodes = [
        helper.make_node("Cast", [name], [numbers], name=numbers, to=to),
        helper.make_node("Reshape", [numbers, shape], [matrix], name=matrix),
    ]
    _put_first(graph, nodes)


def narrow_trees(graph: onnx.GraphProto) -> None:
    """Makes tree ensembles of a float64 graph compare float32, as scikit-learn's trees do.

    A runtime compares float64 values with float32 thresholds otherwise. What the trees give is float32 too. Trees whose
    thresholds are float64 are left as they are.
    """
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        double = any(attribute.name == "nodes_values_as_tensor" for attribute in node.attribute)
        if node.op_type.startswith("TreeEnsemble") and not double:
            narrow = f"{node.output[0]}_float32"
            graph.node.append(helper.make_node("Cast", [node.input[0]], [narrow], name=narrow, to=TensorProto.FLOAT))
            node.input[0] = narrow
            for output in graph.output:
                if output.name == node.output[-1] and output.type.tensor_type.elem_type == TensorProto.DOUBLE:
                    output.type.tensor_type.elem_type = TensorProto.FLOAT
        graph.node.append(node)


def replace_imputers(graph: onnx.GraphProto) -> None:
    """Writes imputers of a float64 graph as comparisons: runtimes have them for float32 and integers only."""
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        values = {attribute.name: attribute for attribute in node.attribute}
        if node.op_type != "Imputer" or "imputed_value_floats" not in values:
            graph.node.append(node)
            continue
        output, missing = node.output[0], f"{node.output[0]}_missing"
        imputed = np.asarray(values["imputed_value_floats"].floats, dtype=np.float64)
        graph.initializer.append(numpy_helper.from_array(imputed, f"{output}_imputed"))
        replaced = values["replaced_value_float"].f if "replaced_value_float" in values else 0.0
        if np.isnan(replaced):
            graph.node.append(helper.make_node("IsNaN", node.input, [missing], name=missing))
        else:
            graph.initializer.append(numpy_helper.from_array(np.asarray(replaced, dtype=np.float64), f"{output}_held"))
            graph.node.append(helper.make_node("Equal", [node.input[0], f"{output}_held"], [missing], name=missing))
        graph.node.append(
            helper.make_node("Where", [missing, f"{output}_imputed", node.input[0]], [output], name=output)
        )


def _rename(graph: onnx.GraphProto, old: str, new: str) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        if value.name == old:
            value.name = new
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name == old:
                    names[index] = new
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, old, new)


def _unused(graph: onnx.GraphProto, stem: str) -> str:
    taken = value_names(graph)
    return next(name for name in (stem, *(f"{stem}_{n}" for n in range(len(taken) + 1))) if name not in taken)


def _put_first(graph: onnx.GraphProto, nodes: Sequence[onnx.NodeProto]) -> None:
    rest = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *rest])
