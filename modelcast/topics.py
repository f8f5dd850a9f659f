"""The topics of a repository: names, keys, partitions, settings.

    <p>.registry  1 partition, compact          `repository` · `version/<model>/<n>` · `release/<model>/<seq>`
    <p>.schemas   1 partition, compact          `sha256:…` of the schema's text
    <p>.blobs     P partitions, compact         `<model>/<digest>/<chunk bytes>/<index>`
    <p>.status    1 partition, compact + delete `<instance>`

All keep records by key for ever (`retention.ms=-1`) but the status topic, whose instances may be forgotten. P is fixed
when the repository is made: a file's chunks lie in the partition that a hash of `<model>/<digest>` names.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from modelcast.errors import ConfigError, UsageError
from modelcast.log import TopicDescription, TopicSpec

DEFAULT_PREFIX = "modelcast"
DEFAULT_BLOB_PARTITIONS = 4

# An instance that said nothing for a week is gone.
_STATUS_RETENTION_MS = 7 * 24 * 3600 * 1000
# The registry is read from its beginning at every start, and a fleet's heartbeats come to gigabytes in a week: small
# segments let compaction, which leaves the newest alone, reach nearly all of both.
_SEGMENT_BYTES = 16 << 20

_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
# Numbers of no more digits than 64 bits hold: anyone may have written a key, and Python refuses to read thousands.
_REGISTRY_KEY = re.compile(r"(version|release)/([^/]+)/([1-9][0-9]{0,18})")
_CHUNK_KEY = re.compile(r"([^/]*)/([^/]*)/(0|[1-9][0-9]{0,18})/(0|[1-9][0-9]{0,18})")

# A topic of events must keep records by nothing but the application's own decision: Kafka's default would drop a
# record whose *timestamp* is a week old the moment it is written.
KEEP_FOR_EVER = {"retention.ms": "-1"}

REPOSITORY_KEY = b"repository"


@dataclass(frozen=True, slots=True)
class RegistryKey:
    """The key of a version or release record."""

    kind: Literal["version", "release"]
    model: str
    number: int

    def encode(self) -> bytes:
        return f"{self.kind}/{self.model}/{self.number}".encode()

    @classmethod
    def decode(cls, key: bytes) -> RegistryKey | None:
        """None if `key` is neither a version's nor a release's."""
        match = _REGISTRY_KEY.fullmatch(key.decode("utf-8", "replace"))
        if match is None:
            return None
        kind: Literal["version", "release"] = "version" if match[1] == "version" else "release"
        return cls(kind, match[2], int(match[3]))


@dataclass(frozen=True, slots=True)
class ChunkKey:
    """The key of one chunk of one file."""

    model: str
    digest: str
    chunk_bytes: int
    index: int

    def encode(self) -> bytes:
        return f"{self.model}/{self.digest}/{self.chunk_bytes}/{self.index}".encode()

    @classmethod
    def decode(cls, key: bytes) -> ChunkKey | None:
        """None if `key` is not a chunk's."""
        match = _CHUNK_KEY.fullmatch(key.decode("utf-8", "replace"))
        return None if match is None else cls(match[1], match[2], int(match[3]), int(match[4]))


@dataclass(frozen=True, slots=True)
class Topics:
    """The topic names and transactional ids of one repository."""

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise ConfigError(
                f"{self.prefix!r} can't be a topic prefix",
                hint="Use 1 to 100 letters, digits, '.', '_' and '-', starting with a letter or digit.",
            )

    @property
    def registry(self) -> str:
        return f"{self.prefix}.registry"

    @property
    def schemas(self) -> str:
        return f"{self.prefix}.schemas"

    @property
    def blobs(self) -> str:
        return f"{self.prefix}.blobs"

    @property
    def status(self) -> str:
        return f"{self.prefix}.status"

    def publisher_id(self, model: str) -> str:
        """The transactional id that every change of one model's registry records holds."""
        return f"{self.prefix}.publisher.{model}"

    @property
    def repository_id(self) -> str:
        """The transactional id under which the repository is made."""
        return f"{self.prefix}.repository"

    def refuse_own(self, *topics: str) -> None:
        """Raises UsageError if one of `topics`, of events or predictions, is the repository's own."""
        for topic in topics:
            if topic in (self.registry, self.schemas, self.blobs, self.status):
                raise UsageError(
                    f"topic {topic!r} belongs to the repository: neither events nor predictions go there",
                    hint="Name a topic of your own.",
                )

    def specs(self, *, blob_partitions: int, replication_factor: int) -> tuple[TopicSpec, ...]:
        """What `init` creates."""
        compact = {"cleanup.policy": "compact", "retention.ms": "-1"}
        small = {**compact, "segment.bytes": str(_SEGMENT_BYTES)}
        status = {**small, "cleanup.policy": "compact,delete", "retention.ms": str(_STATUS_RETENTION_MS)}
        return (
            TopicSpec(self.registry, 1, replication_factor, small),
            TopicSpec(self.schemas, 1, replication_factor, small),
            TopicSpec(self.blobs, blob_partitions, replication_factor, compact),
            TopicSpec(self.status, 1, replication_factor, status),
        )


def blob_partition(model: str, digest: str, partitions: int) -> int:
    """The partition of a file's chunks: CRC-32 of `<model>/<digest>` modulo the partition count."""
    return zlib.crc32(f"{model}/{digest}".encode()) % partitions


def config_faults(description: TopicDescription) -> Mapping[str, str]:
    """What of a repository topic's configuration would lose models: setting -> value it must have.

    Only deletion by policy loses records; how a topic is segmented or replicated is its owner's business.
    """
    policies = {policy.strip() for policy in description.configs.get("cleanup.policy", "delete").split(",")}
    return {"cleanup.policy": "compact"} if "delete" in policies else {}
