"""Where model files lie by reference: a store's URL, and the stores a process may read.

A manifest comes over a topic, so the URL in it must not choose what a process connects to: a consumer reads from stores
it was told of, and refuses the others. URLs are compared part by part, never as text: `s3://models` allows
`s3://models/team`, not `s3://models-of-others`.

    MODELCAST_STORES   the stores a consumer may read, separated by commas
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, urlsplit

from modelcast.errors import ConfigError, StoreNotAllowedError, UsageError
from modelcast.names import ModelVersion

ENV_STORES: Final = "MODELCAST_STORES"
# A URL is told in messages and stands in every manifest: longer than any bucket and prefix people name.
MAX_URL_CHARS: Final = 1_000
# Several names of one place would make one store two.
_SAME: Final = {"s3a": "s3", "local": "file"}
# Hosts of these are names in DNS, where case says nothing; a bucket's name may depend on it.
_DNS_SCHEMES: Final = frozenset({"http", "https", "ftp", "sftp", "ssh", "webhdfs", "hdfs"})
# What a server, a shell pattern or a list of URLs would read as something else than a part of a name.
_FOREIGN: Final = frozenset('%?#*\\,"<>|')


@dataclass(frozen=True, slots=True)
class StoreUrl:
    """A store in its normal form; `str` gives the text that stands in manifests.

    Attributes:
        scheme: `s3`, `file`, or another that fsspec knows.
        host: The bucket, or the host and port; empty for `file`.
        segments: The folder or prefix, part by part.
    """

    scheme: str
    host: str
    segments: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> StoreUrl:
        """Reads `s3://bucket/prefix`, `file:///folder`, or a URL of another scheme.

        Raises:
            UsageError: It is none, is relative, or holds what may be a secret (user, password, query).
        """
        _check_secrets(text)
        parts = _split(text)
        scheme = _SAME.get(parts.scheme.lower(), parts.scheme.lower())
        segments = tuple(parts.path.strip("/").split("/")) if parts.path.strip("/") else ()
        if any(part in {"", ".", ".."} for part in segments) or not _is_plain(parts.netloc + parts.path):
            raise UsageError(
                f"{text[:MAX_URL_CHARS]!r} is not the plain URL of a folder",
                hint="Write it without empty parts, '.', '..', '%', patterns and control characters.",
            )
        host = parts.netloc.lower() if scheme in _DNS_SCHEMES else parts.netloc
        if scheme == "file":
            _check_folder(text, parts)
        elif not host:
            raise UsageError(f"{text!r} names no bucket or host", hint=f"Write {scheme}://BUCKET/PREFIX.")
        return cls(scheme, host, segments)

    @property
    def path(self) -> str:
        """What lies behind the scheme: `bucket/prefix`, or `/folder` for `file`."""
        return "/" + "/".join(self.segments) if self.scheme == "file" else "/".join((self.host, *self.segments))

    def holds(self, other: StoreUrl) -> bool:
        """Whether `other` is this place or lies below it."""
        return (self.scheme, self.host) == (other.scheme, other.host) and (
            other.segments[: len(self.segments)] == self.segments
        )

    def __str__(self) -> str:
        return f"{self.scheme}://{self.path}"


@dataclass(frozen=True, slots=True)
class Stores:
    """The stores a process may read, and everything below them."""

    allowed: tuple[StoreUrl, ...] = ()

    @classmethod
    def of(cls, urls: Iterable[str]) -> Stores:
        """Those named. Raises UsageError."""
        return cls(tuple(StoreUrl.parse(url) for url in ((urls,) if isinstance(urls, str) else urls)))

    @classmethod
    def resolve(cls, urls: Iterable[str] | None = None, *, environment: Mapping[str, str] = os.environ) -> Stores:
        """Those named, or those of `MODELCAST_STORES`.

        Raises:
            UsageError: One of `urls` can't be used.
            ConfigError: The environment variable holds what is no URL.
        """
        if urls is not None:
            return cls.of(urls)
        try:
            return cls.of(text.strip() for text in environment.get(ENV_STORES, "").split(",") if text.strip())
        except UsageError as error:
            raise ConfigError(f"{ENV_STORES}: {error.message}", hint=error.hint) from None

    def check(self, url: str, model: ModelVersion) -> StoreUrl:
        """The store a manifest names, if it may be read.

        Raises:
            StoreNotAllowedError: It may not, or is no URL of a store.
        """
        try:
            store = StoreUrl.parse(url)
        except UsageError as error:
            raise StoreNotAllowedError(f"{model} names a store that can't be used: {error.message}") from None
        if any(allowed.holds(store) for allowed in self.allowed):
            return store
        word = shlex.quote(str(store))  # who wrote the manifest chose it, and hints are pasted into shells
        known = ", ".join(str(allowed) for allowed in self.allowed) or "none"
        raise StoreNotAllowedError(
            f"the files of {model} lie in {store}, a store that may not be read here (allowed: {known})",
            hint=f"If you trust it, allow it: {ENV_STORES}={word}, --store-allowed {word} or stores=[{str(store)!r}].",
        )


# For who reads chunks only.
NO_STORES: Final = Stores()


_HINT: Final = "Write s3://BUCKET/PREFIX or file:///FOLDER."


def _check_secrets(text: str) -> None:
    """First of all, since other errors show the text."""
    place, *rest = re.split("[?#]", text, maxsplit=1)
    scheme, colon, path = place.partition(":")
    if "@" in path.removeprefix("//").split("/")[0]:
        raise UsageError(
            f"the URL of a store holds a user or password ({scheme[:MAX_URL_CHARS]}{colon}//…@…)",
            hint="Leave it out: credentials come from the environment, as AWS_ACCESS_KEY_ID for s3.",
        )
    if rest:
        raise UsageError(
            f"the URL of a store holds a query or fragment ({place[:MAX_URL_CHARS]}?…)",
            hint="Leave it out: what follows may be a secret, and everyone who reads the registry would see it.",
        )


def _split(text: str) -> SplitResult:
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{text[:MAX_URL_CHARS]!r} is no URL: {str(error)[:MAX_URL_CHARS]}", hint=_HINT) from None
    # urlsplit drops line breaks and tabs without a word; "::" chains file systems in fsspec.
    if not parts.scheme or "::" in text or len(text) > MAX_URL_CHARS or text != text.strip() or not text.isprintable():
        raise UsageError(f"{text[:MAX_URL_CHARS]!r} is not the URL of a store", hint=_HINT)
    if parts.scheme.lower() not in {"file", "local"} and not text[len(parts.scheme) :].startswith("://"):
        raise UsageError(f"{text!r} is not the URL of a store", hint=_HINT)
    return parts


def _check_folder(text: str, parts: SplitResult) -> None:
    if parts.netloc or not parts.path.startswith("/"):
        raise UsageError(
            f"{text!r} is not an absolute path of this host",
            hint="Write file:///FOLDER, with three slashes: what is relative would be another folder for each reader.",
        )


def _is_plain(text: str) -> bool:
    return text.isprintable() and not _FOREIGN & set(text)
