"""Ctrl-C, wherever it arrives, is exit status 130 and no complaint."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

import pytest
import typer

from modelcast.cli import app
from modelcast.cli.interruption import interruptible
from modelcast.cli.options import CommandContext, plain
from modelcast.errors import ExitCode


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@plain
def interrupted_in_the_kafka_client(_context: CommandContext) -> None:
    """What C code makes of a signal's exception that it overlooks."""
    try:
        press()
    except KeyboardInterrupt:
        raise TypeError("expected header key to be unicode string") from None


@plain
def interrupted_in_python(_context: CommandContext) -> None:
    press()


@pytest.mark.parametrize("command", [interrupted_in_the_kafka_client, interrupted_in_python])
@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_command_that_is_interrupted_ends_with_130_and_without_complaint(
    command: Callable[..., None], words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "_load", lambda name, _: typer_command(command, name))
    monkeypatch.setattr("sys.argv", ["modelcast", "models", *words])
    with pytest.raises(SystemExit) as left:
        app.main()
    said = capsys.readouterr()
    assert left.value.code == ExitCode.INTERRUPTED
    assert "error" not in said.err
    assert [json.loads(line)["error"]["exit_code"] for line in said.out.splitlines()] == [130] * len(words)


def test_an_error_without_ctrl_c_stays_what_it_is_and_who_handled_the_signal_does_so_again() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TypeError), interruptible():
        raise TypeError("a fault of ours")
    assert signal.getsignal(signal.SIGINT) is before


def typer_command(function: Callable[..., None], name: str) -> object:
    made = typer.Typer(add_completion=False)
    made.command(name=name)(function)
    return typer.main.get_command(made)
