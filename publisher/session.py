"""Changing one model in the registry: the only code that writes manifests, releases and chunks.

Rules:
- Every change holds the model's transactional id. Taking it fences whoever held it and ends what a dead holder left.
- After taking it, the registry is read to its true end, so the next version and sequence numbers are certain.
- Chunks go out before, and outside, the transaction: content-addressed, a chunk without a manifest is garbage, while a
  transaction of minutes would stall every reader of the partition. Manifest and release are the transaction.
- Whoever is fenced, or does not learn its commit's outcome, starts over from the taking of the id, a bounded number of
  times. A commit whose answer was lost is recognised by what it wrote, so it is never done twice.
"""

from __future__ import annotations

import getpass
import random
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from modelcast import codec
from modelcast.errors import BrokerError, FencedError, ModelcastError, OutcomeUnknownError, UsageError
from modelcast.log import Log, TransactionalWriter
from modelcast.records import ChunkHint, Envelope, Manifest, Release
from modelcast.registry.image import ModelEntry, RegistryImage, VersionRecord
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S
from modelcast.topics import RegistryKey, Topics

from .upload import CHUNK_BYTES, Progress, Uploader

if TYPE_CHECKING:
    from .prepare import PreparedModel

T = TypeVar("T")

# A registry transaction is two small records. A dead one stalls readers for this long plus the broker's sweep.
TRANSACTION_TIMEOUT_MS = 10_000
# Two publishers of one model that fence each other in turn both end: attempts are bounded, and spaced at random.
MAX_ATTEMPTS = 5
_BACKOFF_S = 0.5
# Below Kafka's default limits of 1,000,000 bytes, with room for key and record overhead.
MAX_RECORD_BYTES = 990_000
# A partition or offset that takes as many bytes as one can.
_LARGE = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Author:
    """Who a record says made it."""

    name: str
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000

    @classmethod
    def here(cls) -> Author:
        """This user on this host."""
        return cls(f"{getpass.getuser()}@{socket.gethostname()}")


@dataclass(frozen=True, slots=True)
class Published:
    """A version that is on the log. `bytes_sent` counts chunks written by this publication only."""

    manifest: Manifest
    release: Release | None
    bytes_total: int
    bytes_sent: int


class ModelHold:
    """One hold of a model's transactional id, with the registry as it was after taking it."""

    def __init__(self, log: Log, topics: Topics, model: str) -> None:
        self.model = model
        self._log = log
        self._topics = topics
        self._writer: TransactionalWriter = log.transactional_writer(
            topics.publisher_id(model), timeout_ms=TRANSACTION_TIMEOUT_MS
        )
        try:
            reader = RegistryReader(log, topics)
            try:
                self.image: RegistryImage = reader.catch_up(CATCH_UP_TIMEOUT_S)
            finally:
                reader.close()
        except BaseException:
            self._writer.close()
            raise

    @property
    def repository(self) -> str:
        """UUID of the repository."""
        if self.image.repository is None:  # catch_up has raised for this
            raise AssertionError
        return self.image.repository.uuid

    @property
    def entry(self) -> ModelEntry:
        """What the registry says of the model; empty for a new one."""
        return self.image.models.get(self.model) or ModelEntry(self.model)

    def commit(self, manifest: Manifest | None, hints: tuple[ChunkHint, ...], release: Release | None) -> None:
        """Writes the records in one transaction. Raises FencedError, OutcomeUnknownError, BrokerError."""
        self._writer.begin()
        try:
            if manifest is not None:
                self._send(RegistryKey("version", self.model, manifest.version), codec.seal(manifest, hints=hints))
            if release is not None:
                self._send(RegistryKey("release", self.model, release.sequence), codec.seal(release))
        except BaseException:
            self._writer.abort()
            raise
        self._writer.commit()

    def close(self) -> None:
        self._writer.close()

    def _send(self, key: RegistryKey, envelope: Envelope) -> None:
        self._writer.send(self._topics.registry, key=key.encode(), value=codec.encode_envelope(envelope), partition=0)


