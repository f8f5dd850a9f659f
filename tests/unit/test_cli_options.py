"""Options that every command takes: behind it, or before it, whatever form they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from modelcast.cli import app as root
from modelcast.cli.options import CommandContext, connected, split_common


@connected
def look(context: CommandContext, name: str = "") -> None:
    """Says what it was given."""
    found = [context.bootstrap_servers, str(context.properties_file), *context.properties, context.prefix, name]
    context.output.result({"given": found}, " ".join(map(str, found)))


@pytest.fixture(autouse=True)
def command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(root.COMMANDS, "look", f"{__name__}:look")
    for name in ("MODELCAST_BOOTSTRAP_SERVERS", "MODELCAST_PREFIX", "MODELCAST_PROPERTIES_FILE"):
        monkeypatch.delenv(name, raising=False)


def run(*words: object) -> Result:
    return CliRunner().invoke(root.app, [str(word) for word in words])


@pytest.mark.parametrize(
    "words",
    [
        "look -b h:1 -F f -X a=b --prefix p --json --name n",
        "-b h:1 -F f -X a=b --prefix p --json look --name n",
        "--bootstrap-servers=h:1 --properties-file=f --property=a=b --prefix=p look --json --name n",
        "-bh:1 -Ff -Xa=b --json look --name n --prefix p",
        "-b other:1 --prefix p -F f look -b h:1 -X a=b --json --name n",  # what stands behind it is said later
    ],
)
def test_common_options_stand_before_the_command_or_behind_it(words: str) -> None:
    result = run(*words.split())
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {"given": ["h:1", "f", "a=b", "p", "n"]}


def test_they_go_to_the_innermost_command(tmp_path: Path) -> None:
    result = run("--json", "cache", "clear", "--cache-dir", tmp_path)
    assert json.loads(result.stdout)["files"] == 0
    assert json.loads(run("--json", "cache", "--cache-dir", tmp_path).stdout)["versions"] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("-b h:1 cache", "No such option: -b"),  # it needs no broker
        ("--json lok", "No such command 'lok'"),
        ("-b", "No such option: -b"),
        ("--name n look", "No such option: --name"),  # that one is not every command's
    ],
)
def test_what_a_command_does_not_take_is_refused_wherever_it_stands(words: str, said: str) -> None:
    result = run(*words.split())
    assert result.exit_code == 2
    assert said in " ".join(result.output.replace("│", " ").split())


def test_every_common_option_is_known_by_all_its_names() -> None:
    command: Any = root.LazyGroup().get_command(None, "look")
    common = [option for option in command.params if option.name not in ("name", "help")]
    for option in common:
        value = [] if option.is_flag else ["value"]
        for name in option.opts:
            assert split_common([name, *value, "look"]) == ([name, *value], ["look"])
    assert len(common) == 5


def test_words_behind_the_first_other_one_stay_where_they_are() -> None:
    assert split_common(["--json", "-b", "h", "send", "-b", "i"]) == (["--json", "-b", "h"], ["send", "-b", "i"])
    assert split_common(["--prefixed", "x"]) == ([], ["--prefixed", "x"])
    assert split_common([]) == ([], [])
