"""Ctrl-C that strikes inside a call of the Kafka client.

Its C code goes on after a signal's KeyboardInterrupt as if the call had only failed, and what comes out of it may be
any error: a SystemError, or a complaint about an argument that it could no longer look at.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt in the place of whatever error comes out after Ctrl-C; on the main thread only.

    Who handles SIGINT inside in another way is left alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    struck = False

    def strike(number: int, frame: FrameType | None) -> None:
        nonlocal struck
        struck = True
        signal.default_int_handler(number, frame)

    before = signal.signal(signal.SIGINT, strike)
    try:
        yield
    except Exception as error:
        if struck:
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
