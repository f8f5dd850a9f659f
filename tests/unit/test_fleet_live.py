"""How watching a fleet ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

# A timer strikes a little later each round: before the wait, within its first steps, and while it sleeps.
STRIKES = """
import signal
from modelcast.fleet.live import End

signal.signal(signal.SIGALRM, lambda *_: end.set())
for strike in range(2_400):
    end = End()
    signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + strike % 300))
    while not end.is_set:
        end.wait(0.001)
print("ended each time")
"""


def test_a_signal_ends_the_wait_whichever_step_of_it_is_under_way() -> None:
    try:
        ended = subprocess.run([sys.executable, "-c", STRIKES], capture_output=True, text=True, timeout=120, check=True)
    except subprocess.TimeoutExpired:
        pytest.fail("whoever waits when the signal strikes waits for ever")
    assert ended.stdout == "ended each time\n"
