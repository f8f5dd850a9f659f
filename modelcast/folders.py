"""Where this user's files are kept: caches that may be deleted, state that should not, keys.

Each folder is movable by one variable.
"""

from __future__ import annotations

import os
from pathlib import Path

CACHE_VARIABLE = "MODELCAST_CACHE_DIR"
STATE_VARIABLE = "MODELCAST_STATE_DIR"
CONFIG_VARIABLE = "MODELCAST_CONFIG_DIR"


def cache_folder() -> Path:
    """What costs only time when it is deleted: Kafka's jars, fetched models."""
    return _folder(CACHE_VARIABLE, "user_cache_path")


def state_folder() -> Path:
    """What a restart wants to find again: the dev broker's data, marks of uploads and releases, instance slots."""
    return _folder(STATE_VARIABLE, "user_state_path")


def config_folder() -> Path:
    """What this user made and nobody can make again: signing keys."""
    return _folder(CONFIG_VARIABLE, "user_config_path")


def _folder(variable: str, default: str) -> Path:
    if chosen := os.environ.get(variable):
        return Path(chosen).expanduser().absolute()
    import platformdirs  # 20 ms, which every command would pay

    path: Path = getattr(platformdirs, default)("modelcast", appauthor=False)
    return path
