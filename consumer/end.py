"""`--until-end`: when a topic is done, by offsets and never by counts or idleness.

- The end is the true end taken at start (read uncommitted): behind an open transaction the committed end is earlier.
- Done is what the *group* has committed: the scorers of a group end together, and whoever inherits a partition of a
  scorer that died finishes it.
- Transaction markers occupy offsets: positions pass them, counts of events don't.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EndOfTopic:
    """Where a topic began and ended when the scorer started, by partition."""

    begins: Mapping[int, int]
    ends: Mapping[int, int]

    def left(self, committed: Mapping[int, int]) -> Mapping[int, int]:
        """Offsets still to be passed, by partition; empty when all is done.

        Args:
            committed: The group's next offsets; a partition without one starts at its beginning.
        """
        starts = {partition: committed.get(partition, self.begins.get(partition, 0)) for partition in self.ends}
        return {partition: end - starts[partition] for partition, end in self.ends.items() if starts[partition] < end}
