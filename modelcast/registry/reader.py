"""From the registry topic to an image.

- Nothing is published before the reader's position has passed the true end taken at the start (read *uncommitted*: with
  another model's transaction open, the committed end is earlier and the image would miss what is about to commit).
- After that, `poll` publishes one image per burst of records.
- Whoever wants a few models of a large registry has the records of the others passed over: it takes a tenth of the
  time, and next to no memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from modelcast.errors import BrokerError, ConfigError, RepositoryNotFoundError
from modelcast.log import BEGINNING, Log, LogRecord
from modelcast.records import FORMAT_VERSION
from modelcast.registry.delta import RegistryDelta
from modelcast.registry.image import RegistryImage
from modelcast.topics import Topics
from modelcast.trust.admission import EVERYTHING, Admission

_PARTITION = 0
# How long one read may wait while catching up, so that the deadline is looked at.
_STEP_S = 0.1
# From so many records on, those of models that are not wanted are passed over. Below, reading all takes half a second
# at most, and a model wanted later is there already.
MANY_RECORDS = 10_000


class RegistryReader:
    """Follows one registry; not thread-safe.

    Args:
        admission: Says which records count; by default all do.
        wanted: Says of which models; by default of all. Others may be there too: see `MANY_RECORDS`.
        on_record: Called with every record read, whether it counts or not, before the image that holds it.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        log: Log,
        topics: Topics,
        *,
        admission: Admission = EVERYTHING,
        wanted: Callable[[str], bool] | None = None,
        on_record: Callable[[LogRecord], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log = log
        self._on_record = on_record or (lambda _: None)
        self._admission = admission
        self._wanted = wanted
        self._topic = topics.registry
        self._clock = clock
        self._reader = log.reader(self._topic, {_PARTITION: BEGINNING})
        self._image = RegistryImage()

    @property
    def image(self) -> RegistryImage:
        """The last image published."""
        return self._image

    @property
    def position(self) -> int:
        """The next offset to be looked at: an end below or at it was read to."""
        return self._reader.position(_PARTITION)

    def catch_up(self, timeout_s: float) -> RegistryImage:
        """Reads to the end the registry has now.

        Args:
            timeout_s: How long it may stand still on the way: a large registry takes its time.

        Raises:
            BrokerError: The end was not reached, e.g. because another model's transaction stays open.
            RepositoryNotFoundError: The topic is there, but no repository was made on it, or not the one that the
                trust policy pins.
            ConfigError: A newer modelcast made the repository.
        """
        end = self._log.end_offsets(self._topic, committed=False)[_PARTITION]
        if self._image.revision == 0 and end < MANY_RECORDS:
            self._wanted = None
        delta = self._delta()
        position, deadline = BEGINNING, self._clock() + timeout_s
        while (now := self._reader.position(_PARTITION)) < end:
            if now > position:
                position, deadline = now, self._clock() + timeout_s
            elif self._clock() >= deadline:
                self._image = delta.apply()  # what was read is read: another try goes on from here
                raise BrokerError(
                    f"topic {self._topic!r} could not be read to its end (offset {end}): nothing came for "
                    f"{timeout_s:g} s",
                    hint="Another publisher's transaction may be open; try again in a minute.",
                )
            for record in self._reader.poll(_STEP_S):
                self._on_record(record)
                delta.replay(record)
        self._image = delta.apply()
        if self._image.repository is None:
            if (pinned := self._admission.repository) is not None:
                raise RepositoryNotFoundError(
                    f"topic {self._topic!r} does not hold repository {pinned}, which the trust policy pins",
                    hint="See which one it holds with: modelcast init, and mend the connection or the policy.",
                )
            raise RepositoryNotFoundError(
                f"topic {self._topic!r} holds no repository", hint="Make one with: modelcast init"
            )
        if self._image.repository.format_version > FORMAT_VERSION:
            raise ConfigError(
                f"repository {self._image.repository.uuid} is of format {self._image.repository.format_version}, "
                f"and this modelcast knows {FORMAT_VERSION}",
                hint="Upgrade modelcast here.",
            )
        return self._image

    def poll(self, timeout_s: float) -> RegistryImage | None:
        """The next image, or None if nothing came within `timeout_s`."""
        records = self._reader.poll(timeout_s)
        if not records:
            return None
        delta = self._delta()
        for record in records:
            self._on_record(record)
            delta.replay(record)
        self._image = delta.apply()
        return self._image

    def close(self) -> None:
        self._reader.close()

    def _delta(self) -> RegistryDelta:
        return RegistryDelta(self._image, self._admission, wanted=self._wanted)
