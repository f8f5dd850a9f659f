"""Holding one model's transactional id: certain numbers, one transaction, and starting over when fenced.

Rules:
- Every change holds the model's transactional id. Taking it fences whoever held it and ends what a dead holder left.
- After taking it, the registry is read to its true end, so the next version and sequence numbers are certain.
- What must stand together is one transaction: records of the registry, and tombstones of chunks that nothing lists any
  more. A tombstone outside a transaction could land after its writer was fenced and take chunks of a later version.
- Whoever is fenced, or does not learn its commit's outcome, starts over from the taking of the id. Attempts are bounded
  as long as they get nowhere: a release made by someone else must never end an upload of an hour.
- A commit whose answer was lost is recognised by what it wrote, so it is never done twice.
- Every record is signed by all keys this publisher was given. Under a trust policy it goes on from what that admits,
  and writes nothing that would not be admitted, but for a threshold that others' signatures are yet to meet.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from modelcast import codec
from modelcast.errors import BrokerError, FencedError, ModelcastError, OutcomeUnknownError, UsageError
from modelcast.log import Log, TransactionalWriter
from modelcast.registry.image import ModelEntry, RegistryImage
from modelcast.registry.reader import RegistryReader
from modelcast.registry.repository import CATCH_UP_TIMEOUT_S
from modelcast.topics import Topics
from modelcast.trust.admission import EVERYTHING, Admission, Verdict
from modelcast.trust.keys import Signer

from .change import Author, Change, Record, Tombstone

T = TypeVar("T")

# A registry transaction is a few small records. A dead one stalls readers for this long plus the broker's sweep.
TRANSACTION_TIMEOUT_MS = 10_000
# Two publishers of one model that fence each other in turn both end: attempts are bounded, and spaced at random.
MAX_ATTEMPTS = 8
# Attempts that got somewhere start the count anew; so many in all bound what someone who deletes in a loop can cause.
MAX_ATTEMPTS_IN_ALL = 100
# The pause before another attempt grows with each that got nowhere, up to some seconds.
_BACKOFF_S = 0.5
_MAX_BACKOFFS = 4


class ModelView:
    """The registry at one moment, as far as it matters to one model."""

    def __init__(self, model: str, image: RegistryImage) -> None:
        self.model = model
        self.image = image

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


class ModelHold(ModelView):
    """One hold of a model's transactional id, with the registry as it was after taking it.

    Args:
        reader: The registry's reader; it stays the caller's, and reads on from where it stands.
        signers: Sign every record.
        admission: Has to admit every record.

    Raises:
        FencedError: Another took the id in the same moment.
        BrokerError: The registry's end was not reached in time.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        model: str,
        reader: RegistryReader,
        *,
        signers: Sequence[Signer] = (),
        admission: Admission = EVERYTHING,
    ) -> None:
        self._topics = topics
        self._signers, self._admission = signers, admission
        self._writer: TransactionalWriter = log.transactional_writer(
            topics.publisher_id(model), timeout_ms=TRANSACTION_TIMEOUT_MS
        )
        try:
            super().__init__(model, reader.catch_up(CATCH_UP_TIMEOUT_S))
        except BaseException:
            self._writer.close()
            raise

    def commit(self, records: Sequence[Record], tombstones: Sequence[Tombstone] = ()) -> None:
        """Writes registry records and chunk tombstones in one transaction.

        Raises:
            UsageError: The trust policy would not admit a record.
            FencedError, OutcomeUnknownError, BrokerError: As `TransactionalWriter.commit`.
        """
        values: list[tuple[bytes, bytes]] = []
        for record in records:
            envelope = record.envelope(self._signers)
            check_admitted(self.model, self._admission.judge(self.model, envelope))
            values.append((record.key.encode(), codec.encode_envelope(envelope)))
        self._writer.begin()
        try:
            for key, value in values:
                self._writer.send(self._topics.registry, key=key, value=value, partition=0)
            for tombstone in tombstones:
                self._writer.send(self._topics.blobs, key=tombstone.key, value=None, partition=tombstone.partition)
        except BaseException:
            self._writer.abort()
            raise
        self._writer.commit()

    def close(self) -> None:
        self._writer.close()


