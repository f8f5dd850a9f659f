"""Where the local broker keeps what it keeps, within the user's folders."""

from __future__ import annotations

from pathlib import Path

from modelcast.folders import cache_folder, state_folder


def kafka_cache_dir() -> Path:
    """Returns where Kafka's jars are kept; deleting it costs one download."""
    return cache_folder() / "kafka"


def dev_state_dir() -> Path:
    """Returns where the dev broker's state and data are kept."""
    return state_folder() / "dev"
