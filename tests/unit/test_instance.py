"""Instance ids: stable across restarts, never shared by two processes of one group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from modelcast.consumer.instance import claim_instance
from modelcast.errors import ExitCode, UsageError

_HOLD = """
import sys, time
from pathlib import Path
from modelcast.consumer.instance import claim_instance
with claim_instance(Path(sys.argv[1]), scope="s", host="h") as instance:
    print(instance.name, flush=True)
    sys.stdin.read()
"""


def test_ids_of_one_group_on_one_host_are_numbered_from_zero(tmp_path: Path) -> None:
    first = claim_instance(tmp_path, scope="s", host="box.example.org")
    second = claim_instance(tmp_path, scope="s", host="box.example.org")
    assert (first.name, second.name) == ("box-0", "box-1")


def test_a_released_id_is_the_next_to_be_claimed(tmp_path: Path) -> None:
    first = claim_instance(tmp_path, scope="s", host="box")
    claim_instance(tmp_path, scope="s", host="box")
    first.release()
    assert claim_instance(tmp_path, scope="s", host="box").name == "box-0"


def test_groups_do_not_take_ids_from_each_other(tmp_path: Path) -> None:
    with claim_instance(tmp_path, scope="a", host="box") as a, claim_instance(tmp_path, scope="b", host="box") as b:
        assert a.name == b.name == "box-0"


def test_a_killed_process_leaves_its_id_to_the_next(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == "h-0\n"
        with claim_instance(tmp_path, scope="s", host="h") as beside:
            assert beside.name == "h-1"
        child.send_signal(signal.SIGKILL)
        child.wait(60)
    assert claim_instance(tmp_path, scope="s", host="h").name == "h-0"


def test_a_named_id_held_on_this_host_is_refused(tmp_path: Path) -> None:
    held = claim_instance(tmp_path, scope="s", named="blue")
    with pytest.raises(UsageError, match="another scorer of this group runs as instance 'blue'") as raised:
        claim_instance(tmp_path, scope="s", named="blue", wait_s=0)
    held.release()
    assert raised.value.exit_code is ExitCode.USAGE
    assert claim_instance(tmp_path, scope="s", named="blue").name == "blue"


@pytest.mark.parametrize("name", ["", "a/b", "../x", "-x", "ä", "x" * 101])
def test_names_that_would_leave_the_folder_or_the_broker_s_rules_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="can't be an instance id"):
        claim_instance(tmp_path, scope="s", named=name)


def test_where_no_lock_can_be_kept_the_id_is_random_and_says_what_that_costs(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("")
    with claim_instance(state, scope="s", host="h") as one, claim_instance(state, scope="s", host="h") as other:
        assert one.name != other.name
        assert one.name.startswith("h-")
        assert one.warning is not None
        assert "MODELCAST_STATE_DIR" in one.warning


def test_a_named_id_needs_no_lock_and_says_that_it_has_none(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_text("")
    with claim_instance(state, scope="s", named="blue") as instance:
        assert instance.name == "blue"
        assert "'blue'" in (instance.warning or "")
