"""The scorer of the demonstration: a real `python -m modelcast score … --json` in a process of its own.

- It is told nothing but where the topics are: what it does with a release it decides itself, and its report lines are
  where the demonstration learns of it.
- It has a session of its own, so that Ctrl-C at a terminal ends it in order through us; it dies with us at the latest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from modelcast.config import ENV_BOOTSTRAP, ENV_PREFIX, ENV_PROPERTIES_FILE
from modelcast.demo.stage import MODEL, Stage
from modelcast.dev.process import dying_with_parent
from modelcast.errors import ModelcastError
from modelcast.folders import CACHE_VARIABLE, STATE_VARIABLE

# It finishes the batch at hand and leaves the group; a scorer that takes longer is stuck.
STOP_TIMEOUT_S: Final = 40.0
# Interrupted: nobody waits for its last batch.
_KILL_AFTER_S: Final = 5.0
_TOLD_CHARS: Final = 2_000


@dataclass(frozen=True, slots=True)
class WentLive:
    """A version began to score.

    Attributes:
        before: The version before it; None for the first.
        release_to_live_ms: From the release's creation, as the scorer measured it; None for a version that stood in.
        load_ms: What loading took; for one still loaded, what it took then.
    """

    version: int
    before: int | None
    at_ms: int
    release_to_live_ms: float | None
    load_ms: float | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A version the scorer would not take, and why."""

    version: int
    reason: str
    message: str
    at_ms: int


Happening = WentLive | Refused


def happening_of(line: Mapping[str, Any], at_ms: int) -> Happening | None:
    """What a report line says; None for a line about anything else.

    Args:
        line: One line of `score --json`.
        at_ms: When it was read.
    """
    match line:
        case {"event": "live" | "swapped", "version": int(version)}:
            return WentLive(version, line.get("from"), at_ms, line.get("release_to_live_ms"), line.get("load_ms"))
        case {"event": "refused", "version": int(version), "reason": str(reason), "message": str(message)}:
            return Refused(version, reason, message, at_ms)
        case _:
            return None


class ScorerProcess:
    """The running scorer; `happenings` grows as it reports. Use as a context manager.

    Args:
        stage: Where it plays.
        on_happening: Told each happening, on a thread of its own: be quick.
    """

    def __init__(self, stage: Stage, on_happening: Callable[[Happening], None]) -> None:
        self._on_happening = on_happening
        self.happenings: tuple[Happening, ...] = ()
        self._errors = stage.folder / "scorer.err"
        settings = _properties_file(stage)
        command = [
            sys.executable, "-m", "modelcast", "score", MODEL, "--json",
            "--events", stage.events, "--predictions", stage.predictions, "--group", stage.group,
            "--prefix", stage.connection.prefix, "-F", str(settings),
        ]  # fmt: skip
        with self._errors.open("wb") as errors:
            self._process = subprocess.Popen(
                dying_with_parent(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(stage),
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, name="scorer-reports", daemon=True)
        self._reader.start()

    def check(self) -> None:
        """Raises ModelcastError if the scorer has ended."""
        status = self._process.poll()
        if status is not None:
            raise self._failure(f"ended with status {status}")

    def wait_for(self, found: Callable[[Happening], bool], timeout_s: float, pause: Callable[[float], None]) -> bool:
        """Waits for a happening, past or to come; False if it did not come in time.

        Args:
            found: Whether this is the one.
            timeout_s: How long.
            pause: Sleeps for seconds; may raise to end the waiting.
        """
        deadline = time.monotonic() + timeout_s
        while not any(found(happening) for happening in self.happenings):
            if time.monotonic() >= deadline:
                return False
            self.check()
            pause(0.02)
        return True

    def stop(self) -> None:
        """Asks it to end (SIGTERM) and waits.

        Raises:
            ModelcastError: It did not end in time, or not with status 0.
        """
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise self._failure(f"did not end within {STOP_TIMEOUT_S:.0f} s after SIGTERM") from None
        self._reader.join(STOP_TIMEOUT_S)
        if status != 0:
            raise self._failure(f"ended with status {status} after SIGTERM")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_KILL_AFTER_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._reader.join(_KILL_AFTER_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        if self._process.stdout is None:  # it was asked for above
            return
        for line in self._process.stdout:
            at_ms = time.time_ns() // 1_000_000
            try:
                said = json.loads(line)
            except ValueError:
                continue
            happening = happening_of(said, at_ms) if isinstance(said, dict) else None
            if happening is not None:
                self.happenings = (*self.happenings, happening)
                self._on_happening(happening)

    def _failure(self, what: str) -> ModelcastError:
        said = self._errors.read_text(errors="replace").strip()[-_TOLD_CHARS:]
        return ModelcastError(f"the scorer {what}" + (f"; it said:\n{said}" if said else ""))


def _properties_file(stage: Stage) -> Path:
    """Its settings in a private file: a command line is there for everybody to read, and they may hold passwords."""
    path = stage.folder / "client.properties"
    path.touch(mode=0o600)
    path.write_text("".join(f"{key}={value}\n" for key, value in stage.connection.settings.items()))
    return path


def _environment(stage: Stage) -> dict[str, str]:
    # The user's variables would win over the file.
    ours = {ENV_BOOTSTRAP, ENV_PREFIX, ENV_PROPERTIES_FILE}
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    return {**inherited, CACHE_VARIABLE: str(stage.cache_dir), STATE_VARIABLE: str(stage.state_dir)}
