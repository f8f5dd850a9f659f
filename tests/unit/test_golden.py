"""Golden examples: the file keeps arrays exactly, and comparing says what is wrong and where."""

from __future__ import annotations

import io
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelcast import digest, golden
from modelcast.errors import GoldenError, IntegrityError
from modelcast.golden import Examples
from modelcast.records import Tolerance

names = st.text(min_size=1, max_size=12).filter(lambda name: name.isprintable() and name.isascii())
arrays = st.one_of(
    *(
        hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4))
        for dtype in (np.float32, np.float64, np.int64, np.int32, np.bool_)
    ),
    st.lists(st.text(max_size=6).map(lambda text: text.rstrip("\0")), min_size=1, max_size=4).map(
        lambda texts: np.array(texts, dtype=object)
    ),
)


def member(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version=(1, 0))
    return buffer.getvalue()


def headed(header: bytes) -> bytes:
    """An array of no bytes with this header."""
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def archive(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


@settings(max_examples=60, deadline=None)
@given(inputs=st.dictionaries(names, arrays, max_size=3), outputs=st.dictionaries(names, arrays, max_size=3))
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, inputs: dict[str, np.ndarray], outputs: dict[str, np.ndarray]
) -> None:
    path = tmp_path_factory.mktemp("golden") / "examples.npz"
    golden.write(path, Examples(inputs, outputs))
    read = golden.read(path)
    for want, got in ((inputs, read.inputs), (outputs, read.outputs)):
        assert set(want) == set(got)
        for name, array in want.items():
            assert array.dtype == got[name].dtype
            np.testing.assert_array_equal(array, got[name])


def test_bytes_depend_on_the_arrays_only(tmp_path: Path) -> None:
    a, b = np.arange(3.0), np.array(["x", "y", "z"], dtype=object)
    golden.write(tmp_path / "one.npz", Examples({"a": a, "b": b}, {}))
    golden.write(tmp_path / "two.npz", Examples({"b": b.copy(), "a": a[::-1][::-1]}, {}))
    assert digest.of_file(tmp_path / "one.npz") == digest.of_file(tmp_path / "two.npz")


def test_numpy_reads_it_without_pickle(tmp_path: Path) -> None:
    golden.write(tmp_path / "e.npz", Examples({"a": np.array(["é"], dtype=object)}, {"y": np.float32([2])}))
    with np.load(tmp_path / "e.npz", allow_pickle=False) as loaded:
        assert loaded["inputs/a"].tolist() == ["é"]
        assert loaded["outputs/y"].tolist() == [2.0]


@pytest.mark.parametrize("size", [0, 1, 40, 200])
def test_a_cut_file_is_an_integrity_error(tmp_path: Path, size: int) -> None:
    golden.write(tmp_path / "e.npz", Examples({"a": np.arange(9.0)}, {}))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "e.npz").read_bytes()[:size])
    with pytest.raises(IntegrityError):
        golden.read(tmp_path / "cut.npz")


def test_a_missing_file_is_an_integrity_error(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError, match="nowhere"):
        golden.read(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"other/a.npy": member(np.arange(2))}, "no array"),
        ({"inputs/a": member(np.arange(2))}, "no array"),
        ({"inputs/a.npy": member(np.arange(2))[:-1]}, "declares 16 bytes and has 15"),
        ({"inputs/a.npy": member(np.arange(2)) + b"!"}, "declares 16 bytes and has 17"),
        ({"inputs/a.npy": member(np.array(["1", 2], dtype=object))}, "object"),
        ({"inputs/a.npy": member(np.array([1j]))}, "complex128"),
        ({"inputs/a.npy": member(np.array(["x"])).replace(b"x\0\0\0", b"\0\0\x11\0")}, "no text"),
        ({"inputs/a.npy": member(np.array(["x"], ">U1")).replace(b"\0\0\0x", b"\0\0\xd8\0")}, "no text"),
        ({"inputs/a.npy": b"not an array"}, "magic"),
        ({"inputs/a.npy": headed(b"{'descr': (")}, "multi-line"),
        ({"inputs/a.npy": headed(b"-" * 9_000 + b"1")}, "large"),
        ({"inputs/a.npy": headed(b"{'descr': '<U4', 'fortran_order': False, 'shape': ({[]: 1},), }")}, "unhashable"),
        ({"inputs/a.npy": member(np.arange(2)).replace(b"(2,), }        ", b"(99999999999,), }")}, "declares 7999"),
    ],
)
def test_what_is_no_example_is_an_integrity_error(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    with pytest.raises(IntegrityError, match=said):
        golden.read(archive(tmp_path / "e.npz", members))


def test_a_compressed_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "e.npz", {"inputs/a.npy": member(np.zeros(1 << 20))}, zipfile.ZIP_DEFLATED)
    with pytest.raises(IntegrityError, match="compressed"):
        golden.read(path)


