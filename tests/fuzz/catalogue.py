"""Every reader there is, by name."""

from __future__ import annotations

from functools import cache

from . import files, letters, models, records
from .reader import Reader


@cache
def readers() -> tuple[Reader, ...]:
    """All of them, in the order of their data's way: registry, files of models, files of hosts, events' neighbours."""
    return (*records.readers(), *models.readers(), *files.readers(), *letters.readers())


def named(name: str) -> Reader:
    """The reader of a name. Raises KeyError."""
    return {reader.name: reader for reader in readers()}[name]
