"""Engine folders: one a content, private, bounded."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from modelcast import digest
from modelcast.consumer.engines import Engines
from modelcast.errors import CacheError


def content(text: str) -> str:
    return digest.of_bytes(text.encode())


def test_each_content_has_a_private_folder_of_its_own_that_is_found_again(tmp_path: Path) -> None:
    engines = Engines(tmp_path / "tensorrt", "1.31.1")
    one, other = engines.folder(content("one")), engines.folder(content("other"))
    assert one != other
    assert one == engines.folder(content("one"))
    assert one != Engines(tmp_path / "tensorrt", "1.32.0").folder(content("one"))
    for folder in (one, one.parent, one.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_the_longest_unused_make_room(tmp_path: Path) -> None:
    engines = Engines(tmp_path / "tensorrt", "1", limit_bytes=250)
    folders = [engines.folder(content(str(number))) for number in range(3)]
    for age, folder in enumerate(reversed(folders)):
        (folder / "engine").write_bytes(b"e" * 100)
        os.utime(folder.parent, (1000 - age, 1000 - age))
    newest = engines.folder(content("newest"))
    assert [folder.exists() for folder in (*folders, newest)] == [False, True, True, True]


def test_a_root_that_can_not_be_made_is_the_caches_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError):
        Engines(tmp_path / "file" / "tensorrt", "1").folder(content("one"))
