"""Publishing, releasing and rolling back: the only code that writes manifests and releases.

Rules:
- Every change holds the model's transactional id, and is started over when that was lost (`hold`).
- Chunks go out before, and outside, the transaction: content-addressed, a chunk without a manifest is garbage, while a
  transaction of minutes would stall every reader of the partition. Manifest and release are the transaction.
- What an upload sent stays sent: whoever is fenced meanwhile looks for what was taken away since, and sends only that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from modelcast import codec
from modelcast.errors import UsageError
from modelcast.files.store import FileStore
from modelcast.log import Log
from modelcast.records import ChunkHint, Manifest, Release
from modelcast.topics import Topics
from modelcast.trust.admission import EVERYTHING, Admission
from modelcast.trust.keys import Signer

from .change import Author, Change, Record
from .gates import GateReport
from .hold import Holder, ModelHold, ModelView
from .published import Published
from .upload import CHUNK_BYTES, Progress, Uploader, missing

if TYPE_CHECKING:
    from .prepare import PreparedModel

# Judges a version against what consumers see of its model, which it may ask for; raises GateError if the version may
# not be published.
Gate = Callable[[Callable[[], ModelView]], GateReport]

# Below Kafka's default limits of 1,000,000 bytes, with room for key and record overhead.
MAX_RECORD_BYTES = 990_000
# A partition or offset that takes as many bytes as one can.
_LARGE = (1 << 31) - 1


class RegistryWriter:
    """Publishes, releases and rolls back, starting over when fenced.

    Args:
        signers: Sign every record that is written.
        admission: Says which records of the registry to go on from.

    Attributes:
        holder: Takes the ids of models, for other changes of the same repository.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        author: Author | None = None,
        sleep: Callable[[float], None] = time.sleep,
        signers: Sequence[Signer] = (),
        admission: Admission = EVERYTHING,
    ) -> None:
        self.holder = Holder(log, topics, author=author, sleep=sleep, signers=signers, admission=admission)

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
        gate: Gate | None = None,
        store: FileStore | None = None,
    ) -> Published:
        """Puts a prepared model on the log as the next version, and releases it if asked.

        Args:
            resend: Sends files that live versions have too, which mends damaged chunks of all of them.
            store: Where the files go in the place of the log.
            gate: Asked, each time the id was taken and before anything is sent, whether this version may follow what
                consumers see of the model; raises if not.

        Raises:
            UsageError: The manifest would be too large for a record.
            GateError: The gate is closed.
            FencedError: Others took the model's id over again and again, and nothing was sent meanwhile.
            BrokerError: Kafka is not there, or a topic's limit is too small for a chunk.
            StoreError: The store is not there, or refuses.
        """
        uploader: Uploader | None = None
        sent = 0

        def plan(hold: ModelHold) -> Change[Published]:
            nonlocal uploader, sent
            manifest = self._checked(hold, prepared, message, metrics or {}, gate, store)
            hints: tuple[ChunkHint, ...] = ()
            if store is None:
                uploader = uploader or Uploader(self.holder.log, self.holder.topics, model, hold.repository)
                upload = uploader.upload(prepared.directory, prepared.files, hold.entry, progress, resend=resend)
                hints = upload.hints
                sent += upload.bytes_sent
            else:
                tell = None if progress is None else partial(progress, "upload")
                sent += store.upload(prepared.directory, prepared.files, tell, resend=resend and not sent)
            made = self._release(hold, manifest.version, message) if release else None
            published = Published(manifest, made, manifest.size_bytes, sent)
            return Change(published, (Record(manifest, hints), *([Record(made)] if made else [])))

        published = self.holder.change(model, plan, progress=lambda: sent)
        if uploader is not None:
            uploader.done()
        return published

    def rehearse(
        self,
        model: str,
        prepared: PreparedModel,
        *,
        release: bool,
        message: str = "",
        metrics: Mapping[str, float] | None = None,
        resend: bool = False,
        gate: Gate | None = None,
        store: FileStore | None = None,
    ) -> Published:
        """What `publish` would do now; takes no id, fences nobody and writes nothing.

        Returns:
            The version that would be next. Its bytes sent are the most that would be: what a broken-off upload left
            on the topic is not looked for.

        Raises:
            UsageError, GateError, BrokerError, StoreError: As for `publish`.
        """
        view = self.holder.view(model)
        manifest = self._checked(view, prepared, message, metrics or {}, gate, store)
        if store is None:
            lacking = missing(prepared.files, view.entry, resend=resend)
        else:
            lacking = store.missing(prepared.files, resend=resend)
        to_send = sum(file.size for file in lacking)
        champion = self._release(view, manifest.version, message) if release else None
        return Published(manifest, champion, manifest.size_bytes, to_send, dry_run=True)

    def release(self, model: str, version: int, *, message: str = "", renew: bool = False) -> Release:
        """Makes a version the champion; nothing is written if it is already.

        Args:
            renew: Write it again also then: consumers whose trust policy limits a release's age see that it holds. It
                takes its predecessor's place in the history that rollbacks walk.

        Raises:
            UsageError: What is to be renewed is not live.
            ModelNotFoundError, VersionNotFoundError: There is no such version.
            FencedError, BrokerError: As for `publish`.
        """

        def plan(hold: ModelHold) -> Change[Release]:
            entry = hold.image.model(model)
            entry.version(version)
            champion, restores = entry.champion, None
            if champion is not None and champion.version == version:
                if not renew:
                    return Change(champion)
                restores = champion.restores
            elif renew:
                # A job that renews a number would otherwise take a newer release back.
                live = f"{champion.id} is" if champion is not None else "nothing is"
                raise UsageError(
                    f"{model}@{version} can't be renewed: it is not live, {live}",
                    hint=f"Renew what is live, or make it live without renewing: modelcast release {model} {version}",
                )
            release = self._release(hold, version, message, restores=restores)
            return Change(release, (Record(release),))

        return self.holder.change(model, plan)

    def rollback(self, model: str, *, message: str = "") -> Release:
        """Re-releases the champion before the live one; again goes further back.

        Raises:
            UsageError: There is no earlier champion.
            ModelNotFoundError, FencedError, BrokerError: As for `release`.
        """

        def plan(hold: ModelHold) -> Change[Release]:
            entry = hold.image.model(model)
            target = entry.rollback_target()
            if target is None:
                live = f"{model}@{entry.champion.version}" if entry.champion else "nothing"
                raise UsageError(
                    f"{model!r} has no earlier champion to go back to ({live} is live)",
                    hint=f"See its releases with: modelcast history {model}",
                )
            release = self._release(hold, target.version, message, restores=target.origin)
            return Change(release, (Record(release),))

        return self.holder.change(model, plan)

    def _checked(
        self,
        hold: ModelView,
        prepared: PreparedModel,
        message: str,
        metrics: Mapping[str, float],
        gate: Gate | None,
        store: FileStore | None,
    ) -> Manifest:
        """The next version's manifest, once the gate let it through and a record can hold it."""
        report = GateReport() if gate is None else gate(partial(self._seen, hold))
        manifest = Manifest(
            repository=hold.repository,
            model=hold.model,
            version=hold.image.next_version(hold.model),
            created_ms=self.holder.author.now_ms(),
            created_by=self.holder.author.name,
            message=message,
            files=prepared.files,
            chunk_bytes=CHUNK_BYTES,
            signature=prepared.signature,
            ir_version=prepared.ir_version,
            opsets=prepared.opsets,
            tolerance=prepared.tolerance,
            probe=prepared.probe,
            frameworks=prepared.frameworks,
            metrics={**metrics, **report.metrics},
            gates=report.passed,
            store=None if store is None else store.url,
        )
        _check_size(manifest)
        return manifest

    def _seen(self, hold: ModelView) -> ModelView:
        """What consumers see of the model; the writer goes on also from what waits for others' signatures."""
        consumers = self.holder.strictly()
        return hold if consumers.admission is self.holder.admission else consumers.view(hold.model)

    def _release(self, hold: ModelView, version: int, message: str, *, restores: int | None = None) -> Release:
        return Release(
            repository=hold.repository,
            model=hold.model,
            sequence=hold.image.next_sequence(hold.model),
            version=version,
            created_ms=self.holder.author.now_ms(),
            created_by=self.holder.author.name,
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
