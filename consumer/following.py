"""Following the registry for as long as an instance lives, through whatever happens to the broker and the topic.

- Nothing is published before the registry was read to its true end.
- A broker that is away is waited for: the image stays, and says since when it is stale.
- A reader that failed is replaced after a growing pause, and reads from the beginning.
- A topic that shrank, or holds records of another repository, is read anew, loudly: it was truncated or made again.
- Where the trust policy changed, other records count: the registry is read anew under it, and until that is done the
  image is the one before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from modelcast.errors import BrokerError, RepositoryNotFoundError, TopicNotFoundError
from modelcast.log import Log
from modelcast.registry.image import RegistryImage
from modelcast.registry.reader import RegistryReader
from modelcast.topics import Topics
from modelcast.trust.admission import Admission
from modelcast.trust.watch import NO_POLICY, Watch

from .policy import retry_delay_s

LOGGER: Final = logging.getLogger("modelcast.control")

# Another model's publisher may have died in its transaction: its timeout and the broker's sweep take 20 s together.
CATCH_UP_TIMEOUT_S: Final = 30.0
# How often the broker is asked for the registry's end: that tells a quiet registry from one that is away or shrank.
PROBE_S: Final = 5.0
# Records of another repository may mean that the topic was made anew; whoever writes such records on purpose makes us
# read the registry again no more often than this.
REREAD_S: Final = 30.0
_REGISTRY_PARTITION: Final = 0


class RegistryFollower:
    """The newest image of one registry; `turn` is for one thread and never raises, the properties are for all.

    Args:
        clock: Monotonic seconds.
        pause: Waits at most so many seconds.
        trust: Which records count; looked at every `PROBE_S`.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        clock: Callable[[], float],
        pause: Callable[[float], object],
        trust: Watch = NO_POLICY,
    ) -> None:
        self._trust = trust
        self._admission = trust.admission
        self._log = log
        self._topics = topics
        self._clock = clock
        self._pause = pause
        self._reader: RegistryReader | None = None
        self._image: RegistryImage | None = None
        self._fault: Exception | None = None
        self._failures = 0
        self._reopen_at_s = clock()
        self._opened_at_s = 0.0
        self._probe_at_s = clock()
        self._trust_at_s = clock() + PROBE_S
        self._stale_since_s: float | None = None

    @property
    def image(self) -> RegistryImage | None:
        """The registry as last read; None before it was read to its end."""
        return self._image

    @property
    def admission(self) -> Admission:
        """What the image was made under."""
        return self._admission

    @property
    def fault(self) -> Exception | None:
        """What keeps the registry from being followed; None while it is."""
        return self._fault

    @property
    def stale_s(self) -> float:
        """Seconds since the registry could last be followed; 0 while it is."""
        since = self._stale_since_s
        return 0.0 if since is None else self._clock() - since

    def turn(self, wait_s: float, *, to_end: bool = False) -> bool:
        """Takes what has arrived, waiting at most `wait_s` for it.

        Args:
            to_end: Read to the end that the registry has now, however long that takes.

        Returns:
            Whether the registry was read to its end in this turn.
        """
        try:
            now = self._clock()
            self._look_at_policy(now)
            if self._reader is None:
                if now < self._reopen_at_s:
                    self._pause(min(wait_s, self._reopen_at_s - now))
                    return False
                self._open()
                return True
            image = self._reader.catch_up(CATCH_UP_TIMEOUT_S) if to_end else self._reader.poll(wait_s)
            if image is not None:
                self._take(image, before=self._image)
            self._probe()
        except Exception as error:  # whatever it is, the live versions stay and the next turn tries again
            self._lose(error)
            return False
        return to_end

    def close(self) -> None:
        """Lets go of the reader."""
        self._drop_reader()

    def _look_at_policy(self, now: float) -> None:
        if now < self._trust_at_s:
            return
        self._trust_at_s = now + PROBE_S
        if self._trust.changed():
            self._drop_reader()
            self._reopen_at_s = now

    def _open(self) -> None:
        admission = self._trust.admission
        try:
            self._reader = RegistryReader(self._log, self._topics, admission=admission, clock=self._clock)
        except TopicNotFoundError as error:
            raise RepositoryNotFoundError(
                f"there is no modelcast repository here: {error.message}", hint="Make one with: modelcast init"
            ) from error
        image = self._reader.catch_up(CATCH_UP_TIMEOUT_S)
        before = self._image
        self._opened_at_s = self._clock()
        if before is not None and before.repository != image.repository:
            LOGGER.warning(
                "topic %s holds another repository now (%s, it was %s): its releases count from the first; what is "
                "live stays until one of them can serve",
                self._topics.registry,
                image.repository and image.repository.uuid,
                before.repository and before.repository.uuid,
            )
        elif before is not None and image.revision < before.revision:
            LOGGER.warning(
                "topic %s lost records: it ended at offset %d, and now at %d; what is live stays",
                self._topics.registry,
                before.revision,
                image.revision,
            )
        self._admission = admission
        self._take(image, before=None)  # what was learned of another topic's records does not count

    def _take(self, image: RegistryImage, *, before: RegistryImage | None) -> None:
        self._image = image
        self._healthy()
        known = before.faults if before is not None else ()
        fresh = [fault for fault in image.faults if fault not in known]
        for fault in fresh:
            LOGGER.warning(
                "registry record at offset %d (%s) counts for nothing: %s", fault.offset, fault.key, fault.message
            )
        strange = any(fault.verdict is None for fault in fresh)  # what is not admitted says nothing of the topic
        if before is not None and strange and self._clock() - self._opened_at_s > REREAD_S:
            raise BrokerError(f"topic {self._topics.registry!r} may have been made anew: it is read from its beginning")

    def _probe(self) -> None:
        now = self._clock()
        if now < self._probe_at_s or self._image is None:
            return
        self._probe_at_s = now + PROBE_S
        try:
            end = self._log.end_offsets(self._topics.registry, committed=False)[_REGISTRY_PARTITION]
        except BrokerError as error:
            # The reader waits for the broker by itself; to read all again would help nobody.
            self._unhealthy(error)
            return
        if end < self._image.revision:
            raise BrokerError(f"topic {self._topics.registry!r} ends at {end}, but {self._image.revision} was read")
        self._healthy()

    def _healthy(self) -> None:
        if self._stale_since_s is not None and self._image is not None:
            LOGGER.info("the registry is followed again")
        self._fault, self._stale_since_s, self._failures = None, None, 0

    def _unhealthy(self, error: Exception) -> None:
        if self._stale_since_s is None:
            self._stale_since_s = self._clock()
            LOGGER.warning("the registry can't be followed, what is live stays: %s", error)
        self._fault = error

    def _lose(self, error: Exception) -> None:
        self._unhealthy(error)
        self._drop_reader()
        self._failures += 1
        self._reopen_at_s = self._clock() + retry_delay_s(self._failures)

    def _drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            try:
                reader.close()
            except Exception as error:
                LOGGER.info("a registry reader did not close well: %s", error)
