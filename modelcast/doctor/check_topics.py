"""Whether topics keep what is written, take what is sent, and have the replicas they ask for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from modelcast.log import TopicDescription
from modelcast.topics import Topics, config_faults

from .findings import Finding, fault, ok, unknown, warning
from .mending import KAFKA_MESSAGE_BYTES, modelcast, set_topic, tool
from .sights import ClusterSight, Question, TopicSight

# What a producer sends in one piece: librdkafka's default `batch.size`.
BATCH_BYTES: Final = 1_000_000
# librdkafka's defaults.
_RECEIVE_BYTES: Final = 100_000_000
_CLIENT_MESSAGE_BYTES: Final = 1_000_000
# What an answer holds beside its records.
_ANSWER_BYTES: Final = 512
# From so many brokers on, a topic on one of them only is a choice that somebody should have made.
_MANY_BROKERS: Final = 3


def check_topics(question: Question, cluster: ClusterSight) -> Iterator[Finding]:
    """The repository's topics, and the application's."""
    topics = Topics(question.prefix)
    own = (topics.registry, topics.schemas, topics.blobs, topics.status)
    missing = [name for name in own if name not in cluster.topics]
    if missing:
        yield fault(
            "repository",
            f"there is no repository {question.prefix!r} here: no topic {', '.join(map(repr, missing))}",
            modelcast(question, "init"),
        )
    for name in question.events:
        if name not in cluster.topics:
            yield fault(
                "events",
                f"there is no events topic {name!r}",
                f"Check its name, or make it: modelcast send {name} FILE",
            )
    for sight in cluster.topics.values():
        if not sight.denied:
            yield from _replicas(question, cluster, sight)
    visible = {name: sight.configs for name, sight in cluster.topics.items() if sight.configs is not None}
    hidden = [name for name, sight in cluster.topics.items() if sight.configs is None]
    if hidden:
        yield unknown("topics", f"the settings of {', '.join(map(repr, hidden))} may not be looked at: see acl")
    yield from _policies(question, topics, visible)
    yield from _limits(question, topics, visible)
    yield from _broker_settings(cluster)


def _policies(question: Question, topics: Topics, visible: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    wrong = False
    for name in (topics.registry, topics.schemas, topics.blobs):
        for setting, value in config_faults(
            TopicDescription(name, 1, visible.get(name, {"cleanup.policy": "compact"}))
        ).items():
            wrong = True
            yield fault(
                "cleanup-policy",
                f"topic {name!r} has {setting}={visible[name].get(setting)}: models would be deleted by their age",
                set_topic(question, name, f"{setting}={value}"),
            )
    lost = [(name, fault, "of predictions with one key, only the last would be kept") for name in question.outputs]
    lost += [(name, warning, "a later event of a key may replace one not scored yet") for name in question.events]
    for name, finding, what in lost:
        policy = visible.get(name, {}).get("cleanup.policy", "delete")
        if "compact" in policy:
            wrong = True
            yield finding(
                "cleanup-policy",
                f"topic {name!r} has cleanup.policy={policy}: {what}",
                set_topic(question, name, "cleanup.policy=delete"),
            )
    if visible and not wrong:
        yield ok("cleanup-policy", "no topic loses what it should keep")


def _limits(question: Question, topics: Topics, visible: Mapping[str, Mapping[str, str]]) -> Iterator[Finding]:
    wrong = False
    needed = {topics.blobs: (question.chunk_bytes, "a chunk of a model's file")}
    needed |= dict.fromkeys(question.outputs, (BATCH_BYTES, "a full batch of predictions"))
    for name, configs in visible.items():
        limit = _number(configs, "max.message.bytes", KAFKA_MESSAGE_BYTES)
        least, what = needed.get(name, (0, ""))
        if limit < least:
            wrong = True
            yield fault(
                "message-limit",
                f"topic {name!r} takes no more than max.message.bytes={limit} at once, and {what} takes {least}",
                set_topic(question, name, f"max.message.bytes={KAFKA_MESSAGE_BYTES}"),
            )
        elif name == topics.registry and limit < BATCH_BYTES:
            wrong = True
            yield warning(
                "message-limit",
                f"topic {name!r} takes no more than max.message.bytes={limit}: a version of many files would not fit",
                set_topic(question, name, f"max.message.bytes={KAFKA_MESSAGE_BYTES}"),
            )
    receives = _number(question.properties, "receive.message.max.bytes", _RECEIVE_BYTES)
    for name, configs in visible.items():
        largest = _number(configs, "max.message.bytes", KAFKA_MESSAGE_BYTES) + _ANSWER_BYTES
        if largest > receives:
            wrong = True
            yield fault(
                "message-limit",
                f"topic {name!r} may hold batches of {largest - _ANSWER_BYTES} bytes, and receive.message.max.bytes="
                f"{receives} of the client does not let one through",
                f"-X receive.message.max.bytes={largest}",
            )
    sends = _number(question.properties, "message.max.bytes", _CLIENT_MESSAGE_BYTES)
    if sends < question.chunk_bytes:
        wrong = True
        yield fault(
            "message-limit",
            f"message.max.bytes={sends} of the client is less than a chunk of a file takes, {question.chunk_bytes}",
            f"-X message.max.bytes={_CLIENT_MESSAGE_BYTES}, or leave it out",
        )
    if visible and not wrong:
        yield ok("message-limit", "topics and client take what is sent")


def _replicas(question: Question, cluster: ClusterSight, sight: TopicSight) -> Iterator[Finding]:
    name, least = sight.name, _number(sight.configs or {}, "min.insync.replicas", 1)
    if sight.leaderless:
        yield fault(
            "replicas",
            f"{sight.leaderless} of {sight.partitions} partitions of topic {name!r} have no leader: a broker is away",
            "Start the brokers that are down; which: " + _describe(question, name),
        )
    elif least > sight.replicas:
        yield fault(
            "replicas",
            f"topic {name!r} asks for min.insync.replicas={least} and has {sight.replicas}: no write is acknowledged",
            set_topic(question, name, f"min.insync.replicas={max(1, sight.replicas - 1)}"),
        )
    elif least > sight.in_sync:
        yield fault(
            "replicas",
            f"topic {name!r} has {sight.in_sync} of {sight.replicas} replicas in sync, and writes wait for {least}",
            "Start the brokers that are down; which: " + _describe(question, name),
        )
    elif sight.in_sync < sight.replicas:
        yield warning(
            "replicas",
            f"topic {name!r} has {sight.in_sync} of {sight.replicas} replicas in sync",
            "Start the brokers that are down; which: " + _describe(question, name),
        )
    elif sight.replicas == 1 and len(cluster.brokers) >= _MANY_BROKERS:
        yield warning(
            "replicas",
            f"topic {name!r} lies on one of {len(cluster.brokers)} brokers: it is away when that one is",
            "Give it more: kafka-reassign-partitions.sh, or make the repository anew with --replication-factor 3.",
        )


def _describe(question: Question, topic: str) -> str:
    return tool(question, "kafka-topics.sh", "--describe", "--topic", topic)


def _broker_settings(cluster: ClusterSight) -> Iterator[Finding]:
    """What keeps a cluster of few nodes from transactions, and one of many from copying large records quickly."""
    configs, brokers = cluster.configs, len(cluster.brokers)
    if configs is None:
        yield unknown("broker-settings", "the brokers' own settings may not be looked at by this login")
        return
    wrong = False
    for prefix, topic, what in (
        ("transaction.state.log", "__transaction_state", "no transaction can begin: nothing is published or scored"),
        ("offsets.topic", "__consumer_offsets", "no group can be joined: nothing is scored"),
    ):
        wanted = _number(configs, f"{prefix}.replication.factor", 1)
        if wanted > brokers and topic not in cluster.all_topics:
            wrong = True
            yield fault(
                "broker-settings",
                f"{prefix}.replication.factor={wanted}, and there are {brokers} brokers: {what}",
                f"Start more brokers, or set {prefix}.replication.factor={brokers} (and "
                "transaction.state.log.min.isr=1) in their server.properties.",
            )
    fetches = _number(configs, "replica.fetch.max.bytes", KAFKA_MESSAGE_BYTES)
    for sight in cluster.topics.values():
        limit = _number(sight.configs or {}, "max.message.bytes", 0)
        if sight.replicas > 1 and limit > fetches:
            wrong = True
            yield warning(
                "message-limit",
                f"topic {sight.name!r} takes max.message.bytes={limit}, and replica.fetch.max.bytes={fetches} of the "
                "brokers is less: its large records are replicated one at a time",
                f"Set replica.fetch.max.bytes={limit} in the brokers' server.properties.",
            )
    if not wrong:
        yield ok("broker-settings", f"{brokers} broker(s), with internal topics as {brokers} can hold")


def _number(configs: Mapping[str, str], name: str, default: int) -> int:
    try:
        return int(configs.get(name, default))
    except ValueError:
        return default
