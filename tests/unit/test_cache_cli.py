"""`modelcast cache`: what lies there, who uses it, and taking it off."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelcast import digest
from modelcast.cli import main
from modelcast.files.cache import Cache, blobs_folder, default_root, notes_folder
from modelcast.files.inventory import take_inventory
from modelcast.records import FileEntry, Manifest

from .registry_records import manifest

BACKBONE = b"backbone" * 1000


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["modelcast", "cache", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = argv
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


def as_json(*arguments: str) -> dict[str, Any]:
    status, out, err = call(*arguments, "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cache]:
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("MODELCAST_CACHE_BYTES", "1MB")
    with closing(Cache()) as made:
        yield made


def version(cache: Cache, number: int, head: bytes) -> Manifest:
    """A version in the cache: a head of its own on the backbone they share."""
    entries = []
    for path, data in (("model.onnx", head), ("tensors/0.bin", BACKBONE)):
        entry = FileEntry(path, len(data), digest.of_bytes(data))
        with cache.hold([entry]) as hold:
            (hold / "0").write_bytes(data)
            cache.keep(entry, hold / "0")
        entries.append(entry)
    return replace(manifest(number), files=tuple(entries))


def view(cache: Cache, of: Manifest) -> Path:
    folder, bad = cache.view(of.files, of=of)
    assert bad == {}
    return folder


def test_it_says_what_is_there_who_uses_it_and_what_it_may_take(cache: Cache) -> None:
    first, second = version(cache, 1, b"1"), version(cache, 2, b"22")
    cache.release(view(cache, first))
    began_ms = int(time.time() * 1000)
    view(cache, second)
    found = as_json()
    size = len(BACKBONE)
    assert {name: found[name] for name in ("cache", "limit_bytes", "files", "bytes", "used_bytes")} == {
        "cache": str(default_root()),
        "limit_bytes": 1_000_000,
        "files": 3,
        "bytes": size + 3,
        "used_bytes": size + 2,
    }
    by_number = {entry["version"]: entry for entry in found["versions"]}
    assert by_number[1]["processes"] == []
    assert by_number[2]["processes"] == [os.getpid()]
    assert (by_number[2]["model"], by_number[2]["repository"]) == (first.model, first.repository)
    assert (by_number[2]["bytes"], by_number[2]["cached_files"]) == (size + 2, 2)
    assert began_ms - 1 <= by_number[2]["used_ms"] <= time.time() * 1000
    table = call()[1]
    # Both may have been used within the same tick of the file system's clock.
    assert sorted(line.split()[:4] for line in table.splitlines()[1:3]) == [
        ["fraud@1", f"{size + 1:,}", "all", "-"],
        ["fraud@2", f"{size + 2:,}", "all", str(os.getpid())],
    ]
    assert "limit 1,000,000 (MODELCAST_CACHE_BYTES)" in table


def test_a_version_of_which_a_part_is_left_is_not_whole(cache: Cache) -> None:
    first = version(cache, 1, b"1")
    cache.release(view(cache, first))
    cache.drop(first.files[0])
    (found,) = take_inventory(cache.root).versions
    assert (found.is_whole, found.cached_files, found.files, found.cached_bytes) == (False, 1, 2, len(BACKBONE))
    assert "1 of 2" in call()[1]


def test_a_cache_that_is_not_there_or_holds_other_things_is_told_as_it_is(cache: Cache, tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert as_json("--cache-dir", str(nowhere))["files"] == 0
    assert as_json("clear", "--cache-dir", str(nowhere)) == {
        "cache": str(nowhere),
        "files": 0,
        "bytes": 0,
        "left_bytes": 0,
        "kept_bytes": 0,
    }
    assert not nowhere.exists()
    theirs = tmp_path / "theirs"
    blobs_folder(theirs).mkdir(parents=True)  # as an image of a container has it
    (blobs_folder(theirs) / "abc").write_bytes(b"theirs")
    mode = theirs.stat().st_mode
    assert "There is no cache of models in" in call("clear", "--cache-dir", str(theirs))[1]
    assert ((blobs_folder(theirs) / "abc").read_bytes(), theirs.stat().st_mode) == (b"theirs", mode)
    assert [path.name for path in theirs.iterdir()] == ["blobs"]
    cache.release(view(cache, version(cache, 1, b"1")))
    for note in notes_folder(cache.root).iterdir():
        note.write_bytes(b"damage")
    found = as_json()
    assert (found["versions"], found["files"], found["unnamed_files"]) == ([], 2, 2)
    assert "2 files belong to no version known here" in call()[1]


def test_a_fetch_that_is_under_way_is_told(cache: Cache) -> None:
    with cache.hold([]):
        assert as_json()["fetching"] == [os.getpid()]
    assert as_json()["fetching"] == []


def test_clear_removes_all_or_what_nobody_uses(cache: Cache) -> None:
    first, second = version(cache, 1, b"1"), version(cache, 2, b"22")
    cache.release(view(cache, first))
    live = view(cache, second)
    assert as_json("clear", "--unused") == {
        "cache": str(cache.root),
        "files": 1,
        "bytes": 1,
        "left_bytes": len(BACKBONE) + 2,
        "kept_bytes": 0,
    }
    assert [entry["version"] for entry in as_json()["versions"] if entry["cached_files"] == entry["files"]] == [2]
    assert call("clear")[1] == (
        f"Removed 2 files, {len(BACKBONE) + 2:,} bytes; "
        f"{len(BACKBONE) + 2:,} bytes are freed when the processes that have them loaded let go\n"
    )
    assert list(blobs_folder(cache.root).iterdir()) == []
    assert (live / "tensors/0.bin").read_bytes() == BACKBONE
    found = as_json()
    assert (found["versions"], found["bytes"], found["kept_bytes"]) == ([], 0, len(BACKBONE) + 2)
    cache.release(live)
    assert as_json()["kept_bytes"] == 0
    assert list(notes_folder(cache.root).iterdir()) == []


def test_a_limit_that_is_no_size_and_an_option_that_would_not_count_are_refused(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, out, err = call("--cache-dir", "/nowhere", "clear")
    assert (status, out, "stands before the command" in err) == (2, "", True)
    monkeypatch.setenv("MODELCAST_CACHE_BYTES", "a lot")
    status, out, err = call()
    assert (status, out, "is not a size" in err) == (2, "", True)
