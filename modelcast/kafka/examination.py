"""What a cluster says of itself, for people who look why something does not work: reads only, creates nothing.

Examination(settings).cluster(topics=["events"], groups=["scorers"])
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # documented there, not marked as exported
    ConfigResource,
    ResourceType,
)

from modelcast.doctor.sights import ClusterSight, GroupSight, TopicSight

from .client import ADMIN_TIMEOUT_S
from .connection import make_admin, metadata, serve
from .faults import Faults, error_of
from .settings import admin_settings

_DENIED: Final = frozenset({
    KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
})  # fmt: skip
_ABSENT: Final = frozenset({
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError.GROUP_ID_NOT_FOUND,
})  # fmt: skip


class Examination:
    """Looks at one cluster.

    Args:
        settings: librdkafka's properties, with `bootstrap.servers`.

    Raises:
        ConfigError: A property is wrong.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._faults = Faults(settings["bootstrap.servers"])
        self._admin = make_admin(admin_settings(settings), self._faults)

    def cluster(self, *, topics: Collection[str] = (), groups: Collection[str] = ()) -> ClusterSight:
        """The cluster, with these topics and groups of it.

        Raises:
            AuthorizationError: It does not let us in.
            BrokerError: Nobody answers.
        """
        seen = metadata(self._admin, self._faults)
        serve(self._admin, self._faults)
        found = self._admin.describe_cluster(include_authorized_operations=True, request_timeout=ADMIN_TIMEOUT_S)
        described = self._result(found, "can't look at the cluster")
        brokers = {node.id: f"{node.host}:{node.port}" for node in described.nodes}
        return ClusterSight(
            brokers,
            self._configs(ResourceType.BROKER, str(min(brokers))) if brokers else None,
            _operations(described),
            self._topics(topics),
            self._groups(groups),
            frozenset(seen),
        )

    def _topics(self, names: Collection[str]) -> Mapping[str, TopicSight]:
        if not names:
            return {}
        described = self._admin.describe_topics(
            TopicCollection(sorted(names)), include_authorized_operations=True, request_timeout=ADMIN_TIMEOUT_S
        )
        found = {}
        for name, future in described.items():
            try:
                topic = future.result()
            except KafkaException as error:
                code = error_of(error).code()
                if code in _DENIED:
                    found[name] = TopicSight(name, denied=True)
                elif code not in _ABSENT:
                    raise self._faults.explain(error_of(error), f"can't look at topic {name!r}") from error
                continue
            found[name] = TopicSight(
                name,
                len(topic.partitions),
                min((len(partition.replicas) for partition in topic.partitions), default=0),
                min((len(partition.isr) for partition in topic.partitions), default=0),
                sum(partition.leader is None or partition.leader.id < 0 for partition in topic.partitions),
                self._configs(ResourceType.TOPIC, name),
                _operations(topic),
            )
        return found

    def _groups(self, names: Collection[str]) -> Mapping[str, GroupSight]:
        found = {}
        for name in sorted(names):
            described = self._admin.describe_consumer_groups(
                [name], include_authorized_operations=True, request_timeout=ADMIN_TIMEOUT_S
            )
            try:
                group = described[name].result()
            except KafkaException as error:
                code = error_of(error).code()
                if code not in _DENIED | _ABSENT:
                    raise self._faults.explain(error_of(error), f"can't look at group {name!r}") from error
                found[name] = GroupSight(name, denied=code in _DENIED)
            else:
                found[name] = GroupSight(name, _operations(group))
        return found

    def _configs(self, kind: Any, name: str) -> Mapping[str, str] | None:
        """Effective settings of a topic or broker; None where they may not be looked at."""
        resource = ConfigResource(kind, name)
        future = self._admin.describe_configs([resource], request_timeout=ADMIN_TIMEOUT_S)[resource]
        try:
            return {key: entry.value for key, entry in future.result().items() if entry.value is not None}
        except KafkaException as error:
            if error_of(error).code() in _DENIED | _ABSENT:
                return None
            raise self._faults.explain(error_of(error), f"can't look at the settings of {name!r}") from error

    def _result(self, future: Any, doing: str) -> Any:
        try:
            return future.result()
        except KafkaException as error:
            serve(self._admin, self._faults)
            raise self._faults.explain(error_of(error), doing) from error


def _operations(described: Any) -> frozenset[str] | None:
    """In Kafka's words; None if the cluster did not say."""
    allowed = described.authorized_operations
    return None if allowed is None else frozenset(entry.name.title().replace("_", "") for entry in allowed)
