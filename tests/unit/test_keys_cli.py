"""`modelcast keys`: as a person at a terminal, and as a program, would use it."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from modelcast.cli import main
from modelcast.trust.clock import FILE_NAME
from modelcast.trust.policy import read_policy


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"MODELCAST_{variable}_DIR", str(tmp_path / variable.lower()))
    for variable in ("MODELCAST_TRUST_POLICY", "MODELCAST_KEY_PASSPHRASE"):
        monkeypatch.delenv(variable, raising=False)


def call(*arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output, standard error."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["modelcast", "keys", *arguments]
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


def fails(*arguments: str) -> str:
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert err.count("error:") == err.count("→") == 1, err
    return err


def test_how_old_releases_may_be_is_set_shown_and_checked() -> None:
    as_json("new", "alice")
    policy = as_json("trust", "alice", "--models", "*", "--max-age", "36h", "--when-stale", "stop")
    assert (policy["rules"][0]["max_age_ms"], policy["rules"][0]["when_stale"]) == (36 * 3_600_000, "stop")
    assert "at most 36h old, else stop" in call("check")[1]
    code, _, err = call("trust", "alice", "--models", "*", "--max-age", "a while")
    assert code == 2
    assert "write days or hours" in err


def test_a_key_is_made_shown_and_trusted(tmp_path: Path) -> None:
    made = as_json("new", "alice")
    assert Path(made["private_file"]) == tmp_path / "config" / "keys" / "alice.key"
    assert as_json("show")["keys"] == [{name: made[name] for name in ("name", "key_id", "public")}]
    assert as_json("show", "alice")["keys"] == as_json("show", made["private_file"])["keys"] == as_json("show")["keys"]
    policy = as_json("trust", "alice", "--models", "fraud*", "--models", "churn", "--expires", "2027-01-01")
    assert Path(policy["policy"]) == tmp_path / "config" / "trust.toml"
    assert policy["keys"][0]["expires_ms"] == 1_798_761_600_000
    (rule,) = policy["rules"]
    assert rule == {
        "models": ["fraud*", "churn"], "keys": ["alice"], "threshold": 1, "max_age_ms": None, "when_stale": None
    }  # fmt: skip
    assert as_json("check") == policy


def test_a_key_is_written_and_trusted_wherever_one_names_a_path(tmp_path: Path) -> None:
    made = as_json("new", str(tmp_path / "ci" / "release.key"))
    assert made["private_file"] == str(tmp_path / "ci" / "release.key")
    policy = tmp_path / "ours.toml"
    as_json("trust", made["public_file"], "--models", "*", "--policy", str(policy))
    assert list(read_policy(policy).keys) == ["release"]


def test_a_passphrase_in_the_environment_encrypts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_KEY_PASSPHRASE", "open sesame")
    made = as_json("new", "alice", "--passphrase")
    assert made["encrypted"]
    assert "ENCRYPTED" in Path(made["private_file"]).read_text()


def test_people_are_told_what_to_do_next() -> None:
    _, out, err = call("new", "alice")
    assert "Made key alice" in out
    assert "modelcast keys trust" in err
    assert "No keys" not in call("show")[2]
    _, out, err = call("trust", "alice", "--models", "fraud*")
    assert "rule 1 (fraud*): 1 of alice" in out
    assert "--trust-policy" in err
    assert "fraud*" in call("check")[1]


def test_revoking_says_what_is_left() -> None:
    as_json("new", "alice")
    as_json("trust", "alice", "--models", "fraud*")
    status, out, err = call("revoke", "alice", "--reason", "laptop stolen")
    assert status == 0
    assert "alice is revoked: laptop stolen" in out
    dead = "admits nothing: it wants 1 signature, and 0 keys of it may still sign"
    assert dead in err.replace("\n", " ")
    assert dead in call("check")[2].replace("\n", " ")
    assert as_json("check")["keys"][0]["revoked"] == "laptop stolen"
    _, _, err = call("trust", "alice", "--models", "churn")
    assert "alice is still revoked (laptop stolen)" in err.replace("\n", " ")


def test_a_key_that_is_trusted_after_its_time_is_warned_of() -> None:
    as_json("new", "alice")
    assert "0 keys of it may still sign" in call("trust", "alice", "--models", "x", "--expires", "2020-01-01")[2]


def test_a_policy_without_rules_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").touch()
    assert "every model is refused" in call("check", "--policy", str(tmp_path / "empty.toml"))[2]


def test_a_passphrase_is_not_asked_for_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("open sesame\n" * 2))
    assert "MODELCAST_KEY_PASSPHRASE" in fails("new", "alice", "--passphrase")


def test_help_offers_no_completion() -> None:
    assert "completion" not in call("--help")[1]


def test_the_latest_time_seen_is_forgotten_on_request(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / FILE_NAME).write_text('{"floor_ms": 9}')
    assert as_json("reset-clock")["forgotten"]
    assert not as_json("reset-clock")["forgotten"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("new", "a b"), "is not a name for a key"),
        (("show", "nobody"), "there is no key 'nobody'"),
        (("trust", "nobody", "--models", "x"), "there is no key 'nobody'"),
        (("trust", "alice"), "no models are named"),
        (("trust", "alice", "--models", "x", "--expires", "soon"), "--expires 'soon' is not a date"),
        (("trust", "alice", "--models", "x", "--threshold", "2"), "has the threshold 2"),
        (("trust", "alice.key", "--models", "x"), "there is no key alice.key"),
        (("revoke", "alice"), "can't be read"),
        (("check",), "can't be read"),
    ],
)
def test_a_mistake_is_one_message_with_a_way_out(arguments: tuple[str, ...], words: str) -> None:
    as_json("new", "alice")
    assert words in fails(*arguments).replace("\n", " ")
