"""Versions in a store: published by the command line, live in a client, refused or waited for as those of chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from modelcast.config import Connection
from modelcast.consumer import ModelClient
from modelcast.errors import StoreNotAllowedError
from modelcast.files.cache import Cache
from modelcast.files.fetch import Fetcher
from modelcast.kafka import KafkaLog
from modelcast.topics import Topics
from tests.brokers import Broker
from tests.publishing import Shell, image, write_model, write_rows
from tests.s3_server import S3Server, s3_server
from tests.unit.control_rig import wait_until

ROWS = {"amount": [1.0], "age": [2.0]}
# A store that is away is tried again after half a second at first, and then ever later.
LIVE_S = 60.0


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELCAST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("MODELCAST_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def shell(broker: Broker, prefix: str) -> Shell:
    made = Shell(broker.bootstrap_servers, prefix)
    made.json("init", "--blob-partitions", "2")
    return made


@pytest.fixture
def log(broker: Broker) -> Iterator[KafkaLog]:
    with KafkaLog({"bootstrap.servers": broker.bootstrap_servers}) as made:
        yield made


class Publisher:
    """Publishes and releases models that differ by what they add, by the command line."""

    def __init__(self, shell: Shell, folder: Path) -> None:
        self.shell = shell
        self.folder = folder
        self.rows = write_rows(folder / "rows.csv")

    def publish(self, bias: float, *arguments: str, release: bool = True) -> dict[str, object]:
        source = write_model(self.folder / f"{bias}.onnx", bias=bias)
        options = ("--examples", self.rows, "--fields", "amount,age", *arguments, *(["--release"] if release else []))
        return self.shell.json("publish", "fraud", source, *options)


@pytest.fixture
def publisher(shell: Shell, tmp_path: Path) -> Publisher:
    return Publisher(shell, tmp_path)


def client(shell: Shell, *stores: str) -> ModelClient:
    return ModelClient(
        connection=Connection.resolve(shell.servers, prefix=shell.prefix), stores=stores or None, device="cpu"
    )


def blobs(log: KafkaLog, shell: Shell) -> int:
    return sum(log.end_offsets(Topics(shell.prefix).blobs, committed=False).values())


def reasons(models: ModelClient) -> list[tuple[int, str]]:
    return [(refusal.version, refusal.reason) for refusal in models.model("fraud").refusals]


def key_of(server: S3Server, log: KafkaLog, shell: Shell, version: int) -> str:
    """The object of a version's graph."""
    manifest = image(log, Topics(shell.prefix)).model("fraud").version(version).manifest
    entry = next(entry for entry in manifest.files if entry.path == "model.onnx")
    return f"team/sha256/{entry.digest.removeprefix('sha256:')}"


