"""What the registry last said of a model, kept on this host: an application starts from it where Kafka is away.

    <cache>/registry/<scope>/<model>.json       one line with the SHA-256 of the rest, then the rest
    <cache>/registry/<scope>.lock               held while one of them is written

- What is kept are the records as they stand on the topic, envelopes and all: whoever reads them again judges
  signatures, revocation and expiry by the policy of that moment.
- Kept of a model: its champion, the releases that a row of rollbacks would restore, the versions these name, and the
  pinned ones; not its whole history.
- A scope is a cluster and a topic prefix. Files of another scope, damaged ones and such that can't be read count for
  nothing, and a warning says so.
- A file's time is when the registry was last known to say no more than it: it is touched as long as that is so.
- What an older image says never takes the place of what a newer one said: several processes share the folder.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from modelcast import codec
from modelcast.config import Connection
from modelcast.errors import CacheError, UsageError, WireError
from modelcast.folders import cache_folder
from modelcast.json_data import read_json
from modelcast.log import LogRecord
from modelcast.names import check_model_name
from modelcast.records import FORMAT_VERSION, Release, RepositoryIdentity, Withdrawn
from modelcast.registry.delta import RegistryDelta
from modelcast.registry.image import ModelEntry, RegistryImage, VersionRecord
from modelcast.replacing import replace_file
from modelcast.topics import REPOSITORY_KEY, RegistryKey
from modelcast.trust.admission import Admission

LOGGER: Final = logging.getLogger("modelcast.control")

# Versions kept of a model beside the pinned ones: each is there to serve where all before it are refused.
MAX_VERSIONS: Final = 8
# Releases looked at for them: the same few versions may have been released again and again.
MAX_RELEASES_WALKED: Final = 1_000
# A record has at most a megabyte, most a few kilobytes.
MAX_FILE_BYTES: Final = 32 << 20
# Models whose files are looked into at a start without Kafka beside those subscribed to, the latest: a pattern may
# stand for them. Reading one takes a millisecond, and the start has two seconds.
MAX_OTHERS: Final = 200
# Files in a scope's folder; the longest untouched are removed.
MAX_FILES: Final = 1_000
# Another process holds the lock for one small write; whoever waits longer than this waits for a stopped process, and
# holds up what was released.
LOCK_TIMEOUT_S: Final = 1.0

_SUFFIX: Final = ".json"


@dataclass(frozen=True, slots=True)
class Need:
    """A record to be kept.

    Attributes:
        offset: Where it stands; None where only what it says is known.
        payload: What it says, where it is not known where it stands.
    """

    key: bytes
    offset: int | None = None
    payload: Withdrawn | RepositoryIdentity | None = None

    @property
    def place(self) -> tuple[bytes, int | None]:
        """What tells it from others."""
        return self.key, self.offset

    def is_met_by(self, record: LogRecord) -> bool:
        """Whether a record is the one."""
        if record.key != self.key or record.value is None:
            return False
        if self.offset is not None:
            return record.offset == self.offset
        try:
            return codec.unseal(codec.decode_envelope(record.value)) == self.payload
        except (WireError, UsageError):
            return False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The records kept of one model, in the topic's order.

    Attributes:
        revision: Of the image they were chosen by: up to there the registry was read.
        read_ms: When the registry was last known to say no more of the model; 0 for one that was not written yet.
    """

    model: str
    revision: int
    records: tuple[LogRecord, ...]
    read_ms: int = 0

    @property
    def content(self) -> tuple[tuple[int, bytes | None, bytes | None], ...]:
        """The records, without what is of no account: two with the same say the same."""
        return tuple((record.offset, record.key, record.value) for record in self.records)

    @property
    def repository(self) -> str:
        """The UUID that the repository record names; empty if there is none."""
        for record in self.records:
            if record.key == REPOSITORY_KEY and record.value is not None:
                try:
                    payload = codec.unseal(codec.decode_envelope(record.value))
                except (WireError, UsageError):
                    continue
                if isinstance(payload, RepositoryIdentity):
                    return payload.uuid
        return ""


def needs_of(image: RegistryImage, model: str, pinned: Collection[int] = ()) -> tuple[Need, ...]:
    """What is to be kept of a model, the repository record first; nothing of one that the image does not hold."""
    entry = image.models.get(model)
    if entry is None or image.repository is None:
        return ()
    releases = _releases(entry)
    numbers = dict.fromkeys((*(release.version for release in releases), *sorted(pinned)))
    return (
        Need(REPOSITORY_KEY, payload=image.repository),
        *(_release_need(entry, release) for release in releases),
        *_version_needs(entry, numbers),
    )


def image_of(snapshots: Iterable[Snapshot], admission: Admission) -> RegistryImage | None:
    """What snapshots say under a policy; None if they hold no repository that counts.

    Where they are of several repositories, because the topic was made anew, the one read last counts.
    """
    latest = sorted(snapshots, key=lambda snapshot: snapshot.read_ms, reverse=True)
    repository = latest[0].repository if latest else ""
    records = {
        record.offset: record for snapshot in latest if snapshot.repository == repository for record in snapshot.records
    }
    delta = RegistryDelta(RegistryImage(), admission)
    for offset in sorted(records):
        delta.replay(records[offset])
    image = delta.apply()
    if image.repository is None or image.repository.format_version > FORMAT_VERSION:
        return None
    return image


