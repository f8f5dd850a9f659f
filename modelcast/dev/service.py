"""The user's one dev broker: it outlives the command that started it, and keeps its data and port between runs.

- One per user and state folder (`MODELCAST_STATE_DIR`). Commands that change it take a file lock: of two `up` at the
  same time one starts it and the other finds it running.
- It is known by pid and start time, so after a reboot, a kill -9 or a recycled pid it is seen to be gone.
- A process that an interrupted `up` left behind is ended before a new one is started on its data.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from modelcast.errors import BrokerError

from . import aot
from .broker import LocalBroker, end
from .folders import dev_state_dir, kafka_cache_dir
from .jars import KAFKA_VERSION, Progress
from .ports import is_free
from .process import Process
from .state import DevState, running_bootstrap_servers

__all__ = ["DevStatus", "Progress", "down", "reset", "running_bootstrap_servers", "status", "up"]

LOCK_TIMEOUT_S = 600.0  # the other command may be downloading Kafka over a slow line


@dataclass(frozen=True, slots=True)
class DevStatus:
    """The dev broker as it is now.

    Attributes:
        running: Whether it runs and is ready.
        bootstrap_servers: What clients connect to; None when it does not run.
        pid: Its process id; None when it does not run.
        started_at: ISO 8601 in UTC; None when it does not run.
        kafka_version: The version `up` starts.
        data_dir: Where its data lies, running or not.
        data_bytes: How much that is on disk.
        log_path: Its log.
    """

    running: bool
    bootstrap_servers: str | None
    pid: int | None
    started_at: str | None
    kafka_version: str
    data_dir: Path
    data_bytes: int
    log_path: Path


def up(*, on_progress: Progress | None = None) -> tuple[DevStatus, bool]:
    """Starts the dev broker unless it runs, and waits until it is ready.

    Args:
        on_progress: Told about the download of Kafka, at the first start on a machine.

    Returns:
        Its status, and whether this call started it.

    Raises:
        BrokerError: It can't be fetched or started, or another command holds it for too long.
        MissingExtraError: There is no Java, or nothing to fetch Kafka with.
    """
    if running_bootstrap_servers() is not None:
        return status(), False
    folder = dev_state_dir()
    with _locked(folder):
        if running_bootstrap_servers() is not None:
            return status(), False
        known = DevState.load(folder)
        if known is not None and known.process is not None:
            end(known.process)  # started, and never seen to be ready
        _start(folder, port=known.port if known is not None and is_free(known.port) else None, on_progress=on_progress)
    return status(), True


def down() -> bool:
    """Ends the dev broker, in order; its data stays.

    Returns:
        Whether it ran.

    Raises:
        BrokerError: Another command holds it for too long.
    """
    folder = dev_state_dir()
    if DevState.load(folder) is None:
        return False
    with _locked(folder):
        return _stop(folder)


def reset() -> int:
    """Ends the dev broker and deletes its data: every topic, model and prediction on it.

    Returns:
        How many bytes were deleted.

    Raises:
        BrokerError: Another command holds it for too long, or the data can't be deleted.
    """
    folder = dev_state_dir()
    with _locked(folder):
        _stop(folder)
        data_dir = _data_dir(folder)
        size_bytes = _size_bytes(data_dir)
        if data_dir.exists():
            try:
                shutil.rmtree(data_dir)
            except OSError as error:
                raise BrokerError(f"The dev broker's data in {data_dir} can't be deleted: {error}") from error
    return size_bytes


def status() -> DevStatus:
    """Returns how the dev broker is, from its state file and its process; Kafka is not asked."""
    folder = dev_state_dir()
    broker = LocalBroker(_data_dir(folder))
    state = DevState.load(folder)
    running = state if state is not None and state.ready and state.alive() else None
    return DevStatus(
        running=running is not None,
        bootstrap_servers=None if running is None else running.bootstrap_servers,
        pid=None if running is None or running.process is None else running.process.pid,
        started_at=None if running is None else running.started_at,
        kafka_version=KAFKA_VERSION,
        data_dir=broker.data_dir,
        data_bytes=_size_bytes(broker.data_dir),
        log_path=broker.log_path,
    )


def _start(folder: Path, *, port: int | None, on_progress: Progress | None) -> None:
    broker = LocalBroker(_data_dir(folder), port=port)

    def remember(process: Process, *, ready: bool = False) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        DevState(broker.port, process, now, ready).save(folder)

    broker.start(on_progress=on_progress, on_spawn=remember)
    remember(broker.process, ready=True)


def _stop(folder: Path) -> bool:
    state = DevState.load(folder)
    if state is None or state.process is None:
        return False
    ran = state.process.alive()
    if ran and end(state.process):
        aot.keep_recording(kafka_cache_dir(), _data_dir(folder))
    DevState(state.port).save(folder)
    return ran


def _data_dir(folder: Path) -> Path:
    return folder / "data"


def _size_bytes(folder: Path) -> int:
    """What the files take on disk: Kafka's indexes are sparse files of 10 MB each."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_blocks * 512  # POSIX counts in 512 bytes whatever the disk's block size
        except OSError:
            continue  # a running broker deletes files at any time
    return total


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout  # 40 ms, for commands that change something only

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout as error:
        raise BrokerError(
            f"Another `modelcast dev` command has been busy for {LOCK_TIMEOUT_S:.0f} s",
            hint="Let it finish, or end it, and try again",
        ) from error
    except PermissionError as error:
        raise BrokerError(
            f"The state folder {folder} can't be written",
            hint="Set MODELCAST_STATE_DIR to a folder that can be",
        ) from error
