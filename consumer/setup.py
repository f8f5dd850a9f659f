"""The topics of a scorer, checked and made before its first event.

- The events topic has to exist: a misspelt one made on the fly would be scored for ever, empty.
- What comes from partition p goes to partition p: output topics need as many partitions.
- Output topics made here keep records for ever. Kafka deletes by the time of an event: a topic that keeps a week drops
  predictions of last month's events at once, so an existing one that would is named.
- A compacted output topic is refused: it keeps one prediction a key, and takes none without a key. So is one that would
  not take a full batch of the producer: it would be refused again and again.
- A topic of dead letters made here takes whole events, however large the events topic lets them be.
- Everything is checked before anything is made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modelcast.errors import TopicConfigError, TopicNotFoundError
from modelcast.log import Log, TopicDescription, TopicSpec
from modelcast.topics import KEEP_FOR_EVER

from .commit import Destination
from .dead_letters import PRODUCER_MAX_BYTES, record_limit_bytes

# What a letter is larger than its event, headers with a message of 1 KB included; more of the event's own are few.
LETTER_EXTRA_BYTES = 64 << 10
# Most of a broker's answer that a consumer takes (`modelcast.kafka.settings`), one event at least.
RECEIVE_MAX_BYTES = 300_000_000
# librdkafka's default `batch.size`: what it sends in one piece, and a topic has to take.
BATCH_BYTES = 1_000_000


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """What a scorer's topics come to.

    Attributes:
        partitions: Of the events topic.
        missing: Outputs to be made, with their settings.
        warnings: For the user.
        letter_bytes: How large a dead letter may be.
    """

    partitions: int
    missing: Mapping[str, Mapping[str, str]]
    warnings: tuple[str, ...]
    letter_bytes: int

    def make(self, log: Log) -> None:
        """Makes the outputs that are missing. Raises BrokerError."""
        for name, configs in self.missing.items():
            log.create(TopicSpec(name, self.partitions, configs=configs))


def plan_topics(log: Log, destination: Destination) -> TopicPlan:
    """Checks a scorer's topics; makes nothing.

    Raises:
        TopicNotFoundError: There is no events topic.
        TopicConfigError: An output topic has fewer partitions than the events topic, is compacted, or takes too little
            at once.
        BrokerError: Kafka did not answer.
    """
    events = _events(log, destination.events)
    found = {name: _output(log, name) for name in destination.outputs}
    existing = [description for description in found.values() if description is not None]
    warnings = [_check_events(events), *(_check_output(description, events) for description in existing)]
    missing = {name: KEEP_FOR_EVER for name, description in found.items() if description is None}
    existing_letters = found[destination.dead_letters]
    if existing_letters is None:
        limit = str(min(record_limit_bytes(events.configs) + LETTER_EXTRA_BYTES, PRODUCER_MAX_BYTES))
        missing[destination.dead_letters] = letters = {**KEEP_FOR_EVER, "max.message.bytes": limit}
    else:
        letters = dict(existing_letters.configs)
    told = tuple(warning for warning in warnings if warning is not None)
    return TopicPlan(events.partitions, missing, told, record_limit_bytes(letters))


def record_limits(log: Log, topics: Iterable[str]) -> Mapping[str, int]:
    """How large a record may be on each of these topics, which are there. Raises BrokerError."""
    return {topic: record_limit_bytes(log.describe(topic, writing=True).configs) for topic in topics}


def _check_events(events: TopicDescription) -> str | None:
    """A warning where events may be too large to be received: they are asked for again and again."""
    limit = int(events.configs.get("max.message.bytes", 0))
    if limit <= RECEIVE_MAX_BYTES:
        return None
    return (
        f"topic {events.name!r} takes events of {limit:,} bytes (max.message.bytes): one of more than "
        f"{RECEIVE_MAX_BYTES:,} would hold up its partition, unless -X receive.message.max.bytes is raised as well. "
        f"Take none: {_alter(events.name, f'max.message.bytes={RECEIVE_MAX_BYTES}')}"
    )


def _check_output(description: TopicDescription, events: TopicDescription) -> str | None:
    """A warning, if there is one to give. Raises TopicConfigError."""
    name = description.name
    if description.partitions < events.partitions:
        raise TopicConfigError(
            f"topic {name!r} has fewer partitions ({description.partitions}) than the events topic {events.name!r} "
            f"({events.partitions})",
            hint=f"Add some: kafka-topics.sh --bootstrap-server … --alter --topic {name} "
            f"--partitions {events.partitions}",
        )
    policy = description.configs.get("cleanup.policy", "delete")
    if "compact" in policy:
        raise TopicConfigError(
            f"topic {name!r} has cleanup.policy={policy}, which would lose predictions",
            hint=f"Name another topic, or mend it with: {_alter(name, 'cleanup.policy=delete,retention.ms=-1')}",
        )
    if record_limit_bytes(description.configs) < BATCH_BYTES:
        limit = description.configs["max.message.bytes"]
        raise TopicConfigError(
            f"topic {name!r} takes no more than {limit} bytes at once (max.message.bytes), less than a full batch",
            hint=f"Let it take what Kafka does by default: {_alter(name, 'max.message.bytes=1048588')}",
        )
    retention = description.configs.get("retention.ms", "-1")
    if retention == "-1":
        return None
    return (
        f"topic {name!r} deletes what is older than {_duration(retention)} (retention.ms={retention}). Keep all: "
        f"{_alter(name, 'retention.ms=-1')}"
    )


def _alter(topic: str, config: str) -> str:
    command = "kafka-configs.sh --bootstrap-server … --alter --entity-type topics"
    return f"{command} --entity-name {topic} --add-config {config}"


def _events(log: Log, events: str) -> TopicDescription:
    try:
        return log.describe(events)
    except TopicNotFoundError as error:
        raise TopicNotFoundError(
            f"there is no events topic {events!r}",
            hint="Check --events, or make it by sending to it: modelcast send TOPIC FILE",
        ) from error


def _output(log: Log, name: str) -> TopicDescription | None:
    try:
        return log.describe(name, writing=True)
    except TopicNotFoundError:
        return None


def _duration(retention_ms: str) -> str:
    days = int(retention_ms) / 86_400_000
    return f"{days:.3g} days" if days >= 1 else f"{int(retention_ms) / 1000:g} s"