class SnapshotStore:
    """The snapshots of one scope; safe for several processes.

    Args:
        folder: Of all scopes; made when first written to.
        scope: What tells this registry from others: the cluster and the prefix, in words.
    """

    def __init__(self, folder: Path, scope: str) -> None:
        self._scope = scope
        self._folder = folder / hashlib.sha256(scope.encode()).hexdigest()[:32]
        self._is_swept = False

    @classmethod
    def of(cls, connection: Connection, cache_dir: Path | None = None) -> SnapshotStore:
        """Of a cluster, by the names its brokers are reached under, and a prefix.

        Args:
            cache_dir: Folder of the model cache; None for the user's.
        """
        servers = sorted({name.strip().lower() for name in connection.bootstrap_servers.split(",")})
        folder = cache_folder() / "models" if cache_dir is None else cache_dir
        return cls(folder / "registry", f"{connection.prefix} at {','.join(servers)}")

    def save(self, snapshot: Snapshot) -> bool:
        """Puts a snapshot in the place of the model's last one; False if that one is of a newer image, and another.

        Raises:
            CacheError: The folder can't be written.
        """
        path = self._path(snapshot.model)
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            known = self._read(path)
            if known is not None and known.content == snapshot.content:
                os.utime(path)
                return True
            with FileLock(self._folder.with_suffix(".lock"), timeout=LOCK_TIMEOUT_S):
                known = self._read(path)
                if known is not None and known.revision > snapshot.revision and known.repository == snapshot.repository:
                    return known.content == snapshot.content
                replace_file(path, _encode(self._scope, snapshot))
                if not self._is_swept:
                    self._sweep()
        except (OSError, Timeout) as error:
            raise CacheError(
                f"what the registry says of {snapshot.model!r} can't be kept in {self._folder}: {error}",
                hint="Make the cache folder writable: without it, nothing starts while Kafka is away.",
            ) from error
        return True

    def touch(self, models: Iterable[str]) -> None:
        """Says that the registry was just read, and says no more of these models than what is kept."""
        for model in models:
            try:
                os.utime(self._path(model))
            except OSError as error:
                LOGGER.debug("the snapshot of %s can't be touched: %s", model, error)

    def load(self, models: Collection[str]) -> tuple[Snapshot, ...]:
        """What is kept of these models, and of others, the latest of them; what can't be used is left out."""
        paths = {self._path(model): None for model in models}
        others = [path for path in self._files() if path not in paths][:MAX_OTHERS]
        found = (self._read(path) for path in (*paths, *others))
        return tuple(snapshot for snapshot in found if snapshot is not None)

    def _path(self, model: str) -> Path:
        return self._folder / f"{check_model_name(model)}{_SUFFIX}"

    def _files(self) -> list[Path]:
        """Files of the scope, the last touched first."""
        try:
            with os.scandir(self._folder) as entries:
                times = {Path(entry.path): entry.stat().st_mtime for entry in entries if entry.name.endswith(_SUFFIX)}
        except OSError:
            return []
        return sorted(times, key=lambda path: times[path], reverse=True)

    def _read(self, path: Path) -> Snapshot | None:
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
                read_ms = os.fstat(file.fileno()).st_mtime_ns // 1_000_000
            return _decode(data, self._scope, path.name.removesuffix(_SUFFIX), read_ms)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            LOGGER.warning("%s can't be used, and counts for nothing: %s", path, error)
            return None

    def _sweep(self) -> None:
        """Once a process: it looks at every file."""
        self._is_swept = True
        for path in self._files()[MAX_FILES:]:
            path.unlink(missing_ok=True)


def _releases(entry: ModelEntry) -> tuple[Release, ...]:
    """The champion, then what a row of rollbacks would restore: the last release of each version."""
    found: dict[int, Release] = {}
    limit = entry.latest_sequence + 1
    for release in reversed(entry.releases[-MAX_RELEASES_WALKED:]):
        if release.sequence < limit and len(found) < MAX_VERSIONS:
            found.setdefault(release.version, release)
            limit = release.origin
    return tuple(found.values())


def _release_need(entry: ModelEntry, release: Release) -> Need:
    key = RegistryKey("release", entry.name, release.sequence).encode()
    return Need(key, entry.standings[release.sequence].offset)


def _version_needs(entry: ModelEntry, numbers: Iterable[int]) -> Iterator[Need]:
    for number in numbers:
        key = RegistryKey("version", entry.name, number).encode()
        match entry.versions.get(number):
            case VersionRecord() as record:
                yield Need(key, record.offset)
            case Withdrawn() as record:
                yield Need(key, payload=record)


def _encode(scope: str, snapshot: Snapshot) -> bytes:
    body = json.dumps(
        {
            "scope": scope,
            "model": snapshot.model,
            "revision": snapshot.revision,
            "records": [
                {"offset": record.offset, "key": _text(record.key or b""), "value": _text(record.value or b"")}
                for record in snapshot.records
            ],
        }
    ).encode()
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _decode(data: bytes, scope: str, model: str, read_ms: int) -> Snapshot:
    """Raises ValueError: it is damaged, too large, or of something else."""
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes")
    found, _, body = data.partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != found:
        raise ValueError("it is damaged: its digest is another")
    match read_json(body):
        case {"scope": str(of), "model": str(name), "revision": int(revision), "records": list(records)}:
            if (of, name) != (scope, model):
                raise ValueError(f"it is of {name} at {of}")
            return Snapshot(model, revision, tuple(_record(entry) for entry in records), read_ms)
        case _:
            raise ValueError("it is no snapshot of a registry")


def _record(entry: object) -> LogRecord:
    match entry:
        case {"offset": int(offset), "key": str(key), "value": str(value)} if offset >= 0:
            return LogRecord("", 0, offset, 0, base64.b64decode(key), base64.b64decode(value))
        case _:
            raise ValueError("a record of it has no offset, key or value")


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
