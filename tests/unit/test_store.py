"""Files in a folder, or another store, under their digests: whole or not at all, sent once, never trusted."""

from __future__ import annotations

import errno
import os
import stat
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from modelcast import digest
from modelcast.errors import IntegrityError, StoreError, StoreNotAllowedError, UsageError
from modelcast.files import store as store_module
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.files.store import FileStore
from modelcast.files.store_url import Stores
from modelcast.records import FileEntry, Manifest, Signature
from modelcast.registry.image import VersionRecord
from modelcast.testing.memory import MemoryLog
from modelcast.topics import Topics

FILES = {
    "examples.npz": b"",
    "model.onnx": Random(1).randbytes(3_500),
    "tensors/0.bin": Random(2).randbytes(700_001),
    "tensors/1.bin": Random(2).randbytes(700_001),  # the same content: one object
}


def tree(folder: Path, files: dict[str, bytes] = FILES) -> tuple[FileEntry, ...]:
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return tuple(FileEntry(path, len(data), digest.of_bytes(data)) for path, data in sorted(files.items()))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, root: Path) -> str:
    """A folder, and a file system of fsspec's own that has neither atomic puts nor folders."""
    return f"file://{root}" if request.param == "file" else f"memory://{uuid.uuid4().hex}/models"


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache")
    yield cache
    cache.close()


def read(store: FileStore, entries: tuple[FileEntry, ...]) -> dict[str, bytes]:
    found = {entry.path: b"" for entry in entries}
    for entry, start, block in store.read(entries):
        assert start == len(found[entry.path])
        found[entry.path] += block
    return found


