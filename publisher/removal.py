"""`delete` and `gc`: versions withdrawn for ever, and chunks that nothing lists any more taken off the topic.

Rules:
- The live version can't be deleted; one that was live, and that a rollback may want, only by force.
- A withdrawn record and the tombstones of chunks are one transaction of the model's id, so that a publisher that counts
  on a chunk is fenced by whoever takes it away, starts over and sends it again.
- Where there are too many tombstones for one transaction, the version is withdrawn by the first: a process that is
  killed between two leaves garbage, never half a version.
- Tombstones take effect when the broker compacts. Until then a reader in mid-fetch finds everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelcast.blobs import chunk_count
from modelcast.errors import BrokerError, FencedError, UsageError
from modelcast.log import Log
from modelcast.names import ModelRef, ModelVersion
from modelcast.records import Manifest, Withdrawn
from modelcast.registry.image import ModelEntry
from modelcast.topics import Topics, blob_partition
from modelcast.trust.admission import EVERYTHING

from .change import Record, Tombstone
from .garbage import Listing, Progress, StoredFile, Survey, declared, listed_files, live_files, tombstones
from .hold import Holder, ModelHold

# Uploads that were broken off are taken up within a day, or not at all.
GRACE_S = 24 * 3600.0
# Some 150 bytes each: a transaction of a megabyte is written long before it times out, and stalls nobody.
TOMBSTONES_PER_TRANSACTION = 5_000
# A manifest declares what it likes. Above 256 GiB in whole chunks, only gc takes off what really lies there.
MAX_DECLARED_CHUNKS = 1 << 20


@dataclass(frozen=True, slots=True)
class Removed:
    """A version that is withdrawn.

    Attributes:
        record: What stands in its place for ever.
        chunks: Chunks that were given up, in all; 0 if the version had been withdrawn before.
        bytes: What they hold.
        repeated: Whether it had been withdrawn before.
        left: Whether chunks were left to `gc`: somebody else took the model over, the broker went away, or what others
            list is not known.
        store: Where its files stay, if they are not on the log.
    """

    record: Withdrawn
    chunks: int = 0
    bytes: int = 0
    repeated: bool = False
    left: bool = False
    store: str | None = None

    @property
    def id(self) -> ModelVersion:
        return ModelVersion(self.record.model, self.record.version)


@dataclass(frozen=True, slots=True)
class Garbage:
    """What one model has that nothing lists."""

    model: str
    chunks: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Collected:
    """What was taken off the topic; with `dry_run` what would be.

    Attributes:
        busy: Models left alone because others changed them again and again.
        unread: Models left alone because a record of theirs can't be read: it may list anything.
    """

    models: tuple[Garbage, ...]
    busy: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    dry_run: bool = False

    @property
    def chunks(self) -> int:
        return sum(model.chunks for model in self.models)

    @property
    def bytes(self) -> int:
        return sum(model.bytes for model in self.models)


class Remover:
    """Deletes versions and collects garbage of one repository."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder

    @property
    def _log(self) -> Log:
        return self._holder.log

    @property
    def _topics(self) -> Topics:
        return self._holder.topics

    def delete(self, model: str, version: int, *, message: str = "", force: bool = False) -> Removed:
        """Withdraws a version for ever and takes off the chunks that no other version of the model lists.

        Args:
            message: The reason, which whoever asks for the version is told.
            force: Deletes a version that was live once too.

        Raises:
            UsageError: It is live; or was live, and `force` is not given; or is signed, and no key is given.
            ModelNotFoundError, VersionNotFoundError: There is no such version.
            FencedError, BrokerError: As for a release; nothing is deleted.
        """
        deletion = _Deletion(self._holder, model, version, message, force=force)
        return self._holder.holding(model, deletion.attempt)

    def collect(
        self, *, grace_s: float = GRACE_S, dry_run: bool = False, progress: Progress | None = None
    ) -> Collected:
        """Takes off every chunk that no version of its model lists and whose file got none for `grace_s`.

        Args:
            dry_run: Writes nothing and takes no id.
            progress: Told (records passed, records in all) while the topic is read.

        Raises:
            BrokerError: A topic can't be read, or Kafka refused.
        """
        survey, listing = Survey(self._log, self._topics), Listing(self._log, self._topics)
        survey.read_on(progress)
        listing.read_on()
        holder = self._holder.strictly()  # a version counts until its withdrawal has all its signatures
        before_ms = holder.author.now_ms() - int(grace_s * 1000)
        found: list[Garbage] = []
        busy: list[str] = []
        unread: list[str] = []
        for model in survey.models():
            garbage = survey.garbage(model, listing.files(model), before_ms)
            if not garbage:
                continue
            if not listing.is_whole(model):
                unread.append(model)
                continue
            sizes = [size for _, size in tombstones(garbage)]
            found.append(Garbage(model, len(sizes), sum(sizes)))
            if not dry_run:
                collection = _Collection(model, survey, listing, before_ms)
                try:
                    holder.holding(model, collection.attempt, progress=collection.progress)
                except FencedError:
                    busy.append(model)
                found[-1] = Garbage(model, collection.chunks, collection.bytes)
        return Collected(tuple(made for made in found if made.chunks), tuple(busy), tuple(unread), dry_run)


