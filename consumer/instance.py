"""Instance ids that survive a restart: a row of lock files for each group on a host.

A scorer's slot is both its `group.instance.id` and the end of its transactional id. A process that starts where one was
killed has to find that one's slot, so that its partitions come back at once and its open transaction is ended:

- A slot is the host's name and the first number whose lock file is free; the system frees a dead process's locks.
- A slot the user names is locked too: two processes under one name would fence each other for ever.
- A lock is tied to the brokers, prefix and group, so that scorers of different groups take no number from each other.
- Where no lock can be kept (a state folder that can't be written), the id is a random one, or the named one unlocked:
  a kill then costs the timeouts of its session and transaction. The instance says so.

    with claim_instance(state_folder(), scope="localhost:9092/modelcast/fraud-scorers") as instance:
        instance.name                                       # 'host-0'
"""

from __future__ import annotations

import hashlib
import re
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from modelcast.errors import UsageError
from modelcast.folders import STATE_VARIABLE

# More scorers of one group than this on one host means that locks do not work (a file system without them).
MAX_INSTANCES = 1024
# A supervisor may start the next process while the last one still drains its transaction.
NAMED_INSTANCE_WAIT_S = 10.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_NOT_NAME = re.compile(r"[^A-Za-z0-9._-]")
_MAX_HOST_CHARS = 80  # leaves room for the number within what an instance may be called
_RANDOM_BYTES = 4  # told apart among the scorers of one group and host


@dataclass(frozen=True)
class Instance:
    """A claimed instance id; free again after `release`, or when the process ends however it ends.

    Attributes:
        lock: What keeps others on this host from it; None where none can be kept.
        warning: What is wrong with it, for whoever runs the scorer.
    """

    name: str
    lock: FileLock | None
    warning: str | None = None

    def release(self) -> None:
        if self.lock is not None:
            self.lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def claim_instance(
    state: Path, *, scope: str, named: str | None = None, host: str | None = None, wait_s: float | None = None
) -> Instance:
    """Claims the id named, or the first free one of this host.

    Args:
        state: The state directory; made if it is not there.
        scope: What the row of ids belongs to: brokers, prefix and group.
        named: The id the user gave.
        host: This host's name, for ids nobody named.
        wait_s: How long a named id may still be held by a predecessor; `NAMED_INSTANCE_WAIT_S` if not given.

    Raises:
        UsageError: The name can't be an id, or another process on this host runs under it.
    """
    folder = state / "instances" / hashlib.sha256(scope.encode()).hexdigest()[:16]
    if named is not None and not _NAME.fullmatch(named):
        raise UsageError(
            f"{named!r} can't be an instance id",
            hint="Use 1 to 100 letters, digits, '.', '_' and '-', starting with a letter or digit.",
        )
    stem = _host_stem(socket.gethostname() if host is None else host)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if named is not None:
            return _claim_named(folder, named, NAMED_INSTANCE_WAIT_S if wait_s is None else wait_s)
        for number in range(MAX_INSTANCES):
            instance = _try_lock(folder, f"{stem}-{number}", 0)
            if instance is not None:
                return instance
    except OSError as error:
        return _unlocked(folder, error, stem, named)
    raise UsageError(
        f"all {MAX_INSTANCES} instance ids in {folder} are taken", hint="Give each scorer its own --instance."
    )


def _claim_named(folder: Path, name: str, wait_s: float) -> Instance:
    instance = _try_lock(folder, name, wait_s)
    if instance is None:
        raise UsageError(
            f"another scorer of this group runs as instance {name!r} on this host",
            hint="Give each scorer its own --instance, or none: a free id is then found.",
        )
    return instance


def _unlocked(folder: Path, error: OSError, stem: str, named: str | None) -> Instance:
    why = f"can't keep instance ids in {folder} ({error.strerror or error})"
    if named is not None:
        return Instance(
            named, None, f"{why}: nothing keeps a second process on this host from running as {named!r} too"
        )
    return Instance(
        f"{stem}-{secrets.token_hex(_RANDOM_BYTES)}",
        None,
        f"{why}: this scorer has a random one, and if it is killed, its events wait for its session and transaction to "
        f"time out. Name a writable directory in {STATE_VARIABLE}, or give each scorer its own --instance.",
    )


def _try_lock(folder: Path, name: str, wait_s: float) -> Instance | None:
    lock = FileLock(folder / f"{name}.lock")
    try:
        lock.acquire(timeout=wait_s, poll_interval=0.05)
    except Timeout:
        return None
    return Instance(name, lock)


def _host_stem(host: str) -> str:
    stem = _NOT_NAME.sub("-", host.partition(".")[0])[:_MAX_HOST_CHARS].lstrip("-._")
    return stem or "host"
