"""Stores on a real S3 API over HTTP: whole objects, blocks, what goes wrong and how it is told, nothing left open."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from modelcast import digest
from modelcast.errors import IntegrityError, StoreError
from modelcast.files import store as store_module
from modelcast.files.store import FileStore
from modelcast.records import FileEntry
from tests.s3_server import S3Server, s3_server

from .control_rig import wait_until

FILES = {"model.onnx": Random(1).randbytes(3_500), "tensors/0.bin": Random(2).randbytes(2_000_003)}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def entries(tmp_path: Path) -> tuple[FileEntry, ...]:
    found = []
    for path, data in FILES.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(data)
        found.append(FileEntry(path, len(data), digest.of_bytes(data)))
    return tuple(found)


@pytest.fixture
def store(server: S3Server, request: pytest.FixtureRequest) -> Iterator[FileStore]:
    """A folder of the bucket for each test."""
    with FileStore(f"{server.url}/{request.node.name}") as opened:
        yield opened


def key_of(server: S3Server, store: FileStore, entry: FileEntry) -> str:
    return store.name(entry).removeprefix(f"s3://{server.bucket}/")


def contents(store: FileStore, entries: tuple[FileEntry, ...]) -> dict[str, bytes]:
    found = {entry.path: b"" for entry in entries}
    for entry, _, block in store.read(entries):
        found[entry.path] += block
    return found


def test_files_are_put_once_and_read_back(
    server: S3Server, store: FileStore, entries: tuple[FileEntry, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.check()
    assert store.missing(entries) == entries
    assert store.upload(tmp_path, entries) == 2_003_503
    assert {key_of(server, store, entry): entry.size for entry in entries}.items() <= server.sizes().items()
    assert store.upload(tmp_path, entries) == 0
    monkeypatch.setattr(store_module, "BLOCK_BYTES", 300_000)
    assert contents(store, entries) == FILES


def test_a_large_file_goes_in_parts_and_is_visible_whole_or_not_at_all(
    server: S3Server, store: FileStore, tmp_path: Path
) -> None:
    data = Random(3).randbytes(18 << 20)
    (tmp_path / "large.bin").write_bytes(data)
    entry = FileEntry("large.bin", len(data), digest.of_bytes(data))
    seen: list[int] = []

    def watch(done: int, total: int) -> None:
        if done < total:
            seen.append(done)
            assert key_of(server, store, entry) not in server.sizes()

    store.upload(tmp_path, [entry], watch)
    assert seen
    assert server.sizes()[key_of(server, store, entry)] == len(data)
    assert contents(store, (entry,))["large.bin"] == data


def test_a_missing_object_is_named(
    server: S3Server, store: FileStore, entries: tuple[FileEntry, ...], tmp_path: Path
) -> None:
    store.upload(tmp_path, entries)
    server.remove(key_of(server, store, entries[1]))
    with pytest.raises(IntegrityError, match=r"'tensors/0\.bin' is not in the store: there is no s3://"):
        contents(store, entries)


@pytest.mark.parametrize(
    ("size", "block"), [(0, 1_000_000), (1_000_000, 1_000_000), (2_000_002, 8 << 20), (2_000_004, 1_000_000)]
)
def test_an_object_of_another_size_is_named(
    server: S3Server,
    store: FileStore,
    entries: tuple[FileEntry, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    block: int,
) -> None:
    monkeypatch.setattr(store_module, "BLOCK_BYTES", block)
    store.upload(tmp_path, entries)
    server.write(key_of(server, store, entries[1]), (FILES["tensors/0.bin"] + b"!" * 10)[:size])
    with pytest.raises(IntegrityError, match=r"'tensors/0\.bin' was altered in the store"):
        contents(store, entries)
    assert store.upload(tmp_path, entries) == 2_000_003
    assert contents(store, entries) == FILES


def test_a_bucket_that_is_not_there_is_told_with_its_remedy(
    server: S3Server, entries: tuple[FileEntry, ...], tmp_path: Path
) -> None:
    with FileStore("s3://no-such-bucket/team") as store:
        for use in (store.check, lambda: store.upload(tmp_path, entries), lambda: contents(store, entries)):
            with pytest.raises(StoreError, match="there is no bucket 'no-such-bucket'") as told:
                use()
            assert "AWS_ENDPOINT_URL" in str(told.value.hint)


def test_without_rights_every_use_says_so(
    server: S3Server, store: FileStore, entries: tuple[FileEntry, ...], tmp_path: Path
) -> None:
    store.upload(tmp_path, entries)
    server.deny()
    try:
        store.check()  # says nothing: who may read and write need not be allowed to ask
        for use in (lambda: store.upload(tmp_path, entries, resend=True), lambda: contents(store, entries)):
            with pytest.raises(StoreError, match="access to s3://.* is denied.*AWS_ACCESS_KEY_ID"):
                use()
    finally:
        server.allow()


def test_without_credentials_it_says_where_they_come_from(
    server: S3Server, entries: tuple[FileEntry, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with FileStore(server.url) as store, pytest.raises(StoreError, match="denied.*AWS_ACCESS_KEY_ID"):
        contents(store, entries)


def test_a_server_that_is_away_is_told_and_found_again(
    server: S3Server, store: FileStore, entries: tuple[FileEntry, ...], tmp_path: Path
) -> None:
    store.upload(tmp_path, entries)
    server.stop()
    try:
        with pytest.raises(StoreError, match=r"did not give or take s3://.*Check that it is up") as told:
            contents(store, entries)
        assert told.value.retriable
    finally:
        server.start()
    assert contents(store, entries) == FILES


def test_stores_are_read_from_many_threads_at_once(
    server: S3Server, store: FileStore, entries: tuple[FileEntry, ...], tmp_path: Path
) -> None:
    store.upload(tmp_path, entries)

    def read(_: int) -> dict[str, bytes]:
        with FileStore(store.url) as own:
            return contents(own, entries)

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(read, range(4))) == [FILES] * 4


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted by /proc")
def test_a_store_that_was_closed_leaves_no_socket_and_no_thread_but_one(
    server: S3Server, store: FileStore, entries: tuple[FileEntry, ...], tmp_path: Path
) -> None:
    store.upload(tmp_path, entries)
    before, threads = connections(server), set(threading.enumerate())
    for _ in range(2):
        with FileStore(store.url) as own:
            assert contents(own, entries) == FILES
        with FileStore(store.url) as own, pytest.raises(IntegrityError):
            contents(own, (replace(entries[0], digest=digest.of_bytes(b"never")), *entries))
        with FileStore(store.url):
            pass  # never connected
    wait_until(lambda: connections(server) <= before, "its sockets to be closed, in the loop's own time")
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("fsspecIO") == 1
    assert not any(thread.name.startswith("modelcast") for thread in set(threading.enumerate()) - threads)


def connections(server: S3Server) -> int:
    """Connections to the server that this process holds as a client."""
    own = set()
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one this looks with is gone
            own.add(str(file.readlink()))
    port = f":{int(server.endpoint.rpartition(':')[2]):04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(line[2].endswith(port) and f"socket:[{line[9]}]" in own for line in lines)
