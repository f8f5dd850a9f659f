"""Following the registry for as long as an instance lives, through whatever happens to the broker and the topic.

- A thread of its own reads, and waits where a broker that is away makes it wait; it publishes images and never acts.
- Nothing is published before the registry was read to its true end. What a snapshot says (`snapshot.py`) is the one
  exception: where no image was read within `STALE_START_S`, or reading failed, it stands in, loudly, until one is.
- A broker that is away is waited for: the image stays, and says since when it is stale. So does one whose end can't be
  reached, because a transaction stays open before it.
- A reader that failed is replaced after a growing pause, and reads from the beginning.
- A topic that shrank, or holds records of another repository, is read anew, loudly: it was truncated or made again.
- Where the trust policy changed, other records count: the registry is read anew under it, and until that is done the
  image is the one before. A snapshot is judged anew at once.
- Of a large registry (`reader.MANY_RECORDS`) only the records of models that are wanted are read: where one is wanted
  that was passed over, the registry is read anew, too.

    follower = RegistryFollower(log, topics, clock=time.monotonic, on_change=wake.set).start()
    ticket = follower.ask_end()
    follower.known, follower.has_read(ticket)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Self

from modelcast.errors import BrokerError, RepositoryNotFoundError, TopicNotFoundError
from modelcast.log import Log, LogRecord
from modelcast.names import ModelRef
from modelcast.registry.image import RecordFault, RegistryImage
from modelcast.registry.reader import RegistryReader
from modelcast.topics import Topics
from modelcast.trust.admission import Admission
from modelcast.trust.watch import NO_POLICY, Watch

from .keeper import Keeper
from .policy import retry_delay_s
from .snapshot import Snapshot, SnapshotStore, image_of

LOGGER: Final = logging.getLogger("modelcast.control")

# Another model's publisher may have died in its transaction: its timeout and the broker's sweep take 20 s together.
CATCH_UP_TIMEOUT_S: Final = 30.0
# How often the broker is asked for the registry's end: that tells a quiet registry from one that is away or shrank.
PROBE_S: Final = 5.0
# Records of another repository may mean that the topic was made anew; whoever writes such records on purpose makes us
# read the registry again no more often than this.
REREAD_S: Final = 30.0
# After how long without an image a snapshot stands in. A broker that is there mostly answers in a tenth of a second; a
# model is to be live two seconds after a start without one.
STALE_START_S: Final = 0.75
# A broker that came back is found no later than this.
MAX_REOPEN_S: Final = 5.0
# A record ends the wait at once; this is how soon `close` and `ask_end` are noticed.
POLL_WAIT_S: Final = 0.1
CLOSE_TIMEOUT_S: Final = 2.0
# The same where the broker is away: the thread waits for it in the client library, and whoever ends waits for nothing.
AWAY_TIMEOUT_S: Final = 0.2
# Models named in one line of a log.
MAX_NAMED: Final = 10
_REGISTRY_PARTITION: Final = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the registry, as one value.

    Attributes:
        admission: What the image was made under.
        is_snapshot: It is what was kept on this host; the registry was not read yet.
        read_at_s: Of a snapshot, when each model's records were last known to be all, in seconds of the follower's
            clock.
    """

    image: RegistryImage
    admission: Admission
    is_snapshot: bool = False
    read_at_s: Mapping[str, float] = field(default_factory=dict)