def test_a_version_in_a_store_goes_live_and_leaves_nothing_on_the_blobs_topic(
    server: S3Server, shell: Shell, log: KafkaLog, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = publisher.publish(100.0, "--store", f"{server.url}/")
    assert first["bytes_sent"] == first["bytes_total"] == sum(server.sizes().values())
    assert blobs(log, shell) == 0
    assert image(log, Topics(shell.prefix)).model("fraud").version(1).hints == ()
    assert shell.json("show", "fraud")["store"] == server.url
    assert server.url in shell.says("show", "fraud")
    monkeypatch.setenv("MODELCAST_STORES", f"file:///elsewhere,s3://{server.bucket}")
    with client(shell) as models:
        before = models["fraud"].predict(ROWS)["score"]
        assert publisher.publish(100.0, "--store", server.url)["bytes_sent"] == 0
        wait_until(lambda: models["fraud"].version == 2, "version 2 to be live", LIVE_S)
        assert models["fraud"].predict(ROWS)["score"] == before


def test_a_store_nobody_allowed_is_refused_and_the_old_version_serves(
    server: S3Server, shell: Shell, publisher: Publisher
) -> None:
    publisher.publish(1.0)
    with client(shell, f"s3://{server.bucket}-of-others", f"{server.url}-b") as models:
        models["fraud"].predict(ROWS)
        publisher.publish(2.0, "--store", server.url)
        wait_until(lambda: reasons(models) == [(2, "store-not-allowed")], "the refusal", LIVE_S)
        assert f"MODELCAST_STORES={server.url}" in models["fraud"].refusals[0].message
        assert models["fraud"].predict(ROWS).version == 1


def test_a_stream_is_scored_by_a_version_in_a_folder_that_is_allowed(
    shell: Shell, publisher: Publisher, prefix: str, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    publisher.publish(1.0, "--store", f"file://{tmp_path}/store")
    shell.json("send", f"{prefix}-events", publisher.rows, "--format", "json")
    line = ("score", "fraud", "--events", f"{prefix}-events", "--predictions", f"{prefix}-scores", "--until-end")
    status, _, err = shell.call(*line, "--store-allowed", f"file://{tmp_path}/other")
    assert status == 5, err
    assert "--store-allowed" in err
    assert "3 predictions" in shell.says(*line, "--store-allowed", f"file://{tmp_path}")


@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_a_damaged_object_is_refused_like_a_bad_chunk_and_the_old_version_serves(
    server: S3Server, shell: Shell, log: KafkaLog, publisher: Publisher, damage: str
) -> None:
    publisher.publish(1.0, "--store", server.url)
    with client(shell, server.url) as models:
        models["fraud"].predict(ROWS)
        publisher.publish(2.0, "--store", server.url, release=False)
        key = key_of(server, log, shell, 2)
        graph = server.read(key)
        if damage == "altered":
            server.write(key, graph[:-1] + bytes([graph[-1] ^ 1]))
        else:
            server.remove(key)
        shell.json("release", "fraud", "2")
        wait_until(lambda: reasons(models) == [(2, "integrity")], "the refusal", LIVE_S)
        assert "'model.onnx'" in models["fraud"].refusals[0].message
        assert models["fraud"].predict(ROWS).version == 1
        # Mended by the hint's own words: sent again as another version.
        assert publisher.publish(2.0, "--store", server.url, "--resend")["bytes_sent"]
        assert server.read(key) == graph
        wait_until(lambda: models["fraud"].version == 3, "version 3 to be live", LIVE_S)


def test_a_store_that_is_away_is_waited_for(server: S3Server, shell: Shell, publisher: Publisher) -> None:
    publisher.publish(1.0, "--store", server.url)
    with client(shell, server.url) as models:
        models["fraud"].predict(ROWS)
        publisher.publish(2.0, "--store", server.url, release=False)
        server.stop()
        shell.json("release", "fraud", "2")
        wait_until(lambda: reasons(models) == [(2, "store")], "a word that the store is away", LIVE_S)
        assert models["fraud"].predict(ROWS).version == 1
        assert "AWS_ENDPOINT_URL" in models["fraud"].refusals[0].message
        server.start()
        wait_until(lambda: models["fraud"].version == 2, "version 2 to be live", LIVE_S)


def test_versions_by_chunks_and_by_reference_do_not_count_on_each_other(
    shell: Shell, log: KafkaLog, publisher: Publisher, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "other").mkdir()
    store, other = f"file://{tmp_path}/store", f"file://{tmp_path}/other"
    sent = [
        publisher.publish(1.0, *arguments)["bytes_sent"]
        for arguments in ((), ("--store", store), ("--store", other), (), ("--store", store))
    ]
    total = sent[0]
    assert sent == [total, total, total, 0, 0]
    assert publisher.publish(7.0, "--store", store)["bytes_sent"]
    # The new graph is in the store only: a publication by chunks has to send it.
    assert publisher.publish(7.0)["bytes_sent"]
    entry = image(log, Topics(shell.prefix)).model("fraud")
    for version in range(1, 8):
        with closing(Cache(tmp_path / f"cache-{version}")) as cache:
            fetcher = Fetcher(log, Topics(shell.prefix), cache)
            if entry.version(version).manifest.store is None:
                assert fetcher.fetch(entry.version(version)).is_dir()
            else:
                with pytest.raises(StoreNotAllowedError):
                    fetcher.fetch(entry.version(version))


def test_a_store_that_cannot_be_used_ends_publish_with_nothing_made(
    server: S3Server, shell: Shell, log: KafkaLog, publisher: Publisher, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "model.onnx")
    line = ("publish", "fraud", source, "--examples", publisher.rows, "--fields", "amount,age", "--store")
    assert "no bucket 'nobody'" in shell.fails(*line, "s3://nobody/team", status=3)
    assert "mkdir -p" in shell.fails(*line, f"file://{tmp_path}/absent", status=3)
    assert "secret" not in shell.fails(*line, "s3://key:secret@models/team", status=2)
    assert "absolute" in shell.fails(*line, "file:models", status=2)
    server.stop()
    assert "AWS_ENDPOINT_URL" in shell.fails(*line, server.url, status=3)
    assert image(log, Topics(shell.prefix)).models == {}


def test_a_dry_run_says_what_a_store_would_get_and_puts_nothing(server: S3Server, publisher: Publisher) -> None:
    told = publisher.publish(1.0, "--store", server.url, "--dry-run", release=False)
    assert told["bytes_sent"] == told["bytes_total"]
    assert server.sizes() == {}
