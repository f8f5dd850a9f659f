"""Ctrl-C, wherever it arrives, is exit status 130 and no complaint."""

from __future__ import annotations

import pytest

from modelcast.cli import app
from modelcast.errors import ExitCode


def interrupted_in_the_kafka_client() -> None:
    """What Python makes of C code that returns a result though Ctrl-C raised inside it."""
    raise SystemError("<function pull> returned a result with an exception set") from KeyboardInterrupt()


def interrupted_in_python() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("command", [interrupted_in_the_kafka_client, interrupted_in_python])
def test_a_command_that_is_interrupted_ends_with_130_and_without_complaint(
    command: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app, "_load", lambda name, _: typer_command(command, name))
    monkeypatch.setattr("sys.argv", ["modelcast", "models"])
    with pytest.raises(SystemExit) as left:
        app.main()
    assert left.value.code == ExitCode.INTERRUPTED
    assert "error" not in capsys.readouterr().err


def typer_command(function: object, name: str) -> object:
    import typer

    made = typer.Typer(add_completion=False)
    made.command(name=name)(function)  # type: ignore[type-var]
    return typer.main.get_command(made)
