"""docs/TESTING.md as somebody's own project: its files as they stand, run by pytest with warnings as errors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documented import blocks

FILES = blocks("docs/TESTING.md")
_TIMEOUT_S = 240


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, code in FILES.items():
        (tmp_path / name).write_text(code)
    return tmp_path


def run_pytest(project: Path, *arguments: str) -> str:
    """What pytest prints, run as a user runs it; all must pass."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MODELCAST_", "PYTEST_"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", *arguments],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_documented_suite_passes_as_it_stands(project: Path) -> None:
    assert set(FILES) == {"conftest.py", "test_client.py", "test_scorer.py", "test_faults.py"}
    assert "7 passed" in run_pytest(project)


def test_the_plugin_imports_nothing_before_a_test_asks_for_it(project: Path) -> None:
    for name in FILES:
        if name.startswith("test_"):
            (project / name).unlink()
    (project / "test_nothing.py").write_text(
        "import sys\n\n\n"
        "def test_nothing():\n"
        "    heavy = {'confluent_kafka', 'onnx', 'onnxruntime', 'polars', 'fastavro', 'numpy'}\n"
        "    assert not heavy & set(sys.modules)\n"
    )
    assert "1 passed" in run_pytest(project)
