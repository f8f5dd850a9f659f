"""Where the local broker keeps what it keeps: the user's cache and state folders, each movable by one variable."""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "MODELCAST_CACHE_DIR"
STATE_VARIABLE = "MODELCAST_STATE_DIR"


def kafka_cache_dir() -> Path:
    """Returns where Kafka's jars are kept; deleting it costs one download."""
    return _folder(CACHE_VARIABLE, "user_cache_path") / "kafka"


def dev_state_dir() -> Path:
    """Returns where the dev broker's state and data are kept."""
    return _folder(STATE_VARIABLE, "user_state_path") / "dev"


def _folder(variable: str, default: str) -> Path:
    if chosen := os.environ.get(variable):
        return Path(chosen).expanduser().absolute()
    import platformdirs  # 20 ms, which every command would pay

    path: Path = getattr(platformdirs, default)("modelcast", appauthor=False)
    return path
