"""Whether a login may do what its roles need. Pure.

What can be told without doing it: operations on topics, groups and the cluster, as brokers tell them (KIP-430), and
whether a transactional id may be looked at. A group that nobody is in, and a topic that is not there yet, tell nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelcast.access.acl import ANY_PRINCIPAL, Acl, Operation, ResourceKind, add_command

from .findings import Finding, fault, ok, unknown
from .sights import ClusterSight, GroupSight, Question, Sight, TopicSight


def check_access(question: Question, sight: Sight) -> Iterator[Finding]:
    """What is missing of `question.needed`; one finding a resource."""
    if sight.cluster is None or not question.needed:
        return
    told = [contact.denied_ids for contact in (*sight.contacts, *sight.brokers) if contact.denied_ids is not None]
    denied_ids = frozenset().union(*told) if told else None
    missing: dict[tuple[ResourceKind, str, bool], list[Acl]] = {}
    untold: list[Acl] = []
    for acl in dict.fromkeys(question.needed):
        allowed = _is_allowed(acl, sight.cluster, denied_ids)
        if allowed is None:
            untold.append(acl)
        elif not allowed:
            missing.setdefault((acl.kind, acl.name, acl.prefixed), []).append(acl)
    principal = f"User:{question.security.user}" if question.security.user else ANY_PRINCIPAL
    for acls in missing.values():
        yield fault(
            "acl",
            f"not allowed: {'; '.join(map(str, acls))}",
            add_command(acls, principal=principal, servers=question.servers),
        )
    if untold:
        yield unknown("acl", f"only doing it would tell: {'; '.join(map(str, untold))}")
    if len(untold) < len(set(question.needed)) and not missing:
        yield ok("acl", f"{len(set(question.needed)) - len(untold)} permissions that are needed are there")


def _is_allowed(acl: Acl, cluster: ClusterSight, denied_ids: frozenset[str] | None) -> bool | None:
    """None if nobody says."""
    match acl.kind:
        case ResourceKind.TRANSACTIONAL_ID:
            return None if denied_ids is None else acl.name not in denied_ids
        case ResourceKind.CLUSTER:
            return _among(cluster.operations, acl)
        case ResourceKind.GROUP:
            return _of(cluster.groups.get(acl.name), acl)
        case ResourceKind.TOPIC:
            is_there = acl.operation is Operation.CREATE and _is_visible(cluster.topics.get(acl.name))
            return is_there or _of(cluster.topics.get(acl.name), acl)


def _of(sight: TopicSight | GroupSight | None, acl: Acl) -> bool | None:
    if sight is None:
        return None
    return False if sight.denied else _among(sight.operations, acl)


def _is_visible(sight: TopicSight | None) -> bool:
    """Nobody has to make a topic that is there."""
    return sight is not None and not sight.denied


def _among(operations: frozenset[str] | None, acl: Acl) -> bool | None:
    return None if operations is None else str(acl.operation) in operations
