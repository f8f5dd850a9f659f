"""What was checked and not touched since is not checked again; whatever was touched, is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelcast import digest
from modelcast.files.cache import Cache
from modelcast.files.seals import SEAL_S, Seals
from modelcast.records import FileEntry

DATA = b"weights" * 1000
DAMAGED = b"Weights" + DATA[7:]
NAME = digest.of_bytes(DATA)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Shelf:
    """One file, and links to it that are looked at or not."""

    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.seals = Seals(clock=self.clock)
        self.folder = folder
        self.path = folder / "file"
        self.path.write_bytes(DATA)
        self.links = 0

    def is_known(self, seals: Seals | None = None) -> bool:
        """Links the file; where its bytes are not known to be right, looks at them."""
        self.links += 1
        target = self.folder / str(self.links)
        seals = seals or self.seals
        seal = seals.link(NAME, self.path, target)
        if seal is not None and target.read_bytes() == DATA:
            seals.put(NAME, seal)
        return seal is None


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


def touch_mode(path: Path) -> None:
    path.chmod(0o600)


def write_and_set_the_time_back(path: Path) -> None:
    status = path.stat()
    path.write_bytes(DAMAGED)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def write_through_a_link(path: Path) -> None:
    (path.parent / "1").write_bytes(DAMAGED)


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(DAMAGED)
    status = path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)


def write_and_take_back(path: Path) -> None:
    path.write_bytes(DAMAGED)
    path.write_bytes(DATA)


TOUCHES = [touch_mode, write_and_set_the_time_back, write_through_a_link, replace, write_and_take_back]


def test_a_file_is_looked_at_once(shelf: Shelf) -> None:
    assert [shelf.is_known() for _ in range(4)] == [False, True, True, True]


@pytest.mark.parametrize("touch", TOUCHES)
def test_f44_a_file_that_was_touched_is_looked_at_again(shelf: Shelf, touch) -> None:
    assert [shelf.is_known(), shelf.is_known()] == [False, True]
    touch(shelf.path)
    assert not shelf.is_known()


def test_a_link_made_by_somebody_else_has_it_looked_at_again(shelf: Shelf) -> None:
    assert [shelf.is_known(), shelf.is_known()] == [False, True]
    assert not shelf.is_known(Seals())
    assert [shelf.is_known(), shelf.is_known()] == [False, True]


def test_removing_a_link_of_our_own_does_not(shelf: Shelf) -> None:
    assert [shelf.is_known(), shelf.is_known()] == [False, True]
    with shelf.seals.unlinking([(NAME, shelf.path)]):
        (shelf.folder / "1").unlink()
    assert shelf.is_known()


def test_f44_damage_beside_the_removal_of_a_link_is_seen(shelf: Shelf) -> None:
    assert [shelf.is_known(), shelf.is_known()] == [False, True]
    with shelf.seals.unlinking([(NAME, shelf.path)]):
        (shelf.folder / "1").unlink()
        shelf.path.write_bytes(DAMAGED)
    assert not shelf.is_known()


def test_a_file_is_looked_at_again_after_a_while(shelf: Shelf) -> None:
    assert [shelf.is_known(), shelf.is_known()] == [False, True]
    shelf.clock.now = SEAL_S + 1
    assert [shelf.is_known(), shelf.is_known()] == [False, True]


def test_what_is_gone_is_forgotten(shelf: Shelf) -> None:
    assert not shelf.is_known()
    shelf.seals.keep_only([])
    assert not shelf.is_known()


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache")
    yield cache
    cache.close()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(st.lists(st.sampled_from(["view", "release", "damage", "other process"]), max_size=12))
def test_f44_no_view_ever_shows_what_was_damaged_before_it(cache: Cache, tmp_path: Path, steps: list[str]) -> None:
    entry = FileEntry("tensors/0.bin", len(DATA), NAME)
    blob = cache.root / "blobs" / "sha256" / digest.hex_part(NAME)
    other = Cache(cache.root)
    views: list[Path] = []
    try:
        for step in ["view", *steps, "view"]:
            if not cache.has(entry):
                with cache.hold([entry]) as hold:
                    (hold / "0").write_bytes(DATA)
                    cache.keep(entry, hold / "0")
            if step == "release" and views:
                cache.release(views.pop())
            elif step == "damage":
                blob.chmod(0o600)
                write_and_set_the_time_back(blob)
            elif step != "release":
                view, bad = (cache if step == "view" else other).view([entry])
                if bad:
                    cache.drop(entry)
                    continue
                assert (view / entry.path).read_bytes() == DATA
                if step == "view":
                    views.append(view)
    finally:
        other.close()
