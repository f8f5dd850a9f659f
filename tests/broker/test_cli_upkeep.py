"""`delete` and `gc` as people run them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelcast.kafka import KafkaLog
from modelcast.topics import ChunkKey, Topics, blob_partition
from tests.brokers import Broker
from tests.publishing import Content, Shell, write_model, write_rows

FIELDS = ("--fields", "amount,age")
DIGEST = "sha256:" + "a" * 64


@pytest.fixture(autouse=True)
def state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))


@pytest.fixture
def log(broker: Broker) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as made:
        yield made


@pytest.fixture
def shell(broker: Broker, prefix: str, tmp_path: Path) -> Shell:
    """A repository with `fraud`: 1 was live, 2 is, 3 never was."""
    made = Shell(broker.bootstrap_servers, prefix)
    made.json("init", "--blob-partitions", "2")
    rows = write_rows(tmp_path / "rows.csv")
    for version, release in ((1, "--release"), (2, "--release"), (3, None)):
        source = write_model(tmp_path / f"{version}.onnx", bias=float(version))
        arguments = ["publish", "fraud", source, "--examples", rows, *FIELDS]
        made.json(*arguments, *([release] if release else []))
    return made


def test_a_version_is_deleted_once_with_its_reason_and_the_live_one_never(shell: Shell) -> None:
    assert "fraud@2 is live" in shell.fails("delete", "fraud@2", "--force", status=2)
    assert "delete fraud@1 --force" in shell.fails("delete", "fraud@1", status=2)
    assert "NAME@NUMBER" in shell.fails("delete", "fraud@x", status=2)
    assert "modelcast delete fraud@NUMBER" in shell.fails("delete", "fraud", status=2)
    shell.fails("delete", "fraud@9", status=4)
    shell.fails("delete", "spam@1", status=4)

    deleted = shell.json("delete", "fraud@3", "--message", "wrong [bold]data")
    assert (deleted["version"], deleted["repeated"], deleted["left"], deleted["chunks"]) == (3, False, False, 2)
    assert deleted["bytes"] > 0
    assert "fraud@3 was deleted before" in shell.says("delete", "fraud@3")
    assert "wrong [bold]data" in shell.says("delete", "fraud@3")
    assert "fraud@3 was withdrawn: wrong [bold]data" in shell.fails("show", "fraud@3", status=4)
    assert "fraud@3 was withdrawn" in shell.fails("release", "fraud", "3", status=4)
    assert "Deleted fraud@1" in shell.says("delete", "fraud@1", "--force")
    assert "withdrawn: wrong [bold]data (by " in shell.says("history", "fraud")
    told = next(v for v in shell.json("history", "fraud")["versions"] if v["version"] == 3)
    assert (told["model"], told["withdrawn"], told["message"]) == ("fraud", True, "wrong [bold]data")
    assert told["created_by"]


def test_gc_shows_takes_and_then_finds_nothing(shell: Shell, log: KafkaLog) -> None:
    topics = Topics(shell.prefix)
    with closing(log.writer()) as writer:
        key = ChunkKey("never", DIGEST, 1_000, 0).encode()
        writer.send(topics.blobs, key=key, value=bytes(10), partition=blob_partition("never", DIGEST, 2))
        writer.flush(60)
    before = Content.of(log, topics)
    assert "Nothing to collect that is older than 24h" in shell.says("gc")
    assert "older than 1.5h" in shell.says("gc", "--grace", "1.5h")
    shown = shell.json("gc", "--grace", "0s", "--dry-run")
    assert shown["models"] == [{"model": "never", "chunks": 1, "bytes": 10}]
    assert Content.of(log, topics) == before
    assert shell.json("gc", "--grace", "0s") == {**shown, "dry_run": False}
    assert shell.json("gc", "--grace", "0s", "--dry-run")["models"] == []
    for text in ("5x", f"{9:9<400}d"):
        assert "not a time" in shell.fails("gc", "--grace", text, status=2)
