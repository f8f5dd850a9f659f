"""`KafkaLog`: topics, offsets, and the clients that read and write them.

- Every entry point first asks for metadata, so that an absent broker or a wrong password is reported within
  `connection.METADATA_TIMEOUT_S`, not after a minute of silent retries.
- Asking about a topic never creates it, whatever `auto.create.topics.enable` says: only whole-cluster metadata and
  admin requests are used here, and a writer checks that a topic exists before its first record.

    with KafkaLog({"bootstrap.servers": "localhost:9092"}) as log:
        log.create(TopicSpec("events", partitions=4))
        with closing(log.writer()) as writer: ...
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from confluent_kafka import IsolationLevel, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # documented there, not marked as exported
    AclOperation,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    ResourceType,
)

from modelcast.access.acl import Acl, Operation, ResourceKind, principal_of
from modelcast.errors import BrokerError, ConfigError, TopicNotFoundError
from modelcast.log import TopicDescription, TopicSpec

from .batch import KafkaBatchProducer, KafkaTransactionalBatchProducer
from .connection import make_admin, metadata, serve
from .faults import Faults, error_of
from .group import KafkaGroupConsumer
from .progress import KafkaGroupProgress
from .reader import KafkaReader
from .settings import admin_settings
from .writer import KafkaTransactionalWriter, KafkaWriter

T = TypeVar("T")

# Admin requests may meet a broker that is being elected; a restarted one answers within 3 s.
ADMIN_TIMEOUT_S: Final = 15.0
# A topic just created is unknown to some brokers for a moment.
CREATION_TIMEOUT_S: Final = 15.0
# Each partition is a folder with files, on a disk that others keep busy.
CREATION_S_PER_PARTITION: Final = 0.25
_PAUSE_S: Final = 0.05

_EARLIEST: Final[Any] = OffsetSpec.earliest()  # type: ignore[no-untyped-call]  # the library's own stubs lack it
_LATEST: Final[Any] = OffsetSpec.latest()  # type: ignore[no-untyped-call]

_SETTLING: Final = frozenset({
    KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC,
    KafkaError._NOENT,  # the client's own word for a topic no partition of which has a leader
    # Metadata that is newer than its leader (a topic just created), or older (after an election).
    KafkaError.UNKNOWN_LEADER_EPOCH, KafkaError.FENCED_LEADER_EPOCH, KafkaError.OFFSET_NOT_AVAILABLE,
})  # fmt: skip


class KafkaLog:
    """A `modelcast.log.Log` on Kafka; also makes the clients of the data plane (`modelcast.group`). Thread-safe.

    Args:
        settings: librdkafka properties by their dotted names; `bootstrap.servers` is needed.

    Raises:
        ConfigError: A property is wrong, or `bootstrap.servers` is missing. No connection is made yet.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        servers = settings.get("bootstrap.servers") or settings.get("metadata.broker.list")
        if not servers:
            raise ConfigError("no broker is configured", hint="Set bootstrap.servers, such as localhost:9092.")
        self._settings = dict(settings)
        self._servers = servers
        self._principal = principal_of(settings)
        self._faults = self._faults_of()
        self._admin = make_admin(admin_settings(settings), self._faults)
        self._made: set[str] = set()  # topics that are there for certain, whatever a broker that lags behind says

    def topics(self) -> Mapping[str, int]:
        """Names of all topics with their partition counts. Raises BrokerError when no broker answers."""
        return {name: len(topic.partitions) for name, topic in self._metadata().items() if topic.error is None}

    def describe(self, topic: str, *, writing: bool = False) -> TopicDescription:
        """Partition count and effective settings, defaults of the cluster included."""
        partitions = len(self._existing(topic, Operation.WRITE if writing else Operation.READ).partitions)
        doing = f"can't describe topic {topic!r}"
        resource = ConfigResource(ResourceType.TOPIC, topic)
        needs = Acl(ResourceKind.TOPIC, topic, Operation.DESCRIBE_CONFIGS)

        def ask() -> Mapping[str, Any]:
            asked = self._admin.describe_configs([resource], request_timeout=ADMIN_TIMEOUT_S)[resource]
            return asked.result()  # type: ignore[no-any-return]  # the client's own types say nothing

        configs = self._settled(ask, doing, needs)
        values = {name: entry.value for name, entry in configs.items() if entry.value is not None}
        return TopicDescription(topic, partitions, values)

    def create(self, spec: TopicSpec) -> bool:
        """Creates a topic and waits until its partitions can be written; False if it was there already."""
        self._metadata()
        self._made.add(spec.name)
        doing = f"can't create topic {spec.name!r}"
        topic = NewTopic(
            spec.name,
            num_partitions=spec.partitions,
            replication_factor=spec.replication_factor,
            config=dict(spec.configs),
        )
        try:
            self._admin.create_topics([topic], request_timeout=ADMIN_TIMEOUT_S)[spec.name].result()
        except KafkaException as error:
            if error_of(error).code() != KafkaError.TOPIC_ALREADY_EXISTS:
                needs = Acl(ResourceKind.TOPIC, spec.name, Operation.CREATE)
                raise self._explain(error, doing, needs) from error
            return False
        self._await_leaders(spec.name, spec.partitions)
        return True

    def begin_offsets(self, topic: str) -> Mapping[int, int]:
        """The first offset of each partition."""
        return self._offsets(topic, _EARLIEST, IsolationLevel.READ_UNCOMMITTED)

    def end_offsets(self, topic: str, *, committed: bool) -> Mapping[int, int]:
        """One past the last offset of each partition: the last stable offset if `committed`, else the true end."""
        isolation = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        return self._offsets(topic, _LATEST, isolation)

    def reader(self, topic: str, start: Mapping[int, int], *, committed: bool = True) -> KafkaReader:
        """A reader of the partitions that are keys of `start`, from those offsets (`BEGINNING` allowed)."""
        self._check_partitions(topic, start)
        return KafkaReader(self._settings, self._faults_of(), topic, start, committed=committed)

    def writer(self) -> KafkaWriter:
        """An idempotent writer, acks=all."""
        return KafkaWriter(self._settings, self._faults_of(), self._check_writable)

    def transactional_writer(self, transactional_id: str, *, timeout_ms: int) -> KafkaTransactionalWriter:
        """Takes a transactional id (`init_transactions`), fencing its holder."""
        return KafkaTransactionalWriter(
            self._settings,
            self._faults_of(transactional_id=transactional_id),
            self._check_writable,
            transactional_id,
            timeout_ms=timeout_ms,
        )

    def group_consumer(
        self, group: str, *, instance: str | None = None, session_timeout_ms: int, committed: bool = True
    ) -> KafkaGroupConsumer:
        """A member of a consumer group; `instance` makes it a static one, whose restart does not rebalance."""
        return KafkaGroupConsumer(
            self._settings,
            self._faults_of(group=group),
            group=group,
            instance=instance,
            session_timeout_ms=session_timeout_ms,
            committed=committed,
        )

    def group_progress(self, group: str) -> KafkaGroupProgress:
        """The offsets of a group that nobody joins."""
        return KafkaGroupProgress(self._settings, self._faults_of(group=group), group)

    def batch_producer(self) -> KafkaBatchProducer:
        """An idempotent producer for the data plane."""
        return KafkaBatchProducer(self._settings, self._faults_of())

    def transactional_batch_producer(
        self, transactional_id: str, *, timeout_ms: int
    ) -> KafkaTransactionalBatchProducer:
        """Takes a transactional id for the data plane, fencing its holder."""
        return KafkaTransactionalBatchProducer(
            self._settings,
            self._faults_of(transactional_id=transactional_id),
            transactional_id,
            timeout_ms=timeout_ms,
        )

    def check_topic(self, topic: str) -> None:
        """Raises TopicNotFoundError unless the topic exists; never creates it."""
        self._existing(topic, Operation.READ)

    def _check_writable(self, topic: str) -> None:
        self._existing(topic, Operation.WRITE)

    def close(self) -> None:
        """Does nothing: the client closes with its last reference."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _metadata(self) -> Mapping[str, Any]:
        topics = metadata(self._admin, self._faults)
        serve(self._admin, self._faults)
        return topics

    def _existing(self, topic: str, wanted: Operation) -> Any:
        """The topic, for an operation that brings the sight of it along."""
        found = self._metadata().get(topic)
        deadline = time.monotonic() + CREATION_TIMEOUT_S
        while found is None and topic in self._made and time.monotonic() < deadline:  # not every broker knows it yet
            time.sleep(_PAUSE_S)
            found = self._metadata().get(topic)
        if found is None or wanted is Operation.WRITE:
            self._refuse(topic, wanted)
        if found is None:
            raise TopicNotFoundError(f"there is no topic {topic!r} at {self._servers}")
        return found

    def _refuse(self, topic: str, wanted: Operation) -> None:
        """Raises AuthorizationError for a topic this principal may not see, or may see and not write to.

        Brokers list what may be seen, and say of a topic asked by its name only that it may not. Who may not write
        learns it here before the first record: the error of a transaction does not tell the topic.
        """
        missing = Acl(ResourceKind.TOPIC, topic, wanted)
        asked = self._admin.describe_topics(
            TopicCollection([topic]), include_authorized_operations=True, request_timeout=ADMIN_TIMEOUT_S
        )[topic]
        try:
            allowed = asked.result().authorized_operations
        except KafkaException as error:
            if error_of(error).code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                raise self._explain(error, f"topic {topic!r} is not there, or not to be seen", missing) from error
            return  # not there, or somebody is about to tell
        if wanted is Operation.WRITE and allowed is not None and AclOperation.WRITE not in allowed:
            raise self._faults.denied(missing, f"can't write to topic {topic!r}")

    def _check_partitions(self, topic: str, partitions: Iterable[int]) -> None:
        found = self._existing(topic, Operation.READ)
        missing = [partition for partition in partitions if partition not in found.partitions]
        if missing:
            raise TopicNotFoundError(f"topic {topic!r} has no partition {missing[0]}: it has {len(found.partitions)}")

    def _offsets(self, topic: str, spec: Any, isolation: IsolationLevel) -> Mapping[int, int]:
        doing = f"can't ask for offsets of topic {topic!r}"
        found = self._existing(topic, Operation.READ)
        wanted = {TopicPartition(topic, partition): spec for partition in found.partitions}

        def ask() -> Mapping[int, int]:
            futures = self._admin.list_offsets(wanted, isolation_level=isolation, request_timeout=ADMIN_TIMEOUT_S)
            return {asked.partition: future.result().offset for asked, future in futures.items()}

        return self._settled(ask, doing, Acl(ResourceKind.TOPIC, topic, Operation.READ))

    def _await_leaders(self, topic: str, partitions: int) -> None:
        patience_s = CREATION_TIMEOUT_S + partitions * CREATION_S_PER_PARTITION
        deadline = time.monotonic() + patience_s
        while time.monotonic() < deadline:
            found = self._metadata().get(topic)
            if found is None:
                self._refuse(topic, Operation.DESCRIBE)
            if (
                found is not None
                and len(found.partitions) == partitions
                and all(partition.leader >= 0 for partition in found.partitions.values())
            ):
                try:
                    self.end_offsets(topic, committed=False)  # asks the leaders themselves
                except BrokerError as error:  # of many partitions, some know of it later than one question waits
                    if not error.retriable or time.monotonic() >= deadline:
                        raise
                else:
                    return
            time.sleep(_PAUSE_S)
        raise BrokerError(f"topic {topic!r} was created, but has no leaders after {patience_s:.0f} s")

    def _settled(self, ask: Callable[[], T], doing: str, needs: Acl) -> T:
        """Asks again while leaders are being elected or a new topic is not known everywhere."""
        deadline = time.monotonic() + ADMIN_TIMEOUT_S
        while True:
            try:
                return ask()
            except KafkaException as error:
                if error_of(error).code() not in _SETTLING or time.monotonic() > deadline:
                    raise self._explain(error, doing, needs) from error
                time.sleep(_PAUSE_S)

    def _explain(self, error: KafkaException, doing: str, needs: Acl) -> Exception:
        serve(self._admin, self._faults)
        return self._faults.explain(error_of(error), doing, needs)

    def _faults_of(self, *, group: str | None = None, transactional_id: str | None = None) -> Faults:
        """For a client of its own."""
        return Faults(self._servers, principal=self._principal, group=group, transactional_id=transactional_id)
