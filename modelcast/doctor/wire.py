"""Kafka's frames, as far as a look at one broker needs them: bytes to be sent, and answers read within their bounds.

The client library tells little of why it can't connect, and nothing of a broker's versions or clock. Formats: Kafka
protocol guide (https://kafka.apache.org/protocol); ApiVersions 3 and 0, Metadata 1, SaslHandshake 1,
SaslAuthenticate 0, FindCoordinator 2, DescribeQuorum 1.

- An answer comes from whoever listens on that port: every length is held against what is there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from modelcast.errors import WireError

T = TypeVar("T")

API_VERSIONS: Final = 18
METADATA: Final = 3
FIND_COORDINATOR: Final = 10
SASL_HANDSHAKE: Final = 17
SASL_AUTHENTICATE: Final = 36
DESCRIBE_QUORUM: Final = 55

UNSUPPORTED_VERSION: Final = 35
UNSUPPORTED_SASL_MECHANISM: Final = 33
ILLEGAL_SASL_STATE: Final = 34
CLUSTER_AUTHORIZATION_FAILED: Final = 31
TRANSACTIONAL_ID_AUTHORIZATION_FAILED: Final = 53

# An ApiVersions answer takes 1 KB; Metadata of 100,000 partitions some MB.
MAX_ANSWER_BYTES: Final = 16 << 20
_CLIENT_ID: Final = "modelcast-doctor"
_VARINT_BYTES: Final = 5


@dataclass(frozen=True, slots=True)
class BrokerVersions:
    """What a broker says it speaks.

    Attributes:
        apis: Lowest and highest version by API key.
        features: Finalised level of the cluster's features by name, such as `metadata.version`; empty before Kafka 2.7.
    """

    apis: Mapping[int, tuple[int, int]]
    features: Mapping[str, int] = field(default_factory=dict)


class Answer:
    """Reads an answer from its start. Raises WireError where it ends early or can't be one."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, count: int) -> bytes:
        if count < 0 or self._at + count > len(self._data):
            raise WireError(f"an answer of {len(self._data)} bytes ends before its fields do")
        piece = self._data[self._at : self._at + count]
        self._at += count
        return piece

    def int8(self) -> int:
        return int(struct.unpack(">b", self.take(1))[0])

    def int16(self) -> int:
        return int(struct.unpack(">h", self.take(2))[0])

    def int32(self) -> int:
        return int(struct.unpack(">i", self.take(4))[0])

    def int64(self) -> int:
        return int(struct.unpack(">q", self.take(8))[0])

    def varint(self) -> int:
        """An unsigned one."""
        value = 0
        for step in range(_VARINT_BYTES):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << (7 * step)
            if byte < 0x80:
                return value
        raise WireError("an answer holds a number that does not end")

    def text(self) -> str:
        """A nullable string; null is empty."""
        length = self.int16()
        return "" if length < 0 else self.take(length).decode("utf-8", "replace")

    def compact_text(self) -> str:
        """A compact nullable string; null is empty."""
        length = self.varint()
        return "" if length == 0 else self.take(length - 1).decode("utf-8", "replace")

    def octets(self) -> bytes:
        """Nullable bytes; null is empty."""
        length = self.int32()
        return b"" if length < 0 else self.take(length)

    def many(self, read: Callable[[], T]) -> list[T]:
        """An array; each entry takes a byte at least, so that its length is bounded by the answer's."""
        return self._entries(self.int32(), read)

    def compact_many(self, read: Callable[[], T]) -> list[T]:
        """A compact array."""
        return self._entries(self.varint() - 1, read)

    def tags(self) -> dict[int, bytes]:
        """Tagged fields."""
        return dict(self._entries(self.varint(), lambda: (self.varint(), self.take(self.varint()))))

    def _entries(self, count: int, read: Callable[[], T]) -> list[T]:
        if count > len(self._data) - self._at:
            raise WireError(f"an answer of {len(self._data)} bytes claims {count} entries")
        return [read() for _ in range(count)]


def request(api: int, version: int, correlation: int, body: bytes, *, flexible: bool = False) -> bytes:
    """A request with its size in front; `flexible` says that its header ends with tagged fields."""
    header = struct.pack(">hhi", api, version, correlation) + text(_CLIENT_ID)
    message = header + (b"\x00" if flexible else b"") + body
    return struct.pack(">i", len(message)) + message


