"""Rows from files: types, nulls, and every way a file can be wrong."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelcast.errors import SourceError
from modelcast.tables import open_table, read_table


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_columns_have_the_types_of_the_whole_file(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n},true\n" for n in range(500)) + "500,0.5,false\n"
    frame = read_table(write(tmp_path / "t.csv", "a,b,c\n" + rows))
    assert frame.schema == {"a": pl.Int64, "b": pl.Float64, "c": pl.Boolean}


def test_an_empty_csv_field_is_null(tmp_path: Path) -> None:
    with open_table(write(tmp_path / "t.csv", "a,b,c\n1,x,1\n,,2\n")) as table:
        assert table.read().rows() == [(1, "x", 1), (None, None, 2)]
        assert table.rows == 2
        assert sorted(table.nullable) == ["a", "b"]


def test_na_is_null_among_numbers_and_text_among_texts(tmp_path: Path) -> None:
    frame = read_table(write(tmp_path / "t.csv", "delay,country\n1.5,NA\nNA,DE\n"))
    assert frame.rows() == [(1.5, "NA"), (None, "DE")]


def test_digits_are_text_where_the_caller_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "zip,n\n01234,1\nNA,2\n")
    with open_table(path, texts={"zip", "absent"}) as table:
        assert table.read().rows() == [("01234", 1), ("NA", 2)]


def test_a_csv_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"t\.csv has two columns 'a'"):
        read_table(write(tmp_path / "t.csv", "a,b,a\n1,2,3\n"))


def test_json_lines_keep_their_types_and_leave_out_nulls(tmp_path: Path) -> None:
    frame = read_table(write(tmp_path / "t.jsonl", '{"a": 1, "b": "x", "c": true}\n\n{"a": 1.5, "c": null}'))
    assert frame.schema == {"a": pl.Float64, "b": pl.String, "c": pl.Boolean}
    assert frame.rows() == [(1.0, "x", True), (1.5, None, None)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"a": "x"}', "line 2: field 'a' is a string, but a number in line 1"),
        ('{"a": true}', "line 2: field 'a' is a boolean, but a number in line 1"),
        ('{"a": 1, "a": 2}', "line 2: field 'a' stands twice"),
        ('{"a": NaN}', "line 2: NaN is not JSON"),
        ("[1]", "line 2: not a JSON object"),
        ('{"a": ', "line 2: Expecting value"),
        ('{"a": 1} {"a": 2}', "line 2: Extra data"),
        ('{"a": ' + "[" * 100_000, "recursion"),
    ],
)
def test_bad_json_lines_are_named(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(SourceError, match=reason) as caught:
        read_table(write(tmp_path / "t.jsonl", '{"a": 1}\n' + line + "\n"))
    assert "t.jsonl" in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.parquet", b"PAR1 but not really", "can't read"),
        ("t.csv", b"", "holds no rows"),
        ("t.csv", b"a,b\n", "holds no rows"),
        ("t.jsonl", b"", "holds no rows"),
        ("t.jsonl", b"\n\n", "holds no rows"),
        ("t.csv", b"a,b\n1,2,3\n", "found more fields"),
        ("t.jsonl", b'{"a": "\xff"}\n', "utf-8"),
        ("t.xlsx", b"PK", "can't tell the format of .*'.xlsx'"),
        ("t", b"a\n1\n", "can't tell the format"),
        ("t.csv.gz", b"a\n1\n", "can't unpack"),
        ("t.zip", b"PK", "can't unpack"),
    ],
)
def test_a_file_that_is_not_a_table_is_refused_by_name(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SourceError, match=reason) as caught:
        read_table(path)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        read_table(tmp_path / "nothing.csv")
    with pytest.raises(SourceError, match="is a folder"):
        read_table(tmp_path)


def test_packed_files_are_unpacked(tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a\n1\n"))
    with zipfile.ZipFile(tmp_path / "u.csv.zip", "w") as archive:
        archive.writestr("u.jsonl", '{"a": 1}\n')
    assert read_table(tmp_path / "t.csv.gz").rows() == [(1,)]
    assert read_table(tmp_path / "u.csv.zip").rows() == [(1,)]


def test_a_zip_of_two_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
        archive.writestr("a.csv", "a\n1\n")
        archive.writestr("b.csv", "a\n1\n")
    with pytest.raises(SourceError, match="holds 2 files"):
        read_table(tmp_path / "t.zip")


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 300), batch=st.integers(1, 100))
def test_batches_are_the_table_in_order(tmp_path_factory: pytest.TempPathFactory, rows: int, batch: int) -> None:
    path = tmp_path_factory.mktemp("tables") / "t.csv"
    frame = pl.DataFrame({"a": range(rows), "b": [f"x{n}" for n in range(rows)]})
    frame.write_csv(path)
    with open_table(path) as table:
        batches = list(table.batches(batch))
    assert all(0 < len(part) <= batch for part in batches)
    assert pl.concat(batches).equals(frame)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_all_formats_read_alike(tmp_path: Path, suffix: str) -> None:
    frame = pl.DataFrame({"n": [1, 2], "x": [0.5, None], "s": ["a", "b"], "b": [True, False]})
    path = tmp_path / f"t.{suffix}"
    {"csv": frame.write_csv, "jsonl": frame.write_ndjson, "parquet": frame.write_parquet}[suffix](path)  # type: ignore[operator]
    assert read_table(path).equals(frame)
