"""What one change of a model writes: records of the registry with their author, tombstones of chunks. Values only."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelcast import codec
from modelcast.records import ChunkHint, Envelope, Manifest, Release, Withdrawn
from modelcast.registry.image import ModelEntry, VersionRecord
from modelcast.topics import RegistryKey
from modelcast.trust.keys import Signer
from modelcast.trust.signing import signed

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Author:
    """Who a record says made it."""

    name: str
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000

    @classmethod
    def here(cls) -> Author:
        """This user on this host."""
        return cls(f"{getpass.getuser()}@{socket.gethostname()}")


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the registry to be written.

    Attributes:
        hints: For manifests.
        sealed: What stands on the log already and gets more signatures: its bytes are kept, or the others' signatures
            would not be over them.
    """

    payload: Manifest | Withdrawn | Release
    hints: tuple[ChunkHint, ...] = ()
    sealed: Envelope | None = None

    @property
    def key(self) -> RegistryKey:
        match self.payload:
            case Release(model=model, sequence=sequence):
                return RegistryKey("release", model, sequence)
            case Manifest(model=model, version=version) | Withdrawn(model=model, version=version):
                return RegistryKey("version", model, version)

    def envelope(self, signers: Sequence[Signer]) -> Envelope:
        """The record as it is written, signed by all of `signers`."""
        return signed(self.sealed or codec.seal(self.payload, hints=self.hints), signers)

    def stands_in(self, entry: ModelEntry) -> bool:
        """Whether the registry has this very record."""
        match self.payload:
            case Release():
                return self.payload in entry.releases
            case Withdrawn():
                return entry.versions.get(self.payload.version) == self.payload
            case Manifest():
                found = entry.versions.get(self.payload.version)
                return isinstance(found, VersionRecord) and found.manifest == self.payload


@dataclass(frozen=True, slots=True)
class Tombstone:
    """A chunk to be taken off the blobs topic: its partition and its key."""

    partition: int
    key: bytes


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """What an attempt wants to write, and what its caller gets once that stands; without records nothing is written."""

    result: T
    records: tuple[Record, ...] = ()