class RegistryWriter:
    """Publishes, releases and rolls back, starting over when fenced."""

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        author: Author | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._log = log
        self._topics = topics
        self._author = author or Author.here()
        self._sleep = sleep

    def publish(
        self,
        model: str,
        prepared: PreparedModel,
        *,
        release: bool,
        message: str = "",
        metrics: Mapping[str, float] | None = None,
        resend: bool = False,
        progress: Progress | None = None,
    ) -> Published:
        """Puts a prepared model on the log as the next version, and releases it if asked.

        Args:
            resend: Sends files that live versions have too, which mends damaged chunks of all of them.

        Raises:
            UsageError: The manifest would be too large for a record.
            FencedError: Other publishers of the model took over, MAX_ATTEMPTS times.
            BrokerError: Kafka is not there, or a topic's limit is too small for a chunk.
        """
        sent = 0
        made: list[tuple[Manifest, Release | None]] = []

        def attempt(hold: ModelHold) -> Published:
            nonlocal sent
            for manifest, made_release in made:
                if _landed(hold.entry, manifest, made_release):
                    return Published(manifest, made_release, manifest.size_bytes, sent)
            manifest = self._manifest(hold, prepared, message, metrics or {})
            _check_size(manifest)
            uploader = Uploader(self._log, self._topics, model, hold.repository)
            upload = uploader.upload(prepared.directory, prepared.files, hold.entry, progress, resend=resend)
            sent += upload.bytes_sent
            champion = self._release(hold, manifest.version, message) if release else None
            made.append((manifest, champion))
            hold.commit(manifest, upload.hints, champion)
            uploader.done()
            return Published(manifest, champion, manifest.size_bytes, sent)

        return self._holding(model, attempt)

    def release(self, model: str, version: int, *, message: str = "") -> Release:
        """Makes a version the champion; nothing is written if it is already.

        Raises:
            ModelNotFoundError, VersionNotFoundError: There is no such version.
            FencedError, BrokerError: As for `publish`.
        """

        def change(hold: ModelHold) -> Release:
            entry = hold.image.model(model)
            entry.version(version)
            if entry.champion is not None and entry.champion.version == version:
                return entry.champion
            return self._release(hold, version, message)

        return self._releasing(model, change)

    def rollback(self, model: str, *, message: str = "") -> Release:
        """Re-releases the champion before the live one; again goes further back.

        Raises:
            UsageError: There is no earlier champion.
            ModelNotFoundError, FencedError, BrokerError: As for `release`.
        """

        def change(hold: ModelHold) -> Release:
            entry = hold.image.model(model)
            target = entry.rollback_target()
            if target is None:
                live = f"{model}@{entry.champion.version}" if entry.champion else "nothing"
                raise UsageError(
                    f"{model!r} has no earlier champion to go back to ({live} is live)",
                    hint=f"See its releases with: modelcast history {model}",
                )
            return self._release(hold, target.version, message, restores=target.origin)

        return self._releasing(model, change)

    def _releasing(self, model: str, change: Callable[[ModelHold], Release]) -> Release:
        made: list[Release] = []

        def attempt(hold: ModelHold) -> Release:
            for release in made:
                if release in hold.entry.releases:
                    return release
            release = change(hold)
            if release not in hold.entry.releases:
                made.append(release)
                hold.commit(None, (), release)
            return release

        return self._holding(model, attempt)

    def _holding(self, model: str, attempt: Callable[[ModelHold], T]) -> T:
        error: ModelcastError | None = None
        for number in range(MAX_ATTEMPTS):
            if number:
                self._sleep(_BACKOFF_S * number * (0.5 + random.random()))  # noqa: S311  spreads rivals, no secret
            try:
                hold = ModelHold(self._log, self._topics, model)
            except FencedError as fenced:
                error = fenced
                continue
            try:
                return attempt(hold)
            except (FencedError, OutcomeUnknownError) as failed:
                error = failed
            finally:
                hold.close()
        if isinstance(error, FencedError):
            raise FencedError(
                f"another publisher of {model!r} took over {MAX_ATTEMPTS} times; nothing of this one is visible",
                hint="Run one publisher of a model at a time, or try again when the other is done.",
            ) from error
        raise BrokerError(
            f"the broker did not answer whether the change of {model!r} was committed",
            hint=f"See what is there with: modelcast history {model}",
        ) from error

    def _manifest(
        self, hold: ModelHold, prepared: PreparedModel, message: str, metrics: Mapping[str, float]
    ) -> Manifest:
        return Manifest(
            repository=hold.repository,
            model=hold.model,
            version=hold.entry.latest_version + 1,
            created_ms=self._author.now_ms(),
            created_by=self._author.name,
            message=message,
            files=prepared.files,
            chunk_bytes=CHUNK_BYTES,
            signature=prepared.signature,
            ir_version=prepared.ir_version,
            opsets=prepared.opsets,
            tolerance=prepared.tolerance,
            probe=prepared.probe,
            frameworks=prepared.frameworks,
            metrics=metrics,
        )

    def _release(self, hold: ModelHold, version: int, message: str, *, restores: int | None = None) -> Release:
        champion = hold.entry.champion
        return Release(
            repository=hold.repository,
            model=hold.model,
            sequence=champion.sequence + 1 if champion else 1,
            version=version,
            created_ms=self._author.now_ms(),
            created_by=self._author.name,
            message=message,
            restores=restores,
        )


def _check_size(manifest: Manifest) -> None:
    """Before the first byte is sent: what can't be committed in the end would be sent for nothing."""
    places = tuple(ChunkHint(entry.digest, _LARGE, _LARGE, _LARGE) for entry in manifest.files)
    size = len(codec.encode_envelope(codec.seal(manifest, hints=places)))
    if size > MAX_RECORD_BYTES:
        raise UsageError(
            f"the manifest of {manifest.id} would take {size:,} bytes, and a record holds {MAX_RECORD_BYTES:,}",
            hint=f"It lists {len(manifest.files):,} files and a message of {len(manifest.message):,} characters.",
        )


def _landed(entry: ModelEntry, manifest: Manifest, release: Release | None) -> bool:
    record = entry.versions.get(manifest.version)
    stands = isinstance(record, VersionRecord) and record.manifest == manifest
    return stands and (release is None or release in entry.releases)
