"""A worker's own side: what it tells its supervisor, and how it ends when that is gone.

A worker is the command once more, in a process of its own, told by one environment variable that it is one:

- Its standard output is a pipe to the supervisor: a line of JSON for each report (`report`, and `text` for people), and
  for the error that it ends with (`error`).
- Its standard input is a pipe that nobody writes to: its end means that the supervisor is gone, however that ended. The
  worker then stops as if asked to, and harder when that takes too long: none is left over.
- Its instance is the supervisor's with its number: `web` makes `web-0`, `web-1`, …
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from modelcast.cli.output import to_json
from modelcast.errors import ModelcastError, UsageError

from .report_text import as_json, as_text
from .reports import Report

# `<pid of the supervisor>:<number>`; taken out of the environment at once, so that nobody inherits it.
WORKER_VARIABLE = "MODELCAST_WORKER"
# How long a worker may take to end once it was asked to: its last commit may take 30 s where brokers are away
# (`loop.CLOSE_DRAIN_S`), closing what else it has takes little.
STOP_DEADLINE_S = 35.0

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class Worker:
    """This process, where it is a worker. As a context manager it watches its supervisor and tells how it fails.

    Attributes:
        number: Which worker it is, from 0; its successors after a crash have the same.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._lock = threading.Lock()
        # Whatever else prints on standard output (native code, a stray print) must not break a line in two.
        self._lines = os.dup(_STDOUT)
        os.dup2(_STDERR, _STDOUT)

    @classmethod
    def here(cls) -> Self | None:
        """This process as a worker, or None if it is none; raises UsageError if it is another process's."""
        said = os.environ.pop(WORKER_VARIABLE, None)
        if said is None:
            return None
        supervisor, _, number = said.partition(":")
        if supervisor != str(os.getppid()) or not number.isdecimal():
            raise UsageError(
                f"{WORKER_VARIABLE} names a process that did not start this one (or has ended)",
                hint=f"Leave {WORKER_VARIABLE} unset: --workers sets it for the processes it starts.",
            )
        return cls(int(number))

    def instance(self, named: str | None) -> str | None:
        """The instance id of this worker, where the user named one for all."""
        return None if named is None else f"{named}-{self.number}"

    def tell(self, report: Report) -> None:
        """Passes a report on; for any thread."""
        self._send({"report": as_json(report), "text": as_text(report)})

    def __enter__(self) -> Self:
        threading.Thread(target=_follow_supervisor, name="modelcast-supervisor", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, ModelcastError):  # the supervisor's to tell people, once for all workers
            known = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
            self._send({"error": {**known, "details": error.details}})
            raise SystemExit(int(error.exit_code))

    def _send(self, line: Mapping[str, Any]) -> None:
        data = memoryview(to_json(line).encode() + b"\n")
        with self._lock:
            try:
                while data:
                    data = data[os.write(self._lines, data) :]
            except BrokenPipeError:  # the supervisor is gone, which the other pipe tells
                return


def _follow_supervisor() -> None:
    while os.read(_STDIN, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_DEADLINE_S)
    os._exit(1)
