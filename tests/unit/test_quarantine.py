"""A version that ends the process twice is refused; one death by chance is not held against it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelcast import digest
from modelcast.consumer.quarantine import EXPIRY_S, Quarantine
from modelcast.errors import QuarantinedError

CONTENT = digest.of_bytes(b"a version")


def crash_in(folder: Path) -> None:
    """A process that dies while it loads."""
    code = (
        "import os; from pathlib import Path; from modelcast.consumer.quarantine import Quarantine\n"
        f"with Quarantine(Path({str(folder)!r})).guard({CONTENT!r}, 'fraud@1'): os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9


def test_f20_two_crashes_quarantine_a_version_and_one_does_not(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    crash_in(tmp_path)
    with quarantine.guard(CONTENT, "fraud@1"):
        pass
    crash_in(tmp_path)
    with (
        pytest.raises(QuarantinedError, match=r"loading fraud@1 ended the process 2 times; it is quarantined"),
        quarantine.guard(CONTENT, "fraud@1"),
    ):
        pytest.fail("was let through")
    with quarantine.guard(digest.of_bytes(b"another version"), "fraud@2"):
        pass


def test_a_quarantine_expires(tmp_path: Path) -> None:
    for _ in range(2):
        crash_in(tmp_path)
    import time

    with Quarantine(tmp_path, now=lambda: time.time() + EXPIRY_S + 1).guard(CONTENT, "fraud@1"):
        pass
    assert list((tmp_path / "crashes").iterdir()) == []


def test_loads_that_are_running_or_failed_are_no_crashes(tmp_path: Path) -> None:
    first, second, third = (Quarantine(tmp_path) for _ in range(3))
    with first.guard(CONTENT, "fraud@1"), second.guard(CONTENT, "fraud@1"), third.guard(CONTENT, "fraud@1"):
        pass
    for _ in range(3):
        with pytest.raises(ValueError, match="refused"), first.guard(CONTENT, "fraud@1"):
            raise ValueError("refused")
    with first.guard(CONTENT, "fraud@1"):
        pass


def test_a_folder_that_can_not_be_written_costs_only_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file" / "state", None):
        with Quarantine(folder).guard(CONTENT, "fraud@1"):
            pass
