"""Adding ACLs to a cluster: for its operators, who may alter it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # documented there, not marked as exported
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from modelcast.access.acl import Acl, Operation, ResourceKind, principal_of
from modelcast.errors import AuthorizationError, BrokerError

from .connection import make_admin, metadata
from .faults import Faults, error_of
from .settings import admin_settings

_TIMEOUT_S: Final = 15.0
_ANY_HOST: Final = "*"

_KINDS: Final[Mapping[ResourceKind, Any]] = {
    ResourceKind.TOPIC: ResourceType.TOPIC,
    ResourceKind.GROUP: ResourceType.GROUP,
    ResourceKind.TRANSACTIONAL_ID: ResourceType.TRANSACTIONAL_ID,
    ResourceKind.CLUSTER: ResourceType.BROKER,  # librdkafka's word
}
_OPERATIONS: Final[Mapping[Operation, AclOperation]] = {
    Operation.READ: AclOperation.READ,
    Operation.WRITE: AclOperation.WRITE,
    Operation.CREATE: AclOperation.CREATE,
    Operation.DELETE: AclOperation.DELETE,
    Operation.DESCRIBE: AclOperation.DESCRIBE,
    Operation.DESCRIBE_CONFIGS: AclOperation.DESCRIBE_CONFIGS,
}


def add_acls(settings: Mapping[str, str], acls: Collection[Acl], *, principal: str) -> None:
    """Allows `principal` all of these, from any host; those that are there already stay.

    Args:
        settings: librdkafka properties of somebody who may alter the cluster.
        acls: What is to be allowed.
        principal: As the cluster names whoever it is, `User:…`.

    Raises:
        BrokerError: Kafka did not answer, or has no authorizer.
        AuthorizationError: These properties' own principal may not.
    """
    faults = Faults(settings["bootstrap.servers"], principal=principal_of(settings))
    admin = make_admin(admin_settings(settings), faults)
    metadata(admin, faults)
    bindings = [binding(acl, principal) for acl in acls]
    for future in admin.create_acls(bindings, request_timeout=_TIMEOUT_S).values():
        try:
            future.result()
        except KafkaException as error:
            raise _explained(error_of(error), faults) from error


def binding(acl: Acl, principal: str) -> AclBinding:
    """As the client library says it."""
    pattern = ResourcePatternType.PREFIXED if acl.prefixed else ResourcePatternType.LITERAL
    operation = _OPERATIONS[acl.operation]
    return AclBinding(_KINDS[acl.kind], acl.name, pattern, principal, _ANY_HOST, operation, AclPermissionType.ALLOW)


def _explained(error: KafkaError, faults: Faults) -> Exception:
    doing = "can't add ACLs"
    if error.code() == KafkaError.SECURITY_DISABLED:
        return BrokerError(
            f"{doing}: this cluster has no authorizer, everybody may do everything",
            hint="Set authorizer.class.name on its brokers first.",
        )
    if error.code() == KafkaError.CLUSTER_AUTHORIZATION_FAILED:
        return AuthorizationError(
            f"{doing}: not allowed, that takes Alter on the cluster",
            hint="Give the lines without --apply to the cluster's operators, or take their properties: -F FILE.",
        )
    return faults.explain(error, doing)
