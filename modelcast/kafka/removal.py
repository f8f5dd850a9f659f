"""Taking away what a program made for itself on somebody's cluster: topics and consumer groups."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from concurrent.futures import Future
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from modelcast.access.acl import Acl, Operation, ResourceKind, principal_of

from .connection import make_admin
from .faults import Faults, error_of
from .settings import admin_settings

_TIMEOUT_S: Final = 15.0
# A static member stays in its group until its session ends (a scorer's: 6 s), however orderly it went.
_EMPTY_TIMEOUT_S: Final = 20.0
_PAUSE_S: Final = 0.25
# What is not there need not be taken away.
_GONE: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND, KafkaError._UNKNOWN_TOPIC})


def remove(settings: Mapping[str, str], *, topics: Collection[str], groups: Collection[str]) -> None:
    """Deletes topics, then consumer groups once their members are gone; those that do not exist are passed over.

    Raises:
        BrokerError: Kafka did not answer, or refused one; the others were tried all the same.
        AuthorizationError: An ACL is missing.
    """
    faults = Faults(settings["bootstrap.servers"], principal=principal_of(settings))
    admin = make_admin(admin_settings(settings), faults)
    failures: dict[str, KafkaError] = {}
    if topics:
        failures |= _failed(admin.delete_topics(list(topics), request_timeout=_TIMEOUT_S))
    failures |= _delete_groups(admin, groups)
    for name, error in failures.items():
        kind = ResourceKind.TOPIC if name in topics else ResourceKind.GROUP
        raise faults.explain(error, f"can't delete {name!r}", Acl(kind, name, Operation.DELETE))


def _delete_groups(admin: AdminClient, groups: Collection[str]) -> dict[str, KafkaError]:
    deadline = time.monotonic() + _EMPTY_TIMEOUT_S
    left, failures = list(groups), dict[str, KafkaError]()
    while left:
        failed = _failed(admin.delete_consumer_groups(left, request_timeout=_TIMEOUT_S))
        waiting = [name for name, error in failed.items() if error.code() == KafkaError.NON_EMPTY_GROUP]
        if time.monotonic() >= deadline:
            waiting = []
        failures |= {name: error for name, error in failed.items() if name not in waiting}
        left = waiting
        if left:
            time.sleep(_PAUSE_S)
    return failures


def _failed(asked: Mapping[str, Future[Any]]) -> dict[str, KafkaError]:
    failed = {}
    for name, future in asked.items():
        try:
            future.result()
        except KafkaException as error:
            if error_of(error).code() not in _GONE:
                failed[name] = error_of(error)
    return failed
