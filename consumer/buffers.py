"""How much memory a stream's events may take: fetched ahead, being scored, and predictions on their way.

The defaults are what throughput needs (`modelcast.kafka.settings`); a smaller budget is shared out in the same
proportions. The models, the runtime and the interpreter come on top: they don't grow with the backlog.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from modelcast.errors import UsageError

from .batches import BYTES_MAX
from .dead_letters import PRODUCER_MAX_BYTES

# One record of the usual limit (1 MB) has to fit each of the shares.
MIN_BYTES = 16 << 20
# Shares of the whole. A batch is decoded into columns, scored and encoded, and up to four are under way (one each being
# scored and committed, two waiting): beside its bytes it takes some three times as much.
_PREFETCH_SHARE = 4
_BATCH_SHARE = 16
_PRODUCE_SHARE = 2
# What one fetch may bring of a partition: several fit what is fetched ahead.
_FETCH_SHARE = 16


@dataclass(frozen=True, slots=True)
class Buffers:
    """What a scorer may hold.

    Attributes:
        batch_bytes: Events of one batch, by their size on the wire.
        properties: Properties of the Kafka client that bound what it holds; none for its defaults.
    """

    batch_bytes: int
    properties: Mapping[str, str]

    def letter_bytes(self, settings: Mapping[str, str]) -> int:
        """How large a dead letter may be that a producer of these settings can hold beside others."""
        held_kb = settings.get("queue.buffering.max.kbytes")
        return PRODUCER_MAX_BYTES if held_kb is None else int(held_kb) * 1024 // 2

    @classmethod
    def of(cls, max_memory_bytes: int | None) -> Buffers:
        """Shares `max_memory_bytes` out; None takes the defaults, 512 MiB in all.

        Raises:
            UsageError: Less than `MIN_BYTES`.
        """
        if max_memory_bytes is None:
            return cls(BYTES_MAX, {})
        if max_memory_bytes < MIN_BYTES:
            raise UsageError(
                f"a stream needs more memory than {max_memory_bytes:,} bytes",
                hint=f"Give it {MIN_BYTES >> 20}MiB at least, and more than events are large.",
            )
        kilobytes = max_memory_bytes // 1024
        return cls(
            min(BYTES_MAX, max_memory_bytes // _BATCH_SHARE),
            {
                "queued.max.messages.kbytes": str(kilobytes // _PREFETCH_SHARE),
                "max.partition.fetch.bytes": str(max_memory_bytes // _FETCH_SHARE),
                "queue.buffering.max.kbytes": str(kilobytes // _PRODUCE_SHARE),
            },
        )