class RegistryFollower:
    """The newest image of one registry; `turn` is for one thread and never raises, all else is for all threads.

    Args:
        clock: Monotonic seconds.
        now_ms: Epoch milliseconds.
        trust: Which records count; looked at every `PROBE_S`.
        snapshots: Where what is known is kept for a start without Kafka; None for whoever may not start so.
        refs: What is subscribed to: their models' records are kept there.
        wanted: Says, as things stand, of which models the image must be; by default of all. Whoever comes to want
            more asks for the end then.
        on_change: Called on a thread of the follower's after a new image, a fault and its end.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        clock: Callable[[], float],
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
        trust: Watch = NO_POLICY,
        snapshots: SnapshotStore | None = None,
        refs: Callable[[], Collection[ModelRef]] = tuple,
        wanted: Callable[[], Callable[[str], bool]] | None = None,
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        self._trust = trust
        self._admission = trust.admission
        self._log = log
        self._topics = topics
        self._clock, self._now_ms = clock, now_ms
        self._snapshots, self._refs = snapshots, refs
        self._wanted = wanted
        self._keeper = None if snapshots is None else Keeper(snapshots, refs)
        self._on_change = on_change
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()  # of `_known` and `_asked`, which two threads write
        self._standing_in = threading.Lock()  # held until what was kept is published
        self._stood_in_on: tuple[Admission, frozenset[str]] | None = None
        self._known: Known | None = None
        self._is_known = threading.Event()
        self._asked = self._read = 0
        self._reader: RegistryReader | None = None
        self._others: frozenset[str] = frozenset()
        self._fault: Exception | None = None
        self._failures = 0
        self._reopen_at_s = self._probe_at_s = self._search_at_s = clock()
        self._opened_at_s = 0.0
        self._awaited_end: tuple[int, float] | None = None  # and since when
        self._trust_at_s = clock() + PROBE_S
        self._stale_since_s: float | None = None

    # -- for any thread

    def start(self) -> Self:
        """Starts the registry's thread; once."""
        if self._thread is not None:
            raise RuntimeError("this follower was started before")
        self._thread = threading.Thread(target=self._run, name="modelcast-registry", daemon=True)
        self._thread.start()
        if self._snapshots is not None:
            # The registry's thread may be waiting for the broker when the time is up.
            threading.Thread(target=self._await_first, name="modelcast-registry-start", daemon=True).start()
        return self

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Ends the thread and lets go of the reader; a thread that waits for the broker ends after that by itself."""
        self._stop.set()
        self._is_known.set()
        if self._thread is None:
            self._drop_reader()
        else:
            is_waiting = self._fault is not None or self.is_snapshot
            self._thread.join(min(timeout_s, AWAY_TIMEOUT_S) if is_waiting else timeout_s)

    def ask_end(self) -> int:
        """Asks for the registry to be read to the end it has now; the ticket is for `has_read`."""
        with self._lock:
            self._asked += 1
            return self._asked

    def has_read(self, ticket: int) -> bool:
        """Whether the registry was read to an end taken after the ticket was, and `known` holds all that."""
        return self._read >= ticket

    @property
    def known(self) -> Known | None:
        """Image and admission, which belong together; None before there is an image."""
        return self._known

    @property
    def image(self) -> RegistryImage | None:
        """The registry as last read, or as a snapshot says; None before it was read to its end."""
        known = self._known
        return None if known is None else known.image

    @property
    def is_snapshot(self) -> bool:
        """Whether the image is what was kept on this host: the registry was not read since the start."""
        known = self._known
        return known is not None and known.is_snapshot

    @property
    def fault(self) -> Exception | None:
        """What keeps the registry from being followed; None while it is."""
        return self._fault

    @property
    def stale_s(self) -> float:
        """Seconds since the registry could last be followed, in an earlier process too; 0 while it is."""
        return max((self.stale_s_of(ref.model) for ref in self._refs()), default=self.stale_s_of(""))

    def stale_s_of(self, model: str) -> float:
        """The same of what is known of one model: snapshots of models may be of different times."""
        known, since = self._known, self._stale_since_s
        if known is not None and known.is_snapshot:
            since = known.read_at_s.get(model, max(known.read_at_s.values()))
        return 0.0 if since is None else max(0.0, self._clock() - since)

    # -- the registry's thread

    def turn(self, wait_s: float) -> None:
        """Takes what has arrived, waiting at most `wait_s` for it, or reads to the end if that was asked for."""
        try:
            now = self._clock()
            self._look_at_policy(now)
            if self._reader is None:
                if now < self._reopen_at_s:
                    self._stop.wait(min(wait_s, self._reopen_at_s - now))
                else:
                    self._open()
                return
            asked = self._asked
            if self._lacks_models(asked):
                self._drop_reader()
                self._open()
            elif asked > self._read:
                self._take(self._reader.catch_up(CATCH_UP_TIMEOUT_S), read=asked)
            elif (image := self._reader.poll(wait_s)) is not None:
                self._take(image)
            self._probe()
            self._search()
        except Exception as error:  # whatever it is, the live versions stay and the next turn tries again
            self._lose(error)

    def _run(self) -> None:
        while not self._stop.is_set():
            self.turn(POLL_WAIT_S)
        self._drop_reader()

    def _lacks_models(self, asked: int) -> bool:
        """Whether records were passed over that are wanted by now; looked at where either changed."""
        if self._wanted is None or self._reader is None:
            return False
        before, self._others = self._others, self._reader.image.others
        return (asked > self._read or self._others is not before) and any(map(self._wanted(), self._others))

    def _look_at_policy(self, now: float) -> None:
        if now < self._trust_at_s:
            return
        self._trust_at_s = now + PROBE_S
        if self._trust.changed():
            self._drop_reader()
            self._reopen_at_s = now
            if self.is_snapshot:
                self._stand_in()

    def _open(self) -> None:
        admission, asked = self._trust.admission, self._asked
        if self._keeper is not None:
            self._keeper.restart()
        try:
            self._reader = RegistryReader(
                self._log,
                self._topics,
                admission=admission,
                wanted=None if self._wanted is None else self._wanted(),
                on_record=self._note,
                clock=self._clock,
            )
        except TopicNotFoundError as error:
            raise RepositoryNotFoundError(
                f"there is no modelcast repository here: {error.message}", hint="Make one with: modelcast init"
            ) from error
        image = self._reader.catch_up(CATCH_UP_TIMEOUT_S)
        before = self.image
        self._opened_at_s = self._clock()
        if before is not None and before.repository is not None and before.repository != image.repository:
            LOGGER.warning(
                "topic %s holds another repository now (%s, it was %s): its releases count from the first; what is "
                "live stays until one of them can serve",
                self._topics.registry,
                image.repository and image.repository.uuid,
                before.repository.uuid,
            )
        elif before is not None and image.revision < before.revision:
            LOGGER.warning(
                "topic %s lost records: it ended at offset %d, and now at %d; what is live stays",
                self._topics.registry,
                before.revision,
                image.revision,
            )
        self._admission, self._awaited_end = admission, None
        self._take(image, read=asked, is_anew=True)

    def _note(self, record: LogRecord) -> None:
        if self._keeper is not None:
            self._keeper.note(record)

    def _take(self, image: RegistryImage, *, read: int | None = None, is_anew: bool = False) -> None:
        # What was learned of another topic's records, or of a snapshot's, does not count.
        before = None if is_anew else self.image
        if self._keeper is not None:
            self._keeper.keep(image)
        with self._lock:
            self._known = Known(image, self._admission)
            self._is_known.set()
        self._read = self._read if read is None else read
        self._healthy()
        self._on_change()
        fresh = _complain(image, () if before is None else before.faults)
        strange = any(fault.verdict is None for fault in fresh)  # what is not admitted says nothing of the topic
        if before is not None and strange and self._clock() - self._opened_at_s > REREAD_S:
            raise BrokerError(f"topic {self._topics.registry!r} may have been made anew: it is read from its beginning")

    def _probe(self) -> None:
        now, image = self._clock(), self.image
        if now < self._probe_at_s or image is None:
            return
        self._probe_at_s = now + PROBE_S
        try:
            end = self._log.end_offsets(self._topics.registry, committed=False)[_REGISTRY_PARTITION]
        except BrokerError as error:
            # The reader waits for the broker by itself; to read all again would help nobody.
            self._unhealthy(error)
            return
        if end < image.revision:
            raise BrokerError(f"topic {self._topics.registry!r} ends at {end}, but {image.revision} was read")
        if self._is_held_up(end, now):
            hint = "A publisher's transaction may be open."
            self._unhealthy(BrokerError(f"topic {self._topics.registry!r} can't be read to its end ({end})", hint=hint))
            return
        self._healthy()
        if self._keeper is not None and self._awaited_end is None:
            self._keeper.confirm()

    def _is_held_up(self, end: int, now: float) -> bool:
        """Whether an end that was seen `CATCH_UP_TIMEOUT_S` ago was not reached: news stands there, unread."""
        position = end if self._reader is None else self._reader.position
        if position >= end:
            self._awaited_end = None
        elif self._awaited_end is None or position >= self._awaited_end[0]:
            self._awaited_end = end, now
        return self._awaited_end is not None and now - self._awaited_end[1] > CATCH_UP_TIMEOUT_S

    def _search(self) -> None:
        now, image = self._clock(), self.image
        if self._keeper is None or image is None or now < self._search_at_s or not self._keeper.is_behind:
            return
        self._search_at_s = now + PROBE_S
        try:
            self._keeper.search(self._log, self._topics, image)
        except BrokerError as error:
            LOGGER.info("what the registry says of the models in use can't be kept yet: %s", error)

    def _healthy(self) -> None:
        was_stale, self._fault = self._stale_since_s is not None, None
        self._stale_since_s, self._failures = None, 0
        if was_stale and self._known is not None:
            LOGGER.info("the registry is followed again")
            self._on_change()

    def _unhealthy(self, error: Exception) -> None:
        if self._stale_since_s is None:
            self._stale_since_s = self._clock()
            LOGGER.warning("the registry can't be followed, what is live stays: %s", error)
        if self._known is None:
            self._stand_in()
        self._fault = error  # only now: whoever waits for a model gives up where there is a fault and no image
        self._on_change()

    def _lose(self, error: Exception) -> None:
        self._unhealthy(error)
        self._drop_reader()
        self._failures += 1
        self._reopen_at_s = self._clock() + min(retry_delay_s(self._failures), MAX_REOPEN_S)

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            try:
                reader.close()
            except Exception as error:
                LOGGER.info("a registry reader did not close well: %s", error)

    # -- starting without Kafka

    def _await_first(self) -> None:
        if not self._is_known.wait(STALE_START_S):
            self._stand_in()
            self._on_change()

    def _stand_in(self) -> None:
        """Publishes what was kept on this host, unless the registry itself was read meanwhile."""
        if self._snapshots is None:
            return
        with self._standing_in:
            basis = (self._trust.admission, frozenset(ref.model for ref in self._refs()))
            if basis == self._stood_in_on:
                return
            self._stood_in_on = basis
            try:
                self._publish_kept(self._snapshots.load(basis[1]), basis[0])
            except Exception:  # whatever lies in the folder, the registry is still to be followed
                LOGGER.exception("what this host knew of the registry can't be used")

    def _publish_kept(self, snapshots: Collection[Snapshot], admission: Admission) -> None:
        image = image_of(snapshots, admission)
        if image is not None:
            _complain(image, ())
        models = {} if image is None else image.models
        read_ms = {found.model: found.read_ms for found in snapshots if found.model in models}
        if image is None or not read_ms:
            if snapshots:
                LOGGER.warning(
                    "the registry can't be read, and what this host knew of %s does not count",
                    _named({found.model for found in snapshots}),
                )
            self._disown(admission)
            return
        now_s, now_ms = self._clock(), self._now_ms()
        read_at_s = {model: now_s - max(0, now_ms - at_ms) / 1000 for model, at_ms in read_ms.items()}
        with self._lock:
            if self._stop.is_set() or (self._known is not None and not self._known.is_snapshot):
                return
            self._known = Known(image, admission, is_snapshot=True, read_at_s=read_at_s)
            self._is_known.set()
        LOGGER.warning(
            "the registry can't be read: what this host knew of %s at %s stands in for it until it can, and nothing "
            "newer is known",
            _named(image.models),
            _time(min(read_ms.values())),
        )

    def _disown(self, admission: Admission) -> None:
        """Takes back what stands in: under another policy it counted, and nothing may be loaded by it any more."""
        with self._lock:
            known = self._known
            if known is not None and known.is_snapshot and known.admission is not admission:
                self._known = replace(known, image=RegistryImage(), admission=admission)


def _complain(image: RegistryImage, known: Collection[RecordFault]) -> list[RecordFault]:
    """Logs faults that are not known yet."""
    fresh = [fault for fault in image.faults if fault not in known]
    for fault in fresh:
        LOGGER.warning(
            "registry record at offset %d (%s) counts for nothing: %s", fault.offset, fault.key, fault.message
        )
    return fresh


def _named(models: Collection[str]) -> str:
    first = sorted(models)[:MAX_NAMED]
    return ", ".join(first) + (f" and {len(models) - len(first)} others" if len(models) > len(first) else "")


def _time(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
