"""What is remembered of the user's dev broker between commands. Light: every command without an address reads it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from modelcast.json_data import read_json

from .folders import dev_state_dir
from .ports import LOOPBACK
from .process import Process

STATE_FILE = "broker.json"
_PORTS = 1 << 16
_PIDS = 1 << 31


@dataclass(frozen=True, slots=True)
class DevState:
    """The last thing known.

    Attributes:
        port: Of the clients' listener; kept between runs, so that clients' configurations stay right.
        process: The broker's process, or None after it was stopped.
        started_at: When it was started, ISO 8601 in UTC.
        ready: Whether it has become ready; False while it starts, or when the command that started it was killed.
    """

    port: int
    process: Process | None = None
    started_at: str | None = None
    ready: bool = False

    @property
    def bootstrap_servers(self) -> str:
        """What clients connect to."""
        return f"{LOOPBACK}:{self.port}"

    def alive(self) -> bool:
        """Returns whether the very process that was started still runs."""
        return self.process is not None and self.process.alive()

    def save(self, folder: Path) -> None:
        """Writes it, whole or not at all."""
        arriving = folder / f".{STATE_FILE}"
        arriving.write_text(json.dumps(asdict(self)))
        arriving.replace(folder / STATE_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """Reads it; None when there is none, or it is not legible: then nothing is known."""
        try:
            read = read_json((folder / STATE_FILE).read_bytes())
            process, port = read["process"], int(read["port"])
            pid = None if process is None else int(process["pid"])
            # A signal to any other number goes to whole groups of processes.
            if not 0 < port < _PORTS or (pid is not None and not 0 < pid < _PIDS):
                return None
            return cls(
                port=port,
                process=None if pid is None else Process(pid, str(process["started"])),
                started_at=read["started_at"],
                ready=bool(read["ready"]),
            )
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            return None


def running_bootstrap_servers() -> str | None:
    """Returns the address of the running dev broker, or None when it does not run or is not ready."""
    state = DevState.load(dev_state_dir())
    return state.bootstrap_servers if state is not None and state.ready and state.alive() else None