def objects(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_files_lie_under_their_digests(root: Path, tmp_path: Path) -> None:
    entries = tree(tmp_path)
    with FileStore(f"file://{root}") as store:
        assert store.upload(tmp_path, entries) == 703_501
        assert store.url == f"file://{root}"
    assert objects(root) == {f"sha256/{e.digest.removeprefix('sha256:')}": FILES[e.path] for e in entries}


def test_what_was_put_is_read_back_in_blocks(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 100_000)
    entries = tree(tmp_path)
    with FileStore(url) as store:
        store.upload(tmp_path, entries)
        assert read(store, entries) == FILES
        assert max(len(block) for _, _, block in store.read(entries)) == 100_000


def test_blocks_end_where_the_file_does(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 10)
    files = {str(size): Random(size).randbytes(size) for size in (1, 9, 10, 11, 20, 21)}
    entries = tree(tmp_path, files)
    with FileStore(f"file://{root}") as store:
        store.upload(tmp_path, entries)
        assert read(store, entries) == files


def test_a_file_that_is_there_is_not_sent_again(url: str, tmp_path: Path) -> None:
    entries = tree(tmp_path)
    told: list[tuple[int, int]] = []
    with FileStore(url) as store:
        store.upload(tmp_path, entries, lambda done, total: told.append((done, total)))
        assert told[-1] == (703_501, 703_501)
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert store.missing(entries) == ()
        assert store.upload(tmp_path, entries) == 0
        assert store.upload(tmp_path, entries, resend=True) == 703_501
        more = tree(tmp_path, {"head.bin": b"new"})
        assert store.upload(tmp_path, (*entries, *more)) == 3


def test_an_object_of_another_size_is_sent_anew(root: Path, tmp_path: Path) -> None:
    entries = tree(tmp_path)
    with FileStore(f"file://{root}") as store:
        store.upload(tmp_path, entries)
        damaged = root / "sha256" / entries[1].digest.removeprefix("sha256:")
        damaged.write_bytes(b"cut")
        assert store.upload(tmp_path, entries) == entries[1].size
        assert read(store, entries) == FILES


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_an_upload_that_breaks_off_leaves_no_object(scheme: str, root: Path, tmp_path: Path) -> None:
    entries = tree(tmp_path)
    url = f"file://{root}" if scheme == "file" else f"memory://{uuid.uuid4().hex}"

    def stop(done: int, _: int) -> None:
        if done:
            raise RuntimeError("the publisher ends here")

    with FileStore(url) as store:
        with pytest.raises(StoreError, match="the publisher ends here"):
            store.upload(tmp_path, entries[2:3], stop)
        assert store.missing(entries[2:3]) == entries[2:3]
    assert objects(root) == {}


def test_names_are_synced_too_once_they_are_there(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = tree(tmp_path)
    synced: list[tuple[int, bool]] = []
    fsync = os.fsync

    def watching(file: int) -> None:
        status = os.fstat(file)
        if stat.S_ISDIR(status.st_mode):
            synced.append((status.st_ino, bool(objects(root))))
        fsync(file)

    monkeypatch.setattr(os, "fsync", watching)
    with FileStore(f"file://{root}") as store:
        store.upload(tmp_path, entries[2:3])
    assert synced == [((root / "sha256").stat().st_ino, True), (root.stat().st_ino, True)]


def test_a_share_that_syncs_no_folders_is_written_all_the_same(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = tree(tmp_path)
    fsync = os.fsync

    def refusing(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refusing)
    with FileStore(f"file://{root}") as store:
        store.upload(tmp_path, entries)
        assert store.missing(entries) == ()


def test_uploads_of_the_same_file_at_once_leave_it_whole(root: Path, tmp_path: Path) -> None:
    entries = tree(tmp_path)

    def upload() -> None:
        with FileStore(f"file://{root}") as store:
            store.upload(tmp_path, entries, resend=True)

    threads = [threading.Thread(target=upload) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with FileStore(f"file://{root}") as store:
        assert read(store, entries) == FILES
    assert len(objects(root)) == 3


def test_a_folder_that_is_not_there_is_told_with_its_remedy(tmp_path: Path) -> None:
    entries = tree(tmp_path)
    with FileStore(f"file://{tmp_path}/absent") as store:
        for use in (store.check, lambda: store.upload(tmp_path, entries), lambda: read(store, entries)):
            with pytest.raises(StoreError, match="absent") as told:
                use()
            assert told.value.retriable
            assert told.value.exit_code == 3
            assert told.value.hint


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_folder_nobody_may_write_is_told_with_its_remedy(root: Path, tmp_path: Path) -> None:
    root.chmod(0o500)
    with FileStore(f"file://{root}") as store, pytest.raises(StoreError, match="denied.*rights of this user"):
        store.upload(tmp_path, tree(tmp_path))
    root.chmod(0o700)


def test_a_scheme_nobody_knows_is_refused() -> None:
    with pytest.raises(UsageError, match="'gopher'"):
        FileStore("gopher://host/models")


def test_a_scheme_that_wants_more_than_its_url_is_refused() -> None:
    with pytest.raises(UsageError, match="ftp://host/models can't be reached by its URL alone"):
        FileStore("ftp://host/models")


# A version by reference, fetched


def record(store: str, entries: tuple[FileEntry, ...]) -> VersionRecord:
    manifest = Manifest("r", "fraud", 1, 0, "me", "", entries, 1000, Signature((), ()), 8, {"": 17}, store=store)
    return VersionRecord(manifest, (), 1)


def fetcher(cache: Cache, *allowed: str) -> Fetcher:
    return Fetcher(MemoryLog(), Topics("test"), cache, stores=Stores.of(allowed))


def contents(view: Path) -> dict[str, bytes]:
    return {str(path.relative_to(view)): path.read_bytes() for path in view.rglob("*") if path.is_file()}


@pytest.fixture
def published(url: str, tmp_path: Path) -> VersionRecord:
    entries = tree(tmp_path / "source")
    with FileStore(url) as store:
        store.upload(tmp_path / "source", entries)
    return record(url, entries)


def test_a_version_by_reference_comes_into_the_same_cache(published: VersionRecord, url: str, cache: Cache) -> None:
    told: list[tuple[int, int]] = []
    view = fetcher(cache, url).fetch(published, lambda done, total: told.append((done, total)))
    assert contents(view) == FILES
    assert told[-1] == (703_501, 703_501)
    # What is in the cache needs no store: neither that it is up, nor that it may be read.
    assert contents(fetcher(cache).fetch(replace(published, manifest=replace(published.manifest, store="s3://gone"))))


def test_what_chunk_size_a_manifest_declares_is_nothing_to_a_store(
    published: VersionRecord, url: str, cache: Cache
) -> None:
    huge = replace(published, manifest=replace(published.manifest, chunk_bytes=1 << 60))
    assert contents(fetcher(cache, url).fetch(huge)) == FILES


def test_a_store_that_is_not_allowed_is_not_even_opened(published: VersionRecord, url: str, cache: Cache) -> None:
    with pytest.raises(StoreNotAllowedError, match="allowed: file:///elsewhere"):
        fetcher(cache, "file:///elsewhere").fetch(published)
    assert not list((cache.root / "blobs" / "sha256").iterdir())


def put(url: str, entry: FileEntry, data: bytes, folder: Path) -> None:
    """Puts bytes in the place of an object, as who may write to the store can."""
    (folder / "altered").write_bytes(data)
    with FileStore(url) as store:
        store.upload(folder, [replace(entry, path="altered")], resend=True)


@pytest.mark.parametrize("change", ["flipped", "shorter", "longer", "empty"])
def test_an_altered_object_is_refused_by_name(
    published: VersionRecord, url: str, cache: Cache, tmp_path: Path, change: str
) -> None:
    data = FILES["tensors/0.bin"]
    altered = {
        "flipped": data[:400_000] + bytes([data[400_000] ^ 1]) + data[400_001:],
        "shorter": data[:-1],
        "longer": data + b"!",
        "empty": b"",
    }[change]
    put(url, published.manifest.files[2], altered, tmp_path)
    with pytest.raises(IntegrityError, match=r"'tensors/[01]\.bin'.*--resend"):
        fetcher(cache, url).fetch(published)
    assert not list((cache.root / "views").glob("*/*"))
    assert not list((cache.root / "blobs" / "sha256").glob("*~"))
    put(url, published.manifest.files[2], data, tmp_path)
    assert contents(fetcher(cache, url).fetch(published)) == FILES


def test_a_missing_object_is_refused_by_name(published: VersionRecord, root: Path, url: str, cache: Cache) -> None:
    lost = FileEntry("tensors/2.bin", 10, digest.of_bytes(b"never"))
    wanted = replace(published, manifest=replace(published.manifest, files=(*published.manifest.files, lost)))
    with pytest.raises(IntegrityError, match=r"'tensors/2\.bin' is not in the store.*Publish the model again"):
        fetcher(cache, url).fetch(wanted)


def test_a_share_that_is_not_mounted_is_tried_again_and_no_refusal(root: Path, tmp_path: Path, cache: Cache) -> None:
    entries = tree(tmp_path / "source")
    with FileStore(f"file://{root}") as store:
        store.upload(tmp_path / "source", entries)
    root.rename(tmp_path / "away")
    root.mkdir()  # a mount point is an empty folder while nothing is mounted
    with pytest.raises(StoreError, match="there is no store in") as told:
        fetcher(cache, f"file://{root}").fetch(record(f"file://{root}", entries))
    assert told.value.retriable
    root.rmdir()
    (tmp_path / "away").rename(root)
    assert contents(fetcher(cache, f"file://{root}").fetch(record(f"file://{root}", entries))) == FILES


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_no_object(root: Path, tmp_path: Path, cache: Cache, kind: str) -> None:
    entries = tree(tmp_path / "source")
    with FileStore(f"file://{root}") as store:
        store.upload(tmp_path / "source", entries)
        place = root / "sha256" / entries[1].digest.removeprefix("sha256:")
        place.unlink()
        if kind == "folder":
            place.mkdir()
        else:
            os.mkfifo(place)
        assert store.missing(entries) == (entries[1],)
    with pytest.raises(IntegrityError, match="model.onnx"):
        fetcher(cache, f"file://{root}").fetch(record(f"file://{root}", entries))