class Holder:
    """Takes models' ids, one after another, for whoever wants to change them.

    Args:
        signers: Sign every record that is written.
        admission: Says which records of the registry to go on from; it has to admit what is written.
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
        self.log = log
        self.topics = topics
        self.author = author or Author.here()
        self.signers = tuple(signers)
        self.admission = admission
        self._sleep = sleep

    def change(self, model: str, plan: Callable[[ModelHold], Change[T]], *, progress: Callable[[], int] = int) -> T:
        """Writes what `plan` makes of a hold, once, however often it has to be planned anew.

        Raises:
            UsageError: The trust policy would not admit what these signers sign.
            FencedError, BrokerError: As `holding`; and whatever `plan` raises.
        """
        # Before the plan, which may upload for an hour.
        check_admitted(model, self.admission.vouch(model, [signer.key_id for signer in self.signers]))
        made: list[Change[T]] = []

        def attempt(hold: ModelHold) -> T:
            for earlier in made:
                if all(record.stands_in(hold.entry) for record in earlier.records):
                    return earlier.result
            change = plan(hold)
            if change.records:
                made.append(change)
                hold.commit(change.records)
            return change.result

        return self.holding(model, attempt, progress=progress)

    def holding(self, model: str, attempt: Callable[[ModelHold], T], *, progress: Callable[[], int] = int) -> T:
        """Calls `attempt` with a hold of the model's id, again when it was fenced or its commit was not answered.

        Args:
            attempt: Decides anew each time, from the hold's registry.
            progress: How far the attempts have got together, in any unit; while it grows, they are not counted.

        Raises:
            FencedError: Others took the id over, MAX_ATTEMPTS times without any progress.
            BrokerError: Kafka is not there, or never said whether a change was committed.
        """
        error: ModelcastError | None = None
        idle, reached = 0, progress()
        reader = self.open_reader(model)  # one for all attempts: the later ones read only what came meanwhile
        try:
            for _ in range(MAX_ATTEMPTS_IN_ALL):
                try:
                    hold = ModelHold(
                        self.log, self.topics, model, reader, signers=self.signers, admission=self.admission
                    )
                    try:
                        return attempt(hold)
                    finally:
                        hold.close()
                except (FencedError, OutcomeUnknownError) as failed:
                    # Once in doubt, always: whoever is fenced afterwards may not have come to look what landed.
                    error = error if isinstance(error, OutcomeUnknownError) else failed
                before, reached = reached, progress()
                idle = idle + 1 if reached <= before else 0
                if idle == MAX_ATTEMPTS:
                    break
                # At random, so that rivals that woke together do not go on together.
                pause = _BACKOFF_S * min(idle + 1, _MAX_BACKOFFS) * (0.5 + random.random())  # noqa: S311  no secret
                self._sleep(pause)
        finally:
            reader.close()
        if isinstance(error, FencedError):
            raise FencedError(
                f"other changes of {model!r} took over again and again ({MAX_ATTEMPTS} times without any progress "
                "of this one); nothing of it is visible",
                hint="Run one publisher of a model at a time, or try again when the other is done.",
            ) from error
        raise BrokerError(
            f"the broker did not answer whether the change of {model!r} was committed",
            hint=f"See what is there with: modelcast history {model}",
        ) from error

    def strictly(self) -> Holder:
        """The same, seeing what consumers see: what still waits for signatures of others does not count."""
        return Holder(
            self.log,
            self.topics,
            author=self.author,
            sleep=self._sleep,
            signers=self.signers,
            admission=self.admission.strictly(),
        )

    def verdict(self, model: str) -> Verdict:
        """What consumers under the policy say of a record of `model` that these signers signed, and nobody else."""
        return self.admission.strictly().vouch(model, [signer.key_id for signer in self.signers])

    def view(self, model: str) -> ModelView:
        """The registry as it is now; takes no id and fences nobody. Raises BrokerError, RepositoryNotFoundError."""
        reader = self.open_reader(model)
        try:
            return ModelView(model, reader.catch_up(CATCH_UP_TIMEOUT_S))
        finally:
            reader.close()

    def open_reader(self, model: str) -> RegistryReader:
        """A reader of what the registry says of a model, from its beginning; the caller closes it."""
        return RegistryReader(self.log, self.topics, admission=self.admission, wanted={model}.__contains__)


def check_admitted(model: str, verdict: Verdict) -> None:
    """Raises UsageError if a record of `model` would count for nothing."""
    if not verdict.admitted:
        raise UsageError(
            f"consumers under the trust policy would refuse this record of {model!r} ({verdict.reason}): "
            f"{verdict.message}",
            hint="Name a key that the policy trusts for this model: --sign KEY",
        )
