"""Rows from files: CSV, JSON lines and Parquet, whole or in batches of bounded memory.

- The suffix says the format: `.csv`, `.jsonl` / `.ndjson` / `.json`, `.parquet` / `.pq`; any of them behind `.gz`, or
  alone in a `.zip`.
- Types come from the *whole* file, so that a batch never has other types than the one before it.
- CSV: an empty field is null. In a column that is otherwise of numbers or booleans `NA` is null too, as R and pandas
  write it; in a column of text it stays text (it may be Namibia).
- JSON lines are strict: one object a line, no field twice, no NaN, one type per field (integers beside floats become
  floats). A field that a line leaves out is null. Blank lines are skipped.
- A file without rows is an error: nothing that takes a table can do anything with none.

Example:
    with open_table(Path("flights.csv.zip")) as table:
        for frame in table.batches(rows=20_000):
            ...
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import polars as pl

from modelcast.errors import SourceError

CSV_SUFFIXES = (".csv",)
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIXES = (".parquet", ".pq")

# What R and pandas write for a missing number.
_MISSING_NUMBER = "NA"
# Polars renames the second column of a name; a table that has two is not what its writer meant.
_RENAMED_DUPLICATE = re.compile(r"(.*)_duplicated_\d+")
_FORMATS_HINT = "Give a .csv, .jsonl or .parquet file (.gz or .zip of one will do)."


@dataclass(frozen=True)
class Table:
    """A file of rows, looked through once and not loaded.

    Attributes:
        path: The file as the caller named it.
        schema: Column name -> type, in the file's order.
        nullable: The columns in which a null occurs.
        rows: How many there are; at least one.
    """

    path: Path
    schema: pl.Schema
    nullable: frozenset[str]
    rows: int
    _scan: pl.LazyFrame

    def batches(self, rows: int) -> Iterator[pl.DataFrame]:
        """Yields the rows in order, at most `rows` at a time; raises SourceError if the file can't be read on."""
        with _reading(self.path):
            for chunk in self._scan.collect_batches(chunk_size=rows, maintain_order=True):
                yield from chunk.iter_slices(rows)

    def read(self) -> pl.DataFrame:
        """All rows at once; raises SourceError as `batches`."""
        with _reading(self.path):
            return self._scan.collect()


def read_table(path: Path) -> pl.DataFrame:
    """Reads a whole file.

    Raises:
        SourceError: No such file, an unknown suffix, not what its suffix says, or no rows.
    """
    with open_table(path) as table:
        return table.read()


@contextmanager
def open_table(path: Path, *, texts: Collection[str] = ()) -> Iterator[Table]:
    """Gives a file as a `Table`; a compressed one is unpacked into a temporary file for as long.

    Args:
        path: The file.
        texts: Columns that are text even if a CSV holds nothing but digits in them.

    Raises:
        SourceError: As `read_table`.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "no such file"
        raise SourceError(f"can't read {path}: {what}", hint="Check the path.")
    with tempfile.TemporaryDirectory(prefix="modelcast-table-") as folder:
        plain = _unpacked(path, Path(folder))
        with _reading(path):
            scan = _scan(plain, path, texts)
            schema = scan.collect_schema()
            rows, nullable = _count(scan, schema)
        if rows == 0:
            raise _no_rows(path)
        yield Table(path, schema, nullable, rows, scan)


def _no_rows(path: Path) -> SourceError:
    return SourceError(f"{path} holds no rows", hint="Give a file with at least one row.")


def _count(scan: pl.LazyFrame, schema: pl.Schema) -> tuple[int, frozenset[str]]:
    """How many rows there are, and in which columns a null occurs."""
    if not len(schema):
        return 0, frozenset()
    counts = scan.select(pl.len().alias("rows"), pl.struct(pl.all().null_count()).alias("nulls"))
    found = counts.collect(engine="streaming").row(0, named=True)
    return int(found["rows"]), frozenset(name for name, count in found["nulls"].items() if count)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what Polars raises (a panic is a BaseException) into a SourceError that names `path`."""
    try:
        yield
    except pl.exceptions.NoDataError as error:
        raise _no_rows(path) from error
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, RecursionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SourceError(
            f"can't read {path}: {reason}", hint="Check that the file is what its suffix says."
        ) from error


