"""`modelcast dev` while no dev broker runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from modelcast.dev.cli import app
from modelcast.errors import ExitCode, UsageError


@pytest.fixture(autouse=True)
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path))
    return tmp_path


def test_status_says_how_to_start_it_and_exits_with_3() -> None:
    result = CliRunner().invoke(app, ["status"])
    assert result.exit_code == ExitCode.BROKER
    assert "modelcast dev up" in result.stdout


def test_status_json_is_one_object(state_dir: Path) -> None:
    result = CliRunner().invoke(app, ["status", "--json"])
    assert result.exit_code == ExitCode.BROKER
    status = json.loads(result.stdout)
    assert status["running"] is False
    assert status["bootstrap_servers"] is None
    assert Path(status["data_dir"]).is_relative_to(state_dir)


def test_down_has_nothing_to_do() -> None:
    result = CliRunner().invoke(app, ["down", "--json"])
    assert result.exit_code == ExitCode.DONE
    assert json.loads(result.stdout) == {"running": False, "stopped": False}


def test_reset_does_not_delete_unasked(state_dir: Path) -> None:
    kept = state_dir / "dev" / "data" / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_text("data")
    result = CliRunner().invoke(app, ["reset"])
    assert isinstance(result.exception, UsageError)
    assert result.exception.hint is not None
    assert "--yes" in result.exception.hint
    assert kept.exists()


def test_reset_yes_deletes(state_dir: Path) -> None:
    kept = state_dir / "dev" / "data" / "kept"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x" * 10_000)
    result = CliRunner().invoke(app, ["reset", "--yes", "--json"])
    assert result.exit_code == ExitCode.DONE
    assert json.loads(result.stdout)["deleted_bytes"] >= 10_000
    assert not kept.exists()
