"""The trust policy of a process that goes on for months: its file is read again when it changes.

- At the start a policy that can't be used is an error. Later it is said loudly, and the last good one stays in force.
- A key that expires changes what counts as much as an edit does.

    watch = PolicyWatch(path, SteadyClock(folders.state_folder()))
    if watch.changed():
        ...  # what was read under `watch.admission` is read anew
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final, Protocol

from modelcast.errors import ModelcastError
from modelcast.trust.admission import EVERYTHING, Admission, PolicyAdmission
from modelcast.trust.clock import SteadyClock
from modelcast.trust.policy import TrustPolicy, policy_path, read_policy

LOGGER: Final = logging.getLogger("modelcast.trust")


class Watch(Protocol):
    """Which records count, now."""

    @property
    def admission(self) -> Admission: ...

    def changed(self) -> bool:
        """Whether something else counts since the last call; then `admission` is the new one."""


class _NoPolicy:
    admission = EVERYTHING

    def changed(self) -> bool:
        return False


NO_POLICY: Final[Watch] = _NoPolicy()


class PolicyWatch:
    """Follows one policy file; for one thread.

    Raises:
        ConfigError: It can't be used.
        MissingExtraError: securesystemslib is not installed.
    """

    def __init__(self, path: Path, clock: SteadyClock) -> None:
        self._path = path
        self._clock = clock
        self._stamp = _stamp(path)
        self._policy: TrustPolicy = read_policy(path)
        self._expired = self._policy.expired(clock.now_ms())
        self._admission = PolicyAdmission(self._policy, clock.now_ms)

    @property
    def admission(self) -> Admission:
        """What the last good policy admits."""
        return self._admission

    def changed(self) -> bool:
        """Looks at the file, and at the clock."""
        reread = self._reread()
        expired = self._policy.expired(self._clock.now_ms())
        if not reread and expired == self._expired:
            return False
        for name in sorted(expired - self._expired):
            LOGGER.warning("the key of %s has expired: what only it signed does not count any more", name)
        self._expired = expired
        return True

    def _reread(self) -> bool:
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        try:
            policy = read_policy(self._path)
        except ModelcastError as error:
            LOGGER.error("the trust policy can't be used, and the one before stays in force: %s", error)
            return False
        if policy == self._policy:
            return False
        LOGGER.warning("trust policy %s has changed, and is in force", self._path)
        self._policy = policy
        self._admission = PolicyAdmission(policy, self._clock.now_ms)
        return True


def watch_policy(given: Path | str | None, state_folder: Path) -> Watch:
    """Follows the policy given, or that of `MODELCAST_TRUST_POLICY`; without one, everything counts.

    Raises:
        ConfigError, MissingExtraError: As `PolicyWatch`.
    """
    path = policy_path(given)
    return NO_POLICY if path is None else PolicyWatch(path, SteadyClock(state_folder))


def _stamp(path: Path) -> tuple[int, ...] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
