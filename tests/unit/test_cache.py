"""Files are found by digest, checked before each load, replaced when damaged, and never outside the cache's folder."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcast import digest
from modelcast.errors import CacheError, StructureError
from modelcast.files import cache as cache_module
from modelcast.files.cache import Cache, Flaw
from modelcast.records import FileEntry

GRAPH = b"graph" * 100
TENSOR = b"tensor" * 100


def entry(path: str, data: bytes) -> FileEntry:
    return FileEntry(path, len(data), digest.of_bytes(data))


def put(cache: Cache, path: str, data: bytes) -> FileEntry:
    file = entry(path, data)
    with cache.hold([file]) as hold:
        (hold / "0").write_bytes(data)
        cache.keep(file, hold / "0")
    return file


def blob(cache: Cache, file: FileEntry) -> Path:
    return cache.root / "blobs" / "sha256" / digest.hex_part(file.digest)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache")
    yield cache
    cache.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_view_holds_the_files_of_a_version_and_nothing_else(cache: Cache) -> None:
    files = [put(cache, "model.onnx", GRAPH), put(cache, "tensors/0.bin", TENSOR)]
    put(cache, "other", b"other")
    view, bad = cache.view(files)
    assert bad == {}
    assert {str(path.relative_to(view)) for path in view.rglob("*") if path.is_file()} == {
        "model.onnx",
        "tensors/0.bin",
    }
    assert (view / "tensors/0.bin").read_bytes() == TENSOR
    assert (view / "tensors/0.bin").stat().st_ino == blob(cache, files[1]).stat().st_ino
    cache.release(view)
    assert not view.exists()
    assert cache.has(files[0])


def test_folders_are_private_and_files_are_read_only(cache: Cache) -> None:
    file = put(cache, "tensors/0.bin", TENSOR)
    view, _ = cache.view([file])
    assert [mode(path) for path in (cache.root, view, view / "tensors")] == [0o700] * 3
    assert mode(view / "tensors/0.bin") == 0o444


@pytest.mark.parametrize("path", ["../escape", "/tmp/escape", "a/../../escape", ".."])
def test_f17_a_path_that_leaves_the_view_is_refused(cache: Cache, path: str) -> None:
    file = put(cache, path, GRAPH)
    with pytest.raises(StructureError, match="not a path"):
        cache.view([file])
    assert list((cache.root / "views").glob("*/*")) == []


def overwrite(path: Path, data: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(data)


def truncate(path: Path) -> None:
    overwrite(path, b"")


def flip(path: Path) -> None:
    overwrite(path, b"G" + GRAPH[1:])


def delete(path: Path) -> None:
    path.unlink()


def link_to_secret(path: Path) -> None:
    path.unlink()
    secret = path.parent / "secret"
    secret.write_bytes(GRAPH)
    path.symlink_to(secret)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip, delete, link_to_secret, make_folder])
def test_f38_f44_damage_is_found_at_the_next_view_and_healed(cache: Cache, damage) -> None:
    file = put(cache, "model.onnx", GRAPH)
    other = put(cache, "tensors/0.bin", TENSOR)
    damage(blob(cache, file))
    view, bad = cache.view([file, other])
    assert bad == {file: Flaw.MISSING if damage is delete else Flaw.DAMAGED}
    assert not view.exists()
    cache.drop(file)
    put(cache, "model.onnx", GRAPH)
    view, bad = cache.view([file, other])
    assert bad == {}
    assert (view / "model.onnx").read_bytes() == GRAPH


def test_a_file_that_two_versions_share_is_hashed_once(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []

    def counting(path: Path, entry: FileEntry) -> bool:
        hashed.append(entry.path)
        return is_whole(path, entry)

    is_whole = cache_module._is_whole
    monkeypatch.setattr(cache_module, "_is_whole", counting)
    backbone = put(cache, "tensors/0.bin", TENSOR)
    first, _ = cache.view([put(cache, "head", b"1"), backbone])
    second, _ = cache.view([put(cache, "head", b"2"), backbone])
    cache.release(first)
    cache.view([put(cache, "head", b"3"), backbone])
    assert sorted(hashed) == ["head", "head", "head", "tensors/0.bin"]
    assert (second / "tensors/0.bin").read_bytes() == TENSOR


def test_what_a_session_holds_outlives_its_replacement(cache: Cache) -> None:
    file = put(cache, "model.onnx", GRAPH)
    view, _ = cache.view([file])
    with (view / "model.onnx").open("rb") as held:
        cache.drop(file)
        put(cache, "model.onnx", GRAPH)
        assert held.read() == GRAPH
        assert (view / "model.onnx").stat().st_ino != blob(cache, file).stat().st_ino


def test_views_of_dead_processes_are_removed_and_those_of_living_ones_are_not(cache: Cache) -> None:
    file = put(cache, "model.onnx", GRAPH)
    view, _ = cache.view([file])
    child = (
        "import sys; from pathlib import Path; from modelcast.files.cache import Cache;"
        "from modelcast.records import FileEntry;"
        f"view, bad = Cache(Path({str(cache.root)!r})).view([FileEntry('model.onnx', {file.size}, {file.digest!r})]);"
        "print(view, flush=True); import os; os._exit(0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", child], env=environment, check=True, capture_output=True, text=True)
    orphan = Path(run.stdout.strip())
    assert (orphan / "model.onnx").exists()
    other = Cache(cache.root)
    assert not orphan.exists()
    assert view.exists()
    other.close()
    cache.close()
    assert not view.exists()
    assert list((cache.root / "views").iterdir()) == []


def test_unused_files_are_removed_the_longest_unused_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=250)
    files = [put(cache, f"tensors/{i}", bytes([i]) * 100) for i in range(4)]
    for age, file in enumerate(files):
        os.utime(blob(cache, file), (1000 + age, 1000 + age))
    view, _ = cache.view([files[0]])  # in use, and used now
    cache.trim()
    assert [cache.has(file) for file in files] == [True, False, False, True]
    cache.release(view)
    cache.close()


def test_f38_a_folder_that_is_none_or_too_small_a_disk_says_what_to_do(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CacheError, match="can't be written: Not a directory.*set MODELCAST_CACHE_DIR"):
        Cache(tmp_path / "file" / "cache")
    with pytest.raises(CacheError, match="need 4398046511104 bytes.*free"):
        cache.make_room(1 << 42)


def test_the_folder_is_the_users_cache_unless_said_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path / "here"))
    cache = Cache()
    assert cache.root == tmp_path / "here" / "models"
    cache.close()