def test_a_pickle_in_the_archive_is_never_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    path = archive(tmp_path / "e.npz", {"inputs/a.npy": member(np.array([Bomb()], dtype=object))})
    with pytest.raises(IntegrityError):
        golden.read(path)
    assert not (tmp_path / "ran").exists()


def test_floats_within_tolerance_agree() -> None:
    want = np.float32([0.0, 1.0, 1000.0])
    golden.check({"y": want}, {"y": want + np.float32([9e-6, 9e-5, 0.09])}, Tolerance(1e-4, 1e-5))


@pytest.mark.parametrize("offset", [[2e-5, 0, 0], [0, 2e-4, 0], [0, 0, 0.2]])
def test_floats_beyond_tolerance_are_named(offset: list[float]) -> None:
    want = np.float32([0.0, 1.0, 1000.0])
    row = int(np.argmax(offset))
    with pytest.raises(GoldenError, match=f"output 'y', row {row}: want {want[row].item()}, got"):
        golden.check({"y": want}, {"y": (want + np.float32(offset)).astype(np.float32)}, Tolerance(1e-4, 1e-5))


def test_the_worst_row_is_named_with_the_number_of_rows() -> None:
    want = np.zeros((4, 2))
    got = want.copy()
    got[1, 0], got[3, 1] = 0.5, -2.0
    with pytest.raises(GoldenError, match=r"row 3: want 0.0, got -2.0 \(2 rows disagree\)"):
        golden.check({"y": want}, {"y": got}, Tolerance())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_never_agrees(value: float) -> None:
    array = np.array([1.0, value])
    with pytest.raises(GoldenError, match="row 1"):
        golden.check({"y": array}, {"y": array.copy()}, Tolerance())


def test_integers_and_strings_must_be_equal() -> None:
    golden.check({"y": np.array(["a"], object)}, {"y": np.array(["a"], object)}, Tolerance())
    with pytest.raises(GoldenError, match="want a, got b"):
        golden.check({"y": np.array(["a"], object)}, {"y": np.array(["b"], object)}, Tolerance())
    with pytest.raises(GoldenError, match="want 100000, got 100001"):
        golden.check({"y": np.array([100000])}, {"y": np.array([100001])}, Tolerance())


def test_missing_output_and_other_shape_are_named() -> None:
    with pytest.raises(GoldenError, match="output 'y' of the golden examples was not given"):
        golden.check({"y": np.zeros(1)}, {"z": np.zeros(1)}, Tolerance())
    with pytest.raises(GoldenError, match=r"shape \[1, 1\].*\[1\]"):
        golden.check({"y": np.zeros(1)}, {"y": np.zeros((1, 1))}, Tolerance())


def test_first_row_that_is_not_finite() -> None:
    assert golden.first_not_finite(np.array([[1.0, 2.0], [np.nan, 1.0]])) == 1
    assert golden.first_not_finite(np.array([1.0])) is None
    assert golden.first_not_finite(np.array(["x"], dtype=object)) is None


def test_f23_a_model_that_says_the_same_of_many_different_examples_is_refused() -> None:
    inputs = {"x": np.arange(8, dtype=np.float32)}
    with pytest.raises(GoldenError, match="the same for all 8"):
        golden.check_varied(inputs, {"y": np.full(8, 0.5), "label": np.zeros(8, np.int64)})
    golden.check_varied(inputs, {"y": np.arange(8.0), "label": np.zeros(8, np.int64)})
    golden.check_varied({"x": np.zeros(8, np.float32)}, {"y": np.zeros(8)})
    golden.check_varied({"x": np.arange(7.0)}, {"y": np.zeros(7)})
