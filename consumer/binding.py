"""Event fields to graph inputs.

- A model asks for each event field once, as one element type (`FieldSpec`); a field that feeds inputs of several types
  is asked for as the strictest of them and widened per input.
- What an event has must convert without loss of meaning: floats from any number, integers from int and long, strings
  from string and enum, bool from boolean. A nullable field counts as what it is when it is there.
- An input of one field is that field's column, not copied; an input of F fields is one matrix `[N, F]`, filled column
  by column.

    binding = Binding(manifest.signature)
    binding.check(EventFields({"amount": "double"}, source="the Avro schema of topic transactions"))
    session.run(binding.feeds({"amount": np.float32([1.0, 2.0])}))
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from modelcast.errors import BindingError
from modelcast.records import DType, InputBinding, Signature
from modelcast.runtime import Array

_NUMBER_KINDS = frozenset({"int", "long", "float", "double"})
# Avro's words for what a field holds, by the element type it can feed.
_KINDS: Mapping[DType, frozenset[str]] = {
    DType.FLOAT32: _NUMBER_KINDS,
    DType.FLOAT64: _NUMBER_KINDS,
    DType.INT32: frozenset({"int", "long"}),
    DType.INT64: frozenset({"int", "long"}),
    DType.BOOL: frozenset({"boolean"}),
    DType.STRING: frozenset({"string", "enum"}),
}
# Strictest first: what a field is asked for as when inputs of several types take it. A value valid as the first is
# valid as each that follows.
_STRICTEST = (DType.INT32, DType.INT64, DType.FLOAT32, DType.FLOAT64)
# An error names this many fields of an event; wide events have thousands.
_FIELDS_NAMED = 30


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One event field a model needs, and the element type it wants it as."""

    name: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class EventFields:
    """What events are known to have.

    Attributes:
        kinds: Avro's word for each field's type: `int`, `long`, `float`, `double`, `string`, `enum`, `boolean`, or any
            other word for what feeds no input. Of a nullable field, the type beside null.
        source: Where this is known from, for messages: "the schema of topic transactions".
    """

    kinds: Mapping[str, str]
    source: str


class Binding:
    """How one signature's inputs are fed; immutable, so shared between threads.

    Raises:
        BindingError: The signature itself asks for what can't be: an input without fields, a matrix of another width
            than its fields, or one field as both text and number.
    """

    def __init__(self, signature: Signature) -> None:
        dtypes: dict[str, DType] = {}
        for entry in signature.inputs:
            _check_input(entry)
            for name in entry.fields:
                dtypes[name] = _stricter(name, dtypes.get(name, entry.dtype), entry.dtype)
        self.signature = signature
        self.specs = tuple(FieldSpec(name, dtypes[name]) for name in signature.fields)
        self._dtypes = {entry.name: _numpy_dtype(entry.dtype) for entry in signature.inputs}

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
            columns: By event field, arrays `[N]` of the field's dtype (`specs`), strings as objects. Other numeric
                dtypes are converted where no value changes its meaning; fields the model does not take are ignored.

        Returns:
            By ONNX input, arrays `[N]`, `[N, 1]` or `[N, F]`, C-contiguous.

        Raises:
            BindingError: A field is missing, of another length, not one-dimensional, or does not convert.
        """
        rows = self._rows(columns)
        feeds: dict[str, Array] = {}
        for entry in self.signature.inputs:
            dtype = self._dtypes[entry.name]
            if len(entry.fields) == 1:
                column = np.ascontiguousarray(_converted(entry.fields[0], columns[entry.fields[0]], dtype))
                feeds[entry.name] = column.reshape(rows, 1) if len(entry.shape) == 2 else column
                continue
            matrix = np.empty((rows, len(entry.fields)), dtype)
            for index, name in enumerate(entry.fields):
                column = columns[name]
                matrix[:, index] = column if column.dtype == dtype else _converted(name, column, dtype)
            feeds[entry.name] = matrix
        return feeds

    def _rows(self, columns: Mapping[str, Array]) -> int:
        rows = -1
        for spec in self.specs:
            column = columns.get(spec.name)
            if column is None:
                raise BindingError(
                    f"field {spec.name!r} is missing; the model needs it as {spec.dtype}" + _meant(spec.name, columns)
                )
            if column.ndim != 1 or rows not in (-1, len(column)):
                raise BindingError(
                    f"field {spec.name!r} has shape {list(column.shape)}; every field needs one value per row"
                    + ("" if rows < 0 else f", {rows} here")
                )
            rows = len(column)
        return max(rows, 0)


def _check_input(entry: InputBinding) -> None:
    width = len(entry.fields)
    legal = entry.shape == (None, width) or (width == 1 and entry.shape == (None,))
    if not width or not legal:
        raise BindingError(
            f"input {entry.name!r} of shape {list(entry.shape)} can't be fed from {width} fields",
            hint="An input is [N] or [N, 1] from one field, or [N, F] from F fields.",
        )


def _stricter(field: str, one: DType, other: DType) -> DType:
    if one == other:
        return one
    if one not in _STRICTEST or other not in _STRICTEST:
        raise BindingError(f"field {field!r} feeds both an input of {one} and one of {other}")
    if DType.INT32 not in (one, other) and DType.INT64 not in (one, other):
        return DType.FLOAT64  # narrowed for the float32 input, so that the other keeps its digits
    return min(one, other, key=_STRICTEST.index)


def _fault(spec: FieldSpec, kinds: Mapping[str, str]) -> str | None:
    kind = kinds.get(spec.name)
    if kind is None:
        return f"field {spec.name!r} ({spec.dtype}) is missing" + _meant(spec.name, kinds)
    if kind not in _KINDS[spec.dtype]:
        return f"field {spec.name!r} is {kind}, the model needs {spec.dtype}"
    return None


def _meant(name: str, present: Mapping[str, object]) -> str:
    folded = {other.casefold(): other for other in present}
    near = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f" (did you mean {folded[near[0]]!r}?)" if near else ""


def _numpy_dtype(dtype: DType) -> np.dtype[np.generic]:
    return np.dtype(object) if dtype is DType.STRING else np.dtype(dtype.value)


def _converted(field: str, column: Array, dtype: np.dtype[np.generic]) -> Array:
    if column.dtype == dtype:
        return column
    if column.dtype.kind == "U" and dtype.kind == "O":
        return column.astype(object)
    floats, integers = dtype.kind == "f" and column.dtype.kind in "fiu", dtype.kind == "i" and column.dtype.kind in "iu"
    if not (floats or integers):
        raise BindingError(f"field {field!r} is an array of {column.dtype}, the model needs {dtype}")
    if integers and len(column) and not np.can_cast(column.dtype, dtype):
        limits = np.iinfo(dtype.name)
        if int(column.min()) < limits.min or int(column.max()) > limits.max:
            raise BindingError(f"field {field!r} holds values that are no {dtype}")
    with np.errstate(over="ignore"):
        converted = column.astype(dtype)
    if column.dtype == np.float64 and dtype == np.float32 and (np.isinf(converted) & np.isfinite(column)).any():
        raise BindingError(f"field {field!r} holds numbers too large for {dtype}")
    return converted
