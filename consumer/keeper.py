"""Keeps the snapshots of the models in use as new as the image: chooses the records, finds them, writes them.

- Records are noted as they are read, so that a snapshot is written before the image it belongs to is published, and
  costs the broker nothing.
- What was not noted (a model first used later, a history too large to be held) is looked for by one more pass over the
  topic, later and not often.
- A folder that can't be written costs the start without Kafka, not the service: that is logged once, and tried again.
- A file that is behind the image is not said to be as new as it: its time stands still until it is written.

For the registry thread only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Final

from filelock import Timeout

from modelcast.errors import CacheError
from modelcast.log import BEGINNING, Log, LogRecord
from modelcast.names import ModelRef
from modelcast.registry.image import ModelEntry, RegistryImage
from modelcast.scan import scan
from modelcast.topics import REPOSITORY_KEY, Topics

from .snapshot import Need, Snapshot, SnapshotStore, needs_of

LOGGER: Final = logging.getLogger("modelcast.control")

# Records noted until their image is made: of a history of ten thousand versions, the end.
MAX_NOTED_BYTES: Final = 16 << 20
# A registry of a hundred thousand records is read over in a second.
SEARCH_TIMEOUT_S: Final = 10.0

_REGISTRY_PARTITION: Final = 0
_KEY_PARTS: Final = 3  # kind/model/number


class Keeper:
    """Writes snapshots of the models that `refs` names.

    Args:
        refs: What is subscribed to now.
    """

    def __init__(self, store: SnapshotStore, refs: Callable[[], Collection[ModelRef]]) -> None:
        self._store = store
        self._refs = refs
        self._names: frozenset[bytes] = frozenset()
        self._held: dict[str, _Held] = {}
        self._noted: dict[int, LogRecord] = {}
        self._noted_bytes = 0
        self._missing: list[Need] = []
        self._lost: set[tuple[bytes, int | None]] = set()
        self._kept: set[str] = set()
        self._failures: list[CacheError] = []  # of the last pass over the models in use

    def restart(self) -> None:
        """Forgets what was read: the registry is read anew from its beginning."""
        self._held.clear()
        self._noted.clear()
        self._noted_bytes = 0
        self._lost.clear()
        self._names = self._named()

    def note(self, record: LogRecord) -> None:
        """Takes one record of the registry; cheap for those of other models."""
        key = record.key or b""
        parts = key.split(b"/", 2)
        if key != REPOSITORY_KEY and (len(parts) < _KEY_PARTS or parts[1] not in self._names):
            return
        self._noted[record.offset] = record
        self._noted_bytes += _bytes(record)
        while self._noted_bytes > MAX_NOTED_BYTES and len(self._noted) > 1:
            self._noted_bytes -= _bytes(self._noted.pop(next(iter(self._noted))))

    def keep(self, image: RegistryImage) -> None:
        """Writes what an image changed, before it is acted upon."""
        self._missing = []
        was_failing, self._failures = bool(self._failures), []
        used, before = self._used(), self._held
        self._held = {}
        unwritten: dict[int, LogRecord] = {}
        for model, pinned in used.items():
            entry, held = image.models.get(model), before.get(model)
            if held is not None and held.entry is entry and held.pinned == pinned:
                self._held[model] = held
                continue
            needs = needs_of(image, model, pinned)
            found = {need.place: self._find(need, held) for need in needs}
            records = {record.offset: record for record in found.values() if record is not None}
            missing = [need for need in needs if found[need.place] is None and need.place not in self._lost]
            ordered = tuple(records[offset] for offset in sorted(records))
            if entry is not None and records and not missing and self._write(Snapshot(model, image.revision, ordered)):
                self._held[model] = _Held(entry, pinned, ordered)
            else:
                self._kept.discard(model)
                self._missing += missing
                unwritten |= records
        if self._failures and not was_failing:
            LOGGER.warning("%s", self._failures[0])
        self._noted = {offset: unwritten[offset] for offset in sorted(unwritten)}
        self._noted_bytes = sum(map(_bytes, self._noted.values()))
        self._names = self._named()

    @property
    def is_behind(self) -> bool:
        """Whether something is used of which not all that is to be kept was found and written yet."""
        return bool(self._missing or self._failures) or self._names != self._named()

    def search(self, log: Log, topics: Topics, image: RegistryImage) -> None:
        """Looks for what was not noted, and writes it. Raises BrokerError."""
        self.keep(image)
        wanted = {need.key: need for need in self._missing}
        if not wanted:
            return
        starts, ends = {_REGISTRY_PARTITION: BEGINNING}, {_REGISTRY_PARTITION: image.revision}
        for record in scan(log, topics.registry, starts, ends, timeout_s=SEARCH_TIMEOUT_S):
            need = wanted.get(record.key or b"")
            if need is not None and need.is_met_by(record):
                self._noted[record.offset] = record
                del wanted[need.key]
        # What is not there any more is not looked for again: something untrusted was written over it.
        self._lost |= {need.place for need in wanted.values()}
        self.keep(image)

    def confirm(self) -> None:
        """The registry was read to its end, and says no more than what is kept."""
        self._store.touch(self._kept & self._used().keys())

    def _used(self) -> dict[str, set[int]]:
        used: dict[str, set[int]] = {}
        for ref in self._refs():
            used.setdefault(ref.model, set()).update(() if ref.version is None else (ref.version,))
        return used

    def _named(self) -> frozenset[bytes]:
        return frozenset(ref.model.encode() for ref in self._refs())

    def _find(self, need: Need, held: _Held | None) -> LogRecord | None:
        known = () if held is None else held.records
        noted: Iterable[LogRecord] = self._noted.values()
        if need.offset is not None:
            noted = (self._noted[need.offset],) if need.offset in self._noted else ()
        return next((record for record in (*known, *noted) if need.is_met_by(record)), None)

    def _write(self, snapshot: Snapshot) -> bool:
        """Whether that is done: written, or left to another process that knows more."""
        if any(isinstance(failure.__cause__, Timeout) for failure in self._failures):
            return False  # the lock's holder is stopped: to wait again for each model would hold up what was released
        try:
            if self._store.save(snapshot):
                self._kept.add(snapshot.model)
            else:
                self._kept.discard(snapshot.model)
        except CacheError as error:
            self._failures.append(error)
            return False
        return True


@dataclass(frozen=True, slots=True)
class _Held:
    """A snapshot that was written, by what it was chosen: the same again is not looked at twice."""

    entry: ModelEntry
    pinned: set[int]
    records: tuple[LogRecord, ...]


def _bytes(record: LogRecord) -> int:
    return len(record.key or b"") + len(record.value or b"")
