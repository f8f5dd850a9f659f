"""`modelcast` that tells where each of its threads is when it gets SIGUSR1: for one that seems to hang."""

from __future__ import annotations

import faulthandler
import signal
import sys

from modelcast.cli import main

if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)
    main()
