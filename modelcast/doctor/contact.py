"""One broker, asked step by step: does its name resolve, does it accept, is it TLS, is it Kafka, does it let us in.

The client library sums all of that up as "no broker answers"; here each step has its own answer. Nothing is written,
and nobody is fenced: what is asked about transactional ids is who coordinates them.

    contact = Caller(Security.of(properties)).call("localhost:9092")
    contact.obstacle                                                    # None: all steps were taken
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from modelcast import __version__
from modelcast.errors import ConfigError, WireError

from . import wire
from .login import KNOWN_MECHANISMS, PLAIN, Scram, plain
from .tls import Security, Validity, validity

# A handshake over a slow link; a firewall that drops packets is told from it by nothing but time.
STEP_TIMEOUT_S: Final = 5.0
DEFAULT_PORT: Final = 9092

# OpenSSL's X509_V_ERR_…: what a certificate failed by.
_NOT_YET_VALID, _EXPIRED = 9, 10
_HOST_MISMATCHES: Final = frozenset({62, 64})
_TLS_ALERT: Final = b"\x15\x03"


class Obstacle(StrEnum):
    """Why a broker could not be asked to the end."""

    UNKNOWN_HOST = "unknown-host"
    REFUSED = "refused"
    SILENT = "silent"
    NOT_KAFKA = "not-kafka"
    SPEAKS_TLS = "speaks-tls"
    SPEAKS_PLAIN = "speaks-plain"
    PROPERTIES = "properties"
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    UNTRUSTED = "untrusted"
    WRONG_HOST = "wrong-host"
    OUR_CERTIFICATE = "our-certificate"
    HANDSHAKE = "handshake"
    WANTS_LOGIN = "wants-login"
    WANTS_NO_LOGIN = "wants-no-login"
    MECHANISM = "mechanism"
    PASSWORD = "password"  # noqa: S105 (the word for one that is refused)


@dataclass(frozen=True, slots=True)
class Contact:
    """What one broker answered.

    Attributes:
        address: `host:port`, as it was asked for.
        obstacle: Where it ended; None if every step was taken.
        said: What the network, OpenSSL or the broker said there.
        clock_ms: Our time when it was called.
        certificate: When the broker's certificate is valid; None without TLS.
        versions: None if it did not come to that.
        mechanisms: What it offers for logging in.
        brokers: `host:port` of each broker by its id, as it tells its clients to connect.
        ahead_ms: How far the cluster's clock is ahead of ours; None if it did not say.
        clock_error: Kafka's error code in place of it.
        denied_ids: Of the transactional ids that were asked about, those this login may not use at all.
        logged_in: Whether a login was tried here and taken; False also where none is asked for.
    """

    address: str
    obstacle: Obstacle | None = None
    said: str = ""
    clock_ms: int | None = None
    certificate: Validity | None = None
    versions: wire.BrokerVersions | None = None
    mechanisms: tuple[str, ...] = ()
    brokers: Mapping[int, str] = field(default_factory=dict)
    ahead_ms: int | None = None
    clock_error: int = 0
    denied_ids: frozenset[str] | None = None
    logged_in: bool = False


class _StoppedError(Exception):
    """A step failed."""

    def __init__(self, obstacle: Obstacle, said: object = "") -> None:
        super().__init__(obstacle)
        self.obstacle = obstacle
        self.said = str(said)


class Caller:
    """Asks brokers.

    Args:
        security: How to connect.
        transactional_ids: Asked about, once let in.
        now_ms: Our clock, in epoch milliseconds.
    """

    def __init__(
        self,
        security: Security,
        *,
        transactional_ids: Collection[str] = (),
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._security = security
        self._ids = tuple(transactional_ids)
        self._now_ms = now_ms

    def call(self, address: str) -> Contact:
        """Takes every step it can; never raises for what a broker or the network does."""
        notes: dict[str, object] = {"clock_ms": self._now_ms()}
        try:
            self._steps(address, notes)
        except _StoppedError as stopped:
            notes |= {"obstacle": stopped.obstacle, "said": stopped.said}
        return Contact(address, **notes)  # type: ignore[arg-type]  # collected by name in `_steps`

    def _steps(self, address: str, notes: dict[str, object]) -> None:
        with contextlib.ExitStack() as stack:
            line = stack.enter_context(self._connect(address, notes))
            notes["versions"] = self._versions(line, address)
            if self._security.uses_sasl and not self._login(line, notes):
                return
            try:
                notes["brokers"] = wire.read_brokers(line.ask(wire.METADATA, 1, wire.metadata_body()))
            except (_ClosedError, WireError) as closed:
                raise _StoppedError(Obstacle.WANTS_LOGIN, closed) from closed
            self._clock(line, notes)
            denied = (
                name
                for name in self._ids
                if wire.read_find_coordinator(line.ask(wire.FIND_COORDINATOR, 2, wire.find_coordinator_body(name)))
                == wire.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
            )
            notes["denied_ids"] = frozenset(denied) if self._ids else None

    @contextlib.contextmanager
    def _connect(self, address: str, notes: dict[str, object]) -> Iterator[_Line]:
        host, port = parts(address)
        raw = _open(host, port)
        with contextlib.closing(raw):
            if not self._security.uses_tls:
                yield _Line(raw)
                return
            with contextlib.closing(self._shake_hands(raw, host, port, notes)) as secured:
                yield _Line(secured)

    def _shake_hands(self, raw: socket.socket, host: str, port: int, notes: dict[str, object]) -> ssl.SSLSocket:
        try:
            context = self._security.context()
        except ConfigError as error:
            raise _StoppedError(Obstacle.PROPERTIES, error) from error
        try:
            secured = context.wrap_socket(raw, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            notes["certificate"] = self._certificate_of(host, port)
            raise _StoppedError(_verification(error.verify_code), error.verify_message) from error
        except (OSError, ValueError) as error:
            if self._answers_plain(host, port):
                raise _StoppedError(Obstacle.SPEAKS_PLAIN) from error
            raise _StoppedError(_of_tls(error), error) from error
        notes["certificate"] = _validity_of(secured)
        return secured

    def _versions(self, line: _Line, address: str) -> wire.BrokerVersions:
        try:
            error, found = wire.read_api_versions(
                line.ask(wire.API_VERSIONS, 3, wire.api_versions_body(__version__), flexible=True), version=3
            )
            if error == wire.UNSUPPORTED_VERSION:
                error, found = wire.read_api_versions(line.ask(wire.API_VERSIONS, 0, b""), version=0)
        except WireError as unreadable:
            raise _StoppedError(Obstacle.NOT_KAFKA, unreadable) from unreadable
        except _ClosedError as closed:
            if not self._security.uses_tls and (closed.is_alert or self._answers_tls(*parts(address))):
                raise _StoppedError(Obstacle.SPEAKS_TLS) from closed
            if closed.is_about_tls:
                raise _StoppedError(Obstacle.OUR_CERTIFICATE, closed) from closed
            # A broker that asks for a certificate says so, or not at all: both come after the handshake.
            silent = Obstacle.SILENT if closed.is_timeout else Obstacle.NOT_KAFKA
            raise _StoppedError(silent, closed) from closed
        return found

    def _login(self, line: _Line, notes: dict[str, object]) -> bool:
        """Whether the way is free for more; a mechanism not known here is left to the client library."""
        mechanism = self._security.mechanism or "GSSAPI"  # librdkafka's default
        try:
            error, offered = wire.read_sasl_handshake(line.ask(wire.SASL_HANDSHAKE, 1, wire.text(mechanism)))
        except (_ClosedError, WireError) as closed:
            raise _StoppedError(Obstacle.WANTS_NO_LOGIN, closed) from closed
        notes["mechanisms"] = tuple(sorted(offered))
        if error == wire.ILLEGAL_SASL_STATE:
            raise _StoppedError(Obstacle.WANTS_NO_LOGIN)
        if error == wire.UNSUPPORTED_SASL_MECHANISM:
            raise _StoppedError(Obstacle.MECHANISM)
        if mechanism not in KNOWN_MECHANISMS:
            return False
        try:
            self._authenticate(line, mechanism)
        except (_ClosedError, WireError) as refused:
            raise _StoppedError(Obstacle.PASSWORD, refused) from refused
        notes["logged_in"] = True
        return True

    def _authenticate(self, line: _Line, mechanism: str) -> None:
        user, password = self._security.user, self._security.password

        def say(message: bytes) -> bytes:
            body = wire.octets(message)
            error, words, answer = wire.read_sasl_authenticate(line.ask(wire.SASL_AUTHENTICATE, 0, body))
            if error:
                raise _StoppedError(Obstacle.PASSWORD, words)
            return answer

        if mechanism == PLAIN:
            say(plain(user, password))
            return
        scram = Scram(mechanism, user, password)
        say(scram.final(say(scram.first())))

    def _clock(self, line: _Line, notes: dict[str, object]) -> None:
        versions = notes["versions"]
        known = versions.apis.get(wire.DESCRIBE_QUORUM) if isinstance(versions, wire.BrokerVersions) else None
        if known is None or not known[0] <= 1 <= known[1]:
            return
        asked_ms = self._now_ms()
        try:
            answer = line.ask(wire.DESCRIBE_QUORUM, 1, wire.describe_quorum_body(), flexible=True)
            error, time_ms = wire.read_quorum_time(answer)
        except (_ClosedError, WireError) as closed:
            raise _StoppedError(Obstacle.NOT_KAFKA, closed) from closed
        notes["clock_error"] = error
        if time_ms is not None:
            notes["ahead_ms"] = time_ms - (asked_ms + self._now_ms()) // 2

    def _certificate_of(self, host: str, port: int) -> Validity | None:
        """When a certificate is valid that was refused; it is looked at without being believed."""
        try:
            with contextlib.closing(_open(host, port)) as raw:
                context = self._security.context(verify=False)
                with contextlib.closing(context.wrap_socket(raw, server_hostname=host)) as secured:
                    return _validity_of(secured)
        except (_StoppedError, OSError, ValueError, ConfigError):
            return None

    @staticmethod
    def _answers_plain(host: str, port: int) -> bool:
        try:
            with contextlib.closing(_open(host, port)) as raw:
                return _Line(raw).knows(wire.API_VERSIONS, 0, b"")
        except _StoppedError:
            return False

    @staticmethod
    def _answers_tls(host: str, port: int) -> bool:
        try:
            with contextlib.closing(_open(host, port)) as raw:
                context = Security(verifies=False).context()
                with contextlib.closing(context.wrap_socket(raw, server_hostname=host)):
                    return True
        except (_StoppedError, OSError, ValueError):
            return False


class _ClosedError(Exception):
    """No whole answer came."""

    def __init__(self, said: str, *, is_timeout: bool = False, is_alert: bool = False, is_about_tls: bool = False):
        super().__init__(said)
        self.is_timeout = is_timeout
        self.is_alert = is_alert
        self.is_about_tls = is_about_tls


class _Line:
    """One connection: a request, then its answer."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._correlation = 0

    def ask(self, api: int, version: int, body: bytes, *, flexible: bool = False) -> wire.Answer:
        """The answer, behind its correlation id.

        Raises:
            _ClosedError: None came.
            WireError: What came is no answer of Kafka's.
        """
        self._correlation += 1
        try:
            self._socket.sendall(wire.request(api, version, self._correlation, body, flexible=flexible))
            start = self._receive(4)
            if start[:2] == _TLS_ALERT:
                raise _ClosedError("a TLS alert", is_alert=True)
            size = int(struct.unpack(">i", start)[0])
            if not 4 <= size <= wire.MAX_ANSWER_BYTES:
                raise WireError(f"it answers {start!r}, which is not Kafka")
            answer = wire.Answer(self._receive(size))
        except TimeoutError as error:
            raise _ClosedError(f"nothing within {STEP_TIMEOUT_S:.0f} s", is_timeout=True) from error
        except ssl.SSLError as error:
            raise _ClosedError(error.reason or str(error), is_about_tls=True) from error
        except OSError as error:
            raise _ClosedError(error.strerror or str(error)) from error
        if answer.int32() != self._correlation:
            raise WireError("it answers another question, which is not Kafka")
        return answer

    def knows(self, api: int, version: int, body: bytes) -> bool:
        """Whether any answer of Kafka's comes."""
        try:
            self.ask(api, version, body)
        except (_ClosedError, WireError):
            return False
        return True

    def _receive(self, count: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < count:
            piece = self._socket.recv(min(count - len(pieces), 1 << 16))
            if not piece:
                raise _ClosedError("it closed the connection")
            pieces += piece
        return bytes(pieces)


def parts(address: str) -> tuple[str, int]:
    """Host and port of `host:port`, `[::1]:port`, `PROTOCOL://host:port`, or a host alone."""
    text = address.rpartition("://")[2].strip()
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or (":" in host and not host.startswith("[")):
        return text.strip("[]"), DEFAULT_PORT
    return host.strip("[]"), int(port)


def _open(host: str, port: int) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=STEP_TIMEOUT_S)
    except (socket.gaierror, UnicodeError) as error:
        raise _StoppedError(Obstacle.UNKNOWN_HOST, getattr(error, "strerror", None) or error) from error
    except TimeoutError as error:
        raise _StoppedError(Obstacle.SILENT, f"no connection within {STEP_TIMEOUT_S:.0f} s") from error
    except (OSError, OverflowError) as error:
        raise _StoppedError(Obstacle.REFUSED, getattr(error, "strerror", None) or error) from error


def _verification(code: int) -> Obstacle:
    if code in _HOST_MISMATCHES:
        return Obstacle.WRONG_HOST
    return {_EXPIRED: Obstacle.EXPIRED, _NOT_YET_VALID: Obstacle.NOT_YET_VALID}.get(code, Obstacle.UNTRUSTED)


def _of_tls(error: Exception) -> Obstacle:
    if isinstance(error, TimeoutError):
        return Obstacle.SILENT
    alert = isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")
    return Obstacle.OUR_CERTIFICATE if alert else Obstacle.HANDSHAKE


def _validity_of(secured: ssl.SSLSocket) -> Validity | None:
    der = secured.getpeercert(binary_form=True)
    try:
        return validity(der) if der else None
    except WireError:
        return None


def call_all(caller: Caller, addresses: Collection[str]) -> Mapping[str, Contact]:
    """Every address, at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=max(1, min(len(addresses), 16))) as pool:
        return dict(zip(addresses, pool.map(caller.call, addresses), strict=True))
