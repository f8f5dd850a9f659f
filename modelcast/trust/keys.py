"""Ed25519 keys: made, kept, loaded, and what they sign (only importer of securesystemslib and cryptography).

- A private key is a PEM file (PKCS#8), readable by its owner only, encrypted if a passphrase was given; beside it lies
  `NAME.pub`, one line `ed25519:<64 hex digits> NAME`.
- A key's id is securesystemslib's: SHA-256 over the canonical JSON of its type, scheme and public value. It is always
  computed from the public key, never believed.
- What is signed is DSSE's pre-authentication encoding: `"DSSEv1" SP LEN(type) SP type SP LEN(payload) SP payload`, so a
  signature over one payload type says nothing of another.

    key = generate("alice", config_folder() / "keys")
    signature = key.sign(envelope.payload_type, envelope.payload)
    key.public.verifies(envelope.payload_type, envelope.payload, signature.signature)
"""

from __future__ import annotations

import functools
import os
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from modelcast.errors import ConfigError, MissingExtraError, UsageError
from modelcast.records import EnvelopeSignature

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey

ENV_PASSPHRASE: Final = "MODELCAST_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable
PRIVATE_SUFFIX: Final = ".key"
PUBLIC_SUFFIX: Final = ".pub"
# A PEM of an Ed25519 key takes some hundred bytes; whatever is larger is another file.
MAX_KEY_FILE_BYTES: Final = 16 << 10

_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PUBLIC = re.compile(r"ed25519:([0-9a-f]{64})")


class Signer(Protocol):
    """What signs records: a key of this user, or whatever stands for one."""

    @property
    def key_id(self) -> str:
        """The id its public key has."""

    def sign(self, payload_type: str, payload: bytes) -> EnvelopeSignature:
        """A signature over the pre-authentication encoding of both."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 public key; `value` is its 64 hex digits."""

    value: str

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Reads `ed25519:<64 hex digits>` or a PEM. Raises ConfigError."""
        if text.lstrip().startswith("-----BEGIN"):
            return _public_from_pem(text)
        match = _PUBLIC.fullmatch(text.strip().lower())
        if match is None:
            raise ConfigError(
                f"{text.strip()[:80]!r} is not a public key", hint="Write ed25519: and 64 hex digits, or a PEM."
            )
        return cls(match[1])

    @property
    def key_id(self) -> str:
        """Its id, 64 hex digits."""
        return _sslib_key(self.value).keyid

    def verifies(self, payload_type: str, payload: bytes, signature: bytes) -> bool:
        """Whether `signature` is this key's over exactly this type and payload."""
        sslib = _sslib()
        signed = sslib.Signature(self.key_id, signature.hex())
        try:
            _sslib_key(self.value).verify_signature(signed, encoding(payload_type, payload))
        except sslib.UnverifiedSignatureError:
            return False
        return True

    def __str__(self) -> str:
        return f"ed25519:{self.value}"


class SigningKey:
    """A private key in memory, with its name and public half."""

    def __init__(self, name: str, signer: CryptoSigner) -> None:
        self.name = name
        self.public = PublicKey(signer.public_key.keyval["public"])
        self._signer = signer

    @property
    def key_id(self) -> str:
        """The id its public key has."""
        return self.public.key_id

    def sign(self, payload_type: str, payload: bytes) -> EnvelopeSignature:
        """A signature over the pre-authentication encoding of both."""
        signed = self._signer.sign(encoding(payload_type, payload))
        return EnvelopeSignature(self.key_id, bytes.fromhex(signed.signature))

    def __repr__(self) -> str:
        return f"<SigningKey {self.name} {self.key_id[:12]}>"


def encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding (secure-systems-lab/dsse, protocol.md, version 1)."""
    pae: bytes = _sslib().Envelope(payload, payload_type, {}).pae()
    return pae


def generate(name: str, folder: Path, *, passphrase: str | None = None) -> SigningKey:
    """Makes a key: `<folder>/<name>.key`, for its owner only, and `<folder>/<name>.pub`.

    Raises:
        UsageError: That is no name for a key, or a key of that name is there.
        ConfigError: The folder can't be written.
        MissingExtraError: securesystemslib is not installed.
    """
    if not _KEY_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is not a name for a key", hint="Use letters, digits, '.', '_' and '-'.")
    sslib = _sslib()
    signer = sslib.CryptoSigner.generate_ed25519()
    made = SigningKey(name, signer)
    private = folder / f"{name}{PRIVATE_SUFFIX}"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Never in the place of another key, and at no moment readable by anyone else.
        with os.fdopen(os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(_private_pem(signer.private_bytes, passphrase))
        private.with_suffix(PUBLIC_SUFFIX).write_text(f"{made.public} {name}\n", encoding="utf-8")
    except FileExistsError:
        raise UsageError(f"there is a key {private} already", hint="Choose another name, or move it away.") from None
    except OSError as error:
        raise ConfigError(f"the key can't be written to {folder}: {error}", hint="Name another folder.") from error
    return made


def load(named: str | Path, folder: Path, *, ask: Callable[[str], str] | None = None) -> SigningKey:
    """Loads a private key by its name in `folder`, or by its path.

    Args:
        ask: Asks a person for a passphrase, given the key's path; None where nobody can be asked.

    Raises:
        UsageError: There is no such key.
        ConfigError: The file is no Ed25519 key, others may read it, or the passphrase is missing or wrong.
        MissingExtraError: securesystemslib is not installed.
    """
    path = find(named, folder, PRIVATE_SUFFIX)
    sslib = _sslib()
    try:
        status = path.stat()
        data = path.read_bytes() if status.st_size <= MAX_KEY_FILE_BYTES else b""
    except OSError as error:
        raise ConfigError(f"key {path} can't be read: {error}") from error
    if status.st_mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigError(f"key {path} can be read or written by everyone", hint=f"Run: chmod 600 {path}")
    private = _private_from_pem(data, path, ask)
    if not isinstance(private, sslib.Ed25519PrivateKey):
        raise ConfigError(f"{path} holds no Ed25519 key", hint="Make one with: modelcast keys new NAME")
    return SigningKey(path.stem, sslib.CryptoSigner(private))


def load_public(named: str | Path, folder: Path) -> tuple[str, PublicKey]:
    """A public key and its name, by name or by the path of its `.pub` or PEM file. Raises UsageError, ConfigError."""
    path = find(named, folder, PUBLIC_SUFFIX)
    try:
        data = path.read_bytes()
        text = data[:MAX_KEY_FILE_BYTES].decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"public key {path} can't be read: {error}") from error
    if "PRIVATE KEY" in text:
        raise UsageError(
            f"{path} is a private key, which stays with its owner", hint="Name the .pub file that lies beside it."
        )
    if text.startswith("-----BEGIN"):
        return path.stem, PublicKey.parse(text)
    value, _, name = text.partition(" ")
    name = name.strip() or path.stem
    if not _KEY_NAME.fullmatch(name):  # the file came from someone else
        raise ConfigError(f"{path} names its key {name[:80]!r}", hint="Use letters, digits, '.', '_' and '-'.")
    return name, PublicKey.parse(value)


def find(named: str | Path, folder: Path, suffix: str) -> Path:
    """The file of a key: `named` itself if it is a path, else `<folder>/<named><suffix>`. Raises UsageError."""
    given = str(named)
    is_path = isinstance(named, Path) or os.sep in given or given.endswith((PRIVATE_SUFFIX, PUBLIC_SUFFIX, ".pem"))
    path = Path(given).expanduser() if is_path else folder / f"{given}{suffix}"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in folder.glob(f"*{suffix}"))) or "none yet"
        raise UsageError(
            f"there is no key {path}" if is_path else f"there is no key {given!r} in {folder}",
            hint=f"Keys there: {known}. Make one with: modelcast keys new {Path(given).stem}",
        )
    return path


def passphrase_from_environment() -> str | None:
    """The passphrase that `MODELCAST_KEY_PASSPHRASE` holds, if it holds one."""
    return os.environ.get(ENV_PASSPHRASE) or None


def ask_person(path: str) -> str:
    """Asks whoever sits at the terminal. Raises ConfigError where nobody does."""
    if not sys.stdin.isatty():
        raise ConfigError(
            f"key {path} has a passphrase, and nobody can be asked for it", hint=f"Put it into {ENV_PASSPHRASE}."
        )
    import getpass

    return getpass.getpass(f"Passphrase of {path}: ")


@dataclass(frozen=True)
class _Sslib:
    """The names used of securesystemslib and cryptography, imported together when first needed."""

    CryptoSigner: Any
    SSlibKey: Any
    Signature: Any
    Envelope: Any
    UnverifiedSignatureError: type[Exception]
    UnsupportedAlgorithm: type[Exception]
    Ed25519PrivateKey: Any
    Ed25519PublicKey: Any
    serialization: Any = field(repr=False)


@functools.cache
def _sslib() -> _Sslib:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
        from securesystemslib.dsse import Envelope
        from securesystemslib.exceptions import UnverifiedSignatureError
        from securesystemslib.signer import CryptoSigner, Signature, SSlibKey
    except ImportError as error:
        raise MissingExtraError(
            f"signatures need a package that is not installed: {error.name}", hint="pip install 'modelcast[signing]'"
        ) from error
    return _Sslib(
        CryptoSigner,
        SSlibKey,
        Signature,
        Envelope,
        UnverifiedSignatureError,
        UnsupportedAlgorithm,
        Ed25519PrivateKey,
        Ed25519PublicKey,
        serialization,
    )


@functools.lru_cache(maxsize=4096)  # as many keys as a policy may hold, and their successors
def _sslib_key(value: str) -> SSlibKey:
    sslib = _sslib()
    try:
        public = sslib.Ed25519PublicKey.from_public_bytes(bytes.fromhex(value))
    except ValueError as error:
        raise ConfigError(f"ed25519:{value} is not a public key: {error}") from error
    key: SSlibKey = sslib.SSlibKey.from_crypto(public)
    return key


def _public_from_pem(text: str) -> PublicKey:
    sslib = _sslib()
    try:
        public = sslib.serialization.load_pem_public_key(text.encode())
    except (ValueError, sslib.UnsupportedAlgorithm) as error:
        raise ConfigError(f"that is no public key: {error}") from error
    if not isinstance(public, sslib.Ed25519PublicKey):
        raise ConfigError("that public key is not of Ed25519", hint="Make a key with: modelcast keys new NAME")
    return PublicKey(sslib.SSlibKey.from_crypto(public).keyval["public"])


def _private_pem(plain_pem: bytes, passphrase: str | None) -> bytes:
    if passphrase is None:
        return plain_pem
    serialization = _sslib().serialization
    pem: bytes = serialization.load_pem_private_key(plain_pem, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase.encode()),
    )
    return pem


def _private_from_pem(data: bytes, path: Path, ask: Callable[[str], str] | None) -> object:
    read = _sslib().serialization.load_pem_private_key
    try:
        try:
            return read(data, None)
        except TypeError:  # it is encrypted
            passphrase = passphrase_from_environment() or (ask or ask_person)(str(path))
        return read(data, passphrase.encode())
    except (ValueError, TypeError, _sslib().UnsupportedAlgorithm) as error:
        encrypted = b"ENCRYPTED" in data
        raise ConfigError(
            f"the passphrase of key {path} is wrong" if encrypted else f"{path} is not a private key: {error}",
            hint=f"It is read from {ENV_PASSPHRASE}, or asked for." if encrypted else "Make one: modelcast keys new",
        ) from error
