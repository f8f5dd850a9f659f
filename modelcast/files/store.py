"""Files of models in an object store or a shared folder, under their digests: `<url>/sha256/<hex>`.

The only importer of fsspec. Folders need no package; `s3://` and everything else needs the extra `store`.

- A file is there whole or not at all: puts of object stores are; elsewhere a partial name is written and renamed. What
  a killed publisher leaves there ends with `~` and is nobody's; S3 keeps its parts until a lifecycle rule of the bucket
  (AbortIncompleteMultipartUpload) takes them.
- Nothing is ever taken away: several repositories may share a store, and none knows what the others list.
- Nothing of a store is trusted: who reads checks sizes and digests (`modelcast.files.fetch`).
- Blocks are asked for ahead, across files, on fsspec's own thread: memory is bounded by `_AHEAD * BLOCK_BYTES`.
- An S3 store is reached as by Amazon's own tools: AWS_ENDPOINT_URL (for any other than Amazon's), AWS_ACCESS_KEY_ID and
  AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_DEFAULT_REGION, AWS_PROFILE and the files and roles behind them.
  Readers need s3:GetObject, publishers also s3:PutObject and s3:AbortMultipartUpload. Without s3:ListBucket, S3 says of
  an object that is missing that access is denied.
- A store belongs to one process: after a fork, open another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import itertools
import os
import stat
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from modelcast.digest import hex_part
from modelcast.errors import IntegrityError, MissingExtraError, StoreError, UsageError
from modelcast.files.store_url import StoreUrl
from modelcast.records import FileEntry

# One request for so many bytes: large enough to outweigh its round trip, small enough to hold some in memory.
BLOCK_BYTES: Final = 8 << 20
# Requests under way at once: one stream of an object store gives a part of what a network takes.
_AHEAD: Final = 4
# Questions under way at once: each is a round trip, and a model may have hundreds of files.
_QUESTIONS: Final = 8
# Parts of an upload; S3 takes 10,000 at most of one object.
_PART_BYTES: Final = 8 << 20
_PARTS_MAX: Final = 10_000
# A store that does not take a connection, or says nothing for so long, is told as away, and tried again later.
_CONNECT_TIMEOUT_S: Final = 5
_READ_TIMEOUT_S: Final = 20
# Against hiccups; both count, so that a store that hangs is given up after two minutes.
_REQUEST_ATTEMPTS: Final = 3
_BODY_ATTEMPTS: Final = 2
_CLOSE_TIMEOUT_S: Final = 5
# What no timeout of a client ends: longer than all attempts at a block take together.
_ANSWER_TIMEOUT_S: Final = 180
# Where a put is visible whole or not at all, so that no partial name is needed.
_ATOMIC: Final = frozenset({"s3", "gs", "gcs", "az", "abfs", "oss", "oci"})

# Called with bytes done and bytes in all.
Progress = Callable[[int, int], None]


class _Place(Protocol):
    """A tree of objects by relative name."""

    def check(self) -> None:
        """Raises StoreError if the folder or bucket is not there."""

    def size(self, name: str) -> int | None:
        """Bytes of an object; None if it is not there, or nobody may ask."""

    def ask(self, name: str, start: int, end: int) -> Future[bytes]:
        """Asks for an object's bytes from `start` to before `end`; fewer where it ends earlier.

        The answer is FileNotFoundError only if the object is not there and the folder or bucket is.
        """

    def put(self, name: str, path: Path, tell: Callable[[int], None]) -> None:
        """Makes an object of a file, in the place of what is there; tells bytes done."""

    def close(self) -> None: ...


class FileStore:
    """One store. Reading is for one thread at a time. Use as a context manager.

    Args:
        url: Where it is; not connected to until it is used.

    Raises:
        UsageError: The URL can't be used, or fsspec knows no such scheme.
        MissingExtraError: The extra `store`, or the package for the scheme, is not installed.
    """

    def __init__(self, url: StoreUrl | str) -> None:
        self._url = StoreUrl.parse(url) if isinstance(url, str) else url
        self._place: _Place = _Folder(self._url) if self._url.scheme == "file" else _Remote(self._url)

    @property
    def url(self) -> str:
        """Its normal form, which stands in manifests."""
        return str(self._url)

    def name(self, entry: FileEntry) -> str:
        """The URL of a file's object."""
        return f"{self.url}/{_name(entry)}"

    def check(self) -> None:
        """Raises StoreError if the folder or bucket is not there."""
        self._place.check()

    def upload(
        self, directory: Path, files: Iterable[FileEntry], progress: Progress | None = None, *, resend: bool = False
    ) -> int:
        """Puts those files that the store does not have yet; returns the bytes sent.

        Args:
            directory: Where they lie under their paths.
            progress: Called on any thread.
            resend: Puts also what is there with its size: it is damaged.

        Raises:
            StoreError: The store is away, or refuses.
        """
        entries = self.missing(files, resend=resend)
        total, done = sum(entry.size for entry in entries), 0
        for entry in entries:

            def tell(count: int, before: int = done) -> None:
                if progress is not None:
                    progress(before + count, total)

            with _explained(self._url, _name(entry)):
                self._place.put(_name(entry), directory / entry.path, tell)
            done += entry.size
            tell(0, done)
        return total

    def missing(self, files: Iterable[FileEntry], *, resend: bool = False) -> tuple[FileEntry, ...]:
        """The files of which there is no object of their size, one of each digest. Raises StoreError."""
        entries = tuple({entry.digest: entry for entry in files}.values())
        if resend or not entries:
            return entries
        with ThreadPoolExecutor(_QUESTIONS) as threads:
            there = list(threads.map(self._has, entries))
        return tuple(entry for entry, has in zip(entries, there, strict=True) if not has)

    def read(self, files: Iterable[FileEntry]) -> Generator[tuple[FileEntry, int, bytes], None, None]:
        """Blocks of files in order: the file, the block's place in it, `BLOCK_BYTES` bytes; the last may be shorter.

        Raises:
            IntegrityError: There is no such object, or it has another size.
            StoreError: The store is away, or refuses.
        """
        wanted = ((entry, start) for entry in files for start in range(0, entry.size, BLOCK_BYTES))
        asked: deque[tuple[FileEntry, int, Future[bytes]]] = deque()
        try:
            while True:
                for entry, start in itertools.islice(wanted, _AHEAD - len(asked)):
                    # One byte more than there should be: an object that is longer is another object.
                    end = min(start + BLOCK_BYTES, entry.size) + (start + BLOCK_BYTES >= entry.size)
                    asked.append((entry, start, self._place.ask(_name(entry), start, end)))
                if not asked:
                    return
                entry, start, answer = asked[0]
                yield entry, start, self._checked(entry, start, answer)
                asked.popleft()
        finally:
            for _, _, answer in asked:
                answer.cancel()

    def close(self) -> None:
        """Ends its connections."""
        self._place.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _has(self, entry: FileEntry) -> bool:
        with _explained(self._url, _name(entry)):
            return self._place.size(_name(entry)) == entry.size

    def _checked(self, entry: FileEntry, start: int, answer: Future[bytes]) -> bytes:
        with _explained(self._url, _name(entry)):
            try:
                block = answer.result(_ANSWER_TIMEOUT_S)
            except FileNotFoundError:
                raise IntegrityError(
                    f"file {entry.path!r} is not in the store: there is no {self.name(entry)}",
                    hint=f"Publish the model again with --store {self.url}.",
                ) from None
        length = min(BLOCK_BYTES, entry.size - start)
        if len(block) != length:
            raise IntegrityError(
                f"file {entry.path!r} was altered in the store: {self.name(entry)} has "
                f"{'more' if len(block) > length else 'fewer'} bytes than the declared {entry.size}",
                hint=f"Publish the model again with --store {self.url} --resend.",
            )
        return block