def _scan(plain: Path, path: Path, texts: Collection[str]) -> pl.LazyFrame:
    suffix = plain.suffix.lower()
    if suffix in CSV_SUFFIXES:
        return _scan_csv(plain, path, texts)
    if suffix in JSON_LINES_SUFFIXES:
        _check_json_lines(plain, path)
        return pl.scan_ndjson(plain, infer_schema_length=None)
    if suffix in PARQUET_SUFFIXES:
        return pl.scan_parquet(plain)
    raise SourceError(f"can't tell the format of {path} from its suffix {plain.suffix!r}", hint=_FORMATS_HINT)


def _scan_csv(plain: Path, path: Path, texts: Collection[str]) -> pl.LazyFrame:
    plainly = pl.scan_csv(plain, infer_schema_length=None).collect_schema()
    for name in plainly:
        renamed = _RENAMED_DUPLICATE.fullmatch(name)
        if renamed is not None and renamed[1] in plainly:
            raise SourceError(f"{path} has two columns {renamed[1]!r}", hint="Rename one of them in its header.")
    with_missing = pl.scan_csv(plain, infer_schema_length=None, null_values=[_MISSING_NUMBER]).collect_schema()
    numbers = [
        name
        for name, dtype in plainly.items()
        if dtype == pl.String and with_missing[name] != pl.String and name not in texts
    ]
    return pl.scan_csv(
        plain,
        infer_schema_length=None,
        null_values=dict.fromkeys(numbers, _MISSING_NUMBER) if numbers else None,
        schema_overrides={name: pl.String for name in plainly if name in texts},
    )


def _check_json_lines(plain: Path, path: Path) -> None:
    """Polars alone would take the first of two equal fields and turn numbers beside texts into texts."""
    kinds: dict[str, tuple[str, int]] = {}
    fields = 0
    decode = json.JSONDecoder(object_pairs_hook=_object_without_doubles, parse_constant=_refuse_constant).decode
    with plain.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                row = decode(line)
            except ValueError as error:
                raise SourceError(f"{path}, line {number}: {error}", hint="Write one JSON object a line.") from error
            if not isinstance(row, dict):
                raise SourceError(f"{path}, line {number}: not a JSON object", hint="Write one JSON object a line.")
            fields += len(row)
            for name, value in row.items():
                kind = _KINDS.get(type(value))
                if kind is None:  # null
                    continue
                known, first = kinds.setdefault(name, (kind, number))
                if known != kind:
                    raise SourceError(
                        f"{path}, line {number}: field {name!r} is a {kind}, but a {known} in line {first}",
                        hint="Give each field one type.",
                    )
    if fields == 0:
        raise _no_rows(path)


_KINDS = {bool: "boolean", int: "number", float: "number", str: "string", list: "list", dict: "object"}


def _object_without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"field {twice!r} stands twice")
    return row


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _unpacked(path: Path, folder: Path) -> Path:
    """`path` itself, or what is packed in it as a file of its own in `folder`."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".gz":
            with gzip.open(path) as packed:
                return _copied(packed, folder / path.stem)
        if suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = [member for member in archive.infolist() if not member.is_dir()]
                if len(members) != 1:
                    raise SourceError(f"{path} holds {len(members)} files", hint="Pack exactly one table in a .zip.")
                with archive.open(members[0]) as packed:
                    return _copied(packed, folder / Path(members[0].filename).name)
    # An encrypted member is a RuntimeError, an unknown compression a NotImplementedError.
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile, RuntimeError) as error:
        raise SourceError(f"can't unpack {path}: {error}", hint=_FORMATS_HINT) from error
    return path


def _copied(packed: IO[bytes] | gzip.GzipFile, target: Path) -> Path:
    with target.open("wb") as file:
        shutil.copyfileobj(packed, file)
    return target
