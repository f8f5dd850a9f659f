"""The configuration of a one-node Kafka cluster on the loopback interface, as text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .ports import LOOPBACK

STARTED_LINE = "Kafka Server started"  # logged once every listener accepts requests
LOG_MAX_SIZE = "10MB"  # of each of at most three log files: a dev broker may run for months

# What a cluster of many nodes and patient users has as defaults, made right for one node and one impatient user.
ONE_NODE = {
    # Nobody to replicate to; few partitions, since each is a directory to create and a log to load at every start.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.replication.factor": "1",
    "transaction.state.log.min.isr": "1",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.replication.factor": "1",
    "share.coordinator.state.topic.min.isr": "1",
    "share.coordinator.state.topic.num.partitions": "1",
    # A misspelt topic is an error, as on most production clusters.
    "auto.create.topics.enable": "false",
    # The first member of a group need not wait 3 s for others; a member of the new protocol joins in 1 s, not 5.
    "group.initial.rebalance.delay.ms": "0",
    "group.consumer.heartbeat.interval.ms": "200",
    "group.consumer.min.heartbeat.interval.ms": "100",
    # A static member of the new protocol that is gone gives its partitions up after 6 s, like one of the old, not 45.
    "group.consumer.session.timeout.ms": "6000",
    "group.consumer.min.session.timeout.ms": "6000",
    # A broker whose heart misses a beat for want of a processor is not shut out.
    "broker.session.timeout.ms": "3000",
    "broker.heartbeat.interval.ms": "250",
    # Compaction and retention show within seconds, and the cleaner does not take 128 MB of the heap.
    "log.cleaner.backoff.ms": "200",
    "log.cleaner.dedupe.buffer.size": "8388608",
    "log.retention.check.interval.ms": "1000",
}

# Nobody's heart beats: the broker that the controller remembers is gone.
_LONE_CONTROLLER = {
    "process.roles": "controller",
    "broker.session.timeout.ms": "100",
    "broker.heartbeat.interval.ms": "50",
    "metadata.max.idle.interval.ms": "20",  # of the empty records that tell who watches that others were written
}

_LOG4J = """\
status = error
appender.file.type = RollingFile
appender.file.name = file
appender.file.fileName = ${{sys:modelcast.log}}
appender.file.filePattern = ${{sys:modelcast.log}}.%i
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = [%d] %p %m (%c)%n
appender.file.policies.type = Policies
appender.file.policies.size.type = SizeBasedTriggeringPolicy
appender.file.policies.size.size = {max_size}
appender.file.strategy.type = DefaultRolloverStrategy
appender.file.strategy.max = 2
rootLogger.level = INFO
rootLogger.appenderRef.file.ref = file
# Retention and the cleaner look every second or less; each look would be a line.
logger.storage.name = org.apache.kafka.storage.internals.log
logger.storage.level = WARN
logger.log.name = kafka.log
logger.log.level = WARN
"""


def server_properties(data_dir: Path, port: int, controller_port: int, overrides: Mapping[str, str]) -> str:
    """Returns the text of server.properties.

    Args:
        data_dir: Where Kafka keeps its logs.
        port: Of the listener for clients.
        controller_port: Of the listener the node's controller talks to its broker on.
        overrides: Settings that win over all others.
    """
    return _text(_settings(data_dir, port, controller_port, overrides))


def lone_controller_properties(data_dir: Path, port: int, controller_port: int, overrides: Mapping[str, str]) -> str:
    """Returns the properties of the same node without its broker, which it misses at once; arguments as above."""
    settings = _settings(data_dir, port, controller_port, overrides)
    own = settings["controller.listener.names"] + ":"
    settings["listeners"] = next(each for each in settings["listeners"].split(",") if each.startswith(own))
    for of_the_broker in ("advertised.listeners", "inter.broker.listener.name"):
        settings.pop(of_the_broker, None)
    return _text({**settings, **_LONE_CONTROLLER})


def _settings(data_dir: Path, port: int, controller_port: int, overrides: Mapping[str, str]) -> dict[str, str]:
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "controller.quorum.voters": f"1@{LOOPBACK}:{controller_port}",
        "controller.listener.names": "CONTROLLER",
        "listeners": f"PLAINTEXT://{LOOPBACK}:{port},CONTROLLER://{LOOPBACK}:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://{LOOPBACK}:{port}",
        "log.dirs": str(data_dir),
        **ONE_NODE,
        **overrides,
    }


def _text(settings: Mapping[str, str]) -> str:
    return "".join(f"{_escaped(key)}={_escaped(value)}\n" for key, value in settings.items())


def log4j_properties() -> str:
    """Returns the text of log4j2.properties; the log's path is the system property `modelcast.log`."""
    return _LOG4J.format(max_size=LOG_MAX_SIZE)


def _escaped(text: str) -> str:
    """Java's properties syntax: a backslash escapes, a line end ends."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")