# Some network file systems sync files and no folders: what was put there is as safe as their server makes it.
_NO_SYNC: Final = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EBADF})


class _Folder:
    """A folder of this host, or one that is mounted here."""

    def __init__(self, url: StoreUrl) -> None:
        self._root = Path(url.path)

    def check(self) -> None:
        if not self._root.is_dir():
            raise StoreError(f"there is no folder {self._root}", hint=f"Mount it, or make it: mkdir -p {self._root}")

    def size(self, name: str) -> int | None:
        try:
            status = (self._root / name).stat()
        except FileNotFoundError:
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def ask(self, name: str, start: int, end: int) -> Future[bytes]:
        return _now(lambda: self._read(name, start, end))

    def _read(self, name: str, start: int, end: int) -> bytes:
        try:
            # Not blocking: a pipe in the place of a file would be waited for.
            file = os.open(self._root / name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except FileNotFoundError:
            if not (self._root / name).parent.is_dir():
                # Every store that was published to has it: a share that is not mounted says nothing of the model.
                raise StoreError(
                    f"there is no store in {self._root}", hint="Mount the folder, or copy it here."
                ) from None
            raise
        try:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise FileNotFoundError(errno.ENOENT, "not a file", name)
            blocks = []
            while start < end and (block := os.pread(file, end - start, start)):
                blocks.append(block)
                start += len(block)
            return blocks[0] if len(blocks) == 1 else b"".join(blocks)
        finally:
            os.close(file)

    def put(self, name: str, path: Path, tell: Callable[[int], None]) -> None:
        self.check()
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{target.name}.{uuid.uuid4().hex}~")
        try:
            with path.open("rb") as source, unfinished.open("xb") as file:
                done = 0
                while block := source.read(BLOCK_BYTES):
                    file.write(block)
                    done += len(block)
                    tell(done)
                file.flush()
                os.fsync(file.fileno())  # the registry will say it is there, also after a power failure
            unfinished.replace(target)
            _sync_folder(target.parent)
            _sync_folder(self._root)  # the first file makes its folder
        finally:
            unfinished.unlink(missing_ok=True)

    def close(self) -> None:
        """Nothing is open between calls."""


def _sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk, where its file system can."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(file)


def _check_reachable(url: StoreUrl, kind: type) -> None:
    """Before one is made: some that fail at once complain of themselves on standard error later."""
    wanted = [
        parameter.name
        for parameter in list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
        if parameter.default is parameter.empty and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    ]
    if wanted:
        raise UsageError(
            f"the store {url} can't be reached by its URL alone: {url.scheme} wants {', '.join(wanted)}",
            hint="Use s3://BUCKET/PREFIX or file:///FOLDER.",
        )


class _Remote:
    """An object store behind fsspec."""

    def __init__(self, url: StoreUrl) -> None:
        try:
            import fsspec
        except ImportError as error:
            raise MissingExtraError(
                f"the store {url} needs a package that is not installed",
                hint="Install it with: pip install 'modelcast[store]'",
            ) from error
        if url.scheme not in fsspec.available_protocols():
            raise UsageError(
                f"no store can be reached by {url.scheme!r}", hint="Use s3://BUCKET/PREFIX or file:///FOLDER."
            )
        options: dict[str, Any] = {}
        if url.scheme == "s3":
            options = {
                "max_concurrency": _AHEAD,
                "config_kwargs": {
                    "connect_timeout": _CONNECT_TIMEOUT_S,
                    "read_timeout": _READ_TIMEOUT_S,
                    "retries": {"mode": "standard", "total_max_attempts": _REQUEST_ATTEMPTS},
                },
            }
        try:
            _check_reachable(url, fsspec.get_filesystem_class(url.scheme))
            self._fs: Any = fsspec.filesystem(url.scheme, skip_instance_cache=True, use_listings_cache=False, **options)
        except ImportError as error:
            raise MissingExtraError(
                f"the store {url} needs a package that is not installed: {error}",
                hint="For s3: pip install 'modelcast[store]'; for others see fsspec's list of them.",
            ) from error
        if url.scheme == "s3":
            self._fs.retries = _BODY_ATTEMPTS
        self._url = url

    def check(self) -> None:
        with _explained(self._url, ""):
            try:
                self._fs.info(self._url.host)
            except FileNotFoundError as error:
                raise _no_bucket(self._url) from error
            except PermissionError:
                return  # who may read and write objects need not be allowed to ask for the bucket

    def size(self, name: str) -> int | None:
        try:
            found = self._fs.info(self._path(name))
        except FileNotFoundError as error:
            if _code(error) == "NoSuchBucket":
                raise _no_bucket(self._url) from error
            return None
        except PermissionError:
            return None  # without the right to list, S3 says so of each object that is not there: the put will tell
        return int(found["size"]) if found.get("type") == "file" and found.get("size") is not None else None

    def ask(self, name: str, start: int, end: int) -> Future[bytes]:
        path = self._path(name)
        if self._fs.async_impl:
            return asyncio.run_coroutine_threadsafe(self._read(path, start, end), self._fs.loop)
        return _now(lambda: bytes(self._fs.cat_file(path, start=start, end=end)))

    async def _read(self, path: str, start: int, end: int) -> bytes:
        try:
            return bytes(await self._fs._cat_file(path, start=start, end=end))
        except OSError as error:
            if _code(error) == "InvalidRange":
                return b""  # it ends before `start`
            if _code(error) == "NoSuchBucket":
                raise _no_bucket(self._url) from error
            raise

    def put(self, name: str, path: Path, tell: Callable[[int], None]) -> None:
        from fsspec.callbacks import Callback

        target = self._path(name)
        callback = Callback(hooks={"tell": lambda _, value, **__: tell(value)})
        if self._url.scheme == "s3":
            part = max(_PART_BYTES, -(-path.stat().st_size // _PARTS_MAX))
            self._fs.put_file(str(path), target, callback=callback, chunksize=part, ContentType=_CONTENT_TYPE)
        elif self._url.scheme in _ATOMIC:
            self._fs.put_file(str(path), target, callback=callback)
        else:
            unfinished = f"{target}.{uuid.uuid4().hex}~"
            try:
                self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(path), unfinished, callback=callback)
                self._fs.mv(unfinished, target)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._fs.rm_file(unfinished)
                raise

    def close(self) -> None:
        creator = getattr(self._fs, "_s3creator", None)
        if creator is None:
            return
        from fsspec.asyn import sync

        # Left to the garbage collector, sockets would stay open for as long as it likes.
        with contextlib.suppress(Exception):
            sync(self._fs.loop, creator.__aexit__, None, None, None, timeout=_CLOSE_TIMEOUT_S)

    def _path(self, name: str) -> str:
        return f"{self._url.path}/{name}" if self._url.scheme not in _BY_URL else f"{self._url}/{name}"


_CONTENT_TYPE: Final = "application/octet-stream"
# File systems that take whole URLs in the place of paths.
_BY_URL: Final = frozenset({"http", "https"})


def _now(read: Callable[[], bytes]) -> Future[bytes]:
    answer: Future[bytes] = Future()
    try:
        answer.set_result(read())
    except Exception as error:  # told when the answer is asked for
        answer.set_exception(error)
    return answer


def _name(entry: FileEntry) -> str:
    return f"sha256/{hex_part(entry.digest)}"


def _code(error: BaseException) -> str | None:
    """What S3 calls the error, which s3fs turned into one of Python's."""
    response = getattr(error.__cause__, "response", None)
    found = response.get("Error") if isinstance(response, Mapping) else None
    return found.get("Code") if isinstance(found, Mapping) else None


def _no_bucket(url: StoreUrl) -> StoreError:
    return StoreError(
        f"there is no bucket {url.host!r} in the store {url}",
        hint="Make it, or name another; for a store that is not Amazon's, AWS_ENDPOINT_URL says where it is.",
    )


@contextlib.contextmanager
def _explained(url: StoreUrl, name: str) -> Iterator[None]:
    """Turns what file systems and their clients raise into StoreError with what to do."""
    where = f"{url}/{name}" if name else str(url)
    try:
        yield
    except (StoreError, IntegrityError):
        raise
    except FileNotFoundError as error:
        raise (_no_bucket(url) if _code(error) == "NoSuchBucket" else _away(where, error)) from error
    except PermissionError as error:
        raise _denied(url, where, error) from error
    except Exception as error:  # clients have classes of their own, which share no base
        denied = type(error).__name__ in {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
        raise (_denied(url, where, error) if denied else _away(where, error)) from error


def _denied(url: StoreUrl, where: str, error: Exception) -> StoreError:
    return StoreError(
        f"access to {where} is denied: {error}",
        hint="Check the rights of this user on the folder."
        if url.scheme == "file"
        else "Check the credentials in the environment (for s3: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) "
        "and what they may do.",
    )


def _away(where: str, error: Exception) -> StoreError:
    return StoreError(
        f"the store did not give or take {where}: {type(error).__name__}: {str(error) or 'no answer in time'}",
        hint="Check that it is up; for an S3 store that is not Amazon's, AWS_ENDPOINT_URL says where it is.",
    )
