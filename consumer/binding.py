"""Event fields to graph inputs.

- A model asks for each event field once, as one element type (`FieldSpec`); a field that feeds inputs of several types
  is asked for as the strictest of them and widened per input.
- What an event has must convert without loss of meaning: floats from any number, integers from int and long, strings
  from string and enum, bool from boolean. A nullable field counts as what it is when it is there; where the signature
  says what null counts as, an event need not have the field; no event at all may lack it only where that is a value.
- An input of one field is that field's column, not copied; an input of F fields is one matrix `[N, F]`, filled column
  by column.
- An input of one field and more than one value a row, `[N, d1, …, dk]`, is a tensor: the field holds the whole row
  (`decode.rules` says how).

    binding = Binding(manifest.signature)
    binding.check(EventFields({"amount": "double"}, source="the Avro schema of topic transactions"))
    session.run(binding.feeds({"amount": np.float32([1.0, 2.0])}))
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from modelcast.errors import BindingError
from modelcast.records import DType, InputBinding, Signature
from modelcast.runtime import Array
from modelcast.tensors import FieldSpec, numpy_dtype, tensor_of

_INTEGER_KINDS = frozenset({"int", "long"})
_NUMBER_KINDS = frozenset({*_INTEGER_KINDS, "float", "double"})
# Avro's words for what a field holds, by the element type it can feed.
_KINDS: Mapping[DType, frozenset[str]] = {
    DType.FLOAT32: _NUMBER_KINDS,
    DType.FLOAT64: _NUMBER_KINDS,
    DType.INT32: _INTEGER_KINDS,
    DType.INT64: _INTEGER_KINDS,
    DType.UINT8: _INTEGER_KINDS,
    DType.BOOL: frozenset({"boolean"}),
    DType.STRING: frozenset({"string", "enum"}),
}
# What holds the whole row of a tensor as raw bytes (a string in base64), whatever its element type.
_RAW_KINDS = frozenset({"bytes", "fixed", "string"})
# Strictest first: what a field is asked for as when inputs of several types take it. A value valid as the first is
# valid as each that follows.
_STRICTEST = (DType.UINT8, DType.INT32, DType.INT64, DType.FLOAT32, DType.FLOAT64)
_FLOATS = frozenset({DType.FLOAT32, DType.FLOAT64})
# An error names this many fields of an event; wide events have thousands.
_FIELDS_NAMED = 30


def array_of(kind: str) -> str:
    """The kind of an array whose items are of `kind`."""
    return f"array of {kind}"


@dataclass(frozen=True, slots=True)
class EventFields:
    """What events are known to have.

    Attributes:
        kinds: Avro's word for each field's type: `int`, `long`, `float`, `double`, `string`, `enum`, `boolean`,
            `bytes`, `fixed`, `array of int` (long, float, double), or any other word for what feeds no input. Of a
            nullable field, the type beside null.
        source: Where this is known from, for messages: "the schema of topic transactions".
    """

    kinds: Mapping[str, str]
    source: str


class Binding:
    """How one signature's inputs are fed; immutable, so shared between threads.

    Raises:
        BindingError: The signature itself asks for what can't be: an input without fields, a matrix of another width
            than its fields, a tensor no event could hold, one field as both text and number or as several tensors,
            null as something that is no value of its field, or an output no prediction can hold.
    """

    def __init__(self, signature: Signature) -> None:
        specs: dict[str, FieldSpec] = {}
        for entry in signature.inputs:
            for spec in _specs(entry):
                specs[spec.name] = _stricter(specs.get(spec.name, spec), spec)
        for output in signature.outputs:
            if output.dtype is DType.UINT8:
                raise BindingError(f"output {output.name!r} is uint8, which no prediction can hold")
        self.signature = signature
        nulls = {rule.field: rule.value for rule in signature.nulls}
        self.specs = tuple(_with_null(specs[name], nulls.get(name)) for name in signature.fields)
        self._dims = [(spec, spec.dims, 1 + len(spec.dims)) for spec in self.specs]
        self._dtypes = {entry.name: numpy_dtype(entry.dtype) for entry in signature.inputs}

    def check(self, fields: EventFields) -> None:
        """Checks that events of these fields can feed the model.

        Raises:
            BindingError: Names each field that is missing or of another kind, what the model needs and the event has.
        """
        faults = [fault for spec in self.specs if (fault := _fault(spec, fields.kinds))]
        if faults:
            names = sorted(fields.kinds)
            shown = ", ".join(names[:_FIELDS_NAMED]) + (f", … ({len(names)} fields)" if names[_FIELDS_NAMED:] else "")
            raise BindingError(
                f"the model can't be fed from {fields.source}: " + "; ".join(faults[:_FIELDS_NAMED]),
                hint=f"The events have: {shown or 'no fields'}.",
            )

    def feeds(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """The graph's inputs.

        Args:
            columns: By event field, arrays `[N]` of the field's dtype (`specs`), strings as objects; `[N, d1, …, dk]`
                for a tensor. Other numeric dtypes are converted where no value changes its meaning; fields the model
                does not take are ignored.

        Returns:
            By ONNX input, arrays `[N]`, `[N, 1]`, `[N, F]` or `[N, d1, …, dk]`, C-contiguous.

        Raises:
            BindingError: A field is missing, of another length or shape, or does not convert.
        """
        rows = self._rows(columns)
        feeds: dict[str, Array] = {}
        for entry in self.signature.inputs:
            dtype = self._dtypes[entry.name]
            if len(entry.fields) == 1:
                column = np.ascontiguousarray(_converted(entry.fields[0], columns[entry.fields[0]], dtype))
                feeds[entry.name] = column.reshape(rows, 1) if entry.shape == (None, 1) else column
                continue
            feeds[entry.name] = _matrix(entry.fields, columns, rows, dtype)
        return feeds

    def _rows(self, columns: Mapping[str, Array]) -> int:
        rows = -1
        for spec, dims, ndim in self._dims:
            column = columns.get(spec.name)
            if column is None:
                raise missing_field(spec, columns)
            if column.ndim != ndim or (dims and column.shape[1:] != dims) or rows not in (-1, len(column)):
                one = f"one value of shape {list(spec.dims)}" if spec.dims else "one value"
                raise BindingError(
                    f"field {spec.name!r} has shape {list(column.shape)}; every field needs {one} per row"
                    + ("" if rows < 0 else f", {rows} here")
                )
            rows = len(column)
        return max(rows, 0)


def _specs(entry: InputBinding) -> list[FieldSpec]:
    """The fields of one input, each as it is asked for."""
    width = len(entry.fields)
    try:
        tensor = tensor_of(entry)
    except ValueError as error:
        raise BindingError(
            f"input {entry.name!r} of shape {list(entry.shape)} can't be fed from one field: {error}"
        ) from error
    if tensor is not None:
        return [tensor]
    legal = entry.shape == (None, width) or (width == 1 and entry.shape == (None,))
    if not width or not legal:
        raise BindingError(
            f"input {entry.name!r} of shape {list(entry.shape)} can't be fed from {width} fields",
            hint="An input is [N] or [N, 1] from one field, [N, F] from F fields, or [N, d1, …, dk] from one field.",
        )
    return [FieldSpec(name, entry.dtype) for name in entry.fields]


def _with_null(spec: FieldSpec, null: str | None) -> FieldSpec:
    try:
        return spec if null is None else replace(spec, null=null)
    except ValueError as error:
        raise BindingError(f"null can't count as {null!r} in field {spec.name!r} ({spec.wanted}): {error}") from error


def _stricter(one: FieldSpec, other: FieldSpec) -> FieldSpec:
    if one == other:
        return one
    if one.shape or other.shape or one.dtype not in _STRICTEST or other.dtype not in _STRICTEST:
        raise BindingError(f"field {one.name!r} feeds both an input of {one.wanted} and one of {other.wanted}")
    if {one.dtype, other.dtype} == _FLOATS:
        return FieldSpec(one.name, DType.FLOAT64)  # narrowed for the float32 input, so that the other keeps its digits
    return min(one, other, key=lambda spec: _STRICTEST.index(spec.dtype))


def _fault(spec: FieldSpec, kinds: Mapping[str, str]) -> str | None:
    kind = kinds.get(spec.name)
    # NaN stands for single values that are not known. That no event has the field at all is a mistake, unless a value
    # was named for it.
    if kind is None and spec.null is not None and not _is_nan(spec):
        return None
    if kind is None:
        return f"field {spec.name!r} ({spec.wanted}) is missing" + _meant(spec.name, kinds)
    allowed = _KINDS[spec.dtype]
    if spec.shape:
        allowed = _RAW_KINDS | {array_of(item) for item in allowed}
    return None if kind in allowed else f"field {spec.name!r} is {kind}, the model needs {spec.wanted}"


def _is_nan(spec: FieldSpec) -> bool:
    """Whether what null counts as is no value of its own."""
    return spec.null is not None and spec.dtype in (DType.FLOAT32, DType.FLOAT64) and math.isnan(float(spec.null))


def missing_field(spec: FieldSpec, present: Iterable[object]) -> BindingError:
    """The error that names a field, and which of those present may have been meant."""
    return BindingError(
        f"field {spec.name!r} is missing; the model needs it as {spec.wanted}" + _meant(spec.name, present)
    )


def _meant(name: str, present: Iterable[object]) -> str:
    folded = {other.casefold(): other for other in present if isinstance(other, str)}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def _matrix(fields: Sequence[str], columns: Mapping[str, Array], rows: int, dtype: np.dtype[np.generic]) -> Array:
    """Columns side by side, as `dtype`."""
    matrix = np.empty((rows, len(fields)), dtype)
    is_narrowed = False
    with np.errstate(over="ignore"):
        for index, name in enumerate(fields):
            column = columns[name]
            if column.dtype == dtype:
                matrix[:, index] = column
            elif column.dtype == np.float64 and dtype == np.float32:
                matrix[:, index] = column
                is_narrowed = True
            else:
                matrix[:, index] = _converted(name, column, dtype)
    # Asked once for all of them: to ask each costs more than converting it.
    if is_narrowed and not np.isfinite(matrix).all():
        for name in fields:
            _converted(name, columns[name], dtype)
    return matrix


def _converted(field: str, column: Array, dtype: np.dtype[np.generic]) -> Array:
    if column.dtype == dtype:
        return column
    if column.dtype.kind == "U" and dtype.kind == "O":
        return column.astype(object)
    floats = dtype.kind == "f" and column.dtype.kind in "fiu"
    integers = dtype.kind in "iu" and column.dtype.kind in "iu"
    if not (floats or integers):
        raise BindingError(f"field {field!r} is an array of {column.dtype}, the model needs {dtype}")
    if integers and column.size and not np.can_cast(column.dtype, dtype):
        limits = np.iinfo(dtype.name)
        if int(column.min()) < limits.min or int(column.max()) > limits.max:
            raise BindingError(f"field {field!r} holds values that are no {dtype}")
    with np.errstate(over="ignore"):
        converted = column.astype(dtype)
    if column.dtype == np.float64 and dtype == np.float32 and (np.isinf(converted) & np.isfinite(column)).any():
        raise BindingError(f"field {field!r} holds numbers too large for {dtype}")
    return converted
