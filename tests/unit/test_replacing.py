"""What `modelcast/replacing.py` promises whoever reads a file while it is written, or when it can't be."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from modelcast.replacing import replace_file


def test_a_file_is_made_and_replaced_with_its_permissions(tmp_path: Path) -> None:
    path = tmp_path / "marks.json"
    replace_file(path, b"one", synced=True)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"one", 0o600)
    with path.open("rb") as reading:
        replace_file(path, b"another", mode=0o644)
        assert reading.read() == b"one"
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"another", 0o644)
    assert list(tmp_path.iterdir()) == [path]


def test_what_can_not_be_written_leaves_the_file_as_it_was_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError("no space left on device")

    path = tmp_path / "marks.json"
    replace_file(path, b"one")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        replace_file(path, b"another", synced=True)
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
