"""Golden examples: inputs and outputs of a version as its publisher's runtime gave them, and how they are compared.

- `examples.npz` is a ZIP of `.npy` members, stored, not compressed: `inputs/<ONNX name>.npy` and
  `outputs/<ONNX name>.npy`. numpy reads it too: `numpy.load(path, allow_pickle=False)`.
- The bytes depend on the arrays only: members are sorted and bear no time, so the same examples have the same digest.
- Strings are `<U…` on disk and object arrays of `str` in memory. A NUL at the end of a string is not kept (numpy pads
  with them).
- Reading allocates nothing larger than the file: no compression, no pickles, each array's declared size is compared
  with its member's first.
- Floats agree if `|got - want| <= absolute + relative * |want|`; everything else agrees if it is equal. What is not
  finite never agrees, not even with itself.

    >>> check({"y": np.float32([1.0])}, {"y": np.float32([1.00001])}, Tolerance())
"""

from __future__ import annotations

import io
import math
import struct
import sys
import tokenize
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from modelcast.errors import GoldenError, IntegrityError
from modelcast.records import Tolerance

Array = npt.NDArray[Any]

# Examples are a sample, kept far below a chunk by default; a consumer reads them whole, so a file beyond this is an
# attack or a mistake.
MAX_FILE_BYTES: Final = 1 << 30
# A graph has a handful of inputs and outputs; a pipeline of columns some thousands.
MAX_ARRAYS: Final = 100_000
# Element type and shape take some hundred bytes; what is nested thousands deep ends Python's parser, not the reading.
MAX_HEADER_BYTES: Final = 1_000

# Fewer examples can give the same output by chance; so many different ones that all do show a model that says nothing.
MIN_VARIED_EXAMPLES: Final = 8

_FIRST_DOS_TIME = (1980, 1, 1, 0, 0, 0)
_KINDS_ALLOWED = frozenset("fiubU")
# What zipfile and numpy raise at bytes of another's choice.
_NOT_EXAMPLES = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    NotImplementedError,
)


@dataclass(frozen=True, slots=True)
class Examples:
    """Arrays by ONNX name, batch first, all of the same number of rows.

    Attributes:
        inputs: What the graph was given.
        outputs: What it gave.
    """

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, slots=True)
class Difference:
    """The worst disagreement between two arrays.

    Attributes:
        rows: How many rows disagree.
        row: The worst of them.
        want: The expected value there.
        got: The value that came.
    """

    rows: int
    row: int
    want: object
    got: object

    def __str__(self) -> str:
        others = f" ({self.rows} rows disagree)" if self.rows > 1 else ""
        return f"row {self.row}: want {self.want}, got {self.got}{others}"


def write(path: Path, examples: Examples) -> None:
    """Writes `examples` to `path`, the same bytes for the same arrays; raises OSError as `open` does."""
    members = {
        f"{group}/{name}.npy": array
        for group, arrays in (("inputs", examples.inputs), ("outputs", examples.outputs))
        for name, array in arrays.items()
    }
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(members):
            entry = zipfile.ZipInfo(name, date_time=_FIRST_DOS_TIME)
            entry.create_system = 3  # Unix, wherever it was written
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, _to_disk(members[name]), version=(1, 0), allow_pickle=False)


def read(path: Path) -> Examples:
    """Reads what `write` wrote.

    Raises:
        IntegrityError: The file is not such an archive, or an array in it is not of the size it declares.
    """
    groups: dict[str, dict[str, Array]] = {"inputs": {}, "outputs": {}}
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise IntegrityError(f"{path.name} is larger than examples may be ({MAX_FILE_BYTES} bytes)")
        with zipfile.ZipFile(path) as archive:
            for entry in _members(archive):
                group, _, name = entry.filename.removesuffix(".npy").partition("/")
                if group not in groups or name in groups[group] or not entry.filename.endswith(".npy"):
                    raise IntegrityError(f"{path.name} holds {entry.filename!r}, which is no array of an example")
                groups[group][name] = _read_array(archive, entry)
    except _NOT_EXAMPLES as error:
        raise IntegrityError(f"{path.name} does not hold golden examples: {error}") from error
    return Examples(groups["inputs"], groups["outputs"])


def check(want: Mapping[str, Array], got: Mapping[str, Array], tolerance: Tolerance) -> None:
    """Compares outputs with golden outputs.

    Args:
        want: Golden outputs by ONNX name, batch first.
        got: What a runtime gave for the golden inputs; names that are not in `want` are ignored.
        tolerance: How far floats may be apart.

    Raises:
        GoldenError: An output is missing, of another shape, not finite, or too far from its golden values; the
            message names output, row and both values.
    """
    for name, expected in want.items():
        if name not in got:
            raise GoldenError(f"output {name!r} of the golden examples was not given")
        actual = np.asarray(got[name])
        if actual.shape != expected.shape:
            raise GoldenError(
                f"output {name!r} has shape {list(actual.shape)}, the golden examples have {list(expected.shape)}"
            )
        found = difference(expected, actual, tolerance)
        if found is not None:
            raise GoldenError(
                f"golden examples are not reproduced: output {name!r}, {found}",
                hint="The runtime or device here computes something else than the publisher's did.",
            )


