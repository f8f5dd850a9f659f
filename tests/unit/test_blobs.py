"""A file is assembled from its chunks or refused by name; declared sizes allocate nothing."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelcast import digest
from modelcast.blobs import FileAssembly, check_path, cut
from modelcast.errors import IntegrityError, StructureError
from modelcast.records import FileEntry

PATH = "tensors/head.bin"


def entry_of(data: bytes) -> FileEntry:
    return FileEntry(PATH, len(data), digest.of_bytes(data))


def chunks_of(data: bytes, chunk_bytes: int) -> list[tuple[int, bytes]]:
    return [(i // chunk_bytes, data[i : i + chunk_bytes]) for i in range(0, len(data), chunk_bytes)]


def assemble(entry: FileEntry, chunk_bytes: int, arrivals: list[tuple[int, bytes]]) -> bytes:
    """What a writer does: puts each chunk where the assembly says, then hands back what was not hashed on the way."""
    assembly = FileAssembly(entry, chunk_bytes)
    file = bytearray(entry.size)
    for index, chunk in arrivals:
        position = assembly.accept(index, chunk)
        file[position : position + len(chunk)] = chunk
        assembly.hash(index, chunk)
    assembly.finish([bytes(file[assembly.hashed_bytes :])])
    return bytes(file)


files = st.tuples(st.binary(min_size=1, max_size=200), st.integers(1, 40))


@given(files, st.randoms(use_true_random=False))
def test_chunks_in_any_order_and_doubled_make_the_file(file: tuple[bytes, int], random) -> None:
    data, size = file
    arrivals = chunks_of(data, size)
    arrivals += random.sample(arrivals, random.randint(0, len(arrivals)))
    random.shuffle(arrivals)
    assert assemble(entry_of(data), size, arrivals) == data


@given(files, st.data())
def test_f06_a_flipped_byte_is_refused_with_the_file_named(file: tuple[bytes, int], data: st.DataObject) -> None:
    content, size = file
    at = data.draw(st.integers(0, len(content) - 1))
    damaged = bytearray(content)
    damaged[at] ^= data.draw(st.integers(1, 255))
    arrivals = data.draw(st.permutations(chunks_of(bytes(damaged), size)))
    with pytest.raises(IntegrityError, match=PATH):
        assemble(entry_of(content), size, arrivals)


@given(files, st.data())
def test_f06_a_chunk_cut_or_lengthened_is_refused_by_its_index(file: tuple[bytes, int], data: st.DataObject) -> None:
    content, size = file
    index, chunk = data.draw(st.sampled_from(chunks_of(content, size)))
    wrong = data.draw(st.sampled_from([chunk[:-1], chunk + b"x"]))
    with pytest.raises(IntegrityError, match=rf"chunk {index} of file '{PATH}'"):
        FileAssembly(entry_of(content), size).accept(index, wrong)


@given(files, st.data())
def test_f06_a_missing_chunk_is_named(file: tuple[bytes, int], data: st.DataObject) -> None:
    content, size = file
    arrivals = chunks_of(content, size)
    index = data.draw(st.integers(0, len(arrivals) - 1))
    del arrivals[index]
    with pytest.raises(IntegrityError, match=rf"'{PATH}' are missing, the first is chunk {index}$"):
        assemble(entry_of(content), size, arrivals)


@given(files, st.data())
def test_f06_two_chunks_exchanged_are_refused_unless_they_are_equal(
    file: tuple[bytes, int], data: st.DataObject
) -> None:
    content, size = file
    whole = [chunk for _, chunk in chunks_of(content, size) if len(chunk) == size]
    order = data.draw(st.permutations(whole))
    tail = content[len(whole) * size :]
    arrivals = list(enumerate([*order, tail] if tail else order))
    if order == whole:
        assert assemble(entry_of(content), size, arrivals) == content
    else:
        with pytest.raises(IntegrityError, match=PATH):
            assemble(entry_of(content), size, arrivals)


def test_a_file_of_which_no_chunk_was_hashed_on_its_way_is_hashed_when_it_is_whole() -> None:
    assembly = FileAssembly(entry_of(b"abcd"), 2)
    for index, chunk in chunks_of(b"abcd", 2):
        assembly.accept(index, chunk)
    assert assembly.hashed_bytes == 0
    with pytest.raises(IntegrityError, match="digest"):
        assembly.finish([b"abce"])
    assembly.finish([b"abcd"])


def test_the_last_chunk_of_an_index_counts() -> None:
    arrivals = [(0, b"xx"), (1, b"cd"), (0, b"ab")]
    assert assemble(entry_of(b"abcd"), 2, arrivals) == b"abcd"


def test_an_index_the_file_does_not_have_is_refused_and_changes_nothing() -> None:
    assembly = FileAssembly(entry_of(b"abcd"), 2)
    for index in (-1, 2, 1 << 60):
        with pytest.raises(IntegrityError, match=f"chunk {index} arrived"):
            assembly.accept(index, b"ab")
    assert assembly.missing == 2


def test_an_empty_file_is_whole_at_once() -> None:
    FileAssembly(entry_of(b""), 2).finish()


def test_f08_declared_sizes_allocate_nothing() -> None:
    digest_of_nothing = digest.of_bytes(b"")
    tracemalloc.start()
    try:
        FileAssembly(FileEntry(PATH, 1 << 40, digest_of_nothing), 1 << 17)
        for size, chunk_bytes in ((1 << 40, 1), (-1, 1), (10, 0)):
            with pytest.raises(IntegrityError, match=PATH):
                FileAssembly(FileEntry(PATH, size, digest_of_nothing), chunk_bytes)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_cutting_and_assembling_are_inverse(tmp_path: Path) -> None:
    data = bytes(range(256)) * 5
    file = tmp_path / "file"
    file.write_bytes(data)
    assert assemble(entry_of(data), 100, list(enumerate(cut(file, 100)))) == data


@pytest.mark.parametrize("path", ["model.onnx", "tensors/0.bin", "tensors/layer.0/weight", ".env", "a b"])
def test_plain_relative_paths_are_taken(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    "path",
    ["", ".", "..", "/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/", "a\\b", "C:x", "a\0b", "a\nb", "x" * 256,
     "*/_ORT_MEM_ADDR_/*", "a/" * 600 + "b", "\ud800"],
)  # fmt: skip
def test_f17_paths_that_could_leave_the_folder_are_refused(path: str) -> None:
    with pytest.raises(StructureError, match="not a path"):
        check_path(path)
