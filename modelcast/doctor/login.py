"""Logging in to a broker, as bytes: PLAIN (RFC 4616), and SCRAM with SHA-256 or SHA-512 (RFC 5802, RFC 7677)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from typing import Final

from modelcast.errors import WireError

PLAIN: Final = "PLAIN"
_HASHES: Final = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}
# Brokers keep 4,096 to 16,384; whoever claims millions wants this process busy.
_MAX_ITERATIONS: Final = 1_000_000
_NONCE_BYTES: Final = 18

KNOWN_MECHANISMS: Final = frozenset({PLAIN, *_HASHES})


def plain(user: str, password: str) -> bytes:
    """The one message of PLAIN."""
    return b"\x00".join((b"", user.encode(), password.encode()))


class Scram:
    """One login: `first`, then `final` with the broker's answer.

    Args:
        mechanism: `SCRAM-SHA-256` or `SCRAM-SHA-512`.
        nonce: Ours; by default a random one.
    """

    def __init__(self, mechanism: str, user: str, password: str, *, nonce: str | None = None) -> None:
        self._hash = _HASHES[mechanism]
        self._password = password.encode()
        self._nonce = nonce or base64.b64encode(secrets.token_bytes(_NONCE_BYTES)).decode()
        self._first_bare = f"n={user.replace('=', '=3D').replace(',', '=2C')},r={self._nonce}"

    def first(self) -> bytes:
        """The first message."""
        return f"n,,{self._first_bare}".encode()

    def final(self, answer: bytes) -> bytes:
        """The message that proves the password. Raises WireError if `answer` is not the broker's first."""
        try:
            fields = dict(part.split("=", 1) for part in answer.decode("ascii").split(","))
            salt, iterations, nonce = base64.b64decode(fields["s"], validate=True), int(fields["i"]), fields["r"]
        except (ValueError, KeyError) as error:
            raise WireError("the broker's part of the login is none") from error
        if not nonce.startswith(self._nonce) or not 0 < iterations <= _MAX_ITERATIONS:
            raise WireError("the broker's part of the login answers another one")
        salted = hashlib.pbkdf2_hmac(self._hash, self._password, salt, iterations)
        client_key = self._keyed(salted, b"Client Key")
        stored_key = hashlib.new(self._hash, client_key).digest()
        without_proof = f"c=biws,r={nonce}"
        message = ",".join((self._first_bare, answer.decode("ascii"), without_proof)).encode()
        signature = self._keyed(stored_key, message)
        proof = bytes(one ^ other for one, other in zip(client_key, signature, strict=True))
        return f"{without_proof},p={base64.b64encode(proof).decode()}".encode()

    def _keyed(self, key: bytes, message: bytes) -> bytes:
        return hmac.new(key, message, self._hash).digest()
