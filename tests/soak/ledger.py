"""What went in and what came out of one stream, compared as it comes. Pure; shares no code with the product.

Promised: every event has one prediction or, where it is poison, one dead letter; in its own partition, in the order of
its partition; a prediction is that of the version it names, to the bit.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Model = Callable[[Floats], Floats]
# An event's fields, or None for one that nobody can score.
Row = tuple[float, float] | None

_NOTHING, _PREDICTED, _LETTERED = 0, 1, 2
# A fault names the first few places; the rest is counted.
SHOWN = 10
# Enough to see a pattern.
FAULTS_MAX = 100


@dataclass
class Events:
    """The events of a topic by partition; offsets without gaps, since nobody writes them in transactions."""

    floors: dict[int, int] = field(default_factory=dict)
    rows: dict[int, list[Row]] = field(default_factory=lambda: defaultdict(list))

    def add(self, partition: int, offset: int, row: Row) -> None:
        """The next event of a partition."""
        if offset != self.end(partition):
            raise ValueError(f"event {offset} of partition {partition} follows {self.end(partition) - 1}")
        self.rows[partition].append(row)

    def end(self, partition: int) -> int:
        return self.floors.get(partition, 0) + len(self.rows[partition])

    def row(self, partition: int, offset: int) -> Row:
        """Raises IndexError for one that is not known, or was forgotten."""
        index = offset - self.floors.get(partition, 0)
        if index < 0:
            raise IndexError(offset)
        return self.rows[partition][index]

    def forget(self, ends: Mapping[int, int]) -> None:
        """Drops what lies below; what all streams are done with."""
        for partition, end in ends.items():
            floor = self.floors.get(partition, 0)
            del self.rows[partition][: end - floor]
            self.floors[partition] = max(floor, end)


@dataclass
class Ledger:
    """What came of the events in one stream.

    Attributes:
        faults: Broken promises, in words.
        by_version: Predictions that were scored again, to the same bits.
        predictions, letters: How many came, by now.
        settled: Events known to have exactly one outcome.
    """

    name: str
    events: Events
    faults: list[str] = field(default_factory=list)
    by_version: Counter[int] = field(default_factory=Counter)
    predictions: int = 0
    letters: int = 0
    settled: int = 0
    _outcomes: dict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))
    _floors: dict[int, int] = field(default_factory=dict)
    _last: dict[tuple[int, int], int] = field(default_factory=dict)
    _unscored: dict[int, list[tuple[int, int, float]]] = field(default_factory=lambda: defaultdict(list))

    def predicted(self, place: int, partition: int, offset: int, version: int, score: float) -> None:
        """A committed prediction in partition `place`, in the order of that partition."""
        self.predictions += 1
        self._unscored[version].append((partition, offset, score))
        self._take(_PREDICTED, place, partition, offset)

    def lettered(self, place: int, partition: int, offset: int) -> None:
        """A committed dead letter in partition `place`, in the order of that partition."""
        self.letters += 1
        self._take(_LETTERED, place, partition, offset)

    def rescore(self, model: Callable[[int], Model | None]) -> None:
        """Scores what was predicted again; what has no model or no event yet waits."""
        for version in list(self._unscored):
            again = model(version)
            if again is None:
                continue
            known, waiting = [], []
            for entry in self._unscored.pop(version):
                (known if entry[1] < self.events.end(entry[0]) else waiting).append(entry)
            if waiting:
                self._unscored[version] = waiting
            if known:
                self._compare(version, again, known)

    @property
    def waiting(self) -> int:
        """Predictions that could not be scored again yet."""
        return sum(map(len, self._unscored.values()))

    def settle(self, ends: Mapping[int, int]) -> None:
        """Everything below these offsets, which `events` still knows, has to have its outcome now; forgotten then."""
        for partition, end in ends.items():
            floor = self._floors.get(partition, 0)
            outcomes = self._outcomes[partition]
            outcomes.extend(bytes(max(0, end - floor - len(outcomes))))
            lost = [floor + index for index in range(end - floor) if outcomes[index] == _NOTHING]
            if lost:
                self._fault(f"{len(lost)} events lost in partition {partition}: {lost[:SHOWN]}")
            letters = [floor + index for index in range(end - floor) if outcomes[index] == _LETTERED]
            if sound := [offset for offset in letters if self.events.row(partition, offset) is not None]:
                self._fault(f"{len(sound)} sound events of partition {partition} are dead letters: {sound[:SHOWN]}")
            self.settled += end - floor - len(lost)
            del outcomes[: end - floor]
            self._floors[partition] = max(floor, end)

    def _take(self, kind: int, place: int, partition: int, offset: int) -> None:
        what = f"event {offset} of partition {partition}"
        if place != partition:
            self._fault(f"{what} has its outcome in partition {place}")
        before = self._last.get((kind, place))
        if before is not None and before >= offset:
            self._fault(f"{what} comes after {before}")
        self._last[kind, place] = offset
        index = offset - self._floors.get(partition, 0)
        outcomes = self._outcomes[partition]
        if index >= len(outcomes):
            outcomes.extend(bytes(index + 1 - len(outcomes)))
        if index < 0 or outcomes[index] != _NOTHING:
            self._fault(f"{what} has a second outcome")
            return
        outcomes[index] = kind

    def _compare(self, version: int, again: Model, known: list[tuple[int, int, float]]) -> None:
        rows = []
        for partition, offset, _ in known:
            try:
                row = self.events.row(partition, offset)
            except IndexError:  # a second outcome of an event that was done with: told already
                row = None
            rows.append(row)
        if any(row is None for row in rows):
            self._fault(f"version {version} scored what nobody can score")
            return
        wanted = again(np.array(rows, np.float32))
        got = np.array([score for _, _, score in known], np.float32)
        for index in np.flatnonzero(wanted.view(np.uint32) != got.view(np.uint32))[:SHOWN]:
            partition, offset, _ = known[index]
            self._fault(
                f"event {offset} of partition {partition}: version {version} predicted {got[index]!r}, "
                f"scored again {wanted[index]!r}"
            )
        self.by_version[version] += len(known)

    def _fault(self, what: str) -> None:
        if len(self.faults) < FAULTS_MAX:
            self.faults.append(f"{self.name}: {what}")
