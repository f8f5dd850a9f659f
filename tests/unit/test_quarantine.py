"""A version that ends the process twice is refused; one death by chance is not held against it."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from modelcast import digest
from modelcast.cli import main
from modelcast.consumer.quarantine import EXPIRY_S, Quarantine, Suspect
from modelcast.errors import QuarantinedError

CONTENT = digest.of_bytes(b"a version")


def load_in(folder: Path, then: str, *, content: str = CONTENT, name: str = "fraud@1") -> int:
    """A process that does something while it loads; how it ended."""
    code = (
        "import os, sys, threading; from pathlib import Path; from modelcast.consumer.quarantine import Quarantine\n"
        "loading, for_ever = threading.Event(), threading.Event()\n"
        "def load():\n"
        f"    with Quarantine(Path({str(folder)!r})).guard({content!r}, {name!r}): loading.set(); for_ever.wait()\n"
        f"threading.Thread(target=load, daemon=True).start(); loading.wait(); {then}"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60).returncode


def crash_in(folder: Path, *, content: str = CONTENT, name: str = "fraud@1") -> None:
    """A process that dies while it loads."""
    assert load_in(folder, "os.kill(os.getpid(), 9)", content=content, name=name) == -9


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


def test_f20_a_process_that_ends_of_its_own_will_while_it_loads_is_no_crash(tmp_path: Path) -> None:
    for _ in range(2):
        assert load_in(tmp_path, "sys.exit(7)") == 7
    assert list((tmp_path / "crashes").iterdir()) == []


def test_a_forked_child_that_ends_does_not_hide_its_parents_load(tmp_path: Path) -> None:
    fork = "pid = os.fork() or sys.exit(); os.waitpid(pid, 0); os.kill(os.getpid(), 9)"
    assert load_in(tmp_path, fork) == -9
    assert [suspect.crashes for suspect in Quarantine(tmp_path).suspects()] == [1]


def test_suspects_are_told_with_their_name_and_when_they_are_free_again(tmp_path: Path) -> None:
    began_ms = int(time.time() * 1000)
    other = digest.of_bytes(b"another version")
    crash_in(tmp_path)
    crash_in(tmp_path, name="fraud@2")  # the same content, published again
    crash_in(tmp_path, content=other, name="churn@7")
    quarantine = Quarantine(tmp_path)
    with quarantine.guard(digest.of_bytes(b"being loaded"), "fraud@3"):
        churn, fraud = quarantine.suspects()
    assert (churn.name, churn.content, churn.crashes, churn.is_quarantined) == ("churn@7", other, 1, False)
    assert (fraud.name, fraud.content, fraud.crashes, fraud.is_quarantined) == ("fraud@2", CONTENT, 2, True)
    assert began_ms - 1000 <= fraud.last_ms <= churn.last_ms
    assert 0 <= fraud.last_ms + EXPIRY_S * 1000 - fraud.expires_ms < 60_000  # it is the first crash that expires first


def test_what_is_cleared_may_be_loaded_again_and_a_running_load_is_not_touched(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    for _ in range(2):
        crash_in(tmp_path)
    with quarantine.guard(digest.of_bytes(b"being loaded"), "fraud@3"):
        quarantine.clear({CONTENT, digest.of_bytes(b"being loaded")})
        assert len(list((tmp_path / "crashes").iterdir())) == 1
    with quarantine.guard(CONTENT, "fraud@1"):
        pass


def test_two_who_look_at_once_count_the_same(tmp_path: Path) -> None:
    for _ in range(2):
        crash_in(tmp_path)
    quarantine = Quarantine(tmp_path)
    looking = quarantine._left()
    next(looking)
    assert quarantine.suspects()[0].crashes == 2


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path))
    return tmp_path


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["modelcast", "quarantine", *arguments]
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    finally:
        sys.argv = argv
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


def as_json(*arguments: str) -> dict[str, Any]:
    status, out, err = call(*arguments, "--json")
    assert status == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def quarantined(state: Path) -> tuple[Suspect, ...]:
    return Quarantine(state).suspects()


def test_the_command_shows_what_is_quarantined_and_clears_what_is_named(state: Path) -> None:
    assert as_json() == {"versions": []}
    assert call()[1] == "Nothing is quarantined on this host\n"
    for _ in range(2):
        crash_in(state)
    crash_in(state, content=digest.of_bytes(b"another version"), name="churn@7")
    churn, fraud = as_json()["versions"]
    assert (fraud["version"], fraud["content"], fraud["crashes"], fraud["quarantined"]) == ("fraud@1", CONTENT, 2, True)
    assert (churn["version"], churn["crashes"], churn["quarantined"]) == ("churn@7", 1, False)
    _, table, _ = call()
    assert [line.split()[:2] for line in table.splitlines()[1:]] == [["churn@7", "1"], ["fraud@1", "2"]]

    status, _, err = call("clear", "fraud@2")
    assert (status, "no process of this host died loading fraud@2" in err) == (4, True)
    assert [entry["version"] for entry in as_json("clear", "fraud")["cleared"]] == ["fraud@1"]
    assert [suspect.name for suspect in quarantined(state)] == ["churn@7"]
    assert call("clear")[1] == "May be loaded again: churn@7\n"
    assert quarantined(state) == ()


def test_an_option_that_would_not_count_is_refused(state: Path) -> None:
    status, _, err = call("--state-dir", "/nowhere", "clear")
    assert (status, "stands before the command" in err) == (2, True)
