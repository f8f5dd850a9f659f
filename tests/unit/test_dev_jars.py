"""Kafka's jars: only what the committed list names is ever put in place."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from modelcast.dev.jars import KAFKA_VERSION, kafka_jars, listed_jars
from modelcast.dev.ports import free_ports
from modelcast.errors import BrokerError, ExitCode, MissingExtraError


class WrongJar(BaseHTTPRequestHandler):
    """A mirror that answers every request with the same bytes."""

    def do_GET(self) -> None:
        body = b"not the jar that was asked for"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def wrong_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), WrongJar) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        config = tmp_path / "jgo.conf"
        config.write_text(f"[repositories]\nmirror = http://127.0.0.1:{server.server_port}\n")
        monkeypatch.setenv("JGO_CONFIG_FILE", str(config))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_ports(1)[0]}")
    monkeypatch.setenv("JGO_CONFIG_FILE", str(tmp_path / "no-such-file"))


def jars_in(folder: Path) -> list[Path]:
    return list(folder.rglob("*.jar"))


def test_the_list_names_the_broker_its_log_binding_and_one_client() -> None:
    coordinates = [jar.coordinate for jar in listed_jars()]
    assert ("org.apache.kafka", "kafka_2.13", KAFKA_VERSION) in coordinates
    assert [version for _, artifact, version in coordinates if artifact == "kafka-clients"] == [KAFKA_VERSION]
    assert ("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.4") in coordinates


def test_every_line_of_the_list_is_a_jar_with_a_sha256() -> None:
    jars = listed_jars()
    assert len({jar.path for jar in jars}) == len(jars)
    for jar in jars:
        group, artifact, version = jar.coordinate
        assert str(jar.path) == f"{group.replace('.', '/')}/{artifact}/{version}/{artifact}-{version}.jar"
        assert re.fullmatch("[0-9a-f]{64}", jar.sha256)


def test_a_jar_with_another_digest_is_refused_and_not_kept(tmp_path: Path, wrong_mirror: None) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(BrokerError, match="it will not be run"):
        kafka_jars(cache_dir=cache)
    assert jars_in(cache) == []


def test_without_network_and_cache_the_message_says_so(tmp_path: Path, no_network: None) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(BrokerError, match=r"not whole in the cache .* can't be fetched") as refused:
        kafka_jars(cache_dir=cache)
    assert str(cache) in refused.value.message
    assert refused.value.hint == "The first start needs a network; later ones do not"
    assert refused.value.exit_code == ExitCode.BROKER
    assert jars_in(cache) == []


def test_without_the_package_that_fetches_the_message_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jgo.config", None)
    with pytest.raises(MissingExtraError) as refused:
        kafka_jars(cache_dir=tmp_path)
    assert refused.value.hint == "Install it with: pip install 'modelcast[broker]'"


def test_a_cache_folder_that_cannot_be_made_names_the_variable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BrokerError) as refused:
        kafka_jars(cache_dir=tmp_path / "file" / "cache")
    assert refused.value.hint is not None
    assert "MODELCAST_CACHE_DIR" in refused.value.hint
