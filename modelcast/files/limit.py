"""How much of a disk the cache of models may take: `MODELCAST_CACHE_BYTES`, else a default that the disk bounds.

MODELCAST_CACHE_BYTES=50GB    a number of bytes; kB, MB, GB, TB are powers of 1,000, KiB, MiB, GiB, TiB of 1,024
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from modelcast.errors import ConfigError

LIMIT_VARIABLE: Final = "MODELCAST_CACHE_BYTES"
# Some hundred small models or a few large ones: as many as a rollback or a restart may want back without a fetch.
DEFAULT_LIMIT_BYTES: Final = 20 << 30
# Of a small disk no more than half: Kafka's jars, logs and other people's files live there too.
DEFAULT_DISK_SHARE: Final = 2

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmgt]?i?b?)", re.IGNORECASE)
_POWERS = "kmgt"


def limit_bytes(folder: Path, environment: Mapping[str, str] = os.environ) -> int:
    """What files in `folder` may take together before unused ones are removed.

    Raises:
        ConfigError: `MODELCAST_CACHE_BYTES` is not a size.
    """
    if said := environment.get(LIMIT_VARIABLE):
        return parse_size(said)
    try:
        return min(DEFAULT_LIMIT_BYTES, shutil.disk_usage(folder).total // DEFAULT_DISK_SHARE)
    except OSError:  # no such folder yet
        return DEFAULT_LIMIT_BYTES


def parse_size(text: str) -> int:
    """`text` as bytes: `500MB`, `1.5GiB`, `20000000000`. Raises ConfigError."""
    found = _SIZE.fullmatch(text.strip())
    unit = "" if found is None else found[2].lower().removesuffix("b")
    if found is None or unit == "i":
        raise ConfigError(f"{LIMIT_VARIABLE}={text!r} is not a size", hint=f"Write e.g. {LIMIT_VARIABLE}=50GB")
    base = 1024 if unit.endswith("i") else 1000
    return int(float(found[1]) * base ** (_POWERS.index(unit[0]) + 1)) if unit else int(float(found[1]))