class _Deletion:
    """One deletion, over its attempts."""

    def __init__(self, holder: Holder, model: str, version: int, message: str, *, force: bool) -> None:
        self._holder = holder
        self._model = model
        self._version = version
        self._message = message
        self._force = force
        self._listing = Listing(holder.log, holder.topics, only=model)
        self._made: list[tuple[Withdrawn, Manifest]] = []

    def attempt(self, hold: ModelHold) -> Removed:
        seen = self._seen(hold.image.model(self._model))
        stands = seen[0].versions.get(self._version)
        if isinstance(stands, Withdrawn):
            # A commit that was not answered, and did land: what the version listed is known from before.
            ours = next((manifest for record, manifest in self._made if record == stands), None)
            return Removed(stands, repeated=True) if ours is None else self._take_off(hold, seen, stands, ours)
        manifest = hold.image.resolve(ModelRef(self._model, self._version)).manifest
        self._check(seen)
        withdrawn = Withdrawn(
            repository=hold.repository,
            model=self._model,
            version=self._version,
            created_ms=self._holder.author.now_ms(),
            created_by=self._holder.author.name,
            message=self._message,
        )
        self._made.append((withdrawn, manifest))
        return self._take_off(hold, seen, withdrawn, manifest, (Record(withdrawn),))

    def _seen(self, entry: ModelEntry) -> tuple[ModelEntry, ...]:
        """The model as the hold sees it, and as consumers do: for them nothing happened that waits for signatures."""
        if self._holder.admission is EVERYTHING:
            return (entry,)
        return entry, self._holder.strictly().view(self._model).entry

    def _take_off(
        self,
        hold: ModelHold,
        seen: tuple[ModelEntry, ...],
        withdrawn: Withdrawn,
        manifest: Manifest,
        records: Sequence[Record] = (),
    ) -> Removed:
        self._listing.read_on()
        files = {*listed_files(manifest)}
        count = sum(chunk_count(entry.size, manifest.chunk_bytes) for entry in manifest.files)
        is_known = self._listing.is_whole(self._model) and count <= MAX_DECLARED_CHUNKS
        # One of several signers must not take off what consumers still believe in.
        is_known = is_known and self._holder.verdict(self._model).admitted
        doomed: Iterator[tuple[Tombstone, int]] = iter(())
        if files and is_known:
            files -= self._listing.files(self._model, but=self._version)
            for entry in seen:
                files -= live_files(_without(entry, self._version))
            partitions = self._holder.log.topics()[self._holder.topics.blobs]
            doomed = (
                (
                    StoredFile(blob_partition(self._model, file.digest, partitions), self._model, *file).tombstone(i),
                    size,
                )
                for file in sorted(files)
                for i, size in declared(manifest, file)
            )
        chunks = freed = 0
        left = bool(files) and not is_known
        for batch in _batches(doomed):
            try:
                hold.commit(records, [tombstone for tombstone, _ in batch])
            except (FencedError, BrokerError):
                if records:  # not withdrawn yet, or not known to be: start over
                    raise
                left = True
                break
            records = ()
            chunks += len(batch)
            freed += sum(size for _, size in batch)
        return Removed(withdrawn, chunks, freed, left=left, store=manifest.store)

    def _check(self, seen: tuple[ModelEntry, ...]) -> None:
        name = ModelVersion(self._model, self._version)
        self._listing.read_on()
        if not self._holder.signers and self._listing.is_signed(self._model, self._version):
            raise UsageError(
                f"{name} is signed: consumers under a trust policy would go on believing in it, and find no chunks",
                hint=f"Sign its withdrawal: modelcast delete {name} --sign KEY",
            )
        if any(found.champion is not None and found.champion.version == self._version for found in seen):
            raise UsageError(
                f"{name} is live and can't be deleted",
                hint=f"Release another version first: modelcast release {self._model} VERSION",
            )
        if not self._force and any(release.version == self._version for release in seen[0].releases):
            raise UsageError(
                f"{name} was live once, and a rollback may want it",
                hint=f"Delete it all the same with: modelcast delete {name} --force",
            )


class _Collection:
    """The garbage of one model taken off, over its attempts."""

    def __init__(self, model: str, survey: Survey, listing: Listing, before_ms: int) -> None:
        self._model = model
        self._survey = survey
        self._listing = listing
        self._before_ms = before_ms
        self.chunks = 0
        self.bytes = 0

    def progress(self) -> int:
        """Chunks taken off so far."""
        return self.chunks

    def attempt(self, hold: ModelHold) -> None:
        # Looked at again now that nobody else can change it: a publisher may have been at work since the survey.
        self._survey.read_on()
        self._listing.read_on()
        if not self._listing.is_whole(self._model):
            return
        listed = self._listing.files(self._model) | live_files(hold.entry)
        for batch in _batches(tombstones(self._survey.garbage(self._model, listed, self._before_ms))):
            if batch:
                hold.commit((), [tombstone for tombstone, _ in batch])
                self.chunks += len(batch)
                self.bytes += sum(size for _, size in batch)


def _batches(doomed: Iterator[tuple[Tombstone, int]]) -> Iterator[list[tuple[Tombstone, int]]]:
    """What goes into one transaction after another; the first may be empty."""
    yield list(itertools.islice(doomed, TOMBSTONES_PER_TRANSACTION))
    while batch := list(itertools.islice(doomed, TOMBSTONES_PER_TRANSACTION)):
        yield batch


def _without(entry: ModelEntry, version: int) -> ModelEntry:
    versions = {number: record for number, record in entry.versions.items() if number != version}
    return ModelEntry(entry.name, versions, entry.releases)
