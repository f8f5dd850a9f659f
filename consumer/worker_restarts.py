"""Whether a worker that ended comes back, and when: pure, for one worker.

- Who was killed after a steady life is back at once: its partitions wait for it, and only for it, until its session in
  the group times out.
- Who ends soon after its start comes back later each time. After `SHORT_LIVES_MAX` of these in a row nothing is to be
  hoped for: somebody has to look.

    restarts = Restarts()
    restarts.after(steady_s=3600.0)    # 0.0: at once
    restarts.after(steady_s=0.2)       # 0.5
"""

from __future__ import annotations

# Counted from when it was about to join its group. Joining, loading and the first batch take seconds, some more of them
# on a busy host; whoever lives for longer has worked.
STEADY_S = 30.0
# In a row, by one worker: with pauses of some 8 s between them, enough for what passes by itself.
SHORT_LIVES_MAX = 5
FIRST_PAUSE_S = 0.5
LAST_PAUSE_S = 30.0


class Restarts:
    """The lives of one worker so far, as far as they matter."""

    def __init__(self) -> None:
        self.short_lives = 0

    def after(self, steady_s: float) -> float | None:
        """Seconds to wait before the next start, after a life that worked for `steady_s`; None for never."""
        if steady_s >= STEADY_S:
            self.short_lives = 0
            return 0.0
        self.short_lives += 1
        if self.short_lives >= SHORT_LIVES_MAX:
            return None
        return min(FIRST_PAUSE_S * 2.0 ** (self.short_lives - 1), LAST_PAUSE_S)
