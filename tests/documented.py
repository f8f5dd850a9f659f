"""The code blocks of a document, by the name in the comment before each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"<!-- (?P<name>[^>]*?) -->\n```\w+\n(?P<code>.*?)```", re.DOTALL)


def blocks(document: str) -> Mapping[str, str]:
    """Of a document by its path from the root."""
    return {match["name"]: match["code"] for match in _BLOCK.finditer((ROOT / document).read_text())}
