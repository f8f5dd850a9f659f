"""A Python function as a real ONNX model, for tests that need a model and not a training.

- The parameters are the event fields, each a float32; what is returned becomes the outputs: a value is `score`, a dict
  names them.
- The function is called once, with objects that write down what is done with them: arithmetic, comparison, `&`, `|`,
  `~`, `abs`. It can't branch on a value (`if amount > 10`): use `where`.

    >>> onnx_of(lambda amount, age: amount * 0.5 + age).graph.input[0].name
    'amount'
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelcast.errors import UsageError

Number: TypeAlias = "Value | float"

# Old enough for any runtime that modelcast runs on.
_OPSET: Final = 18
_IR_VERSION: Final = 9
_SCORE: Final = "score"


@dataclass
class _Tape:
    """What was done, in order."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def add(self, operator: str, *operands: Number, truth: bool = False) -> Value:
        """One operation; `truth` says that it gives booleans."""
        names = [self._name_of(operand) for operand in operands]
        name = f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, names, [name]))
        return Value(self, name, truth)

    def _name_of(self, operand: Number) -> str:
        if isinstance(operand, Value):
            return operand.name
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(operand, np.float32), name))
        return name


class Value:
    """A column of numbers or truths that the model computes."""

    __hash__ = None  # type: ignore[assignment]  # equality is an operation of the model

    def __init__(self, tape: _Tape, name: str, truth: bool) -> None:
        self._tape = tape
        self.name = name
        self.truth = truth

    def __add__(self, other: Number) -> Value:
        return self._tape.add("Add", self, other)

    def __radd__(self, other: Number) -> Value:
        return self._tape.add("Add", other, self)

    def __sub__(self, other: Number) -> Value:
        return self._tape.add("Sub", self, other)

    def __rsub__(self, other: Number) -> Value:
        return self._tape.add("Sub", other, self)

    def __mul__(self, other: Number) -> Value:
        return self._tape.add("Mul", self, other)

    def __rmul__(self, other: Number) -> Value:
        return self._tape.add("Mul", other, self)

    def __truediv__(self, other: Number) -> Value:
        return self._tape.add("Div", self, other)

    def __rtruediv__(self, other: Number) -> Value:
        return self._tape.add("Div", other, self)

    def __pow__(self, other: Number) -> Value:
        return self._tape.add("Pow", self, other)

    def __neg__(self) -> Value:
        return self._tape.add("Neg", self)

    def __abs__(self) -> Value:
        return self._tape.add("Abs", self)

    def __lt__(self, other: Number) -> Value:
        return self._tape.add("Less", self, other, truth=True)

    def __le__(self, other: Number) -> Value:
        return self._tape.add("LessOrEqual", self, other, truth=True)

    def __gt__(self, other: Number) -> Value:
        return self._tape.add("Greater", self, other, truth=True)

    def __ge__(self, other: Number) -> Value:
        return self._tape.add("GreaterOrEqual", self, other, truth=True)

    def __eq__(self, other: Number) -> Value:  # type: ignore[override]
        return self._tape.add("Equal", self, other, truth=True)

    def __and__(self, other: Value) -> Value:
        return self._tape.add("And", self, other, truth=True)

    def __or__(self, other: Value) -> Value:
        return self._tape.add("Or", self, other, truth=True)

    def __invert__(self) -> Value:
        return self._tape.add("Not", self, truth=True)

    def __bool__(self) -> bool:
        raise UsageError(
            "a model's function can't branch on a value: it is called once, for all rows",
            hint="Write modelcast.testing.functions.where(condition, then, otherwise); and & for and, | for or.",
        )


def where(condition: Value, then: Number, otherwise: Number) -> Value:
    """`then` in the rows where `condition` holds, else `otherwise`."""
    return condition._tape.add("Where", condition, then, otherwise)


def onnx_of(function: Callable[..., Any]) -> onnx.ModelProto:
    """The ONNX model that computes what `function` does, row by row.

    Args:
        function: Takes event fields by name, gives a value or a dict of them by output name.

    Returns:
        A model with an input `[N]` of float32 for each parameter.

    Raises:
        UsageError: The function takes something else than named parameters, branches on a value, or gives no value.
    """
    tape = _Tape()
    fields = _fields(function)
    given = function(**{name: Value(tape, name, False) for name in fields})
    outputs = given if isinstance(given, Mapping) else {_SCORE: given}
    for name, value in outputs.items():
        if not isinstance(value, Value):
            raise UsageError(
                f"output {name!r} of the function is {value!r}, which no field has a part in",
                hint="Compute it from the fields, e.g. 0 * amount + 1.",
            )
        tape.nodes.append(helper.make_node("Identity", [value.name], [name]))
    graph = helper.make_graph(
        tape.nodes,
        "function",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N"]) for name in fields],
        [
            helper.make_tensor_value_info(name, TensorProto.BOOL if value.truth else TensorProto.FLOAT, ["N"])
            for name, value in outputs.items()
        ],
        tape.constants,
    )
    model = helper.make_model(graph, ir_version=_IR_VERSION, opset_imports=[helper.make_opsetid("", _OPSET)])
    onnx.checker.check_model(model, full_check=True)
    return model


def _fields(function: Callable[..., Any]) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    if not parameters or any(
        parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY) for parameter in parameters
    ):
        raise UsageError(
            "a model's function takes its event fields as named parameters", hint="e.g. lambda amount, age: ..."
        )
    return [parameter.name for parameter in parameters]
