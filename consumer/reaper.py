"""Destroys what was replaced: in a lull, so that nobody who scores waits for it.

Destroying a session holds Python's lock while the kernel takes its memory back, 12 to 28 ms for 400 MB: nothing in this
process scores meanwhile, whatever thread does it. So

- what is small goes at once: that is not noticed;
- what is large waits until no model of this instance is leased, nor was for `LULL_S`: whoever comes in bursts, or by
  the second, is never made to wait;
- where there is no such moment it goes after `PATIENCE_S`. That is once, and less than it takes until a load that
  begins needs the memory: first come files and digests.

    freed = reaper.reap(slots, now_s)
    if reaper.due_s is not None: ...  # again by then
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from modelcast.memory import give_back
from modelcast.names import ModelRef

from .slot import Slot

LOGGER: Final = logging.getLogger("modelcast.control")

# A millisecond or two, as any thread of Python's may keep the others waiting.
SMALL_BYTES: Final = 32 << 20
# Longer than the pauses between two batches of a backlog, or two requests of a busy service.
LULL_S: Final = 0.02
# A load that begins opens its session no sooner: files, digests and a trial come first, and need little memory.
PATIENCE_S: Final = 0.1
# How often to look meanwhile.
LOOK_S: Final = 0.01


class Reaper:
    """Destroys for all slots of one instance; for the control thread only.

    Attributes:
        due_s: When to look again at the latest; None while nothing waits for a lull.
    """

    def __init__(self) -> None:
        self.due_s: float | None = None
        self._uses = 0
        self._used_at_s = self._since_s = 0.0

    def reap(self, slots: Collection[tuple[ModelRef, Slot]], now_s: float, *, at_once: bool = False) -> list[ModelRef]:
        """Destroys what may be destroyed at this moment; what fails at it is logged.

        Args:
            slots: All of the instance.
            now_s: By a clock that never goes back.
            at_once: Whether memory is so short, or the end so near, that nothing waits.

        Returns:
            The models of which something was destroyed.
        """
        all_slots = [slot for _, slot in slots]
        is_large = any(slot.may_reap(SMALL_BYTES) for slot in all_slots)
        if not is_large or at_once or self._has_come(all_slots, now_s):
            self.due_s = None
        else:
            self.due_s = now_s + LOOK_S
        freed = []
        for ref, slot in slots:
            try:
                count = slot.reap(None if self.due_s is None else SMALL_BYTES)
            except ExceptionGroup as error:
                count = len(error.exceptions)
                LOGGER.error("%s", error, exc_info=error)
            if count:
                freed.append(ref)
        if is_large and self.due_s is None:
            give_back()
        return freed

    def _has_come(self, slots: Collection[Slot], now_s: float) -> bool:
        """Whether this is a lull, or there is none to be had."""
        is_new = self.due_s is None
        uses = sum(slot.uses for slot in slots)
        if is_new:
            self._since_s = now_s
        if is_new or uses != self._uses or any(slot.is_leased for slot in slots):
            self._uses, self._used_at_s = uses, now_s
        return now_s - self._used_at_s >= LULL_S or now_s - self._since_s >= PATIENCE_S
