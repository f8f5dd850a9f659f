"""Making a repository, and checking that its topics will not lose models."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

from modelcast import codec
from modelcast.errors import RepositoryNotFoundError, TopicConfigError, TopicNotFoundError
from modelcast.log import Log
from modelcast.records import FORMAT_VERSION, RepositoryIdentity
from modelcast.registry.reader import RegistryReader
from modelcast.topics import DEFAULT_BLOB_PARTITIONS, REPOSITORY_KEY, Topics, config_faults

# Making the identity is one record: whoever crashed in it must not stall readers for long.
_TRANSACTION_TIMEOUT_MS = 10_000
# A dead transaction ends after its timeout plus the broker's sweep of up to 10 s.
CATCH_UP_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Initialised:
    """What `init` found or made."""

    repository: RepositoryIdentity
    created: bool
    topics_created: tuple[str, ...]


def init(
    log: Log,
    topics: Topics,
    *,
    blob_partitions: int = DEFAULT_BLOB_PARTITIONS,
    replication_factor: int = -1,
    now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
) -> Initialised:
    """Creates what is missing of a repository; doing it again changes nothing.

    Raises:
        TopicConfigError: A topic exists with settings that would lose models.
        BrokerError: Kafka refused.
        FencedError: Another `init` of this repository took over.
    """
    specs = topics.specs(blob_partitions=blob_partitions, replication_factor=replication_factor)
    created = tuple(spec.name for spec in specs if log.create(spec))
    check_topics(log, topics)
    writer = log.transactional_writer(topics.repository_id, timeout_ms=_TRANSACTION_TIMEOUT_MS)
    try:
        existing = _identity(log, topics)
        if existing is not None:
            return Initialised(existing, created=False, topics_created=created)
        identity = RepositoryIdentity(str(uuid.uuid4()), now_ms(), FORMAT_VERSION)
        writer.begin()
        writer.send(topics.registry, key=REPOSITORY_KEY, value=codec.encode_envelope(codec.seal(identity)), partition=0)
        writer.commit()
    finally:
        writer.close()
    return Initialised(identity, created=True, topics_created=created)


def check_topics(log: Log, topics: Topics) -> None:
    """Checks that the repository's topics exist and keep their records.

    Raises:
        RepositoryNotFoundError: A topic is missing.
        TopicConfigError: A topic would lose models; the hint is the command that mends it.
    """
    for name in (topics.registry, topics.schemas, topics.blobs):
        try:
            description = log.describe(name)
        except TopicNotFoundError as error:
            raise RepositoryNotFoundError(
                f"there is no modelcast repository here: topic {name!r} is missing",
                hint=f"Make one with: modelcast init{_prefix_option(topics)}",
            ) from error
        for setting, value in config_faults(description).items():
            raise TopicConfigError(
                f"topic {name!r} has {setting}={description.configs.get(setting)}, which would lose models",
                hint=(
                    "Mend it with: kafka-configs.sh --bootstrap-server … --alter --entity-type topics "
                    f"--entity-name {name} --add-config {setting}={value}"
                ),
            )


def check_scorer_may_write(log: Log, topics: Topics) -> None:
    """Checks that a scorer may describe its predictions, and say what it runs where there is a topic for it.

    Raises:
        AuthorizationError: It may not.
        BrokerError: Kafka did not answer.
    """
    log.describe(topics.schemas, writing=True)
    with contextlib.suppress(TopicNotFoundError):
        log.describe(topics.status, writing=True)


def _identity(log: Log, topics: Topics) -> RepositoryIdentity | None:
    reader = RegistryReader(log, topics)
    try:
        return reader.catch_up(CATCH_UP_TIMEOUT_S).repository
    except RepositoryNotFoundError:
        return None
    finally:
        reader.close()


def _prefix_option(topics: Topics) -> str:
    return "" if topics.prefix == Topics().prefix else f" --prefix {topics.prefix}"
