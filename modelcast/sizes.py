"""Numbers of bytes as people write them: kB, MB, GB, TB are powers of 1,000, KiB, MiB, GiB, TiB of 1,024.

>>> parse_size("1.5GiB", "--max-memory")
1610612736
"""

from __future__ import annotations

import re

from modelcast.errors import ConfigError

_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)\s*([kmgt]?i?b?)", re.IGNORECASE)
_POWERS = "kmgt"


def parse_size(text: str, name: str) -> int:
    """`text` as bytes: `500MB`, `1.5GiB`, `20000000000`.

    Args:
        name: The setting that holds it, for the message.

    Raises:
        ConfigError: It is no size.
    """
    found = _SIZE.fullmatch(text.strip())
    unit = "" if found is None else found[2].lower().removesuffix("b")
    if found is None or unit == "i":
        raise ConfigError(f"{name}={text!r} is not a size", hint=f"Write e.g. {name}=50GB")
    base = 1024 if unit.endswith("i") else 1000
    return int(float(found[1]) * base ** (_POWERS.index(unit[0]) + 1)) if unit else int(float(found[1]))
