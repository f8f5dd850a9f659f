"""A broker asked step by step, by sockets that are really refused, silent, of another protocol or of another host."""

from __future__ import annotations

import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from modelcast.dev.ports import LOOPBACK, free_ports
from modelcast.doctor import contact
from modelcast.doctor.contact import Caller, Obstacle, parts
from modelcast.doctor.obstacles import _MEANINGS, explain
from modelcast.doctor.sights import Question
from modelcast.doctor.tls import Security
from tests.secured import Authority, Certificate


@contextmanager
def server(answer: Callable[[socket.socket], object], *, host: str = LOOPBACK) -> Iterator[str]:
    """Answers each connection with `answer`, until the test is over."""
    with socket.create_server((host, 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    try:
                        answer(connection)
                    except OSError:
                        continue

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"{host}:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(timeout=60)
    assert not thread.is_alive()


def tls_server(certificate: Certificate) -> Callable[[socket.socket], object]:
    def answer(connection: socket.socket) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.both)
        with closing(context.wrap_socket(connection, server_side=True)) as secured:
            secured.recv(1)

    return answer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server here is slow, but the machine may be."""
    monkeypatch.setattr(contact, "STEP_TIMEOUT_S", 60.0)


def obstacle(address: str, **properties: str) -> Obstacle | None:
    security = Security.of({name.replace("_", "."): value for name, value in properties.items()})
    return Caller(security).call(address).obstacle


def test_an_address_is_a_host_with_a_port() -> None:
    assert parts("kafka:9093") == ("kafka", 9093)
    assert parts("SASL_SSL://kafka.example:9093") == ("kafka.example", 9093)
    assert parts("[::1]:9093") == ("::1", 9093)
    assert parts("::1") == ("::1", 9092)
    assert parts("kafka") == ("kafka", 9092)


def test_a_host_that_is_not_known() -> None:
    assert obstacle("broker.invalid:9092") is Obstacle.UNKNOWN_HOST


def test_a_port_on_which_nobody_listens() -> None:
    assert obstacle(f"{LOOPBACK}:{free_ports(1)[0]}") is Obstacle.REFUSED


def test_a_port_that_no_port_can_be() -> None:
    assert obstacle(f"{LOOPBACK}:99999") is Obstacle.REFUSED


def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact, "STEP_TIMEOUT_S", 0.1)
    release = threading.Event()
    with server(lambda _: release.wait(60)) as address:
        try:
            assert obstacle(address) is Obstacle.SILENT
        finally:
            release.set()


def test_a_web_server() -> None:
    with server(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as address:
        assert obstacle(address) is Obstacle.NOT_KAFKA


def test_a_server_that_is_no_broker_and_speaks_no_tls() -> None:
    with server(lambda connection: connection.sendall(b"220 mail.example ESMTP\r\n")) as address:
        assert obstacle(address, security_protocol="SSL") is Obstacle.HANDSHAKE


def test_a_tls_port_that_is_spoken_to_without(authority: Authority) -> None:
    with server(tls_server(authority.issue("broker"))) as address:
        assert obstacle(address) is Obstacle.SPEAKS_TLS


def test_a_certificate_of_an_authority_nobody_trusts_here(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path)
    with server(tls_server(authority.issue("broker"))) as address:
        found = obstacle(address, security_protocol="SSL", ssl_ca_location=str(stranger.certificate))
    assert found is Obstacle.UNTRUSTED


def test_a_certificate_that_has_expired_says_when(authority: Authority) -> None:
    expired = authority.issue("broker", days=-1, stem="expired")
    security = Security(protocol="SSL", ca=str(authority.certificate))
    with server(tls_server(expired)) as address:
        found = Caller(security).call(address)
    assert found.obstacle is Obstacle.EXPIRED
    assert found.certificate is not None
    assert found.clock_ms is not None
    assert 0 < found.clock_ms - found.certificate.until_ms - 86_400_000 < 3_600_000


@pytest.mark.skipif(sys.platform != "linux", reason="only there the loopback interface has more than one address")
def test_a_certificate_for_another_host(authority: Authority) -> None:
    properties = {"security_protocol": "SSL", "ssl_ca_location": str(authority.certificate)}
    with server(tls_server(authority.issue("broker")), host="127.0.0.2") as address:
        assert obstacle(address, **properties) is Obstacle.WRONG_HOST
        unchecked = {**properties, "ssl_endpoint_identification_algorithm": "none"}
        assert obstacle(address, **unchecked) is not Obstacle.WRONG_HOST


def test_a_file_of_authorities_that_is_none(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    with server(tls_server(authority.issue("broker"))) as address:
        found = obstacle(address, security_protocol="SSL", ssl_ca_location=str(tmp_path / "ca.pem"))
    assert found is Obstacle.PROPERTIES


@pytest.mark.parametrize("where", Obstacle)
def test_every_obstacle_has_words_and_a_way_out(where: Obstacle) -> None:
    question = Question("kafka:9092", {"sasl.username": "ann", "sasl.mechanism": "SCRAM-SHA-512"})
    found = explain(question, contact.Contact("kafka:9092", where, "so it said", mechanisms=("PLAIN",)))
    assert found.is_wrong
    assert "{" not in f"{found.message}{found.mend}"
    assert set(_MEANINGS) == set(Obstacle)
