"""Patterns of model names: models that an application wants as they appear.

- `*` is any text, `?` one character, `[ab]` one of these; upper and lower case differ.
- A model is followed from its first release on: what was published only is not there to be used yet.

    >>> is_pattern("fraud-*"), is_pattern("fraud@3")
    (True, False)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from modelcast.errors import UsageError
from modelcast.registry.image import ModelEntry

# What names consist of, and what patterns add to it.
_PATTERN = re.compile(r"[A-Za-z0-9._*?\[\]!-]{1,200}")
_WILD = frozenset("*?[")


def is_pattern(text: str) -> bool:
    """Whether this is a pattern, where a model's name may stand too."""
    return not _WILD.isdisjoint(text)


def check_pattern(text: str) -> str:
    """Returns `text`, or raises UsageError saying what is allowed."""
    if not _PATTERN.fullmatch(text):
        raise UsageError(
            f"{text[:200]!r} is not a pattern of model names",
            hint="Write letters, digits, '.', '_' and '-', and '*', '?' or '[…]' for any others: 'fraud-*'.",
        )
    return text


def appeared(
    patterns: tuple[str, ...], models: Mapping[str, ModelEntry], before: Mapping[str, ModelEntry]
) -> list[str]:
    """The models with a release that match one of the patterns, but for those that are as they were before."""
    return [
        name
        for name, entry in models.items()
        if before.get(name) is not entry and entry.champion is not None and matches(patterns, name)
    ]


def matches(patterns: tuple[str, ...], name: str) -> bool:
    """Whether a model's name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
