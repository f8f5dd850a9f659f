"""A version's files in a folder, for any other runtime: whole and verified, or nothing.

    <folder>/model.onnx  tensors…  examples.npz      as the publisher wrote them; ONNX Runtime loads model.onnx by path
    <folder>/manifest.json                           what the registry says of the version

- The files come through this user's cache, each checked against size and digest; what another version has is not
  fetched again. They are copied: whoever writes to them harms no cache.
- The folder appears by a rename, with everything in it. An empty folder is taken; one that an earlier pull filled is
  replaced if `force` says so; anything else is never touched.

    pulled = modelcast.pull("fraud@3", "models/fraud")
    session = onnxruntime.InferenceSession(pulled.graph)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from modelcast.config import Connection
from modelcast.errors import IntegrityError, StructureError, UsageError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.files.store_url import Stores
from modelcast.folders import state_folder
from modelcast.json_data import read_json
from modelcast.log import Log
from modelcast.names import ModelRef
from modelcast.records import GRAPH_PATH, Manifest
from modelcast.registry.describe import describe
from modelcast.registry.image import VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S, check_topics
from modelcast.topics import Topics
from modelcast.trust.admission import EVERYTHING, Admission
from modelcast.trust.watch import watch_policy

MANIFEST_NAME: Final = "manifest.json"
# A description of thousands of files; what is larger was not written by a pull.
_MAX_MANIFEST_BYTES: Final = 16 << 20

# Called with bytes done and bytes in all of what is fetched.
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Pulled:
    """A version in a folder.

    Attributes:
        manifest: What the registry says of it.
        directory: The folder, absolute.
    """

    manifest: Manifest
    directory: Path

    @property
    def graph(self) -> Path:
        """The `.onnx` file; its tensors lie where it looks for them."""
        return self.directory / GRAPH_PATH


def pull(
    ref: str,
    directory: str | Path,
    bootstrap_servers: str | None = None,
    *,
    prefix: str | None = None,
    properties: Mapping[str, str] | None = None,
    properties_file: Path | None = None,
    force: bool = False,
    stores: Iterable[str] | None = None,
    trust_policy: str | Path | None = None,
    progress: Progress | None = None,
) -> Pulled:
    """Puts a version's files into a folder.

    Args:
        ref: `NAME` for the live version, or `NAME@VERSION`.
        directory: A folder that is not there yet, or is empty.
        bootstrap_servers: Kafka brokers; this and the next three as for `ModelPublisher`.
        force: Replaces what an earlier pull put there.
        stores: Stores that files of versions by reference may be read from; by default those of `MODELCAST_STORES`.
        trust_policy: Says whose signatures count; by default that of `MODELCAST_TRUST_POLICY`.
        progress: Called with bytes done and bytes in all of what is fetched.

    Raises:
        UsageError: The folder holds something, or can't be written.
        ModelNotFoundError, VersionNotFoundError: There is no such version, or none is live.
        IntegrityError: The files are not those the manifest declares.
        BrokerError, StoreError, StoreNotAllowedError, CacheError: As `Fetcher.fetch`.
    """
    connection = Connection.resolve(
        bootstrap_servers, prefix=prefix, properties=properties, properties_file=properties_file
    )
    allowed = Stores.resolve(stores)
    admission = watch_policy(trust_policy, state_folder()).admission
    with connection.open_log() as log:
        return pull_version(
            log,
            connection.topics,
            ModelRef.parse(ref),
            Path(directory),
            force=force,
            stores=allowed,
            admission=admission,
            progress=progress,
        )


def pull_version(
    log: Log,
    topics: Topics,
    ref: ModelRef,
    directory: Path,
    *,
    force: bool = False,
    stores: Stores,
    admission: Admission = EVERYTHING,
    progress: Progress | None = None,
) -> Pulled:
    """The same over an open log. Raises as `pull`."""
    directory = Path(os.path.abspath(directory.expanduser()))  # noqa: PTH100  a link stays the place that was named
    _check_place(directory, force=force)
    check_topics(log, topics)
    reader = RegistryReader(log, topics, admission=admission, wanted={ref.model}.__contains__)
    try:
        record = reader.catch_up(CATCH_UP_TIMEOUT_S).resolve(ref)
    finally:
        reader.close()
    if any(entry.path.split("/")[0] == MANIFEST_NAME for entry in record.manifest.files):
        raise StructureError(f"{record.manifest.id} has a file of its own named {MANIFEST_NAME}")
    with _fetched(log, topics, record, stores, progress) as view, _explained(directory):
        _place(view, record.manifest, directory, force=force)
    return Pulled(record.manifest, directory)


@contextlib.contextmanager
def _fetched(
    log: Log, topics: Topics, record: VersionRecord, stores: Stores, progress: Progress | None
) -> Iterator[Path]:
    cache = Cache()
    try:
        yield Fetcher(log, topics, cache, stores=stores).fetch(record, progress)
    finally:
        cache.close()


def _place(view: Path, manifest: Manifest, directory: Path, *, force: bool) -> None:
    made = [parent for parent in directory.parents if not parent.exists()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory.parent).free
    if manifest.size_bytes > free:
        raise UsageError(
            f"{manifest.id} takes {manifest.size_bytes:,} bytes, and the disk of {directory} has {free:,} free",
            hint="Free some space, or name another folder.",
        )
    # Hidden, and beside the folder: on its file system, where a rename is one step.
    beside = f".{directory.name}.{uuid.uuid4().hex[:8]}"
    partial, old = directory.with_name(f"{beside}.partial"), directory.with_name(f"{beside}.old")
    try:
        partial.mkdir()
        for entry in manifest.files:
            target = partial / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(view / entry.path, target)
            if target.stat().st_size != entry.size:
                raise IntegrityError(f"file {entry.path!r} of {manifest.id} changed while it was copied")
        (partial / MANIFEST_NAME).write_text(
            json.dumps(describe(manifest), indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
        )
        _check_place(directory, force=force)  # a fetch takes minutes: somebody may have put something there
        if directory.exists() and any(directory.iterdir()):
            directory.rename(old)
        partial.rename(directory)
    except BaseException:
        if old.exists() and not directory.exists():
            old.rename(directory)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if directory.exists():
            shutil.rmtree(old, ignore_errors=True)
        for parent in made:
            with contextlib.suppress(OSError):  # it holds what was pulled
                parent.rmdir()


def _check_place(directory: Path, *, force: bool) -> None:
    """Raises UsageError unless a pull may put a folder there."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise UsageError(f"{directory} is there and is not a folder", hint="Name a new folder.")
    if not directory.exists():
        return
    here = Path.cwd()
    if directory == here or directory in here.parents:
        raise UsageError(
            f"{directory} is the folder you are in, which can't be replaced", hint="Name a new folder: -o DIR/NAME"
        )
    found = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir()}
    if not found and not any(directory.iterdir()):
        return
    pulled = _pulled_files(directory)
    if foreign := sorted(found - pulled) or (sorted(found) if not pulled else []):
        raise UsageError(
            f"{directory} holds what no pull put there, such as {foreign[0]!r}", hint="Name a new or an empty folder."
        )
    if not force:
        raise UsageError(f"{directory} is not empty: it holds a pulled version", hint="Replace it with --force.")


def _pulled_files(directory: Path) -> frozenset[str]:
    """What an earlier pull says it put there; nothing if there was none."""
    path = directory / MANIFEST_NAME
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            return frozenset()
        told = read_json(path.read_bytes())
        return frozenset({MANIFEST_NAME, *(str(entry["path"]) for entry in told["files"])})
    except (OSError, ValueError, KeyError, TypeError):
        return frozenset()


@contextlib.contextmanager
def _explained(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"can't write {directory}: {error.strerror or error}",
            hint="Name a folder you may write, on a disk with room.",
        ) from error