def difference(want: Array, got: Array, tolerance: Tolerance) -> Difference | None:
    """The worst disagreement between two arrays of one shape `[N, …]`, or None if they agree."""
    wrong, severity = _compare(want, got, tolerance)
    if not wrong.any():
        return None
    worst = int(np.argmax(np.where(wrong, severity, -1.0)))
    width = max(1, math.prod(want.shape[1:]))
    return Difference(
        rows=int(np.count_nonzero(wrong.reshape(len(want), -1).any(axis=1))),
        row=worst // width,
        want=want.reshape(-1)[worst].item() if want.dtype.kind != "O" else want.reshape(-1)[worst],
        got=got.reshape(-1)[worst].item() if got.dtype.kind != "O" else got.reshape(-1)[worst],
    )


def first_not_finite(array: Array) -> int | None:
    """The first row of `[N, …]` that holds a NaN or an infinity, or None."""
    if array.dtype.kind != "f" or array.size == 0:
        return None
    bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    return int(np.argmax(bad)) if bad.any() else None


def check_varied(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Refuses a model that gives the same outputs for every one of many different examples.

    Raises:
        GoldenError: It does.
    """
    rows = len(next(iter(outputs.values())))
    if rows < MIN_VARIED_EXAMPLES or all(_is_constant(array) for array in inputs.values()):
        return
    if all(_is_constant(array) for array in outputs.values()):
        raise GoldenError(
            f"every output is the same for all {rows} golden examples",
            hint="The model says nothing about its inputs; train it again, or publish it with examples that differ.",
        )


def _is_constant(array: Array) -> bool:
    return bool((array == array[:1]).all())


def _compare(want: Array, got: Array, tolerance: Tolerance) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Flat: what disagrees, and by how much in units of what is allowed."""
    if want.dtype.kind in "fiub" and got.dtype.kind in "fiub" and "f" in (want.dtype.kind, got.dtype.kind):
        expected = want.reshape(-1).astype(np.float64)
        actual = got.reshape(-1).astype(np.float64)
        finite = np.isfinite(expected) & np.isfinite(actual)
        with np.errstate(invalid="ignore"):
            excess = np.abs(actual - expected) / (tolerance.absolute + tolerance.relative * np.abs(expected) + 1e-300)
        severity = np.where(finite, excess, np.inf)
        return severity > 1.0, severity
    wrong = np.asarray(want.reshape(-1) != got.reshape(-1), dtype=np.bool_)
    return wrong, wrong.astype(np.float64)


def _to_disk(array: Array) -> Array:
    if array.dtype.kind != "O":
        return np.ascontiguousarray(array)
    return np.asarray([str(value) for value in array.reshape(-1)], dtype=np.str_).reshape(array.shape)


def _members(archive: zipfile.ZipFile) -> Iterator[zipfile.ZipInfo]:
    entries = archive.infolist()
    if len(entries) > MAX_ARRAYS:
        raise IntegrityError(f"examples hold {len(entries)} arrays; at most {MAX_ARRAYS} are read")
    yield from entries


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise IntegrityError(f"{entry.filename!r} is compressed; examples are stored as they are")
    data = archive.read(entry)
    header = io.BytesIO(data)
    if np.lib.format.read_magic(header) != (1, 0):
        raise IntegrityError(f"{entry.filename!r} is of an unknown .npy version")
    try:
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(header, max_header_size=MAX_HEADER_BYTES)
    except Exception as error:  # numpy has Python evaluate a literal: what a hostile one raises is anybody's guess
        raise IntegrityError(f"the header of {entry.filename!r} is no .npy header: {error}") from error
    if dtype.kind not in _KINDS_ALLOWED or fortran_order:
        raise IntegrityError(f"{entry.filename!r} holds {dtype}, which no example does")
    size = math.prod(shape) * dtype.itemsize
    if len(data) - header.tell() != size:
        raise IntegrityError(f"{entry.filename!r} declares {size} bytes and has {len(data) - header.tell()}")
    array = np.frombuffer(data, dtype, offset=header.tell()).reshape(shape)
    if dtype.kind != "U":
        return array
    points = np.frombuffer(data, np.dtype(np.uint32).newbyteorder(dtype.byteorder), offset=header.tell())
    # What Python makes a SystemError of, and halves of characters, which no runtime takes.
    if ((points > sys.maxunicode) | ((points >= 0xD800) & (points <= 0xDFFF))).any():
        raise IntegrityError(f"{entry.filename!r} holds what is no text")
    return array.astype(object)
