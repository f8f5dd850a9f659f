"""What client properties say of security, and what certificates say of their time.

- librdkafka's names: `security.protocol`, `ssl.*`, `sasl.*`, with its defaults (`PLAINTEXT`, host names checked).
- A certificate's time is read from its bytes (X.509, RFC 5280 §4.1): an expired one can't be asked through a handshake
  that it fails.
"""

from __future__ import annotations

import base64
import binascii
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from modelcast.errors import ConfigError, WireError

_PEM: Final = re.compile(rb"-----BEGIN CERTIFICATE-----(.+?)-----END CERTIFICATE-----", re.DOTALL)
# A bundle of all public authorities takes a quarter of that.
_MAX_PEM_BYTES: Final = 1 << 20
_SEQUENCE, _INTEGER, _VERSION, _UTC_TIME, _GENERAL_TIME = 0x30, 0x02, 0xA0, 0x17, 0x18


@dataclass(frozen=True, slots=True)
class Validity:
    """When a certificate is valid, in epoch milliseconds."""

    from_ms: int
    until_ms: int


@dataclass(frozen=True)
class Security:
    """How a client is told to connect.

    Attributes:
        protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        ca: File or folder of authorities; empty for the system's own.
        certificate: The client's own certificate as a file; empty if it has none, or not as a file.
        keystore: Its certificate as a PKCS#12 file, or inside the properties: not read here.
    """

    protocol: str = "PLAINTEXT"
    mechanism: str = ""
    user: str = ""
    password: str = field(default="", repr=False)
    ca: str = ""
    ca_pem: str = ""
    certificate: str = ""
    key: str = ""
    key_password: str = field(default="", repr=False)
    keystore: bool = False
    verifies: bool = True
    checks_host: bool = True

    @classmethod
    def of(cls, properties: Mapping[str, str]) -> Security:
        """What client properties come to."""

        def value(*names: str) -> str:
            return next((properties[name] for name in names if properties.get(name)), "")

        ca = value("ssl.ca.location")
        return cls(
            protocol=value("security.protocol").upper() or "PLAINTEXT",
            mechanism=value("sasl.mechanism", "sasl.mechanisms").upper(),
            user=value("sasl.username"),
            password=value("sasl.password"),
            ca="" if ca == "probe" else ca,
            ca_pem=value("ssl.ca.pem"),
            certificate=value("ssl.certificate.location"),
            key=value("ssl.key.location"),
            key_password=value("ssl.key.password"),
            keystore=bool(value("ssl.keystore.location", "ssl.certificate.pem")),
            verifies=value("enable.ssl.certificate.verification").lower() != "false",
            checks_host=value("ssl.endpoint.identification.algorithm").lower() != "none",
        )

    @property
    def uses_tls(self) -> bool:
        return self.protocol in ("SSL", "SASL_SSL")

    @property
    def uses_sasl(self) -> bool:
        return self.protocol in ("SASL_PLAINTEXT", "SASL_SSL")

    def context(self, *, verify: bool = True) -> ssl.SSLContext:
        """How to shake hands; `verify` says whether to look at the broker's certificate.

        Raises:
            ConfigError: A file of the properties can't be used.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = verify and self.verifies and self.checks_host
        context.verify_mode = ssl.CERT_REQUIRED if verify and self.verifies else ssl.CERT_NONE
        name, path = "ssl.ca.location", self.ca
        try:
            if self.ca:
                folder = Path(self.ca).is_dir()
                context.load_verify_locations(cafile=None if folder else self.ca, capath=self.ca if folder else None)
            elif self.ca_pem:
                context.load_verify_locations(cadata=self.ca_pem)
            else:
                context.load_default_certs()
            if self.certificate:
                name, path = "ssl.certificate.location", self.certificate
                context.load_cert_chain(self.certificate, self.key or None, lambda: self.key_password)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"{name} ({path}) can't be used: {error}",
                hint=f"Set {name} (and ssl.key.location) to readable PEM files.",
            ) from error
        return context


def validities(pem: bytes) -> tuple[Validity, ...]:
    """Of each certificate in a PEM file, in their order; what can't be read is left out."""
    found = []
    for block in _PEM.findall(pem):
        try:
            found.append(validity(base64.b64decode(block)))
        except (WireError, binascii.Error):
            continue
    return tuple(found)


def validities_in(path: Path) -> tuple[Validity, ...]:
    """Of each certificate in a file; none where it can't be read."""
    try:
        with path.open("rb") as file:
            return validities(file.read(_MAX_PEM_BYTES))
    except OSError:
        return ()


def validity(der: bytes) -> Validity:
    """When a certificate is valid. Raises WireError if it can't be read."""
    (certificate,) = _fields(der, 1)
    (body,) = _fields(certificate[1], 1)
    fields = _fields(body[1], 6)
    first = 1 if fields[0][0] == _VERSION else 0
    if fields[first][0] != _INTEGER:
        raise WireError("a certificate has no serial number where it should")
    times = _fields(fields[first + 3][1], 2)
    return Validity(*(_time_ms(tag, content) for tag, content in times))


def _fields(der: bytes, count: int) -> list[tuple[int, bytes]]:
    """The first fields of what a DER value holds: tag and content."""
    found = [field for field, _ in zip(_walk(der), range(count), strict=False)]
    if len(found) < count:
        raise WireError("a certificate ends before its fields do")
    return found


def _walk(der: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 2 <= len(der):
        tag, length = der[at], der[at + 1]
        at += 2
        if length & 0x80:
            octets = length & 0x7F
            length = int.from_bytes(der[at : at + octets], "big")
            at += octets
        if at + length > len(der):
            raise WireError("a certificate ends before its fields do")
        yield tag, der[at : at + length]
        at += length


def _time_ms(tag: int, content: bytes) -> int:
    form = {_UTC_TIME: "%y%m%d%H%M%SZ", _GENERAL_TIME: "%Y%m%d%H%M%SZ"}.get(tag)
    if form is None:
        raise WireError("a certificate's time is none")
    try:
        when = datetime.strptime(content.decode("ascii"), form).replace(tzinfo=UTC)
    except ValueError as error:
        raise WireError("a certificate's time is none") from error
    return int(when.timestamp() * 1000)
