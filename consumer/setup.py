"""The topics of a scorer, checked and made before its first event.

- The events topic has to exist: a misspelt one made on the fly would be scored for ever, empty.
- What comes from partition p goes to partition p: output topics need as many partitions.
- Output topics made here keep records for ever. Kafka deletes by the time of an event: a topic that keeps a week drops
  predictions of last month's events at once, so an existing one that would is named.
"""

from __future__ import annotations

from modelcast.errors import TopicConfigError, TopicNotFoundError
from modelcast.log import Log, TopicSpec
from modelcast.topics import KEEP_FOR_EVER

from .commit import Destination


def prepare_topics(log: Log, destination: Destination) -> tuple[int, tuple[str, ...]]:
    """Checks a scorer's topics and makes the outputs that are missing.

    Returns:
        The partition count of the events topic, and warnings for the user.

    Raises:
        TopicNotFoundError: There is no events topic.
        TopicConfigError: An output topic has fewer partitions than the events topic.
        BrokerError: Kafka did not answer, or will not create a topic.
    """
    partitions = _partitions(log, destination.events)
    warnings = []
    for name in (destination.predictions, destination.dead_letters):
        if log.create(TopicSpec(name, partitions, configs=KEEP_FOR_EVER)):
            continue
        description = log.describe(name)
        if description.partitions < partitions:
            raise TopicConfigError(
                f"topic {name!r} has {description.partitions} partitions, but its events come from {partitions}: "
                f"{destination.events!r}",
                hint=f"Add some: kafka-topics.sh --bootstrap-server … --alter --topic {name} --partitions {partitions}",
            )
        retention = description.configs.get("retention.ms", "-1")
        if "delete" in description.configs.get("cleanup.policy", "delete") and retention != "-1":
            warnings.append(
                f"topic {name!r} deletes what is older than {_days(retention)} (retention.ms={retention}). Keep all: "
                f"kafka-configs.sh --bootstrap-server … --alter --entity-type topics --entity-name {name} "
                "--add-config retention.ms=-1"
            )
    return partitions, tuple(warnings)


def _partitions(log: Log, events: str) -> int:
    topics = log.topics()
    if events in topics:
        return topics[events]
    raise TopicNotFoundError(
        f"there is no events topic {events!r}",
        hint="Check --events, or make it by sending to it: modelcast send TOPIC FILE",
    )


def _days(retention_ms: str) -> str:
    return f"{int(retention_ms) / 86_400_000:.3g} days"
