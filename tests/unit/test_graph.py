"""What a graph may ask for; every refusal names what is wrong, before a runtime sees the file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from modelcast import runtime
from modelcast.errors import StructureError
from modelcast.graph import MAX_DEPTH, GraphFacts, check_signature, examine, inspect
from modelcast.records import DType, InputBinding, OutputSpec, Signature
from modelcast.runtime import RuntimeLimits, TensorInfo

LIMITS = RuntimeLimits(10, {"": 22, "ai.onnx.ml": 5}, frozenset({"Gelu", "EPContext"}))
FILES = {"tensors/0.bin": 64}

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])


def external(location: str = "tensors/0.bin", **entries: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(
    nodes: list[onnx.NodeProto] | None = None,
    *,
    initializers: tuple[TensorProto, ...] = (),
    opsets: dict[str, int] | None = None,
    functions: tuple[onnx.FunctionProto, ...] = (),
    ir_version: int = 10,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes or [helper.make_node("Relu", ["x"], ["y"])], "g", [X], [Y], list(initializers))
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or {"": 17}).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, functions=list(functions))


def refused(graph: onnx.ModelProto, match: str) -> None:
    with pytest.raises(StructureError, match=match):
        examine(graph, FILES, LIMITS)


def test_the_facts_are_those_the_runtime_gives(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones(4, np.float32), "w")
    graph = model([helper.make_node("Add", ["x", "w"], ["y"])], initializers=(weights,))
    graph.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4]))
    path = tmp_path / "model.onnx"
    path.write_bytes(graph.SerializeToString())
    facts = inspect(path, {"model.onnx"})
    session = runtime.open_session(path, device="cpu")
    assert (facts.inputs, facts.outputs) == (session.inputs, session.outputs)
    assert (facts.ir_version, facts.opsets, facts.external) == (10, {"": 17}, frozenset())


def test_external_tensors_of_the_version_are_taken() -> None:
    graph = model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        initializers=(external(offset="0", length="16"), external(offset="48", length="16"), external(checksum="ab")),
    )
    assert examine(graph, FILES, LIMITS).external == {"tensors/0.bin"}


@pytest.mark.parametrize(
    "location", [".env", "..", "../secret", "/etc/passwd", "tensors/../../x", "*/_ORT_MEM_ADDR_/*", "", "model.onnx",
                 "a\0b"],
)  # fmt: skip
def test_f17_external_data_outside_the_version_is_refused(location: str) -> None:
    refused(model(initializers=(external(location),)), "no file of the model|not a path")


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        ({"basepath": "/"}, "unknown keys"),
        ({"prepacked_0": "x"}, "unknown keys"),
        ({"offset": "60", "length": "16"}, "60 to 76"),
        ({"offset": "65"}, "which has 64"),
        ({"offset": "-1"}, "offset '-1'"),
        ({"length": "9" * 40}, "has length"),
        ({"length": "0x10"}, "has length"),
    ],
)
def test_f17_odd_external_data_is_refused(entries: dict[str, str], match: str) -> None:
    refused(model(initializers=(external(**entries),)), match)


def test_f17_external_data_said_twice_or_hidden_is_refused() -> None:
    twice = external()
    twice.external_data.add(key="location", value="tensors/0.bin")
    refused(model(initializers=(twice,)), "each key once")
    hidden = external()
    hidden.data_location = TensorProto.DEFAULT
    refused(model(initializers=(hidden,)), "says it has none")


def in_constant(tensor: TensorProto) -> onnx.ModelProto:
    return model([helper.make_node("Constant", [], ["y"], value=tensor)])


def in_sparse_constant(tensor: TensorProto) -> onnx.ModelProto:
    sparse = onnx.SparseTensorProto(values=TensorProto(data_type=1), indices=tensor, dims=[4])
    return model([helper.make_node("Constant", [], ["y"], sparse_value=sparse)])


def in_sparse_initializer(tensor: TensorProto) -> onnx.ModelProto:
    graph = model()
    graph.graph.sparse_initializer.add(values=tensor, dims=[4])
    return graph


def in_subgraph(tensor: TensorProto) -> onnx.ModelProto:
    branch = helper.make_graph([helper.make_node("Constant", [], ["b"], value=tensor)], "b", [], [Y])
    return model([helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)])


def in_function(tensor: TensorProto) -> onnx.ModelProto:
    body = [helper.make_node("Constant", [], ["y"], value=tensor)]
    function = helper.make_function("own", "f", ["x"], ["y"], body, [helper.make_opsetid("", 17)])
    return model([helper.make_node("f", ["x"], ["y"], domain="own")], functions=(function,))


def in_function_default(tensor: TensorProto) -> onnx.ModelProto:
    graph = in_function(numpy_helper.from_array(np.ones(4, np.float32)))
    graph.functions[0].attribute_proto.append(helper.make_attribute("d", tensor))
    return graph


def in_unused_attribute(tensor: TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Relu", ["x"], ["y"])
    node.attribute.append(helper.make_attribute("odd", [tensor]))
    return model([node])


@pytest.mark.parametrize(
    "place",
    [in_constant, in_sparse_constant, in_sparse_initializer, in_subgraph, in_function, in_function_default,
     in_unused_attribute],
)  # fmt: skip
def test_f17_external_data_is_found_wherever_it_hides(place: Callable[[TensorProto], onnx.ModelProto]) -> None:
    refused(place(external(".env")), r"'\.env', which is no file of the model")
    assert examine(place(external()), FILES, LIMITS).external == {"tensors/0.bin"}


def test_f17_links_folders_and_devices_are_no_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model(initializers=(external("w.bin"),)).SerializeToString())
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64))
    with pytest.raises(StructureError, match=r"'w.bin' of the model can't be read"):
        inspect(path, {"w.bin"})
    (tmp_path / "w.bin").symlink_to(secret)
    with pytest.raises(StructureError, match="not a regular file"):
        inspect(path, {"w.bin"})
    (tmp_path / "w.bin").unlink()
    os.mkfifo(tmp_path / "w.bin")
    with pytest.raises(StructureError, match="not a regular file"):
        inspect(path, {"w.bin"})
    link = tmp_path / "link.onnx"
    link.symlink_to(path)
    with pytest.raises(StructureError, match="not a regular file"):
        inspect(link, {"w.bin"})


def test_f18_unknown_domains_and_operators_are_named() -> None:
    custom = helper.make_node("Mine", ["x"], ["y"], domain="acme", name="n1")
    refused(model([custom], opsets={"": 17, "acme": 1}), r"acme\.Mine \(node 'n1'\)")
    refused(model([helper.make_node("Reluu", ["x"], ["y"])]), r"ai\.onnx\.Reluu does not exist in operator set 17")
    refused(model([helper.make_node("Gelu", ["x"], ["y"])]), "only in a newer one")
    refused(model([helper.make_node("Scaler", ["x"], ["y"], domain="ai.onnx.ml")]), "imports no operator set")
    refused(model([helper.make_node("Nope", ["x"], ["y"], domain="com.microsoft")]), "no operator com.microsoft.Nope")


def test_f18_newer_formats_and_operator_sets_are_named() -> None:
    refused(model(opsets={"": 23}), "needs operator set 23 of ai.onnx; .* up to 22")
    refused(model(opsets={"": 17, "ai.onnx.ml": 6}), "needs operator set 6 of ai.onnx.ml")
    refused(model(ir_version=11), "IR version 11; .* up to 10")
    newer = in_function(numpy_helper.from_array(np.ones(4, np.float32)))
    newer.functions[0].opset_import[0].version = 23
    refused(newer, "needs operator set 23")


def test_the_runtimes_own_operators_are_taken_but_for_one_that_opens_files() -> None:
    opsets = {"": 17, "com.microsoft": 1}
    examine(model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], opsets=opsets), FILES, LIMITS)
    context = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="/etc/passwd")
    refused(model([context], opsets=opsets), "files of its own choice")


def test_operators_are_checked_in_subgraphs_and_functions() -> None:
    branch = helper.make_graph([helper.make_node("Mine", ["x"], ["y"], domain="acme")], "b", [], [Y])
    refused(model([helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)]), "acme.Mine")
    function = helper.make_function("own", "f", ["x"], ["y"], branch.node, [helper.make_opsetid("", 17)])
    refused(model([helper.make_node("f", ["x"], ["y"], domain="own")], functions=(function,)), "acme.Mine")


def test_functions_that_call_themselves_or_multiply_are_refused() -> None:
    def calling(name: str, callee: str, times: int) -> onnx.FunctionProto:
        nodes = [helper.make_node(callee, ["x"], ["y"], domain="own") for _ in range(times)]
        return helper.make_function("own", name, ["x"], ["y"], nodes, [helper.make_opsetid("own", 1)])

    call = [helper.make_node("f0", ["x"], ["y"], domain="own")]
    refused(model(call, functions=(calling("f0", "f1", 1), calling("f1", "f0", 1))), "calls itself")
    leaf = helper.make_function("own", "f22", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])],
                                [helper.make_opsetid("", 17)])  # fmt: skip
    doubling = (*(calling(f"f{i}", f"f{i + 1}", 2) for i in range(22)), leaf)
    refused(model(call, functions=doubling), "once its functions are expanded")
    chain = tuple(calling(f"f{i}", f"f{i + 1}", 1) for i in range(MAX_DEPTH + 2))
    last = helper.make_function("own", f"f{MAX_DEPTH + 2}", ["x"], ["y"], [], [])
    refused(model(call, functions=(*chain, last)), "deep")


def test_graphs_nested_too_deep_are_refused() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [Y])
    for _ in range(MAX_DEPTH + 1):
        graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], then_branch=graph)], "g", [], [Y])
    refused(model([helper.make_node("If", ["x"], ["y"], then_branch=graph)]), "nests more than")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08", b"\xff" * 100, b"\x80\x04pickle"])
def test_what_is_no_model_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(StructureError, match=r"no(t an)? ONNX model"):
        inspect(path, {"model.onnx"})


def test_training_information_is_refused() -> None:
    graph = model()
    graph.training_info.add()
    refused(graph, "training information")


SIGNATURE = Signature(
    (InputBinding("x", DType.FLOAT32, (None, 4), ("a", "b", "c", "d")),),
    (OutputSpec.named("y", DType.FLOAT32, (None, 4)),),
)


def facts(*, name: str = "x", dtype: str = "float32", shape: tuple[int | None, ...] = (None, 4)) -> GraphFacts:
    return GraphFacts(
        10, {"": 17}, (TensorInfo(name, dtype, shape),), (TensorInfo("y", "float32", ()),), frozenset()
    )  # fmt: skip


def test_a_graph_must_take_what_its_signature_says() -> None:
    check_signature(facts(), SIGNATURE)
    check_signature(facts(shape=(None, None)), SIGNATURE)
    for odd in (
        facts(name="z"),
        facts(dtype="float64"),
        facts(shape=(None, 5)),
        facts(shape=(1, 4)),
        facts(shape=(4,)),
    ):
        with pytest.raises(StructureError, match="the manifest's signature says"):
            check_signature(odd, SIGNATURE)
