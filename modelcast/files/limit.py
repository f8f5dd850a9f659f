"""How much of a disk the cache of models may take: `MODELCAST_CACHE_BYTES`, else a default that the disk bounds.

MODELCAST_CACHE_BYTES=50GB
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelcast.sizes import parse_size

LIMIT_VARIABLE: Final = "MODELCAST_CACHE_BYTES"
# Some hundred small models or a few large ones: as many as a rollback or a restart may want back without a fetch.
DEFAULT_LIMIT_BYTES: Final = 20 << 30
# Of a small disk no more than half: Kafka's jars, logs and other people's files live there too.
DEFAULT_DISK_SHARE: Final = 2


def limit_bytes(folder: Path, environment: Mapping[str, str] = os.environ) -> int:
    """What files in `folder` may take together before unused ones are removed.

    Raises:
        ConfigError: `MODELCAST_CACHE_BYTES` is not a size.
    """
    if said := environment.get(LIMIT_VARIABLE):
        return parse_size(said, LIMIT_VARIABLE)
    try:
        return min(DEFAULT_LIMIT_BYTES, shutil.disk_usage(folder).total // DEFAULT_DISK_SHARE)
    except OSError:  # no such folder yet
        return DEFAULT_LIMIT_BYTES
