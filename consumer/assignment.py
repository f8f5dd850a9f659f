"""The partitions this member has, as far as the loop must remember: epochs, pauses, and where to go back to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelcast.group import GroupConsumer

from .batches import EventBatch


class Assignment:
    """Keeps the books of one group member. For the scoring thread.

    Attributes:
        epoch: Grows with every change: what was taken under another epoch is not this member's to commit.
    """

    def __init__(self, consumer: GroupConsumer, *, epoch: int = 0) -> None:
        self._consumer = consumer
        self._first: dict[int, int | None] = {}  # assigned partitions; the first event seen since, to go back to
        self._submitted: dict[int, int] = {}
        self._paused = False
        self.epoch = epoch

    def assigned(self, partitions: Sequence[int]) -> None:
        """Called inside `consume`."""
        self.epoch += 1
        for partition in partitions:
            self._first[partition] = None
        self._submitted.update(self._consumer.positions(partitions))
        if self._paused and partitions:
            self._consumer.pause(partitions)

    def revoked(self, partitions: Sequence[int]) -> None:
        """Called inside `consume`."""
        self.epoch += 1
        for partition in partitions:
            self._first.pop(partition, None)
            self._submitted.pop(partition, None)

    def pause(self) -> None:
        if not self._paused:
            self._paused = True
            self._consumer.pause(list(self._first))

    def resume(self) -> None:
        if self._paused:
            self._paused = False
            self._consumer.resume(list(self._first))

    def consumed(self, batch: EventBatch) -> None:
        """Notes where events began, for partitions that have no committed offset to go back to."""
        unseen = [partition for partition, first in self._first.items() if first is None]
        if unseen:
            starts = batch.first_offsets()
            self._first.update({partition: starts[partition] for partition in unseen if partition in starts})

    def submitted(self, offsets: Mapping[int, int]) -> None:
        """Notes what was handed to the committer."""
        self._submitted.update(offsets)

    def put_back(self, batch: EventBatch) -> None:
        """Events taken by accident are to be consumed again."""
        self._consumer.seek({p: offset for p, offset in batch.first_offsets().items() if p in self._first})

    def rewind(self) -> None:
        """Goes back to the committed offsets, in a new epoch. Raises BrokerError."""
        partitions = list(self._first)
        committed = self._consumer.committed(partitions) if partitions else {}
        starts = {p: first for p, first in self._first.items() if first is not None} | dict(committed)
        self._consumer.seek(starts)
        self._submitted = starts
        self.epoch += 1

    def markers_passed(self) -> Mapping[int, int]:
        """Positions beyond what was handed on. Only right while no event is in hand."""
        positions = self._consumer.positions(list(self._first))
        return {p: position for p, position in positions.items() if position > self._submitted.get(p, 0)}

    def positions(self) -> Mapping[int, int | None]:
        """The next offset of each assigned partition; None where none is known yet."""
        known = self._consumer.positions(list(self._first))
        return {partition: known.get(partition) for partition in self._first}

    def only_assigned(self, offsets: Mapping[int, int]) -> Mapping[int, int]:
        return {partition: offset for partition, offset in offsets.items() if partition in self._first}

    def is_beyond(self, ends: Mapping[int, int]) -> bool:
        """Whether everything before `ends` in the assigned partitions was handed on, or was never there."""
        positions = self._consumer.positions(list(self._first))
        # A partition without an end was added since.
        asked = [partition for partition in self._first if partition in ends]
        return all(positions.get(partition, ends[partition]) >= ends[partition] for partition in asked)
