"""Files are found by digest, checked before each load, replaced when damaged, and never outside the cache's folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelcast import digest
from modelcast.errors import CacheError, ConfigError, StructureError
from modelcast.files import cache as cache_module
from modelcast.files.cache import Cache, Flaw, Removed, blobs_folder, views_folder
from modelcast.files.limit import DEFAULT_LIMIT_BYTES, LIMIT_VARIABLE, limit_bytes
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


def test_f38_what_comes_has_room_made_for_it_and_what_is_in_use_or_wanted_stays(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=500)
    old, used, wanted, young = (put(cache, f"tensors/{i}", bytes([i]) * 100) for i in range(4))
    for age, file in enumerate((used, wanted, old, young)):
        os.utime(blob(cache, file), (1000 + age, 1000 + age))
    view, _ = cache.view([used])
    with cache.hold([wanted, entry("tensors/9", b"comes")]):  # a version some of whose files are there
        cache.make_room(200)
        assert [cache.has(file) for file in (old, used, wanted, young)] == [False, True, True, True]
        cache.make_room(500)
        assert [cache.has(file) for file in (old, used, wanted, young)] == [False, True, True, False]
    cache.release(view)
    cache.close()


def test_f38_unused_files_give_way_on_a_full_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, limit=1 << 40)
    files = [put(cache, f"tensors/{i}", bytes([i]) * 100) for i in range(3)]
    usage = shutil.disk_usage(tmp_path)

    def nearly_full(folder: Path) -> object:
        return usage._replace(free=450 - sum(path.stat().st_size for path in blobs_folder(tmp_path).iterdir()))

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    cache.make_room(250)
    assert [cache.has(file) for file in files] == [False, True, True]
    with pytest.raises(CacheError, match="need 451 bytes, the disk of the cache .* has 250 free"):
        cache.make_room(451)
    assert [cache.has(file) for file in files] == [False, True, True]  # they would have gone for nothing
    cache.close()


def test_a_version_let_go_just_now_was_used_just_now(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=100)
    live, other = put(cache, "live", b"l" * 100), put(cache, "other", b"o" * 100)
    view, _ = cache.view([live])
    for age, file in enumerate((live, other)):  # loaded long ago, and in use since
        os.utime(blob(cache, file), (1000 + age, 1000 + age))
    cache.release(view)
    cache.trim()
    assert [cache.has(file) for file in (live, other)] == [True, False]
    cache.close()


def test_what_a_process_that_was_killed_had_in_use_may_be_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", limit=0)
    file = put(cache, "model.onnx", GRAPH)
    with in_child(cache.root, f"cache.view([FileEntry('model.onnx', {file.size}, {file.digest!r})])"):
        cache.trim()
        assert cache.has(file)
    cache.trim()
    assert not cache.has(file)
    cache.close()


def test_a_killed_fetch_leaves_whole_files_only(cache: Cache) -> None:
    whole, half = entry("model.onnx", GRAPH), entry("tensors/0.bin", TENSOR)
    with in_child(
        cache.root,
        f"whole = FileEntry('model.onnx', {whole.size}, {whole.digest!r})",
        "stack = contextlib.ExitStack(); hold = stack.enter_context(cache.hold([whole]))",
        f"(hold / '0').write_bytes({GRAPH!r}); cache.keep(whole, hold / '0')",
        "(hold / '1').write_bytes(b'half')",
    ):
        assert len(list(cache.root.rglob("1"))) == 1
    Cache(cache.root).close()
    assert (cache.has(whole), cache.has(half)) == (True, False)
    left = [path for path in cache.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert left == [blob(cache, whole)]


def test_staged_files_of_a_killed_process_are_removed_when_they_are_old(cache: Cache) -> None:
    staged = blobs_folder(cache.root) / f"{'0' * 64}.1-1~"
    staged.write_bytes(b"x")
    cache.trim()
    assert staged.exists()
    os.utime(staged, (1000, 1000))
    cache.trim()
    assert not staged.exists()


@contextlib.contextmanager
def in_child(root: Path, *lines: str) -> Iterator[None]:
    """A process that did something with the cache, lives for as long and is killed."""
    code = [
        "import contextlib, sys; from pathlib import Path; from modelcast.files.cache import Cache",
        f"from modelcast.records import FileEntry; cache = Cache(Path({str(root)!r}))",
        *lines,
        "print('done', flush=True); sys.stdin.read()",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arguments = [sys.executable, "-c", "\n".join(code)]
    with subprocess.Popen(
        arguments, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == "done\n"
            yield
        finally:
            child.kill()


def test_f38_a_folder_that_is_deleted_in_use_is_made_anew(cache: Cache) -> None:
    first, _ = cache.view([put(cache, "model.onnx", GRAPH)])
    with (first / "model.onnx").open("rb") as held:
        shutil.rmtree(cache.root)
        file = entry("model.onnx", GRAPH)
        assert not cache.has(file)
        assert cache.view([file])[1] == {file: Flaw.MISSING}
        with cache.lock("fraud", 1.0):
            put(cache, "model.onnx", GRAPH)
        second, bad = cache.view([file])
        assert bad == {}
        assert (second / "model.onnx").read_bytes() == GRAPH == held.read()
    cache.release(first)
    other = Cache(cache.root)  # knows the new folder for a living process's
    assert second.exists()
    assert mode(cache.root) == 0o700
    other.close()


def test_clearing_leaves_what_is_in_use_if_that_is_said(cache: Cache) -> None:
    used, unused = put(cache, "used", GRAPH), put(cache, "unused", TENSOR)
    view, _ = cache.view([used])
    assert cache.clear(unused_only=True) == Removed(1, unused.size)
    assert (cache.has(used), cache.has(unused)) == (True, False)
    assert cache.clear() == Removed(1, used.size)
    assert not cache.has(used)
    assert (view / "used").read_bytes() == GRAPH


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1500", 1500),
        ("2kB", 2000),
        ("50GB", 50 * 10**9),
        ("50G", 50 * 10**9),
        ("1.5GiB", 3 << 29),
        ("2 tib", 2 << 40),
        ("7B", 7),
    ],
)
def test_the_limit_is_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, size: int) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    cache = Cache(tmp_path)
    assert cache.limit_bytes == size
    cache.close()


@pytest.mark.parametrize("text", ["much", "-1", "1e9", "10iB", "5 apples", "1.2345G"])
def test_a_limit_that_is_no_size_is_told_with_an_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(ConfigError, match=r"MODELCAST_CACHE_BYTES=.* is not a size.*MODELCAST_CACHE_BYTES=50GB"):
        Cache(tmp_path)


def test_the_limit_is_half_of_a_small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT_VARIABLE, raising=False)
    usage = shutil.disk_usage(tmp_path)
    for total, limit in ((10 << 30, 5 << 30), (1 << 40, DEFAULT_LIMIT_BYTES)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, total=total: usage._replace(total=total))
        assert limit_bytes(tmp_path, {}) == limit


def test_a_cache_that_was_closed_makes_no_folders_any_more(cache: Cache) -> None:
    file = put(cache, "model.onnx", GRAPH)
    cache.close()
    with pytest.raises(CacheError, match="closed"):
        cache.view([file])
    assert list(views_folder(cache.root).iterdir()) == []


def test_a_fetch_that_hangs_holds_others_up_for_a_bounded_time_and_one_that_goes_on_for_its_own(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "_LOOK_S", 0.05)
    lock_file = cache.root / "locks" / "fraud.lock"

    def wait() -> None:
        with Cache(cache.root).lock("fraud", 60.0):
            pass

    with cache.lock("fraud", 60.0) as go_on:
        waiting = threading.Thread(target=wait)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()  # it went on a moment ago
        os.utime(lock_file, (1000, 1000))
        waiting.join(60.0)
        assert not waiting.is_alive()
        time_before = lock_file.stat().st_mtime
        go_on()
        assert lock_file.stat().st_mtime >= time_before
