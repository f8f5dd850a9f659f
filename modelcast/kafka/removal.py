"""Taking away what a program made for itself on somebody's cluster: topics and consumer groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from .connection import make_admin
from .faults import Faults, error_of
from .settings import admin_settings

_TIMEOUT_S: Final = 15.0
# What is not there need not be taken away.
_GONE: Final = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.GROUP_ID_NOT_FOUND, KafkaError._UNKNOWN_TOPIC})


def remove(settings: Mapping[str, str], *, topics: Collection[str], groups: Collection[str]) -> None:
    """Deletes topics and consumer groups; those that do not exist are passed over.

    Raises:
        BrokerError: Kafka did not answer, or refused one; the others were tried all the same.
        AuthorizationError: An ACL is missing.
    """
    faults = Faults(settings["bootstrap.servers"])
    admin = make_admin(admin_settings(settings), faults)
    # A group is deleted first: its offsets go with it, and no topic is missed by it.
    asked = [
        *(admin.delete_consumer_groups(list(groups), request_timeout=_TIMEOUT_S).items() if groups else ()),
        *(admin.delete_topics(list(topics), request_timeout=_TIMEOUT_S).items() if topics else ()),
    ]
    failure: Exception | None = None
    for name, future in asked:
        try:
            future.result()
        except KafkaException as error:
            if error_of(error).code() not in _GONE:
                failure = faults.explain(error_of(error), f"can't delete {name!r}")
    if failure is not None:
        raise failure
