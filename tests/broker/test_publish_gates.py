"""Requirements, dry runs, pulls and Ctrl-C, as people meet them: the command line on a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest

import modelcast
from modelcast.config import ENV_BOOTSTRAP, ENV_PREFIX
from modelcast.errors import GateError
from modelcast.kafka import KafkaLog
from modelcast.publisher import ModelPublisher, Published
from modelcast.topics import Topics
from tests.brokers import Broker
from tests.publishing import TIMEOUT_S, Content, Shell, write_model, write_rows

FIELDS = ("--fields", "amount,age")
# 64 MB, a chunk at a time: an upload that is still going on when it is interrupted.
LARGE = 8_000_000
SLOWLY = ("-X", "linger.ms=500", "-X", "queue.buffering.max.messages=1", "-X", "batch.size=4000000")
GRACE_S = 60


@pytest.fixture(scope="module", autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELCAST_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        patch.setenv("MODELCAST_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def log(broker: Broker) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as made:
        yield made


@pytest.fixture
def shell(broker: Broker, prefix: str) -> Shell:
    made = Shell(broker.bootstrap_servers, prefix)
    made.json("init", "--blob-partitions", "2")
    return made


def content(log: KafkaLog, shell: Shell) -> Content:
    return Content.of(log, Topics(shell.prefix))


def labelled(path: Path) -> str:
    """Rows whose label is, but for noise, what `wide_model` gives without a bias: about half of amount and age."""
    random = np.random.default_rng(3)
    amount, age = random.random(200), random.random(200)
    paid = (amount + age) / 2 + random.normal(size=200) * 0.01
    pl.DataFrame({"amount": amount, "age": age, "paid": paid}).write_parquet(path)
    return str(path)


def test_a_worse_model_is_not_published_and_all_requirements_are_told(
    shell: Shell, log: KafkaLog, tmp_path: Path
) -> None:
    rows, data = write_rows(tmp_path / "rows.csv"), labelled(tmp_path / "holdout.parquet")
    good = write_model(tmp_path / "good.onnx", 4000)
    worse = write_model(tmp_path / "worse.onnx", 4000, bias=1.0)
    gates = ("--require", "rmse<=champion*1.1", "--require", "load_ms<60000", "--evaluate", data, "--label", "paid")

    first = shell.json("publish", "pay", good, "--examples", rows, *FIELDS, *gates, "--release")
    assert first["metrics"]["rmse"] < 0.05
    assert "(no champion yet)" in first["gates"][0]
    before = content(log, shell)

    said = shell.fails("publish", "pay", worse, "--examples", rows, *FIELDS, *gates, "--release", status=6)
    status, out, _ = shell.call("publish", "pay", worse, "--examples", rows, *FIELDS, *gates, "--release", "--json")
    error = json.loads(out)["error"]
    assert (status, error["exit_code"], error["kind"]) == (6, 6, "GateError")
    assert [entry["met"] for entry in error["requirements"]].count(False) >= 1
    assert "1 of 2 requirements is not met, nothing was published" in said
    assert "NOT MET  rmse 0.999" in said
    assert f"(champion*1.1, pay@1 has {first['metrics']['rmse']:.6g})" in said
    assert "met      load_ms" in said
    assert content(log, shell) == before

    said = shell.says("publish", "pay", good, "--examples", rows, *FIELDS, *gates, "--release")
    assert "required: rmse" in said
    shown = shell.json("show", "pay")
    assert (shown["version"], len(shown["gates"])) == (2, 2)
    assert shown["probe"]["peak_bytes"] > 0
    said = shell.says("show", "pay")
    for words in ("required", "rmse", "mae=", "load ", "peak ", "when published"):
        assert words in said


def test_requirements_that_can_not_be_judged_are_refused_at_once(shell: Shell, log: KafkaLog, tmp_path: Path) -> None:
    before = content(log, shell)
    model, rows = write_model(tmp_path / "m.onnx"), write_rows(tmp_path / "rows.csv")
    for told, options in {
        "compares by '=>'": ("--require", "auc=>0.8"),
        "is not METRIC OP LIMIT": ("--require", "auc"),
        "'auc', which was neither stated nor measured": ("--require", "auc>=0.8"),
        "no such file": ("--evaluate", "none.csv", "--label", "y"),
        "--label is given without rows to evaluate on": ("--label", "y"),
        "not which column holds their labels": ("--evaluate", rows),
        "has no column 'y'; it has amount, age": ("--evaluate", rows, "--label", "y"),
    }.items():
        assert told in shell.fails("publish", "pay", model, "--examples", rows, *FIELDS, *options, status=2)
    assert content(log, shell) == before


def test_a_dry_run_says_what_would_be_sent_and_writes_nothing(shell: Shell, log: KafkaLog, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv")
    model = write_model(tmp_path / "model.onnx", 20_000)
    arguments = ("publish", "pay", model, "--examples", rows, *FIELDS, "--metric", "auc=0.9", "--require", "auc>=0.8")
    before = content(log, shell)
    dry = shell.json(*arguments, "--dry-run")
    assert (dry["version"], dry["dry_run"], dry["released"]) == (1, True, False)
    assert dry["bytes_sent"] == dry["bytes_total"] > 160_000
    assert content(log, shell) == before

    real = shell.json(*arguments)
    assert {**real, "dry_run": True} == dry, "a dry run says what then happens"
    said = shell.says(*arguments, "--dry-run", "--release")
    assert "Would be published as pay@2 and released; nothing was written" in said
    assert f"at most 0 of {real['bytes_total']:,} bytes would be sent" in said
    assert shell.json("models")["models"][0]["latest"] == 1
    shell.fails(*arguments, "--dry-run", "--require", "auc>=0.95", status=6)


def test_python_gets_typed_results(shell: Shell, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv")
    model = Path(write_model(tmp_path / "model.onnx"))
    with ModelPublisher(shell.servers, prefix=shell.prefix) as publisher:
        published = publisher.publish(
            "pay",
            model,
            examples=rows,
            fields=["amount", "age"],
            metrics={"auc": 0.9},
            require=["auc>=champion-0.01"],
            release=True,
            progress=True,
        )
        assert isinstance(published, Published)
        assert repr(published).startswith("Published(pay@1, released, ")
        assert "<b>pay@1 (live)</b>" in published._repr_html_()
        assert "auc 0.9 &gt;= champion-0.01 (no champion yet)" in published._repr_html_()
        dry = publisher.publish("pay", model, examples=rows, fields=["amount", "age"], dry_run=True)
        assert (dry.manifest.version, dry.bytes_sent, dry.release) == (2, 0, None)
        with pytest.raises(GateError):
            publisher.publish(
                "pay", model, examples=rows, fields=["amount", "age"], metrics={"auc": 0.5}, require=["auc>=champion"]
            )
    pulled = modelcast.pull("pay", tmp_path / "pulled", shell.servers, prefix=shell.prefix)
    assert pulled.manifest == published.manifest


def test_a_pulled_version_runs_without_modelcast(shell: Shell, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.csv")
    model = write_model(tmp_path / "model.onnx", 20_000, bias=0.5)
    published = shell.json("publish", "pay", model, "--examples", rows, *FIELDS)
    place = tmp_path / "out"
    assert "no version of 'pay' was released" in shell.fails("pull", "pay", "-o", str(place), status=4)
    assert "no folder is named" in shell.fails("pull", "pay", status=2)
    said = shell.says("pull", "pay@1", "-o", str(place))
    assert f"Pulled pay@1 into {place}\n  {published['digest']}" in said
    assert json.loads((place / "manifest.json").read_text())["digest"] == published["digest"]
    session = onnxruntime.InferenceSession(place / "model.onnx")
    (score,) = session.run(None, {"x": np.array([[1, 2]], np.float32)})
    assert score == pytest.approx([2.0], abs=0.05)  # half of three, and the bias
    shell.fails("pull", "pay@1", "-o", str(place), status=2)
    again = shell.json("pull", "pay@1", "-o", str(place), "--force")
    assert (again["digest"], again["directory"]) == (published["digest"], str(place))


def test_the_notebook_runs_from_cell_to_cell(shell: Shell, tmp_path: Path) -> None:
    notebook = Path(__file__).parents[2] / "examples" / "notebook.py"
    done = subprocess.run(
        [sys.executable, str(notebook)],
        cwd=tmp_path,
        env={**os.environ, ENV_BOOTSTRAP: shell.servers, ENV_PREFIX: shell.prefix},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("Published(fraud-notebook@1, released, ")
    assert "2 of 2 requirements are not met" in done.stdout
    assert "Published(fraud-notebook@2, dry run, at most 0 of " in done.stdout


@pytest.mark.parametrize("moment", ["while it is tried", "while it is sent"])
def test_ctrl_c_leaves_nothing_half_done(shell: Shell, log: KafkaLog, tmp_path: Path, moment: str) -> None:
    if moment == "while it is tried" and not Path("/proc/self/task").exists():
        pytest.skip("this system does not say which children a process has")
    rows = write_rows(tmp_path / "rows.csv")
    model = write_model(tmp_path / "model.onnx", LARGE)
    line = shell.line("publish", "pay", model, "--examples", rows, *FIELDS, "--release", *SLOWLY)

    def begun() -> bool:
        if moment == "while it is sent":
            return any(log.end_offsets(Topics(shell.prefix).blobs, committed=False).values())
        return Path(f"/proc/{publisher.pid}/task/{publisher.pid}/children").read_text() != ""

    publisher = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + GRACE_S
        while not begun():
            assert time.monotonic() < deadline
            assert publisher.poll() is None, publisher.communicate()
            time.sleep(0.001)
        publisher.send_signal(signal.SIGINT)
        out, err = publisher.communicate(timeout=GRACE_S)
    finally:
        publisher.kill()
    assert publisher.returncode == 130, err
    assert out == ""
    assert "Traceback" not in err
    found = content(log, shell)
    assert not [key for key in found.registry if key.startswith((b"version/", b"release/"))]
    published = shell.json("publish", "pay", model, "--examples", rows, *FIELDS, "--release")
    assert published["version"] == 1
    assert shell.json("show", "pay")["live"] is True
