"""Fields that hold the whole row of a tensor: what one must hold, and rows of Python and numpy values as one array.

A row is given as raw bytes (the row's values one behind the other, little-endian, last dimension fastest), as base64
text of them, as an array of the row's shape (but for sizes of 1), or as a flat list of all its values.
`consumer.decode.rules` says the same of events.

    >>> FieldSpec("image", DType.UINT8, (2, 2)).row_bytes
    4
    >>> stack([b"abcd", [[0, 1], [2, 3]]], FieldSpec("image", DType.UINT8, (2, 2))).shape
    (2, 2, 2)
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import numpy.typing as npt

from modelcast.errors import BindingError
from modelcast.records import DType, InputBinding

Array = npt.NDArray[Any]

# One row as bytes. Brokers take records of 1 MB unless told otherwise, and few are told to take more than this; a
# signature that asks for more asks for memory, not for events.
MAX_ROW_BYTES: Final = 64 << 20

# The layout of raw bytes, by element type. Texts have none, and a boolean has no byte that everybody agrees on.
LAYOUTS: Final[Mapping[DType, np.dtype[Any]]] = {
    DType.UINT8: np.dtype("u1"),
    DType.INT32: np.dtype("<i4"),
    DType.INT64: np.dtype("<i8"),
    DType.FLOAT32: np.dtype("<f4"),
    DType.FLOAT64: np.dtype("<f8"),
}

_DTYPES: Final[Mapping[DType, np.dtype[Any]]] = {
    dtype: np.dtype(object) if dtype is DType.STRING else np.dtype(dtype.value) for dtype in DType
}
_FLAGS: Final[Mapping[str, bool]] = {"true": True, "false": False}


def tensor_of(binding: InputBinding) -> FieldSpec | None:
    """What an input's one field must hold where that is a whole row; None for columns and matrices of columns.

    Raises:
        ValueError: As `FieldSpec`.
    """
    sizes = binding.shape[1:]
    if len(binding.fields) != 1 or binding.shape[:1] != (None,) or sizes in ((), (1,)):
        return None
    return FieldSpec(binding.fields[0], binding.dtype, sizes)


def numpy_dtype(dtype: DType) -> np.dtype[Any]:
    """As columns hold it: strings as objects."""
    return _DTYPES[dtype]


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One event field a model needs, and what it wants it as.

    Attributes:
        dtype: The element type.
        shape: The sizes `d1, …, dk` of a row where the field holds a whole row of an input `[N, d1, …, dk]`; None for
            a field of one value.
        null: What the field counts as where it is null or not there, as text ("nan", "0", "true"); None where that
            makes an event poison.

    Raises:
        ValueError: A tensor whose sizes are not all known and positive, of a type that has no bytes, or larger than
            an event can be; what counts as null is no value of the type, or stands for a whole row.
    """

    name: str
    dtype: DType
    shape: tuple[int | None, ...] | None = None
    null: str | None = None

    def __post_init__(self) -> None:
        if self.null is not None:
            if self.shape is not None:
                raise ValueError("nothing counts as a whole row")
            null_value(self.null, self.dtype)
        if self.shape is None:
            return
        if not self.shape or any(size is None or size < 1 for size in self.shape):
            raise ValueError("every size but the batch's must be known")
        if self.dtype not in LAYOUTS:
            raise ValueError(f"a whole row of {self.dtype} has no form as bytes")
        if self.row_bytes > MAX_ROW_BYTES:
            raise ValueError(f"a row takes {self.row_bytes} bytes, and an event holds {MAX_ROW_BYTES} at most")

    @property
    def dims(self) -> tuple[int, ...]:
        """The sizes of a row; none for one value."""
        return cast("tuple[int, ...]", self.shape or ())

    @property
    def row_values(self) -> int:
        """Values a row has."""
        return math.prod(self.dims)

    @property
    def row_bytes(self) -> int:
        """Bytes a row takes in a column (8 for a string: a pointer)."""
        return self.row_values * numpy_dtype(self.dtype).itemsize

    @property
    def null_value(self) -> float | bool | str:
        """What null counts as; only where `null` is set."""
        return null_value(self.null or "", self.dtype)

    @property
    def wanted(self) -> str:
        """For messages: `float32`, or `uint8[8, 8] (64 bytes, or 64 numbers)`."""
        if self.shape is None:
            return str(self.dtype)
        return f"{self.dtype}{list(self.shape)} ({self.row_bytes} bytes, or {self.row_values} numbers)"