def text(value: str) -> bytes:
    """A string."""
    data = value.encode()
    return struct.pack(">h", len(data)) + data


def compact_text(value: str) -> bytes:
    """A compact string of less than 127 bytes."""
    data = value.encode()
    return bytes([len(data) + 1]) + data


def octets(value: bytes) -> bytes:
    """Bytes."""
    return struct.pack(">i", len(value)) + value


def api_versions_body(client_version: str) -> bytes:
    """Of version 3, which tells features; an older broker refuses it in the form of version 0."""
    return compact_text(_CLIENT_ID) + compact_text(client_version) + b"\x00"


def read_api_versions(answer: Answer, *, version: int) -> tuple[int, BrokerVersions]:
    """The error code, and what the broker speaks; of version 0 or 3."""
    error = answer.int16()
    if version == 0 or error == UNSUPPORTED_VERSION:
        found = answer.many(lambda: (answer.int16(), (answer.int16(), answer.int16())))
        return error, BrokerVersions(dict(found))

    def entry() -> tuple[int, tuple[int, int]]:
        key, limits = answer.int16(), (answer.int16(), answer.int16())
        answer.tags()
        return key, limits

    apis = dict(answer.compact_many(entry))
    answer.int32()  # throttled for
    finalized = Answer(answer.tags().get(2, b"\x01"))  # a compact array, here of none

    def feature() -> tuple[str, int]:
        name, highest, _ = finalized.compact_text(), finalized.int16(), finalized.int16()
        finalized.tags()
        return name, highest

    return error, BrokerVersions(apis, dict(finalized.compact_many(feature)))


def describe_quorum_body() -> bytes:
    """Of version 1: asks for the one partition of `__cluster_metadata`."""
    return b"\x02" + compact_text("__cluster_metadata") + b"\x02" + struct.pack(">i", 0) + b"\x00\x00\x00"


def read_quorum_time(answer: Answer) -> tuple[int, int | None]:
    """The error code, and the controller's clock in epoch milliseconds: when it last heard of itself, which is now."""
    answer.tags()  # the header's
    error = answer.int16()
    times: list[int] = []

    def replica() -> tuple[int, int]:
        found, _, _, caught_up = answer.int32(), answer.int64(), answer.int64(), answer.int64()
        answer.tags()
        return found, caught_up

    def partition() -> None:
        nonlocal error
        answer.int32()
        error = error or answer.int16()
        leader = answer.int32()
        answer.int32()  # epoch
        answer.int64()  # high watermark
        replicas = dict(answer.compact_many(replica))
        answer.compact_many(replica)  # observers
        answer.tags()
        if replicas.get(leader, -1) >= 0:
            times.append(replicas[leader])

    def topic() -> None:
        answer.compact_text()
        answer.compact_many(partition)
        answer.tags()

    answer.compact_many(topic)
    return error, times[0] if times and error == 0 else None


def metadata_body() -> bytes:
    """Of version 1: of no topic, only of the brokers."""
    return struct.pack(">i", 0)


def read_brokers(answer: Answer) -> dict[int, str]:
    """`host:port` of each broker by its id, as clients are told to connect; of Metadata 1."""

    def broker() -> tuple[int, str]:
        node, host, port = answer.int32(), answer.text(), answer.int32()
        answer.text()  # rack
        return node, f"{host}:{port}"

    return dict(answer.many(broker))


def find_coordinator_body(transactional_id: str) -> bytes:
    """Of version 2: of a transactional id."""
    return text(transactional_id) + b"\x01"


def read_find_coordinator(answer: Answer) -> int:
    """The error code."""
    answer.int32()  # throttled for
    return answer.int16()


def read_sasl_handshake(answer: Answer) -> tuple[int, list[str]]:
    """The error code, and the mechanisms the broker offers."""
    return answer.int16(), answer.many(answer.text)


def read_sasl_authenticate(answer: Answer) -> tuple[int, str, bytes]:
    """The error code, the broker's words, and its bytes."""
    return answer.int16(), answer.text(), answer.octets()
