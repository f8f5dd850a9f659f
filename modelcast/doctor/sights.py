"""What was seen of a cluster, a repository and this host: values that checks judge. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from modelcast.access.acl import Acl
from modelcast.errors import ModelcastError
from modelcast.fleet.fleet import Fleet
from modelcast.runtime import RuntimeLimits

from .contact import Contact
from .tls import Security, Validity


@dataclass(frozen=True, slots=True)
class TopicSight:
    """A topic as the cluster describes it.

    Attributes:
        replicas: Of the partition that has the fewest.
        in_sync: Of the partition that has the fewest in sync.
        leaderless: Partitions that nobody can read or write now.
        configs: Effective settings; None where they may not be looked at.
        operations: What this login may do to it, in Kafka's words; None if the cluster does not say.
        denied: It may not even be looked at.
    """

    name: str
    partitions: int = 0
    replicas: int = 0
    in_sync: int = 0
    leaderless: int = 0
    configs: Mapping[str, str] | None = None
    operations: frozenset[str] | None = None
    denied: bool = False


@dataclass(frozen=True, slots=True)
class GroupSight:
    """A consumer group.

    Attributes:
        operations: What this login may do to it; None if the cluster does not say, as of a group that nobody is in.
    """

    name: str
    operations: frozenset[str] | None = None
    denied: bool = False


@dataclass(frozen=True, slots=True)
class ClusterSight:
    """A cluster.

    Attributes:
        brokers: Address by id, as clients are told to connect.
        configs: Settings of one broker; None where they may not be looked at.
        operations: What this login may do to the cluster; None if it does not say.
        topics: Those that were asked about and are there, or may not be looked at.
        all_topics: Names of all that this login sees.
    """

    brokers: Mapping[int, str]
    configs: Mapping[str, str] | None = None
    operations: frozenset[str] | None = None
    topics: Mapping[str, TopicSight] = field(default_factory=dict)
    groups: Mapping[str, GroupSight] = field(default_factory=dict)
    all_topics: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class VersionNeeds:
    """What one released version asks of a runtime, and of a disk."""

    model: str
    version: int
    ir_version: int
    opsets: Mapping[str, int]
    bytes: int


@dataclass(frozen=True, slots=True)
class RepositorySight:
    """A repository, read to its end.

    Attributes:
        error: Why it could not be read; all else is then empty.
        newer: Models of which a newer modelcast wrote records that can't be read here.
        released: The released version of each model asked about.
        missing_models: Models asked about that it does not hold.
        fleet: Who says what on the status topic; None if that could not be read.
        skews_ms: By instance that spoke while we listened, how far its clock is ahead of ours.
    """

    error: ModelcastError | None = None
    uuid: str = ""
    format_version: int = 0
    newer: tuple[str, ...] = ()
    released: tuple[VersionNeeds, ...] = ()
    missing_models: tuple[str, ...] = ()
    fleet: Fleet | None = None
    fleet_error: ModelcastError | None = None
    skews_ms: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FolderSight:
    """A folder of this user.

    Attributes:
        purpose: What is kept there.
        variable: The environment variable that moves it.
        error: Why nothing can be written there; empty if something can.
        free_bytes: Of its disk; None where that is not known.
    """

    purpose: str
    path: str
    variable: str
    error: str = ""
    free_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Requirement:
    """A package of which modelcast asks for certain versions, and the one that is installed."""

    package: str
    wanted: str
    installed: str
    is_met: bool


@dataclass(frozen=True, slots=True)
class RuntimeSight:
    """ONNX Runtime, and the device it is to run on.

    Attributes:
        error: Why there is none.
        packages: Installed distributions that bring the module `onnxruntime`, with their versions.
        device: What was asked for: auto, cpu, cuda or cuda:N.
        resolved: The device that came of it; empty if none did.
        gpu_fault: Why no CUDA device can be used with this runtime; None if one can.
        has_gpu: A driver answers, whatever the runtime has.
        limits: What it reads; None if there is none.
    """

    device: str = "auto"
    version: str = ""
    error: ModelcastError | None = None
    packages: Mapping[str, str] = field(default_factory=dict)
    resolved: str = ""
    gpu_fault: ModelcastError | None = None
    has_gpu: bool = False
    limits: RuntimeLimits | None = None


@dataclass(frozen=True, slots=True)
class PolicySight:
    """The trust policy.

    Attributes:
        path: None if none is named.
        error: Why it can't be used.
        expiries_ms: When keys expire, by name; only of keys that do.
        revoked: Names of revoked keys.
        rule_keys: By rule, its threshold and its keys.
        is_open: Others than its owner may write it.
    """

    path: str | None = None
    error: ModelcastError | None = None
    expiries_ms: Mapping[str, int] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()
    rule_keys: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class HostSight:
    """This host and process."""

    folders: tuple[FolderSight, ...] = ()
    requirements: tuple[Requirement, ...] = ()
    runtime: RuntimeSight = RuntimeSight()
    policy: PolicySight = PolicySight()


@dataclass(frozen=True)
class Question:
    """What an examination is about.

    Attributes:
        servers: `bootstrap.servers`.
        properties: The client's.
        models: Whose versions have to run here; empty for all that are released.
        needed: What the roles asked about need to be allowed.
        chunk_bytes: The largest record on the topic of files.
    """

    servers: str
    properties: Mapping[str, str] = field(repr=False)
    prefix: str = "modelcast"
    models: tuple[str, ...] = ()
    events: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    needed: tuple[Acl, ...] = ()
    chunk_bytes: int = 0
    device: str = "auto"

    @property
    def security(self) -> Security:
        return Security.of(self.properties)


@dataclass(frozen=True, slots=True)
class Sight:
    """Everything that was seen.

    Attributes:
        at_ms: When.
        contacts: Of the servers that are configured.
        brokers: Of the addresses that the cluster tells its clients.
        login_error: What the client library says where it could not connect.
        certificates: Of files named in the properties: setting, path, and when each is valid.
    """

    at_ms: int
    contacts: tuple[Contact, ...] = ()
    brokers: tuple[Contact, ...] = ()
    login_error: ModelcastError | None = None
    certificates: tuple[tuple[str, str, tuple[Validity, ...]], ...] = ()
    cluster: ClusterSight | None = None
    repository: RepositorySight | None = None
    host: HostSight = HostSight()