def null_value(text: str, dtype: DType) -> float | bool | str:
    """What counts as null, from its text.

    Raises:
        ValueError: It is no value of the type.
    """
    match dtype:
        case DType.STRING:
            return text
        case DType.BOOL:
            if text not in _FLAGS:
                raise ValueError(f"{text!r} is neither true nor false")
            return _FLAGS[text]
        case DType.FLOAT32 | DType.FLOAT64:
            real = float(text)
            if math.isfinite(real) and abs(real) > float(np.finfo(dtype.value).max):
                raise ValueError(f"{text} is too large for {dtype}")
            return real
        case _:
            whole, limits = int(text), np.iinfo(dtype.value)
            if not limits.min <= whole <= limits.max:
                raise ValueError(f"{text} does not fit {dtype}")
            return whole


def stack(rows: Sequence[Any], spec: FieldSpec) -> Array:
    """Rows in any of their forms as one array.

    Args:
        rows: Each raw bytes, base64 text, a flat list of the row's values, or an array or nested list of its shape.
        spec: What they must hold; a tensor.

    Returns:
        `[N, d1, …, dk]`: of the field's type where rows are bytes, else of the numbers' own type.

    Raises:
        BindingError: A row is missing, of another size, or holds no numbers; the message names it.
    """
    if all(type(row) is bytes and len(row) == spec.row_bytes for row in rows):
        return from_bytes(b"".join(rows), spec)
    arrays = [_one(index, row, spec) for index, row in enumerate(rows)]
    return np.stack(arrays) if arrays else np.empty((0, *spec.dims), numpy_dtype(spec.dtype))


def is_row(shape: tuple[int, ...], spec: FieldSpec) -> bool:
    """Whether an array of this shape is one row: the same sizes but for those of 1, or either of the two is flat.

    Other shapes of as many values are refused: channels first and channels last have as many, and mean another image.
    """
    if math.prod(shape) != spec.row_values:
        return False
    sizes, wanted = ([size for size in dims if size != 1] for dims in (shape, spec.dims))
    return sizes == wanted or len(sizes) < 2 or len(wanted) < 2


def shaped(array: Array, spec: FieldSpec) -> Array:
    """Numbers `[N, …]`, each row as `is_row` says, as `[N, d1, …, dk]`; raises BindingError for any others."""
    if array.ndim > 1 and is_row(array.shape[1:], spec):
        return array.reshape(len(array), *spec.dims)
    raise BindingError(
        f"field {spec.name!r} is an array of shape {list(array.shape)}, the model needs {spec.wanted} in each row"
    )


def from_bytes(data: bytes, spec: FieldSpec) -> Array:
    """Whole rows of raw bytes, one behind the other, as a read-only `[N, d1, …, dk]` of the field's type."""
    array = np.frombuffer(data, LAYOUTS[spec.dtype]).reshape(-1, *spec.dims)
    return array.astype(numpy_dtype(spec.dtype), copy=False)


def from_base64(text: str | bytes) -> bytes | None:
    """What base64 text (RFC 4648, section 4: padded, no line breaks) stands for; None if it is no such text."""
    if len(text) % 4 or text[-3:] in ("===", b"==="):  # too much padding, which Python's strict mode lets pass
        return None
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:  # of binascii, or of a text that is not ASCII
        return None


def _one(index: int, row: Any, spec: FieldSpec) -> Array:
    where = f"field {spec.name!r}"
    if isinstance(row, str):
        decoded = from_base64(row)
        if decoded is None:
            raise BindingError(f"{where} is text that is no base64 in row {index}, the model needs {spec.wanted}")
        row = decoded
    if isinstance(row, (bytes, bytearray, memoryview)):
        data = bytes(row)
        if len(data) != spec.row_bytes:
            raise BindingError(f"{where} has {len(data)} bytes in row {index}, the model needs {spec.wanted}")
        return from_bytes(data, spec).reshape(spec.dims)
    if row is None:
        raise BindingError(f"{where} is null in row {index}, the model needs {spec.wanted}")
    try:
        array = np.asarray(row)
    except ValueError:  # rows within of different lengths
        array = np.empty(0, object)
    if array.dtype.kind not in "fiu":
        raise BindingError(f"{where} is {row!r:.60} in row {index}, the model needs {spec.wanted}")
    if not is_row(array.shape, spec):
        raise BindingError(
            f"{where} has values of shape {list(array.shape)} in row {index}, the model needs {spec.wanted}"
        )
    return array.reshape(spec.dims)
