"""Digests: `sha256:<64 hex digits>` over the bytes of a file.

>>> of_bytes(b"")
'sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855'
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
# Large enough to hash at memory speed, small enough to stay in the cache of one core.
_READ_BYTES = 1 << 20


def is_digest(text: str) -> bool:
    """Whether `text` is a digest as written here."""
    return _DIGEST.fullmatch(text) is not None


def of_bytes(data: bytes | memoryview) -> str:
    """The digest of `data`."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def of_file(path: Path) -> str:
    """The digest of a file's bytes; raises OSError as `open` does."""
    hasher = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            hasher.update(block)
    return f"sha256:{hasher.hexdigest()}"


def hex_part(digest: str) -> str:
    """The 64 hex digits of a digest, as file names use them."""
    return digest.removeprefix("sha256:")
