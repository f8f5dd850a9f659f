"""Whether a client may be used: it is open, and this is the process that made it.

A fork copies a process without its threads. What the Kafka client library and ONNX Runtime made can't work there any
more, and is not even to be let go: destructors wait for threads that do not exist, for ever or until the process dies
of it; ONNX Runtime 1.29 and later, once imported, at any end of the child. So in a child

- every client of the parent says so instead of working, and closing it does nothing;
- it is kept for ever, with all it holds: the operating system frees it when the child ends;
- where the runtime was loaded before the fork, the child ends when Python has: its own exit handlers run, what is
  buffered is written, and destructors of native libraries are left out (glibc's `on_exit`, which other systems lack).
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from typing import Final

from modelcast.errors import UsageError

_LIBC: Final = ctypes.CDLL(None)
_LIVES: Final[weakref.WeakSet[Life]] = weakref.WeakSet()


class Life:
    """Where a client is in its life.

    Args:
        client: What is kept for ever in a forked child.
    """

    def __init__(self, client: object) -> None:
        self.usable = True
        self.is_fork = False
        self._pid = os.getpid()
        self._client = weakref.ref(client)
        _LIVES.add(self)

    def end(self) -> bool:
        """Notes that the client is closed; False if it was before, or is another process's."""
        was_usable, self.usable = self.usable, False
        return was_usable and not self.is_fork

    def fault(self) -> UsageError:
        """Why the client can't be used."""
        if not self.is_fork:
            return UsageError("this ModelClient is closed", hint="Make a new one.")
        return UsageError(
            f"this ModelClient was made in process {self._pid}, and process {os.getpid()} is a fork of it",
            hint="Make a ModelClient in each process, after the fork.",
        )

    def check(self) -> None:
        """Raises UsageError if the client can't be used."""
        if not self.usable:
            raise self.fault()

    def strand(self) -> None:
        """Ends the client in a forked child; for `os.register_at_fork`."""
        self.usable, self.is_fork = False, True
        client = self._client()
        if client is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))


def _strand_all() -> None:
    for life in list(_LIVES):
        life.strand()
    if "onnxruntime" in sys.modules and hasattr(_LIBC, "on_exit"):
        # Called with the exit status, the latest first, before the destructors that were registered ahead of the fork.
        _LIBC.on_exit(_LIBC._exit, None)
        _LIBC.on_exit(_LIBC.fcloseall, None)


os.register_at_fork(after_in_child=_strand_all)
