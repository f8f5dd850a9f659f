"""What people name as SOURCE, by the command line: other names for outputs, a folder of MLflow, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.brokers import Broker
from tests.publishing import Shell, write_model, write_rows


@pytest.fixture
def shell(broker: Broker, prefix: str) -> Shell:
    made = Shell(broker.bootstrap_servers, prefix)
    made.says("init")
    return made


def test_an_output_gets_another_name_and_a_folder_of_mlflow_is_a_source(shell: Shell, tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    (tmp_path / "MLmodel").write_text("flavors: {onnx: {data: model.onnx}}")
    rows, fields = write_rows(tmp_path / "rows.csv"), ("--fields", "amount,age")
    shell.says("publish", "m", str(tmp_path), "--examples", rows, *fields, "--rename", "score=risk")
    assert "risk: float32[N]" in shell.says("show", "m@1")


def test_what_is_no_source_says_what_is(shell: Shell, tmp_path: Path) -> None:
    model, rows = write_model(tmp_path / "model.onnx"), write_rows(tmp_path / "rows.csv")

    def fails(*arguments: str, status: int = 2) -> str:
        return shell.fails("publish", "m", *arguments, "--examples", rows, "--fields", "amount,age", status=status)

    assert "outputs are 'score'" in fails(model, "--rename", "output=risk")
    assert "not OUTPUT=NAME" in fails(model, "--rename", "score")
    assert "renamed twice" in fails(model, "--rename", "score=a", "--rename", "score=b")
    assert "--rename 'version=OTHER'" in fails(model, "--rename", "score=version", status=5)
    assert "mlflow:models:/" in fails("models:/fraud/1")
    assert "hf:OWNER/REPO" in fails("hf:a/b/c")
    assert "model.onnx" in fails(str(tmp_path))
