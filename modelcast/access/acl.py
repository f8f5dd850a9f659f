"""`Acl`: one thing a principal may do, as Kafka's own authorizer knows it; and the line that allows it.

The words are Kafka's (`kafka-acls.sh`, KIP-11, KIP-98, KIP-290): an operation on a resource, which is one name or all
that begin so. Read, Write, Delete and Alter bring Describe along, AlterConfigs brings DescribeConfigs; nothing else
follows from anything.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from modelcast.errors import UsageError

# Stands for what is not known where a line is printed.
ANY_SERVERS: Final = "HOST:PORT"
ANY_PRINCIPAL: Final = "User:NAME"


class ResourceKind(StrEnum):
    """What an operation is done to; the value is Kafka's name of it."""

    TOPIC = "Topic"
    GROUP = "Group"
    TRANSACTIONAL_ID = "TransactionalId"
    CLUSTER = "Cluster"


class Operation(StrEnum):
    """What is done; the value is Kafka's name of it."""

    READ = "Read"
    WRITE = "Write"
    CREATE = "Create"
    DELETE = "Delete"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"


# As messages and kafka-acls.sh call them.
_WORDS: Final[Mapping[ResourceKind, str]] = {
    ResourceKind.TOPIC: "topic",
    ResourceKind.GROUP: "group",
    ResourceKind.TRANSACTIONAL_ID: "transactional-id",
    ResourceKind.CLUSTER: "cluster",
}


@dataclass(frozen=True, slots=True)
class Acl:
    """An operation on a resource.

    Attributes:
        name: Of the resource; a cluster has none that matters.
        prefixed: Every resource whose name begins with `name`.
    """

    kind: ResourceKind
    name: str
    operation: Operation
    prefixed: bool = False

    def __str__(self) -> str:
        """As a message says it: Read on topic 'events'."""
        if self.kind is ResourceKind.CLUSTER:
            return f"{self.operation} on the cluster"
        kind = _WORDS[self.kind].replace("-", " ")
        if self.prefixed:
            return f"{self.operation} on every {kind} that begins with {self.name!r}"
        return f"{self.operation} on {kind} {self.name!r}"

    def allows(self, kind: ResourceKind, name: str) -> bool:
        """Whether the resource of this kind and name is meant."""
        return self.kind is kind and (name.startswith(self.name) if self.prefixed else name == self.name)

    def as_dict(self) -> dict[str, Any]:
        """JSON data, in Kafka's words."""
        return {
            "resource_type": str(self.kind),
            "resource": self.name,
            "pattern_type": "prefixed" if self.prefixed else "literal",
            "operation": str(self.operation),
        }


def topic(name: str, *operations: Operation) -> tuple[Acl, ...]:
    """These operations on one topic."""
    return tuple(Acl(ResourceKind.TOPIC, name, operation) for operation in operations)


def add_command(acls: Iterable[Acl], *, principal: str = ANY_PRINCIPAL, servers: str = ANY_SERVERS) -> str:
    """The line that allows operations on one resource.

    Raises:
        UsageError: They are on several, or there are none.
    """
    wanted = tuple(acls)
    resources = {(acl.kind, acl.name, acl.prefixed) for acl in wanted}
    if len(resources) != 1:
        raise UsageError(
            f"a line of kafka-acls.sh is for one resource, not for {len(resources)}", hint="Make one each."
        )
    ((kind, name, prefixed),) = resources
    words = ["kafka-acls.sh", "--bootstrap-server", servers, "--add", "--allow-principal", principal]
    for acl in wanted:
        words += ["--operation", acl.operation]
    words += [f"--{_WORDS[kind]}"]
    words += [] if kind is ResourceKind.CLUSTER else [name]
    words += ["--resource-pattern-type", "prefixed"] if prefixed else []
    return shlex.join(words)


def add_commands(acls: Iterable[Acl], *, principal: str = ANY_PRINCIPAL, servers: str = ANY_SERVERS) -> list[str]:
    """The lines that allow all of these, one a resource, in the order resources are first named."""
    by_resource: dict[tuple[ResourceKind, str, bool], dict[Acl, None]] = {}
    for acl in acls:
        by_resource.setdefault((acl.kind, acl.name, acl.prefixed), {})[acl] = None
    return [add_command(together, principal=principal, servers=servers) for together in by_resource.values()]


def principal_of(settings: Mapping[str, str]) -> str:
    """Whom a broker takes a client with these librdkafka properties for, as far as they say it."""
    protocol = settings.get("security.protocol", "plaintext").lower()
    if protocol.startswith("sasl") and settings.get("sasl.username"):
        return f"User:{settings['sasl.username']}"
    # A certificate's subject: brokers may map it to any other name (ssl.principal.mapping.rules).
    return ANY_PRINCIPAL
