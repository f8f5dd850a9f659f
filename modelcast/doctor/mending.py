"""The lines that mend things, as Kafka's own tools take them."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime

from .sights import Question

_DAY_MS = 24 * 3600 * 1000
# Kafka's default `message.max.bytes`, which a default client's records fit.
KAFKA_MESSAGE_BYTES = 1_048_588


def tool(question: Question, name: str, *words: str) -> str:
    """A line of one of Kafka's tools, for this cluster."""
    secured = ["--command-config", "FILE"] if question.security.protocol != "PLAINTEXT" else []
    return shlex.join([name, "--bootstrap-server", question.servers, *secured, *words])


def set_topic(question: Question, topic: str, config: str) -> str:
    """The line that sets something of a topic."""
    return tool(
        question,
        "kafka-configs.sh",
        "--alter",
        "--entity-type",
        "topics",
        "--entity-name",
        topic,
        "--add-config",
        config,
    )


def modelcast(question: Question, *words: str) -> str:
    """A line of modelcast's own, for this repository."""
    prefix = [] if question.prefix == "modelcast" else ["--prefix", question.prefix]
    return shlex.join(["modelcast", *words, *prefix])


def day(epoch_ms: int) -> str:
    """A date, in UTC."""
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")


def duration(ms: int) -> str:
    """A span of time in its largest unit."""
    seconds = abs(ms) / 1000
    for size, unit in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
