"""The README's quick start and Python examples, executed as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BLOCK = re.compile(r"<!-- (?P<name>[^>]*?) -->\n```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)
BLOCKS = {match["name"].split(":")[0] if match["language"] == "sh" else match["name"]: match["code"]
          for match in BLOCK.finditer(README)}  # fmt: skip
_TIMEOUT_S = 240


class Newcomer:
    """A fresh folder with the environment, as after `make`; its own dev broker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.printed = ""
        (folder / ".venv").symlink_to(sys.prefix)
        (folder / "examples").symlink_to(ROOT / "examples")
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("MODELCAST_", "PYTEST_"))
        } | {"MODELCAST_STATE_DIR": str(folder / "state")}

    def run(self, script: str) -> str:
        """What the script prints on standard output; it must succeed."""
        return self._done(["bash", "-euo", "pipefail", "-c", script])

    def python(self, code: str) -> str:
        return self._done([sys.executable, "-W", "error", "-c", code])

    def _done(self, command: list[str]) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def modelcast(self, *arguments: str) -> list[Mapping[str, object]]:
        """JSON lines a command prints."""
        printed = self._done([sys.executable, "-m", "modelcast", *arguments, "--json"])
        return [json.loads(line) for line in printed.splitlines()]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Newcomer]:
    """Someone who ran the quick start."""
    newcomer = Newcomer(tmp_path_factory.mktemp("newcomer"))
    try:
        newcomer.printed = newcomer.run(BLOCKS["quick start"])
        yield newcomer
    finally:
        newcomer.modelcast("dev", "down")


def test_the_readme_has_the_blocks_tested_here() -> None:
    assert set(BLOCKS) == {"quick start", "python: publish", "python: predict", "python: score"}


def test_each_python_example_is_under_fifteen_lines() -> None:
    for name, code in BLOCKS.items():
        if name.startswith("python"):
            assert len(code.splitlines()) < 15, name


def test_the_quick_start_scores_every_transaction(newcomer: Newcomer) -> None:
    assert "Published" in newcomer.printed
    predictions = newcomer.modelcast("tail", "fraud-scores", "--from-beginning", "--until-end")
    assert len(predictions) == 10_000
    assert len({prediction["key"] for prediction in predictions}) == 10_000
    value = predictions[0]["value"]
    assert isinstance(value, dict)
    assert set(value) == {"model", "version", "source", "label", "probabilities"}
    assert (value["model"], value["version"], value["source"]["topic"]) == ("fraud", 1, "transactions")
    assert sum(value["probabilities"]) == pytest.approx(1.0, abs=1e-5)


def test_the_python_examples_publish_predict_and_score(newcomer: Newcomer) -> None:
    assert newcomer.python(BLOCKS["python: publish"]).startswith("fraud@2 ")
    assert newcomer.python(BLOCKS["python: predict"]).startswith("2 ")
    newcomer.python(BLOCKS["python: score"])
    scored = newcomer.modelcast("tail", "fraud-scores-2", "--from-beginning", "--until-end")
    assert {prediction["value"]["version"] for prediction in scored} == {2}  # type: ignore[index]
    assert len(scored) == 10_000
